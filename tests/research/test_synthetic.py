"""Simulated ratings of any size: their shape, and that there is something in them to learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from helpers import als, data
from helpers.data import Dataset
from research import synthetic
from research.synthetic import Shape

SIZE, BOTH = 100_836, ("csv", "parquet")


def whole(shape: Shape, seed: int = 0, **options) -> pd.DataFrame:
    world = synthetic.make_world(shape, seed)
    made = synthetic.parts(world, seed, **options)
    return pd.concat([table.to_pandas() for table in made], ignore_index=True)


@pytest.fixture(scope="module")
def ratings() -> pd.DataFrame:
    return whole(Shape.of(SIZE))


def gini(counts: np.ndarray) -> float:
    ordered = np.sort(counts)
    share = np.cumsum(ordered) / ordered.sum()
    return 1 - 2 * share.mean() + 1 / len(ordered)


def head(counts: np.ndarray, share: float) -> float:
    """The part of all ratings that the top ``share`` holds."""
    ordered = np.sort(counts)[::-1]
    return ordered[: round(share * len(ordered))].sum() / ordered.sum()


@pytest.mark.parametrize(
    ("size", "users", "movies"), [(SIZE, 610, 9_742), (32_000_204, 200_948, 87_585)]
)
def test_proportions_go_through_two_releases(size, users, movies):
    assert Shape.of(size) == Shape(users, movies, size)


@pytest.mark.parametrize("size", [1000, 4_321, 250_000])
def test_any_size_is_exact(size):
    table = whole(Shape.of(size), part=30_000)
    assert len(table) == size
    assert not table.duplicated(["userId", "movieId"]).any()
    counts = table.groupby("userId").size()
    shape = Shape.of(size)
    assert counts.min() >= 20 and len(counts) == shape.users == table["userId"].max()
    assert counts.max() <= 0.3 * shape.movies and table["movieId"].between(1, shape.movies).all()


@pytest.mark.parametrize("column", ["userId", "movieId"])
def test_a_few_hold_many_as_in_movielens(ratings, real, column):
    theirs = data.load_pandas(real, "ratings").groupby(column).size().to_numpy()
    ours = ratings.groupby(column).size().to_numpy()
    assert gini(ours) == pytest.approx(gini(theirs), abs=0.05)
    assert head(ours, 0.1) == pytest.approx(head(theirs, 0.1), abs=0.05)
    assert head(ours, 0.01) == pytest.approx(head(theirs, 0.01), abs=0.06)
    assert np.median(ours) == pytest.approx(np.median(theirs), rel=0.35)


def test_stars_and_times_look_like_movielens(ratings):
    stars = ratings["rating"]
    assert set(np.unique(stars)) == {half / 2 for half in range(1, 11)}
    assert 3.3 < stars.mean() < 3.7 and 0.9 < stars.std() < 1.2
    seconds = ratings.groupby("userId")["timestamp"]
    assert ratings["timestamp"].min() > 820_454_400  # 1996
    # A user has rated popular movies first and comes back on other days.
    counts = ratings.groupby("movieId").size()
    by_time = ratings.sort_values(["userId", "timestamp"])
    place = by_time.groupby("userId").cumcount() / by_time.groupby("userId")["rating"].transform(
        "size"
    )
    popular = by_time["movieId"].map(counts)
    assert popular[place < 0.2].mean() > popular[place > 0.8].mean()
    assert (seconds.max() - seconds.min()).median() > 86_400


def test_the_same_seed_gives_the_same_and_another_does_not():
    shape = Shape.of(5000)
    first = whole(shape, seed=3, part=1000)
    pd.testing.assert_frame_equal(first, whole(shape, seed=3, part=1000))
    assert not first.equals(whole(shape, seed=4, part=1000))


def test_heavy_users_are_drawn_by_the_same_law(monkeypatch):
    """Drawing again and drawing by arrival pick each movie about as often."""
    shape = Shape(400, 200, 400 * 30)
    world = replace(synthetic.make_world(shape, 1), counts=np.full(400, 30))
    picked = {}
    for name, limit in (("again", 1.0), ("arrival", 0.0)):
        monkeypatch.setattr(synthetic, "HEAVY", limit)
        table = next(synthetic.parts(world, 1)).to_pandas()
        assert len(table) == 12_000 and not table.duplicated(["userId", "movieId"]).any()
        picked[name] = np.bincount(table["movieId"], minlength=201)[1:]
    again, arrival = picked["again"], picked["arrival"]
    spread = np.sqrt(again + arrival + 1)
    assert np.abs((again - arrival) / spread).mean() < 1
    assert np.corrcoef(again, arrival)[0, 1] > 0.8


def test_files_are_those_of_movielens_and_say_what_they_are(tmp_path):
    folder = tmp_path / "made"
    shape = synthetic.write(folder, 20_000, formats=BOTH, part=6_000)
    dataset = Dataset(folder, "made", "test", True, False)
    counts = data.check(dataset)
    assert (counts.ratings, counts.users, counts.movies) == (20_000, shape.users, shape.movies)
    assert (folder / "SIMULATED").exists()
    files = sorted((folder / "ratings.parquet").glob("*.parquet"))
    assert len(files) > 2
    stored = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    text = data.load_pandas(dataset, "ratings")
    pd.testing.assert_frame_equal(stored, text, check_dtype=False)
    first = (folder / "ratings.csv").read_text(encoding="utf-8").splitlines()[1].split(",")
    assert len(first) == 4 and first[2][1] == "."
    with pytest.raises(FileExistsError):
        synthetic.write(folder, 20_000, formats=BOTH)


def test_tastes_can_be_learned(spark, tmp_path):
    synthetic.write(tmp_path / "made", 20_000, formats=("parquet",))
    table = spark.read.parquet(str(tmp_path / "made" / "ratings.parquet"))
    train, _, test = (part.cache() for part in data.split(table))
    rows, held_out = train.toPandas(), test.toPandas()
    mean = rows["rating"].mean()
    movie = (rows["rating"] - mean).groupby(rows["movieId"]).agg(lambda x: x.sum() / (len(x) + 5))
    left = rows["rating"] - mean - rows["movieId"].map(movie)
    user = left.groupby(rows["userId"]).agg(lambda x: x.sum() / (len(x) + 5))

    def without_taste(table):
        bias = table["movieId"].map(movie).fillna(0) + table["userId"].map(user).fillna(0)
        return mean + bias

    rest = spark.createDataFrame(rows.assign(rating=rows["rating"] - without_taste(rows)))
    factors = als.factors(als.make_als(8, 0.1).fit(rest))
    held_out["rating"] -= without_taste(held_out)
    assert factors.rmse(held_out) < 0.98 * np.sqrt((held_out["rating"] ** 2).mean())
