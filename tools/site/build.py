"""Build the site with ``make site``, then open ``build/site/index.html``.

The pages are the README, the notebooks with their saved outputs and the documents, gathered into
``build/site-source``; nothing is executed. A warning of Sphinx is an error.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

import nbformat
from nbformat.v4 import new_output
from sphinx.cmd.build import main as sphinx

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))  # here and in conf.py, which Sphinx runs in this process
import publish  # noqa: E402

DOCUMENTS = [
    "CHANGELOG.md", "CONTRIBUTING.md", "data/README.md", "data/replies/README.md",
    "data/sample/README.md", "docs/glossary.md", "docs/teaching.md",
]  # fmt: skip
CONTENTS = """
```{{toctree}}
:caption: Notebooks
:hidden:

{notebooks}
```

```{{toctree}}
:caption: Documents
:hidden:

docs/teaching
docs/glossary
data/README
data/replies/README
data/sample/README
CONTRIBUTING
CHANGELOG
```
"""
TEMPLATE = "docs/template.ipynb"
NODE = re.compile(r"^(\w+)(?:\[(.+)\])?$")
WIDGET = "application/vnd.jupyter.widget-view+json"


def chart_as_text(mermaid: str) -> str:
    """Return a Mermaid flowchart as a line of text per chain; its script would need a network."""
    labels, lines = {}, []
    for line in mermaid.strip().splitlines()[1:]:
        chain = []
        for node in re.split(r"\s*-->\s*", line.strip()):
            name, label = NODE.match(node).groups()
            labels[name] = label or labels[name]
            chain.append(labels[name])
        lines.append(" → ".join(chain))
    wrapped = (textwrap.wrap(line, 76, subsequent_indent="    ") for line in lines)
    return "\n".join(line for group in wrapped for line in group)


def page(text: str, path: str) -> tuple[str, set[str]]:
    """Return a document as the site shows it, and the files of the repository it links to.

    ``path`` is its place in the repository. The README is the site's first page, ``index.md``.
    """
    linked = set()

    def link(found: re.Match[str]) -> str:
        target, anchor = found[1], found[2]
        place = os.path.normpath(Path(path).parent / target)
        linked.add(Path(place).as_posix())
        if place == "README.md":
            target = f"{target.removesuffix('README.md')}index.md"
        return f"]({target}{anchor})"

    text = re.sub(
        r"```mermaid\n(.*?)```",
        lambda found: f"```text\n{chart_as_text(found[1])}\n```",
        text,
        flags=re.DOTALL,
    )
    # A badge is a picture from another machine; its text says the same.
    text = re.sub(r"!\[([^\]]*)\]\(https?://[^)]*\)", r"\1", text)
    # To Sphinx a notebook is a page; the template is a file to copy.
    text = re.sub(
        r"\[([^\]]*)\]\(([^)\s]*\btemplate\.ipynb)\)",
        lambda found: f"{{download}}`{found[1]} <{found[2]}>`",
        text,
    )
    return re.sub(r"\]\((?![a-z]+:)([^)#\s]+)((?:#[^)\s]*)?)\)", link, text), linked


def notebook_page(path: Path) -> nbformat.NotebookNode:
    """Return a notebook as the site shows it: some cells collapsed, widgets named in words."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source, _ = page(cell.source, f"notebooks/{path.name}")
            continue
        tags = cell.metadata.get("tags", [])
        hidden = {"solution": "hide-cell", "setup": "hide-input"}
        cell.metadata["tags"] = [*tags, *(hidden[tag] for tag in tags if tag in hidden)]
        for index, output in enumerate(cell.outputs):
            if WIDGET in output.get("data", {}):
                told = "(Here the notebook shows controls; they need a running kernel.)\n"
                cell.outputs[index] = new_output("stream", name="stdout", text=told)
    return notebook


def gather(target: Path) -> None:
    """Copy what the site shows to ``target``, which is emptied first."""
    shutil.rmtree(target, ignore_errors=True)
    paths = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    titles = {path: nbformat.read(path, as_version=4).cells[0].source for path in paths}
    listed = "\n".join(
        f"{path.name[:2]} {titles[path].splitlines()[0][2:]} <notebooks/{path.stem}>"
        for path in paths
    )
    for name in ["README.md", *DOCUMENTS]:
        text, linked = page((ROOT / name).read_text(encoding="utf-8"), name)
        if name == "README.md":
            name, text = "index.md", text + CONTENTS.format(notebooks=listed)
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
        # A licence or a script that a page links to comes along as it is.
        for file in (linked | {TEMPLATE}) - {"README.md", *DOCUMENTS}:
            if (ROOT / file).is_file() and not file.startswith("notebooks/"):
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / file, target / file)
    (target / "notebooks").mkdir()
    for path in paths:
        nbformat.write(notebook_page(path), target / "notebooks" / path.name)


def main() -> int:
    """Gather and build; return Sphinx's exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "site")
    output = parser.parse_args().output.resolve()
    source = output.with_name(f"{output.name}-source")
    gather(source)
    publish.repository(ROOT)  # a wrong address is one sentence here and a traceback in Sphinx
    os.environ["COURSE_ROOT"] = str(ROOT)
    shutil.rmtree(output, ignore_errors=True)
    status = sphinx(
        ["-b", "html", "-c", str(Path(__file__).parent), "-d", str(source / ".doctrees"),
         "-W", "--keep-going", "--quiet", str(source), str(output)]
    )  # fmt: skip
    if status == 0:
        print(f"The site is in {output}: open index.html.")
    return status


if __name__ == "__main__":
    sys.exit(main())
