"""Conventions that every notebook keeps; each rule is also shown to fail on a bad notebook."""

from __future__ import annotations

import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TAGS = {"parameters", "setup", "solution", "nbval-ignore-output"}
# Keys may hold hyphens (sk-proj-...); a word such as "task-" does not begin one.
SECRET = re.compile(
    r"\bsk-[A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{16,}|Bearer [A-Za-z0-9._-]{8,}"
    r"|api_key\s*=\s*\\?[\"'][^\"'\\]{8,}"
)
# What a strict compare trips over, or nbval does not honour or ignores without a word.
SOURCE = re.compile(
    r"^\s*%%?time|;\s*$|#.*nbval|sys\.path|\binteract(?:ive|_manual)?\(|\bclear_output\b"
    r"|\bfrom tqdm import|^\s*import tqdm\b|tqdm\.(?:std|notebook)",
    re.MULTILINE | re.IGNORECASE,
)
VOLATILE = re.compile(
    r"\bperf_counter\(|\btime\.time\(|\btqdm\(|\bgrid_search\(|\blearning_curve\("
)
ADDRESS = re.compile(r"\bat 0x[0-9a-f]{6,}", re.IGNORECASE)
MACHINE = re.compile(r"/(?:home|Users|root|work|tmp)/|[A-Z]:\\\\|\b\d{1,3}(?:\.\d{1,3}){3}:\d+")


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def faults(notebook, text: str) -> set[str]:
    """Return the names of the rules that a notebook breaks; ``text`` is the file as stored."""
    found = set()
    cells = code(notebook)
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        # A cell of comments alone is executed too, so counts have no gaps.
        found.add("execution counts")
    for cell in cells:
        tags = set(cell.metadata.get("tags", []))
        if not {tag for tag in tags if not tag.startswith("taught:")} <= TAGS:
            found.add("tags")
        for output in cell.outputs:
            if output.output_type == "error":
                found.add("error output")
            if output.get("name") == "stderr":
                found.add("stderr")
            if "image/png" in output.get("data", {}):
                alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
                if len(alt.split()) < 5:
                    found.add("alt text")
        if SOURCE.search(cell.source):
            found.add("cell source")
        if "nbval-ignore-output" not in tags and VOLATILE.search(cell.source):
            found.add("time or progress in a compared cell")
        if ADDRESS.search(nbformat.v4.writes(new_notebook(cells=[cell]))):
            found.add("address")
        limit = 5 if "setup" in tags else 40 if "solution" in tags else 24
        if len([line for line in cell.source.splitlines() if line.strip()]) > limit:
            found.add("cell length")
    if sum("parameters" in cell.metadata.get("tags", []) for cell in cells) != 1:
        found.add("parameters cell")
    first = notebook.cells[0].source
    needed = ("# ", "You'll do", "You'll learn", "You'll need", "<!--NAV-->")
    if not all(part in first for part in needed):
        found.add("opening")
    markdown = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    if "## Recap" not in markdown or markdown.count("<details><summary>Hint") < 2:
        found.add("closing")
    apart = "\n## Solutions\n" in markdown
    if not (solutions_are_apart if apart else solutions_are_beside)(markdown):
        found.add("closing")
    if not recall_is_whole(markdown):
        found.add("recall")
    if re.search(r"!\[\]\(", markdown):
        found.add("alt text")
    if SECRET.search(text):
        found.add("key")
    if MACHINE.search(text):
        found.add("machine path")
    if len(text.encode()) > 2_000_000:
        found.add("size")
    return found


def solutions_are_apart(markdown: str) -> bool:
    """Each exercise links to its solution, which comes after the recall questions."""
    before, _, after = markdown.partition("\n## Solutions\n")
    _, _, exercises = before.partition("\n## Exercises\n")
    numbers = re.findall(r"^### Exercise (\d+)", exercises, re.M)
    linked = re.findall(r"\[Solution\]\(#solution-(\d+)\)", exercises)
    solved = re.findall(r"^### Solution (\d+)$", after, re.M)
    early = "<summary>Solution" in before or "\n## Recall\n" not in before
    return len(numbers) >= 2 and numbers == linked == solved and not early


def solutions_are_beside(markdown: str) -> bool:
    """The other closing: a collapsed solution under each exercise."""
    exercises = len(re.findall(r"^### Exercise \d", markdown, re.M))
    return exercises >= 2 and markdown.count("<summary>Solution") >= exercises


def recall_is_whole(markdown: str) -> bool:
    """Three to five questions at the end, each with an answer that names a section that exists."""
    before, found, after = markdown.partition("\n## Recall\n")
    asked = re.findall(
        r"^\*\*(\d)\.\*\* [^\n]*[?.]\n\n<details><summary>Answer</summary>(.+?)</details>$",
        after.split("<!--NAV-->")[0],
        re.M,
    )
    named = [re.search(r"Sections? ((?:\d+|, | and | to )+)\.$", answer) for _, answer in asked]
    if not found or not 3 <= len(asked) <= 5 or not all(named) or "## Exercises" not in before:
        return False
    sections = {number for match in named for number in re.findall(r"\d+", match[1])}
    there = set(re.findall(r"^## (\d+) ", before, re.M))
    return [int(n) for n, _ in asked] == list(range(1, len(asked) + 1)) and sections <= there


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_conventions(path):
    assert faults(nbformat.read(path, as_version=4), path.read_text(encoding="utf-8")) == set()


