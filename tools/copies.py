"""Notebooks for live coding: what is taught is ``# TODO``, with a check that gives nothing away.

A cell's tags ``taught:NAME`` name what is typed in the room. Outputs and solutions go; the prose
that follows an output is folded until the next heading, and so is the recap.
"""

import ast
import re
from pathlib import Path

import lessons
import nbformat
from IPython.core.getipython import get_ipython
from IPython.utils.capture import capture_output
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell

from helpers.settings import Settings

CHECK = """\
import sys; sys.path.append("../../tools")  # does it give what the course has?
from copies import check; check("{id}")"""
FOLDED = r"\1<details><summary>What came out</summary>\n\n\2\n\n</details>"
OWN_TABLES = 'import os\n\nos.environ["KEEP_RESULTS"] = "1"  # as in make lab'
SOLUTION = re.compile(  # beside its exercise, the link to it, or all of them in the last section
    r"\n*<details><summary>Solution</summary>.*?</details>|\n*\[Solution\]\(#solution-\d+\)"
    r"|\n*^##+ Solutions?\b(?:(?!\n## |<!--NAV-->).)*",
    re.DOTALL | re.MULTILINE,
)
RECAP = re.compile(r"(## Recap\n+)(.+?)(?=\n+##|\Z)", re.DOTALL)
WORDS = re.compile(r"\A()(?!#)(.+?)(?=\n+##|\Z)", re.DOTALL)


def taught(cell: NotebookNode) -> set[str]:
    tags = cell.metadata.get("tags", [])
    return {tag.removeprefix("taught:") for tag in tags if tag.startswith("taught:")}


def with_todo(source: str, names: set[str], todo: bool = True) -> str:
    """Return a cell with ``# TODO`` in place of what defines the names, or without that."""
    lines, edits, done = source.splitlines(), [], set()
    for node in ast.parse(source).body:
        targets = getattr(node, "targets", [node])
        for name in names & {getattr(t, "id", getattr(t, "name", "")) for t in targets}:
            begin, new = node.lineno - 1, [f"{name} = ...  # TODO"]
            if todo and not isinstance(node, ast.Assign):
                described = ast.get_docstring(node) is not None and len(node.body) > 1
                begin, new = node.body[described].lineno - 1, ["    ...  # TODO"]
            edits.append((begin, node.end_lineno, new if todo and name not in done else []))
            done.add(name)
    for begin, end, new in reversed(edits):
        lines[begin:end] = new
    return "\n".join(lines)


def live_copy(notebook: NotebookNode) -> NotebookNode:
    """Turn a notebook into the one to be coded before an audience; hints and exercises stay."""
    live, waiting, shown = [], "", False
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            continue
        live.append(cell)
        if cell.cell_type == "markdown":
            text = SOLUTION.sub("", f"\n{cell.source}").strip("\n")
            text = re.sub(r"\]\((?=\.\./|appendix/)", "](../../notebooks/", text)  # from build/live
            text = RECAP.sub(FOLDED, WORDS.sub(FOLDED, text) if shown else text)
            cell.source, shown = text, False
            continue
        diagrams = ["image/svg+xml" in output.get("data", {}) for output in cell.outputs]
        shown = "setup" not in tags and not all(diagrams)
        if "setup" in tags:
            live.append(new_code_cell(OWN_TABLES, id="own-tables"))
        if names := taught(cell):
            waiting, cell.source = cell.id, with_todo(cell.source, names)
        if waiting and cell.outputs:
            live.append(new_code_cell(CHECK.format(id=waiting), id=f"check-{waiting}"))
            waiting = ""
        cell.outputs, cell.execution_count = [], None
    notebook.cells = [cell for cell in live if cell.source.strip()]
    return notebook


def check(name: str) -> None:
    """Run the course's cell beside the learner's and say whether both show the same."""
    code = [c for p in lessons.paths() for c in lessons.cells(p) if c.cell_type == "code"]
    code, said = code[[cell.id for cell in code].index(name) :], []
    last = next(number for number, cell in enumerate(code) if cell.outputs)
    own = with_todo(code[0].source, taught(code[0]), todo=False)
    try:
        for first in (own, code[0].source):
            space = dict(get_ipython().user_ns)
            with capture_output() as captured:
                for source in (first, *(cell.source for cell in code[1 : last + 1])):
                    exec(source, space)
            said.append(
                captured.stdout + lessons.said([{"data": o.data} for o in captured.outputs])
            )
    except Exception as error:
        return print(f"Not yet: run the cells above, each # TODO done ({type(error).__name__}).")
    verdict = "Right: it shows" if said[0] == said[1] else "Not yet: it does not show"
    print(verdict, "what the course's own code shows.")


def write(folder: Path, settings: Settings) -> None:
    for path in lessons.paths(settings.root):
        nbformat.write(live_copy(nbformat.read(path, as_version=4)), folder / path.name)
