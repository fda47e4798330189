"""Documents: links resolve, terms are where the glossary says, minutes and numbers are measured."""

import re
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import benchmarks
import lessons
import pandas as pd
import pictures
import pytest

from conftest import ROOT

NOTEBOOKS = lessons.paths()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md",
         *sorted((ROOT / "data").glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]  # fmt: skip
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
README, TEACHING, NOTES, RESULTS = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/teaching.md", "docs/teaching_notes.md", "docs/results.md")
)
TABLES = ROOT / "data" / "results"
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
        cells = lessons.cells(path)
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
    for cell in lessons.cells(path):
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


# --- minutes ------------------------------------------------------------------------------------


def part(text: str, heading: str) -> str:
    """Return what stands between a heading and the next of the same or a higher level."""
    level = len(heading) - len(heading.lstrip("#"))
    _, found, body = text.partition(f"\n{heading}\n")
    assert found, f"There is no heading {heading!r}."
    return re.split(rf"^#{{1,{level}}} ", body, maxsplit=1, flags=re.MULTILINE)[0]


def chapter(path: Path) -> str:
    """Return a notebook's part of the notes."""
    title = lessons.cells(path)[0].source.splitlines()[0]
    return part(NOTES, f"## {path.name[:2]} {title.removeprefix('# ')}")


def columns(path: Path, row: str) -> list[str]:
    """Return a row of the table of a notebook's sections."""
    (found,) = re.findall(rf"^\| {row} \| (.*) \|$", chapter(path), re.MULTILINE)
    return found.split(" | ")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_readme_bench_notes_and_notebook_name_the_same_minutes(path):
    minutes = int(benchmarks.promised(path)[0] / 60)
    bench = pd.read_csv(TABLES / "bench.csv").set_index("name").loc[f"{path.stem}: Run All"]
    assert bench["promised"] == 60 * minutes and bench["ours"] <= 60 * minutes
    assert bench["ours"] > 60 * (minutes - 1) - 1  # promised with less than a minute to spare
    taught = [int(cell) for cell in columns(path, "minutes to teach")]
    unit = "minute" if minutes == 1 else "minutes"
    assert f": {minutes} {unit} to run, {sum(taught)} to teach." in chapter(path)
    needs = lessons.cells(path)[0].source.partition("You'll need:")[2]
    said = re.search(r"(?:about|under) (a|\d+) minute", needs)
    assert said and int(said[1].replace("a", "1")) == minutes


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notes_have_the_sections_and_their_measured_seconds(path):
    times = pd.read_csv(TABLES / "section_times.csv").query("notebook == @path.stem")
    headings = re.findall(r"^## (\d+ .+)", prose(path), re.MULTILINE)
    assert times["section"].tolist() == headings
    assert columns(path, "section") == [heading.split()[0] for heading in headings]
    rounded = [f"{seconds:.0f}" for seconds in times["seconds"]]
    assert columns(path, "seconds to run") == ["< 1" if s == "0" else s for s in rounded]


def test_the_readme_is_one_screen_and_promises_what_make_run_takes():
    assert len(README.encode()) <= 7_000
    (said,) = re.findall(r"^\| `make run` \|.*\| (\d+) minutes \|", README, re.MULTILINE)
    bench = pd.read_csv(TABLES / "bench.csv").set_index("name")["ours"]
    whole = sum(bench[f"{path.stem}: Run All"] for path in NOTEBOOKS[:5])
    assert 60 * (int(said) - 1) < whole <= 60 * int(said)
    assert f" {said} for\n  the notebooks" in TEACHING


@pytest.mark.parametrize("total", [60, 120, 180])
def test_a_plan_adds_up_and_each_slot_to_its_sections(total):
    plan = part(TEACHING, f"## {total} minutes")
    slots = re.findall(r"^\| (\d:\d\d) \| (\d+) \| (.*?) \| .*? \| (.+?) \|$", plan, re.MULTILINE)
    assert len(slots) == len(re.findall(r"^\| \d", plan, re.MULTILINE)) >= 7
    assert sum(int(minutes) for _, minutes, *_ in slots) == total
    clock = 0
    for start, minutes, where, _ in slots:
        assert start == f"{clock // 60}:{clock % 60:02d}"
        clock += int(minutes)
        if listed := re.match(r"\[(\d\d)\]\([^)]*\), sections? ([\d, and]+)$", where):
            (path,) = (path for path in NOTEBOOKS if path.name.startswith(listed[1]))
            taught = dict(
                zip(columns(path, "section"), columns(path, "minutes to teach"), strict=True)
            )
            assert int(minutes) == sum(int(taught[n]) for n in re.findall(r"\d+", listed[2])), where


