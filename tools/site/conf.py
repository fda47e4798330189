"""Sphinx settings of the site; ``tools/site/build.py`` calls Sphinx with them.

Nothing on a page comes from another machine: it opens from disk, without a network.
"""

from __future__ import annotations

import hashlib
import io
import os
from base64 import b64decode, b64encode
from pathlib import Path

import nbformat
import publish
from docutils import nodes
from matplotlib.font_manager import FontProperties
from matplotlib.mathtext import math_to_image
from sphinx.application import Sphinx

ROOT = Path(os.environ["COURSE_ROOT"])
ADDRESS = publish.repository(ROOT)

project = "LLM-powered recommenders"
author = "The contributors of this course"
copyright = "the contributors of this course; text and figures CC BY 4.0"
extensions = ["myst_nb", "sphinx_design"]
root_doc = "index"
exclude_patterns = ["docs/template.ipynb"]  # a file to copy, not a page
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
html_static_path = ["course.css"]
html_css_files = ["course.css"]
html_context = {"default_mode": "light"}
html_theme_options = {
    "navigation_with_keys": False,
    "use_download_button": False,
    "navbar_persistent": [],  # the sidebar has the search
}
if ADDRESS:
    html_theme_options |= {
        "repository_url": ADDRESS,
        "repository_branch": publish.BRANCH,
        "use_repository_button": True,
        "launch_buttons": {
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
            "notebook_interface": "jupyterlab",
        },
    }


def alternatives() -> dict[str, str]:
    """Return the alt text of every figure, by the SHA-256 of its bytes (MyST's name for it)."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            for output in cell.get("outputs", []):
                if image := output.get("data", {}).get("image/png"):
                    key = hashlib.sha256(b64decode(image)).hexdigest()
                    found[key] = output["metadata"]["image/png"]["alt"]
    return found


ALTERNATIVES = alternatives()


def describe(_: Sphinx, doctree: nodes.document) -> None:
    """Give each figure of a notebook the alt text that is stored beside it."""
    for image in doctree.findall(nodes.image):
        if text := ALTERNATIVES.get(Path(image["uri"]).stem):
            image["alt"] = text


def formula(translator: nodes.NodeVisitor, node: nodes.math) -> None:
    """Draw a formula with matplotlib: MathJax is not on the package index."""
    drawn = io.BytesIO()
    depth = math_to_image(
        f"${node.astext()}$", drawn, prop=FontProperties(size=11), dpi=72, format="svg"
    )
    source = f"data:image/svg+xml;base64,{b64encode(drawn.getvalue()).decode()}"
    translator.body.append(
        f'<img class="formula" src="{source}" alt="{translator.attval(node.astext())}" '
        f'style="vertical-align: -{depth}px">'
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Connect what stands above."""
    app.add_html_math_renderer("mathtext", (formula, None), (formula, None))
    app.connect("doctree-read", describe)
