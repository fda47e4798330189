"""Notebooks for live coding: what is taught is ``# TODO``, and what it shows is folded below it.

A cell's tags ``taught:NAME`` name what is typed in the room. Outputs, solutions, and prose that
tells a result go: a paragraph with a number that an earlier output holds, or, right under an
output, with any number.
"""

import ast
import re
from pathlib import Path

import lessons
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from helpers.settings import Settings

CHECK = "<details><summary>Check: what the course shows</summary>\n\n~~~text\n{}\n~~~\n\n</details>"
SAVES_NOTHING = """\
from helpers import data

data.save_result = lambda *_, **__: None  # half a notebook"""
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


def unspoiled(source: str, told: set[str], under_output: bool) -> str:
    """Return Markdown without the paragraphs and points that tell a result."""
    kept, items = [], re.split(r"\n(?=\n|- )", source)
    for item in items:
        text = item.strip()
        under_output &= not text.startswith("#")
        numbers = set(NUMBER.findall(plain := NOT_RESULTS.sub("", text)))
        words = WORD.search(plain) and item is not items[-1]  # the last leads on to the next cell
        tells = numbers & told or (under_output and (numbers or words))
        if not tells or text.startswith(("#", "|", "!", "<", "```")) or "$" in text:
            kept.append(item)
    return "\n".join(kept)


def live_copy(notebook: NotebookNode) -> NotebookNode:
    """Turn a notebook into the one to be coded before an audience; hints and exercises stay."""
    live, told, used, waiting, shown, lesson = [], set(), set(), "", False, True
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "solution" in tags:
            continue
        live.append(cell)
        if cell.cell_type == "markdown":
            text = SOLUTION.sub("", f"\n{cell.source}").strip("\n")
            text = re.sub(r"\]\((?=\.\./|appendix/)", "](../../notebooks/", text)  # from build/live
            head, exercises, rest = text.partition("## Exercises")
            head = unspoiled(head, told - used, shown) if lesson else head
            cell.source, lesson, shown = head + exercises + rest, lesson and not exercises, False
            continue
        shown = any("image/svg+xml" not in output.get("data", {}) for output in cell.outputs)
        used |= set(NUMBER.findall(cell.source))
        told |= {n for n in NUMBER.findall(lessons.said(cell.outputs)) if len(n) > 1}
        if "setup" in tags:
            live.append(new_code_cell(SAVES_NOTHING, id="saves-nothing"))
        if names := taught(cell):
            waiting, cell.source = cell.id, with_todo(cell.source, names)
        if waiting and cell.outputs:
            said = CHECK.format(lessons.said(cell.outputs).rstrip())
            live.append(new_markdown_cell(said, id=f"check-{waiting}"))
            waiting = ""
        cell.outputs, cell.execution_count = [], None
    notebook.cells = [cell for cell in live if cell.source.strip()]
    return notebook


def write(folder: Path, settings: Settings) -> None:
    for path in lessons.paths(settings.root):
        nbformat.write(live_copy(nbformat.read(path, as_version=4)), folder / path.name)
