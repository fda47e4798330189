"""Find, check, load and split MovieLens, or the simulated sample that stands in for it.

Everything is keyed by ``movieId``: five titles of ml-latest-small belong to two movies each.
Source of the data: F. Maxwell Harper and Joseph A. Konstan 2015, "The MovieLens Datasets: History
and Context", doi 10.1145/2827872.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import shutil
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

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

from helpers.settings import Settings

NAME = "ml-latest-small"
URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
TABLES = ("ratings", "movies", "links", "tags")
SHA256 = {
    "ratings.csv": "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
    "movies.csv": "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07",
    "links.csv": "97ad18e4e56a09363c65676b6cb3482ce3e2cea2372a24620c1599c843325f31",
    "tags.csv": "92a9f8bb7916dceef6151209845788c3643f794dfa79d1feaec7121b5960399d",
}

SCHEMAS = {
    "ratings": StructType(
        [
            StructField("userId", IntegerType()),
            StructField("movieId", IntegerType()),
            StructField("rating", FloatType()),
            StructField("timestamp", LongType()),
        ]
    ),
    "movies": StructType(
        [
            StructField("movieId", IntegerType()),
            StructField("title", StringType()),
            StructField("genres", StringType()),
        ]
    ),
    # IMDb numbers have leading zeros.
    "links": StructType(
        [
            StructField("movieId", IntegerType()),
            StructField("imdbId", StringType()),
            StructField("tmdbId", IntegerType()),
        ]
    ),
    "tags": StructType(
        [
            StructField("userId", IntegerType()),
            StructField("movieId", IntegerType()),
            StructField("tag", StringType()),
            StructField("timestamp", LongType()),
        ]
    ),
}
"""Spark schemas of the four files, in the order of their columns."""


class DataError(ValueError):
    """A file cannot be used; the message names file, line and column and says what to do."""


@dataclass(frozen=True)
class Dataset:
    """A folder with the four CSV files, and how it was found."""

    path: Path
    name: str
    source: str
    simulated: bool
    verified: bool

    def describe(self) -> str:
        """Return one line for the top of a notebook; it names no path of this machine."""
        if self.simulated:
            return (
                "Data: a SIMULATED sample, not MovieLens (no copy found, no network). For the real "
                "release set MOVIELENS_DIR or unpack ml-latest-small into data/."
            )
        state = "verified by SHA-256" if self.verified else "other than ml-latest-small, unverified"
        return f"Data: {self.name}, {state} (found by {self.source})"


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

    Raises:
        DataError: ``MOVIELENS_DIR`` or the folder in ``data/`` is there but lacks a file. It is
            never skipped in silence.
    """
    settings = settings or Settings.from_env()
    if settings.movielens_dir is not None:
        return _dataset(settings.movielens_dir, "MOVIELENS_DIR")
    local = settings.data_dir / NAME
    if local.exists():
        return _dataset(local, f"data/{NAME}")
    if settings.allow_download:
        with contextlib.suppress(DownloadError):
            return _dataset(download(local), "download")
    return _dataset(settings.sample_dir, "data/sample")


def _dataset(folder: Path, source: str) -> Dataset:
    if not folder.is_dir():
        raise DataError(
            f"{source} names a folder that does not exist: {folder}; point it at a folder with "
            "ratings.csv, movies.csv, links.csv and tags.csv."
        )
    for table in TABLES:
        if not (folder / f"{table}.csv").is_file():
            raise DataError(
                f"{table}.csv is missing in the folder found by {source}: a MovieLens folder holds "
                "ratings.csv, movies.csv, links.csv and tags.csv."
            )
    simulated = (folder / "SIMULATED").exists()
    verified = not simulated and all(
        sha256(folder / name) == SHA256[name] for name in ("ratings.csv", "movies.csv")
    )
    name = "sample (simulated)" if simulated else NAME if verified else folder.resolve().name
    return Dataset(folder, name, source, simulated, verified)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DownloadError(RuntimeError):
    """The download failed; nothing of it is left behind."""


