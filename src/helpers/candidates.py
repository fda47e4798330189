"""Candidates from the factors of ALS, as notebook 03 writes out, and what a user liked."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.als import Factors

LIKED_FROM = 3.0  # stars below which no movie counts as liked, however low the user's mean is


class NoCandidatesError(LookupError):
    """Nothing can be recommended to this user; the message says why and what to do."""


class Recommender(NamedTuple):
    """Top-N lists: ``train`` gives the support, pairs in ``seen`` are never recommended."""

    factors: Factors
    train: pd.DataFrame
    seen: pd.DataFrame

    def recommend(self, users: Sequence[int] | None = None, n: int = 10) -> pd.DataFrame:
        """Return :func:`best_rows` of the users (default: all), or raise NoCandidatesError."""
        known, movies = self.factors.users, self.factors.movies
        wanted = known if users is None else np.array(users)
        if (unknown := wanted[~np.isin(wanted, known)]).size:
            raise NoCandidatesError(
                f"User {unknown[0]} is not in the model, which knows {len(known)} users from "
                f"{known[0]} to {known[-1]}: a new user needs ratings and a new fit."
            )
        rows = np.searchsorted(known, wanted)
        scores = self.factors.user_factors[rows] @ self.factors.movie_factors.T
        seen = self.seen.loc[self.seen["userId"].isin(wanted) & self.seen["movieId"].isin(movies)]
        row = pd.Index(wanted).get_indexer(pd.Index(seen["userId"]))
        scores[row, np.searchsorted(movies, seen["movieId"])] = -np.inf
        support = self.train.groupby("movieId").size().reindex(movies, fill_value=0).to_numpy()
        table = best_rows(scores, known[rows], movies, support, n)
        if table.empty:
            raise NoCandidatesError(
                "Every movie that can be recommended has been rated already: choose another user."
            )
        return table


def best_rows(
    scores: np.ndarray, users: np.ndarray, movies: np.ndarray, support: np.ndarray, n: int
) -> pd.DataFrame:
    """Return the ``n`` best finite scores of each row; ties go to the lower movieId."""
    scores, n = np.round(scores, 5), min(n, scores.shape[1])  # a machine's last bits break no tie
    # argpartition cuts ties at the edge arbitrarily: keep all that reach the n-th best score.
    edge = -np.partition(-scores, n - 1, axis=1)[:, n - 1]
    user, movie = np.nonzero((scores >= edge[:, None]) & np.isfinite(scores))
    columns = {"userId": users[user], "movieId": movies[movie], "score": scores[user, movie]}
    table = pd.DataFrame({**columns, "support": support[movie], "order": user})
    table = table.sort_values(["order", "score", "movieId"], ascending=[True, False, True])
    table.insert(1, "rank", table.groupby("order").cumcount() + 1)
    return table.loc[table["rank"] <= n].drop(columns="order").reset_index(drop=True)


def viewer(user_id: int, ratings: pd.DataFrame) -> tuple[int, str]:
    """Return ``user_id``, or the first user who liked a movie, and a sentence that says so."""
    users = set(ratings.loc[ratings["rating"] >= LIKED_FROM, "userId"])
    if user_id in users or not users:
        return user_id, ""
    return min(users), f"User {user_id} liked no movie here: user {min(users)} is shown instead."


def history(ratings: pd.DataFrame, movies: pd.DataFrame, user_id: int) -> pd.DataFrame:
    """Return a user's ratings, best and latest first; ``deviation`` is from the user's mean."""
    table = ratings.loc[ratings["userId"] == user_id].merge(movies, on="movieId")
    if table.empty:
        raise NoCandidatesError(f"User {user_id} has no rating in this data: choose another one.")
    table["deviation"] = table["rating"] - table["rating"].mean()
    order, rising = ["rating", "timestamp", "movieId"], [False, False, True]
    table = table.sort_values(order, ascending=rising, ignore_index=True)
    return table[["movieId", "title", "genres", "rating", "deviation", "timestamp"]]


def liked(user_history: pd.DataFrame) -> pd.DataFrame:
    """Return what of a :func:`history` has at least the user's own mean and 3 stars."""
    high = (user_history["deviation"] >= 0) & (user_history["rating"] >= LIKED_FROM)
    if not high.any():
        n = len(user_history)
        raise NoCandidatesError(f"This user liked none of {n} rated movies: choose another one.")
    return user_history.loc[high].reset_index(drop=True)


def disliked(user_history: pd.DataFrame) -> pd.DataFrame:
    """Return the movies rated at least one star below the user's mean, worst first."""
    return user_history.loc[user_history["deviation"] <= -1].iloc[::-1].reset_index(drop=True)
