"""One rule for every comparison of the course: paired by user, corrected, with its power."""

from collections import namedtuple
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import permutation_test

Interval = namedtuple("Interval", "mean low high users")
Pair = namedtuple("Pair", "mean low high p_value shows users")


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
