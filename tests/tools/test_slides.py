"""Decks: little on a slide, nothing typed twice, and all of it fits the screen."""

import re

import pytest
import yaml

from conftest import ROOT

bs4 = pytest.importorskip("bs4", reason='needs the tools extra: pip install -e ".[tools]"')
pytest.importorskip("sphinx_revealjs")
slides = pytest.importorskip("slides")
ENTRIES = yaml.safe_load((slides.DECKS / "decks.yaml").read_text(encoding="utf-8"))
NAMES = r"\{.*?\}|user 12|User 12|Llama 2|SmolLM2"  # what is found in outputs, and what is a name
TOO_LARGE = """() => [...Reveal.getCurrentSlide().querySelectorAll('h2, div, div *')]
    .filter(part => !part.closest('.notes')).map(part => part.getBoundingClientRect())
    .filter(box => box.right > 1220 || box.bottom > 672).length"""


@pytest.fixture(scope="module")
def decks(tmp_path_factory, settings):
    """The three pages."""
    folder = tmp_path_factory.mktemp("decks")
    slides.write(folder, settings)
    return {minutes: folder / f"{minutes}_minutes.html" for minutes in slides.PLANS}


@pytest.mark.parametrize("minutes", slides.PLANS)
def test_a_deck_has_few_slides_with_little_on_each_and_notes_as_text(minutes, decks):
    page = bs4.BeautifulSoup(decks[minutes].read_text(encoding="utf-8"), "html.parser")
    shown = page.select("section")
    assert 25 <= len(shown) <= 40
    for slide in shown:
        assert slide.h2.text and slide.select_one("aside.notes").text.strip(), slide.h2
        assert all(len(code.text.splitlines()) <= 8 for code in slide.select("pre"))
        assert all(image["alt"] for image in slide.select("img"))
    assert not re.search(r"https?://", str(page.select(".slides")[0]).replace("doi.org", ""))
    assert "&lt;p" not in str(page.select("aside.notes"))


def test_no_number_is_typed_and_what_is_not_there_is_named():
    for entry in ENTRIES:
        own = " ".join(str(entry.get(key, "")) for key in ("head", "say", "text"))
        assert not re.search(r"\d", re.sub(NAMES, "", own)), entry
    builder = slides.Builder(ROOT)
    with pytest.raises(KeyError, match="nowhere"):
        builder.slide({"head": "x", "show": "figure nowhere"})
    with pytest.raises(AssertionError, match="c01018 does not say"):
        builder.slide({"head": "x", "show": "output c01018", "say": "{c01018|(no such words)}"})


@pytest.mark.browser
@pytest.mark.parametrize("minutes", slides.PLANS)
def test_every_slide_fits_the_screen_and_asks_nobody(minutes, decks, browser, page):
    page.goto(decks[minutes].as_uri())
    page.wait_for_function("window.Reveal && Reveal.isReady()")
    for number in range(page.evaluate("Reveal.getTotalSlides()")):
        page.evaluate(f"Reveal.slide({number})")
        assert page.evaluate(TOO_LARGE) == 0, f"slide {number + 1} is too large"
    sizes = "[...document.querySelectorAll('pre')].map(pre => getComputedStyle(pre).fontSize)"
    assert min(int(size.removesuffix("px")) for size in page.evaluate(sizes)) >= 24
    page.evaluate("Reveal.slide(0)")
    with page.expect_popup() as popup:
        page.keyboard.press("s")
    popup.value.get_by_text("Count the hands").first.wait_for()
    page.keyboard.press("ArrowRight")
    popup.value.get_by_text("its own box is lit").first.wait_for()
    assert not browser.refused
