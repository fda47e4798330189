"""ALS helpers: errors, the grid, the same numbers on any machine."""

import json
import os
import subprocess
import sys

import pytest
from pyspark.ml.evaluation import RegressionEvaluator

from conftest import ROOT
from helpers import als, data


def test_the_grid_agrees_with_single_fits_and_its_errors_with_spark(spark, sample):
    train, validation, _ = data.split(data.load(spark, sample).ratings)
    grid = als.grid_search(train, validation, ranks=(4, 2), regs=(0.1, 0.4), max_iter=3)
    settings = [(2, 0.1), (2, 0.4), (4, 0.1), (4, 0.4)]
    assert list(zip(grid.table["rank"], grid.table.reg, strict=True)) == settings
    best = grid.table.loc[grid.table.validation_rmse.idxmin()]
    assert (grid.rank, grid.reg) == (best["rank"], best["reg"])
    model = als.make_als(grid.rank, grid.reg, max_iter=3).fit(train)
    for name, part in {"train": train, "validation": validation}.items():
        by_spark = RegressionEvaluator(labelCol="rating").evaluate(model.transform(part))
        assert best[f"{name}_rmse"] == pytest.approx(by_spark, rel=1e-6)


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
errors = [als.factors(plain).rmse(test.toPandas())]
split = [part.orderBy("userId", "movieId").toPandas().to_numpy().tolist() for part in parts]
print(json.dumps({"rows": split, "rmse": errors, "top": tops}))
"""


def test_one_and_four_cores_give_the_same_numbers():
    """The split row by row, the errors, and the ten best movies of every user."""
    found = []
    for cores in (1, 4):
        environment = os.environ | {"SPARK_MASTER": f"local[{cores}]"}
        printed = subprocess.check_output([sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT)
        found.append(json.loads(printed.splitlines()[-1]))
    first, other = found
    assert other["rows"] == first["rows"] and other["top"] == first["top"]
    assert other["rmse"] == pytest.approx(first["rmse"], abs=1e-9)
