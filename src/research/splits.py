"""Ways to set ratings apart beside the random split of notebook 02: leave-one-out, by a hash.

Leave-one-out on a 5-core is the protocol of sequential recommendation (LlamaRec, Yue et al. 2023).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812

from helpers.data import DataError


def split_by_hash(
    ratings: DataFrame, weights: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0
) -> tuple[DataFrame, ...]:
    """Split ratings into one table per weight by a hash of (userId, movieId) and ``seed``.

    A row's part depends on that row alone: no sorting, no partition that all rows pass through, and
    the same split however the table is stored. This is the split for ratings by the million;
    :func:`helpers.data.split` is the one behind the saved outputs. Keeps columns and partitions.
    The hash is Spark's ``xxhash64``; shares come out within chance of ``weights``.

    Raises:
        ValueError: there is no weight, or one is not above 0.
    """
    if not weights or min(weights) <= 0:
        raise ValueError(f"weights are {tuple(weights)}; give at least one, all above 0.")
    ids = (F.col(name).cast("long") for name in ("userId", "movieId"))
    draw = F.pmod(F.xxhash64(F.lit(seed).cast("long"), *ids), F.lit(_DRAWS))
    edges = [round(_DRAWS * edge / sum(weights)) for edge in np.cumsum([0, *weights])]
    edges[-1] = _DRAWS
    return tuple(
        ratings.where((draw >= low) & (draw < high)) for low, high in itertools.pairwise(edges)
    )


_DRAWS = 1_000_000_007
"""A prime, so that no pattern of the hash's low bits shows."""


@dataclass(frozen=True)
class LeaveOneOut:
    """Ratings in order of time, with each user's last two set apart.

    ``train``, ``validation`` and ``test`` share no row; the last two hold one row per user.
    ``known`` is train and validation together in order: what is known when the test item is asked
    for.
    """

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    known: pd.DataFrame


def leave_one_out(ratings: pd.DataFrame, ties: str = "movieId", seed: int = 0) -> LeaveOneOut:
    """Set each user's last rating apart for test and the last but one for validation.

    Order is by timestamp. Equal timestamps are ordered by movieId, as published code that sorts a
    sorted file does, or at random with ``ties="random"``. A user with fewer than three ratings has
    no test row (there would be no validation row or no history) and stays in ``train``.

    Raises:
        ValueError: ``ties`` is neither ``movieId`` nor ``random``.
        DataError: no user has three ratings.
    """
    if ties not in ("movieId", "random"):
        raise ValueError(f"ties is {ties!r}; choose 'movieId' or 'random'.")
    rows = ratings.sort_values(["userId", "timestamp", "movieId"])
    if ties == "random":
        draw = np.random.default_rng(seed).random(len(rows))
        order = np.lexsort((draw, rows["timestamp"], rows["userId"]))
        rows = rows.iloc[order]
    rows = rows.reset_index(drop=True)
    later = rows.groupby("userId").cumcount(ascending=False)
    enough = rows.groupby("userId")["movieId"].transform("size") >= 3
    if not enough.any():
        raise DataError("No user has three ratings, one each for training, validation and test.")
    test, validation = enough & (later == 0), enough & (later == 1)
    parts = (rows.loc[~test & ~validation], rows.loc[validation], rows.loc[test], rows.loc[~test])
    return LeaveOneOut(*(part.reset_index(drop=True) for part in parts))