# --- numbers ------------------------------------------------------------------------------------


def numbers(text: str) -> set[float]:
    """Return the numbers in a text; a percentage also counts as a share."""
    values = set()
    for digits, percent in NUMBER.findall(text):
        value = float(re.sub("[,_]", "", digits))
        values.add(round(value / 100, 6) if percent else value)
    return values


def known(path: Path) -> set[float]:
    """Return the numbers in a notebook's code and outputs."""
    code = [cell for cell in lessons.cells(path) if cell.cell_type == "code"]
    return numbers("\n".join(lessons.said(cell.outputs) + "\n" + cell.source for cell in code))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_said_at_a_figure_has_its_numbers_in_the_notebook(path):
    """One remark per figure in the notes, and the notes on the slides."""
    code = [cell for cell in lessons.cells(path) if cell.cell_type == "code"]
    said = chapter(path).split("**Say at the figure:**")[1].split("**Show")[0]
    remarks = re.findall(r"^- Section \d+, [^:]+:(.*?)(?=^- |\Z)", said, re.MULTILINE | re.DOTALL)
    figures = [o for cell in code for o in cell.outputs if "image/png" in o.get("data", {})]
    assert len(remarks) == len(figures)
    notes = [cell.metadata.get("slideshow", {}).get("notes", "") for cell in code]
    for remark in [*remarks, *notes]:
        assert numbers(re.sub(r"notebook\s+\d\d", "", remark)) <= known(path), remark


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_three_polls_have_options_one_answer_and_its_numbers(path):
    polls = re.findall(
        r"^\d\. (.*?)(?=^\d\. |\Z)", chapter(path).split("**Poll:**")[1], re.M | re.S
    )
    assert len(polls) == 3
    for poll in polls:
        asked, answer, why = re.split(r"\*\*([A-D])\*\*:", poll)
        assert len(re.findall(r"\b[A-D]\) ", asked)) >= 3 and f"{answer}) " in asked
        reason, number = re.fullmatch(r"(.*);\s+section\s+(\d+)\.\s*", why, re.DOTALL).groups()
        assert number in columns(path, "section")
        assert numbers(reason) <= known(path), reason


def test_tasks_and_findings_have_their_numbers_in_the_notebooks():
    form = r"^- \*\*Task \d\*\* \(\[(\d\d)\][^)]*\), [^)]*\):(.*?)\*Expect\*(.*?)(?=^- |\Z)"
    tasks = re.findall(form, TEACHING, re.M | re.S)
    assert len(tasks) == TEACHING.count("**Task ") == TEACHING.count("*Expect*") >= 4
    for number, _, expected in tasks:
        (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
        assert numbers(expected) <= known(path), expected
    finding = README.partition("**What came of it.**")[2].partition("\n\n")[0]
    assert {0.28, 0.242, 0.037, 0.017, 0.058, 240} <= numbers(finding)
    for text in (finding, *re.split(r"^## ", FENCE.sub("", RESULTS), flags=re.M)[1:]):
        read = [path for path in NOTEBOOKS if path.name in text] or [NOTEBOOKS[5]]
        said = numbers(re.sub(r"\[[^]]*\]\([^)]*\)|\S+-core", "", text))
        missing = said - set().union(*map(known, read))
        assert not missing, (missing, text)


def test_an_invented_number_is_seen():
    assert numbers("0.35, 35 %, 1,280 and 3_446; not the 2000s") == {0.35, 1280.0, 3446.0}


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_pictures_are_those_of_the_committed_tables(name):
    drawn = pictures.draw(name)
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == drawn
    ElementTree.fromstring(drawn)  # well formed, whatever stands in a title or a reason
