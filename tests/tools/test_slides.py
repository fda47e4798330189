"""Slides and live-coding copies: what goes where, without a browser."""

from __future__ import annotations

import re

import course
import nbformat
import pytest
import slides
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from test_docs import TEACHING, chapter

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CORE = [path for path in NOTEBOOKS if path.name[:2] in slides.NAMES]


def printed(lines: int):
    return new_output("stream", name="stdout", text="\n".join(map(str, range(lines))) + "\n")


def picture():
    return new_output("display_data", data={"image/png": "eA=="})


def pages(*cells) -> list[list]:
    """Return the slides' cells, each slide a list."""
    made = slides.slides(new_notebook(cells=[new_markdown_cell("# Title"), *cells]))
    found: list[list] = []
    for cell in made.cells:
        if cell.metadata.slides.start:
            found.append([])
        found[-1].append(cell)
    ends = [cell.metadata.slides.end for cell in made.cells]
    starts = [cell.metadata.slides.start for cell in made.cells]
    assert starts == [True, *ends[:-1]] and ends[-1]  # one ends where the next starts
    assert len({cell.id for cell in made.cells}) == len(made.cells)
    return found[1:]


def of_type(kind: str, **more):
    return {"slideshow": {"slide_type": kind, **more}}


def test_prose_is_cut_at_headings_and_paragraphs_and_keeps_every_word():
    text = "## One\n\n" + "\n\n".join(["word " * 49 + "end."] * 5) + "\n\n## Two\n\nShort."
    found = pages(new_markdown_cell(text))
    assert [page[0].source.split()[0] for page in found[:1]] == ["##"] and len(found) == 4
    assert all(len(page[0].source.split()) <= slides.WORDS for page in found)
    assert "\n\n".join(page[0].source for page in found) == text.strip()


def test_a_long_output_and_a_figure_get_slides_of_their_own():
    (short,) = pages(new_code_cell("x", outputs=[printed(5)]))
    assert len(short[0].outputs) == 1 and "transient" not in short[0].metadata
    long = pages(new_code_cell("x", outputs=[printed(60)]))
    assert [len(page[0].outputs) for page in long] == [0, 1, 1, 1]
    told = [line for page in long[1:] for line in page[0].outputs[0].text.splitlines()]
    assert told == [str(line) for line in range(60)]
    drawn = new_code_cell("plot()", outputs=[picture(), printed(2)])
    drawn.metadata.update(of_type("subslide", notes="Look."))
    figure = pages(drawn)
    assert [page[0].metadata.slides.get("notes") for page in figure] == [None, "Look.", None]
    assert [[o.output_type for o in page[0].outputs] for page in figure] == [
        [], ["display_data"], ["stream"]
    ]  # fmt: skip
    assert all(page[0].metadata.transient.remove_source for page in figure[1:])


def test_metadata_decides():
    first = new_markdown_cell("A")
    joined = new_code_cell("x", metadata=of_type("-"))
    later = new_code_cell("y", metadata=of_type("fragment"))
    gone = new_code_cell("z", metadata=of_type("skip"))
    said = new_markdown_cell("Tell *this*.", metadata=of_type("notes"))
    alone = new_markdown_cell("B", metadata=of_type("slide", notes="Say that."))
    one, two = pages(first, joined, later, gone, said, alone)
    assert [cell.source for cell in one] == ["A", "x", "y"]
    assert [bool(cell.metadata.slides.get("fragment")) for cell in one] == [False, False, True]
    assert one[-1].metadata.slides.notes == "Tell *this*."
    assert two[0].metadata.slides.notes == "Say that."


