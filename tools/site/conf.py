"""Sphinx settings of the site (``make site``): the repository's own documents and notebooks.

Nothing is executed, and nothing on a page comes from another machine: it opens from disk.
"""

from __future__ import annotations

import io
import re
import sys
from base64 import b64encode
from pathlib import Path

import nbformat
from docutils import nodes
from matplotlib.mathtext import math_to_image
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import publish  # noqa: E402

ADDRESS = publish.repository(ROOT)
NOTEBOOKS = [
    path.relative_to(ROOT).with_suffix("").as_posix()
    for folder in ("notebooks", "notebooks/appendix")
    for path in sorted((ROOT / folder).glob("*.ipynb"))
]
DOCUMENTS = sorted(f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md"))
DOCUMENTS += ["data/README", "data/replies/README", "data/sample/README", "CONTRIBUTING"]
DOCUMENTS += ["CHANGELOG"]
WIDGET = "application/vnd.jupyter.widget-view+json"

project = "LLM-powered recommenders"
author = "The contributors of this course"
copyright = "the contributors of this course; text and figures CC BY 4.0"
extensions = ["myst_nb", "sphinx_design"]
root_doc = "README"
include_patterns = [
    "README.md",
    *(f"{name}.ipynb" for name in NOTEBOOKS),
    *(f"{name}.md" for name in DOCUMENTS),
]
exclude_patterns = [".*", "build", "docs-build", "executed", "live", "shared", "src", "tests"]
language = "en"

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # widgets need a kernel; their script a network
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

html_theme = "sphinx_book_theme"
html_title = project
html_show_search_summary = False  # a page opened from disk may not read other files
html_copy_source = False
html_math_renderer = "mathtext"
html_context = {"default_mode": "light"}
html_theme_options = {"use_download_button": False, "navbar_persistent": []}
if ADDRESS:
    html_theme_options |= {"repository_url": ADDRESS, "use_repository_button": True}


def toctree(caption: str, names: list[str]) -> str:
    """Return the contents that the sidebar shows."""
    return f"\n\n```{{toctree}}\n:caption: {caption}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"


def as_on_the_site(app: Sphinx, name: str, content: list[str]) -> None:
    """Change what a site shows otherwise than GitHub: links to files, widgets, some cells."""
    if name in NOTEBOOKS:
        notebook = nbformat.reads(content[0], as_version=4)
        for cell in notebook.cells:
            tags = cell.metadata.get("tags", [])
            hidden = {"solution": "hide-cell", "setup": "hide-input"}
            cell.metadata["tags"] = [*tags, *(hidden[tag] for tag in tags if tag in hidden)]
            for output in cell.get("outputs", []):
                if WIDGET in output.get("data", {}):
                    output.data = {"text/plain": "(Controls, which need a running kernel.)"}
                elif alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
                    # MyST reads a figure's alt text from here.
                    cell.metadata["mystnb"] = {"image": {"alt": alt}}
                elif named := re.search("<title>(.*)</title>", drawing(output)):
                    cell.metadata["mystnb"] = {"image": {"alt": named[1]}}
        content[0] = nbformat.writes(notebook)
        return
    content[0] = re.sub(r"```mermaid\n", "```text\n", content[0])  # its script needs a network
    # To Sphinx a notebook is a page; the template is a file to copy.
    content[0] = re.sub(
        r"\[([^\]]*)\]\(([^)\s]*\btemplate\.ipynb)\)", r"{download}`\1 <\2>`", content[0]
    )
    if name == root_doc:
        content[0] += toctree("Notebooks", NOTEBOOKS) + toctree("Documents", DOCUMENTS)


def drawing(output: nbformat.NotebookNode) -> str:
    """Return the SVG of an output, or nothing."""
    return output.get("data", {}).get("image/svg+xml", "")


# What TeX knows and matplotlib does not, and what stands in for it.
TEX = ((r"\\tag\{(\d+)\}", r"\\qquad (\1)"), (r"\\[lr]Vert", r"\\Vert "), (r"\\[Bb]ig[lr]?\b", ""),
       (r"\\tfrac", r"\\frac"), (r"\s+", " "))  # fmt: skip


def formula(translator: nodes.NodeVisitor, node: nodes.math) -> None:
    """Draw a formula with matplotlib (MathJax is not on the package index), or show its TeX."""
    drawn, text = io.BytesIO(), node.astext()
    for pattern, instead in TEX:
        text = re.sub(pattern, instead, text)
    try:
        depth = math_to_image(f"${text}$", drawn, dpi=72, format="svg")
    except ValueError:  # a matrix
        translator.body.append(f"<code>{translator.encode(node.astext())}</code>")
        raise nodes.SkipNode from None
    source = f"data:image/svg+xml;base64,{b64encode(drawn.getvalue()).decode()}"
    translator.body.append(
        f'<img class="formula" src="{source}" alt="{translator.attval(node.astext())}" '
        f'style="vertical-align: -{depth}px; background: white">'
    )
    raise nodes.SkipNode


def front_page(app: Sphinx, error: Exception | None) -> None:
    """Let the site open at ``index.html``."""
    if not error:
        refresh = '<meta http-equiv="refresh" content="0; url=README.html">'
        (Path(app.outdir) / "index.html").write_text(refresh, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect what stands above."""
    app.add_html_math_renderer("mathtext", (formula, None), (formula, None))
    app.connect("source-read", as_on_the_site)
    app.connect("build-finished", front_page)
