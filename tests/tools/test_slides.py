"""Slides and live-coding copies: what goes where."""

from __future__ import annotations

import re

import nbformat
import pytest
import slides
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def test_plumbing_widgets_and_exercises_are_left_out_and_notes_are_kept():
    widget = new_output("display_data", data={slides.WIDGET: {}})
    noted = new_code_cell("plot()", metadata={"slideshow": {"slide_type": "-", "notes": "Look."}})
    cells = [
        new_markdown_cell("# Title\n\n<!--NAV-->\n\nstart | next"),
        new_code_cell("setup", metadata={"tags": ["setup"]}),
        new_code_cell("slider", outputs=[widget]),
        new_markdown_cell("Text", metadata={"slideshow": {"slide_type": "slide"}}),
        noted,
        new_code_cell("gone", metadata={"slideshow": {"slide_type": "skip"}}),
        new_markdown_cell("## Recap\n\n- a\n\n## Exercises\n\nTry."),
        new_code_cell("# Your code here"),
    ]
    show = slides.slide_cells(new_notebook(cells=cells))
    types = [(cell.source, cell.metadata.slideshow.slide_type) for cell in show.cells]
    assert [pair for pair in types if pair[1] != "skip"] == [
        ("# Title", "subslide"), ("Text", "slide"), ("plot()", "-"), ("Look.", "notes"),
        ("## Recap\n\n- a\n\n", "subslide"),
    ]  # fmt: skip
    assert [source for source, kind in types if kind == "skip"] == ["setup", "slider", "gone"]


def test_the_pages_hold_every_section_every_figure_and_the_notes(tmp_path):
    slides.write_slides(NOTEBOOKS[:6], tmp_path)
    for path in NOTEBOOKS[:6]:
        page = (tmp_path / f"{path.stem}.html").read_text(encoding="utf-8")
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for heading in re.findall(r"^## (\d+) ", text, re.MULTILINE):
            assert re.search(rf"<h2[^>]*>{heading} ", page), (path.stem, heading)
        figures = sum("image/png" in output.get("data", {})
                      for cell in cells for output in cell.get("outputs", []))  # fmt: skip
        assert page.count('src="data:image/png') == figures == page.count('<aside class="notes">')
        assert "No description has been provided" not in page
        assert "<summary>Solution" not in page and "# Your code here" not in page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_live_copy_has_no_outputs_and_no_solutions_and_all_else(path):
    notebook = nbformat.read(path, as_version=4)
    live = slides.live_copy(notebook)
    nbformat.validate(live)
    code = [cell for cell in live.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert [cell.source for cell in code] == [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and "solution" not in cell.metadata.get("tags", [])
    ]
    text = "\n".join(cell.source for cell in live.cells)
    before = "\n".join(cell.source for cell in notebook.cells)
    assert "Solution" not in text and "Solution" in before
    for kept in ("<summary>Hint", "# Your code here", "### Exercise", "<summary>Answer"):
        assert text.count(kept) == before.count(kept) >= 2
    headings = re.findall(r"^## (?!Solutions).*", before, re.MULTILINE)
    assert re.findall(r"^## .*", text, re.MULTILINE) == headings
    assert any(cell.get("outputs") for cell in notebook.cells)  # the original is left alone
