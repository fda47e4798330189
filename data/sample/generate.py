"""Generate the simulated sample: `python data/sample/generate.py [FOLDER]`.

The movies are real and well known (catalogue.txt: titles, years, genres from general knowledge).
The 150 users, their ratings, times and tags are invented by the model below, from one seed, so
that the course runs where MovieLens is missing. Nothing is copied from a MovieLens release, and no
finding about people can be drawn from it.

Model, in the order of the code:
- A movie has fame (1 to 9, from the catalogue), which gives its chance to be picked and the number
  of ratings it can get at most; most movies of fame 1 and 2 can get one. Its quality is drawn
  around a value that rises slightly with fame.
- A user has a generosity, a liking for each genre at the start and another at the end (tastes
  drift), a liking for older or newer movies, a number of ratings (20 to 220) and a few sessions
  over some years. User 12 is set by hand: likes romance and comedy, dislikes horror, war and crime.
  Every fourth film of that user is one somebody else chose, from the disliked kinds.
- A user picks the next movie by fame, liking, and closeness to the last pick (shared genres, near
  years), among movies already released, each once.
- stars = 3.45 + generosity + quality + liking + noise, rounded to halves, kept in 0.5 to 5.
- A few movies stay unrated. IMDb and TMDB numbers are left empty rather than invented.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
SEED = 20240229
USERS = 150
ROMCOM_USER = 12
LETTERS = {
    "A": "Action", "V": "Adventure", "N": "Animation", "K": "Children", "C": "Comedy",
    "X": "Crime", "O": "Documentary", "D": "Drama", "F": "Fantasy", "Z": "Film-Noir",
    "H": "Horror", "M": "Musical", "Y": "Mystery", "R": "Romance", "S": "Sci-Fi",
    "T": "Thriller", "W": "War", "E": "Western",
}  # fmt: skip
GENRES = list(LETTERS.values())
TAGS = {
    "Comedy": ["funny", "quirky", "witty"], "Sci-Fi": ["space", "thought-provoking", "future"],
    "Romance": ["feel-good", "love story"], "Crime": ["twist ending", "dark"],
    "Animation": ["family", "beautiful"], "Drama": ["moving", "slow"],
    "Horror": ["scary", "gore"], "Action": ["fast", "stunts"],
}  # fmt: skip


@dataclass(frozen=True)
class Movies:
    """The catalogue as arrays; ``genres`` is 0/1 of shape (movies, genres)."""

    titles: list[str]
    years: np.ndarray
    genres: np.ndarray
    fame: np.ndarray


def read_catalogue(path: Path) -> Movies:
    """Read catalogue.txt."""
    rows = [
        line.split("|")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    genres = np.zeros((len(rows), len(GENRES)))
    for index, (_, letters, _) in enumerate(rows):
        for letter in letters:
            genres[index, GENRES.index(LETTERS[letter])] = 1
    years = np.array([int(title[-5:-1]) for title, _, _ in rows])
    return Movies([row[0] for row in rows], years, genres, np.array([int(r[2]) for r in rows]))


def room_for_ratings(movies: Movies, random: np.random.Generator) -> np.ndarray:
    """Draw how many ratings each movie can get: the long tail."""
    room = np.full(len(movies.titles), USERS)
    choices = {1: [0, 1, 1, 1, 1, 1], 2: [1, 1, 1, 1, 2, 3], 3: [1, 1, 2, 4, 8, 12]}
    for fame, numbers in choices.items():
        some = movies.fame == fame
        room[some] = random.choice(numbers, size=some.sum())
    return room


def likings(user: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a user's liking of each genre at the start and at the end."""
    start = random.normal(0, 0.75, len(GENRES))
    end = start + random.normal(0, 0.5, len(GENRES))
    if user == ROMCOM_USER:
        start[:] = 0.0
        for genre, value in {
            "Romance": 1.9, "Comedy": 1.3, "Drama": 0.2, "Musical": 0.3, "Horror": -4.0,
            "War": -4.0, "Crime": -3.5, "Action": -2.5, "Thriller": -2.5,
        }.items():  # fmt: skip
            start[GENRES.index(genre)] = value
        end = start.copy()
        end[GENRES.index("Drama")] = 0.8
    return start, end


def times(count: int, random: np.random.Generator) -> np.ndarray:
    """Draw ``count`` rising times in seconds since 1970, in sessions over up to five years."""
    start = random.integers(915_148_800, 1_451_606_400)  # 1999 to 2015
    sessions = min(int(random.integers(1, 9)), count)
    gaps = random.exponential(150 * 86_400, sessions)
    gaps[0] = 0
    begin = (start + np.cumsum(gaps)).astype(np.int64)
    which = np.sort(random.integers(0, sessions, count))
    within = np.cumsum(random.integers(8, 90, count))
    return begin[which] + within


