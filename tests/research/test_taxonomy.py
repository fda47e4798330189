"""The pictures of 09 to 12 say what they show, and nothing in them is markup of the data."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from conftest import ROOT
from research import taxonomy


@pytest.fixture
def shown(monkeypatch):
    pictures = []
    monkeypatch.setattr(taxonomy, "display", lambda svg: pictures.append(svg.data))
    return pictures


def test_each_lesson_has_boxes_of_its_own_in_colour(shown):
    for notebook in ("09", "10", "11", "12"):
        taxonomy.draw(notebook)
    lit = [picture.count("#0072B2") for picture in shown]
    assert len(set(shown)) == 4 and all(0 < n < 11 for n in lit)
    for picture in shown:
        tree = ElementTree.fromstring(picture)
        width = float(tree.attrib["viewBox"].split()[2])
        boxes = [e for e in tree.iter() if e.tag.endswith("rect")][1:]
        assert len(boxes) == 11
        assert all(float(b.attrib["x"]) + float(b.attrib["width"]) <= width for b in boxes)


def test_every_notebook_that_is_named_on_the_map_draws_it():
    named = {n for row in taxonomy.ROWS.values() for *_, lessons in row for n in lessons.split()}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        drawn = re.findall(r"taxonomy\.draw\(\\\"(\d\d)\\\"\)", path.read_text(encoding="utf-8"))
        assert drawn == ([path.name[:2]] if path.name[:2] in named else [])


def test_a_flow_is_escaped_and_has_an_arrow_between_steps(shown):
    taxonomy.flow("A <b>", [("LLM", "writes & reads", "<i>"), ("list", "best", "first")])
    (picture,) = shown
    tree = ElementTree.fromstring(picture)
    words = [e.text for e in tree.iter() if e.tag.endswith(("text", "title"))]
    assert words[0] == "A <b>: LLM then list" and "writes & reads" in words and "<i>" in words
    assert picture.count("<path") == 1 and picture.count("#0072B2") == 1
