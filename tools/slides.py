"""Slides and copies for the room, made from the notebooks; nothing is executed.

The slides are nbconvert's (reveal.js): what a cell becomes stands in its ``slideshow`` metadata, as
JupyterLab's panel writes it, and ``slideshow.notes`` holds the speaker's notes for a cell (key S).
Set-up, parameters, widgets, exercises and what follows them are left out.
"""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode

LEFT_OUT = {"setup", "parameters", "solution"}
WIDGET = "application/vnd.jupyter.widget-view+json"
NAV = re.compile(r"\n*<!--NAV-->.*", re.DOTALL)
EXERCISES = re.compile(r"^## Exercises", re.MULTILINE)
SOLUTION = re.compile(  # beside its exercise, the link to it, or all of them in the last section
    r"\n*<details><summary>Solution</summary>.*?</details>|\n*\[Solution\]\(#solution-\d+\)"
    r"|\n*^##+ Solutions?\b(?:(?!\n## |<!--NAV-->).)*",
    re.DOTALL | re.MULTILINE,
)


def slide_cells(notebook: NotebookNode) -> NotebookNode:
    """Return a copy with the cells of the slides; a cell without slide type begins a subslide."""
    show = copy.deepcopy(notebook)
    show.metadata["title"] = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    show.cells = []
    for cell in copy.deepcopy(notebook.cells):
        slideshow = cell.metadata.setdefault("slideshow", nbformat.from_dict({}))
        exercises = cell.cell_type == "markdown" and EXERCISES.search(cell.source)
        if cell.cell_type == "markdown":
            cell.source = NAV.sub("", EXERCISES.split(cell.source)[0])
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):  # nbconvert would drop the alt text
                alt = html.escape(output.metadata.get("image/png", {}).get("alt", ""))
                image = f'<img alt="{alt}" src="data:image/png;base64,{png}">'
                output.data = nbformat.from_dict({"text/html": image})
            if svg := output.get("data", {}).get("image/svg+xml"):  # its title is its description
                output.data = nbformat.from_dict({"text/html": svg})
        if "slide_type" not in slideshow:
            slideshow.slide_type = "skip" if _is_left_out(cell) else "subslide"
        show.cells.append(cell)
        if "notes" in slideshow:
            notes = nbformat.v4.new_markdown_cell(slideshow.notes)
            notes.metadata["slideshow"] = {"slide_type": "notes"}
            show.cells.append(notes)
        if exercises:
            break
    return show


def _is_left_out(cell: NotebookNode) -> bool:
    widget = any(WIDGET in output.get("data", {}) for output in cell.get("outputs", []))
    tagged = LEFT_OUT & set(cell.metadata.get("tags", []))
    return bool(widget or tagged or not cell.source.strip())


def write_slides(paths: Sequence[Path], target: Path) -> None:
    """Write one page of slides per notebook into ``target``; a slide that is too tall scrolls."""
    target.mkdir(parents=True, exist_ok=True)
    exporter = SlidesExporter(
        reveal_width="1280", reveal_height="720", reveal_scroll=True,
        exclude_input_prompt=True, exclude_output_prompt=True,
    )  # fmt: skip
    for path in paths:
        page, _ = exporter.from_notebook_node(slide_cells(nbformat.read(path, as_version=4)))
        (target / f"{path.stem}.html").write_text(page, encoding="utf-8")


def live_copy(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook without outputs and without solutions, to be coded before an audience.

    Solution cells and collapsed solutions go; prose, hints and ``# Your code here`` stay.
    """
    live = copy.deepcopy(notebook)
    live.cells = [c for c in live.cells if "solution" not in c.metadata.get("tags", [])]
    for cell in live.cells:
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", f"\n{cell.source}").strip("\n")
        else:
            cell.outputs, cell.execution_count = [], None
    live.cells = [cell for cell in live.cells if cell.source.strip()]
    return live


def write_live_copies(paths: Sequence[Path], target: Path) -> None:
    """Write :func:`live_copy` of each notebook into ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        nbformat.write(live_copy(nbformat.read(path, as_version=4)), target / path.name)