def simulate_user(
    user: int, movies: Movies, quality: np.ndarray, room: np.ndarray, random: np.random.Generator
) -> list[tuple[int, int, float, int]]:
    """Return one user's ratings in order of time; ``room`` is used up as they are made."""
    count = 36 if user == ROMCOM_USER else int(np.clip(random.lognormal(3.9, 0.55), 20, 220))
    generosity = 0.1 if user == ROMCOM_USER else random.normal(0, 0.4)
    start, end = likings(user, random)
    keenness = 2.5 if user == ROMCOM_USER else 0.9
    newer = 0.0 if user == ROMCOM_USER else random.normal(0, 0.3)
    free = room > 0
    per_genre = movies.genres / movies.genres.sum(axis=1, keepdims=True)
    rows, last = [], None
    for step, when in enumerate(times(count, random)):
        share = step / count
        liking = per_genre @ ((1 - share) * start + share * end)
        liking = liking + newer * (movies.years - 1985) / 30
        pull = 0.42 * movies.fame + keenness * liking
        if last is not None:
            shared = per_genre @ movies.genres[last]
            pull = pull + 1.2 * shared - 0.04 * np.abs(movies.years - movies.years[last])
        released = movies.years <= 1970 + when // 31_557_600
        able = free & released
        if user == ROMCOM_USER and step % 4 == 3:
            able, pull = able & (liking < -1), 0.42 * movies.fame
        chance = np.where(able, np.exp(pull - pull.max()), 0)
        pick = int(random.choice(len(chance), p=chance / chance.sum()))
        free[pick], last = False, pick
        room[pick] -= 1
        stars = 3.45 + generosity + quality[pick] + 0.8 * liking[pick] + random.normal(0, 0.5)
        rows.append((user, pick + 1, float(np.clip(np.round(stars * 2) / 2, 0.5, 5)), int(when)))
    return rows


def fill_tail(
    rows: list[tuple[int, int, float, int]], movies: Movies, quality: np.ndarray,
    room: np.ndarray, full: np.ndarray, random: np.random.Generator,
) -> None:  # fmt: skip
    """Give every movie that has room and no rating one, from a user chosen at random."""
    last_time = {user: when for user, _, _, when in rows}
    for movie in np.flatnonzero((full > 0) & (room == full)):
        able = [
            u for u, t in last_time.items()
            if u != ROMCOM_USER and 1970 + t // 31_557_600 > movies.years[movie]
        ]  # fmt: skip
        user = int(random.choice(able))
        last_time[user] += int(random.integers(20, 200))
        stars = 3.6 + quality[movie] + random.normal(0, 0.9)
        half = float(np.clip(np.round(stars * 2) / 2, 0.5, 5))
        rows.append((user, int(movie) + 1, half, last_time[user]))


def simulate(movies: Movies, random: np.random.Generator) -> list[tuple[int, int, float, int]]:
    """Return all ratings ``(userId, movieId, stars, seconds)``, by user and movie."""
    full = room_for_ratings(movies, random)
    room = full.copy()
    quality = 0.1 * (movies.fame - 4) + random.normal(0, 0.35, len(movies.titles))
    rows: list[tuple[int, int, float, int]] = []
    for user in range(1, USERS + 1):
        rows += simulate_user(user, movies, quality, room, random)
    fill_tail(rows, movies, quality, room, full, random)
    return sorted(rows)


def simulate_tags(
    rows: list[tuple[int, int, float, int]], movies: Movies, random: np.random.Generator
) -> list[tuple[int, int, str, int]]:
    """Return some tags by a sixth of the users on movies they rated."""
    taggers = {int(u) for u in random.choice(np.arange(1, USERS + 1), USERS // 6, replace=False)}
    tags = []
    for user, movie, _, when in rows:
        names = [g for g in TAGS if movies.genres[movie - 1, GENRES.index(g)]]
        if user in taggers and names and random.random() < 0.12:
            words = TAGS[names[int(random.integers(len(names)))]]
            tags.append((user, movie, words[int(random.integers(len(words)))], when + 5))
    return tags


def write(path: Path, header: list[str], rows: list[tuple]) -> None:
    """Write a CSV file in the format of MovieLens."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def main(folder: Path) -> None:
    """Write the four files into ``folder``."""
    movies = read_catalogue(HERE / "catalogue.txt")
    random = np.random.Generator(np.random.PCG64(SEED))
    ratings = simulate(movies, random)
    names = [
        "|".join(g for g, has in zip(GENRES, row, strict=True) if has) for row in movies.genres
    ]
    ids = range(1, len(movies.titles) + 1)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "movies.csv", ["movieId", "title", "genres"],
          list(zip(ids, movies.titles, names, strict=True)))  # fmt: skip
    write(folder / "ratings.csv", ["userId", "movieId", "rating", "timestamp"], ratings)
    write(folder / "links.csv", ["movieId", "imdbId", "tmdbId"], [(i, "", "") for i in ids])
    tags = simulate_tags(ratings, movies, random)
    write(folder / "tags.csv", ["userId", "movieId", "tag", "timestamp"], tags)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
