"""What is asserted of a notebook sees a broken model: ALS is corrupted and a claim must fail."""

from __future__ import annotations

import shutil

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell

from conftest import ROOT

CORRUPT_OUTPUT = """
from pyspark.ml.recommendation import ALSModel
from pyspark.sql import functions as F
_transform = ALSModel.transform
ALSModel.transform = lambda self, rows, params=None: _transform(self, rows).withColumn(
    "prediction", {expression})
"""
# Every fit learns the opposite of what users said. Unlike a corrupted output, it is the same model
# for every way to read it (Spark's transform, the collected factors), so that comparing the ways
# finds nothing.
CORRUPT_FIT = """
from pyspark.ml.recommendation import ALS
from pyspark.sql import functions as F
_fit = ALS.fit
def _broken(self, rows, params=None):
    target = self.getRatingCol()
    turned = F.lit(5.5 if target == "rating" else 0.0) - F.col(target)
    return _fit(self, rows.withColumn(target, turned.cast("float")))
ALS.fit = _broken
"""
# Implicit feedback has no opposite rating, so its movies change places: the first with the last.
CORRUPT_IMPLICIT_FIT = """
from pyspark.ml.recommendation import ALS
_fit = ALS.fit
def _broken(self, rows, params=None):
    if self.getImplicitPrefs():
        table = rows.toPandas()
        ids = sorted(table["movieId"].unique())
        table["movieId"] = table["movieId"].map(dict(zip(ids, reversed(ids))))
        rows = rows.sparkSession.createDataFrame(table, rows.schema).coalesce(1)
    return _fit(self, rows, params)
ALS.fit = _broken
"""
BROKEN = {
    "02 output": CORRUPT_OUTPUT.format(expression="F.lit(3.0) - F.col('prediction')"),
    "03 output": CORRUPT_OUTPUT.format(
        expression="F.col('prediction') + (F.col('movieId') % 7) / 2"
    ),
    "02 fit": CORRUPT_FIT,
    "03 fit": CORRUPT_FIT,
    "05 explicit fit": CORRUPT_FIT,
    "05 implicit fit": CORRUPT_IMPLICIT_FIT,
}
# What notebooks 02 and 03 find on the sample; notebook 05 starts from it.
FOUND = {
    "02_grid": "rank,reg,train_rmse,validation_rmse\n6,0.2,0.534112,0.652525\n",
    "03_implicit": "rank,alpha,reg\n8,0.5,0.2\n",
}


@pytest.fixture
def home(monkeypatch, settings, tmp_path):
    """A home of its own: what a broken model writes must not stay for other tests."""
    shutil.copytree(settings.sample_dir, tmp_path / "data" / "sample")
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path))
    monkeypatch.setenv("MOVIELENS_DIR", str(settings.sample_dir))
    return tmp_path


def execute(number, home, broken=None):
    if number == "05":
        results = home / "data" / "cache" / "results" / "sample"
        results.mkdir(parents=True)
        for name, text in FOUND.items():
            (results / f"{name}.csv").write_text(text, encoding="utf-8")
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    if broken:
        notebook.cells.insert(0, new_code_cell(broken))
    claims = ROOT / "tests" / "notebooks" / "claims" / f"{number}.py"
    if claims.is_file():
        notebook.cells.append(new_code_cell(claims.read_text(encoding="utf-8")))
    NotebookClient(
        notebook, timeout=600, kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_corrupted_model_fails_an_assertion(case, home):
    with pytest.raises(CellExecutionError) as caught:
        execute(case[:2], home, BROKEN[case])
    assert caught.value.ename == "AssertionError"


def test_notebook_05_passes_in_the_same_home_with_sound_models(home):
    execute("05", home)
