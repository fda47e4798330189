"""The app's tables apart from its widgets, then the widgets apart from a browser."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from misbehaving_server import completion

from helpers import als, candidates, data, llm, prompts, ranking, replies
from research import app


@pytest.fixture(scope="module")
def retriever(spark, sample, settings, sample_results):
    tuned = data.read_result("03_implicit", sample, settings).iloc[0]
    reg, alpha = float(tuned.reg), float(tuned.alpha)
    train = data.split(data.load(spark, sample).ratings, seed=app.SEED)[0].cache()
    model = als.make_als(int(tuned["rank"]), reg, seed=app.SEED, implicit=True, alpha=alpha)
    rows = train.toPandas()[["userId", "movieId", "rating"]]
    return app.Retriever(als.factors(model.fit(train)), rows, reg, alpha)


@pytest.fixture(scope="module")
def tables(sample):
    return data.load_pandas(sample, "ratings"), data.load_pandas(sample, "movies")


@pytest.fixture
def pipeline(retriever, tables, settings):
    return app.Pipeline(retriever, *tables, settings)


@pytest.fixture
def silent(retriever, tables, settings):
    """No reply is stored."""
    return app.Pipeline(retriever, *tables, dataclasses.replace(settings, llm_mode="none"))


def test_the_training_ratings_fold_into_sparks_own_factor(pipeline, retriever):
    for user in retriever.factors.users[::25].tolist():
        own = retriever.factors.user_factors[np.searchsorted(retriever.factors.users, user)]
        assert pipeline.factor(user) == pytest.approx(own, abs=1e-6)


def test_fold_in_by_hand():
    """One factor: (sum y^2 + w y^2 + reg n) x = (1 + w) y, by the definition."""
    got = app.fold_in(np.array([[2.0], [1.0]]), [0], [5.0], reg=0.1, alpha=2.0)
    assert got == pytest.approx([(1 + 10) * 2 / (5 + 10 * 4 + 0.1)])
    both = app.fold_in(np.array([[2.0], [1.0]]), [0, 1], [5.0, -5.0], reg=0.1, alpha=2.0)
    assert both == pytest.approx([(1 + 10) * 2 / (5 + 10 * 4 + 10 + 0.1)])
    with pytest.raises(ValueError, match="above 0"):
        app.fold_in(np.eye(2), [0], [-5.0], reg=0.1, alpha=1.0)


def test_a_thumb_moves_the_scores_of_the_movie_it_is_for(pipeline, retriever):
    movie = pipeline.candidates(12).movieId[4]
    row = retriever.factors.movie_factors[np.searchsorted(retriever.factors.movies, movie)]
    plain, up, down = (
        row @ pipeline.factor(12, **thumbs) for thumbs in ({}, {"up": [movie]}, {"down": [movie]})
    )
    assert down < plain < up


def test_stored_replies_come_first_and_rank_as_notebook_05_does(pipeline, sample, settings):
    stored = pipeline.recorded_users()
    assert stored == [3, 12, 41, 77, 98, 140] and pipeline.users()[: len(stored)] == stored
    assert sorted(pipeline.users()) == pipeline.retriever.factors.users.tolist()
    person = pipeline.person(12)
    first = pipeline.candidates(12).movieId.tolist()
    assert sorted(person.llm_order) == sorted(first) and len(person.reasons) == 10
    assert person.notice.count("an LLM reply, recorded, by claude") == 2
    shown = prompts.shuffled(first, seed=12)
    messages = prompts.ranking_prompt(
        person.profile, ranking.letters(10), pipeline._named.loc[shown].reset_index()
    )
    body = {"messages": messages, "response_format": llm.response_format(ranking.RankingReply)}
    reply = replies.CommittedStore(settings.replies_dir).get(replies.request_key(body))
    told = ranking.read_ranking(reply.response["choices"][0]["message"]["content"], 10)
    assert person.llm_order == [shown[position] for position in told.order]


def test_the_blend_runs_from_the_retriever_to_the_llm(pipeline):
    ends = [pipeline.ranked(12, weight=weight).movieId.tolist() for weight in (0, 0.5, 1)]
    assert ends[0] == pipeline.candidates(12).movieId.tolist()
    assert ends[2] == pipeline.person(12).llm_order
    assert ends[1] == ranking.blend(ends[0], ends[2], 0.5) and ends[0] != ends[2]


def test_support_hides_and_refills_and_the_new_ones_follow_the_llms(pipeline):
    wanted = int(pipeline.candidates(12).support.quantile(0.6))
    table = pipeline.ranked(12, support=wanted, weight=1)
    assert (table.support >= wanted).all() and len(table) == 10
    fresh = table.llm.isna()
    assert 0 < fresh.sum() < 10 and fresh.is_monotonic_increasing  # a block at the end
    assert table.retriever[fresh].is_monotonic_increasing
    old = table.movieId[~fresh].tolist()
    assert old == [m for m in pipeline.person(12).llm_order if m in old]
    with pytest.raises(candidates.NoCandidatesError):
        pipeline.ranked(12, support=10**6)


def test_thumbs_go_first_and_last_and_the_rest_follows_the_new_factor(pipeline, retriever):
    plain = pipeline.ranked(12, weight=0)
    up, down = int(plain.movieId[8]), int(plain.movieId[0])
    table = pipeline.ranked(12, weight=0, up=[up], down=[down])
    assert table.movieId.iloc[[0, -1]].tolist() == [up, down]
    assert table.thumb.tolist() == ["up", *[""] * 8, "down"]
    assert sorted(table.movieId) == sorted(plain.movieId)
    factor = pipeline.factor(12, [up], [down])
    rows = np.searchsorted(retriever.factors.movies, table.movieId[1:-1])
    assert (np.diff(np.round(retriever.factors.movie_factors[rows] @ factor, 5)) <= 0).all()
    assert pipeline.ranked(12, weight=0).equals(plain)  # nothing is remembered


def test_without_a_reply_the_retriever_stands_and_it_is_said(silent):
    assert silent.recorded_users() == []
    person = silent.person(12)
    assert person.llm_order is None and "retriever's order is kept" in person.notice
    assert "genre" in person.profile and person.reasons == {}
    for weight in (0, 1):
        table = silent.ranked(12, weight=weight)
        assert table.movieId.tolist() == silent.candidates(12).movieId.tolist()
        assert table.llm.isna().all()


def test_a_look_at_a_user_sends_and_notes_nothing(retriever, tables, settings, tmp_path):
    shutil.copytree(settings.replies_dir, tmp_path / "data" / "replies")
    live = dataclasses.replace(
        settings, root=tmp_path, llm_mode="live", llm_base_url="http://127.0.0.1:9/v1",
        llm_model="m", llm_api_key="k",
    )  # fmt: skip
    other = app.Pipeline(retriever, *tables, live)
    assert "no reply is stored" in other.person(5).notice
    assert other.person(12).llm_order is not None
    assert not (tmp_path / "data" / "cache" / "pending.jsonl").exists()


@pytest.mark.parametrize("text", ["I cannot do that.", "", '{"summary": "x"}'])
def test_a_stored_reply_that_is_no_profile_is_said(retriever, tables, settings, tmp_path, text):
    home = dataclasses.replace(settings, root=tmp_path)
    other = app.Pipeline(retriever, *tables, home)
    messages = prompts.profile_prompt(*other._taste(5))
    body = {"messages": messages, "response_format": llm.response_format(prompts.Profile)}
    with replies.LocalStore(home.cache_dir / "replies.jsonl") as store:
        store.put(body, completion(text), model="m")
    other = app.Pipeline(retriever, *tables, home)
    assert other.recorded_users() == [5]  # one's own replies count
    person = other.person(5)
    assert person.llm_order is None and "genre" in person.profile
    assert person.notice.startswith("No LLM profile and no LLM ranking (the answer")


def test_a_stored_profile_in_a_fence_is_read_and_names_its_model(
    retriever, tables, settings, tmp_path
):
    home = dataclasses.replace(settings, root=tmp_path)
    other = app.Pipeline(retriever, *tables, home)
    messages = prompts.profile_prompt(*other._taste(5))
    body = {"messages": messages, "response_format": llm.response_format(prompts.Profile)}
    lists = '"genres": [], "eras": [], "themes": [], "dislikes": []'
    text = f'Here:\n```json\n{{"summary": "Quiet dramas.", {lists}}}\n```'
    with replies.LocalStore(home.cache_dir / "replies.jsonl") as store:
        store.put(body, completion(text) | {"model": "own"}, model="own")
    person = app.Pipeline(retriever, *tables, home).person(5)
    assert person.profile.startswith("Quiet dramas.")
    assert "an LLM reply, stored, by own" in person.notice and "no reply is" in person.notice


def test_a_committed_reply_comes_before_ones_own(retriever, tables, settings, tmp_path):
    shutil.copytree(settings.replies_dir, tmp_path / "data" / "replies")
    home = dataclasses.replace(settings, root=tmp_path)
    other = app.Pipeline(retriever, *tables, home)
    before = other.person(12).profile
    messages = prompts.profile_prompt(*other._taste(12))
    body = {"messages": messages, "response_format": llm.response_format(prompts.Profile)}
    with replies.LocalStore(home.cache_dir / "replies.jsonl") as store:
        store.put(body, completion("{}"), model="own")
    person = app.Pipeline(retriever, *tables, home).person(12)
    assert person.profile == before and "recorded, by claude" in person.notice


def test_the_factors_are_kept_and_read_without_spark(retriever, sample, settings, tmp_path,
                                                     monkeypatch, spark):  # fmt: skip
    home = dataclasses.replace(settings, root=tmp_path)
    tuned = data.read_result("03_implicit", sample, settings)
    monkeypatch.setattr(app.data, "read_result", lambda *_: tuned)
    first = app.load_retriever(sample, home)
    assert spark.range(1).count() == 1  # a session that was there before is left alone
    monkeypatch.setattr(app, "get_spark", lambda *_: pytest.fail("Spark was started"))
    again = app.load_retriever(sample, home)
    for name in app.CACHE_COLUMNS:
        assert np.array_equal(getattr(first.factors, name), getattr(again.factors, name))
        assert np.array_equal(getattr(first.factors, name), getattr(retriever.factors, name))
    pd.testing.assert_frame_equal(first.train, again.train, check_dtype=False)
    (kept,) = (home.cache_dir / "app").glob("*.npz")
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(pytest.fail.Exception):
        app.load_retriever(sample, home)  # damaged: made anew


def test_controls_show_what_the_pipeline_gives(pipeline):
    one = app.App(pipeline, 12)

    def check():
        table = pipeline.ranked(**one.choice())
        assert [row.value for row in one.rows] == [app.row_html(r) for r in table.itertuples()]

    check()
    one.weight.value = 1.0
    check()
    one.support.value = 5
    check()
    one.press(3, "up")
    one.press(9, "down")
    check()
    assert len(one.choice()["up"]) == len(one.choice()["down"]) == 1
    one.press(0, "up")  # the same thumb again takes it back
    assert one.choice()["up"] == []
    one.clear.click()
    assert one.choice()["down"] == []
    one.buttons[0][1].click()
    one.user.value = 3  # another user begins without thumbs
    assert one.choice()["down"] == [] and one.choice()["user"] == 3
    check()


def test_a_user_without_likes_or_movies_gets_a_sentence(pipeline, monkeypatch):
    one = app.App(pipeline, 12)

    def nobody(*_, **__):
        raise candidates.NoCandidatesError("This user liked <b>nothing</b>.")

    monkeypatch.setattr(pipeline, "ranked", nobody)
    one.weight.value = 0.2
    assert "liked &lt;b&gt;nothing" in one.notice.value and one.likes.value == ""
    assert all(row.value == "" for row in one.rows)
    assert all(button.disabled for pair in one.buttons for button in pair)
    one.press(0, "up")  # no movie, no thumb
    assert one.choice()["up"] == []


def test_titles_and_reasons_are_text_not_markup(pipeline):
    row = next(pipeline.ranked(12).itertuples())
    row = row._replace(title="<script>x</script>", reason="<b>bold</b>")
    shown = app.row_html(row)
    assert "<script>" not in shown and "<b>bold" not in shown and "&lt;b&gt;bold" in shown


def test_the_page_says_what_it_needs(settings, monkeypatch):
    def missing(*_):
        raise data.DataError("03_implicit.csv is missing: run notebook 03 first.")

    monkeypatch.setattr(app, "load_retriever", missing)
    assert "run notebook 03 first" in app.page(settings).value
