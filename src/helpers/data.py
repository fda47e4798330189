"""Find, check, load and split MovieLens, or the simulated sample that stands in for it.

Everything is keyed by ``movieId``: five titles of ml-latest-small belong to two movies each.
Source of the data: F. Maxwell Harper and Joseph A. Konstan 2015, "The MovieLens Datasets: History
and Context", doi 10.1145/2827872.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import http.client
import io
import os
import re
import shutil
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
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
from helpers.faults import storing
from helpers.releases import DataError
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
    one step; if another process was faster, its copy is used. ``timeout`` is in seconds and holds
    for connecting and for each read. ``opener`` is called as ``opener(url, timeout=...)``.

    Raises:
        DownloadError: no connection, a short or wrong archive, a wrong checksum, a full disk, or
            a ``target`` that holds something else.
    """
    checksums = SHA256 if checksums is None else checksums
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise DownloadError(f"The download cannot be stored: {error.strerror}.") from None
    try:
        _fetch_patiently(url, work / "archive.zip", timeout, attempts, opener)
        _unpack(work / "archive.zip", work / "fresh", checksums)
        _publish(work / "fresh", target, checksums)
    except OSError as error:
        raise DownloadError(f"The download cannot be stored: {error.strerror or error}.") from None
    finally:
        # Also at KeyboardInterrupt.
        shutil.rmtree(work, ignore_errors=True)
    return target


def _fetch_patiently(
    url: str, archive: Path, timeout: float, attempts: int, opener: Callable[..., IO[bytes]]
) -> None:
    for attempt in range(1, attempts + 1):
        try:
            return _fetch(url, archive, timeout, opener)
        except DownloadError:
            if attempt == attempts:
                raise


def _fetch(url: str, archive: Path, timeout: float, opener: Callable[..., IO[bytes]]) -> None:
    try:
        response = opener(url, timeout=timeout)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise DownloadError(f"{url} cannot be reached: {error}.") from None
    with contextlib.closing(response), archive.open("wb") as file:
        while block := _read_block(response, url):
            file.write(block)
        wanted = response.headers.get("Content-Length") or ""
        if wanted.isdecimal() and file.tell() != int(wanted):
            raise DownloadError(f"The download was cut short: {file.tell()} of {wanted} bytes.")


def _read_block(response: IO[bytes], url: str) -> bytes:
    # Apart from writing, so that a full disk is not taken for a broken connection.
    try:
        return response.read(1 << 16)
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"The connection to {url} broke: {error}.") from None


def _unpack(archive: Path, folder: Path, checksums: dict[str, str]) -> None:
    folder.mkdir()
    try:
        with zipfile.ZipFile(archive) as bundle:
            _refuse_escapes(bundle)
            members = {PurePosixPath(name).name: name for name in bundle.namelist()}
            for name in checksums:
                if name not in members:
                    raise DownloadError(f"The archive lacks {name}.")
                with bundle.open(members[name]) as source, (folder / name).open("wb") as out:
                    shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        # RuntimeError: encrypted, or an unknown way to compress (NotImplementedError).
        raise DownloadError(f"The archive is damaged: {error}.") from None
    _verify(folder, checksums)


def _refuse_escapes(bundle: zipfile.ZipFile) -> None:
    for member in bundle.namelist():
        path = PurePosixPath(member.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in member:
            raise DownloadError(f"The archive holds a path that escapes its folder: {member}.")


def _verify(folder: Path, checksums: dict[str, str]) -> None:
    for name, wanted in checksums.items():
        if sha256(folder / name) != wanted:
            raise DownloadError(f"{name} has a wrong SHA-256: the download is damaged.")


def _publish(fresh: Path, target: Path, checksums: dict[str, str]) -> None:
    try:
        fresh.rename(target)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EACCES}:
            raise
        # Another process was faster, or something else has this name.
        if any(
            not (target / name).is_file() or sha256(target / name) != wanted
            for name, wanted in checksums.items()
        ):
            raise DownloadError(
                f"{target.name} is there already and is not the release: move it away."
            ) from None


# --- checking -----------------------------------------------------------------------------------

_COLUMNS = releases.COLUMNS
_TEXT = r"^[^\r\n]*$"
_ID = (r"^[0-9]{1,9}$", "is not a whole number from 0 to 999999999")
_TIME = (r"^[0-9]{1,10}$", "is not a time in whole seconds since 1970")
_FILLED = (r"^[^\r\n]*\S[^\r\n]*$", "is empty or runs over the end of the line")
# What each column has to look like, as a pattern of RE2. Stricter than a cast: Spark turns " 5" or
# 3000000000 in a column of integers into null without a word, and reads line by line.
_RULES = {
    ("ratings", "userId"): _ID,
    ("ratings", "movieId"): _ID,
    ("ratings", "rating"): (
        f"^({releases.STARS})$",
        "is not a half-star rating from 0.5 to 5",
    ),
    ("ratings", "timestamp"): _TIME,
    ("movies", "movieId"): _ID,
    ("movies", "title"): _FILLED,
    ("movies", "genres"): _FILLED,
    ("links", "movieId"): _ID,
    ("links", "imdbId"): (r"^[0-9]*$", "is neither empty nor a number"),
    ("links", "tmdbId"): (r"^[0-9]{0,9}$", "is neither empty nor a whole number up to 999999999"),
    ("tags", "userId"): _ID,
    ("tags", "movieId"): _ID,
    ("tags", "tag"): (_TEXT, "runs over the end of the line"),
    ("tags", "timestamp"): _TIME,
}


