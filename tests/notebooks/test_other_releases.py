"""Notebooks 01, 02, 03 and 06 on other data than ml-latest-small: they run and say what is true.

On made-up releases and a small set always; on real copies of ml-100k and ml-1m where
``MOVIELENS_100K_DIR`` and ``MOVIELENS_1M_DIR`` name one.
"""

from __future__ import annotations

import os
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
import releases
from nbclient import NotebookClient

from conftest import ROOT
from helpers import data
from helpers.settings import Settings

# What shortens the wait. Notebook 03 takes up what 02 found.
PARAMETERS = {
    "01": "",
    "02": "RANKS, REGS = [6, 8], [0.1, 0.2, 0.4]",
    "03": "IMPLICIT_RANKS, ALPHAS = [8], [0.5, 1.0]",
    "06": "STEPS = 2",
}
OF_THE_SMALL_RELEASE = (
    r"\b610 users|of 610\b|users=610|9,?742|9,?724|100,?836|3,?446|3,?650 items|90,?274"
    r"|0\.0759|0\.0705|0\.1524|LlamaRec|LRURec|a third|most have one|near zero|35 ?%"
)


def write_small(folder):
    """30 users give 15 ratings of 3 stars each; titles have no year, and there is no user 12."""
    draw = np.random.default_rng(1)
    rows = [
        (user, movie, 3.0, 900_000_000 + 100 * place)
        for user in range(101, 131)
        for place, movie in enumerate(draw.choice(np.arange(1, 41), 15, replace=False))
    ]
    folder.mkdir(parents=True)
    ratings = pd.DataFrame(rows, columns=["userId", "movieId", "rating", "timestamp"])
    movies = pd.DataFrame({"movieId": range(1, 41), "genres": "unknown"})
    movies.insert(1, "title", "Movie " + movies["movieId"].astype(str))
    ratings.to_csv(folder / "ratings.csv", index=False)
    movies.to_csv(folder / "movies.csv", index=False)
    for table in ("links", "tags"):
        (folder / f"{table}.csv").write_text(",".join(data.TABLES[table]) + "\n")
    return folder


MADE_UP = {
    "ml-100k": releases.write_ml_100k,
    "ml-1m": releases.write_ml_1m,
    "small": write_small,
}
REAL = {"ml-100k copy": "MOVIELENS_100K_DIR", "ml-1m copy": "MOVIELENS_1M_DIR"}
RUNS = [
    *(("ml-100k", number) for number in ("01", "02", "03")),
    *(("ml-1m", number) for number in ("01", "06")),
    *(("small", number) for number in ("01", "02", "03")),
    *((name, number) for name in REAL for number in PARAMETERS),
]


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """A home and a data folder for each data set; 03 finds there what 02 saved."""
    made = {}

    def home_of(name):
        if name not in made:
            home = tmp_path_factory.mktemp(name.replace(" ", "-"))
            shutil.copytree(ROOT / "data" / "sample", home / "data" / "sample")
            if name in MADE_UP:
                folder = MADE_UP[name](home / "mine" / name)
            elif os.environ.get(REAL[name]):
                folder = os.environ[REAL[name]]
            else:
                pytest.skip(f"needs a copy of the release ({REAL[name]})")
            made[name] = {"HELPERS_HOME": str(home), "MOVIELENS_DIR": str(folder)}
        return made[name]

    return home_of


def told(number: str) -> str:
    """Run a notebook; return what it printed, columns close together, and its alt texts."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "\n" + PARAMETERS[number]
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()  # fmt: skip
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    alts = [output.get("metadata", {}).get("image/png", {}).get("alt", "") for output in outputs]
    text = "\n".join([*(output.get("text", "") for output in outputs), *alts])
    return re.sub(" +", " ", text)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), RUNS, ids=lambda part: part.replace(" ", "-"))
def test_it_runs_and_says_what_is_true(name, number, homes, monkeypatch):
    for variable, value in (homes(name) | {"LLM_MODE": "recorded"}).items():
        monkeypatch.setenv(variable, value)
    dataset = data.locate(Settings.from_env())
    ratings, movies = (data.load_pandas(dataset, table) for table in ("ratings", "movies"))
    users, rated = ratings["userId"].nunique(), ratings["movieId"].nunique()
    wanted = [f"the numbers computed here are those of {dataset.name}."]
    if number == "01":
        wanted += [
            f"{len(ratings):,} ratings by {users} users of {rated:,} movies; {len(movies):,} in",
            f"mean {ratings['rating'].mean():.2f} stars",
            "This data has no links.",
        ]
    if number == "03":
        wanted += [f"candidates for {users} users"]
    if number == "06":
        core = data.core(ratings, k=5)
        wanted += [f"{core['userId'].nunique()} users, {core['movieId'].nunique():,} items, "]
    if name == "small" and number in ("01", "03"):
        wanted += ["User 12 has no rating in this data: user 101 is shown instead."]
    text = told(number)
    assert re.findall(OF_THE_SMALL_RELEASE, text) == []
    assert [line for line in wanted if line not in text] == []