def download(
    target: Path,
    *,
    url: str = URL,
    checksums: dict[str, str] | None = None,
    timeout: float = 5.0,
    attempts: int = 2,
    opener: Callable[..., IO[bytes]] = urllib.request.urlopen,
) -> Path:
    """Fetch the release from GroupLens into ``target`` and return it.

    The archive is unpacked beside ``target``, each file is checked, and the folder is renamed in
    one step; if another process was faster, its copy is used. ``timeout`` is in seconds.

    Raises:
        DownloadError: no connection, a short or wrong archive, a wrong checksum, or a full disk.
    """
    checksums = SHA256 if checksums is None else checksums
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise DownloadError(f"The download cannot be stored: {error.strerror}.") from None
    try:
        archive = work / "archive.zip"
        for attempt in range(1, attempts + 1):
            try:
                _fetch(url, archive, timeout, opener)
                break
            except DownloadError:
                if attempt == attempts:
                    raise
        fresh = work / "fresh"
        _unpack(archive, fresh, checksums)
        try:
            fresh.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DownloadError(f"The download could not be unpacked: {reason}.") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _fetch(url: str, archive: Path, timeout: float, opener: Callable[..., IO[bytes]]) -> None:
    try:
        response = opener(url, timeout=timeout)
    except (OSError, ValueError) as error:
        raise DownloadError(f"{url} cannot be reached: {error}.") from None
    with contextlib.closing(response), archive.open("wb") as file:
        try:
            while block := response.read(1 << 16):
                file.write(block)
        except OSError as error:
            if error.errno is not None and error.filename is None and _disk_full(error):
                raise
            raise DownloadError(f"The connection to {url} broke: {error}.") from None
        except Exception as error:  # http.client.IncompleteRead and its kin
            raise DownloadError(f"The download was cut short: {error}.") from None
        wanted = response.headers.get("Content-Length")
        if wanted is not None and file.tell() != int(wanted):
            raise DownloadError(f"The download was cut short: {file.tell()} of {wanted} bytes.")


def _disk_full(error: OSError) -> bool:
    import errno

    return error.errno in {errno.ENOSPC, errno.EDQUOT}


