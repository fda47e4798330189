"""Ratings in the shape of MovieLens, of any size, for measuring time and memory.

Nothing here is MovieLens and no finding about people follows from it. What a measurement needs is
kept: how many users, movies and ratings there are, that a few of each hold many of the ratings, and
that tastes have a low rank, so that matrix factorisation has something to learn.

The model, in the order of the code:

- Sizes follow a power law through ml-latest-small (100,836 ratings, 610 users, 9,742 movies) and
  ml-32m (32,000,204 ratings, 200,948 users, 87,585 movies).
- A user has 20 ratings, the least in MovieLens, and a number from a Lomax (Pareto II) law on top,
  cut where one user would have rated 30 % of the catalogue.
- A movie's chance to be picked falls with its rank as ``(rank + offset) ** -exponent``
  (Zipf and Mandelbrot), and is higher for users whose strongest taste it meets.
- A user picks movies one after the other, each once.
- stars = 3.5 + user bias + movie bias + taste . character + noise, in halves from 0.5 to 5, where
  taste and character are vectors of :data:`RANK` numbers, one per genre.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
from tqdm.auto import tqdm

GENRES = ("Action", "Comedy", "Drama", "Horror", "Romance", "Sci-Fi", "Thriller", "Western")
RANK = len(GENRES)
"""Dimensions of taste."""

SMALL, LARGE = (100_836, 610, 9_742), (32_000_204, 200_948, 87_585)
"""Ratings, users and movies of ml-latest-small and of ml-32m, from their README files."""

LEAST = 20
"""Ratings of a MovieLens user, at least."""

MOST = 0.3
"""Share of the catalogue that one user rates, at most; it is 0.28 in ml-latest-small."""

TAIL = 2.0
"""Exponent of the Lomax law of ratings per user."""

EXPONENT, OFFSET = 1.6, 150.0
"""Zipf and Mandelbrot's law of a movie's popularity."""

LEANING = 0.35
"""How far users prefer, in picking, movies that meet their strongest taste."""

HEAVY = 0.05
"""Share of the catalogue above which a user's movies are drawn in another way (see ``_picks``)."""

PART = 2_000_000
"""Ratings that are made and written at a time (about 24 bytes each)."""


@dataclass(frozen=True)
class Shape:
    """How many users, movies and ratings."""

    users: int
    movies: int
    ratings: int

    def __post_init__(self) -> None:
        """Refuse what no set of ratings can have.

        Raises:
            ValueError: users have fewer than 20 ratings on average, or more than 30 % of the
                catalogue.
        """
        if self.users < 1 or self.ratings < LEAST * self.users:
            raise ValueError(
                f"{self.ratings} ratings are fewer than {LEAST} for each of {self.users} users: "
                "ask for more ratings or fewer users."
            )
        if self.ratings > self.users * self._most():
            raise ValueError(
                f"{self.ratings} ratings by {self.users} users are more than {MOST:.0%} of "
                f"{self.movies} movies for each: ask for fewer ratings or more movies."
            )

    def _most(self) -> int:
        return int(MOST * self.movies)

    @classmethod
    def of(cls, ratings: int) -> Shape:
        """Return the users and movies that a MovieLens release of this size would have.

        Raises:
            ValueError: fewer than 1,000 ratings.
        """
        if ratings < 1000:
            raise ValueError(f"{ratings} ratings are too few for the shape of MovieLens: 1000 do.")
        position = np.log(ratings / SMALL[0]) / np.log(LARGE[0] / SMALL[0])
        users, movies = (
            round(small * (large / small) ** position)
            for small, large in zip(SMALL[1:], LARGE[1:], strict=True)
        )
        return cls(int(users), int(movies), int(ratings))


