"""Candidate generation: what to recommend to whom, from factors or from simple counts.

Notebook 03 writes the path for one user out in Spark. Here the same is done for all users at once
with two factor matrices in memory, and with the remedies for what plain ALS gets wrong. For users
by the million, :func:`recommend_all` does it inside Spark: the same arithmetic on blocks of users.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from pyspark.ml.recommendation import ALSModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from helpers import parquet
from helpers.als import Factors


class NoCandidatesError(LookupError):
    """Nothing can be recommended to this user; the message says why and what to do."""


@dataclass(frozen=True)
class Remedy:
    """How scores are corrected before the best are taken.

    ``min_support`` hides movies with fewer training ratings; ``shrinkage`` is the ``k`` of
    ``n / (n + k)``, by which the distance of a prediction from the user's mean is multiplied, where
    ``n`` is the movie's number of training ratings.
    """

    name: str
    min_support: int = 0
    shrinkage: float = 0.0


class Recommender:
    """Top-N lists for all users from an ALS model, movies that a user has rated removed.

    Args:
        factors: the model's factors.
        train: ratings the model was fitted on (``userId, movieId, rating``); gives the support.
        seen: pairs (``userId, movieId``) never to recommend; usually all known ratings.
        remedy: correction of the scores; none by default.
    """

    def __init__(
        self,
        factors: Factors,
        train: pd.DataFrame,
        seen: pd.DataFrame,
        remedy: Remedy | None = None,
    ) -> None:
        """Index the tables once; every call after this is array work."""
        self.remedy = remedy or Remedy("plain")
        self._factors = factors
        support = train.groupby("movieId").size().reindex(factors.movies, fill_value=0)
        self._support = support.to_numpy()
        means = train.groupby("userId")["rating"].mean().reindex(factors.users)
        self._means = means.fillna(train["rating"].mean()).to_numpy(dtype=np.float32)
        known = seen.loc[seen["movieId"].isin(factors.movies)]
        rows = np.searchsorted(factors.users, known["userId"].to_numpy())
        inside = (rows < len(factors.users)) & (
            factors.users[np.minimum(rows, len(factors.users) - 1)] == known["userId"].to_numpy()
        )
        self._seen_rows = rows[inside]
        self._seen_columns = np.searchsorted(factors.movies, known["movieId"].to_numpy()[inside])

    def scores(self, users: Sequence[int] | None = None) -> np.ndarray:
        """Return corrected scores, shape (n_users, n_movies); minus infinity marks the excluded.

        Raises:
            NoCandidatesError: a user is not in the model.
        """
        rows = self._rows(users)
        position = np.full(len(self._factors.users), -1)
        position[rows] = np.arange(len(rows))
        mine = position[self._seen_rows] >= 0
        return _scores(
            self._factors.user_factors[rows],
            self._factors.movie_factors,
            self._means[rows],
            self._support,
            self.remedy,
            (position[self._seen_rows[mine]], self._seen_columns[mine]),
        )

    def recommend(self, users: Sequence[int] | None = None, n: int = 10) -> pd.DataFrame:
        """Return the ``n`` best movies of each user (all users by default), best first.

        Columns: ``userId, rank, movieId, score, support``. Scores are compared at five decimals and
        ties go to the lower movieId, so that the last bits of a sum decide nothing. A user with
        fewer than ``n`` movies left gets fewer.

        Raises:
            ValueError: ``n`` is below 1.
            NoCandidatesError: a user is not in the model, or none of the users has a movie left.
        """
        if n < 1:
            raise ValueError(f"n is {n}; ask for at least one movie.")
        rows = self._rows(users)
        table = _best(
            self.scores(users), self._factors.users[rows], self._factors.movies, self._support, n
        )
        if table.empty:
            raise NoCandidatesError(
                "Every movie that could be recommended has been rated already: lower the minimum "
                "support, or choose another user."
            )
        return table

    def _rows(self, users: Sequence[int] | None) -> np.ndarray:
        if users is None:
            return np.arange(len(self._factors.users))
        wanted = np.asarray(list(users), dtype=np.int64)
        unknown = wanted[~np.isin(wanted, self._factors.users)]
        if unknown.size:
            raise NoCandidatesError(
                f"User {unknown[0]} is not in the model, which knows {len(self._factors.users)} "
                f"users from {self._factors.users[0]} to {self._factors.users[-1]}: "
                "a new user needs ratings and a new fit."
            )
        return np.searchsorted(self._factors.users, wanted)


def _scores(
    user_factors: np.ndarray,
    movie_factors: np.ndarray,
    means: np.ndarray,
    support: np.ndarray,
    remedy: Remedy,
    excluded: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """Return corrected scores, shape (n_users, n_movies), minus infinity at the excluded places."""
    scores = user_factors @ movie_factors.T
    if remedy.shrinkage:
        mean = means[:, None]
        weight = support / (support + remedy.shrinkage)
        scores = mean + weight.astype(np.float32) * (scores - mean)
    scores[:, support < remedy.min_support] = -np.inf
    scores[excluded] = -np.inf
    return scores


def _best(
    scores: np.ndarray, users: np.ndarray, movies: np.ndarray, support: np.ndarray, n: int
) -> pd.DataFrame:
    """Return the ``n`` best finite scores of each row as :meth:`Recommender.recommend` does."""
    scores = np.round(scores, 5)
    n = min(n, scores.shape[1])
    # argpartition cuts ties at the edge arbitrarily: keep all that reach the n-th best score.
    edge = -np.partition(-scores, n - 1, axis=1)[:, n - 1]
    user, movie = np.nonzero((scores >= edge[:, None]) & np.isfinite(scores))
    table = pd.DataFrame(
        {
            "userId": users[user],
            "movieId": movies[movie],
            "score": scores[user, movie],
            "support": support[movie],
            "order": user,
        }
    )
    table = table.sort_values(["order", "score", "movieId"], ascending=[True, False, True])
    table.insert(1, "rank", table.groupby("order").cumcount() + 1)
    return table.loc[table["rank"] <= n].drop(columns="order").reset_index(drop=True)


# --- all users, inside Spark ----------------------------------------------------------------------

LISTS_SCHEMA = "userId int, rank int, movieId int, score float, support int"
"""Columns of a table of candidates for all users, best first within a user."""

_SCORES_AT_ONCE = 2_000_000
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
    size = max(1, _SCORES_AT_ONCE // max(1, len(movies.ids)))
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
            scores = _scores(
                np.array(block["features"].to_list(), dtype=np.float32),
                movies.factors,
                block["mean"].to_numpy(dtype=np.float32),
                movies.support,
                remedy,
                _places(block["seen"], movies.ids),
            )
            yield _best(scores, block["userId"].to_numpy(), movies.ids, movies.support, n)


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
) -> parquet.Version:
    """Write the result of :func:`recommend_all` (with the same ``buckets``) as Parquet by user.

    Returns the version written; its ``rows["candidates"]`` counts the rows.

    Raises:
        NoCandidatesError: there was no row; the folder's next reader finds an empty table.
    """
    tables = {"candidates": lists}
    version = parquet.save(tables, folder, buckets=buckets, order=("userId", "rank"), aligned=True)
    if not version.rows["candidates"]:
        raise NoCandidatesError(
            "No user has a movie left that could be recommended: lower the minimum support."
        )
    return version


def read_lists(
    spark: SparkSession, folder: Path | str, users: Iterable[int] | None = None
) -> DataFrame:
    """Return the saved candidates (:data:`LISTS_SCHEMA`), of some users or all, in no fixed order.

    For some users only the files of their buckets are opened.

    Raises:
        parquet.ParquetError: the folder holds no finished write.
    """
    return parquet.load(spark, folder, "candidates", users)


# --- one user -------------------------------------------------------------------------------------


def popular(train: pd.DataFrame, seen: pd.DataFrame, users: Sequence[int], n: int = 10):
    """Return the most rated movies that each user has not seen, as :meth:`Recommender.recommend`.

    The trivial row that every retriever must beat; ``score`` and ``support`` are both the number of
    training ratings.
    """
    counts = train.groupby("movieId").size()
    factors = Factors(
        users=np.unique(np.asarray(list(users), dtype=np.int64)),
        movies=counts.index.to_numpy(),
        user_factors=np.ones((len(set(users)), 1), dtype=np.float32),
        movie_factors=counts.to_numpy(dtype=np.float32)[:, None],
    )
    return Recommender(factors, train, seen).recommend(users, n)


def viewer(user_id: int, train: pd.DataFrame, known: pd.DataFrame) -> tuple[int, str]:
    """Return ``user_id``, or the first user to whom something can be recommended, and a sentence.

    That is a user with a row in ``train`` who has not rated all of its movies in ``known``; the
    sentence says why another was chosen, and is empty if none was.

    Raises:
        NoCandidatesError: there is no such user.
    """
    movies = train["movieId"].unique()
    rated = known.loc[known["movieId"].isin(movies)].groupby("userId")["movieId"].nunique()
    left = rated.index[(rated < len(movies)) & rated.index.isin(train["userId"])]
    if user_id in left:
        return user_id, ""
    if left.empty:
        raise NoCandidatesError(
            "Every user has rated every movie: use a data set with more movies."
        )
    if user_id not in known["userId"].to_numpy():
        why = "has no rating in this data"
    elif user_id in rated.index[rated == len(movies)]:
        why = "has rated every movie that could be recommended"
    else:
        why = "has no training rating"
    return int(left[0]), f"User {user_id} {why}: user {left[0]} is shown instead."


def history(ratings: pd.DataFrame, movies: pd.DataFrame, user_id: int) -> pd.DataFrame:
    """Return all that a user rated, best first, with each rating relative to the user's mean.

    Columns: ``movieId, title, genres, rating, deviation, timestamp``; ``deviation`` in stars. Equal
    ratings are ordered by the later timestamp, then by movieId.

    Raises:
        NoCandidatesError: the user has no rating.
    """
    mine = ratings.loc[ratings["userId"] == user_id]
    if mine.empty:
        raise NoCandidatesError(
            f"User {user_id} has no rating in this data; user ids go from "
            f"{ratings['userId'].min()} to {ratings['userId'].max()}."
        )
    table = mine.merge(movies, on="movieId", how="left", validate="many_to_one")
    table["deviation"] = table["rating"] - table["rating"].mean()
    table = table.sort_values(
        ["rating", "timestamp", "movieId"], ascending=[False, False, True], ignore_index=True
    )
    return table[["movieId", "title", "genres", "rating", "deviation", "timestamp"]]


LIKED_FROM = 3.0
"""Stars below which no movie counts as liked, however low the user's mean is."""


def liked(user_history: pd.DataFrame) -> pd.DataFrame:
    """Return the liked part of a :func:`history`: at least the user's own mean and 3 stars.

    Raises:
        NoCandidatesError: the user liked nothing.
    """
    mask = (user_history["deviation"] >= 0) & (user_history["rating"] >= LIKED_FROM)
    if not mask.any():
        raise NoCandidatesError(
            f"This user liked none of {len(user_history)} rated movies (the best has "
            f"{user_history['rating'].max():.1f} stars): a profile of likes cannot be written; "
            "recommend popular movies instead."
        )
    return user_history.loc[mask].reset_index(drop=True)


def disliked(user_history: pd.DataFrame, margin: float = 1.0) -> pd.DataFrame:
    """Return the movies rated at least ``margin`` stars below the user's mean, worst first."""
    mask = user_history["deviation"] <= -margin
    return user_history.loc[mask].iloc[::-1].reset_index(drop=True)
