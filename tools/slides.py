"""Slides and copies for the room, made from the notebooks; nothing is executed.

What a cell becomes stands in its metadata, as JupyterLab's panel shows it: ``slideshow.slide_type``
is ``slide`` or ``subslide`` (begins a slide), ``fragment`` (joins the slide before it, shown at
the next key), ``-`` (joins it at once), ``notes`` (a markdown cell for the speaker) or ``skip``.
``slideshow.notes`` holds the speaker's notes for a cell. Without metadata a markdown cell begins a
slide, a code cell too, and set-up, parameters, exercises and widgets are left out.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

TEMPLATES = Path(__file__).with_name("templates")
NAMES = ("01", "02", "03", "04", "05", "06")
LEFT_OUT = {"setup", "parameters", "solution"}
WORDS, LINES = 110, 27
"""A prose slide holds at most so many words, a code slide so many lines of code and output."""

NAV = re.compile(r"\n*<!--NAV-->.*", re.DOTALL)
SOLUTION = re.compile(r"\n*<details><summary>Solution</summary>.*?</details>", re.DOTALL)


class SlidesError(RuntimeError):
    """The slides could not be written; the message holds what nbconvert said."""


def slides(notebook: NotebookNode) -> NotebookNode:
    """Return a notebook whose cells say where a slide starts and ends, for the template."""
    groups: list[list[NotebookNode]] = []
    for cell in notebook.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type", "")
        if cell.cell_type == "markdown" and re.search(r"^## Exercises", cell.source, re.MULTILINE):
            groups += [[part] for part in _parts(cell) if kind != "skip"]
            break  # exercises are done in the notebook
        if kind == "skip" or (not kind and _left_out(cell)):
            continue
        if kind == "notes" and groups:
            _note(groups[-1][-1], cell.source)
            continue
        parts = _parts(cell)
        if kind in ("fragment", "-") and groups and parts:
            parts[0].metadata.slides.fragment = kind == "fragment"
            groups[-1].append(parts.pop(0))
        groups += [[part] for part in parts]
    made = nbformat.v4.new_notebook(metadata=copy.deepcopy(notebook.metadata))
    made.metadata["title"] = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    for group in groups:
        group[0].metadata.slides.start = group[-1].metadata.slides.end = True
        made.cells += group
    for number, cell in enumerate(made.cells):
        cell.id = f"slide-{number}"  # a cell may be on several
    return made


def _left_out(cell: NotebookNode) -> bool:
    if cell.cell_type == "raw" or LEFT_OUT & set(cell.metadata.get("tags", [])):
        return True
    outputs = cell.get("outputs", [])
    widget = any("application/vnd.jupyter.widget-view+json" in o.get("data", {}) for o in outputs)
    return widget or not cell.source.strip()


def _part(cell: NotebookNode, source: str | None = None, outputs: list | None = None):
    """Return a copy of a cell with another source or other outputs, ready for the template."""
    made = copy.deepcopy(cell)
    made.metadata = nbformat.from_dict({"slides": {"start": False, "end": False}})
    if source is not None:
        made.source = source
    if made.cell_type == "code" and outputs is not None:
        made.outputs = outputs
    return made


def _note(cell: NotebookNode, text: str) -> None:
    cell.metadata.slides.notes = f"{cell.metadata.slides.get('notes', '')}\n\n{text}".strip()


def _parts(cell: NotebookNode) -> list[NotebookNode]:
    """Cut a cell into slides: prose at headings and paragraphs, code from a long output."""
    notes = cell.metadata.get("slideshow", {}).get("notes", "")
    if cell.cell_type == "markdown":
        parts = [_part(cell, source=text) for text in _prose(cell.source)]
    else:
        parts = _code(cell)
    if notes and parts:
        figures = (part for part in parts if any(map(_is_figure, part.get("outputs", []))))
        _note(next(figures, parts[-1]), notes)
    return parts


def _is_figure(output: NotebookNode) -> bool:
    return "image/png" in output.get("data", {})


def _prose(source: str) -> list[str]:
    text = SOLUTION.sub("", NAV.sub("", source))
    text = re.split(r"^## Exercises", text, flags=re.MULTILINE)[0]
    pages = []
    for section in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        page: list[str] = []
        for paragraph in re.split(r"\n{2,}", section.strip()):
            if (
                page
                and len(" ".join([*page, paragraph]).split()) > WORDS
                and len(page) > _bare(page)
            ):
                pages.append("\n\n".join(page))
                page = []
            page.append(paragraph)
        pages.append("\n\n".join(page))
    return [page for page in pages if page.strip()]


def _bare(page: Sequence[str]) -> int:
    """Return 1 for a page that is a heading only: it does not stand alone."""
    return int(len(page) == 1 and page[0].startswith("#"))


def _code(cell: NotebookNode) -> list[NotebookNode]:
    figures = [out for out in cell.outputs if _is_figure(out)]
    texts = [out for out in cell.outputs if out not in figures]
    told = [line for out in texts for line in _text(out).splitlines()]
    lines = cell.source.count("\n") + 1
    hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
    if not figures and lines + len(told) <= LINES and not hidden:
        return [_part(cell)]
    parts = [] if hidden else [_part(cell, outputs=[])]
    for outputs in ([*figures], texts):
        pages = [outputs] if outputs is figures or len(told) <= LINES else _pages(outputs)
        for page in pages if outputs else []:
            part = _part(cell, outputs=page)
            part.metadata.transient = nbformat.from_dict({"remove_source": True})
            parts.append(part)
    return parts


def _text(output: NotebookNode) -> str:
    return output.get("text") or output.get("data", {}).get("text/plain", "")


def _pages(outputs: Sequence[NotebookNode]) -> list[list[NotebookNode]]:
    """Cut what is printed into slides of :data:`LINES` lines."""
    lines = [line for out in outputs for line in _text(out).splitlines()]
    pages = [lines[start : start + LINES] for start in range(0, len(lines), LINES)]
    return [
        [nbformat.v4.new_output("stream", name="stdout", text="\n".join(page))] for page in pages
    ]


def write_slides(paths: Sequence[Path], target: Path) -> list[Path]:
    """Write one self-contained HTML page of slides per notebook into ``target``.

    Raises:
        SlidesError: nbconvert failed.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            made = slides(nbformat.read(path, as_version=4))
            nbformat.write(made, Path(folder) / path.name)
        command = [sys.executable, "-m", "nbconvert", "--to", "html", "--template", "slides"]
        command += [f"--TemplateExporter.extra_template_basedirs={TEMPLATES}"]
        command += ["--log-level=ERROR", "--output-dir", str(target.resolve())]
        command += [str(Path(folder) / path.name) for path in paths]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SlidesError(
            done.stderr.strip().splitlines()[-1] if done.stderr else "nbconvert failed"
        )
    return [target / f"{path.stem}.html" for path in paths]


# --- copies for live coding -----------------------------------------------------------------------


def live_copy(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without outputs and without solutions, to be coded before an audience.

    Solution cells and collapsed solutions go; prose, hints and ``# Your code here`` stay.
    """
    made = copy.deepcopy(notebook)
    made.cells = [c for c in made.cells if "solution" not in c.metadata.get("tags", [])]
    for cell in made.cells:
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", f"\n{cell.source}").strip("\n")
        else:
            cell.outputs, cell.execution_count = [], None
    made.cells = [cell for cell in made.cells if cell.source.strip()]
    return made


def write_live_copies(paths: Sequence[Path], target: Path) -> list[Path]:
    """Write :func:`live_copy` of each notebook into ``target`` and return the files."""
    target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        nbformat.write(live_copy(nbformat.read(path, as_version=4)), target / path.name)
    return [target / path.name for path in paths]