def test_numbers_have_no_gap():
    numbers = [int(path.name[:2]) for path in NOTEBOOKS]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_between_files_resolve(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", cell.source):
            if cell.cell_type == "markdown" and not target.startswith("http"):
                assert (path.parent / target).exists(), target


def good() -> nbformat.NotebookNode:
    opening = "# Do it\n**You'll do** **You'll learn** **You'll need**\n<!--NAV-->"
    hint = "<details><summary>Hint</summary></details> [Solution](#solution-{})\n"
    answer = "<details><summary>Answer</summary>Because. Section 1.</details>"
    recall = "".join(f"\n\n**{n}.** Why?\n\n{answer}" for n in (1, 2, 3))
    exercises = "".join(f"\n### Exercise {n}\n{hint.format(n)}" for n in (1, 2))
    closing = f"## 1 Begin\n## Recap\n\n## Exercises\n{exercises}\n## Recall\n{recall}"
    solved = "\n\n<details><summary>Solution</summary>So.</details>\n"
    closing += f"\n\n## Solutions\n\n### Solution 1{solved}\n### Solution 2{solved}"
    cell = new_code_cell("X = 1", execution_count=1, metadata={"tags": ["parameters"]})
    return new_notebook(cells=[new_markdown_cell(opening), cell, new_markdown_cell(closing)])


def check(notebook):
    return faults(notebook, nbformat.writes(notebook))


def spoil(name, notebook):
    cell = notebook.cells[1]
    image = new_output("display_data", data={"image/png": "x"})
    changes = {
        "execution counts": lambda: cell.update(execution_count=None),
        "tags": lambda: cell.metadata.tags.append("NBVAL_SKIP"),
        "error output": lambda: cell.outputs.append(new_output("error", ename="E", evalue="")),
        "stderr": lambda: cell.outputs.append(new_output("stream", name="stderr", text="w")),
        "alt text": lambda: cell.outputs.append(image),
        "cell source": lambda: cell.update(source="plot();"),
        "time or progress in a compared cell": lambda: cell.update(source="a = perf_counter()"),
        "address": lambda: cell.outputs.append(
            new_output("stream", name="stdout", text="<function f at 0x7f00deadbeef>")
        ),
        "cell length": lambda: cell.update(source="x = 1\n" * 30),
        "parameters cell": lambda: cell.metadata.pop("tags"),
        "opening": lambda: notebook.cells[0].update(source="# Do it"),
        "closing": lambda: notebook.cells[2].update(source="## Recap"),
        "recall": lambda: notebook.cells[2].update(
            source=notebook.cells[2].source.replace("Section 1", "Section 2")
        ),
        "key": lambda: cell.update(source="key = 'sk-" + "a" * 20 + "'"),
        "machine path": lambda: cell.update(source="path = '/home" + "/me'"),
        "size": lambda: notebook.cells[2].update(source=notebook.cells[2].source + "x" * 2_000_000),
    }
    changes[name]()
    return changes


@pytest.mark.parametrize("name", list(spoil("tags", good())))
def test_each_rule_can_fail(name):
    assert check(good()) == set()
    bad = good()
    spoil(name, bad)
    assert name in check(bad)


@pytest.mark.parametrize(
    ("fault", "part", "instead"),
    [
        # Each exercise has a solution that is not beside it.
        ("closing", "(#solution-2)", "(#solution-1)"),
        ("closing", "### Solution 2", ""),
        ("closing", "### Exercise 2", ""),
        ("closing", "<summary>Hint", "<summary>Solution"),
        # Recall questions need a number, an answer and a section.
        ("recall", "**3.** Why?", "Why?"),
        ("recall", "**2.** Why?", "**5.** Why?"),
        ("recall", "Because. Section 1.", "Because."),
        ("recall", "## 1 Begin", "## Begin"),
    ],
)
def test_exercises_and_recall_questions_are_complete(fault, part, instead):
    bad = good()
    bad.cells[2].source = bad.cells[2].source.replace(part, instead)
    assert check(bad) == {fault}


@pytest.mark.parametrize(
    "source",
    [
        "%%time\nx = 1",
        "%time x = 1",
        "x = 1  # NBVAL_IGNORE_OUTPUT",
        "x = 1  # see nbval-skip",
        "interact(show, user=12)",
        "from IPython.display import clear_output",
        "from tqdm import tqdm",
        "sys.path.append('..')",
    ],
)
def test_what_a_strict_compare_trips_over_is_found(source):
    bad = good()
    bad.cells[1].source = source
    assert "cell source" in check(bad)


@pytest.mark.parametrize("source", ["from tqdm.auto import tqdm", "interaction = 1", "x = 5"])
def test_what_is_harmless_is_not(source):
    fine = good()
    fine.cells[1].source = source
    assert check(fine) == set()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("sk-proj-" + "Ab1_" * 8, True),
        ("sk-ant-api03-" + "x" * 20, True),
        ("hf_" + "a" * 30, True),
        ("api_key='" + "0f" * 8 + "'", True),
        ("a task-specific-and-rather-long-word", False),
        ("api_key=settings.llm_api_key", False),
    ],
)
def test_keys_of_today_are_found_and_words_are_not(text, secret):
    notebook = good()
    notebook.cells[2].source += f"\n{text}"
    assert ("key" in check(notebook)) == secret
