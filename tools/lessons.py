"""The notebooks as the tools read them: where they are, and what a cell holds and showed."""

import html
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]


class LessonError(RuntimeError):
    """A cell failed; the sentence says which and why."""


def paths(root: Path = ROOT, *, appendices: bool = False) -> list[Path]:
    """Return the notebooks in their order; on request also the long searches beside the series."""
    folders = ["notebooks", "notebooks/appendix"] if appendices else ["notebooks"]
    return [path for name in folders for path in sorted((root / name).glob("[0-9][0-9]_*.ipynb"))]


def cells(path: Path, *tags: str) -> list[NotebookNode]:
    """Return the cells of a notebook that have all of these tags."""
    read = nbformat.read(path, as_version=4).cells
    return [cell for cell in read if {*tags} <= {*cell.metadata.get("tags", [])}]


def said(outputs: list[NotebookNode]) -> str:
    """Return what outputs say in plain text, tables too; a figure says nothing."""
    shown = [output.get("data", {"text/plain": output.get("text", "")}) for output in outputs]
    texts = [d.get("text/markdown", d.get("text/plain", "")) for d in shown if "image/png" not in d]
    return "\n".join(texts)


def alt(output: NotebookNode) -> str:
    """Return the text that stands for a figure, or "" where there is none."""
    svg = output.get("data", {}).get("image/svg+xml", "")
    titles = [html.unescape(title) for title in re.findall("<title>(.*)</title>", svg)]
    pictures = [about["alt"] for about in output.get("metadata", {}).values() if "alt" in about]
    return next(iter(titles + pictures), "")
