"""A notebook's assertions see a broken model: the ALS output is corrupted and a cell must fail."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell

from conftest import ROOT

CORRUPT = """
from pyspark.ml.recommendation import ALSModel
from pyspark.sql import functions as F
_transform = ALSModel.transform
ALSModel.transform = lambda self, rows, params=None: _transform(self, rows).withColumn(
    "prediction", {expression})
"""
BROKEN = {
    "02": "F.lit(3.0) - F.col('prediction')",
    "03": "F.col('prediction') + (F.col('movieId') % 7) / 2",
}


@pytest.mark.parametrize("number", BROKEN)
def test_a_corrupted_model_fails_an_assertion(number, monkeypatch, sample):
    monkeypatch.delenv("MOVIELENS_DIR", raising=False)
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, new_code_cell(CORRUPT.format(expression=BROKEN[number])))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )  # fmt: skip
    with pytest.raises(CellExecutionError) as caught:
        client.execute()
    assert caught.value.ename == "AssertionError"
