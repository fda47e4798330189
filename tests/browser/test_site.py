"""The site: it builds without a warning, its links resolve, and it works from disk in a browser."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlparse

import nbformat
import pytest
from browsers import ROOT, shoot

pytest.importorskip("sphinx_book_theme", reason="needs the tools extra: pip install -e '.[tools]'")
bs4 = pytest.importorskip("bs4", reason="needs the tools extra: pip install -e '.[tools]'")

SITE = ROOT / "tools" / "site"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def load(name: str):
    spec = importlib.util.spec_from_file_location(f"site_{name}", SITE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    output = tmp_path_factory.mktemp("page") / "site"
    command = [sys.executable, str(SITE / "build.py"), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, object]:
    found = [file for file in site.rglob("*.html") if "_static" not in file.parts]
    files = {file.resolve(): file.read_text(encoding="utf-8") for file in found}
    return {file: bs4.BeautifulSoup(text, "html.parser") for file, text in files.items()}


KNOWN_IDS: dict[int, set[str]] = {}


def ids(page) -> set[str]:
    if id(page) not in KNOWN_IDS:
        KNOWN_IDS[id(page)] = {tag["id"] for tag in page.find_all(id=True)}
    return KNOWN_IDS[id(page)]


def faults(pages: dict, page: Path) -> list[str]:
    """Return the links and files of a page that lead nowhere, or that it loads from elsewhere."""
    found = []
    for tag in pages[page].find_all(["a", "link", "script", "img", "source", "iframe"]):
        for name in ("href", "src"):
            target = tag.get(name)
            if not target or target.startswith(("data:", "mailto:")):
                continue
            parts = urlparse(target)
            if parts.scheme or parts.netloc:
                if tag.name != "a":
                    found.append(f"loads {target}")
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not file.is_file():
                found.append(f"no file {target}")
            elif parts.fragment and file in pages:
                anchor = unquote(parts.fragment)
                if anchor not in ids(pages[file]):
                    found.append(f"no anchor {target}")
    return found


def test_every_link_and_file_of_every_page_is_there(site, pages):
    assert len(pages) >= len(NOTEBOOKS) + 8
    assert [(page.name, fault) for page in pages for fault in faults(pages, page)] == []


def test_a_dead_link_is_seen(tmp_path):
    text = (
        '<p id="a"></p><a href="#a">1</a><a href="#b">2</a><a href="no.html">3</a>'
        '<a href="https://example.org/">4</a><script src="https://example.org/x.js"></script>'
    )
    page = tmp_path / "x.html"
    page.write_text(text)
    found = faults({page: bs4.BeautifulSoup(text, "html.parser")}, page)
    assert found == ["no anchor #b", "no file no.html", "loads https://example.org/x.js"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_shown_whole(site, pages, path):
    """Every figure with its alt text, every text output, every formula as a picture."""
    page = pages[(site / "notebooks" / f"{path.stem}.html").resolve()]
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    alts = [
        output.metadata["image/png"]["alt"]
        for output in outputs
        if "image/png" in output.get("data", {})
    ]
    shown = [image for image in page.find_all("img") if "_images" in image["src"]]
    assert [image["alt"] for image in shown] == alts
    text = " ".join(page.get_text().split())
    for output in outputs:
        for line in output.get("text", "").splitlines():
            assert " ".join(line.split()) in text
    assert not re.search(r"\\frac|\\times|\$[A-Z]\$", page.find("article").get_text())


@pytest.mark.browser
def test_the_site_works_from_disk(site, page, browser):
    """Opened as a file, without any server: pages, figures, search; nothing from elsewhere."""
    asked, faulty = len(browser.refused), []
    page.on("pageerror", lambda error: faulty.append(str(error)))
    page.goto((site / "index.html").as_uri())
    assert "a course that runs" in page.inner_text("article h1")
    shoot(page, "site_index")
    page.click("nav >> text=06 Measure whether the LLM helps")
    page.wait_for_selector("article h1 >> text=Measure whether the LLM helps")
    widths = page.evaluate(
        "Promise.all([...document.images].map(image => { image.loading = 'eager';"
        " return image.decode().then(() => image.naturalWidth, () => 0); }))"
    )
    assert len(widths) >= 5 and min(widths) > 100
    page.locator("article img").first.scroll_into_view_if_needed()
    shoot(page, "site_notebook")
    page.keyboard.press("Control+k")
    page.keyboard.type("NDCG")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li >> text=Measure whether the LLM helps")
    assert shoot(page, "site_search").stat().st_size > 10_000
    assert browser.refused[asked:] == [] and faulty == []


def test_launch_buttons_follow_the_address(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    shutil.copy(NOTEBOOKS[0], tmp_path / "notebooks")
    monkeypatch.setitem(os.environ, "COURSE_ROOT", str(tmp_path))
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    assert "launch_buttons" not in load("conf").html_theme_options
    address = "https://github.com/someone/course"
    (tmp_path / "pyproject.toml").write_text(f'[project.urls]\nRepository = "{address}"\n')
    options = load("conf").html_theme_options
    assert options["repository_url"] == address
    assert set(options["launch_buttons"]) >= {"binderhub_url", "colab_url"}


def test_a_page_is_rewritten_for_the_site():
    build = load("build")
    chart = "flowchart LR\n  R[ratings] --> S[split]\n  S --> P[a prompt]"
    assert build.chart_as_text(chart) == "ratings → split\nsplit → a prompt"
    badge = "[![Open in Colab](https://example.org/b.svg)](https://example.org/go)"
    copied, _ = build.page("its [template](docs/template.ipynb)", "CONTRIBUTING.md")
    assert copied == "its {download}`template <docs/template.ipynb>`"
    text = f"{badge} [up](../README.md#the-notebooks) [own](README.md) [x](generate.py)"
    changed, linked = build.page(text, "data/README.md")
    assert changed == (
        "[Open in Colab](https://example.org/go) [up](../index.md#the-notebooks) [own](README.md) "
        "[x](generate.py)"
    )
    assert linked == {"README.md", "data/README.md", "data/generate.py"}