@dataclass(frozen=True)
class World:
    """Who rates what, and why.

    ``counts`` holds the ratings of each user; ``taste`` (users, RANK), ``character``
    (movies, RANK) and the two biases are in stars; ``popularity`` (movies,) sums to 1. User and
    movie numbers are the positions here, plus 1.
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
        low, high = (
            (scale, high) if np.minimum(above * scale, room).sum() < wanted else (low, scale)
        )
    share = np.minimum(above * high, room)
    counts = np.floor(share).astype(np.int64)
    left = int(wanted - counts.sum())
    counts[np.argsort(counts - share, kind="stable")[:left]] += 1
    return counts + LEAST


def parts(world: World, seed: int = 0, part: int = PART) -> Iterator[pa.Table]:
    """Make the ratings of some users after the others', about ``part`` ratings at a time.

    Columns and types are those of :data:`helpers.data.SCHEMAS`; rows are ordered by user and movie,
    as in MovieLens. A user is in one part only.
    """
    tables = _tables(world)
    start, number = 0, 0
    ends = np.cumsum(world.counts)
    while start < world.shape.users:
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + part, side="right")))
        random = np.random.default_rng([seed, 1, number])
        yield _part(world, np.arange(start, stop), tables, random)
        start, number = stop, number + 1


def _tables(world: World) -> np.ndarray:
    """Return running sums of the movies' chances, one row for each strongest taste.

    Row g runs from g to g + 1, so that one search in the flattened table serves all users.
    """
    weights = world.popularity * np.exp(LEANING * world.character.T.astype(float))
    sums = np.cumsum(weights, axis=1)
    return sums / sums[:, -1:] + np.arange(RANK)[:, None]


def _part(
    world: World, users: np.ndarray, tables: np.ndarray, random: np.random.Generator
) -> pa.Table:
    favourite = world.taste[users].argmax(axis=1)
    user, movie = _picks(world, users, favourite, tables, random)
    seconds = _times(world.counts[users], random)
    order = np.lexsort((movie, user))
    user, movie, seconds = user[order], movie[order], seconds[order]
    stars = 3.5 + world.user_bias[user] + world.movie_bias[movie]
    stars += np.einsum("ij,ij->i", world.taste[user], world.character[movie])
    stars += random.normal(0, 0.65, len(user)).astype(np.float32)
    halves = np.clip(np.round(stars * 2), 1, 10) / 2
    columns = {
        "userId": (user + 1).astype(np.int32),
        "movieId": (movie + 1).astype(np.int32),
        "rating": halves.astype(np.float32),
        "timestamp": seconds,
    }
    return pa.table(columns)


def _picks(
    world: World,
    users: np.ndarray,
    favourite: np.ndarray,
    tables: np.ndarray,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return users and movies, each pair once, in the order in which each user picks.

    To draw again where a movie came before is to draw without replacement. Users with many ratings
    would draw again too often: they get the movies that arrive first when each arrives at a rate
    equal to its chance, which is the same law.
    """
    movies = world.shape.movies
    need = world.counts[users]
    heavy = np.flatnonzero(need > HEAVY * movies)
    some_users, some_movies = [], []
    for place in heavy:
        chance = np.diff(tables[favourite[place]], prepend=favourite[place])
        arrival = random.standard_exponential(movies) / chance
        first = np.argpartition(arrival, need[place] - 1)[: need[place]]
        some_movies.append(first[np.argsort(arrival[first])])
        some_users.append(np.full(need[place], place))
    missing = need.copy()
    missing[heavy] = 0
    kept = np.empty(0, dtype=np.int64)  # place * movies + movie, in the order of drawing
    while missing.any():
        place = np.repeat(np.arange(len(users)), missing)
        point = favourite[place] + random.random(len(place))
        drawn = np.searchsorted(tables.ravel(), point, side="right") - favourite[place] * movies
        drawn = np.minimum(drawn, movies - 1)
        keys = np.concatenate([kept, place * movies + drawn])
        _, first = np.unique(keys, return_index=True)
        kept = keys[np.sort(first)]
        missing = need - np.bincount(kept // movies, minlength=len(users))
        missing[heavy] = 0
    light = kept[np.argsort(kept // movies, kind="stable")]
    place = np.concatenate([light // movies, *some_users])
    movie = np.concatenate([light % movies, *some_movies])
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


# --- files ----------------------------------------------------------------------------------------

NOTE = (
    "Simulated by research.synthetic in the shape of MovieLens, to measure time and memory. "
    "No finding about people follows from it.\n"
)
_STARS = pa.array([f"{half / 2:.1f}" for half in range(11)])


def write(
    folder: Path,
    ratings: int | Shape,
    seed: int = 0,
    *,
    formats: tuple[str, ...] = ("csv", "parquet"),
    part: int = PART,
    progress: bool = False,
) -> Shape:
    """Write a data set into a new folder, and the file ``SIMULATED`` that says what it is.

    ``movies.csv``, ``links.csv`` and ``tags.csv`` are always there; the ratings are written to
    ``ratings.csv``, to the folder ``ratings.parquet`` with one file for each part, or to both.
    Memory grows with ``part`` and, slowly, with the users and movies; not with the ratings.

    Args:
        folder: must be empty or missing.
        ratings: how many, in the proportions of MovieLens, or a shape of your own.
        seed: the same seed and part give the same data.
        formats: ``csv``, ``parquet`` or both.
        part: ratings at a time.
        progress: show a bar.

    Raises:
        FileExistsError: the folder holds something.
        ValueError: an unknown format, or a shape that cannot be.
    """
    if not formats or set(formats) - {"csv", "parquet"}:
        raise ValueError(f"formats is {formats}; choose from csv and parquet.")
    shape = ratings if isinstance(ratings, Shape) else Shape.of(ratings)
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder.name} is not empty: use a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "SIMULATED").write_text(NOTE, encoding="utf-8")
    world = make_world(shape, seed)
    _write_small(folder, world)
    if "parquet" in formats:
        (folder / "ratings.parquet").mkdir()
    text = folder / "ratings.csv"
    if "csv" in formats:
        text.write_text("userId,movieId,rating,timestamp\n", encoding="utf-8")
    with tqdm(total=shape.ratings, unit="rating", disable=not progress) as bar:
        for number, table in enumerate(parts(world, seed, part)):
            if "parquet" in formats:
                pq.write_table(table, folder / "ratings.parquet" / f"part-{number:04d}.parquet")
            if "csv" in formats:
                _append(text, table)
            bar.update(len(table))
    return shape


def _append(path: Path, table: pa.Table) -> None:
    halves = (table["rating"].to_numpy() * 2).astype(np.int64)
    table = table.set_column(2, "rating", _STARS.take(pa.array(halves)))
    options = pacsv.WriteOptions(include_header=False, quoting_style="none")
    with path.open("ab") as file:
        pacsv.write_csv(table, file, options)


def _write_small(folder: Path, world: World) -> None:
    """Write movies (genres are what its character is strongest in), links and a few tags."""
    random = np.random.default_rng([2, world.shape.movies])
    years = random.integers(1930, 2022, world.shape.movies)
    strong = world.character > 1.0
    strong[np.arange(len(strong)), world.character.argmax(axis=1)] = True
    movies, links, tags = ["movieId,title,genres"], ["movieId,imdbId,tmdbId"], []
    for number, (year, has) in enumerate(zip(years, strong, strict=True), 1):
        genres = "|".join(name for name, one in zip(GENRES, has, strict=True) if one)
        movies.append(f"{number},Simulated {number} ({year}),{genres}")
        links.append(f"{number},,")
    for number in np.flatnonzero(world.popularity >= np.sort(world.popularity)[-20]) + 1:
        word = GENRES[int(world.character[number - 1].argmax())].lower()
        tags.append(f"1,{number},{word},1640995200")
    for name, lines in (
        ("movies", movies),
        ("links", links),
        ("tags", ["userId,movieId,tag,timestamp", *tags]),
    ):
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
