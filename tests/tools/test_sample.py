"""The simulated sample: made again byte for byte, and like MovieLens where the course needs it."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
from pyspark.ml.recommendation import ALS

from conftest import ROOT
from helpers.data import Dataset, check, load, load_pandas, split

SAMPLE = ROOT / "data" / "sample"
GENRES = {
    "Action", "Adventure", "Animation", "Children", "Comedy", "Crime", "Documentary", "Drama",
    "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
    "Western",
}  # fmt: skip


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


def test_titles_and_genres_are_in_the_style_of_movielens(movies):
    assert movies["title"].map(lambda title: bool(re.search(r" \((19|20)\d\d\)$", title))).all()
    assert not movies["title"].str.match(r"(The|A|An) ").any(), "the article goes last"
    used = set("|".join(movies["genres"]).split("|"))
    assert used <= GENRES
    assert len(used) >= 15


def test_two_titles_belong_to_two_rated_movies_each(ratings, movies):
    twice = movies[movies["title"].duplicated(keep=False)]
    assert sorted(set(twice["title"])) == ["Emma (1996)", "War of the Worlds (2005)"]
    assert len(twice) == 4
    assert not twice.duplicated(["title", "genres"]).any()
    assert set(twice["movieId"]) <= set(ratings["movieId"])


def test_no_link_is_invented(folder):
    links = load_pandas(folder, "links")
    assert (links["imdbId"] == "").all() and links["tmdbId"].isna().all()


def test_long_tail(ratings):
    per_movie = ratings.groupby("movieId").size().sort_values(ascending=False)
    assert (per_movie == 1).mean() >= 0.25
    assert per_movie.head(len(per_movie) // 10).sum() > 0.3 * len(ratings)


def test_no_movie_is_rated_before_its_year(ratings, movies):
    years = movies.set_index("movieId")["title"].str[-5:-1].astype(int)
    rated = ratings["timestamp"] // 31_557_600 + 1970
    assert (rated >= ratings["movieId"].map(years)).all()


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


def test_als_beats_the_global_mean(spark, folder):
    train, validation, _ = split(load(spark, folder).ratings)
    als = ALS(
        rank=8, regParam=0.2, seed=0, userCol="userId", itemCol="movieId", ratingCol="rating",
        coldStartStrategy="drop",
    )  # fmt: skip
    predicted = als.fit(train).transform(validation).toPandas()
    errors = predicted["rating"] - predicted["prediction"]
    deviations = predicted["rating"] - train.toPandas()["rating"].mean()
    assert (errors**2).mean() < 0.8 * (deviations**2).mean()
