"""The forms in which MovieLens comes: find one in a folder, turn it into the four CSV files.

ml-latest, ml-20m, ml-25m and ml-32m have the four files already. ml-100k (``u.data``, ``u.item``),
ml-1m and ml-10m (``ratings.dat``, ``movies.dat``) are converted once into the cache.
"""

from __future__ import annotations

import csv
import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import compress
from pathlib import Path

COLUMNS = {
    "ratings": ["userId", "movieId", "rating", "timestamp"],
    "movies": ["movieId", "title", "genres"],
    "links": ["movieId", "imdbId", "tmdbId"],
    "tags": ["userId", "movieId", "tag", "timestamp"],
}
"""The columns of the four CSV files, in their order."""
STARS = r"0?\.50*|[1-4](?:\.[05]0*)?|5(?:\.0+)?"
"""A rating of half or whole stars, as a pattern."""
NO_GENRES = "(no genres listed)"

FOUR_FILES = ("ratings.csv", "movies.csv")
ML_100K = ("u.data", "u.item")
ML_1M = ("ratings.dat", "movies.dat")
_FORMS = (FOUR_FILES, ML_100K, ML_1M)
_GENRES_100K = (
    "Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|"
    "Horror|Musical|Mystery|Romance|Sci-Fi|Thriller|War|Western"
)
"""The flags of u.item after the first, "unknown"."""
_ID, _TIME = "([0-9]{1,9})", "([0-9]{1,10})"
_RATING = "user, movie, stars from 0.5 to 5 and seconds, with {} between"
# The table that a file holds, a line of it as a pattern, and in words.
_FILES = {
    "u.data": ("ratings", rf"{_ID}\t{_ID}\t({STARS})\t{_TIME}", _RATING.format("a tab")),
    "ratings.dat": ("ratings", f"{_ID}::{_ID}::({STARS})::{_TIME}", _RATING.format("'::'")),
    "u.item": (
        "movies",
        rf"{_ID}\|(.*)(?:\|[^|]*){{4}}((?:\|[01]){{18}})",
        "movie, title, two dates, address and 19 flags, with '|' between",
    ),
    "movies.dat": ("movies", f"{_ID}::(.+)::(.*)", "movie, title and genres, with '::' between"),
    "tags.dat": (
        "tags",
        f"{_ID}::{_ID}::(.*)::{_TIME}",
        "user, movie, tag and seconds, with '::' between",
    ),
}
_SEPARATORS = {"::": "'::'", ";": "';'", "\t": "a tab", "|": "'|'", " ": "a space"}
_SPELLINGS = {
    "userId": {"userid", "user", "uid"},
    "movieId": {"movieid", "itemid", "movie", "item", "mid", "iid"},
    "rating": {"rating", "ratings", "score", "stars"},
    "timestamp": {"timestamp", "time", "ts", "unixtimestamp", "unixtime"},
    "title": {"title", "titles", "movietitle"},
    "genres": {"genres", "genre"},
    "imdbId": {"imdbid", "imdb"},
    "tmdbId": {"tmdbid", "tmdb"},
    "tag": {"tag", "tags"},
}


class DataError(ValueError):
    """A file cannot be used; the message names file, line and column and says what to do."""


# --- finding ------------------------------------------------------------------------------------


def find(folder: Path, source: str) -> tuple[Path, tuple[str, str]]:
    """Return the folder that holds MovieLens and the names of its files of ratings and of movies.

    That is ``folder`` or, where it has no such file, the one folder in it that has them.
    ``source`` is what named the folder, for messages.

    Raises:
        DataError: there is no such folder, it lacks a file, or several folders in it have one.
    """
    if folder.is_file():
        todo = "unpack it and " if _packed(folder.name) else ""
        raise DataError(
            f"{source} names a file, {folder.name}: {todo}name the folder with the MovieLens files."
        )
    if not folder.is_dir():
        raise DataError(
            f"{source} names a folder that does not exist: {folder}; point it at a folder with "
            "ratings.csv and movies.csv."
        )
    entries = sorted(folder.iterdir())
    names = {path.name for path in entries if _has(folder, path.name)}
    nearest = max(_FORMS, key=lambda form: len(names & {*form}))
    if names >= {*nearest}:
        return folder, nearest
    inside = {path: form for form in _FORMS for path in entries if _has(path, *form)}
    if inside and not names & {*nearest}:
        if len(inside) == 1:
            return next(iter(inside.items()))
        several = _listed(sorted(path.name for path in inside))
        raise DataError(f"{source} names a folder that holds {several}: name one of them.")
    missing = [name for name in nearest if name not in names]
    held = [path.name + "/" * path.is_dir() for path in entries if path.name[0] != "."]
    packed = [name for name in held if _packed(name)]
    raise DataError(
        f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing in the folder found by "
        f"{source}, which holds {_listed(held) or 'nothing'}; "
        + (f"if MovieLens is in {_listed(packed)}, unpack it first, " if packed else "")
        + "ratings.csv and movies.csv are wanted, or u.data and u.item (ml-100k), or ratings.dat "
        "and movies.dat (ml-1m)."
    )


