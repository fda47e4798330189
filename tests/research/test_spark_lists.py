"""Candidates of all users inside Spark: the same lists, and nothing of users collected."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from helpers.als import Factors
from helpers.candidates import NoCandidatesError, Recommender
from research import parquet, spark_lists
from research.spark_lists import LISTS_SCHEMA, recommend_all, save_lists


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


def test_lists_made_inside_spark_are_those_of_the_recommender(spark, monkeypatch):
    model, factors, train, ratings = tables(spark, 40)
    monkeypatch.setattr(spark_lists, "SCORES_AT_ONCE", 100)  # blocks of three users
    # Movies that were never rated, seen by users the model does not know, change nothing.
    seen = ratings.union(spark.createDataFrame([(5, 999, 1.0), (4, 11, 1.0)], ratings.schema))
    got = recommend_all(model, ratings, seen, 6, buckets=3).toPandas()
    got = got.sort_values(["userId", "rank"], ignore_index=True)
    wanted = Recommender(factors, train, train).recommend(n=6)
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
        lists = recommend_all(model, ratings, ratings, 6, buckets=2)
        rows[n_users] = save_lists(lists, tmp_path / str(n_users), buckets=2).rows["candidates"]
        most[n_users] = sum(taken)
        assert max(taken) == len(factors.movies)  # their factors, once
    assert most[35] == most[140] < 50
    assert rows[140] > 3.5 * rows[35]


def test_saved_lists_are_read_for_one_user(spark, tmp_path):
    model, factors, train, ratings = tables(spark, 40)
    lists = recommend_all(model, ratings, ratings, 6, buckets=4)
    assert save_lists(lists, tmp_path, buckets=4).rows["candidates"] == lists.count()
    files = list((tmp_path / "candidates").glob("bucket=*/*.parquet"))
    assert len(files) == 4  # the lists were not moved between machines again
    wanted = Recommender(factors, train, train).recommend([11], n=6)
    got = parquet.read_table(spark, tmp_path, "candidates", LISTS_SCHEMA, users=[11], buckets=4)
    got = got.orderBy("rank").toPandas()
    pd.testing.assert_frame_equal(got, wanted, check_dtype=False, rtol=1e-5)
    with pytest.raises(NoCandidatesError, match="No user has a movie left"):
        save_lists(lists.where("rank > 6"), tmp_path / "none")
