"""The site: it builds without a warning, its links resolve, and it works from disk in a browser."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import nbformat
import publish
import pytest
from browsers import ROOT, shoot

pytest.importorskip("sphinx_book_theme", reason="needs the tools extra: pip install -e '.[tools]'")
bs4 = pytest.importorskip("bs4", reason="needs the tools extra: pip install -e '.[tools]'")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site of a repository that knows its address."""
    output = tmp_path_factory.mktemp("page") / "site"
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    command += ["-c", str(ROOT / "tools" / "site"), str(ROOT), str(output)]
    ci = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "someone/a-course"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | ci)
    assert done.returncode == 0, done.stdout + done.stderr
    return output


@cache
def soup(page: Path):
    return bs4.BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def faults(page: Path) -> list[str]:
    """Return the links and files of a page that lead nowhere, or that it loads from elsewhere."""
    bad = []
    for tag in soup(page).find_all(["a", "link", "script", "img", "source", "iframe"]):
        for target in filter(None, (tag.get("href"), tag.get("src"))):
            parts = urlparse(target)
            if parts.scheme or parts.netloc:
                if tag.name != "a" and parts.scheme != "data":
                    bad.append(f"loads {target}")
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if not file.is_file():
                bad.append(f"no file {target}")
                continue
            anchor = unquote(parts.fragment)
            if anchor and file.suffix == ".html" and not soup(file).find(id=anchor):
                bad.append(f"no anchor {target}")
    return bad


def test_every_link_and_file_of_every_page_is_there(site):
    pages = [page.resolve() for page in site.rglob("*.html") if "_static" not in page.parts]
    assert len(pages) >= len(NOTEBOOKS) + 8
    assert [(page.name, fault) for page in pages for fault in faults(page)] == []


def test_a_dead_link_is_seen(tmp_path):
    page = tmp_path / "x.html"
    page.write_text(
        '<p id="a"></p><a href="#a">1</a><a href="#b">2</a><a href="no.html">3</a>'
        '<a href="https://example.org/">4</a><script src="https://example.org/x.js"></script>'
    )
    assert faults(page) == ["no anchor #b", "no file no.html", "loads https://example.org/x.js"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_shown_whole(site, path):
    """Every figure with its alt text, and every text output."""
    page = soup(site / "notebooks" / f"{path.stem}.html")
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    alts = []
    for output in outputs:
        if "image/png" in output.get("data", {}):
            alts.append(output.metadata["image/png"]["alt"])
        elif "image/svg+xml" in output.get("data", {}):
            alts += re.findall("<title>(.*)</title>", output.data["image/svg+xml"])
    prose = "".join(cell.source for cell in cells if cell.cell_type == "markdown")
    pictures = re.findall(r"!\[(.*?)\]\(", prose)
    images = [image for image in page.find_all("img") if "_images" in image["src"]]
    shown = [image["alt"] for image in images]
    assert [alt for alt in shown if alt not in pictures] == alts
    assert [alt for alt in shown if alt in pictures] == pictures
    text = " ".join(page.get_text().split())
    for output in outputs:
        for line in output.get("text", "").splitlines():
            assert " ".join(line.split()) in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_can_be_launched_downloaded_and_described(site, path):
    page, name = soup(site / "notebooks" / f"{path.stem}.html"), f"notebooks/{path.name}"
    targets = [link["href"] for link in page.select(".article-header-buttons a[href]")]
    assert {*publish.launch_links("https://github.com/someone/a-course", name).values()} <= {
        *targets
    }
    (download,) = (link for link in targets if link.endswith(".ipynb") and "_sources" in link)
    offered = nbformat.read(site / "notebooks" / download, as_version=4).cells
    assert [cell.id for cell in offered] == [c.id for c in nbformat.read(path, as_version=4).cells]
    about = page.find("meta", attrs={"name": "description"})["content"]
    assert about.startswith("You’ll do: ") and "<!--NAV-->" not in page.get_text()


LAID_OUT = """() => ({
  beyond: document.documentElement.scrollWidth - innerWidth,
  cut: [...document.querySelectorAll('.cell_output pre')]
    .filter(text => text.scrollWidth > text.clientWidth).length,
  dark: getComputedStyle(document.body).backgroundColor,
})"""


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 390])
def test_outputs_are_not_cut_and_the_preference_for_dark_is_followed(site, browser, width, scheme):
    page = browser.page(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 900})
    for name in ("index", *(f"notebooks/{path.stem}" for path in NOTEBOOKS[:9:4])):
        page.goto((site / f"{name}.html").as_uri())
        found = page.evaluate(LAID_OUT)
        red = int(re.findall(r"\d+", found.pop("dark"))[0])
        assert found == {"beyond": 0, "cut": 0} and (red < 60) == (scheme == "dark"), name
        shoot(page, f"site_{Path(name).name}_{width}_{scheme}")
    page.context.close()


@pytest.mark.browser
def test_the_site_works_from_disk(site, page, browser):
    """Opened as a file, without any server: pages, figures, formulas, search with excerpts."""
    refused, errors = len(browser.refused), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((site / "index.html").as_uri())
    page.wait_for_selector("article h1 >> text=a course that runs")
    shoot(page, "site_index")
    title = nbformat.read(NOTEBOOKS[5], as_version=4).cells[0].source.splitlines()[0][2:]
    page.click("nav >> text=06 Does it help?")
    page.wait_for_selector(f"article h1 >> text={title}")
    widths = page.evaluate(
        "Promise.all([...document.images].map(image => { image.loading = 'eager';"
        " return image.decode().then(() => image.naturalWidth, () => 0); }))"
    )
    assert len(widths) >= 4 and min(widths) > 100
    page.keyboard.press("Control+k")
    page.keyboard.type("NDCG")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#search-results li >> text={title}")
    page.wait_for_selector("#search-results p.context >> text=NDCG")
    shoot(page, "site_search")
    page.goto((site / "notebooks" / "02_als_grid_search.html").as_uri())
    page.wait_for_selector("mjx-container svg")
    assert page.locator("mjx-merror").count() == 0
    page.goto((site / "index.html").as_uri())
    page.click("article >> text=Rate ten movies", force=True)  # the card is a link
    page.wait_for_selector("h1 >> text=Who picks the next movie?")
    assert browser.refused[refused:] == [] and errors == []
