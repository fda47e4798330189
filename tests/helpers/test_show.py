"""What a lesson shows is escaped, says what is missing, and draws what it says."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from helpers import data, show, story

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def shown(monkeypatch):
    """What was displayed, each as a dictionary of MIME types."""
    outputs: list[dict] = []

    def display(thing, raw=False):
        known = {"image/svg+xml": "_repr_svg_", "text/markdown": "_repr_markdown_"}
        found = {
            kind: getattr(thing, name)()
            for kind, name in known.items()
            if not raw and hasattr(thing, name)
        }
        outputs.append(thing if raw else found)

    monkeypatch.setattr(show, "display", display)
    return outputs


def test_a_table_escapes_text_and_rounds(shown):
    frame = pd.DataFrame({"title": [HOSTILE], "score": [0.12345]}, index=pd.Index(["row"]))
    show.table(frame, f"caption {HOSTILE}", digits=2)
    show.table(frame, index=False)
    page = shown[0]["text/html"]
    assert "<script>" not in page and "0.12" in page and "0.123" not in page and "row" in page
    assert "row</th>" not in shown[1]["text/html"] and "row" not in shown[1]["text/plain"]


def test_a_named_index_is_a_column_like_the_others(shown):
    show.table(pd.DataFrame({"x": [1.0]}, index=pd.Index([0.05], name="reg")), digits=2)
    assert "0.05" in shown[0]["text/html"] and "0.050" not in shown[0]["text/html"]
    assert shown[0]["text/plain"].split() == ["reg", "x", "0.05", "1.00"]


def test_the_same_table_has_the_same_html(shown):
    for _ in range(2):
        show.table(pd.Series([1.0], name="x"), "same")
    assert shown[0] == shown[1]


def test_a_reply_is_markdown_without_html_or_formulas(shown):
    show.reply(f"**bold** {HOSTILE}\n\nfor $5 and $6", "model")
    text = shown[0]["text/markdown"]
    assert "> **bold**" in text and "<script>" not in text
    assert r"\$5 and \$6" in text and text.count("\n> ") == 3
    show.reply(None, "model")
    assert "nothing" in shown[1]["text/markdown"]


def test_the_pipeline_lights_one_box(shown):
    show.pipeline(lit=4)
    show.pipeline()
    lit, dark = (output["image/svg+xml"] for output in shown)
    before = lit[: lit.index("04 A: profile</text>")]
    assert lit.count("#0072B2") == 1 and "#0072B2" in before[before.rindex("<rect") :]
    assert "this is 04" in lit and "#0072B2" not in dark


RATED = pd.DataFrame({"movieId": [1, 2], "title": ["Emma (1996)", HOSTILE], "rating": [5.0, 3.5]})
CLAIMS = pd.DataFrame(
    [("genres", "Romance", [1, 2], "confirmed"), ("eras", "1880s", [1], "flagged")],
    columns=["field", "claim", "movie_ids", "verdict"],
)
RANKED = pd.DataFrame(
    {"movieId": [8, 9, 7], "title": ["H", "I", "G"], "reason": [HOSTILE, "fits", "{slope}"]}
)


def test_a_story_joins_both_orders_and_strikes_what_failed(shown):
    show.story(RATED, CLAIMS, RANKED, retriever=[7, 8, 9], support={"Thief (1981)": 1})
    page = shown[0]["text/html"]
    assert "<script>" not in page and "<s>1880s</s>" in page and "<b>Romance</b>" in page
    assert "Thief (1981), <b>1 rating</b>" in page and "(B), ranked by the LLM</h4>" in page
    lines = re.findall(r"M0 (\d+) L100 (\d+)", page)
    assert lines == [("150", "50"), ("250", "150"), ("50", "250")]
    assert page.count("up 1") == 2 and page.count("down 2") == 1 and page.count("<svg") == 1


def test_a_story_says_what_is_missing(shown):
    show.story(RATED)
    page = shown[0]["text/html"]
    assert "notebook 04" in page and "notebook 05" in page and "article" not in page
    show.story(RATED, CLAIMS, RANKED, retriever=[7, 8])  # another list: nothing moves
    assert shown[1]["text/html"].count("same place") == 3


def test_a_story_is_recorded_for_user_12_of_the_sample(shown, sample, settings):
    assert story.recorded(12, sample, settings) == (12, "")
    user, notice = story.recorded(10**6, sample, settings)
    assert user != 10**6 and "is shown instead" in notice
    page = shown[0]["text/html"]
    assert "Comedy and Romance" in page


def test_a_learners_own_list_is_found_and_names_who_ranked_it(shown, sample, tmp_path, monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path))
    release = sample._replace(verified=True, simulated=False)
    ranked = RANKED.assign(source="retriever (no usable LLM reply)", reason="")
    proposed = pd.DataFrame({"userId": 12, "list": "implicit ALS", "movieId": [7, 8, 9]})
    data.save_result(ranked, "05_ranked_list_user_12", release, published=False)
    data.save_result(proposed, "03_candidates", release, published=False)
    data.save_result(proposed.assign(userId=5), "03_candidates", release)
    story.recorded(12, release)
    page = shown[0]["text/html"]
    assert "(B), ranked by the retriever</h4>" in page and ">nan<" not in page
    assert page.count("up 1") == 2 and page.count("down 2") == 1
