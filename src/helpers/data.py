"""Find, check, load and split MovieLens, or the simulated sample that stands in for it.

Everything is keyed by ``movieId``: five titles of ml-latest-small belong to two movies each.
Source of the data: F. Maxwell Harper and Joseph A. Konstan 2015, "The MovieLens Datasets: History
and Context", doi 10.1145/2827872.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import http.client
import io
import os
import re
import tempfile
import urllib.request
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import (
    FloatType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
)

from helpers import releases
from helpers.releases import COLUMNS, DataError
from helpers.settings import Settings

NAME = "ml-latest-small"
URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
TABLES = ("ratings", "movies", "links", "tags")
OPTIONAL = ("links", "tags")
"""Tables without rows where their file is missing."""
SHA256 = {
    "ratings.csv": "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
    "movies.csv": "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07",
    "links.csv": "97ad18e4e56a09363c65676b6cb3482ce3e2cea2372a24620c1599c843325f31",
    "tags.csv": "92a9f8bb7916dceef6151209845788c3643f794dfa79d1feaec7121b5960399d",
}

_ID = (IntegerType(), "[0-9]{1,9}", "is not a whole number from 0 to 999999999")
_TEXT = (StringType(), r"[^\r\n]*\S[^\r\n]*", "is empty or runs over the end of the line")
# Type and form of each column. The forms are stricter than a cast: Spark turns " 5" or 3000000000
# in a column of integers into null without a word, and reads line by line.
_FORMS = {
    "userId": _ID,
    "movieId": _ID,
    "rating": (FloatType(), releases.STARS, "is not a half-star rating from 0.5 to 5"),
    "timestamp": (LongType(), "[0-9]{1,10}", "is not a time in whole seconds since 1970"),
    "title": _TEXT,
    "genres": _TEXT,
    "imdbId": (StringType(), "[0-9]*", "is neither empty nor a number"),  # with leading zeros
    "tmdbId": (
        IntegerType(),
        "[0-9]{0,9}",
        "is neither empty nor a whole number up to 999999999",
    ),
    "tag": (StringType(), r"[^\r\n]*", "runs over the end of the line"),
}
SCHEMAS = {
    table: StructType([StructField(column, _FORMS[column][0]) for column in columns])
    for table, columns in COLUMNS.items()
}
"""Spark schemas of the four files, in the order of their columns."""


@dataclass(frozen=True)
class Dataset:
    """A folder with the four CSV files, and how it was found.

    ``verified`` means that all four files have the SHA-256 of ml-latest-small; ``note`` says why
    the sample is used, or what was converted or is missing.
    """

    path: Path
    name: str
    source: str
    simulated: bool
    verified: bool
    note: str = ""

    @property
    def checked(self) -> bool:
        """Whether the course's claims were checked on this data: ml-latest-small or the sample."""
        return self.verified or self.simulated

    def describe(self) -> str:
        """Return one line for the top of a notebook; it names no path of this machine."""
        if self.simulated:
            why = self.note or f"found by {self.source}"
            return (
                f"Data: a SIMULATED sample, not MovieLens ({why}). For the real release set "
                "MOVIELENS_DIR or unpack ml-latest-small into data/."
            )
        if self.verified:
            return f"Data: {self.name}, verified by SHA-256 (found by {self.source})"
        other = self.note or f"other than {'GroupLens publishes' if self.name == NAME else NAME}"
        mine = "this copy" if self.name == NAME else self.name
        return (
            f"Data: {self.name}, {other}, unverified (found by {self.source}). The text speaks of "
            f"{NAME}; the numbers computed here are those of {mine}."
        )


@dataclass(frozen=True)
class Counts:
    """How many of everything a checked folder holds."""

    ratings: int
    users: int
    rated_movies: int
    movies: int
    links: int
    tags: int


@dataclass(frozen=True)
class Tables:
    """The four tables as Spark data frames."""

    ratings: DataFrame
    movies: DataFrame
    links: DataFrame
    tags: DataFrame