def check(dataset: Dataset) -> Counts:
    """Read all four files and return their counts.

    The files are read in blocks and only ids are kept, so that ml-32m fits in memory too. Line
    numbers are looked up after a fault was found.

    Raises:
        DataError: the first fault found, with its file, line (1 is the header) and column.
    """
    try:
        return _check(dataset)
    except DataError as error:
        if not dataset.note.startswith("converted"):
            raise
        raise DataError(
            f"{str(error).rstrip('.')} (these CSV files were {dataset.note})."
        ) from None


def _check(dataset: Dataset) -> Counts:
    ids = {table: _read_ids(dataset.path / f"{table}.csv", table) for table in TABLES}
    known = np.unique(ids["movies"]["movieId"])
    _unique(dataset, "ratings", ids["ratings"], ["userId", "movieId"])
    _unique(dataset, "movies", ids["movies"], ["movieId"])
    _unique(dataset, "links", ids["links"], ["movieId"])
    for table in ("ratings", "links", "tags"):
        strange = ~np.isin(ids[table]["movieId"], known)
        if strange.any():
            path = dataset.path / f"{table}.csv"
            raise _fault(path, int(strange.argmax()), "movieId", "is not in movies.csv")
    return Counts(
        ratings=len(ids["ratings"]["movieId"]),
        users=len(np.unique(ids["ratings"]["userId"])),
        rated_movies=len(np.unique(ids["ratings"]["movieId"])),
        movies=len(known),
        links=len(ids["links"]["movieId"]),
        tags=len(ids["tags"]["movieId"]),
    )


def _absent(path: Path) -> bool:
    return path.stem in OPTIONAL and not path.exists()


def _check_header(path: Path, table: str) -> None:
    """Check the first line and, where there is free text, the encoding of all lines."""
    if _absent(path):
        return
    if not path.is_file():
        raise DataError(f"{path.name} is missing: put it beside the other files.")
    with path.open("rb") as file:
        first = file.readline(10_000)
    if b"\0" in first:
        raise DataError(f"{path.name}, line 1: this is UTF-16 or UTF-32; save the file as UTF-8.")
    line = first.decode("utf-8-sig", errors="replace").rstrip("\r\n")
    if not line.strip():
        what = (
            "line is empty; take it out"
            if path.stat().st_size > 5
            else "file is empty; copy it again"
        )
        raise DataError(f"{path.name}, line 1: the {what}.")
    if fault := releases.header_fault(line, _COLUMNS[table]):
        raise DataError(f"{path.name}, line 1: {fault}.")
    if table in ("movies", "tags"):
        _check_encoding(path, table)  # Spark would put another character, without a word


def _read_ids(path: Path, table: str) -> dict[str, np.ndarray]:
    """Check each value by itself and return the id columns as arrays of shape (rows,)."""
    _check_header(path, table)
    names = [name for name in ("userId", "movieId") if name in _COLUMNS[table]]
    kept: dict[str, list[np.ndarray]] = {name: [np.empty(0, np.int32)] for name in names}
    if _absent(path):
        return {name: parts[0] for name, parts in kept.items()}
    rows = 0
    try:
        for batch in _blocks(path, table):
            _check_block(path, table, batch, rows)
            rows += batch.num_rows
            for name in names:
                kept[name].append(pc.cast(batch.column(name), pa.int32()).to_numpy())
    except pa.ArrowInvalid as error:
        raise _unreadable(path, table, error) from None
    if rows == 0 and table in ("ratings", "movies"):
        raise DataError(f"{path.name}, line 2: there is no row below the header; copy it again.")
    return {name: np.concatenate(parts) for name, parts in kept.items()}


def _blocks(path: Path, table: str) -> Iterator[pa.RecordBatch]:
    # Arrow takes a path only in UTF-8; a file opened here may have any name.
    with path.open("rb") as file:
        if len(file.readline()) == path.stat().st_size:
            return  # Arrow wants a line end after a header without rows
        file.seek(0)
        yield from pacsv.open_csv(
            file,
            read_options=pacsv.ReadOptions(block_size=16 << 20),
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(_COLUMNS[table], pa.string()), strings_can_be_null=False
            ),
        )


def _check_block(path: Path, table: str, batch: pa.RecordBatch, rows_before: int) -> None:
    for column in _COLUMNS[table]:
        pattern, what = _RULES[table, column]
        good = pc.match_substring_regex(batch.column(column), pattern)
        if not pc.all(good, min_count=0).as_py():
            row = rows_before + pc.index(good, False).as_py()
            raise _fault(path, row, column, what)


