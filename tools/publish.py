"""The navigation bars, and the repository's address in every place that needs it.

It is ``Repository`` under ``[project.urls]`` in ``pyproject.toml`` if that is there, else what CI
says, else git's ``origin``. ``course.py stamp`` puts it into set-up cells, bars and README.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import quote, urlencode

import nbformat

from helpers.settings import Settings

NAV = "<!--NAV-->"
LAUNCH = "<!--LAUNCH-->"
BRANCH = "main"
IMAGE = "binder"  # the branch that Binder builds; a workflow moves it when the environment changes
FORM = re.compile(r"(?:^|[/@])github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$")
SET_UP_ENDS = "print(versions("  # here begins what differs from notebook to notebook
NOT_FOUND = "No course here: git clone it, %run REPO/tools/colab.py"
NO_ADDRESS = "The first push to GitHub puts links to Binder and Colab here."


def repository(root: Path) -> str | None:
    """Return the address, ``https://github.com/OWNER/REPO``, or ``None`` if it is not known."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = "/".join(os.environ.get(f"GITHUB_{x}", "") for x in ("SERVER_URL", "REPOSITORY"))
    command = ["git", "--git-dir", str(root / ".git"), "remote", "get-url", "origin"]
    origin = ""
    if shutil.which("git"):
        origin = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    for text in (project.get("urls", {}).get("Repository", ""), environment, origin):
        if found := FORM.search(text):
            return f"https://github.com/{found[1]}"
    return None


def launch_links(address: str, notebook: str) -> dict[str, str]:
    """Return where Colab opens ``notebook``, and Binder, which pulls it into a ready image."""
    path = address.removeprefix("https://github.com/")
    pull = {"repo": address, "branch": BRANCH, "targetpath": "course"}
    pulled = urlencode(pull | {"urlpath": f"lab/tree/course/{notebook}"})
    return {
        "Colab": f"https://colab.research.google.com/github/{path}/blob/{BRANCH}/{notebook}",
        "Binder": f"https://mybinder.org/v2/gh/{path}/{IMAGE}?urlpath={quote(f'git-pull?{pulled}')}",
    }


def navigation(paths: list[Path], index: int, address: str | None = None) -> str:
    """Return the bar of notebook ``index``: previous, contents, next, and where to launch it."""
    previous = f"[← {paths[index - 1].stem}]({paths[index - 1].name})" if index else "start"
    following = [f"[{path.stem} →]({path.name})" for path in paths[index + 1 :]] or ["end"]
    parts = [previous, "[contents](../README.md#the-notebooks)", following[0]]
    if address:
        links = launch_links(address, f"notebooks/{paths[index].name}")
        parts += [f"[open in {place}]({link})" for place, link in links.items()]
    # On a line of its own: what follows a comment on its line is not read as Markdown.
    return f"{NAV}\n\n{' | '.join(parts)}"


def set_up(address: str | None) -> str:
    """Return the beginning of a set-up cell: on Colab it runs ``tools/colab.py`` from GitHub.

    Without an address the session says where the notebook lies, which is beside ``tools``.
    """
    asked = "curl -s $COLAB_JUPYTER_IP:9000/api/sessions|grep -o git.*notebooks|xargs -I@ "
    fetched = f"{asked}curl -sfL https://@/../tools/colab.py?raw=true"
    if address:
        fetched = f"curl -sfL {address}/raw/{BRANCH}/tools/colab.py"
    return f"""if "google.colab" in str(get_ipython()):  # fetch and install the course
    code = !{fetched}
    exec(code.n or "raise SystemExit({NOT_FOUND!r})", {{}})
from helpers.settings import versions  # missing? Say "make lab" or pip install -e .

"""


def stamp(settings: Settings) -> str | None:
    """Write the address into all notebooks, their template and the README, and return it.

    Of a set-up cell the beginning is renewed; its outputs and count stay.
    """
    address = repository(settings.root)
    paths = sorted((settings.root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    appendices = sorted((settings.root / "notebooks" / "appendix").glob("*.ipynb"))
    for path in [*paths, *appendices, settings.root / "docs" / "template.ipynb"]:
        notebook = nbformat.read(path, as_version=4)
        if path in paths:
            index = paths.index(path)
            texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
            for cell, known in ((texts[0], address), (texts[-1], None)):
                body = re.sub(rf"\n*{NAV}\n*.*", "", cell.source).rstrip()
                cell.source = f"{body}\n\n{navigation(paths, index, known)}"
        (cell,) = (c for c in notebook.cells if "setup" in c.metadata.get("tags", []))
        cell.source = set_up(address) + cell.source[cell.source.index(SET_UP_ENDS) :]
        nbformat.write(notebook, path)
    readme = settings.root / "README.md"
    before, _, after = readme.read_text(encoding="utf-8").split(LAUNCH)
    text = NO_ADDRESS
    if address:
        links = launch_links(address, f"notebooks/{paths[0].name}")
        text = " | ".join(f"[Open in {place}]({link})" for place, link in links.items())
    readme.write_text(f"{before}{LAUNCH}\n\n{text}\n\n{LAUNCH}{after}", encoding="utf-8")
    return address
