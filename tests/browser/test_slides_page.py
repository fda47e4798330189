"""Slides in a browser: none overflows its frame, keys work, nothing is fetched."""

from __future__ import annotations

import pytest
import slides
from browsers import shoot

from conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.browser]
NOTEBOOKS = [
    path for path in sorted((ROOT / "notebooks").glob("*.ipynb")) if path.name[:2] in slides.NAMES
]
SMALLEST = 0.75  # of the full size; smaller is not read from the last row
FRAME = """() => [...document.querySelectorAll('section.slide')].map(one => ({
    zoom: Number(one.dataset.zoom), tall: one.scrollHeight - one.clientHeight,
    wide: one.scrollWidth - one.clientWidth, size: [one.clientWidth, one.clientHeight],
    text: one.textContent.trim().length + 100 * one.querySelectorAll('img').length,
    inside: [...one.querySelectorAll('.fit *')].every(part => {
        const box = part.getBoundingClientRect(), frame = one.getBoundingClientRect();
        return !box.width || part.closest('aside')
            || (box.bottom <= frame.bottom + 1 && box.right <= frame.right + 1);
    }),
}))"""


@pytest.fixture(scope="module")
def written(browser, tmp_path_factory):
    return slides.write_slides(NOTEBOOKS, tmp_path_factory.mktemp("slides"))


def open_slides(page, path):
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")
    return page.evaluate(FRAME)


@pytest.mark.parametrize("name", slides.NAMES)
def test_no_slide_overflows_and_nothing_is_fetched(name, written, page, browser):
    asked = len(browser.refused)
    (path,) = (path for path in written if path.name.startswith(name))
    frames = open_slides(page, path)
    assert len(frames) >= 15
    for place, frame in enumerate(frames, 1):
        assert frame["size"] == [1280, 720], place
        assert frame["tall"] <= 0 and frame["wide"] <= 0 and frame["inside"], (place, frame)
        assert frame["zoom"] >= SMALLEST, (place, frame)
        assert frame["text"] > 10, place
    figures = page.locator("section.slide img")
    alts = [figures.nth(i).get_attribute("alt") or "" for i in range(figures.count())]
    assert all(len(alt.split()) >= 5 for alt in alts)
    assert len(alts) == path.read_text().count("<img")
    shoot(page, f"slides_{name}_first")
    if alts:
        with_figure = page.evaluate(
            "() => [...document.querySelectorAll('section.slide')]"
            ".findIndex(one => one.querySelector('img'))"
        )
        page.goto(f"{path.as_uri()}#{with_figure + 1}")
        page.wait_for_selector("section.slide.present img >> nth=0")
        assert page.locator("section.slide.present aside.notes").count() == 1
        shoot(page, f"slides_{name}_figure")
    assert browser.refused[asked:] == []


def test_a_slide_that_is_too_tall_is_seen(written, page):
    """The frame test can fail: an unsplittable block stays too tall at the smallest size."""
    open_slides(page, written[0])
    page.evaluate("""() => {
        const box = document.querySelector('section.slide .fit');
        box.insertAdjacentHTML('beforeend', '<p>line<br></p>'.repeat(80));
        fit(document.querySelector('section.slide'));
    }""")
    frame = page.evaluate(FRAME)[0]
    assert frame["tall"] > 0 and not frame["inside"] and frame["zoom"] < SMALLEST


def test_keys_turn_the_pages_and_open_the_notes(written, page):
    frames = open_slides(page, written[0])
    number = page.locator("#number")
    assert number.inner_text() == f"1 / {len(frames)}"
    page.keyboard.press("End")
    assert number.inner_text() == f"{len(frames)} / {len(frames)}"
    page.keyboard.press("ArrowRight")
    assert number.inner_text() == f"{len(frames)} / {len(frames)}"
    page.keyboard.press("Home")
    seen = [page.locator("section.slide.present").get_attribute("aria-label")]
    waiting = page.locator("section.slide.present .fragment.waiting")
    for _ in range(200):
        hidden = waiting.count()
        page.keyboard.press("ArrowRight")
        if hidden:
            assert waiting.count() == hidden - 1  # a key shows the next part, then turns the page
        label = page.locator("section.slide.present").get_attribute("aria-label")
        if not hidden:
            seen.append(label)
        if label == f"slide {len(frames)}" and not waiting.count():
            break
    assert seen == [f"slide {place}" for place in range(1, len(frames) + 1)]
    page.keyboard.press("ArrowLeft")
    assert number.inner_text().startswith(f"{len(frames) - 1} ")
    assert not page.locator("#notes").is_visible()
    page.keyboard.press("n")
    assert page.locator("#notes").is_visible()
    page.get_by_role("button", name="next slide").click()
    assert number.inner_text().startswith(f"{len(frames)} ")
