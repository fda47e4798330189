"""Ratings in the shape of MovieLens, of any size, for measuring time and memory.

Nothing here is MovieLens and no finding about people follows from it. Kept is what a measurement
needs: how many users, movies and ratings there are, that a few of each hold many of the ratings,
and that tastes have a low rank, so that matrix factorisation has something to learn.

- Sizes follow a power law through ml-latest-small and ml-32m.
- A user has 20 ratings, the least in MovieLens, and a number from a Lomax (Pareto II) law on top,
  cut where one user would have rated 30 % of the catalogue.
- A movie's chance to be picked falls with its rank as ``(rank + offset) ** -exponent``
  (Zipf and Mandelbrot), and is higher for users whose strongest taste it meets.
- stars = 3.5 + user bias + movie bias + taste . character + noise, in halves from 0.5 to 5; taste
  and character have one number per genre.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

WORLD_GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Sci-Fi", "Thriller", "Western")
RANK = len(WORLD_GENRES)
SMALL, LARGE = (100_836, 610, 9_742), (32_000_204, 200_948, 87_585)
"""Ratings, users and movies of ml-latest-small and of ml-32m, from their README files."""

LEAST, MOST = 20, 0.3
"""Ratings of a user at least, and the share of the catalogue that one user rates at most."""
TAIL = 2.0  # exponent of the Lomax law of ratings per user
EXPONENT, OFFSET = 1.6, 150.0  # of a movie's popularity
LEANING = 0.35  # how far users prefer, in picking, movies that meet their strongest taste
HEAVY = 0.05  # share of the catalogue above which a user's movies are drawn in another way
PART = 2_000_000  # ratings that are made and written at a time (about 24 bytes each)
NOTE = (
    "Simulated by research.synthetic in the shape of MovieLens, to measure time and memory. "
    "No finding about people follows from it.\n"
)


@dataclass(frozen=True)
class Shape:
    """How many users, movies and ratings."""

    users: int
    movies: int
    ratings: int

    @classmethod
    def of(cls, ratings: int) -> Shape:
        """Return the users and movies that a MovieLens release of this size would have."""
        position = np.log(ratings / SMALL[0]) / np.log(LARGE[0] / SMALL[0])
        users, movies = (
            round(small * (large / small) ** position)
            for small, large in zip(SMALL[1:], LARGE[1:], strict=True)
        )
        return cls(int(users), int(movies), int(ratings))


@dataclass(frozen=True)
class World:
    """Who rates what, and why; user and movie ids are the positions here, plus 1.

    ``counts`` holds the ratings of each user; ``taste`` (users, RANK), ``character``
    (movies, RANK) and the two biases are in stars; ``popularity`` (movies,) sums to 1.
    """

    shape: Shape
    counts: np.ndarray
    popularity: np.ndarray
    taste: np.ndarray
    character: np.ndarray
    user_bias: np.ndarray
    movie_bias: np.ndarray


def make_world(shape: Shape, seed: int = 0) -> World:
    """Draw the users and the movies."""
    random = np.random.default_rng([seed, 0])
    popularity = (np.arange(shape.movies) + OFFSET) ** -EXPONENT
    character = random.normal(0, 1, (shape.movies, RANK)).astype(np.float32)
    taste = random.normal(0, 0.8 / RANK**0.5, (shape.users, RANK)).astype(np.float32)
    return World(
        shape,
        _counts(shape, random),
        random.permutation(popularity / popularity.sum()),
        taste,
        character,
        random.normal(0, 0.4, shape.users).astype(np.float32),
        random.normal(0, 0.4, shape.movies).astype(np.float32),
    )


def _counts(shape: Shape, random: np.random.Generator) -> np.ndarray:
    """Draw the ratings of each user so that they sum to exactly ``shape.ratings``."""
    above = random.pareto(TAIL, shape.users)
    room = int(MOST * shape.movies) - LEAST
    wanted = shape.ratings - LEAST * shape.users
    low, high = 0.0, room / above.min()
    for _ in range(100):  # the scale at which the cut numbers have the wanted sum
        scale = (low + high) / 2
        too_low = np.minimum(above * scale, room).sum() < wanted
        low, high = (scale, high) if too_low else (low, scale)
    share = np.minimum(above * high, room)
    counts = np.floor(share).astype(np.int64)
    missing = int(wanted - counts.sum())
    counts[np.argsort(counts - share, kind="stable")[:missing]] += 1
    return counts + LEAST


def parts(world: World, seed: int = 0, part: int = PART) -> Iterator[pa.Table]:
    """Make the ratings of some users after the others', about ``part`` ratings at a time.

    Columns, types and the order of rows are those of MovieLens. A user is in one part only.
    """
    # Running sums of the movies' chances, a row for each strongest taste. Row g runs from g to
    # g + 1, so that one search in the flattened table serves all users.
    weights = world.popularity * np.exp(LEANING * world.character.T.astype(float))
    sums = np.cumsum(weights, axis=1)
    tables = sums / sums[:, -1:] + np.arange(RANK)[:, None]
    start, number = 0, 0
    ends = np.cumsum(world.counts)
    while start < world.shape.users:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + part, side="right")))
        random = np.random.default_rng([seed, 1, number])
        yield _part(world, np.arange(start, stop), tables, random)
        start, number = stop, number + 1


def _part(
    world: World, users: np.ndarray, tables: np.ndarray, random: np.random.Generator
) -> pa.Table:
    user, movie = _picks(world, users, tables, random)
    seconds = _times(world.counts[users], random)
    order = np.lexsort((movie, user))
    user, movie, seconds = user[order], movie[order], seconds[order]
    stars = 3.5 + world.user_bias[user] + world.movie_bias[movie]
    stars += np.einsum("ij,ij->i", world.taste[user], world.character[movie])
    stars += random.normal(0, 0.65, len(user)).astype(np.float32)
    halves = np.clip(np.round(stars * 2), 1, 10) / 2
    ids = (user + 1).astype(np.int32), (movie + 1).astype(np.int32)
    columns = [*ids, halves.astype(np.float32), seconds]
    return pa.table(columns, names=["userId", "movieId", "rating", "timestamp"])


def _picks(
    world: World, users: np.ndarray, tables: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return users and movies, each pair once, in the order in which each user picks.

    Light users draw again where a movie came before. Heavy users get the movies that arrive first
    when each arrives at a rate equal to its chance, which is the same law.
    """
    movies, favourite = world.shape.movies, world.taste[users].argmax(axis=1)
    need = world.counts[users]
    heavy = np.flatnonzero(need > HEAVY * movies)
    heavy_users, heavy_movies = [], []
    for place in heavy:
        chance = np.diff(tables[favourite[place]], prepend=favourite[place])
        arrival = random.standard_exponential(movies) / chance
        first = np.argpartition(arrival, need[place] - 1)[: need[place]]
        heavy_movies.append(first[np.argsort(arrival[first])])
        heavy_users.append(np.full(need[place], place))
    missing = need.copy()
    missing[heavy] = 0
    kept = np.empty(0, dtype=np.int64)  # place * movies + movie, in the order of drawing
    while missing.any():
        place = np.repeat(np.arange(len(users)), missing)
        point = favourite[place] + random.random(len(place))
        drawn = np.searchsorted(tables.ravel(), point, side="right") - favourite[place] * movies
        keys = np.concatenate([kept, place * movies + np.minimum(drawn, movies - 1)])
        _, first = np.unique(keys, return_index=True)
        kept = keys[np.sort(first)]
        missing = need - np.bincount(kept // movies, minlength=len(users))
        missing[heavy] = 0
    light = kept[np.argsort(kept // movies, kind="stable")]
    place = np.concatenate([light // movies, *heavy_users])
    movie = np.concatenate([light % movies, *heavy_movies])
    order = np.argsort(place, kind="stable")
    return users[place[order]], movie[order]


def _times(counts: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return seconds since 1970, rising for each user: short gaps, and some of many days."""
    total = int(counts.sum())
    away = random.random(total) < 0.03
    gaps = random.exponential(np.where(away, 30 * 86_400, 40), total)
    first = np.cumsum(counts) - counts
    gaps[first] = 0
    run = np.cumsum(gaps)
    begin = random.integers(852_076_800, 1_640_995_200, len(counts))  # 1997 to 2021
    return np.repeat(begin, counts) + (run - np.repeat(run[first], counts)).astype(np.int64)


def write(
    folder: Path, ratings: int, seed: int = 0, *, formats: Collection[str], part: int = PART
) -> Shape:
    """Write a data set into a new folder, and the file ``SIMULATED`` that says what it is.

    The ratings go to ``ratings.csv`` or the folder ``ratings.parquet`` with a file for each part
    (``formats``); the other three tables are always CSV. Memory grows with ``part``.
    """
    shape = Shape.of(ratings)
    world = make_world(shape, seed)
    folder.mkdir(parents=True)
    (folder / "SIMULATED").write_text(NOTE, encoding="utf-8")
    _write_movies(folder, world)
    if "csv" in formats:
        header = "userId,movieId,rating,timestamp\n"
        (folder / "ratings.csv").write_text(header, encoding="utf-8")
    if "parquet" in formats:
        (folder / "ratings.parquet").mkdir()
    options = pacsv.WriteOptions(include_header=False, quoting_style="none")
    halves = pa.array([f"{half / 2:.1f}" for half in range(11)])  # 4.0, not 4
    for number, table in enumerate(parts(world, seed, part)):
        if "parquet" in formats:
            pq.write_table(table, folder / "ratings.parquet" / f"part-{number:04d}.parquet")
        if "csv" in formats:
            stars = halves.take(pa.array((table["rating"].to_numpy() * 2).astype(np.int64)))
            with (folder / "ratings.csv").open("ab") as file:
                pacsv.write_csv(table.set_column(2, "rating", stars), file, options)
    return shape


def _write_movies(folder: Path, world: World) -> None:
    """Write movies (its genre is what its character is strongest in), links and one tag."""
    ids = np.arange(world.shape.movies) + 1
    titles = [f"Simulated {number} (2000)" for number in ids]
    genres = np.array(WORLD_GENRES)[world.character.argmax(axis=1)]
    tables = {
        "movies": {"movieId": ids, "title": titles, "genres": genres},
        "links": {"movieId": ids, "imdbId": "", "tmdbId": ""},
        "tags": {"userId": 1, "movieId": ids[:1], "tag": "simulated", "timestamp": 1_640_995_200},
    }
    for name, columns in tables.items():
        pd.DataFrame(columns).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
