"""Candidate lists for users by the million, ranked and written inside Spark.

The same arithmetic as :class:`helpers.candidates.Recommender`, on blocks of users.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pyspark.ml.recommendation import ALSModel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from helpers.candidates import NoCandidatesError, best_rows
from research import parquet

LISTS_SCHEMA = "userId int, rank int, movieId int, score float, support int"
"""Columns of a table of candidates for all users, best first within a user."""
SCORES_AT_ONCE = 2_000_000
"""Scores in one block of users: about 50 MB with the copies made on the way."""


def recommend_all(
    model: ALSModel,
    train: DataFrame,
    seen: DataFrame,
    n: int = 100,
    *,
    buckets: int = parquet.BUCKETS,
) -> DataFrame:
    """Return the ``n`` best movies of every user in the model, with nothing of users collected.

    The movies' factors and support go through the driver to every executor (86,000 movies at rank
    64 are 22 MB); the users' factors, with what each has seen, stay in Spark. So the seen movies
    are excluded before the best are taken, which ``ALSModel.recommendForAllUsers`` cannot do.

    Args:
        model: a fitted ALS model; works on Spark Connect too.
        train: ratings the model was fitted on (``userId, movieId, rating``).
        seen: pairs (``userId, movieId``) never to recommend.
        n: length of a list; a user with fewer movies left gets a shorter one.
        buckets: user ``u`` is in the result's partition ``u % buckets``.
    """
    counts = train.groupBy(F.col("movieId").alias("id")).agg(F.count(F.lit(1)).alias("support"))
    movies = model.itemFactors.join(counts, "id", "left").fillna({"support": 0})
    movies = movies.toPandas().sort_values("id")
    ids, support = movies["id"].to_numpy(), movies["support"].to_numpy()
    factors = np.array(movies["features"].to_list(), dtype=np.float32)
    size = max(1, SCORES_AT_ONCE // max(1, len(ids)))

    def ranked(frames: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        """Rank the movies for users (``userId, features, seen``), a block at a time."""
        blocks = (frame.iloc[i : i + size] for frame in frames for i in range(0, len(frame), size))
        for users in blocks if len(ids) else ():
            scores = np.array(users["features"].to_list(), dtype=np.float32) @ factors.T
            scores[seen_places(users["seen"], ids)] = -np.inf
            yield best_rows(scores, users["userId"].to_numpy(), ids, support, n)

    marks = seen.groupBy("userId").agg(F.collect_set("movieId").alias("seen"))
    users = model.userFactors.select(F.col("id").alias("userId"), "features")
    placed = parquet.bucketed(users.join(marks, "userId", "left"), buckets)
    return placed.drop("bucket").mapInPandas(ranked, LISTS_SCHEMA)


def seen_places(seen: pd.Series, movies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of what each user has seen; movies without factors are left out."""
    pairs = seen.reset_index(drop=True).explode().dropna()
    ids = pairs.to_numpy(dtype=np.int64)
    columns = np.searchsorted(movies, ids).clip(max=len(movies) - 1)
    known = movies[columns] == ids
    return pairs.index.to_numpy()[known], columns[known]


def save_lists(
    lists: DataFrame, folder: Path | str, *, buckets: int = parquet.BUCKETS
) -> parquet.Saved:
    """Write the result of :func:`recommend_all` as Parquet by user and return the rows written.

    Raises NoCandidatesError where there was none.
    """
    saved = parquet.write_folder(
        {"candidates": lists}, folder, buckets=buckets, order=("userId", "rank")
    )
    if not saved.rows["candidates"]:
        raise NoCandidatesError("No user has a movie left that could be recommended.")
    return saved
