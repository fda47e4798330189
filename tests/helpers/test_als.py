"""ALS helpers: errors, baseline arithmetic, the same numbers on any machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from helpers import als, data


@pytest.fixture(scope="module")
def parts(spark, sample):
    tables = data.load(spark, sample)
    return [part.cache() for part in data.split(tables.ratings)]


def test_rmse_is_the_formula_and_refuses_gaps(spark):
    rows = [(4.0, 3.0), (2.0, 2.0), (5.0, 3.0)]
    table = spark.createDataFrame(rows, "rating double, prediction double")
    assert als.rmse(table) == pytest.approx(np.sqrt((1 + 0 + 4) / 3))
    with pytest.raises(ValueError, match="empty"):
        als.rmse(table.where("rating > 9"))
    with pytest.raises(ValueError, match="1 of 1 predictions are missing"):
        als.rmse(spark.createDataFrame([(4.0, float("nan"))], "rating double, prediction double"))


def test_the_grid_agrees_with_single_fits(parts):
    train, validation, test = parts
    options = {"ranks": (2, 4), "regs": (0.1, 0.4), "max_iter": 3}
    grid = als.grid_search(train, validation, test, **options)
    assert list(grid.rmse) == ["train", "validation", "test"]
    best = grid.table.loc[grid.table.validation_rmse.idxmin()]
    assert (grid.rank, grid.reg) == (best["rank"], best["reg"])
    model = als.make_als(grid.rank, grid.reg, max_iter=3).fit(train)
    assert als.rmse(model.transform(validation)) == pytest.approx(grid.rmse["validation"])
    with pytest.raises(ValueError, match="empty"):
        als.grid_search(train, validation, ranks=())


def test_errors_from_collected_factors_are_those_of_spark(parts, monkeypatch):
    train, validation, _ = parts
    options = {"ranks": (3,), "regs": (0.1, 0.3), "max_iter": 2}
    collected = als.grid_search(train, validation, **options)
    monkeypatch.setattr(als, "COLLECT_ROWS", 10)
    by_spark = als.grid_search(train, validation, **options)
    pd.testing.assert_frame_equal(collected.table, by_spark.table, rtol=1e-6)
    assert validation.count() > als.warm_rows(validation, train).count()  # some rows are dropped
    foreign = pd.DataFrame({"userId": [-1], "movieId": [1], "rating": [3.0]})
    with pytest.raises(ValueError, match="at least one"):
        als._rmse_of(als.factors(collected.model), foreign)


def test_the_bias_baseline_is_the_damped_mean(parts):
    train, validation, _ = parts
    rows = train.toPandas()
    mean = rows.rating.mean()
    by_movie = (rows.rating - mean).groupby(rows.movieId)
    movie_bias = by_movie.sum() / (by_movie.count() + 5)
    left = (rows.rating - mean - rows.movieId.map(movie_bias)).groupby(rows.userId)
    user_bias = left.sum() / (left.count() + 5)
    got = als.fit_bias_baseline(train).transform(validation).toPandas()
    wanted = mean + got.movieId.map(movie_bias).fillna(0) + got.userId.map(user_bias).fillna(0)
    np.testing.assert_allclose(got.prediction, wanted, atol=1e-5)


def test_residual_als_drops_no_row_and_beats_its_baseline(parts):
    train, validation, _ = parts
    base = als.fit_bias_baseline(train)
    got = als.fit_residual_als(train, base).transform(validation)
    assert got.count() == validation.count() > als.warm_rows(validation, train).count()
    assert als.rmse(got) < als.rmse(base.transform(validation))
    assert got.toPandas().prediction.between(0.5, 5).all()


SCRIPT = """
import json
from helpers import als, candidates, data
from helpers.spark import get_spark
dataset = data.locate()
parts = [part.cache() for part in data.split(data.load(get_spark(), dataset).ratings)]
train, validation, test = parts
rows = train.toPandas()
plain = als.make_als(6, 0.2, max_iter=5).fit(train)
implicit = als.make_als(6, 0.2, max_iter=5, implicit=True).fit(train)
residual = als.fit_residual_als(train, als.fit_bias_baseline(train), rank=4, max_iter=5)
tops = [
    candidates.Recommender(als.factors(model), rows, rows).recommend(n=10).movieId.tolist()
    for model in (plain, implicit)
]
errors = [als.rmse(model.transform(test)) for model in (plain, residual)]
split = [part.orderBy("userId", "movieId").toPandas().to_numpy().tolist() for part in parts]
print(json.dumps({"rows": split, "rmse": errors, "top": tops}))
"""


def test_one_two_and_four_cores_give_the_same_numbers():
    """The split row by row, the errors, and the ten best movies of every user."""
    found = []
    for cores in (1, 2, 4):
        environment = dict(os.environ, SPARK_MASTER=f"local[{cores}]")
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT,
            capture_output=True, text=True, timeout=300, check=True,
        )  # fmt: skip
        found.append(json.loads(done.stdout.strip().splitlines()[-1]))
    first = found[0]
    for other in found[1:]:
        assert other["rows"] == first["rows"] and other["top"] == first["top"]
        assert other["rmse"] == pytest.approx(first["rmse"], abs=1e-9)
