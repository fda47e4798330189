"""Sphinx settings of the site (``make site``): the repository's own documents and notebooks.

Nothing is executed, and nothing on a page comes from another machine: it opens from disk.
"""

import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
from sphinx.application import Sphinx

from helpers.settings import Settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import lessons
import page
import publish

ADDRESS = publish.repository(lessons.ROOT)
MATHJAX = Path(find_spec("sphinx-mathjax-offline").origin).parent / "static/mathjax/tex-svg.js"

project = html_title = "LLM-powered recommenders"
author = ""
copyright = "the contributors of this course; text and figures CC BY 4.0"
extensions = ["myst_nb", "sphinx_design"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "data/**README.md", "notebooks/**.ipynb"]
exclude_patterns = [".*", "build", "shared", "src", "tests", "work"]
templates_path = ["templates"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js: dict = {}  # widgets need a kernel; their script a network
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
mathjax_path = MATHJAX.name

html_theme = "sphinx_book_theme"
html_static_path = ["static", str(MATHJAX), str(lessons.ROOT / "docs" / "page.png")]
html_css_files = ["site.css"]
html_context = {"default_mode": "auto"}
html_theme_options = {"navbar_persistent": [], "use_fullscreen_button": False}
html_theme_options |= {"repository_url": ADDRESS or "", "repository_branch": publish.BRANCH}
html_theme_options |= dict.fromkeys(["use_repository_button", "use_source_button"], bool(ADDRESS))


def front_page(text: str) -> str:
    """Return the README as the site's first page: with doors instead of links, and contents."""
    text = re.sub(rf"(- \*\*Read it.*?)?{publish.LAUNCH}.*{publish.LAUNCH}", "", text, flags=re.S)
    doors, contents = Path(__file__).with_name("front.md").read_text("utf-8").split("\n\n")
    named = re.findall(r"\| \[(.*?)\]\((notebooks/\w+)\.ipynb\)", text)
    contents = contents.replace("NOTEBOOKS", "\n".join(f"{title} <{at}>" for title, at in named))
    title, opening, rest = text.split("\n\n", 2)
    return "\n\n".join([title, opening, doors, rest, contents])


def on_the_site(app: Sphinx, name: str, content: list[str]) -> None:
    """Change what a site shows otherwise than GitHub: bars, some cells, widgets, a link."""
    if not name.startswith("notebooks/"):
        # To Sphinx a notebook is a page; the template is a file to copy.
        template = r"\[([^\]]*)\]\(([^)\s]*\btemplate\.ipynb)\)"
        text = re.sub(template, r"{download}`\1 <\2>`", content[0])
        content[0] = front_page(text) if name == root_doc else text
        return
    notebook = nbformat.reads(content[0], as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(rf"\n*{publish.NAV}\n*.*", "", cell.source)  # the theme has its own
        page_link = r'<a href="../page/index.html">\1</a>'
        cell.source = re.sub("`(build/page/index.html)`", page_link, cell.source)
        tags = cell.metadata.setdefault("tags", [])
        tags += ["hide-cell"] * ("solution" in tags) + ["hide-input"] * ("setup" in tags)
        for output in cell.get("outputs", []):
            if alt := lessons.alt(output):  # MyST reads a figure's alt text from here
                cell.metadata["mystnb"] = {"image": {"alt": alt}}
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                output.data = {"text/plain": "(Controls, which need a running kernel.)"}
    content[0] = nbformat.writes(notebook)


def add_launch(app: Sphinx, name: str, template: str, context: dict, _: object) -> None:
    if ADDRESS and name.startswith("notebooks/"):
        links = publish.launch_links(ADDRESS, f"{name}.ipynb").items()
        buttons = [{"type": "link", "text": place, "url": url} for place, url in links]
        group = {"type": "group", "icon": "fas fa-rocket", "tooltip": "Run it", "label": "launch"}
        context["header_buttons"].append(group | {"buttons": buttons})


def finish(app: Sphinx, error: Exception | None) -> None:
    """Let the site open at ``index.html``; add what its search reads and the page to play with."""
    if error:
        return
    output = Path(app.outdir)
    pages = {name: (output / f"{name}.html").read_text("utf-8") for name in app.env.found_docs}
    (output / "_static/pages.js").write_text(f"const pages = {json.dumps(pages)};", "utf-8")
    shutil.copyfile(output / "README.html", output / "index.html")
    page.write(output / "page", Settings.from_env())


def setup(app: Sphinx) -> None:
    app.connect("source-read", on_the_site)
    app.connect("html-page-context", add_launch, priority=900)  # after the theme's buttons
    app.connect("build-finished", finish)
