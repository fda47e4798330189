"""Candidate generation: what to recommend to whom, from factors or from simple counts.

Notebook 03 writes it out: the path for one user in Spark, then seen movies masked for all users at
once in two factor matrices, which is what stands here. Its remedies stand in its cells alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from helpers.als import Factors

LIKED_FROM = 3.0
"""Stars below which no movie counts as liked, however low the user's mean is."""


class NoCandidatesError(LookupError):
    """Nothing can be recommended to this user; the message says why and what to do."""


class Recommender:
    """Top-N lists for all users from an ALS model, movies that a user has rated removed.

    Args:
        factors: the model's factors.
        train: ratings the model was fitted on (``userId, movieId, rating``); gives the support.
        seen: pairs (``userId, movieId``) never to recommend; usually all known ratings.
    """

    def __init__(self, factors: Factors, train: pd.DataFrame, seen: pd.DataFrame) -> None:
        """Index the tables once; every call after this is array work."""
        self._factors = factors
        support = train.groupby("movieId").size().reindex(factors.movies, fill_value=0)
        self._support = support.to_numpy()
        inside = seen["movieId"].isin(factors.movies) & seen["userId"].isin(factors.users)
        rows = np.searchsorted(factors.users, seen.loc[inside, "userId"])
        columns = np.searchsorted(factors.movies, seen.loc[inside, "movieId"])
        shape = len(factors.users), len(factors.movies)
        self._seen = csr_array((np.ones(len(rows)), (rows, columns)), shape)

    def scores(self, users: Sequence[int] | None = None) -> np.ndarray:
        """Return scores, shape (n_users, n_movies); minus infinity marks what a user has seen.

        Raises:
            NoCandidatesError: a user is not in the model.
        """
        rows = self._rows(users)
        scores = self._factors.user_factors[rows] @ self._factors.movie_factors.T
        scores[self._seen[rows].nonzero()] = -np.inf
        return scores

    def recommend(self, users: Sequence[int] | None = None, n: int = 10) -> pd.DataFrame:
        """Return the ``n`` best movies of each user (all users by default), best first.

        Columns: ``userId, rank, movieId, score, support``. Scores are compared at five decimals and
        ties go to the lower movieId. A user with fewer than ``n`` movies left gets fewer.

        Raises:
            NoCandidatesError: a user is not in the model, or none of the users has a movie left.
        """
        ids = self._factors.users[self._rows(users)]
        table = best_rows(self.scores(users), ids, self._factors.movies, self._support, n)
        if table.empty:
            raise NoCandidatesError(
                "Every movie that could be recommended has been rated already: lower the minimum "
                "support, or choose another user."
            )
        return table

    def _rows(self, users: Sequence[int] | None) -> np.ndarray:
        known = self._factors.users
        wanted = known if users is None else np.asarray(list(users), dtype=np.int64)
        unknown = wanted[~np.isin(wanted, known)]
        if unknown.size:
            raise NoCandidatesError(
                f"User {unknown[0]} is not in the model, which knows {len(known)} users from "
                f"{known[0]} to {known[-1]}: a new user needs ratings and a new fit."
            )
        return np.searchsorted(known, wanted)


def best_rows(
    scores: np.ndarray, users: np.ndarray, movies: np.ndarray, support: np.ndarray, n: int
) -> pd.DataFrame:
    """Return the ``n`` best finite scores of each row as :meth:`Recommender.recommend` does."""
    scores = np.round(scores, 5)
    n = min(n, scores.shape[1])
    # argpartition cuts ties at the edge arbitrarily: keep all that reach the n-th best score.
    edge = -np.partition(-scores, n - 1, axis=1)[:, n - 1]
    user, movie = np.nonzero((scores >= edge[:, None]) & np.isfinite(scores))
    columns = {"userId": users[user], "movieId": movies[movie], "score": scores[user, movie]}
    table = pd.DataFrame({**columns, "support": support[movie], "order": user})
    table = table.sort_values(["order", "score", "movieId"], ascending=[True, False, True])
    table.insert(1, "rank", table.groupby("order").cumcount() + 1)
    return table.loc[table["rank"] <= n].drop(columns="order").reset_index(drop=True)


def viewer(
    user_id: int, known: pd.DataFrame, train: pd.DataFrame | None = None, *, likes: bool = False
) -> tuple[int, str]:
    """Return ``user_id``, or the first user who can be shown instead, and a sentence that says why.

    A user in ``known`` can be shown who has a row in ``train``, if given, and has not rated all of
    its movies and, with ``likes``, who liked a movie (see :func:`liked`).

    Raises:
        NoCandidatesError: there is no such user.
    """
    needs = {"has no rating in this data": set(known["userId"])}
    if train is not None:
        movies = train["movieId"].unique()
        rated = known.loc[known["movieId"].isin(movies)].groupby("userId")["movieId"].nunique()
        full = set(rated.index[rated == len(movies)])
        needs["has rated every movie that could be recommended"] = set(known["userId"]) - full
        needs["has no training rating"] = set(train["userId"])
    if likes:
        means = known.groupby("userId")["rating"].transform("mean")
        mask = (known["rating"] >= means) & (known["rating"] >= LIKED_FROM)
        needs["liked none of the rated movies"] = set(known.loc[mask, "userId"])
    if not (left := set.intersection(*needs.values())):
        raise NoCandidatesError("Every user has rated every movie, or liked none: take other data.")
    if why := next((why for why, users in needs.items() if user_id not in users), ""):
        return int(min(left)), f"User {user_id} {why}: user {int(min(left))} is shown instead."
    return user_id, ""


def history(ratings: pd.DataFrame, movies: pd.DataFrame, user_id: int) -> pd.DataFrame:
    """Return all that a user rated, best first; of equal ratings the latest.

    Columns: ``movieId, title, genres, rating, deviation, timestamp``; ``deviation`` is in stars
    from the user's mean.

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


def disliked(user_history: pd.DataFrame) -> pd.DataFrame:
    """Return the movies rated at least one star below the user's mean, worst first."""
    return user_history.loc[user_history["deviation"] <= -1].iloc[::-1].reset_index(drop=True)
