"""Candidates: nothing seen is recommended, remedies do what they say, dead ends are named."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from helpers import candidates
from helpers.als import Factors
from helpers.candidates import (
    NoCandidatesError,
    Recommender,
    Remedy,
    disliked,
    history,
    liked,
    popular,
    read_lists,
    recommend_all,
    save_lists,
    viewer,
)


@pytest.fixture
def world():
    random = np.random.default_rng(0)
    users, movies = np.array([1, 5, 9]), np.arange(10, 30)
    factors = Factors(
        users,
        movies,
        random.normal(size=(3, 4)).astype("float32"),
        random.normal(size=(20, 4)).astype("float32"),
    )
    pairs = [(u, m) for u in users for m in random.choice(movies, 8, replace=False)]
    train = pd.DataFrame(pairs, columns=["userId", "movieId"])
    return factors, train.assign(rating=random.integers(1, 6, len(train)).astype(float))


def test_the_list_is_the_best_unseen_movies(world):
    factors, train = world
    got = Recommender(factors, train, train).recommend(n=5)
    for place, user in enumerate(factors.users):
        seen = set(train.movieId[train.userId == user])
        scores = factors.movie_factors @ factors.user_factors[place]
        wanted = [m for m in factors.movies[np.argsort(-scores)] if m not in seen][:5]
        mine = got[got.userId == user]
        assert mine.movieId.tolist() == wanted and mine["rank"].tolist() == [1, 2, 3, 4, 5]


def test_one_user_gets_the_same_list_as_in_bulk(world):
    factors, train = world
    recommender = Recommender(factors, train, train)
    everyone = recommender.recommend(n=4)
    alone = recommender.recommend([5], n=4)
    wanted = everyone[everyone.userId == 5].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, wanted)
    two = recommender.recommend([9, 1], n=1)
    assert two.userId.tolist() == [9, 1]


def test_ties_go_to_the_lower_id():
    factors = Factors(np.array([1]), np.arange(5), np.ones((1, 1)), np.ones((5, 1)))
    train = pd.DataFrame({"userId": [1], "movieId": [0], "rating": [3.0]})
    assert Recommender(factors, train, train).recommend(n=2).movieId.tolist() == [1, 2]


def test_minimum_support_and_shrinkage(world):
    factors, train = world
    some = Recommender(factors, train, train, Remedy("m", min_support=2)).recommend(n=3)
    assert (some.support >= 2).all()
    plain = Recommender(factors, train, train).scores([5])
    shrunk = Recommender(factors, train, train, Remedy("s", shrinkage=3)).scores([5])
    n = train.groupby("movieId").size().reindex(factors.movies, fill_value=0).to_numpy()
    mean = train.rating[train.userId == 5].mean()
    free = np.isfinite(plain[0])
    wanted = mean + n / (n + 3) * (plain[0] - mean)
    np.testing.assert_allclose(shrunk[0][free], wanted[free], rtol=1e-5)


def test_popular_is_by_count_without_the_seen():
    train = pd.DataFrame({"userId": [1, 2, 3, 1, 2, 3], "movieId": [7, 7, 7, 8, 8, 9]})
    train["rating"] = 3.0
    got = popular(train, train, [3, 1], n=2)
    assert got.loc[got.userId == 3, "movieId"].tolist() == [8]
    assert got.loc[got.userId == 1, "movieId"].tolist() == [9]


def test_dead_ends_are_one_sentence(world):
    factors, train = world
    recommender = Recommender(factors, train, train)
    with pytest.raises(NoCandidatesError, match="User 2 is not in the model"):
        recommender.recommend([2])
    everything = pd.DataFrame({"userId": 5, "movieId": factors.movies})
    with pytest.raises(NoCandidatesError, match="rated already"):
        Recommender(factors, train, everything).recommend([5])
    with pytest.raises(ValueError, match="at least one"):
        recommender.recommend(n=0)


def test_history_likes_and_dislikes():
    movies = pd.DataFrame({"movieId": [1, 2, 3, 4], "title": list("abcd"), "genres": "Drama"})
    ratings = pd.DataFrame(
        {"userId": 1, "movieId": [1, 2, 3, 4], "rating": [5, 4, 4, 1.0], "timestamp": [1, 2, 3, 4]}
    )
    table = history(ratings, movies, 1)
    assert table.movieId.tolist() == [1, 3, 2, 4]
    assert table.deviation.tolist() == [1.5, 0.5, 0.5, -2.5]
    assert liked(table).movieId.tolist() == [1, 3, 2] and disliked(table).movieId.tolist() == [4]
    with pytest.raises(NoCandidatesError, match="no rating"):
        history(ratings, movies, 2)
    low = history(ratings.assign(rating=[1, 1, 2, 2.5]), movies, 1)
    with pytest.raises(NoCandidatesError, match="liked none of 4"):
        liked(low)


# --- all users, inside Spark ----------------------------------------------------------------------


def tables(spark, n_users: int, n_movies: int = 30, seed: int = 0):
    """A stand-in for an ALS model, with what it was trained on; users from 5 on in steps of 3."""
    random = np.random.default_rng(seed)
    users = 5 + 3 * np.arange(n_users)
    factors = Factors(
        users,
        np.arange(10, 10 + n_movies),
        random.normal(size=(n_users, 4)).astype("float32"),
        random.normal(size=(n_movies, 4)).astype("float32"),
    )
    pairs = random.random((n_users, n_movies)) < np.linspace(0.05, 0.5, n_movies)
    pairs[0] = True  # the first user has seen everything
    pairs[1] = False  # and the second nothing
    user, movie = np.nonzero(pairs)
    train = pd.DataFrame({"userId": users[user], "movieId": factors.movies[movie]})
    train["rating"] = random.integers(1, 11, len(train)) / 2

    def frame(ids, matrix):
        rows = [(int(i), [float(x) for x in row]) for i, row in zip(ids, matrix, strict=True)]
        return spark.createDataFrame(rows, "id int, features array<float>")

    class Model:
        userFactors = frame(users, factors.user_factors)  # noqa: N815
        itemFactors = frame(factors.movies, factors.movie_factors)  # noqa: N815

    rows = [(int(u), int(m), float(r)) for u, m, r in train.to_numpy()]
    ratings = spark.createDataFrame(rows, "userId int, movieId int, rating float")
    return Model(), factors, train, ratings


@pytest.mark.parametrize(
    "remedy",
    [Remedy("plain"), Remedy("support", min_support=9), Remedy("both", 5, 10.0)],
    ids=lambda remedy: remedy.name,
)
def test_lists_made_inside_spark_are_those_of_the_recommender(spark, remedy, monkeypatch):
    model, factors, train, ratings = tables(spark, 40)
    monkeypatch.setattr(candidates, "_SCORES_AT_ONCE", 100)  # blocks of three users
    # Movies that were never rated, seen by users the model does not know, change nothing.
    seen = ratings.union(spark.createDataFrame([(5, 999, 1.0), (4, 11, 1.0)], ratings.schema))
    got = recommend_all(model, ratings, seen, 6, remedy, buckets=3).toPandas()
    got = got.sort_values(["userId", "rank"], ignore_index=True)
    wanted = Recommender(factors, train, train, remedy).recommend(n=6)
    pd.testing.assert_frame_equal(got, wanted, check_dtype=False, rtol=1e-5)
    assert 5 not in set(got["userId"]) and (got["userId"] == 8).sum() == 6


def test_nothing_that_grows_with_the_users_is_collected(spark, tmp_path, monkeypatch):
    """Every way to the driver is watched; the rows that took one are the same for more users."""
    kind, taken = type(spark.range(1)), []

    def watch(name):
        real = getattr(kind, name)

        def watched(*arguments, **options):
            found = real(*arguments, **options)
            taken.append(len(found) if hasattr(found, "__len__") else 10**9)
            return found

        monkeypatch.setattr(kind, name, watched)

    for name in ("collect", "toPandas", "toArrow", "tail", "toLocalIterator"):
        watch(name)
    rows, most = {}, {}
    for n_users in (35, 140):
        model, factors, _, ratings = tables(spark, n_users)
        taken.clear()
        lists = recommend_all(model, ratings, ratings, 6, Remedy("pull", 0, 10.0), buckets=2)
        rows[n_users] = save_lists(lists, tmp_path / str(n_users), buckets=2).rows["candidates"]
        most[n_users] = sum(taken)
        assert max(taken) == len(factors.movies)  # their factors, once
    assert most[35] == most[140] < 50
    assert rows[140] > 3.5 * rows[35]


def test_saved_lists_are_read_for_one_user(spark, tmp_path):
    model, factors, train, ratings = tables(spark, 40)
    lists = recommend_all(model, ratings, ratings, 6, buckets=4)
    assert save_lists(lists, tmp_path, buckets=4).rows["candidates"] == lists.count()
    files = list((tmp_path / "a" / "candidates").glob("bucket=*/*.parquet"))
    assert len(files) == 4  # the lists were not moved between machines again
    wanted = Recommender(factors, train, train).recommend([11], n=6)
    got = read_lists(spark, tmp_path, users=[11]).orderBy("rank").toPandas()
    pd.testing.assert_frame_equal(got, wanted, check_dtype=False, rtol=1e-5)
    with pytest.raises(NoCandidatesError, match="lower the minimum support"):
        none = recommend_all(model, ratings, ratings, 6, Remedy("all hidden", 999))
        save_lists(none, tmp_path / "none")
    with pytest.raises(ValueError, match="at least 1"):
        recommend_all(model, ratings, ratings, 0)


@pytest.mark.parametrize(
    ("wanted", "shown", "why"),
    [
        (3, 3, ""),
        (12, 3, "User 12 has no rating in this data"),
        (2, 3, "User 2 has rated every movie that could be recommended"),
        (4, 3, "User 4 has no training rating"),
    ],
)
def test_the_viewer_is_one_to_whom_something_can_be_recommended(wanted, shown, why):
    train = pd.DataFrame({"userId": [2, 3], "movieId": [1, 2]})
    known = pd.DataFrame({"userId": [2, 2, 3, 3, 4, 5], "movieId": [1, 2, 2, 9, 9, 1]})
    user, sentence = viewer(wanted, train, known)
    assert user == shown
    assert why in sentence and bool(sentence) == bool(why)


def test_where_all_have_seen_all_there_is_no_viewer():
    known = pd.DataFrame({"userId": [1, 1, 2, 2], "movieId": [1, 2, 1, 2]})
    with pytest.raises(NoCandidatesError, match="Every user has rated every movie"):
        viewer(1, known, known)
