"""Decks for the room, made from the notebooks' saved outputs; nothing is executed.

``decks/decks.yaml`` lists the slides and the plans of ``docs/teaching.md`` that show them. A slide
is a headline and what ``show`` names, by a cell's id: ``figure``, ``table``, ``output``, ``code``,
``quote``, ``text``, or a ``poll`` of ``docs/teaching_notes.md``. ``{id|pattern}`` is what is found
in the outputs of a cell, so no number is typed twice. reveal.js comes with sphinx-revealjs.
"""

from __future__ import annotations

import html
import importlib.util
import re
import textwrap
from base64 import b64encode
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import nbformat
import yaml
from bs4 import BeautifulSoup
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

PLANS = (60, 120, 180)
DECKS = Path(__file__).with_name("decks")


class SlideError(ValueError):
    """A slide names what is not there; the sentence says which slide and what."""


class Source(NamedTuple):
    """A cell, and the notebook and section that it stands in."""

    cell: NotebookNode
    place: str

    @property
    def text(self) -> str:
        """What its outputs say, tables included."""
        texts = []
        for output in self.cell.get("outputs", []):
            rich = output.get("data", {}).get("text/html", "")
            rich = re.sub(r"<style.*?</style>|<[^>]+>", " ", rich, flags=re.DOTALL)
            texts.append(output.get("text") or " ".join(html.unescape(rich).split()))
        return "\n".join(texts)

    def data(self, number: int) -> NotebookNode:
        """Return one of the outputs that show something, the first of which is number 1."""
        return [output for output in self.cell.outputs if "data" in output][number - 1]


def sources(root: Path) -> dict[str, Source]:
    """Return the cells of all notebooks by their ids."""
    found = {}
    for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        place = path.name[:2]
        for cell in nbformat.read(path, as_version=4).cells:
            headings = re.findall(r"^## (\d+ .*)", cell.source, re.MULTILINE)
            after = f"{path.name[:2]} \N{MIDDLE DOT} {headings[-1]}" if headings else place
            found[cell.id] = Source(cell, after if cell.source.startswith("#") else place)
            place = after
    return found


