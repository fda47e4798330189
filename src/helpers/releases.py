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
from pathlib import Path

from helpers.faults import storing

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
        todo = "unpack it and name the folder" if _packed(folder.name) else "name the folder"
        raise DataError(f"{source} names a file, {folder.name}: {todo} with the MovieLens files.")
    if not folder.is_dir():
        raise DataError(
            f"{source} names a folder that does not exist: {folder}; point it at a folder with "
            "ratings.csv and movies.csv."
        )
    names = {path.name for path in folder.iterdir() if _has(folder, path.name)}
    nearest = max(_FORMS, key=lambda form: len(names & {*form}))
    if names >= {*nearest}:
        return folder, nearest
    inside = {path: form for form in _FORMS for path in folder.iterdir() if _has(path, *form)}
    if len(inside) == 1 and not names & {*nearest}:
        return next(iter(inside.items()))
    if inside and not names & {*nearest}:
        several = _listed(sorted(path.name for path in inside))
        raise DataError(f"{source} names a folder that holds {several}: name one of them.")
    missing = [name for name in nearest if name not in names]
    held = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    todo = (
        "a MovieLens folder holds ratings.csv and movies.csv, or u.data and u.item (ml-100k), "
        "or ratings.dat and movies.dat (ml-1m)"
    )
    if packed := [name for name in held if _packed(name)]:
        todo = f"unpack {packed[0]} and name its folder"
    raise DataError(
        f"{_listed(missing)} {'is' if len(missing) == 1 else 'are'} missing in the folder found by "
        f"{source}, which holds {_listed(held) or 'nothing'}; {todo}."
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
    sources = [path for name in (*form, "tags.dat") if (path := folder / name).is_file()]
    facts = [
        (str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in sources
    ]
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    target = cache / folder.resolve().name / key
    if target.is_dir():
        return target
    with storing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".", dir=target.parent))
        try:
            separator = "\t" if form == ML_100K else "::"
            _write(fresh, "ratings", _ratings(folder / form[0], separator))
            movies = _movies_100k if form == ML_100K else _movies_1m
            _write(fresh, "movies", movies(folder / form[1]))
            _write(fresh, "links", [])
            _write(fresh, "tags", _tags(folder / "tags.dat") if form == ML_1M else [])
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


def _ratings(path: Path, separator: str) -> Iterator[Iterable[str]]:
    parts = ("[0-9]{1,9}", "[0-9]{1,9}", STARS, "[0-9]{1,10}")
    pattern = re.compile(separator.join(f"({part})" for part in parts))
    with path.open(encoding="utf-8-sig", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if match := pattern.fullmatch(line.rstrip("\r\n")):
                yield match.groups()
            elif line.strip():
                what = f"user, movie, stars from 0.5 to 5 and seconds, with {separator!r} between"
                raise _fault(path, number, line, what)


def _tags(path: Path) -> Iterator[Iterable[str]]:
    for number, line in _lines(path) if path.is_file() else []:
        match = re.fullmatch("([0-9]{1,9})::([0-9]{1,9})::(.*)::([0-9]{1,10})", line)
        if not match:
            raise _fault(path, number, line, "user, movie, tag and seconds, with '::' between")
        yield match.groups()


def _movies_1m(path: Path) -> Iterator[Iterable[str]]:
    for number, line in _lines(path):
        movie, *title, genres = line.split("::")
        if not (movie.isdecimal() and title):
            raise _fault(path, number, line, "movie, title and genres, with '::' between")
        yield movie, "::".join(title), genres.strip() or NO_GENRES


def _movies_100k(path: Path) -> Iterator[Iterable[str]]:
    for number, line in _lines(path):
        fields = line.split("|")
        flags = fields[-18:]
        if len(fields) < 24 or not fields[0].isdecimal() or {*flags} - {"0", "1"}:
            raise _fault(
                path, number, line, "movie, title, two dates, address and 19 flags, by '|'"
            )
        genres = [
            name for name, flag in zip(_GENRES_100K.split("|"), flags, strict=True) if flag == "1"
        ]
        title = "|".join(fields[1:-22])
        # The release itself calls movie 267 "unknown".
        yield fields[0], title if title.strip() else "unknown", "|".join(genres) or NO_GENRES


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")  # ml-10m, and copies that somebody converted
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r")


def _fault(path: Path, number: int, line: str, what: str) -> DataError:
    return DataError(
        f"{path.name}, line {number}: {line.strip()[:80]!r} is not {what}; correct it or unpack "
        "the release again."
    )


# --- naming what a CSV file is -------------------------------------------------------------------


def header_fault(line: str, wanted: list[str]) -> str | None:
    """Say what is wrong with the first line of a CSV file and what to do; None when nothing is."""
    if "\r" in line:
        return "the lines end in carriage returns alone; save the file with ordinary line ends"
    fields = next(csv.reader([line]))
    if fields == wanted:
        return None
    header = f"the header should be {','.join(wanted)}"
    for separator, name in (
        ("::", "'::'"),
        (";", "';'"),
        ("\t", "a tab"),
        ("|", "'|'"),
        (" ", "a space"),
    ):
        parts = [part.strip('" ') for part in line.split(separator)]
        named = parts[0].isdecimal() or any(map(_column, parts))
        if len(parts) > len(fields) and named:
            return f"the separator is {name}; write the file with commas, {header}"
    if fields[0].strip().isdecimal():
        return f"there is no header; put {','.join(wanted)} above this line"
    odd = {name: _column(name) for name in fields if name not in wanted}
    odd = {
        name: column for name, column in odd.items() if column in wanted and column not in fields
    }
    if odd:
        renamed = ", ".join(f"{name!r} should be {column}" for name, column in odd.items())
        return f"{renamed}; {header}"
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
