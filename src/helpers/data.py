"""Find, check, load and split MovieLens (Harper and Konstan 2015); ``movieId`` is the key."""

import io
import os
import re
import urllib.request
import zipfile
from collections import namedtuple
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import csv
from pyspark.sql import DataFrame, SparkSession

from helpers.settings import Settings, replacing

NAME = "ml-latest-small"
URL = f"https://files.grouplens.org/datasets/movielens/{NAME}.zip"
SHA256 = {
    "movies.csv": "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07",
    "ratings.csv": "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
    "links.csv": "97ad18e4e56a09363c65676b6cb3482ce3e2cea2372a24620c1599c843325f31",
    "tags.csv": "92a9f8bb7916dceef6151209845788c3643f794dfa79d1feaec7121b5960399d",
}
SCHEMAS = {  # of Spark, in the order of the columns
    "ratings": "userId int, movieId int, rating float, timestamp bigint",
    "movies": "movieId int, title string, genres string",
    "links": "movieId int, imdbId string, tmdbId int",
    "tags": "userId int, movieId int, tag string, timestamp bigint",
}
TABLES = {table: dict(c.split() for c in schema.split(", ")) for table, schema in SCHEMAS.items()}
TYPES = {"int": pa.int64(), "bigint": pa.int64(), "float": pa.float32(), "string": pa.string()}
Tables = namedtuple("Tables", TABLES)
Counts = namedtuple("Counts", "ratings users rated_movies movies links tags")


class DataError(ValueError):
    """A file cannot be used; the message names it and says what is wrong."""


class Dataset(namedtuple("Dataset", "path name source simulated verified")):
    """A folder with the four files; ``source`` says how it was found, or why it is the sample."""

    def describe(self) -> str:
        """Return one line for the top of a notebook; it names no path of this machine."""
        how = self.source
        if self.simulated:
            return f"Data: a SIMULATED sample, not MovieLens ({how}): set MOVIELENS_DIR to a copy."
        if self.verified:
            return f"Data: {self.name}, verified by SHA-256 ({how})"
        return f"Data: not {NAME} ({how}): the numbers computed here are those of {self.name}."


def locate(settings: Settings | None = None) -> Dataset:
    """Return the first of ``MOVIELENS_DIR``, ``data/ml-latest-small/``, a download, the sample."""
    settings = settings or Settings.from_env()
    named, local, why = settings.movielens_dir, settings.data_dir / NAME, "no copy found"
    if settings.movielens_download and not (named or local.exists()):
        try:
            download(local)
        except Exception as error:  # the network, the disk, and each decompressor have their own
            why += f", no download: {error}"
    folder, source = settings.sample_dir, why
    if local.exists():
        folder, source = local, f"found by data/{NAME}"
    if named:
        folder, source = named, "found by MOVIELENS_DIR"
    if not all((folder / file).is_file() for file in SHA256):
        raise DataError(f"The data folder ({source}) lacks a file; wanted are {', '.join(SHA256)}.")
    simulated, verified = (folder / "SIMULATED").exists(), _verified(folder)
    other = f"another {NAME}" if folder.name == NAME else folder.name  # one that was edited
    name = "sample (simulated)" if simulated else NAME if verified else other
    return Dataset(folder, name, source, simulated, verified)


def _verified(folder: Path) -> bool:
    return all(sha256((folder / n).read_bytes()).hexdigest() == SHA256[n] for n in SHA256)


def download(target: Path) -> None:
    """Fetch the release into ``target``, checked, in one step."""
    with urllib.request.urlopen(URL, timeout=5.0) as response:
        archive = zipfile.ZipFile(io.BytesIO(response.read()))
    with replacing(target) as fresh:
        archive.extractall(fresh.parent)
        if not _verified(fresh):
            raise DataError(f"{URL} has a wrong SHA-256")