def _unique(dataset: Dataset, table: str, ids: dict[str, np.ndarray], columns: list[str]) -> None:
    # Both ids in one number: compared as numbers, "007" and "7" are the same.
    key = np.zeros(len(ids["movieId"]), np.int64)
    for column in columns:
        key = key * 2**31 + ids[column]
    if len(np.unique(key)) < len(key):
        row = int(pd.Series(key).duplicated().to_numpy().argmax())
        what = "is there a second time; keep one of the two rows"
        raise _fault(dataset.path / f"{table}.csv", row, "/".join(columns), what)


def _fault(path: Path, row: int, column: str, what: str) -> DataError:
    line, fields = _record(path, row)
    header = _COLUMNS[path.stem]
    value = ", ".join(fields[header.index(name)] for name in column.split("/"))
    remedy = "" if ";" in what else "; correct it or copy the file again"
    return DataError(f"{path.name}, line {line}, column {column}: {value!r} {what}{remedy}.")


def _check_encoding(path: Path, table: str) -> None:
    columns = _COLUMNS[table]
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as fault:
                before = next(csv.reader([line[: fault.start].decode("utf-8") + "?"]))
                column = columns[min(len(before), len(columns)) - 1]
                raise DataError(
                    f"{path.name}, line {number}, column {column}: not UTF-8 (Latin-1, perhaps); "
                    "convert the file to UTF-8 or copy the original again."
                ) from None


def _unreadable(path: Path, table: str, error: pa.ArrowInvalid) -> DataError:
    """Find what Arrow stumbled over: bytes that are no UTF-8, else a row of another length."""
    _check_encoding(path, table)
    columns = _COLUMNS[table]
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        for fields in reader:
            if fields and len(fields) != len(columns):
                column = columns[min(len(fields), len(columns) - 1)]
                return DataError(
                    f"{path.name}, line {reader.line_num}, column {column}: {len(fields)} values "
                    f"where {len(columns)} belong; correct it or copy the file again."
                )
    return DataError(f"{path.name} is no well-formed CSV file ({error}); copy the file again.")


def line_of_row(path: Path, row: int) -> int:
    """Return the line on which data row ``row`` (from 0) ends; quoted fields may span lines."""
    return _record(path, row)[0]


def _record(path: Path, row: int) -> tuple[int, list[str]]:
    # A later line may hold other bytes than UTF-8.
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        seen = -2  # the header takes it to -1; blank lines are no rows
        for fields in reader:
            seen += bool(fields)
            if seen == row:
                return reader.line_num, fields
    raise IndexError(f"{path.name} has no row {row}.")


# --- loading ------------------------------------------------------------------------------------


def load(spark: SparkSession, dataset: Dataset) -> Tables:
    """Return the four tables as Spark data frames with :data:`SCHEMAS`.

    Only the headers are checked here; :func:`check` reads everything. On a cluster every machine
    must see ``dataset.path``.

    Raises:
        DataError: a file is missing or empty, or its columns are not those of MovieLens.
    """
    for table in TABLES:
        _check_header(dataset.path / f"{table}.csv", table)
    return Tables(*(_read(spark, dataset, table) for table in TABLES))


def _read(spark: SparkSession, dataset: Dataset, table: str) -> DataFrame:
    if _absent(dataset.path / f"{table}.csv"):
        return spark.createDataFrame([], SCHEMAS[table])
    path = str(dataset.path / f"{table}.csv")
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
    _check_header(path, table)
    try:
        return _read_pandas(path, table)
    except (ValueError, OverflowError) as error:
        _read_ids(path, table)
        raise DataError(f"{path.name} cannot be read ({error}); copy the file again.") from None


def _read_pandas(path: Path, table: str) -> pd.DataFrame:
    whole = {"userId": "int64", "movieId": "int64", "timestamp": "int64", "tmdbId": "Int64"}
    types = {"rating": "float32", "imdbId": "string"} | whole
    return pd.read_csv(
        io.StringIO(",".join(_COLUMNS[table])) if _absent(path) else path,
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


# --- the leave-one-out protocol ------------------------------------------------------------------


def core(ratings: pd.DataFrame, k: int = 5) -> pd.DataFrame:
    """Return the k-core: drop users and movies with fewer than ``k`` ratings until none is left.

    On ml-latest-small the 5-core has 610 users, 3,650 movies and 90,274 ratings: the users, items
    and mean length (147.99) that LlamaRec (Yue et al. 2023, table 2) prints for "ML-100k".

    Raises:
        DataError: nothing is left.
    """
    rows = ratings
    while True:
        users = rows.groupby("userId")["movieId"].transform("size")
        rows = rows.loc[users >= k]
        movies = rows.groupby("movieId")["userId"].transform("size")
        kept = rows.loc[movies >= k]
        if kept.empty:
            raise DataError(f"No user and movie have {k} ratings each; choose a smaller k.")
        if len(kept) == len(rows):
            return kept.reset_index(drop=True)
        rows = kept


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
    with storing(path):
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
