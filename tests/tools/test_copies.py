"""Skeletons for live coding: what goes, what is folded, and a check that gives nothing away."""

import re
from types import SimpleNamespace

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
    assert "KEEP_RESULTS" in code[1].source  # half a notebook replaces no table of the course
    todos = {cell.id for cell in code if "# TODO" in cell.source}
    assert todos == {cell.id for cell in core}
    checks = {cell.id for cell in code if cell.id.startswith("check-")}
    assert checks == {f"check-{i}" for i in todos}
    text = "\n".join(cell.source for cell in live.cells)
    before = "\n".join(cell.source for cell in notebook.cells)
    assert "Solution" not in text and "Solution" in before
    for kept in ("<summary>Hint", "# Your code here", "### Exercise", "<summary>Answer"):
        assert text.count(kept) == before.count(kept) >= 2
    prose = "\n".join(cell.source for cell in live.cells if cell.cell_type == "markdown")
    for link in re.findall(r"\]\((?!\d\d_|\w+:|#)([^)#\s]+)", prose):
        assert (ROOT / "build" / "live" / link).resolve().exists(), link
    assert "## Recap\n\n<details>" in prose
    headings = re.findall(r"^## (?!Solutions).*", before, re.MULTILINE)
    assert re.findall(r"^## .*", text, re.MULTILINE) == headings


def test_prose_that_follows_an_output_is_folded_until_a_heading():
    output = new_output("stream", text="0.197 of 3,446 movies\n")
    shown, again = (new_code_cell("x()", outputs=[output]) for _ in range(2))
    told = new_markdown_cell("Half.\n\nSo.\n\n## 2 Next\n\nWe try.")
    cells = [new_markdown_cell("Before."), shown, told, new_code_cell("y = 30")]
    cells += [new_markdown_cell("By hand."), again, new_markdown_cell("## 3")]
    kept = [cell.source for cell in copies.live_copy(new_notebook(cells=cells)).cells]
    assert kept[0] == "Before." and kept[4] == "By hand." and kept[6] == "## 3"
    folded, rest = kept[2].split("</details>")
    assert folded.endswith("\n\nHalf.\n\nSo.\n\n") and rest == "\n\n## 2 Next\n\nWe try."


def test_a_check_compares_with_the_course_and_says_one_sentence(tmp_path, monkeypatch, capsys):
    assert copies.with_todo(SOURCE, {"total", "double"}) == SKELETON
    tags = {"tags": ["taught:total", "taught:double"]}
    output = new_output("stream", text="42 84\n")
    cell = new_code_cell(SOURCE, id="sum", metadata=tags, outputs=[output])
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "01_a.ipynb")
    monkeypatch.setattr(copies.lessons, "paths", lambda: [tmp_path / "01_a.ipynb"])

    def checked(**values) -> str:
        monkeypatch.setattr(copies, "get_ipython", lambda: SimpleNamespace(user_ns=values))
        copies.check("sum")
        return capsys.readouterr().out

    assert checked(total=42, double=lambda n: n + n).startswith("Right")
    assert checked(total=41, double=lambda n: n + n).startswith("Not yet: it does not show")
    assert checked(total=..., double=lambda n: n + n).startswith("Not yet: run the cells above")