# --- finding ------------------------------------------------------------------------------------


def locate(settings: Settings | None = None) -> Dataset:
    """Return the first of ``MOVIELENS_DIR``, ``data/ml-latest-small/``, a download, the sample.

    ml-100k, ml-1m and ml-10m are converted to the four CSV files in the cache, once.

    Raises:
        DataError: ``MOVIELENS_DIR`` or the folder in ``data/`` is there but lacks a file. It is
            never skipped in silence.
        StorageError: what was converted cannot be written to the cache.
    """
    settings = settings or Settings.from_env()
    if settings.movielens_dir is not None:
        return _dataset(settings.movielens_dir, "MOVIELENS_DIR", settings)
    local = settings.data_dir / NAME
    if local.exists():
        return _dataset(local, f"data/{NAME}", settings)
    note = "no copy found, download switched off"
    if settings.allow_download:
        try:
            return _dataset(download(local), "download", settings)
        except DownloadError as error:
            note = f"no copy found, no download: {str(error).rstrip('.')}"
    return _dataset(settings.sample_dir, "data/sample", settings, note)


def _dataset(folder: Path, source: str, settings: Settings, note: str = "") -> Dataset:
    try:
        folder, form = releases.find(folder, source)
        name = folder.resolve().name.encode(errors="replace").decode()  # printed everywhere
        if form != releases.FOUR_FILES:
            note = f"converted from {form[0]} and {form[1]}"
            path = releases.convert(folder, form, settings.cache_dir / "converted")
            return Dataset(path, name, source, simulated=False, verified=False, note=note)
        simulated = (folder / "SIMULATED").exists()
        missing = [f"{table}.csv" for table in OPTIONAL if _absent(folder / f"{table}.csv")]
        verified = not (simulated or missing) and all(
            sha256(folder / name) == wanted for name, wanted in SHA256.items()
        )
    except PermissionError as error:
        raise DataError(
            f"{Path(error.filename).name} in the folder found by {source} cannot be read: "
            "you lack the permission; change it or copy the folder."
        ) from None
    if missing:
        note = f"without {' and '.join(missing)}"
    name = "sample (simulated)" if simulated else NAME if verified else name
    return Dataset(folder, name, source, simulated, verified, note)


def trainable(dataset: Dataset, settings: Settings | None = None) -> Dataset:
    """Return ``dataset``, or the simulated sample where it is too small to learn from.

    Too small is a set whose 5-core (see :func:`core`) is empty, such as the ratings of one user,
    or in which every user has rated every movie; the sample's ``note`` then says so.

    Raises:
        DataError: the ratings cannot be read.
    """
    if dataset.verified:
        return dataset  # known to be large enough: its ratings are not read twice
    ratings = load_pandas(dataset, "ratings")
    note = ""
    if len(ratings) == ratings["userId"].nunique() * ratings["movieId"].nunique():
        note = f"in {dataset.name} every user has rated every movie, so none can be recommended"
    try:
        core(ratings)
    except DataError:
        note = f"{dataset.name} is too small to learn from: no users and movies have 5 ratings each"
    settings = settings or Settings.from_env()
    return _dataset(settings.sample_dir, "data/sample", settings, note) if note else dataset


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DownloadError(RuntimeError):
    """The download failed; nothing of it is left behind."""


def download(
    target: Path, *, url: str = URL, checksums: dict[str, str] = SHA256, timeout: float = 5.0
) -> Path:
    """Fetch the release from GroupLens into ``target`` and return it.

    The archive (1 MB) is read into memory and each file checked; a folder beside ``target`` is
    then renamed in one step. If another process was faster, its copy is used. ``timeout`` is in
    seconds and holds for connecting and for each read.

    Raises:
        DownloadError: no connection, a short or wrong archive, a wrong checksum, a full disk, or
            a ``target`` that holds something else.
    """
    contents = _unpack(_fetch(url, timeout), checksums)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as work:
            fresh = Path(work) / target.name
            fresh.mkdir()
            for name, content in contents.items():
                (fresh / name).write_bytes(content)
            try:
                fresh.rename(target)
            except OSError:
                if not target.exists():  # else another process was faster, or it is something else
                    raise
    except OSError as error:
        raise DownloadError(f"The download cannot be stored: {error.strerror or error}.") from None
    for name, wanted in checksums.items():
        if not (target / name).is_file() or sha256(target / name) != wanted:
            raise DownloadError(
                f"{target.name} is there already and is not the release: move it away."
            )
    return target


