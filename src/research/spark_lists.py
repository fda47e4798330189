"""Candidate lists for users by the million, ranked and written inside Spark.

The same arithmetic as :class:`helpers.candidates.Recommender`, on blocks of users.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pyspark.ml.recommendation import ALSModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.types import FloatType, IntegerType, StructField, StructType

from helpers.candidates import NoCandidatesError, Remedy, best_rows, corrected_scores
from research import parquet

LISTS_SCHEMA = StructType(
    [
        *(StructField(name, IntegerType()) for name in ("userId", "rank", "movieId")),
        StructField("score", FloatType()),
        StructField("support", IntegerType()),
    ]
)
"""Columns of a table of candidates for all users, best first within a user."""


SCORES_AT_ONCE = 2_000_000
"""Scores in one block of users: about 50 MB with the copies made on the way."""


@dataclass(frozen=True)
class _Movies:
    """What the executors need to know of the movies; it travels with the function."""

    ids: np.ndarray
    factors: np.ndarray
    support: np.ndarray


def recommend_all(
    model: ALSModel,
    train: DataFrame,
    seen: DataFrame,
    n: int = 100,
    remedy: Remedy | None = None,
    *,
    buckets: int = parquet.BUCKETS,
) -> DataFrame:
    """Return the ``n`` best movies of every user in the model, with nothing of users collected.

    The lists are those of :class:`Recommender` with the same arguments, columns included; two
    scores closer than 0.00001, the last decimal compared, may change places. A user with fewer than
    ``n`` movies left gets fewer, one with none gets no row.

    The movies' factors and support come to the driver and go to every executor (86,000 movies at
    rank 64 are 22 MB). The users' factors, with the list of what each has seen, stay in Spark;
    blocks of them are multiplied with the movies there. So the seen movies are excluded before the
    best are taken, and ``n`` unseen ones remain where there are any.
    ``ALSModel.recommendForAllUsers`` cannot do that: it would have to return ``n`` more than the
    longest history (2,698 ratings in ml-latest-small) for everybody.

    Args:
        model: a fitted ALS model; works on Spark Connect too.
        train: ratings the model was fitted on (``userId, movieId, rating``).
        seen: pairs (``userId, movieId``) never to recommend.
        n: length of a list.
        remedy: correction of the scores; none by default.
        buckets: number of Spark partitions of the result; user ``u`` is in partition
            ``u % buckets``, as :func:`save_lists` wants it.

    The executors' Python needs this package.

    Raises:
        ValueError: ``n`` or ``buckets`` is below 1.
    """
    if n < 1 or buckets < 1:
        raise ValueError(f"n is {n} and buckets {buckets}; both must be at least 1.")
    remedy = remedy or Remedy("plain")
    movies = _movies(model, train, remedy)
    size = max(1, SCORES_AT_ONCE // max(1, len(movies.ids)))
    rank = partial(_rank_blocks, movies=movies, remedy=remedy, n=n, size=size)
    users = model.userFactors.select(F.col("id").alias("userId"), "features")
    marks = seen.groupBy("userId").agg(F.collect_set("movieId").alias("seen"))
    users = users.join(marks, "userId", "left")
    if remedy.shrinkage:
        overall = train.agg(F.avg("rating")).first()[0]
        means = train.groupBy("userId").agg(F.avg("rating").alias("mean"))
        users = users.join(means, "userId", "left").fillna({"mean": overall})
    else:
        users = users.withColumn("mean", F.lit(0.0))
    placed = parquet.bucketed(users, buckets).repartitionById(buckets, "bucket")
    return placed.drop("bucket").mapInPandas(rank, LISTS_SCHEMA)


def _movies(model: ALSModel, train: DataFrame, remedy: Remedy) -> _Movies:
    """Collect factors and support of the movies with enough ratings, in order of their ids."""
    counts = train.groupBy(F.col("movieId").alias("id")).agg(F.count(F.lit(1)).alias("support"))
    table = model.itemFactors.join(counts, "id", "left").fillna({"support": 0})
    table = table.where(F.col("support") >= remedy.min_support).toPandas().sort_values("id")
    rank = len(table["features"].iloc[0]) if len(table) else 0
    features = np.array(table["features"].to_list(), dtype=np.float32).reshape(len(table), rank)
    return _Movies(table["id"].to_numpy(), features, table["support"].to_numpy())


def _rank_blocks(
    frames: Iterable[pd.DataFrame], *, movies: _Movies, remedy: Remedy, n: int, size: int
) -> Iterator[pd.DataFrame]:
    """Rank the movies for users (``userId, features, seen, mean``), ``size`` of them at a time."""
    if not len(movies.ids):
        return
    for frame in frames:
        for start in range(0, len(frame), size):
            block = frame.iloc[start : start + size]
            scores = corrected_scores(
                np.array(block["features"].to_list(), dtype=np.float32),
                movies.factors,
                block["mean"].to_numpy(dtype=np.float32),
                movies.support,
                remedy,
                _places(block["seen"], movies.ids),
            )
            yield best_rows(scores, block["userId"].to_numpy(), movies.ids, movies.support, n)


def _places(seen: pd.Series, movies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rows and columns of what each user has seen; movies without factors are left out."""
    lists = [np.empty(0, np.int64) if found is None else np.asarray(found) for found in seen]
    ids = np.concatenate([np.empty(0, np.int64), *lists])
    rows = np.repeat(np.arange(len(lists)), [len(found) for found in lists])
    columns = np.searchsorted(movies, ids).clip(max=len(movies) - 1)
    known = movies[columns] == ids
    return rows[known], columns[known]


def save_lists(
    lists: DataFrame, folder: Path | str, *, buckets: int = parquet.BUCKETS
) -> parquet.Saved:
    """Write the result of :func:`recommend_all` (with the same ``buckets``) as Parquet by user.

    Returns what was written; its ``rows["candidates"]`` counts the rows.

    Raises:
        NoCandidatesError: there was no row; the folder's next reader finds an empty table.
    """
    tables = {"candidates": lists}
    saved = parquet.save(tables, folder, buckets=buckets, order=("userId", "rank"), aligned=True)
    if not saved.rows["candidates"]:
        raise NoCandidatesError(
            "No user has a movie left that could be recommended: lower the minimum support."
        )
    return saved


def read_lists(
    spark: SparkSession,
    folder: Path | str,
    users: Iterable[int] | None = None,
    *,
    buckets: int = parquet.BUCKETS,
) -> DataFrame:
    """Return the saved candidates (:data:`LISTS_SCHEMA`), of some users or all, in no fixed order.

    For some users only the files of their buckets are opened.

    Raises:
        ParquetError: the folder holds none.
    """
    return parquet.load(spark, folder, "candidates", LISTS_SCHEMA, users=users, buckets=buckets)
