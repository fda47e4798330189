"""What is asserted of a notebook sees a broken model: ALS is corrupted and a claim must fail."""

from __future__ import annotations

import shutil

import pytest
from nbclient.exceptions import CellExecutionError
from short_runs import execute

from conftest import ROOT, save_sample_results

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
# What breaks a notebook's models, and what is said of it.
BROKEN = {
    "02": (CORRUPT_FIT, "ALS is no better than the mean"),
    "03": (CORRUPT_FIT, "ALS is no better than the mean"),
    "05 explicit": (CORRUPT_FIT, "explicit ALS predicts no more stars"),
    "05 implicit": (CORRUPT_IMPLICIT_FIT, "implicit ALS does not place"),
}


@pytest.fixture
def home(monkeypatch, settings, tmp_path):
    """A home of its own: what a broken model writes must not stay for other tests."""
    shutil.copytree(settings.sample_dir, tmp_path / "data" / "sample")
    (tmp_path / "data" / "replies").symlink_to(settings.replies_dir)
    save_sample_results(tmp_path / "data" / "cache")
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path))
    monkeypatch.setenv("MOVIELENS_DIR", str(settings.sample_dir))
    monkeypatch.setenv("LLM_MODE", "recorded")


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize("case", BROKEN)
def test_a_corrupted_model_fails_an_assertion(case):
    """The sound models pass all of them, in the run of the notebooks on the sample."""
    broken, said = BROKEN[case]
    claims = ROOT / "tests" / "notebooks" / "claims" / f"{case[:2]}.py"
    with pytest.raises(CellExecutionError) as caught:
        execute(case[:2], before=broken, after=claims.read_text(encoding="utf-8"))
    assert caught.value.ename == "AssertionError" and said in caught.value.evalue
