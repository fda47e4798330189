"""Notebooks for live coding: what is taught is ``# TODO``, and nothing tells a result unasked.

A cell's tags ``taught:NAME`` name what is typed in the room. Outputs and solutions go. What such a
cell shows stands below it, folded, as does the prose that follows an output.
"""

import ast
import re
from pathlib import Path

import lessons
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from helpers.settings import Settings

FOLDED = "<details><summary>{}</summary>\n\n{}\n\n</details>"
OWN_TABLES = 'import os\n\nos.environ["KEEP_RESULTS"] = "1"  # as in make lab'
SOLUTION = re.compile(  # beside its exercise, the link to it, or all of them in the last section
    r"\n*<details><summary>Solution</summary>.*?</details>|\n*\[Solution\]\(#solution-\d+\)"
    r"|\n*^##+ Solutions?\b(?:(?!\n## |<!--NAV-->).)*",
    re.DOTALL | re.MULTILINE,
)
WORDS = re.compile(r"(?!#).+?(?=\n+##|\Z)", re.DOTALL)  # until a heading


def taught(cell: NotebookNode) -> set[str]:
    tags = cell.metadata.get("tags", [])
    return {tag.removeprefix("taught:") for tag in tags if tag.startswith("taught:")}


def with_todo(source: str, names: set[str]) -> str:
    """Return a cell with ``# TODO`` in place of what defines the names."""
    lines, edits, done = source.splitlines(), [], set()
    for node in ast.parse(source).body:
        targets = getattr(node, "targets", [node])
        for name in names & {getattr(t, "id", getattr(t, "name", "")) for t in targets}:
            begin, new = node.lineno - 1, [f"{name} = ...  # TODO"]
            if not isinstance(node, ast.Assign):
                described = ast.get_docstring(node) is not None and len(node.body) > 1
                begin, new = node.body[described].lineno - 1, ["    ...  # TODO"]
            edits.append((begin, node.end_lineno, [] if name in done else new))
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
            if shown and (words := WORDS.match(text)):
                text = FOLDED.format("What came out", words[0]) + text[words.end() :]
            cell.source, shown = text, False
            continue
        diagrams = ["image/svg+xml" in output.get("data", {}) for output in cell.outputs]
        shown = "setup" not in tags and not all(diagrams)
        if "setup" in tags:
            live.append(new_code_cell(OWN_TABLES, id="own-tables"))
        if names := taught(cell):
            waiting, cell.source = cell.id, with_todo(cell.source, names)
        if waiting and cell.outputs:
            said = f"~~~text\n{lessons.said(cell.outputs).rstrip()}\n~~~"
            check = FOLDED.format("Check: what the course shows", said)
            live.append(new_markdown_cell(check, id=f"check-{waiting}"))
            waiting = ""
        cell.outputs, cell.execution_count = [], None
    notebook.cells = [cell for cell in live if cell.source.strip()]
    return notebook


def write(folder: Path, settings: Settings) -> None:
    for path in lessons.paths(settings.root):
        nbformat.write(live_copy(nbformat.read(path, as_version=4)), folder / path.name)
