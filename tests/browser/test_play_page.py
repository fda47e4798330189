"""The page to play with, opened from disk: its numbers are Python's, and it is used by keyboard."""

from __future__ import annotations

import base64
import dataclasses
import json
import re

import numpy as np
import page as tool
import pytest
from browsers import shoot

from research import evaluation

pytestmark = pytest.mark.browser
ROWS = "all => all.map(row => Number(row.dataset.movie))"


@pytest.fixture(scope="module", params=["sample", "real"])
def built(request, browser, settings, tmp_path_factory):
    """The page's file and its data; of the sample, and of the release where it is."""
    home = dataclasses.replace(settings, movielens_dir=request.getfixturevalue(request.param).path)
    file = tmp_path_factory.mktemp("page") / "index.html"
    tool.write(file.parent, home)
    html = file.read_text(encoding="utf-8")
    return file.as_uri(), json.loads(re.search(r'id="data">(.*?)</script>', html)[1])


@pytest.fixture
def opened(built, page, browser):
    """The opened page; at the end nothing was asked of anybody and nothing failed."""
    asked, errors = len(browser.refused), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.emulate_media(reduced_motion="reduce")
    page.goto(built[0])
    yield page
    assert browser.refused[asked:] == [] and errors == []


def fold_in(factors: np.ndarray, rated: list, reg: float, alpha: float) -> np.ndarray:
    """One half step of implicit ALS by its definition (Hu, Koren and Volinsky 2008, equation 4)."""
    rows, stars = np.array([m for m, _ in rated]), np.array([r for _, r in rated], dtype=float)
    kept = rows < len(factors)
    rows, stars = rows[kept], stars[kept]
    confidence = np.ones(len(factors))
    confidence[rows] += alpha * np.abs(stars)
    preferred = np.zeros(len(factors))
    preferred[rows] = stars > 0
    left = (factors.T * confidence) @ factors + reg * (stars > 0).sum() * np.eye(factors.shape[1])
    return np.linalg.solve(left, factors.T @ (confidence * preferred))


def factors_of(content: dict) -> tuple[np.ndarray, float, float]:
    rank, reg, alpha = content["setting"]
    flat = np.frombuffer(base64.b64decode(content["factors"]), "<f2").astype(float)
    return flat.reshape(-1, int(rank)), reg, alpha


def best(scores: np.ndarray, excluded: list[int], n: int) -> list[int]:
    scores = np.round(scores, 5)
    scores[[m for m in excluded if m < len(scores)]] = -np.inf
    return np.lexsort((np.arange(len(scores)), -scores))[:n].tolist()


def test_folding_in_gives_pythons_numbers_and_sparks_lists(opened, built):
    factors, reg, alpha = factors_of(built[1])
    draw, overlaps = np.random.default_rng(0), []
    thumbs = [[[int(m), 5 if i % 3 else -5] for i, m in enumerate(draw.permutation(500)[:10])]]
    people = built[1]["people"][::9]
    for rated in [person["known"] for person in people] + thumbs:
        got = opened.evaluate(
            "rated => { const vector = foldRatings(new Map(rated)); return [[...vector],"
            " Array.from({ length: count }, (_, movie) => dot(vector, factor(movie)))]; }",
            rated,
        )
        wanted = fold_in(factors, rated, reg, alpha)
        assert np.abs(wanted).max() > 0.01
        assert np.abs(got[0] - wanted).max() < 1e-8  # 1e-4 is promised
        assert np.abs(got[1] - factors @ wanted).max() < 1e-8
    for person in people:  # half precision moves no more than the last place
        seen, n = [m for m, _ in person["known"]] + person["seen"], len(person["listed"])
        mine = best(factors @ fold_in(factors, person["known"], reg, alpha), seen, n)
        overlaps.append(len({*mine} & {*person["listed"]}) / n)
    assert min(overlaps) >= 0.9


def test_blend_and_ndcg_are_the_courses(opened, built):
    people, means = built[1]["people"], {"its own order": [], "LLM, history": []}
    for person in people[:20]:
        for weight in (0, 0.3, 0.5, 1):
            lists = [person["listed"], person["orders"][0]["order"], weight]
            got = opened.evaluate("([a, b, weight]) => blend(a, b, weight)", lists)
            assert got == evaluation.blend(*lists)
    for person in (p for p in people if not p["core"]):
        liked = [movie for movie, stars in person["hidden"] if stars >= 4]
        for name, order in zip(
            means, (person["listed"], person["orders"][0]["order"]), strict=True
        ):
            got = opened.evaluate("([order, liked]) => ndcg(order, new Set(liked))", [order, liked])
            means[name].append(got)
    for name, values in means.items():  # the table of notebook 06
        assert not values or np.mean(values) == pytest.approx(built[1]["measured"][name], abs=1e-6)


