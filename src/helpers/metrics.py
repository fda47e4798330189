"""Metrics of ranked lists (``userId, rank, movieId``), and the paired comparison of two."""

from collections import namedtuple
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import permutation_test

Interval = namedtuple("Interval", "mean low high users")
Pair = namedtuple("Pair", "mean low high p_value shows users")


def score_table(
    lists: pd.DataFrame, relevant: pd.DataFrame, ks: tuple[int, ...] = (5, 10, 20)
) -> pd.DataFrame:
    """Return ``MRR@k``, ``NDCG@k`` and ``Recall@k``, 0 to 1, a row for each user in ``relevant``.

    A user without a list scores 0; recall divides by min(k, number of relevant movies). Raises
    ValueError: a list holds a movie twice. NDCG: Järvelin and Kekäläinen 2002, binary gain.
    """
    if lists.duplicated(["userId", "movieId"]).any():
        raise ValueError("A user's list holds the same movie twice.")
    wanted = relevant[["userId", "movieId"]].drop_duplicates()
    counts, columns = wanted.groupby("userId").size(), {}
    found = lists.merge(wanted, on=["userId", "movieId"])
    found["gain"] = 1 / np.log2(found["rank"] + 1)
    for k in ks:
        hits, possible = found.loc[found["rank"] <= k].groupby("userId"), counts.clip(upper=k)
        best = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[possible - 1]
        columns[f"MRR@{k}"] = 1 / hits["rank"].min()
        columns[f"NDCG@{k}"] = hits["gain"].sum().reindex(counts.index) / best
        columns[f"Recall@{k}"] = hits.size() / possible
    return pd.DataFrame(columns, index=counts.index).fillna(0.0)


def bootstrap_interval(values: np.ndarray | pd.Series, *, seed: int = 0) -> Interval:
    """Return the mean of per-user ``values`` with its 95 % percentile interval (Efron 1979)."""
    values = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, values.size, size=(2000, values.size))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high), values.size)


def paired(first: pd.Series, second: pd.Series, *, draws: int = 9999, seed: int = 0) -> Pair:
    """Compare two rankers' scores by user; signs are exchanged at random (Fisher 1935).

    ``shows`` is the smallest true difference that so many users would have shown in 80 of 100
    cases: 2.8 standard errors. Raises ValueError: the users are not the same.
    """
    if set(first.index) != set(second.index):
        raise ValueError("A paired comparison needs the same users in both.")
    delta = (first - second.reindex(first.index)).to_numpy(dtype=float)
    mean, low, high, users = bootstrap_interval(delta, seed=seed)
    test = permutation_test(
        (delta, np.zeros_like(delta)), lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples", vectorized=True, n_resamples=draws, batch=1000,
        rng=np.random.default_rng(seed),
    )  # fmt: skip
    error = delta.std(ddof=1) / np.sqrt(users) if users > 1 else np.inf
    return Pair(mean, low, high, float(test.pvalue), float(2.8 * error), users)


def family(pairs: Mapping[str, Pair]) -> pd.DataFrame:
    """Return a row for each of the comparisons that belong together, corrected (Holm 1979).

    Beside the fields of :class:`Pair` it has ``p_holm`` and a ``verdict``: which is better at 5 %,
    or that a difference of ``shows`` would have been needed.
    """
    table = pd.DataFrame(list(pairs.values()), index=list(pairs))
    steps = table["p_value"].sort_values(kind="stable") * np.arange(len(table), 0, -1)
    table["p_holm"] = steps.cummax().clip(upper=1.0)
    better = np.where(table["mean"] > 0, "better", "worse")
    short = table["shows"].map("not shown; {:.3f} would have been".format)
    table["verdict"] = np.where(table["p_holm"] < 0.05, better, short)
    return table


def coverage(lists: pd.DataFrame, catalogue_size: int) -> float:
    """Return the share of the catalogue that appears in at least one list."""
    return lists["movieId"].nunique() / catalogue_size
