"""Notebooks for live coding: what is taught is ``# TODO``, with a check that gives nothing away.

A cell's tags ``taught:NAME`` name the variables, functions and classes that are typed in the room.
Outputs, solutions, and prose that tells a result go: a paragraph with a number that an earlier
output holds, or, right under an output, with any number. The check runs the course's own cell
beside the learner's and compares what the two show.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from pathlib import Path
from textwrap import shorten

import nbformat
from IPython.core.getipython import get_ipython
from IPython.utils.capture import capture_output
from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
CHECK = """\
import sys; sys.path.append("../../tools")  # does it give what the course has?
from copies import check; check("{id}")"""
SAVES_NOTHING = (
    "from helpers import data\n\ndata.save_result = lambda *_, **__: None  # half a notebook"
)
SOLUTION = re.compile(  # beside its exercise, the link to it, or all of them in the last section
    r"\n*<details><summary>Solution</summary>.*?</details>|\n*\[Solution\]\(#solution-\d+\)"
    r"|\n*^##+ Solutions?\b(?:(?!\n## |<!--NAV-->).)*",
    re.DOTALL | re.MULTILINE,
)
NUMBER = re.compile(r"(?<![\w.])(?!(?:19|20)\d\d\b)\d(?:[\d,.]*\d)?")  # but years
WORD = re.compile(r"\b([Tt]hree|four|[Ff]ive|six|seven|eight|nine|ten|[Hh]alf|thirds?|twice)\b")
NOT_RESULTS = re.compile(  # code, links, formulas, references, names
    r"`.*?`|\[.*?\]\(.*?\)|\$.*?\$|(notebooks?|sections?|equation|user) \(?\d+((,| and) \d+)*",
    re.IGNORECASE,
)


def taught(cell: NotebookNode) -> set[str]:
    """Return the names that a cell teaches."""
    tags = cell.metadata.get("tags", [])
    return {tag.removeprefix("taught:") for tag in tags if tag.startswith("taught:")}


def parts(source: str, names: set[str]) -> list[tuple[ast.stmt, str]]:
    """Return a cell's statements that define one of the names, each with that name."""
    return [
        (node, name)
        for node in ast.parse(source).body
        for target in getattr(node, "targets", [node])
        if (name := getattr(target, "id", getattr(target, "name", ""))) in names
    ]


def with_todo(source: str, names: set[str], todo: bool = True) -> str:
    """Return a cell with ``# TODO`` in place of what defines the names, or without that."""
    lines, taken = source.splitlines(), parts(source, names)
    first = {name: node for node, name in reversed(taken)}
    for node, name in reversed(taken):
        begin, new = node.lineno - 1, [f"{name} = ...  # TODO"]
        if todo and not isinstance(node, ast.Assign):
            described = ast.get_docstring(node) is not None and len(node.body) > 1
            begin, new = node.body[described].lineno - 1, ["    ...  # TODO"]
        lines[begin : node.end_lineno] = new if todo and first[name] is node else []
    return "\n".join(lines)


def unspoiled(source: str, told: set[str], under_output: bool) -> str:
    """Return Markdown without the paragraphs and points that tell a result."""
    kept, items = [], re.split(r"\n(?=\n|- )", source)
    for item in items:
        text = item.strip()
        under_output &= not text.startswith("#")
        plain = NOT_RESULTS.sub("", text)
        numbers = set(NUMBER.findall(plain))
        words = WORD.search(plain) and item is not items[-1]  # the last leads on to the next cell
        tells = numbers & told or (under_output and (numbers or words))
        if not tells or text.startswith(("#", "|", "!", "<", "```")) or "$" in text:
            kept.append(item)
    return "\n".join(kept)


def live_copy(notebook: NotebookNode) -> NotebookNode:
    """Return the notebook to be coded before an audience; hints and exercises stay."""
    live, told, used = copy.deepcopy(notebook), set(), set()
    cells, live.cells = live.cells, []
    waiting, shown, lesson = "", False, True
    for cell in cells:
        if "solution" in cell.metadata.get("tags", []):
            continue
        live.cells.append(cell)
        if cell.cell_type == "markdown":
            cell.source = SOLUTION.sub("", f"\n{cell.source}").strip("\n")
            head, exercises, rest = cell.source.partition("## Exercises")
            head = unspoiled(head, told - used, shown) if lesson else head
            cell.source, lesson = head + exercises + rest, lesson and not exercises
            shown = False
            continue
        shown = any("image/svg+xml" not in output.get("data", {}) for output in cell.outputs)
        used |= set(NUMBER.findall(cell.source))
        told |= {n for n in NUMBER.findall(said(cell.outputs)) if len(n) > 1}
        if "setup" in cell.metadata.get("tags", []):
            live.cells.append(nbformat.v4.new_code_cell(SAVES_NOTHING, id="saves-nothing"))
        if names := taught(cell):
            waiting, cell.source = cell.id, with_todo(cell.source, names)
        if waiting and cell.outputs:
            check_cell = nbformat.v4.new_code_cell(CHECK.format(id=waiting), id=f"check-{waiting}")
            live.cells.append(check_cell)
            waiting = ""
        cell.outputs, cell.execution_count = [], None
    live.cells = [cell for cell in live.cells if cell.source.strip()]
    return live


def said(outputs: Iterable[NotebookNode]) -> str:
    """Return what outputs say in plain text; a figure says nothing."""
    given = [output.get("data", {"text/plain": output.get("text", "")}) for output in outputs]
    kinds = [
        next((k for k in ("image/png", "text/markdown") if k in d), "text/plain") for d in given
    ]
    return "\n".join(d.get(k, "") for d, k in zip(given, kinds, strict=True) if k != "image/png")


def check(name: str) -> None:
    """Run the course's cell beside the learner's and say whether both show the same."""
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        if name in (ids := [cell.id for cell in cells]):
            break
    taught_cell, *after = cells[ids.index(name) :]
    until = next(n for n, cell in enumerate([taught_cell, *after]) if cell.outputs)
    source, names, then = taught_cell.source, taught(taught_cell), after[:until]

    def shows(own: str) -> list[str]:
        space = dict(get_ipython().user_ns)
        with capture_output() as captured:
            for part in (own, *(cell.source for cell in then)):
                exec(part, space)
        return [captured.stdout, said({"data": output.data} for output in captured.outputs)]

    try:
        wanted, got = shows(source), shows(with_todo(source, names, todo=False))
    except Exception as error:
        print(f"Not yet: run the cells above, each # TODO filled in ({type(error).__name__}).")
        return
    lines = zip_longest(*("\n".join(texts).splitlines() for texts in (wanted, got)), fillvalue="")
    for course, yours in lines:
        if course != yours:
            course, yours = shorten(course, 60), shorten(yours, 60)
            print(f"Not yet: where the course shows {course!r}, this shows {yours!r}.")
            return
    print("Right: it shows what the course's own code shows.")


def write_live_copies(paths: Sequence[Path], target: Path) -> None:
    """Write :func:`live_copy` of each notebook into ``target``."""
    target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        nbformat.write(live_copy(nbformat.read(path, as_version=4)), target / path.name)
