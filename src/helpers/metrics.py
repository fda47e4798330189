"""Metrics of ranked lists, and an interval for each.

A list is a table with ``userId``, ``rank`` (from 1) and ``movieId``; relevant movies have
``userId`` and ``movieId``. A user with a relevant movie but no list scores 0. Definitions: Järvelin
and Kekäläinen 2002 for NDCG (binary gain, log2 discount), Voorhees 1999 for the reciprocal rank,
Efron 1979 for the bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from scipy.stats import binomtest, permutation_test

DRAWS = 2000  # of a bootstrap


@dataclass(frozen=True)
class Interval:
    """A mean with a bootstrap interval over ``users`` users."""

    mean: float
    low: float
    high: float
    users: int

    def __str__(self) -> str:
        """Return the mean, the interval and the number of users."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}], {self.users} users"


def per_user(lists: pd.DataFrame, relevant: pd.DataFrame, k: int = 10) -> pd.DataFrame:
    """Return recall, NDCG and reciprocal rank at ``k`` for every user in ``relevant``.

    The result is indexed by ``userId``; its columns ``recall``, ``ndcg`` and ``mrr`` lie between 0
    and 1. Recall divides by min(k, number of relevant movies), so that a perfect list scores 1.

    Raises:
        ValueError: a list holds a movie or a rank twice.
    """
    for key in ("movieId", "rank"):
        if lists.duplicated(["userId", key]).any():
            raise ValueError(f"A user's list holds the same {key} twice.")
    wanted = relevant[["userId", "movieId"]].drop_duplicates()
    counts = wanted.groupby("userId").size()
    hits = lists.loc[lists["rank"] <= k].merge(wanted, on=["userId", "movieId"])
    hits["gain"] = 1 / np.log2(hits["rank"] + 1)
    sums = {"n": ("rank", "size"), "first": ("rank", "min"), "gain": ("gain", "sum")}
    hits = hits.groupby("userId").agg(**sums).reindex(counts.index)
    best = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))])
    possible = np.minimum(counts, k)
    columns = {"recall": hits["n"] / possible, "ndcg": hits["gain"] / best[possible]}
    return pd.DataFrame({**columns, "mrr": 1 / hits["first"]}).fillna(0.0)


def score_table(
    lists: pd.DataFrame, relevant: pd.DataFrame, ks: tuple[int, ...] = (5, 10, 20)
) -> pd.DataFrame:
    """Return ``MRR@k``, ``NDCG@k`` and ``Recall@k`` (:func:`per_user`), a row for each user."""
    names, tables = {"mrr": "MRR", "ndcg": "NDCG", "recall": "Recall"}, []
    for k in ks:
        scores = per_user(lists, relevant, k)[[*names]]
        tables.append(scores.rename(columns=names).add_suffix(f"@{k}"))
    return pd.concat(tables, axis="columns")


def bootstrap_interval(values: np.ndarray | pd.Series, *, seed: int = 0) -> Interval:
    """Return the mean of per-user ``values`` with its 95 % bootstrap interval (percentiles)."""
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("An interval needs at least one user.")
    picks = np.random.default_rng(seed).integers(0, values.size, size=(DRAWS, values.size))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), int(values.size))


@dataclass(frozen=True)
class Difference:
    """A paired comparison over the same users: first minus second.

    ``better`` and ``worse`` count the users for whom the first scores higher and lower. ``p_value``
    is that of the two-sided sign test over them, 1 if all users tie.
    """

    interval: Interval
    better: int
    worse: int
    p_value: float

    def __str__(self) -> str:
        """Return the difference, its interval, and how many users it rests on."""
        at = self.interval
        return (
            f"{at.mean:+.3f} [{at.low:+.3f}, {at.high:+.3f}]; better for {self.better} users, "
            f"worse for {self.worse}, equal for {at.users - self.better - self.worse}; "
            f"sign test p = {self.p_value:.2g}"
        )


def compare(first: pd.Series, second: pd.Series) -> Difference:
    """Compare per-user scores, indexed by user: paired bootstrap and sign test.

    Raises:
        ValueError: the users are not the same, or there is none.
    """
    delta = _differences(first, second)
    better, worse = int((delta > 0).sum()), int((delta < 0).sum())
    p_value = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return Difference(bootstrap_interval(delta), better, worse, float(p_value))


def _differences(first: pd.Series, second: pd.Series) -> np.ndarray:
    """Return first minus second for each user."""
    if not first.index.is_unique or set(first.index) != set(second.index):
        raise ValueError("A paired comparison needs the same users in both, each once.")
    return (first - second.reindex(first.index)).to_numpy(dtype=float)


@dataclass(frozen=True)
class Pair:
    """A paired comparison over ``users`` users: the mean of first minus second, in the metric.

    ``low`` and ``high`` are the 95 % bootstrap interval, ``p_value`` is that of the two-sided
    permutation test on the mean, and ``shows`` is the smallest true difference that so many users
    would have shown in 80 of 100 cases: 2.8 standard errors.
    """

    mean: float
    low: float
    high: float
    p_value: float
    shows: float
    users: int


def paired(first: pd.Series, second: pd.Series, *, draws: int = 9999, seed: int = 0) -> Pair:
    """Compare two rankers on the metric itself, as the whole series does.

    Scores are indexed by user. The signs of the users' differences are exchanged at random (Fisher
    1935), as if the two rankers were one.

    Raises:
        ValueError: the users are not the same, or there is none.
    """
    delta = _differences(first, second)
    at = bootstrap_interval(delta, seed=seed)
    test = permutation_test(
        (delta, np.zeros_like(delta)), lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples", vectorized=True, n_resamples=draws, batch=1000,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    error = delta.std(ddof=1) / np.sqrt(len(delta)) if len(delta) > 1 else np.inf
    return Pair(at.mean, at.low, at.high, float(test.pvalue), float(2.8 * error), len(delta))


def family(pairs: Mapping[str, Pair]) -> pd.DataFrame:
    """Return a table of comparisons that belong together, with Holm's correction (Holm 1979).

    A row each, with the fields of :class:`Pair`, ``p_holm`` for the whole family, and ``verdict``:
    which is better at 5 %, or that a difference of ``shows`` would have been needed.
    """
    table = pd.DataFrame.from_dict({n: asdict(p) for n, p in pairs.items()}, orient="index")
    order = table["p_value"].sort_values(kind="stable").index
    steps = table.loc[order, "p_value"] * np.arange(len(order), 0, -1)
    table["p_holm"] = steps.cummax().clip(upper=1.0)
    better = np.where(table["mean"] > 0, "better", "worse")
    short = table["shows"].map("not shown; {:.3f} would have been".format)
    table["verdict"] = np.where(table["p_holm"] < 0.05, better, short)
    return table


def coverage(lists: pd.DataFrame, catalogue_size: int) -> float:
    """Return the share of the catalogue that appears in at least one list."""
    return lists["movieId"].nunique() / catalogue_size
