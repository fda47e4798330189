"""Documents: links resolve, terms are where the glossary says, remarks have their numbers."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md",
         *sorted((ROOT / "data").glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]  # fmt: skip
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
TEACHING = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?)\s*$", re.MULTILINE)
ENTRY = re.compile(
    r"^- \*\*(?P<term>.+?)\*\*(?:\s+\(in\s+the\s+notebook:\s+(?P<alias>[^)]+)\))?:"
    r"\s+(?P<text>.*?)\s*"
    r"\[(?P<label>[^\]]+)\]\(\.\./notebooks/(?P<file>[^)#]+)#(?P<anchor>[^)]+)\)\s*(?=^- |\Z)",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])(\d+(?:[,_]\d{3})*(?:\.\d+)?)(\s%)?(?!\w)")


def prose(path: Path) -> str:
    """Return the Markdown of a page or of a notebook's markdown cells, without fenced code."""
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    else:
        text = path.read_text(encoding="utf-8")
    return FENCE.sub("", text)


def slug(heading: str) -> str:
    """Return GitHub's anchor of a heading: lower case, no punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken(path: Path, text: str) -> list[str]:
    """Return the relative links of ``text``, which stands at ``path``, that lead nowhere."""
    bad = []
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (path.parent / name).resolve() if name else path
        leads = not name or (file.exists() and file.is_relative_to(ROOT))
        if leads and anchor:
            leads = anchor in map(slug, HEADING.findall(prose(file) if name else text))
        if not leads:
            bad.append(target)
    return bad


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_relative_links_resolve(path):
    assert broken(path, prose(path)) == []


def test_a_broken_link_is_seen():
    text = (
        "# One `b`, two?\n[a](README.md#the-notebooks) [b](#one-b-two) [c](https://example.org/x)"
        " [d](nowhere.md) [e](README.md#no-such-heading) [f](#one) [g](../elsewhere.md)"
    )
    bad = ["nowhere.md", "README.md#no-such-heading", "#one", "../elsewhere.md"]
    assert broken(ROOT / "page.md", text) == bad


# --- glossary -----------------------------------------------------------------------------------


def section(path: Path, anchor: str) -> str:
    """Return all source below a notebook's heading of the second level, code included."""
    kept, inside = [], False
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            kept += [cell.source] if inside else []
            continue
        for line in cell.source.splitlines():
            if line.startswith("## "):
                inside = slug(line[3:]) == anchor
            kept += [line] if inside else []
    return "\n".join(kept)


def test_the_glossary_is_read_whole_and_in_alphabetical_order():
    terms = [entry["term"].casefold() for entry in ENTRY.finditer(GLOSSARY)]
    assert len(terms) == len(re.findall(r"^- ", GLOSSARY, re.MULTILINE)) >= 50
    keys = [re.sub(r"[^a-z0-9]+", " ", term).strip() for term in terms]
    assert keys == sorted(set(keys))


@pytest.mark.parametrize("entry", [*ENTRY.finditer(GLOSSARY)], ids=lambda entry: entry["term"])
def test_a_term_is_used_where_the_glossary_says(entry):
    word = re.sub(r"\s+", " ", entry["alias"] or entry["term"])
    where = section(ROOT / "notebooks" / entry["file"], entry["anchor"])
    assert word.casefold() in re.sub(r"\s+", " ", where.replace("*", "")).casefold()


# --- teaching -----------------------------------------------------------------------------------


def part(text: str, heading: str) -> str:
    """Return what stands between a heading and the next of the same or a higher level."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, body = text.partition(f"\n{heading}\n")
    assert found, f"docs/teaching.md has no heading {heading!r}."
    return re.split(rf"^#{{1,{level}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]


def numbers(text: str) -> set[float]:
    """Return the numbers in a text; a percentage also counts as a share."""
    values = set()
    for digits, percent in NUMBER.findall(text):
        value = float(re.sub("[,_]", "", digits))
        values.add(round(value / 100, 6) if percent else value)
    return values


@pytest.mark.parametrize("total", [60, 120, 180])
def test_a_plan_fits_its_time_and_names_sections_that_exist(total):
    plan = part(TEACHING, f"### {total} minutes")
    minutes = [int(row) for row in re.findall(r"^\| (\d+) \|", plan, re.MULTILINE)]
    assert len(minutes) >= 5 and sum(minutes) <= total
    named = re.findall(r"\[(\d\d)\]\([^)]*\), sections? ((?:\d+|, | and | to )+)", plan)
    assert len(named) >= 3
    for number, listed in named:
        (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
        assert set(re.findall(r"\d+", listed)) <= set(re.findall(r"^## (\d+) ", prose(path), re.M))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_said_at_a_figure_has_its_numbers_in_the_notebook(path):
    """One remark per figure in teaching.md, and the notes on the slides."""
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    title = cells[0].source.splitlines()[0].removeprefix("# ")
    chapter = part(TEACHING, f"### {path.name[:2]} {title}")
    said = chapter.split("**Say at the figure:**")[1].split("**Show")[0]
    remarks = re.findall(r"^- Section \d+, [^:]+:(.*?)(?=^- |\Z)", said, re.MULTILINE | re.DOTALL)
    outputs = [output for cell in code for output in cell.outputs]
    assert len(remarks) == sum("image/png" in output.get("data", {}) for output in outputs)
    shown = [
        output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs
    ]
    known = numbers("\n".join([*shown, *(cell.source for cell in code)]))
    notes = [cell.metadata.get("slideshow", {}).get("notes", "") for cell in code]
    for remark in [*remarks, *notes]:
        assert numbers(re.sub(r"notebook\s+\d\d", "", remark)) <= known, remark


def test_an_invented_number_is_seen():
    assert numbers("0.35, 35 %, 1,280 and 3_446; not the 2000s") == {0.35, 1280.0, 3446.0}
