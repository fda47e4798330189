"""The app's page in a browser: choose a user, move the sliders, give thumbs, by keyboard."""

from __future__ import annotations

import app
import course
import pytest
from browsers import offline_environment, serving, shoot

from helpers import data

pytestmark = [pytest.mark.slow, pytest.mark.browser]
ROWS = ".course-app .widget-hbox:has(> .widget-toggle-buttons) .widget-html-content"
PAINT = """all => all.map(one => ['color', 'backgroundColor'].map(
    name => getComputedStyle(one)[name].match(/[0-9.]+/g).slice(0, 3).map(part => part / 255)))"""
wcag = pytest.importorskip("wcag_contrast_ratio", reason="needs pip install -e '.[tools]'")


@pytest.fixture(scope="module")
def pipeline(browser, sample, settings, sample_results):
    """The same app without its widgets."""
    retriever = app.load_retriever(sample, settings)
    ratings, movies = (data.load_pandas(sample, name) for name in ("ratings", "movies"))
    return app.Pipeline(retriever, ratings, movies, settings)


@pytest.fixture(scope="module")
def voila(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("voila")
    options = ["--no-browser", "--port={port}", "--Voila.ip=127.0.0.1"]
    environment = offline_environment(folder)
    with serving(course.app_command(options), "", folder, environment, "") as server:
        yield server


def rows(page) -> list[str]:
    return [text.replace("\n", " ") for text in page.locator(ROWS).all_inner_texts()]


def wanted(pipeline, **choice) -> list[str]:
    """Return the lines as the page writes them."""
    lines = []
    for row in pipeline.ranked(**choice).itertuples():
        llm = "not asked" if row.llm is app.pd.NA else row.llm
        thumb = f", your thumb: {row.thumb}" if row.thumb else ""
        lines.append(
            f"{row.rank}. {row.title} (retriever {row.retriever}, LLM {llm}{thumb}) "
            f"{row.reason or 'no reason given'}"
        )
    return lines


def settle(page, pipeline, **choice) -> None:
    """Wait until the page shows what the function gives for a choice, and check every line."""
    lines = wanted(pipeline, **choice)
    page.wait_for_function(
        "([where, first]) => [...document.querySelectorAll(where)].map(one => one.innerText"
        ".replace('\\n', ' ')).join('|') === first",
        arg=[ROWS, "|".join(lines)],
    )
    assert rows(page) == lines and len(lines) == 10


def test_the_app_from_user_to_thumbs(voila, pipeline, page, browser):
    asked = len(browser.refused)
    page.goto(f"{voila.url}/", timeout=90_000)
    page.wait_for_selector(".course-app", timeout=90_000)
    first = pipeline.recorded_users()[0]
    settle(page, pipeline, user=first, weight=0.5)
    text = page.inner_text("body")
    assert "SIMULATED" in text  # says which data
    person = pipeline.person(first)
    assert person.liked.title[0] in text and person.profile.splitlines()[0][:60] in text
    shoot(page, "app", full_page=True)

    # Another user, chosen in the list; Tab then goes on to the sliders.
    page.locator(".course-app select").select_option(label="12 (replies stored)")
    settle(page, pipeline, user=12, weight=0.5)
    page.locator(".course-app select").focus()
    page.keyboard.press("Tab")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    settle(page, pipeline, user=12, weight=1.0)
    page.keyboard.press("Home")
    settle(page, pipeline, user=12, weight=0.0)
    # Thumbs: the last movie up, then the one that is now second down.
    plain = pipeline.ranked(12, weight=0.0)
    up = plain.movieId.tolist()[9]
    page.locator(ROWS).nth(9).scroll_into_view_if_needed()
    page.get_by_role("button", name="up").nth(9).press("Enter")
    settle(page, pipeline, user=12, weight=0.0, up=[up])
    down = pipeline.ranked(12, weight=0.0, up=[up]).movieId.tolist()[1]
    page.get_by_role("button", name="down").nth(1).press("Space")
    settle(page, pipeline, user=12, weight=0.0, up=[up], down=[down])
    assert "your thumb: up" in rows(page)[0] and "your thumb: down" in rows(page)[9]
    for ink, ground in page.eval_on_selector_all(".course-app button", PAINT):
        assert wcag.rgb(ink, ground) >= 4.5
    shoot(page, "app_thumbs", full_page=True)
    page.get_by_role("button", name="none").nth(0).press("Enter")
    settle(page, pipeline, user=12, weight=0.0, down=[down])
    page.get_by_role("button", name="none").nth(9).press("Enter")
    settle(page, pipeline, user=12, weight=0.0)

    # A user without stored replies: it is said, and the retriever's order stands.
    silent = next(u for u in pipeline.retriever.factors.users if u not in pipeline.recorded_users())
    page.locator(".course-app select").select_option(label=str(silent))
    settle(page, pipeline, user=int(silent), weight=0.0)
    assert "no reply is stored for this user" in page.inner_text(".course-app .notice")
    shoot(page, "app_no_reply", full_page=True)
    # Voila's own template asks a content network for icons; all of the above worked without it.
    assert all("fontawesome" in address for address in browser.refused[asked:])
