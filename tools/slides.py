"""Decks for the room, made from the notebooks' saved outputs; nothing is executed.

``decks/decks.yaml`` lists the slides and says what each shows; sphinx-revealjs carries reveal.js.
"""

import html
import re
import textwrap
from base64 import b64encode
from pathlib import Path

import lessons
import sphinx_revealjs
import yaml
from bs4 import BeautifulSoup
from jinja2 import Template
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from helpers.settings import Settings

PLANS = (60, 120, 180)
DECKS = Path(__file__).with_name("decks")
REVEAL = Path(sphinx_revealjs.__file__).parent / "_static" / "revealjs"


class Builder:
    """Makes slides of entries of ``decks.yaml``; a method for each kind of thing to show."""

    def __init__(self, root: Path) -> None:
        self.polls = (root / "docs" / "teaching_notes.md").read_text(encoding="utf-8")
        self.cells = {cell.id: cell for path in lessons.paths(root) for cell in lessons.cells(path)}

    def slide(self, entry: dict) -> dict[str, str]:
        """Return the parts of a slide; an error names the cell or the words that are not there."""
        kind, name, which = map(str.strip, f"{entry['show']}  ".split(" ", 2))
        body = getattr(self, kind)(entry, name, which)
        head, notes = map(self.filled, (entry["head"], entry.get("say", "")))
        if name in self.cells:
            notes += "\n\n" + self.cells[name].metadata.get("slideshow", {}).get("notes", "")
        head = html.escape(head, quote=False)
        return {"kind": kind, "head": head, "body": body, "notes": markdown2html(notes)}

    def filled(self, text: str) -> str:
        """Put what the outputs or the prose of cells hold in the places ``{id|pattern}``."""
        for place, name, pattern in re.findall(r"(\{(\S+?)\|(.+?)\})", text):
            cell = self.cells[name]
            said = cell.source  # of prose; what is printed may be cut into lines anywhere
            if cell.cell_type == "code":
                said = " ".join(lessons.said(cell.outputs).split())
            found = re.search(pattern, said)
            assert found, f"the cell {name} does not say {pattern}"
            text = text.replace(place, found[1])
        return text

    def shown(self, name: str, which: str) -> NotebookNode:
        """Return the output of a cell with this number, the first by default."""
        return [o for o in self.cells[name].outputs if "data" in o][int(which or 1) - 1]

    def figure(self, entry: dict, name: str, which: str) -> str:
        output = self.shown(name, which)
        if svg := output.data.get("image/svg+xml"):  # as an image, so that its ids are its own
            source = "svg+xml;base64," + b64encode(svg.encode()).decode()
        else:
            source = "png;base64," + output.data["image/png"]
        return f'<img alt="{html.escape(lessons.alt(output))}" src="data:image/{source}">'

    def table(self, entry: dict, name: str, which: str) -> str:
        """Show an output's table: its first ``rows``, and the ``columns`` with these numbers."""
        table = BeautifulSoup(self.shown(name, which).data["text/html"], "html.parser").table
        for row in table.select("tbody tr")[entry.get("rows", 99) :]:
            row.decompose()
        for row in table.select("tr"):
            for place, cell in enumerate(row.find_all(["th", "td"])):
                if place not in entry.get("columns", [place]):
                    cell.decompose()
        return str(table)

    def output(self, entry: dict, name: str, which: str) -> str:
        streams = "".join(output.get("text", "") for output in self.cells[name].outputs)
        return f"<pre>{html.escape(streams.strip())}</pre>"

    def code(self, entry: dict, name: str, which: str) -> str:
        first, last = map(int, which.split("-"))
        text = textwrap.dedent("\n".join(self.cells[name].source.splitlines()[first - 1 : last]))
        return markdown2html(f"```python\n{text}\n```")

    def poll(self, entry: dict, name: str, which: str) -> str:
        found = self.polls.split(f"\n## {name} ")[1].split("**Poll:**")[1]
        asked = re.search(rf"^{which}\. (.*?) A\) (.*?)\*\*(\w)\*\*: (.*?)(?=\n\d\. |\n\n)",
                          found, re.DOTALL | re.MULTILINE)  # fmt: skip
        question, options, right, why = (" ".join(part.split()) for part in asked.groups())
        entry["head"] = question + " ..." * (not question.endswith("?"))
        entry["say"] = f"**{right}**: {why}"
        options = (html.escape(option.strip(" .;")) for option in re.split(r" [BC]\) ", options))
        return f"<ol><li>{'</li><li>'.join(options)}</li></ol>"

    def text(self, entry: dict, name: str, which: str) -> str:
        return markdown2html(self.filled(entry["text"]))


def write(folder: Path, settings: Settings) -> None:
    """Write a page for each plan into ``folder``; it needs no network."""
    builder = Builder(settings.root)
    look = Template((DECKS / "deck.html").read_text("utf-8"), keep_trailing_newline=True)
    entries = yaml.safe_load((DECKS / "decks.yaml").read_text("utf-8"))
    files = ["dist/reset.css", "dist/reveal.css", DECKS / "deck.css", "dist/reveal.js",
             "plugin/notes/notes.js"]  # fmt: skip
    *styles, reveal, notes = ((REVEAL / file).read_text("utf-8") for file in files)
    script = f"{reveal}\n{notes}".replace("</script", "<\\/script")
    for minutes in PLANS:
        slides = [builder.slide(entry) for entry in entries if minutes in entry.get("in", PLANS)]
        page = look.render(minutes=minutes, slides=slides, css="".join(styles), script=script)
        (folder / f"{minutes}_minutes.html").write_text(page, encoding="utf-8")
