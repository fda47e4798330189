"""Ratings set apart by a hash, or leave-one-out, as LlamaRec (Yue et al. 2023) does on a 5-core."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from helpers.data import DataError


def split_by_hash(
    ratings: DataFrame, weights: tuple[float, ...] = (0.6, 0.2, 0.2), seed: int = 0
) -> tuple[DataFrame, ...]:
    """Split ratings into one table per weight by a hash of (userId, movieId) and ``seed``.

    A row's part depends on that row alone, not on order or partitions as in a random split.
    """
    prime = 1_000_000_007  # no pattern of the hash's low bits shows
    ids = (F.col(name).cast("long") for name in ("userId", "movieId"))
    draw = F.pmod(F.xxhash64(F.lit(seed).cast("long"), *ids), F.lit(prime))
    edges = [round(prime * edge / sum(weights)) for edge in np.cumsum([0, *weights])]
    parts = itertools.pairwise(edges)
    return tuple(ratings.where((draw >= low) & (draw < high)) for low, high in parts)


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
