"""The app's tables apart from its widgets, then the widgets apart from a browser."""

from __future__ import annotations

import dataclasses
import shutil

import app
import numpy as np
import pytest
from misbehaving_server import completion

from helpers import als, candidates, data, llm, prompts, ranking, replies


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
def home(settings, tmp_path):
    """A course folder without any reply."""
    return dataclasses.replace(settings, root=tmp_path)


def store_profile(retriever, tables, home, text):
    """Store an own reply to the profile prompt of user 5 and return the pipeline."""
    rated = candidates.history(*tables, 5)
    taste = rated, candidates.liked(rated), candidates.disliked(rated)
    messages = prompts.profile_prompt(*taste)
    body = {"messages": messages, "response_format": llm.response_format(prompts.Profile)}
    with llm.Stores(home).local as store:
        store.put(body, completion(text) | {"model": "own"}, model="own")
    return app.Pipeline(retriever, *tables, home)


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


def test_a_thumb_moves_the_scores_of_the_movie_it_is_for(pipeline, retriever):
    movie = pipeline.candidates(12).movieId[4]
    row = retriever.factors.movie_factors[np.searchsorted(retriever.factors.movies, movie)]
    plain, up, down = (
        row @ pipeline.factor(12, **thumbs) for thumbs in ({}, {"up": [movie]}, {"down": [movie]})
    )
    assert down < plain < up


def test_stored_replies_rank_as_notebook_05_does(pipeline, tables, settings):
    assert pipeline.recorded_users() == [3, 12, 41, 77, 98, 140]
    person = pipeline.person(12)
    first = pipeline.candidates(12).movieId.tolist()
    assert sorted(person.llm_order) == sorted(first) and len(person.reasons) == 10
    assert person.notice.count("LLM reply, recorded, by claude") == 2
    shown = prompts.shuffled(first, seed=12)
    movies = tables[1].set_index("movieId").loc[shown].reset_index()
    messages = prompts.ranking_prompt(person.profile, ranking.letters(10), movies)
    body = {"messages": messages, "response_format": llm.response_format(ranking.RankingReply)}
    reply = replies.CommittedStore(settings.replies_dir).get(replies.request_key(body))
    told = ranking.read_ranking(reply.response["choices"][0]["message"]["content"], 10)
    assert person.llm_order == [shown[position] for position in told.order]


def test_the_blend_runs_from_the_retriever_to_the_llm(pipeline):
    ends = [pipeline.ranked(12, weight=weight).movieId.tolist() for weight in (0, 0.5, 1)]
    assert ends[0] == pipeline.candidates(12).movieId.tolist()
    assert ends[2] == pipeline.person(12).llm_order
    assert ends[1] == ranking.blend(ends[0], ends[2], 0.5) and ends[0] != ends[2]


def test_thumbs_go_first_and_last_and_the_others_follow_the_new_factor(pipeline, retriever):
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


def test_without_a_reply_the_retriever_stands_and_it_is_said(retriever, tables, settings):
    silent = app.Pipeline(retriever, *tables, dataclasses.replace(settings, llm_mode="none"))
    assert silent.recorded_users() == []
    person = silent.person(12)
    assert person.llm_order is None and "retriever's order is kept" in person.notice
    assert "genre" in person.profile and person.reasons == {}
    table = silent.ranked(12, weight=1)
    assert table.movieId.tolist() == silent.candidates(12).movieId.tolist()
    assert table.llm.isna().all()


def test_a_look_at_a_user_sends_and_notes_nothing(retriever, tables, settings, home):
    shutil.copytree(settings.replies_dir, home.replies_dir)
    server = {"llm_base_url": "http://127.0.0.1:9/v1", "llm_model": "m", "llm_api_key": "k"}
    live = dataclasses.replace(home, llm_mode="live", **server)
    pipeline = app.Pipeline(retriever, *tables, live)
    assert "no reply is stored" in pipeline.person(5).notice
    assert pipeline.person(12).llm_order is not None
    assert not (home.cache_dir / "pending.jsonl").exists()


def test_ones_own_reply_counts_and_names_its_model(retriever, tables, home):
    lists = '"genres": [], "eras": [], "themes": [], "dislikes": []'
    text = f'Here:\n```json\n{{"summary": "Quiet dramas.", {lists}}}\n```'
    pipeline = store_profile(retriever, tables, home, text)
    assert pipeline.recorded_users() == [5]
    person = pipeline.person(5)
    assert person.profile.startswith("Quiet dramas.")
    assert "LLM reply, stored, by own" in person.notice and "no reply is" in person.notice


def test_a_stored_reply_that_is_no_profile_is_not_used(retriever, tables, home):
    person = store_profile(retriever, tables, home, "I cannot do that.").person(5)
    assert person.llm_order is None and "genre" in person.profile
    assert person.notice.startswith("Profile: no usable LLM reply")


def test_controls_show_what_the_pipeline_gives(pipeline):
    shown = app.App(pipeline, 12)

    def press(place, thumb):
        shown.ranked.children[place].children[0].value = thumb

    def check():
        table = pipeline.ranked(**shown.choice())
        lines = [line.children[1].value for line in shown.ranked.children]
        assert lines == [app.row_html(row) for row in table.itertuples()] and len(lines) == 10

    check()
    shown.weight.value = 1.0
    check()
    press(3, "up")
    press(9, "down")
    check()
    assert len(shown.choice()["up"]) == len(shown.choice()["down"]) == 1
    press(0, "")  # taken back
    assert shown.choice()["up"] == []
    shown.user.value = 3  # another user begins without thumbs
    assert shown.choice()["down"] == [] and shown.choice()["user"] == 3
    check()


def test_a_user_without_likes_or_movies_gets_a_sentence(pipeline, monkeypatch):
    shown = app.App(pipeline, 12)

    def nobody(*_, **__):
        raise candidates.NoCandidatesError("This user liked <b>nothing</b>.")

    monkeypatch.setattr(pipeline, "ranked", nobody)
    shown.weight.value = 0.2
    assert "liked &lt;b&gt;nothing" in shown.notice.value
    assert shown.about.value == "" and shown.ranked.children == ()


def test_titles_and_reasons_are_text_not_markup(pipeline):
    row = next(pipeline.ranked(12).itertuples())
    row = row._replace(title="<script>x</script>", reason="<b>bold</b>")
    shown = app.row_html(row)
    assert "<script>" not in shown and "<b>bold" not in shown and "&lt;b&gt;bold" in shown