def _unpack(archive: Path, folder: Path, checksums: dict[str, str]) -> None:
    folder.mkdir()
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.namelist():
            parts = PurePosixPath(member.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts or ":" in member:
                raise DownloadError(f"The archive holds a path that escapes its folder: {member}.")
        members = {PurePosixPath(name).name: name for name in bundle.namelist()}
        for name, wanted in checksums.items():
            if name not in members:
                raise DownloadError(f"The archive lacks {name}.")
            with bundle.open(members[name]) as source, (folder / name).open("wb") as out:
                shutil.copyfileobj(source, out)
            if sha256(folder / name) != wanted:
                raise DownloadError(f"{name} has a wrong SHA-256: the download is damaged.")


# --- checking -----------------------------------------------------------------------------------

_COLUMNS = {table: list(schema.fieldNames()) for table, schema in SCHEMAS.items()}
_WHOLE = {"userId", "movieId", "timestamp", "imdbId", "tmdbId"}
_MAY_BE_EMPTY = {"tag", "imdbId", "tmdbId"}


def check(dataset: Dataset) -> Counts:
    """Read all four files and return their counts.

    Raises:
        DataError: the first fault found, with its file, line (1 is the header) and column.
    """
    frames = {table: _read_checked(dataset.path / f"{table}.csv", table) for table in TABLES}
    ratings, movies = frames["ratings"], frames["movies"]
    stars = pd.to_numeric(ratings["rating"], errors="coerce")
    bad = ~(stars.between(0.5, 5.0) & ((stars * 2) % 1 == 0))
    _fail_at(dataset, "ratings", "rating", bad, "is not a half-star rating from 0.5 to 5")
    _unique(dataset, "ratings", ratings, ["userId", "movieId"])
    _unique(dataset, "movies", movies, ["movieId"])
    _unique(dataset, "links", frames["links"], ["movieId"])
    known = set(movies["movieId"].astype("int64"))
    for table in ("ratings", "links", "tags"):
        missing = ~frames[table]["movieId"].astype("int64").isin(known)
        _fail_at(dataset, table, "movieId", missing, "is not in movies.csv")
    return Counts(
        ratings=len(ratings),
        users=ratings["userId"].nunique(),
        rated_movies=ratings["movieId"].nunique(),
        movies=len(movies),
        links=len(frames["links"]),
        tags=len(frames["tags"]),
    )


def _read_checked(path: Path, table: str) -> pd.DataFrame:
    name = path.name
    if not path.is_file():
        raise DataError(f"{name} is missing; put it beside the other three files.")
    if path.stat().st_size == 0:
        raise DataError(f"{name} is empty (line 1: no header); copy the file again.")
    _check_utf8(path)
    try:
        frame = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
    except pd.errors.ParserError as error:
        raise DataError(f"{name} is not a well-formed CSV file: {error}.") from None
    for column in _COLUMNS[table]:
        if column not in frame.columns:
            raise DataError(
                f"{name}, line 1: column {column} is missing; the header should be "
                f"{','.join(_COLUMNS[table])}."
            )
    if frame.empty and table in ("ratings", "movies"):
        raise DataError(f"{name}, line 2: there is no row below the header; copy the file again.")
    for column in _COLUMNS[table]:
        empty = frame[column].str.strip() == ""
        if column in _WHOLE:
            wrong = ~frame[column].str.fullmatch(r"\d{1,18}") & ~(empty & (column in _MAY_BE_EMPTY))
            _fail(path, frame, column, wrong, "is not a whole number")
        elif column not in _MAY_BE_EMPTY:
            _fail(path, frame, column, empty, "is empty")
    return frame


def _check_utf8(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                column = line[: error.start].count(b",") + 1
                raise DataError(
                    f"{path.name}, line {number}, column {column}: not UTF-8 (Latin-1, perhaps); "
                    "convert the file to UTF-8 or copy the original again."
                ) from None


def _fail_at(dataset: Dataset, table: str, column: str, wrong: pd.Series, what: str) -> None:
    if wrong.any():
        path = dataset.path / f"{table}.csv"
        frame = pd.read_csv(path, dtype=str, encoding="utf-8-sig", keep_default_na=False)
        _fail(path, frame, column, wrong, what)


def _fail(path: Path, frame: pd.DataFrame, column: str, wrong: pd.Series, what: str) -> None:
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        value = frame[column].iloc[row]
        raise DataError(
            f"{path.name}, line {line_of_row(path, row)}, column {column}: {value!r} {what}."
        )


def _unique(dataset: Dataset, table: str, frame: pd.DataFrame, columns: list[str]) -> None:
    # Compared as numbers: "007" and "7" are the same id.
    repeated = frame[columns].astype("int64").duplicated()
    if repeated.any():
        row = int(repeated.to_numpy().argmax())
        path = dataset.path / f"{table}.csv"
        values = ", ".join(f"{column} {frame[column].iloc[row]}" for column in columns)
        raise DataError(
            f"{path.name}, line {line_of_row(path, row)}, column {'/'.join(columns)}: {values} is "
            "there a second time; keep one of the two rows."
        )


def line_of_row(path: Path, row: int) -> int:
    """Return the line on which data row ``row`` (from 0) ends; quoted fields may span lines."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        seen = -2  # the header takes it to -1; blank lines are no rows
        for fields in reader:
            seen += bool(fields)
            if seen == row:
                return reader.line_num
    raise IndexError(f"{path.name} has no row {row}.")


# --- loading ------------------------------------------------------------------------------------


def load(spark: SparkSession, dataset: Dataset) -> Tables:
    """Return the four tables as Spark data frames with :data:`SCHEMAS`."""
    return Tables(*(_read(spark, dataset, table) for table in TABLES))


def _read(spark: SparkSession, dataset: Dataset, table: str) -> DataFrame:
    return spark.read.csv(
        str(dataset.path / f"{table}.csv"),
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
        DataError: there is no such table.
    """
    if table not in TABLES:
        raise DataError(f"There is no table {table!r}; choose one of {', '.join(TABLES)}.")
    whole = {"userId": "int64", "movieId": "int64", "timestamp": "int64", "tmdbId": "Int64"}
    types = {"rating": "float32", "imdbId": "string"} | whole
    return pd.read_csv(
        dataset.path / f"{table}.csv",
        dtype={name: types[name] for name in _COLUMNS[table] if name in types},
        usecols=_COLUMNS[table],
        encoding="utf-8-sig",
        # "None" and "NA" are tags and could be titles.
        keep_default_na=table == "links",
    )


def split(
    ratings: DataFrame, weights: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0
) -> tuple[DataFrame, ...]:
    """Split ratings at random into one table per weight, the same on every machine.

    ``randomSplit`` draws per partition and in row order. So the rows are first put into one
    partition, sorted by (userId, movieId); the result then depends on the rows and ``seed`` alone.
    """
    ordered = ratings.coalesce(1).sortWithinPartitions("userId", "movieId")
    return tuple(ordered.randomSplit(list(weights), seed=seed))


# --- results ------------------------------------------------------------------------------------


def result_path(name: str, dataset: Dataset, settings: Settings | None = None) -> Path:
    """Return where the table ``name`` belongs: ``data/results`` for the verified release only."""
    settings = settings or Settings.from_env()
    folder = settings.results_dir
    if not dataset.verified:
        folder = settings.cache_dir / "results" / ("sample" if dataset.simulated else dataset.name)
    return folder / f"{name}.csv"


def save_result(
    table: pd.DataFrame, name: str, dataset: Dataset, settings: Settings | None = None
) -> Path:
    """Save a table behind a figure as CSV with six decimals and return its path.

    Only numbers from the verified release go to the committed ``data/results``.
    """
    path = result_path(name, dataset, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        table.to_csv(fresh, index=False, float_format="%.6f", encoding="utf-8", lineterminator="\n")
        Path(fresh).chmod(0o644)
        Path(fresh).replace(path)
    finally:
        Path(fresh).unlink(missing_ok=True)
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
