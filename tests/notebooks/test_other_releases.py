"""Notebooks 01, 02, 03 and 06 on other data than ml-latest-small: they run and say what is true."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from short_runs import execute

from conftest import ROOT
from helpers import data
from helpers.settings import Settings
from research import splits

OF_THE_SMALL_RELEASE = (
    r"\b610 users|of 610\b|users=610|9,?742|9,?724|100,?836|3,?446|3,?650 items|90,?274"
    r"|0\.0759|0\.0705|0\.1524|LlamaRec|LRURec|a third|most have one|near zero|35 ?%"
)


def write_tables(folder, ratings, movies):
    """Write ratings and the movies' titles and genres, but no links and no tags."""
    folder.mkdir(parents=True)
    columns = [*data.TABLES["ratings"]]
    pd.DataFrame(ratings, columns=columns).to_csv(folder / "ratings.csv", index=False)
    named = pd.DataFrame(movies, columns=["title", "genres"])
    named.insert(0, "movieId", range(1, len(named) + 1))
    named.to_csv(folder / "movies.csv", index=False)
    for table in ("links", "tags"):
        (folder / f"{table}.csv").write_text(",".join(data.TABLES[table]) + "\n")
    return folder


def write_small(folder):
    """30 users give 15 ratings of 3 stars each; titles have no year, and there is no user 12."""
    draw = np.random.default_rng(1)
    rows = [
        (user, movie, 3.0, 900_000_000 + 100 * place)
        for user in range(101, 131)
        for place, movie in enumerate(draw.choice(np.arange(1, 41), 15, replace=False))
    ]
    return write_tables(folder, rows, [(f"Movie {n}", "unknown") for n in range(1, 41)])


def write_other(folder):
    """60 users give 20 ratings or more; few of 200 movies get most, some get none."""
    draw, genres = np.random.default_rng(0), ("Action", "Children's", "Drama", "Film-Noir", "War")
    weights, rows = 1 / np.arange(1, 201), []
    for user in range(1, 61):
        count = min(int(20 + draw.exponential(25)), 100)
        movies = 1 + draw.choice(200, count, replace=False, p=weights / weights.sum())
        stars = 1 + draw.choice(5, count, p=[0.06, 0.11, 0.27, 0.34, 0.22])
        seconds = 874_724_710 + 1000 * user + draw.integers(0, 500, count)
        rows += zip([user] * count, movies, stars, seconds, strict=True)
    titles = [f"Movie {number}, The ({1930 + number % 70})" for number in range(200)]
    titles[11] = titles[10]  # under two ids
    listed = [f"{genres[n % 5]}|{genres[(n + 1 + n % 3) % 5]}" for n in range(200)]
    return write_tables(folder, rows, zip(titles, listed, strict=True))


MADE_UP = {"other": write_other, "small": write_small}
RUNS = [("other", number) for number in ("01", "02", "03", "06")]
RUNS += [("small", number) for number in ("01", "02", "03")]


@pytest.fixture(scope="module")
def homes(tmp_path_factory):
    """A home and a data folder for each data set; 03 finds there what 02 saved."""
    made = {}

    def home_of(name):
        if name not in made:
            home = tmp_path_factory.mktemp(name)
            shutil.copytree(ROOT / "data" / "sample", home / "data" / "sample")
            (home / "data" / "results").mkdir()
            shutil.copy(
                ROOT / "data" / "results" / "05_story_user_12.csv", home / "data" / "results"
            )
            folder = MADE_UP[name](home / "mine" / name)
            made[name] = {"HELPERS_HOME": str(home), "MOVIELENS_DIR": str(folder)}
        return made[name]

    return home_of


def told(number: str) -> str:
    """Run a notebook; return what it printed, columns close together, and its alt texts."""
    notebook = execute(number)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    alts = [output.get("metadata", {}).get("image/png", {}).get("alt", "") for output in outputs]
    text = "\n".join([*(output.get("text", "") for output in outputs), *alts])
    return re.sub(" +", " ", text)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), RUNS)
def test_it_runs_and_says_what_is_true(name, number, homes, monkeypatch):
    for variable, value in (homes(name) | {"LLM_MODE": "recorded"}).items():
        monkeypatch.setenv(variable, value)
    dataset = data.locate(Settings.from_env())
    ratings, movies = (data.load_pandas(dataset, table) for table in ("ratings", "movies"))
    users, rated = ratings["userId"].nunique(), ratings["movieId"].nunique()
    wanted = [f"the numbers computed here are those of {dataset.name}."]
    if number == "01":
        wanted += [
            f"{len(ratings):,} ratings by {users} users\n",
            f"{rated:,} of the {len(movies):,} movies have a rating",
            f"mean {ratings['rating'].mean():.2f} stars",
        ]
    if number == "03":
        wanted += [f"candidates for {users} users"]
    if number == "06":
        core = splits.core(ratings, k=5)
        wanted += [f"{core['userId'].nunique()} users, {core['movieId'].nunique():,} items, "]
    if name == "small" and number in ("01", "03"):
        wanted += ["User 12 liked no movie here: user 101 is shown instead."]
    text = told(number)
    assert re.findall(OF_THE_SMALL_RELEASE, text) == []
    assert [line for line in wanted if line not in text] == []
