"""Skeletons for live coding: what goes, what stays, and what is folded."""

import re

import copies
import lessons
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from conftest import ROOT

SOURCE = '''\
limit = 2
total = sum(
    [20, 22],
)


def double(number):
    """Twice the number."""
    return 2 * number


print(total, double(total))'''
SKELETON = '''\
limit = 2
total = ...  # TODO


def double(number):
    """Twice the number."""
    ...  # TODO


print(total, double(total))'''


@pytest.mark.parametrize("path", lessons.paths(), ids=lambda path: path.stem)
def test_a_copy_has_todos_with_checks_and_no_outputs_solutions_or_results(path):
    notebook = nbformat.read(path, as_version=4)
    live = copies.live_copy(nbformat.read(path, as_version=4))
    nbformat.validate(live)
    code = [cell for cell in live.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    core = [cell for cell in notebook.cells if copies.taught(cell)]
    assert len(core) in (range(3, 7) if path.name < "07" else range(1))
    assert "data.save_result = " in code[1].source  # half a notebook replaces no table
    todos = {cell.id for cell in code if "# TODO" in cell.source}
    assert todos == {cell.id for cell in core}
    checks = {cell.id for cell in live.cells if cell.id.startswith("check-")}
    assert checks == {f"check-{i}" for i in todos}
    text = "\n".join(cell.source for cell in live.cells)
    before = "\n".join(cell.source for cell in notebook.cells)
    assert "Solution" not in text and "Solution" in before
    for kept in ("<summary>Hint", "# Your code here", "### Exercise", "<summary>Answer"):
        assert text.count(kept) == before.count(kept) >= 2
    prose = "\n".join(cell.source for cell in live.cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\((?!\d\d_|\w+:|#)([^)#\s]+)", prose):
        assert (ROOT / "build" / "live" / link).resolve().exists(), link
    headings = re.findall(r"^## (?!Solutions).*", before, re.MULTILINE)
    assert re.findall(r"^## .*", text, re.MULTILINE) == headings


def test_prose_that_tells_a_result_goes_and_what_leads_on_stays():
    shown = new_code_cell("x()", outputs=[new_output("stream", text="0.197 of 3,446 movies\n")])
    first = "It is half of them.\n\n- 0.197 is low.\n- Few is many.\n\nNext we try three."
    cells = [new_markdown_cell("Before: three of 0.197."), shown, new_markdown_cell(first)]
    cells += [
        new_code_cell("y = 30"),
        new_markdown_cell("By hand, 30. As in notebook 04.\n\n3,446!"),
    ]
    kept = [cell.source for cell in copies.live_copy(new_notebook(cells=cells)).cells]
    assert kept[0] == "Before: three of 0.197." and kept[4] == "By hand, 30. As in notebook 04."
    assert " ".join(kept[2].split()) == "- Few is many. Next we try three."


def test_what_the_course_shows_is_folded_below_a_todo_cell():
    tags = {"tags": ["taught:total", "taught:double"]}
    output = new_output("stream", text="42 84\n")
    cells = [new_code_cell(SOURCE, id="sum", metadata=tags), new_code_cell("0", outputs=[output])]
    todo, _, check = copies.live_copy(new_notebook(cells=cells)).cells
    assert todo.source == SKELETON and check.cell_type == "markdown"
    assert check.source.startswith("<details>") and "\n42 84\n" in check.source
