"""Top ten for all users at once, beside one user after the other, in Spark and with arrays.

In Spark it is the path that notebook 03 writes out: the movies that a user has not rated, scored by
the model, the best ten. Ours scores all users in one product of two factor matrices.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from pyspark.sql import functions as F  # noqa: N812

from helpers import als, candidates, data

N, IN_SPARK = 10, 12  # movies a list; users of the slow baseline


@pytest.fixture(scope="module")
def world(session):
    tables = data.load(session, data.locate())
    ratings, movies = tables.ratings.cache(), tables.movies.select("movieId").cache()
    train = data.split(ratings)[0].cache()
    model = als.make_als(10, 0.2).fit(train)
    recommender = candidates.Recommender(als.factors(model), train.toPandas(), ratings.toPandas())
    users = sorted(row.userId for row in train.select("userId").distinct().collect())

    def in_spark(user: int) -> list[int]:
        rated = ratings.where(F.col("userId") == user).select("movieId")
        unseen = movies.join(rated, "movieId", "left_anti").withColumn("userId", F.lit(user))
        scored = model.transform(unseen).orderBy(F.desc("prediction"), "movieId")
        return [row.movieId for row in scored.limit(N).collect()]

    # Scores that agree at five decimals may change places. The first calls warm the JVM, too.
    lists = recommender.recommend(n=N).groupby("userId")["movieId"].agg(set)
    for user in users[:4]:
        assert len(lists[user] & set(in_spark(user))) >= N - 1
    return SimpleNamespace(recommender=recommender, users=users, in_spark=in_spark)


def bench_candidates_in_spark(versus, world):
    versus(
        "candidates, beside Spark user by user",
        lambda: world.recommender.recommend(n=N),
        lambda: [world.in_spark(user) for user in world.users[:IN_SPARK]],
        rounds=3, parts=(len(world.users) / 1000, IN_SPARK / 1000),
    )  # fmt: skip


def bench_candidates_in_arrays(versus, world):
    versus(
        "candidates, beside the same arrays user by user",
        lambda: world.recommender.recommend(n=N),
        lambda: [world.recommender.recommend([user], N) for user in world.users],
        rounds=3, parts=(len(world.users) / 1000, len(world.users) / 1000),
    )  # fmt: skip
