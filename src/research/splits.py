"""A 5-core and leave-one-out, as LlamaRec (Yue et al. 2023) evaluates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from helpers.data import DataError


def core(ratings: pd.DataFrame, k: int = 5) -> pd.DataFrame:
    """Return the k-core: drop users and movies with fewer than ``k`` ratings until none is left.

    The 5-core of ml-latest-small (610 users, 3,650 movies) is "ML-100k" in LlamaRec, table 2.
    Raises DataError where nothing is left.
    """
    kept, before = ratings, -1
    while len(kept) != before:
        before = len(kept)
        for column in ("userId", "movieId"):
            kept = kept[kept.groupby(column)[column].transform("size") >= k]
    if kept.empty:
        raise DataError(f"No user and movie have {k} ratings each; choose a smaller k.")
    return kept.reset_index(drop=True)


@dataclass(frozen=True)
class LeaveOneOut:
    """Ratings in order of time, each user's last two set apart; ``known`` is all but the test."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    known: pd.DataFrame


def leave_one_out(ratings: pd.DataFrame, ties: str = "movieId", seed: int = 0) -> LeaveOneOut:
    """Set each user's last rating apart for test and the last but one for validation.

    Equal times are ordered by movieId, or at random with ``ties="random"``. A user with fewer than
    three ratings stays in ``train``. Raises DataError where no user has three.
    """
    if ties not in ("movieId", "random"):
        raise ValueError(f"ties is {ties!r}; choose 'movieId' or 'random'.")
    rows = ratings.sort_values(["userId", "timestamp", "movieId"])
    if ties == "random":
        draw = np.random.default_rng(seed).random(len(rows))
        rows = rows.iloc[np.lexsort((draw, rows["timestamp"], rows["userId"]))]
    later = rows.groupby("userId").cumcount(ascending=False)
    enough = rows.groupby("userId")["movieId"].transform("size") >= 3
    if not enough.any():
        raise DataError("No user has three ratings, one each for training, validation and test.")
    test, validation = enough & (later == 0), enough & (later == 1)
    parts = (rows.loc[~test & ~validation], rows.loc[validation], rows.loc[test], rows.loc[~test])
    return LeaveOneOut(*(part.reset_index(drop=True) for part in parts))
