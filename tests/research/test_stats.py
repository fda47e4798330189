"""The one rule of comparison: level, power and correction are what they claim."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from research import stats


def found(shift: float, users: int = 60, studies: int = 200) -> float:
    """Return the share of simulated studies whose test is below 5 %."""
    random = np.random.default_rng(0)
    zero = pd.Series(np.zeros(users))
    values = [
        stats.paired(pd.Series(random.normal(shift, 1, users)), zero, draws=399, seed=i).p_value
        for i in range(studies)
    ]
    return float(np.mean(np.array(values) < 0.05))


def test_a_true_null_is_rejected_in_one_of_twenty_and_shows_is_found_in_four_of_five():
    assert found(0.0) == pytest.approx(0.05, abs=0.04)
    assert found(2.8 / np.sqrt(60)) == pytest.approx(0.8, abs=0.08)


def test_users_are_matched_by_id_and_must_be_the_same():
    first = pd.Series([1.0, 0.0, 0.5], [7, 8, 9])
    second = pd.Series([0.5, 1.0, 0.0], [9, 7, 8])
    pair = stats.paired(first, second)
    assert (pair.mean, pair.p_value, pair.shows, pair.users) == (0.0, 1.0, 0.0, 3)
    with pytest.raises(ValueError, match="same users"):
        stats.paired(first, second.drop(9))


def test_holm_corrects_from_the_smallest_up_and_never_turns_the_order():
    def pair(p: float, mean: float = 0.1) -> stats.Pair:
        return stats.Pair(mean, 0.0, 0.2, p, 0.05, 10)

    pairs = {"a": pair(0.01), "b": pair(0.04), "c": pair(0.03, -0.1), "d": pair(0.005)}
    table = stats.family(pairs)
    assert table["p_holm"].round(3).tolist() == [0.03, 0.06, 0.06, 0.02]
    assert table.loc["a", "verdict"] == table.loc["d", "verdict"] == "better"
    assert table.loc["c", "verdict"] == "not shown; 0.050 would have been"
