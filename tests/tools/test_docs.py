"""Documents: their links resolve, and the two for people in a room agree with the notebooks."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "data").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
GLOSSARY = ROOT / "docs" / "glossary.md"
TEACHING = ROOT / "docs" / "teaching.md"
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|<(?:a|img)\b[^>]*?\b(?:href|src)=\"([^\"]+)\"")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.+?)(?: +#+)?\s*$", re.MULTILINE)
ENTRY = re.compile(
    r"^- \*\*(?P<term>.+?)\*\*(?:\s+\(in\s+the\s+notebook:\s+(?P<alias>[^)]+)\))?:"
    r"\s+(?P<text>.*?)\s*"
    r"\[(?P<label>[^\]]+)\]\(\.\./notebooks/(?P<file>[^)#]+)#(?P<anchor>[^)]+)\)\s*(?=^- |\Z)",
    re.MULTILINE | re.DOTALL,
)
NUMBER = re.compile(r"(?<![\w.])(\d+(?:[,_]\d{3})*(?:\.\d+)?)(\s%)?(?!\w)")


# --- links --------------------------------------------------------------------------------------


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
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    """Return the anchors of a document; GitHub numbers the second of two alike."""
    found: set[str] = set()
    times: dict[str, int] = {}
    for heading in HEADING.findall(text):
        name = slug(heading)
        number = times.get(name, 0)
        times[name] = number + 1
        found.add(f"{name}-{number}" if number else name)
    return found


def broken(path: Path, text: str) -> list[str]:
    """Return the relative links of ``text``, which stands at ``path``, that lead nowhere."""
    bad = []
    for pair in LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        target = pair[0] or pair[1]
        if re.match(r"[a-z][a-z+.-]*:", target, re.IGNORECASE):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (path.parent / name).resolve() if name else path
        found = file.exists() and file.is_relative_to(ROOT) if name else True
        if found and anchor:
            found = anchor in anchors(prose(file) if name else text)
        if not found:
            bad.append(target)
    return bad


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_relative_links_resolve(path):
    assert broken(path, prose(path)) == []


def test_links_are_found_at_all():
    assert sum(len(LINK.findall(prose(path))) for path in [*PAGES, *NOTEBOOKS]) > 100


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("[a](README.md)", []),
        ("[a](nowhere.md)", ["nowhere.md"]),
        (
            "[a](README.md#the-notebooks) [b](README.md#no-such-heading)",
            ["README.md#no-such-heading"],
        ),
        ("# One `b`, two?\n[a](#one-b-two) [b](#one)", ["#one"]),
        ("# A\n# A\n[a](#a) [b](#a-1) [c](#a-2)", ["#a-2"]),
        ("[a](https://example.org/x) [b](mailto:a@b.c)", []),
        ('<a href="nowhere.md">a</a>', ["nowhere.md"]),
        ("[over two\nlines](nowhere.md)", ["nowhere.md"]),
        ("[out](../elsewhere.md)", ["../elsewhere.md"]),
        ("`[no link](nowhere.md)`", []),
    ],
)
def test_the_link_check_can_fail(text, bad):
    assert broken(ROOT / "page.md", text) == bad


def test_the_readme_leads_to_both_documents():
    text = prose(ROOT / "README.md")
    assert "](docs/teaching.md)" in text and "](docs/glossary.md)" in text


# --- glossary -----------------------------------------------------------------------------------


def entries(text: str) -> list[dict[str, str]]:
    return [found.groupdict() for found in ENTRY.finditer(text)]


def sorted_as(term: str) -> str:
    """Return the key of the alphabetical order: letters and digits only, small."""
    return re.sub(r"[^a-z0-9]+", " ", term.casefold()).strip()


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


def test_every_line_of_the_glossary_is_read():
    text = GLOSSARY.read_text(encoding="utf-8")
    assert len(entries(text)) == len(re.findall(r"^- ", text, re.MULTILINE)) >= 50
    assert all(len(entry["text"].split()) >= 5 for entry in entries(text))


def test_glossary_is_in_alphabetical_order_without_a_term_twice():
    terms = [sorted_as(entry["term"]) for entry in entries(GLOSSARY.read_text(encoding="utf-8"))]
    assert terms == sorted(set(terms))


@pytest.mark.parametrize(
    "entry", entries(GLOSSARY.read_text(encoding="utf-8")), ids=lambda entry: entry["term"]
)
def test_a_term_is_used_where_the_glossary_says(entry):
    word = re.sub(r"\s+", " ", entry["alias"] or entry["term"])
    where = section(ROOT / "notebooks" / entry["file"], entry["anchor"])
    assert word.casefold() in re.sub(r"\s+", " ", where.replace("*", "")).casefold()
    number, _, name = entry["anchor"].partition("-")
    stated = f"section {number}" if name and number.isdigit() else entry["anchor"]
    assert re.sub(r"\s+", " ", entry["label"]) == f"{entry['file'][:2]}, {stated}"


# --- teaching -----------------------------------------------------------------------------------


def part(text: str, heading: str) -> str:
    """Return what stands between a heading and the next of the same or a higher level."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, body = text.partition(f"\n{heading}\n")
    assert found, f"docs/teaching.md has no heading {heading!r}."
    return re.split(rf"^#{{1,{level}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]


def plans(text: str) -> dict[int, list[int]]:
    """Return the minutes of the rows of each plan, by its total."""
    found = {}
    for total in re.findall(r"^### (\d+) minutes$", text, re.MULTILINE):
        rows = re.findall(r"^\| (\d+) \|", part(text, f"### {total} minutes"), re.MULTILINE)
        found[int(total)] = [int(row) for row in rows]
    return found


def chapter(path: Path) -> str:
    """Return what teaching.md says about one notebook."""
    first = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0]
    return part(TEACHING.read_text(encoding="utf-8"), f"### {path.name[:2]} {first[2:]}")


