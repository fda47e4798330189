"""The split by hash depends on each row alone."""

from __future__ import annotations

import pytest

from helpers import data
from research import splits


def as_set(table) -> set[tuple]:
    return {tuple(row) for row in table.collect()}


def test_the_split_by_hash_depends_on_the_rows_alone(spark, sample):
    ratings = data.load(spark, sample).ratings
    first = [as_set(part) for part in splits.split_by_hash(ratings)]
    shuffled = ratings.repartition(5, "movieId").orderBy("rating")
    assert [as_set(part) for part in splits.split_by_hash(shuffled)] == first
    total = ratings.count()
    assert sum(map(len, first)) == total and len(set().union(*first)) == total
    # Four standard errors of a share of 0.2: a fair draw leaves them once in 16,000.
    for part, share in zip(first, (0.6, 0.2, 0.2), strict=True):
        assert len(part) / total == pytest.approx(
            share, abs=4 * (share * (1 - share) / total) ** 0.5
        )
    other = [as_set(part) for part in splits.split_by_hash(ratings, seed=1)]
    assert len(other[0] & first[0]) / len(first[0]) == pytest.approx(0.6, abs=0.04)
