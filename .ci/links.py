"""Ask for every page outside the repository that its texts link to; ``python .ci/links.py``.

Prints a line for each link that fails and exits with 1 if there is one. It needs a network, so it
runs weekly and not among the tests.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import nbformat

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?:\]\(|<|(?:href|src)=\")(https?://[^)>\s\"]+)")
# Addresses that are examples, not pages.
EXAMPLES = re.compile(r"localhost|127\.0\.0\.1|OWNER/REPO|//example\.")
# The page is there but does not talk to programs, or wants a pause.
ALIVE = {401, 403, 405, 406, 418, 429, 999}
TRIES = 3


def texts(root: Path) -> Iterable[tuple[str, str]]:
    """Yield the name and the Markdown of every document and notebook."""
    pages = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("data/**/README.md")]
    for page in sorted(pages):
        yield page.name, page.read_text(encoding="utf-8")
    for path in sorted(root.glob("notebooks/**/*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        yield path.name, "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def links(root: Path) -> dict[str, str]:
    """Return each outside link with the first file that has it."""
    found: dict[str, str] = {}
    for name, text in texts(root):
        for link in LINK.findall(text):
            if not EXAMPLES.search(link):
                found.setdefault(link.split("#")[0], name)
    return found


def fault(client: httpx2.Client, link: str, pause_s: float = 5.0) -> str:
    """Return why a link fails, or an empty string; a server's bad day gets ``TRIES`` attempts."""
    why = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause_s * attempt)
        try:
            with client.stream("GET", link) as answer:  # not every server knows HEAD
                status = answer.status_code
        except httpx2.HTTPError as error:
            why = type(error).__name__
            continue
        if status < 400 or status in ALIVE:
            return ""
        why = str(status)
        if status < 500:
            return why
    return why


def check(root: Path, pause_s: float = 5.0) -> list[str]:
    """Return a line for each dead link."""
    found = links(root)
    headers = {"User-Agent": "Mozilla/5.0 (link check of a course)"}
    with (
        httpx2.Client(follow_redirects=True, timeout=30.0, headers=headers) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        faults = list(pool.map(lambda link: fault(client, link, pause_s), found))
    return [f"{found[link]}: {link}: {why}" for link, why in zip(found, faults, strict=True) if why]


if __name__ == "__main__":
    dead = check(ROOT)
    print("\n".join(dead) or f"All {len(links(ROOT))} links answer.")
    sys.exit(bool(dead))