def test_without_metadata_plumbing_exercises_and_widgets_are_left_out():
    widget = new_output("display_data", data={"application/vnd.jupyter.widget-view+json": {}})
    cells = [
        new_code_cell("setup", metadata={"tags": ["setup"]}),
        new_code_cell("N = 1", metadata={"tags": ["parameters"]}),
        new_code_cell("slider", outputs=[widget]),
        new_markdown_cell("Found.\n\n## Recap\n\n- a\n\n## Exercises\n\n### Exercise 1\n\nTry."),
        new_code_cell("# Your code here"),
        new_code_cell("answer", metadata={"tags": ["solution"]}),
        new_markdown_cell("After."),
    ]
    assert [page[0].source for page in pages(*cells)] == ["Found.", "## Recap\n\n- a"]


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_notebooks_01_to_06_say_what_is_a_slide(path):
    notebook = nbformat.read(path, as_version=4)
    made = slides.slides(notebook)
    text = "\n".join(cell.source for cell in made.cells)
    headings = [
        line
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if re.match(r"## (\d|Recap)", line)
    ]
    assert headings and all(heading in text for heading in headings)
    assert "Solution" not in text and "Your code here" not in text and "<!--NAV" not in text
    kinds = [cell.metadata.get("slideshow", {}).get("slide_type") for cell in notebook.cells]
    assert kinds.count("slide") >= 4 and kinds.count("skip") >= 1
    assert set(kinds) <= {None, "slide", "subslide", "fragment", "-", "notes", "skip"}
    figures = sum("image/png" in o.data for c in made.cells for o in c.get("outputs", [])
                  if "data" in o)  # fmt: skip
    saved = sum("image/png" in o.data for c in notebook.cells for o in c.get("outputs", [])
                if "data" in o)  # fmt: skip
    assert figures == saved  # none is lost


@pytest.mark.parametrize("path", CORE, ids=lambda path: path.stem)
def test_the_notes_of_a_figure_are_what_the_teaching_page_says(path):
    """There each number is tied to an assertion; a note that differs would not be."""
    said = chapter(path).split("**Say at the figure:**")[1].split("**Show")[0]
    remarks = re.findall(r"^- Section \d+, [^:]+:(.*?)(?=^- |\Z)", said, re.MULTILINE | re.DOTALL)
    notes = [
        cell.metadata.slideshow.notes
        for cell in nbformat.read(path, as_version=4).cells
        if cell.metadata.get("slideshow", {}).get("notes")
    ]
    assert notes == [re.sub(r"\s+", " ", remark).strip() for remark in remarks] and notes
    assert TEACHING.exists()


# --- copies for live coding -----------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_live_copy_has_no_outputs_and_no_solutions_and_all_else(path):
    notebook = nbformat.read(path, as_version=4)
    made = slides.live_copy(notebook)
    nbformat.validate(made)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    kept = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and "solution" not in cell.metadata.get("tags", [])
    ]
    assert [cell.source for cell in code] == kept
    text = "\n".join(cell.source for cell in made.cells)
    before = "\n".join(cell.source for cell in notebook.cells)
    assert "<summary>Solution" not in text
    for part in ("<summary>Hint", "# Your code here", "### Exercise", "\n## "):
        assert text.count(part) == before.count(part) >= 2
    assert text.count("<details>") == text.count("</details>")
    gone = before.count("<summary>Solution")
    assert text.count("<details>") == before.count("<details>") - gone and gone >= 2
    assert any(cell.get("outputs") for cell in notebook.cells)  # the original is left alone


def test_the_commands_write_both(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HELPERS_HOME", str(ROOT))
    assert course.main(["copies", "--output", str(tmp_path / "live")]) == 0
    assert sorted(p.name for p in (tmp_path / "live").iterdir()) == [p.name for p in NOTEBOOKS]
    monkeypatch.setattr(slides, "NAMES", ("04",))
    assert course.main(["slides", "--output", str(tmp_path / "slides")]) == 0
    (page,) = (tmp_path / "slides").iterdir()
    text = page.read_text(encoding="utf-8")
    assert text.count('<section class="slide">') >= 15 and '<aside class="notes">' in text
    assert not re.search(r"(?:src|href)=\"(?:https?:)?//", text.split("<main")[0])  # opens offline
    assert str(page.name) in capsys.readouterr().out


def test_slides_that_cannot_be_written_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "TEMPLATES", tmp_path)  # no template there
    with pytest.raises(slides.SlidesError):
        slides.write_slides(CORE[3:4], tmp_path / "out")


def test_other_commands_take_no_unknown_arguments(monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", str(ROOT))
    with pytest.raises(SystemExit):
        course.main(["slides", "--no-such-thing"])