class Builder:
    """Makes slides of entries of ``decks.yaml``."""

    def __init__(self, root: Path) -> None:
        self.cells = sources(root)
        self.polls = (root / "docs" / "teaching_notes.md").read_text(encoding="utf-8")

    def slide(self, entry: dict[str, Any]) -> str:
        """Return a slide; raises SlideError where it names what is not there."""
        kind, *names = entry["show"].split(" ", 2)
        try:
            source = None if kind in ("poll", "text") else self.cells[names[0]]
            body = getattr(self, kind)(source, entry, *names[source is not None :])
            head = html.escape(self.filled(entry["head"]), quote=False)
            notes = source.cell.metadata.get("slideshow", {}).get("notes", "") if source else ""
            said = markdown2html(self.filled(entry.get("say", "")) + "\n\n" + notes)
        except (LookupError, AttributeError, TypeError, ValueError) as error:
            why = f"A slide shows {entry['show']}, which is not there: {error}"
            raise SlideError(why) from None
        place = source.place if source else kind.replace("poll", "Vote").replace("text", "")
        return (
            f'<section><h2>{head}</h2>\n<div class="{kind}">{body}</div>\n'
            f'<div class="where">{place}</div>\n<aside class="notes">{said}</aside></section>'
        )

    def filled(self, text: str) -> str:
        """Put what the outputs hold in the places ``{id|pattern}`` of a text."""
        for place, name, pattern in re.findall(r"(\{(\S+?)\|(.+?)\})", text):
            text = text.replace(place, re.search(pattern, self.cells[name].text)[1])
        return text

    def figure(self, source: Source, entry: dict, number: str = "1") -> str:
        output = source.data(int(number))
        if svg := output.data.get("image/svg+xml"):  # as an image, so that its ids are its own
            kind, data = "svg+xml", b64encode(svg.encode()).decode()
            alt = re.search(r"<title>(.*?)</title>", svg, re.DOTALL)[1]
        else:
            kind, data = "png", output.data["image/png"]
            alt = html.escape(output.metadata["image/png"]["alt"])
        return f'<img alt="{alt}" src="data:image/{kind};base64,{data}">'

    def table(self, source: Source, entry: dict, number: str = "1") -> str:
        """Show an output's table: its first ``rows``, and the ``columns`` with these numbers."""
        table = BeautifulSoup(source.data(int(number)).data["text/html"], "html.parser").table
        for row in table.select("tbody tr")[entry.get("rows", 99) :]:
            row.decompose()
        for row in table.select("tr"):
            for place, cell in enumerate(row.find_all(["th", "td"])):
                if place not in entry.get("columns", [place]):
                    cell.decompose()
        return str(table)

    def output(self, source: Source, entry: dict) -> str:
        streams = [output.text for output in source.cell.outputs if "text" in output]
        return f"<pre>{html.escape(''.join(streams).strip())}</pre>"

    def code(self, source: Source, entry: dict, lines: str) -> str:
        first, last = map(int, lines.split("-"))
        text = textwrap.dedent("\n".join(source.cell.source.splitlines()[first - 1 : last]))
        formatter = HtmlFormatter(noclasses=True, nowrap=True)
        return f"<pre>{highlight(text, PythonLexer(), formatter)}</pre>"

    def quote(self, source: Source, entry: dict, begins: str) -> str:
        """Quote from some words to the end of their paragraph, or ``until`` others."""
        text = source.cell.source
        end = entry.get("until", "\n\n")
        text = text[text.index(begins) :].split(end)[0] + end.strip()
        return f"<blockquote>{markdown2html(text)}</blockquote>"

    def poll(self, _: None, entry: dict, notebook: str, number: str) -> str:
        found = self.polls.split(f"\n## {notebook} ")[1].split("**Poll:**")[1]
        asked = re.search(rf"^{number}\. (.*?) A\) (.*?)\*\*(\w)\*\*: (.*?)(?=\n\d\. |\n\n)",
                          found, re.DOTALL | re.MULTILINE)  # fmt: skip
        question, options, right, why = (" ".join(part.split()) for part in asked.groups())
        head = question if question.endswith("?") else f"{question} ..."
        entry |= {"head": head, "say": f"**{right}**: {why}"}
        options = (html.escape(option.strip(" .;")) for option in re.split(r" [BC]\) ", options))
        return f"<ol><li>{'</li><li>'.join(options)}</li></ol>"

    def text(self, _: None, entry: dict) -> str:
        return markdown2html(self.filled(entry["text"]))


def deck(builder: Builder, minutes: int) -> str:
    """Return the page with the slides of a plan."""
    entries = yaml.safe_load((DECKS / "decks.yaml").read_text(encoding="utf-8"))
    shown = [entry for entry in entries if minutes in entry.get("in", PLANS)]
    spec = importlib.util.find_spec("sphinx_revealjs")
    if spec is None or spec.origin is None:
        raise SlideError('reveal.js is missing: pip install -e ".[tools]"')
    reveal = Path(spec.origin).parent / "_static" / "revealjs"
    files = [reveal / "dist/reset.css", reveal / "dist/reveal.css", DECKS / "deck.css",
             reveal / "dist/reveal.js", reveal / "plugin/notes/notes.js"]  # fmt: skip
    reset, base, own, *scripts = (file.read_text(encoding="utf-8") for file in files)
    return Template((DECKS / "deck.html").read_text(encoding="utf-8")).substitute(
        title=f"LLM-powered recommenders, {minutes} minutes",
        css=reset + base + own,
        slides="\n".join(map(builder.slide, shown)),
        script="\n".join(scripts).replace("</script", "<\\/script"),
    )


def write_decks(root: Path, target: Path) -> None:
    """Write a page for each plan into ``target``; it needs no network."""
    target.mkdir(parents=True, exist_ok=True)
    builder = Builder(root)
    for minutes in PLANS:
        (target / f"{minutes}_minutes.html").write_text(deck(builder, minutes), encoding="utf-8")