def numbers(text: str) -> set[float]:
    """Return the numbers in a text; a percentage also counts as a share."""
    values = set()
    for digits, percent in NUMBER.findall(text):
        value = float(re.sub("[,_]", "", digits))
        values.add(round(value / 100, 6) if percent else value)
    return values


def test_plans_fit_their_time():
    found = plans(TEACHING.read_text(encoding="utf-8"))
    assert sorted(found) == [60, 120, 180]
    for total, minutes in found.items():
        assert len(minutes) >= 5 and sum(minutes) <= total


def test_a_plan_that_is_too_long_is_seen():
    text = "\n### 60 minutes\n\n| 40 | a |\n| 30 | b |\n\n### 120 minutes\n\n| 5 | c |\n"
    assert plans(text) == {60: [40, 30], 120: [5]}


def test_plans_name_sections_that_exist():
    rows = re.findall(r"^\| \d+ \|.*", TEACHING.read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"\[(\d\d)\]\([^)]*\), sections? ((?:\d+|, | and | to )+)", "\n".join(rows))
    assert len(named) >= 20
    for number, listed in named:
        (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
        there = set(re.findall(r"^## (\d+) ", prose(path), re.MULTILINE))
        assert set(re.findall(r"\d+", listed)) <= there, (number, listed)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_teaching_follows_the_notebook(path):
    cells = nbformat.read(path, as_version=4).cells
    text = re.sub(r"\s+", " ", chapter(path))
    assert f"](../notebooks/{path.name})" in text
    goals = re.search(r"\*\*You'll learn:\*\* (.*)", cells[0].source)[1]
    assert f"**Goals:** {goals}" in text
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    run = re.search(rf"\(notebooks/{path.name}\) \|[^|]*\| (\d+) \|", readme)[1]
    assert f"{run} to run (measured, README)" in text
    headings = [
        line[3:]
        for cell in cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if re.match(r"## \d", line)
    ]
    rows = re.findall(r"^\| \[(\d.*)\]\([^)]*\) \| (\d+) \| (.*) \|$", chapter(path), re.MULTILINE)
    assert [name for name, _, _ in rows] == headings
    assert f"{sum(int(minutes) for _, minutes, _ in rows)} to teach" in text
    times = pd.read_csv(ROOT / "data" / "results" / "section_times.csv")
    times = times[times.notebook == path.stem].set_index("section").seconds
    taken = {name: f"{value:.0f}" if value >= 1 else "< 1" for name, value in times.items()}
    assert [shown for _, _, shown in rows] == [taken[name] for name in headings]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_to_say_at_a_figure_is_asserted_in_the_notebook(path):
    """One remark per figure; each number in it stands in a cell that asserts or sets it."""
    everything = nbformat.read(path, as_version=4).cells
    cells = [cell for cell in everything if cell.cell_type == "code"]
    now, figures = "", []
    for cell in everything:
        for heading in re.findall(r"^## (\d+) ", cell.source, re.MULTILINE):
            now = heading
        figures += [now for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    said = chapter(path).split("**Say at the figure:**")[1].split("**Show")[0]
    remarks = re.findall(r"^- Section (\d+), [^:]+:(.*?)(?=^- |\Z)", said, re.MULTILINE | re.DOTALL)
    assert [number for number, _ in remarks] == figures
    # Assertions, and the constants (parameters, published numbers) that they compare with.
    kept = [c.source for c in cells if re.search(r"\bassert\b|^[A-Z_]+ = ", c.source, re.MULTILINE)]
    guarded = numbers("\n".join(kept))
    for _, remark in remarks:
        findings = numbers(re.sub(r"notebook\s+\d\d", "", remark))
        assert findings - guarded == set(), remark


def test_an_invented_number_is_seen():
    assert numbers("0.35, 35 %, 1,280 and 3_446; not the 2000s") == {0.35, 1280.0, 3446.0}
    assert not numbers("it has 0.123") <= numbers("assert value == 0.124")