def _has(folder: Path, *names: str) -> bool:
    try:
        return all((folder / name).is_file() for name in names)
    except PermissionError:
        return False


def _packed(name: str) -> bool:
    return name.lower().endswith((".zip", ".gz", ".tgz", ".tar", ".7z", ".rar"))


def _listed(names: list[str], most: int = 8) -> str:
    if len(names) > most:
        names = [*names[:most], f"{len(names) - most} more"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


# --- converting ---------------------------------------------------------------------------------


def convert(folder: Path, form: tuple[str, str], cache: Path) -> Path:
    """Return a folder below ``cache`` with the four CSV files made of ``folder``'s, in UTF-8.

    Ids, titles, genres and timestamps stay as they are; links and tags are empty where the release
    has none. It is made once, and again when size or time of a source file change.

    Raises:
        DataError: a line is not as in the release; names file and line.
        StorageError: ``cache`` cannot be written.
    """
    names = (*form, "tags.dat") if form == ML_1M else form
    sources = [path for name in names if (path := folder / name).is_file()]
    facts = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources
    ]
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    target = cache / folder.resolve().name / key
    if target.is_dir():
        return target
    for path in sources:
        path.open("rb").close()  # a file that cannot be read is no fault of the cache
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
    try:
        for table in COLUMNS:
            _write(fresh, table, [])
        for path in sources:
            _write(fresh, _FILES[path.name][0], _rows(path))
        fresh.chmod(0o755)
        fresh.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _write(folder: Path, table: str, rows: Iterable[Iterable[str]]) -> None:
    with (folder / f"{table}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS[table])
        writer.writerows(rows)


def _rows(path: Path) -> Iterator[Iterable[str]]:
    table, pattern, what = _FILES[path.name]
    form = re.compile(pattern)
    with path.open("rb") as file:
        for number, content in enumerate(file, 1):
            try:
                line = content.decode("utf-8-sig")  # ml-10m, and copies that somebody converted
            except UnicodeDecodeError:
                line = content.decode("latin-1")
            if match := form.fullmatch(line.rstrip("\r\n")):
                yield _movie(*match.groups()) if table == "movies" else match.groups()
            elif line.strip():
                raise DataError(
                    f"{path.name}, line {number}: {line.strip()[:80]!r} is not {what}; correct it "
                    "or unpack the release again."
                )


def _movie(movie: str, title: str, genres: str) -> tuple[str, str, str]:
    if re.fullmatch(r"(\|[01])+", genres):
        genres = "|".join(compress(_GENRES_100K.split("|"), map(int, genres[1::2])))
    # ml-100k itself calls movie 267 "unknown".
    return movie, title if title.strip() else "unknown", genres.strip() or NO_GENRES


# --- naming what a CSV file is -------------------------------------------------------------------


def header_fault(line: str, wanted: list[str]) -> str | None:
    """Say what is wrong with the first line of a CSV file and what to do; None when nothing is."""
    if "\r" in line:
        return "the lines end in carriage returns alone; save the file with ordinary line ends"
    fields = next(csv.reader([line]))
    if fields == wanted:
        return None
    header = f"the header should be {','.join(wanted)}"
    for separator, name in _SEPARATORS.items():
        parts = [part.strip('" ') for part in line.split(separator)]
        named = parts[0].isdecimal() or any(map(_column, parts))
        if len(parts) > len(fields) and named and (len(fields) == 1 or separator not in " |"):
            return f"the separator is {name}; write the file with commas, {header}"
    if fields[0].strip().isdecimal():
        return f"there is no header; put {','.join(wanted)} above this line"
    missing = {*wanted} - {*fields}
    odd = [f"{name!r} should be {_column(name)}" for name in fields if _column(name) in missing]
    if odd:
        return f"{', '.join(odd)}; {header}"
    for column in wanted:
        if column not in fields:
            return f"column {column} is missing; {header}"
    # Spark goes by position, pandas by name.
    return (
        f"the columns are {','.join(fields)}; put them in the order {','.join(wanted)}, "
        "with no others"
    )


def _column(name: str) -> str | None:
    """Return the column that ``name`` is another spelling of."""
    plain = re.sub("[^a-z]", "", name.lower())
    return next((column for column, known in _SPELLINGS.items() if plain in known), None)