def _fetch(url: str, timeout: float) -> bytes:
    for last in (False, True):
        try:
            with urllib.request.urlopen(url, timeout=timeout) as response:
                return response.read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            if last:
                raise DownloadError(f"{url} cannot be fetched: {error}.") from None
    raise AssertionError


def _unpack(archive: bytes, checksums: dict[str, str]) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as bundle:
            members = {PurePosixPath(name).name: name for name in bundle.namelist()}
            escaping = [m for m in bundle.namelist() if re.search(r"^[/\\]|:|\.\.([/\\]|$)", m)]
            contents = {name: bundle.read(members[name]) for name in checksums if name in members}
    except Exception as error:  # each decompressor has its own; the disk is not touched here
        raise DownloadError(f"The archive is damaged: {error}.") from None
    if escaping:
        raise DownloadError(f"The archive holds a path that escapes its folder: {escaping[0]}.")
    for name, wanted in checksums.items():
        if name not in contents:
            raise DownloadError(f"The archive lacks {name}.")
        if hashlib.sha256(contents[name]).hexdigest() != wanted:
            raise DownloadError(f"{name} has a wrong SHA-256: the download is damaged.")
    return contents


# --- checking -----------------------------------------------------------------------------------


def check(dataset: Dataset) -> Counts:
    """Read all four files and return their counts.

    The files are read line by line and only ids are kept, so that ml-32m fits in memory too.

    Raises:
        DataError: the first fault found, with its file, line (1 is the header) and column.
    """
    try:
        ids = {table: _read_ids(dataset.path / f"{table}.csv") for table in TABLES}
        movies = ids["movies"][:, 0]
        for table in ("ratings", "movies", "links"):
            what = "is there a second time; keep one of the two rows"
            _refuse(dataset, table, pd.DataFrame(ids[table]).duplicated().to_numpy(), what)
        for table in ("ratings", "links", "tags"):
            strange = ~np.isin(ids[table][:, -1:], movies)
            _refuse(dataset, table, strange[:, 0], "is not in movies.csv", ["movieId"])
    except DataError as error:
        if not dataset.note.startswith("converted"):
            raise
        raise DataError(
            f"{str(error).rstrip('.')} (these CSV files were {dataset.note})."
        ) from None
    users, rated = (len(np.unique(column)) for column in ids["ratings"].T)
    links, tags = len(ids["links"]), len(ids["tags"])
    return Counts(len(ids["ratings"]), users, rated, len(movies), links, tags)


def _read_ids(path: Path) -> np.ndarray:
    """Check each value by itself; return the ids that begin a row, of shape (rows, 1 or 2)."""
    _check_header(path)
    width = 1 + COLUMNS[path.stem].index("movieId")
    ids = array("q")
    if not _absent(path):
        for _, fields in _rows(path):
            ids.extend(map(int, fields[:width]))
    if not ids and path.stem not in OPTIONAL:
        raise DataError(f"{path.name}, line 2: there is no row below the header; copy it again.")
    return np.array(ids, np.int64).reshape(-1, width)


def _refuse(
    dataset: Dataset, table: str, rows: np.ndarray, what: str, columns: Sequence[str] = ()
) -> None:
    """Name the first of the rows that are marked, if any."""
    if rows.any():
        path = dataset.path / f"{table}.csv"
        line, fields = next(islice(_rows(path), int(rows.argmax()), None))
        columns = columns or [name for name in COLUMNS[table] if name in ("userId", "movieId")]
        value = ", ".join(fields[COLUMNS[table].index(column)] for column in columns)
        raise _fault(path, line, "/".join(columns), f"{value!r} {what}")


