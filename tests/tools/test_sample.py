"""The simulated sample: made again byte for byte, and like MovieLens where the course needs it."""

import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from helpers.data import Dataset, check, load_pandas

SAMPLE = ROOT / "data" / "sample"


@pytest.fixture(scope="module")
def folder() -> Dataset:
    """The sample itself, also where a copy of MovieLens would be found first."""
    return Dataset(SAMPLE, "sample (simulated)", "data/sample", simulated=True, verified=False)


@pytest.fixture(scope="module")
def ratings(folder):
    return load_pandas(folder, "ratings")


@pytest.fixture(scope="module")
def movies(folder):
    return load_pandas(folder, "movies")


def test_the_generator_writes_the_committed_bytes(tmp_path):
    command = [sys.executable, str(SAMPLE / "generate.py"), str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)
    made = sorted(path.name for path in tmp_path.iterdir())
    assert made == ["links.csv", "movies.csv", "ratings.csv", "tags.csv"]
    for name in made:
        assert (tmp_path / name).read_bytes() == (SAMPLE / name).read_bytes(), name


def test_size_and_validity(folder, ratings):
    counts = check(folder)
    assert counts.movies >= 400
    assert counts.users == 150
    assert counts.rated_movies < counts.movies, "some movies should have no rating"
    assert ratings.groupby("userId").size().min() >= 20
    assert set(ratings["rating"]) <= set(np.arange(1, 11) / 2)
    assert counts.tags > 100


def test_two_titles_belong_to_two_rated_movies_each(ratings, movies):
    twice = movies[movies["title"].duplicated(keep=False)]
    assert sorted(set(twice["title"])) == ["Emma (1996)", "War of the Worlds (2005)"]
    assert len(twice) == 4
    assert not twice.duplicated(["title", "genres"]).any()
    assert set(twice["movieId"]) <= set(ratings["movieId"])


def test_no_link_is_invented(folder):
    links = load_pandas(folder, "links")
    assert (links["imdbId"] == "").all() and links["tmdbId"].isna().all()


def test_user_12_likes_romantic_comedies_and_dislikes_violence(ratings, movies):
    mine = ratings[ratings["userId"] == 12].merge(movies, on="movieId")
    assert 30 <= len(mine) <= 40
    romance = mine["genres"].str.contains("Romance")
    romcom = romance & mine["genres"].str.contains("Comedy")
    violent = mine["genres"].str.contains("Horror|War|Crime|Action") & ~romance
    assert romcom.sum() >= 10
    assert violent.sum() >= 6
    assert mine.loc[romcom, "rating"].mean() > mine.loc[violent, "rating"].mean() + 1.5
    assert mine.loc[violent, "rating"].median() <= 2.5
    assert (mine["rating"] < mine["rating"].mean() - 1).sum() >= 4


def test_tastes_drift(ratings, movies):
    """A user's genres differ more between early and late ratings than between random halves."""
    genres = movies.set_index("movieId")["genres"].str.get_dummies("|")
    random = np.random.default_rng(0)
    drift, chance = [], []
    for _, rows in ratings.sort_values("timestamp").groupby("userId"):
        mine = genres.loc[rows["movieId"]].to_numpy()
        half = len(mine) // 2
        drift.append(np.abs(mine[:half].mean(0) - mine[half:].mean(0)).sum())
        mixed = mine[random.permutation(len(mine))]
        chance.append(np.abs(mixed[:half].mean(0) - mixed[half:].mean(0)).sum())
    assert np.mean(drift) > 1.05 * np.mean(chance)
