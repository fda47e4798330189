"""Each number in the text of a re-cut lesson occurs in an output of the same notebook."""

from __future__ import annotations

import html
import re

import nbformat
import pytest

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Numbers that a lesson quotes from elsewhere, or works out by hand in an example.
QUOTED = {
    "02": {"0.25", "0.44", "1.17", "1.50"},  # worked by hand
    # A longer run: NDCG@10 of rank 128 at alpha 0.5, its lead over rank 32, and what it could show.
    "03": {"128", "0.203", "0.005", "0.016"},
    "04": {"30", "40", "70"},  # the article: Sarah's age, Llama 2's billions of parameters
    "05": {"70"},  # the article: Llama 2's billions of parameters
    # Section 2 worked by hand; 9,999 patterns of research.stats; SmolLM2's parameters in millions.
    "06": {"0.631", "1.631", "1.96", "0.84", "9,999", "135", "2.8"},
    "08": {"0.0705", "0.0759", "3,650"},  # Yue et al. 2023; the 5-core
    # The power of a paired test; the questions of each training, and of notebook 08's.
    "11": {"2.8", "80", "100", "96", "320"},
    "10": {"22,363", "22,332"},  # Yue et al. 2023; Yang et al. 2023
    "14": {"17.6"},  # billions of scores: users times movies of the largest release
}
NUMBER = re.compile(r"(?<![\w.,/:-])[+-−]?(\d{1,3}(?:,\d{3})+|\d+\.\d+|\d{2,})(?![\w/:]|[.,]\d)")
NOT_PROSE = (
    r"```.*?```", r"`[^`]*`", r"\$\$.*?\$\$", r"\$[^$\n]*\$", r"\]\([^)]*\)", r"<!--.*?-->",
    r"https?://\S+", r"doi:? ?\S+", r"arXiv \S+", r"^#+ .*$", r"<[^>]+>",
    r"[Nn]otebooks? [\d, andto]+", r"[Ss]ections? [\d, andto]+",
)  # fmt: skip


def prose(notebook) -> str:
    """Return the text of the Markdown cells without code, formulas, links and headings."""
    text = "\n\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for pattern in NOT_PROSE:
        text = re.sub(pattern, " ", text, flags=re.DOTALL | re.MULTILINE)
    return text


def shown(notebook) -> set[str]:
    """Return the numbers in outputs, and in the code itself."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        parts.append(cell.source)
        for output in cell.outputs:
            parts.append(output.get("text", ""))
            data = output.get("data", {})
            parts += [data.get(kind, "") for kind in ("text/plain", "text/markdown")]
            parts.append(html.unescape(re.sub("<[^>]+>", " ", data.get("text/html", ""))))
    return {n.replace(",", "") for n in re.findall(r"\d[\d,]*(?:\.\d+)?", " ".join(parts))}


def known(number: str, numbers: set[str]) -> bool:
    """Whether a number is shown, exactly or with more digits that round to it."""
    plain = number.replace(",", "")
    if plain in numbers:
        return True
    digits = len(plain.partition(".")[2])
    return any(
        len(other.partition(".")[2]) > digits and f"{float(other):.{digits}f}" == plain
        for other in numbers
    )


def unknown(notebook, quoted: set[str]) -> list[str]:
    """Return the numbers of the text that no output shows; years are not looked for."""
    numbers = shown(notebook)
    found = [match[1] for match in NUMBER.finditer(prose(notebook))]
    return [
        number
        for number in found
        if number not in quoted
        and not re.fullmatch(r"(18|19|20)\d\d", number)
        and not known(number, numbers)
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_number_of_the_text_is_in_an_output(path):
    notebook = nbformat.read(path, as_version=4)
    assert unknown(notebook, QUOTED.get(path.name[:2], set())) == []


def test_a_wrong_number_is_found():
    cells = [
        nbformat.v4.new_markdown_cell("It has 0.85 and 1,234 of `99.9`; see section 12, 1999."),
        nbformat.v4.new_code_cell(
            "print(x)", outputs=[nbformat.v4.new_output("stream", text="0.8512")]
        ),
    ]
    assert unknown(nbformat.v4.new_notebook(cells=cells), set()) == ["1,234"]


def test_no_assertion_but_a_few_that_teach():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        code = [c.source for c in cells if c.cell_type == "code"]
        assert sum(len(re.findall(r"^\s*assert ", s, re.M)) for s in code) <= 3, path.name
        taught = [c for c in cells if "solution" not in c.metadata.get("tags", [])]
        lesson = [c.source for c in taught if c.cell_type == "code"]  # solutions stay closed
        lines = sum(len([x for x in s.splitlines() if x.strip()]) for s in lesson)
        assert lines <= 350 and len(cells) <= 60, (path.name, lines, len(cells))
        # The first cell is the set-up, which is collapsed too.
        assert max(len(line) for s in lesson[1:] for line in s.splitlines()) <= 88, path.name