def _absent(path: Path) -> bool:
    return path.stem in OPTIONAL and not path.exists()


def _check_header(path: Path) -> None:
    """Check the first line and, where there is free text, the encoding of all lines."""
    if _absent(path):
        return
    if not path.is_file():
        raise DataError(f"{path.name} is missing: put it beside the other files.")
    with path.open("rb") as file:
        first = file.readline(10_000)
    line = first.decode("utf-8-sig", errors="replace").rstrip("\r\n")
    if b"\0" in first:
        fault = "this is UTF-16 or UTF-32; save the file as UTF-8"
    elif not line.strip():
        empty = path.stat().st_size <= 5  # a byte order mark and a line end
        fault = "the file is empty; copy it again" if empty else "the line is empty; take it out"
    else:
        fault = releases.header_fault(line, COLUMNS[path.stem])
    if fault:
        raise DataError(f"{path.name}, line 1: {fault}.")
    if path.stem in ("movies", "tags"):
        for _ in _lines(path):  # Spark would put another character, without a word
            pass


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise DataError(
                    f"{path.name}, line {number}: not UTF-8 (Latin-1, perhaps); convert the file "
                    "to UTF-8 or copy the original again."
                ) from None
            yield text


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield each row with the line on which it ends; quoted fields may span lines."""
    columns = COLUMNS[path.stem]
    forms = [re.compile(_FORMS[column][1]).fullmatch for column in columns]
    reader = csv.reader(_lines(path))
    try:
        next(reader)
        for fields in filter(None, reader):
            if len(fields) != len(columns):
                column = columns[min(len(fields), len(columns) - 1)]
                what = f"{len(fields)} values where {len(columns)} belong"
                raise _fault(path, reader.line_num, column, what)
            for form, value, column in zip(forms, fields, columns, strict=True):
                if not form(value):
                    what = f"{value!r} {_FORMS[column][2]}"
                    raise _fault(path, reader.line_num, column, what)
            yield reader.line_num, fields
    except csv.Error as error:
        line = f"{path.name}, line {reader.line_num}"
        raise DataError(f"{line}: no well-formed CSV ({error}); copy the file again.") from None


def _fault(path: Path, line: int, column: str, what: str) -> DataError:
    remedy = "" if ";" in what else "; correct it or copy the file again"
    return DataError(f"{path.name}, line {line}, column {column}: {what}{remedy}.")


# --- loading ------------------------------------------------------------------------------------


def load(spark: SparkSession, dataset: Dataset) -> Tables:
    """Return the four tables as Spark data frames with :data:`SCHEMAS`.

    Only the headers are checked here; :func:`check` reads everything. On a cluster every machine
    must see ``dataset.path``.

    Raises:
        DataError: a file is missing or empty, or its columns are not those of MovieLens.
    """
    for table in TABLES:
        _check_header(dataset.path / f"{table}.csv")
    return Tables(*(_read(spark, dataset, table) for table in TABLES))


def _read(spark: SparkSession, dataset: Dataset, table: str) -> DataFrame:
    file = dataset.path / f"{table}.csv"
    if _absent(file):
        return spark.createDataFrame([], SCHEMAS[table])
    path = str(file)
    if os.sep == "/":
        path = re.sub(r"([][{}*?\\])", r"\\\1", path)  # Spark takes a path for a pattern
    return spark.read.csv(
        path,
        schema=SCHEMAS[table],
        header=True,
        encoding="UTF-8",
        quote='"',
        escape='"',  # RFC 4180 doubles a quote inside quotes; Spark's default is a backslash
        multiLine=False,
    )


def load_pandas(dataset: Dataset, table: str) -> pd.DataFrame:
    """Return one of ``ratings``, ``movies``, ``links``, ``tags`` as a pandas data frame.

    Raises:
        DataError: there is no such table, its columns are not those of MovieLens, or a value
            cannot be read (then with file, line and column).
    """
    if table not in TABLES:
        raise DataError(f"There is no table {table!r}; choose one of {', '.join(TABLES)}.")
    path = dataset.path / f"{table}.csv"
    _check_header(path)
    columns: Any = COLUMNS[table]
    whole = {"userId": "int64", "movieId": "int64", "timestamp": "int64", "tmdbId": "Int64"}
    types: dict[str, Any] = {"rating": "float32", "imdbId": "string"} | whole
    try:
        return pd.read_csv(
            io.StringIO(",".join(columns)) if _absent(path) else path,
            dtype={name: types[name] for name in columns if name in types},
            usecols=columns,
            encoding="utf-8-sig",
            # "None" and "NA" are tags and could be titles.
            keep_default_na=table == "links",
        )
    except (ValueError, OverflowError) as error:
        _read_ids(path)
        raise DataError(f"{path.name} cannot be read ({error}); copy the file again.") from None


def split(
    ratings: DataFrame, weights: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0
) -> tuple[DataFrame, ...]:
    """Split ratings at random into one table per weight, the same on every machine.

    ``randomSplit`` draws per partition and in row order. So the rows are first put into one
    partition, sorted by (userId, movieId); the result then depends on the rows and ``seed`` alone.
    """
    ordered = ratings.coalesce(1).sortWithinPartitions("userId", "movieId")
    return tuple(ordered.randomSplit(list(weights), seed=seed))


def core(ratings: pd.DataFrame, k: int = 5) -> pd.DataFrame:
    """Return the k-core: drop users and movies with fewer than ``k`` ratings until none is left.

    On ml-latest-small the 5-core has 610 users, 3,650 movies and 90,274 ratings: the users, items
    and mean length (147.99) that LlamaRec (Yue et al. 2023, table 2) prints for "ML-100k".

    Raises:
        DataError: nothing is left.
    """
    kept = ratings
    while True:
        rows = kept
        for column in ("userId", "movieId"):
            _, place, counts = np.unique(
                kept[column].to_numpy(), return_inverse=True, return_counts=True
            )
            kept = kept.loc[counts[place] >= k]
        if kept.empty:
            raise DataError(f"No user and movie have {k} ratings each; choose a smaller k.")
        if len(kept) == len(rows):
            return kept.reset_index(drop=True)


# --- results ------------------------------------------------------------------------------------


def result_path(name: str, dataset: Dataset, settings: Settings | None = None) -> Path:
    """Return where the table ``name`` belongs: ``data/results`` for the verified release only."""
    settings = settings or Settings.from_env()
    folder = settings.results_dir
    if not dataset.verified:
        folder = settings.cache_dir / "results" / ("sample" if dataset.simulated else dataset.name)
    return folder / f"{name}.csv"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; it takes the place of ``path`` only when all went well.

    Raises:
        StorageError: the disk is full, or the folder read-only.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def save_result(
    table: pd.DataFrame,
    name: str,
    dataset: Dataset,
    settings: Settings | None = None,
    *,
    published: bool = True,
) -> Path:
    """Save a table behind a figure as CSV with six decimals and return its path.

    Only numbers from the verified release go to the committed ``data/results``, and not those that
    are a run's own (``published`` is false: another LLM, another user).
    """
    dataset = dataset if published else replace(dataset, verified=False)
    path = result_path(name, dataset, settings)
    with replacing(path) as fresh:
        table.to_csv(fresh, index=False, float_format="%.6f", encoding="utf-8", lineterminator="\n")
    return path


def read_result(name: str, dataset: Dataset, settings: Settings | None = None) -> pd.DataFrame:
    """Return a table that an earlier notebook saved.

    Raises:
        DataError: it is not there; the message names the notebook to run.
    """
    path = result_path(name, dataset, settings)
    if not path.is_file():
        raise DataError(f"{path.name} is missing: run notebook {name[:2]} first.")
    return pd.read_csv(path)
