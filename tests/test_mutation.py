"""A notebook's assertions see a broken model: ALS is corrupted and a cell must fail."""

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
BROKEN = {
    "02 output": CORRUPT_OUTPUT.format(expression="F.lit(3.0) - F.col('prediction')"),
    "03 output": CORRUPT_OUTPUT.format(
        expression="F.col('prediction') + (F.col('movieId') % 7) / 2"
    ),
    "02 fit": CORRUPT_FIT,
    "03 fit": CORRUPT_FIT,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_corrupted_model_fails_an_assertion(case, monkeypatch, settings, tmp_path):
    number = case[:2]
    # A home without saved models and tables: a sound one would be loaded in place of the broken,
    # and a broken one must not stay for other tests.
    shutil.copytree(settings.sample_dir, tmp_path / "data" / "sample")
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path))
    monkeypatch.setenv("MOVIELENS_DIR", str(settings.sample_dir))
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, new_code_cell(BROKEN[case]))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    with pytest.raises(CellExecutionError) as caught:
        client.execute()
    assert caught.value.ename == "AssertionError"