def for_training(dataset: Dataset, settings: Settings | None = None) -> Dataset:
    """Return ``dataset``, or the sample where it has fewer than 20 users or 20 rated movies."""
    if load_pandas(dataset, "ratings")[["userId", "movieId"]].nunique().min() >= 20:
        return dataset
    why, folder = "is too small to learn from", (settings or Settings.from_env()).sample_dir
    return Dataset(folder, "sample (simulated)", f"{dataset.name} {why}", True, False)


def load_pandas(dataset: Dataset, table: str) -> pd.DataFrame:
    """Return one of the :data:`SCHEMAS`; a DataError has file, row, column of the first fault."""
    columns = {name: TYPES[kind] for name, kind in TABLES[table].items()}
    empty = [""] if table == "links" else []  # some movies have no tmdbId
    options = csv.ConvertOptions(column_types=columns, null_values=empty)
    path, in_order = dataset.path / f"{table}.csv", csv.ReadOptions(use_threads=False)
    try:
        rows = csv.read_csv(path, in_order, None, options)
    except (OSError, pa.ArrowInvalid) as error:
        said = re.sub(r"CSV column #(\d+)", lambda m: f"column {[*columns][int(m[1])]}", f"{error}")
        raise DataError(f"{table}.csv cannot be read: {said}.") from None
    if rows.column_names != [*columns]:
        raise DataError(f"{table}.csv, row 1 must be {','.join(columns)!r}.")
    return rows.to_pandas()


def check(dataset: Dataset) -> Counts:
    """Read all four files and return their counts; raises a DataError for the first fault."""
    ratings, movies, links, tags = (load_pandas(dataset, table) for table in TABLES)
    users, rated = ratings[["userId", "movieId"]].nunique()
    return Counts(len(ratings), users, rated, len(movies), len(links), len(tags))


def load(spark: SparkSession, dataset: Dataset) -> Tables:
    """Return the four tables as Spark data frames; a DataError for the first fault of a copy."""
    if not (dataset.verified or dataset.simulated):  # Spark reads faults as null, without a word
        check(dataset)
    read = spark.read.options(header=True, encoding="UTF-8", escape='"').csv  # RFC 4180
    return Tables(*(read(f"{dataset.path}/{name}.csv", SCHEMAS[name]) for name in SCHEMAS))


def split(ratings: DataFrame, seed: int = 0) -> list[DataFrame]:
    """Split ratings at random into 60, 20 and 20 percent, the same on every machine."""
    ordered = ratings.coalesce(1).sortWithinPartitions("userId", "movieId")  # decides the draw
    return ordered.randomSplit([0.6, 0.2, 0.2], seed=seed)


def result_path(name: str, dataset: Dataset, settings: Settings | None = None) -> Path:
    """Return where the table ``name`` belongs: ``data/results`` for the verified release only."""
    settings = settings or Settings.from_env()
    other = settings.cache_dir / "results" / ("sample" if dataset.simulated else dataset.name)
    return (settings.results_dir if dataset.verified else other) / f"{name}.csv"


def save_result(table: pd.DataFrame, name: str, dataset: Dataset, published: bool = True) -> Path:
    """Save a table behind a figure, in ``data/results`` if ``published``, and return its path."""
    own = not published or os.environ.get("KEEP_RESULTS")  # which make lab sets for its copies
    path = result_path(name, dataset._replace(verified=False) if own else dataset)
    with replacing(path) as fresh:
        table.to_csv(fresh, index=False, float_format="%.6f", lineterminator="\n")
    return path


def read_result(name: str, dataset: Dataset, settings: Settings | None = None) -> pd.DataFrame:
    """Return a table that an earlier notebook saved; a DataError names the notebook to run."""
    for place in (dataset, dataset._replace(verified=False)):  # published, or a learner's own
        if (path := result_path(name, place, settings)).is_file():
            return pd.read_csv(path)
    raise DataError(f"{name}.csv is missing: run notebook {name[:2]} first.")
