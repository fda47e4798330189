"""Made-up folders in the formats of ml-1m, ml-10m, ml-100k and ml-25m, as GroupLens packs them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

GENRES_100K = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|"
    "Film-Noir|Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
)
TITLES = (
    "Misérables, Les (1995)",
    "Star Wars: Episode IV - A New Hope (1977)",
    'Great "Performances", The (1998)',
    "Shadow and Light (1996) ",  # ml-100k has a title that ends in a space
    "Cité des enfants perdus, La (City of Lost Children, The) (1995)",
    "M (1931)",
    "Land of Time (1995) (V)",
)
"""Titles with what makes a converter stumble; the other movies have plain ones."""

Rating = tuple[int, int, int, int]


def titles(movies: int) -> list[str]:
    plain = [f"Movie {number}, The ({1930 + number % 70})" for number in range(len(TITLES), movies)]
    return [*TITLES, *plain][:movies]


def ratings(users: int, movies: int, seed: int) -> list[Rating]:
    """Return (user, movie, stars 1-5, seconds), 20 or more a user where there are enough movies.

    Few movies get most ratings; some get none.
    """
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, movies + 1)
    rows = []
    for user in range(1, users + 1):
        count = min(int(20 + rng.exponential(25)), max(movies // 2, 1))
        chosen = 1 + rng.choice(movies, count, replace=False, p=weights / weights.sum())
        stars = rng.choice(5, count, p=[0.06, 0.11, 0.27, 0.34, 0.22]) + 1
        seconds = 874_724_710 + 1000 * user + rng.integers(0, 500, count)
        rows += zip([user] * count, chosen.tolist(), stars.tolist(), seconds.tolist(), strict=True)
    return rows


def genres(number: int) -> list[str]:
    names = GENRES_100K.split("|")
    return sorted({names[1 + number % 18], names[1 + number * 7 % 18]})


def write_ml_100k(folder: Path, users: int = 60, movies: int = 200, seed: int = 0) -> Path:
    """Write u.data, u.item, u.genre and u.user; one movie is "unknown" without a date or genre."""
    named = titles(movies)
    lines = []
    for number, title in enumerate(named, 1):
        of = genres(number)
        date, url = "01-Jan-1995", f"http://us.imdb.com/M/title-exact?{number}"
        if number == 12:
            title = named[10]  # ml-100k has movies under two ids
        if number == min(10, movies):
            title, date, url, of = "unknown", "", "", ["unknown"]
        flags = "|".join(str(int(name in of)) for name in GENRES_100K.split("|"))
        lines.append(f"{number}|{title}|{date}||{url}|{flags}")
    rows = ratings(users, movies, seed)
    np.random.default_rng(seed).shuffle(rows)  # u.data is in no order
    _write(folder / "u.data", ("\t".join(map(str, row)) for row in rows))
    _write(folder / "u.item", lines)
    _write(
        folder / "u.genre", [*(f"{name}|{i}" for i, name in enumerate(GENRES_100K.split("|"))), ""]
    )
    _write(folder / "u.user", (f"{user}|24|M|technician|85711" for user in range(1, users + 1)))
    return folder


def write_ml_1m(folder: Path, users: int = 60, movies: int = 200, seed: int = 0) -> Path:
    """Write ratings.dat, movies.dat and users.dat: ``::``, Latin-1, no header."""
    rows = ratings(users, movies, seed)
    _write(folder / "ratings.dat", ("::".join(map(str, row)) for row in rows))
    _write(folder / "movies.dat", _movies_dat(movies))
    _write(folder / "users.dat", (f"{user}::F::1::10::48067" for user in range(1, users + 1)))
    return folder


def write_ml_10m(folder: Path, users: int = 60, movies: int = 200, seed: int = 0) -> Path:
    """Write ratings.dat with half stars, movies.dat and tags.dat: ``::``, UTF-8, no header."""
    rows = [(u, m, stars - 0.5 * (m % 2), at) for u, m, stars, at in ratings(users, movies, seed)]
    _write(folder / "ratings.dat", ("::".join(map(str, row)) for row in rows))
    _write(folder / "movies.dat", _movies_dat(movies), "utf-8")
    tags = ('1::1::très "bien", really::1215184630', "2::3::a::b::1215184631", "2::2::NA::1")
    _write(folder / "tags.dat", tags, "utf-8")
    return folder


def _movies_dat(movies: int) -> Iterable[str]:
    for number, title in enumerate(titles(movies), 1):
        yield f"{number}::{title}::{'|'.join(genres(number))}"


def _write(path: Path, lines: Iterable[str], encoding: str = "latin-1") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{line}\n" for line in lines)
    path.write_text(text, encoding=encoding, newline="")
