"""ALS helpers: errors, the grid, the same numbers on any machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
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
    with pytest.raises(ValueError, match="are missing"):
        als.rmse(table.where("rating > 9"))
    with pytest.raises(ValueError, match="coldStartStrategy"):
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


def test_errors_from_the_factors_are_those_of_spark(parts):
    train, validation, _ = parts
    model = als.make_als(3, 0.1, max_iter=2).fit(train)
    by_spark = als.rmse(model.transform(validation))
    assert als.factors(model).rmse(validation.toPandas()) == pytest.approx(by_spark, rel=1e-6)


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
tops = [
    candidates.Recommender(als.factors(model), rows, rows).recommend(n=10).movieId.tolist()
    for model in (plain, implicit)
]
errors = [als.rmse(plain.transform(test))]
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