def test_a_person_by_keyboard(opened, built):
    person = next(p for p in built[1]["people"] if p["id"] == 12)
    order = person["orders"][0]["order"]

    def shown(where="#right"):
        return opened.eval_on_selector_all(f"{where} li", ROWS)

    assert opened.evaluate("scrollY") == 0
    assert opened.is_visible("#simulated") == built[1]["simulated"]
    assert shown() == order and shown("#left") == person["listed"]
    text = opened.inner_text("#right")
    assert all(reason in text for reason in person["orders"][0]["reasons"])
    assert opened.inner_text("#summary") == person["summary"]
    opened.focus("#claims summary")
    opened.keyboard.press("Enter")
    assert all(claim in opened.inner_text("#claims") for _, claim, _, _ in person["claims"])

    opened.focus("#weight")
    opened.keyboard.press("Home")
    assert shown() == person["listed"]
    for _ in range(5):
        opened.keyboard.press("ArrowRight")
    assert shown() == evaluation.blend(person["listed"], order, 0.5)

    before = shown()
    opened.focus("#right li:nth-child(2) .up")
    opened.keyboard.press("Enter")
    opened.keyboard.press("Shift+Tab")  # the focus stayed: to the thumb down of the row above
    opened.keyboard.press("Space")
    factors, reg, alpha = factors_of(built[1])
    thumbed = opened.evaluate("[...state.thumbs]")
    assert [stars for _, stars in thumbed] == [5, -5] and thumbed[0][0] == before[1]
    known = person["known"] + thumbed
    seen = [movie for movie, _ in known] + person["seen"]
    assert shown("#left") == best(factors @ fold_in(factors, known, reg, alpha), seen, 10)
    assert "new" in opened.inner_text("#right") and opened.inner_text("#status").startswith("Thumb")
    for _ in range(2):
        opened.press("#given button", "Enter")
    assert shown() == before and shown("#left") == person["listed"]
    opened.focus("#cards :checked")
    opened.keyboard.press("ArrowDown")
    following = built[1]["people"][built[1]["people"].index(person) + 1]
    assert shown("#left") == following["listed"] and opened.input_value("#weight") == "1"


def test_ten_ratings_of_ones_own_by_keyboard(opened, built):
    factors, reg, alpha = factors_of(built[1])
    opened.focus("#tab-people")
    opened.keyboard.press("ArrowRight")
    everybody = opened.eval_on_selector_all("#list li", ROWS)
    assert everybody == built[1]["famous"][:10]
    for place in range(1, 8):
        opened.press(f"#tiles li:nth-child({place}) .{'down' if place == 3 else 'up'}", "Enter")
    opened.fill("#find", "toy story")
    for _ in range(3):
        opened.press("#list li:nth-child(2) .up", "Space")
    mine = opened.evaluate("[...state.mine]")
    assert len(mine) == 10 and opened.inner_text("#progress").startswith("10 rated")
    scores = factors @ fold_in(factors, mine, reg, alpha)
    listed = opened.eval_on_selector_all("#list li", ROWS)
    assert listed == best(scores, [movie for movie, _ in mine], 10) != everybody
    bars = "all => all.map(bar => Number(bar.dataset.score))"
    assert opened.eval_on_selector_all("#list .bar", bars) == pytest.approx(scores[listed])
    opened.press("#lesser", "Space")
    excluded = [movie for movie, _ in mine] + built[1]["famous"]
    assert opened.eval_on_selector_all("#list li", ROWS) == best(scores, excluded, 10)
    assert "No language model has read your ratings" in opened.inner_text("#own")
    opened.press("#near button", "Enter")
    assert opened.is_visible("#people") and opened.inner_text("#name").startswith("A fan of")


def test_every_width_and_colour_scheme(opened, browser, built):
    name, grounds = "sample" if built[1]["simulated"] else "release", set()
    for width in (1400, 390):
        for scheme in ("light", "dark"):
            opened.set_viewport_size({"width": width, "height": 900})
            opened.emulate_media(color_scheme=scheme)
            grounds.add(opened.evaluate("getComputedStyle(document.body).backgroundColor"))
            for tab in ("people", "own"):
                opened.click(f"#tab-{tab}")
                wide = (
                    "[...document.querySelectorAll('body, body *:not(.unseen):not(svg *)')].filter("
                )
                wide += "one => one.scrollWidth > one.clientWidth + 1 && one.clientWidth)"
                assert opened.evaluate(f"{wide}.map(one => one.outerHTML.slice(0, 99))") == []
                shoot(opened, f"page_{name}_{tab}_{width}_{scheme}", full_page=True)
    assert len(grounds) == 2
    refused = "fetch('https://example.org/').then(() => 'sent', () => 'refused')"
    assert opened.evaluate(refused) == "refused"
