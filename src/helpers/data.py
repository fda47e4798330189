"""Find, download, check, load and split MovieLens (Harper and Konstan 2015, doi 10.1145/2827872).

Everything is keyed by ``movieId``: five titles of ml-latest-small belong to two movies each.
"""

import contextlib
import hashlib
import io
import os
import re
import urllib.request
import zipfile
from collections import namedtuple
from dataclasses import replace
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
SCHEMAS = {
    "ratings": "userId int, movieId int, rating float, timestamp bigint",
    "movies": "movieId int, title string, genres string",
    "links": "movieId int, imdbId string, tmdbId int",
    "tags": "userId int, movieId int, tag string, timestamp bigint",
}
"""Spark schemas of the four files, in the order of their columns."""
TABLES = {table: dict(c.split() for c in schema.split(", ")) for table, schema in SCHEMAS.items()}
TYPES = {"int": pa.int64(), "bigint": pa.int64(), "float": pa.float32(), "string": pa.string()}
Tables = namedtuple("Tables", TABLES)
Counts = namedtuple("Counts", "ratings users rated_movies movies links tags")


class DataError(ValueError):
    """A file cannot be used; the message names it and says what is wrong."""


class Dataset(namedtuple("Dataset", "path name source simulated verified note", defaults=[""])):
    """A folder with the four files, and how it was found; ``note`` says why it is the sample."""

    def describe(self) -> str:
        """Return one line for the top of a notebook; it names no path of this machine."""
        how = self.note or f"found by {self.source}"
        if self.simulated:
            return f"Data: a SIMULATED sample, not MovieLens ({how}): set MOVIELENS_DIR to a copy."
        if self.verified:
            return f"Data: {self.name}, verified by SHA-256 ({how})"
        return f"Data: not {NAME} ({how}): the numbers computed here are those of {self.name}."


def locate(settings: Settings | None = None) -> Dataset:
    """Return the first of ``MOVIELENS_DIR``, ``data/ml-latest-small/``, a download, the sample.

    Raises DataError where one of the folders is there but lacks a file.
    """
    settings = settings or Settings.from_env()
    named, local, note = settings.movielens_dir, settings.data_dir / NAME, "no copy found"
    if settings.movielens_download and not (named or local.exists()):
        try:
            download(local)
        except Exception as error:  # the network, the disk, and each decompressor have their own
            note += f", no download: {error}"
    source, folder = "data/sample", settings.sample_dir
    if named or local.exists():
        source, folder = ("MOVIELENS_DIR", named) if named else (f"data/{NAME}", local)
        note = ""
    for path in (folder, *sorted(folder.glob("*/"))):
        if all((path / file).is_file() for file in SHA256):
            simulated, verified = (path / "SIMULATED").exists(), _verified(path)
            name = path.resolve().name
            name = f"another {name}" if name == NAME else name  # one that was edited
            name = "sample (simulated)" if simulated else NAME if verified else name
            return Dataset(path, name, source, simulated, verified, note)
    raise DataError(f"{source} lacks a file; wanted are {', '.join(SHA256)}, as in ml-32m.")


def _verified(folder: Path) -> bool:
    files = ((hashlib.sha256((folder / name).read_bytes()), SHA256[name]) for name in SHA256)
    return all(found.hexdigest() == wanted for found, wanted in files)


def download(target: Path) -> None:
    """Fetch the release into ``target``, checked, in one step."""
    with urllib.request.urlopen(URL, timeout=5.0) as response:
        archive = zipfile.ZipFile(io.BytesIO(response.read()))
    with replacing(target) as fresh:
        archive.extractall(fresh.parent)
        if not _verified(fresh):
            raise DataError(f"{URL} has a wrong SHA-256")


def for_training(dataset: Dataset, settings: Settings | None = None) -> Dataset:
    """Return ``dataset``, or the sample where its 5-core is empty or lacks no rating."""
    ratings = load_pandas(dataset, "ratings")
    with contextlib.suppress(DataError):
        kept = core(ratings)
        if len(kept) < kept["userId"].nunique() * kept["movieId"].nunique():
            return dataset
    settings = settings or Settings.from_env()
    sample = locate(replace(settings, movielens_dir=settings.sample_dir))
    return sample._replace(note=f"{dataset.name} is too small to learn from")


def load_pandas(dataset: Dataset, table: str) -> pd.DataFrame:
    """Return one of ``ratings``, ``movies``, ``links``, ``tags`` as a pandas data frame.

    Raises DataError for the first fault, with its file, row (1 is the header), column and value.
    """
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
    good = ratings["rating"].between(0.5, 5)
    if not good.all():
        row, stars = int(good.idxmin()) + 2, ratings["rating"][~good].iloc[0]
        raise DataError(f"ratings.csv, row {row}, column rating: {stars} is not 0.5 to 5.")
    users, rated = ratings[["userId", "movieId"]].nunique()
    return Counts(len(ratings), users, rated, len(movies), len(links), len(tags))


def load(spark: SparkSession, dataset: Dataset) -> Tables:
    """Return the four tables as Spark data frames; a copy that is not ours is checked first."""
    if not (dataset.verified or dataset.simulated):  # Spark reads faults as null, without a word
        check(dataset)
    read = spark.read.options(header=True, encoding="UTF-8", escape='"').csv  # RFC 4180
    folder = re.sub(r"([][{}*?])", r"\\\1", str(dataset.path))  # no pattern
    return Tables(*(read(f"{folder}/{name}.csv", SCHEMAS[name]) for name in SCHEMAS))


def split(ratings: DataFrame, seed: int = 0) -> list[DataFrame]:
    """Split ratings at random into 60, 20 and 20 percent, the same on every machine.

    ``randomSplit`` draws by partition and row order: so the rows come sorted, in one partition.
    """
    ordered = ratings.coalesce(1).sortWithinPartitions("userId", "movieId")
    return ordered.randomSplit([0.6, 0.2, 0.2], seed=seed)


def core(ratings: pd.DataFrame, k: int = 5) -> pd.DataFrame:
    """Return the k-core: drop users and movies with fewer than ``k`` ratings until none is left.

    The 5-core of ml-latest-small (610 users, 3,650 movies) is "ML-100k" in LlamaRec, table 2.
    Raises DataError where nothing is left.
    """
    kept, before = ratings, -1
    while len(kept) != before:
        before = len(kept)
        for column in ("userId", "movieId"):
            kept = kept[kept.groupby(column)[column].transform("size") >= k]
    if kept.empty:
        raise DataError(f"No user and movie have {k} ratings each; choose a smaller k.")
    return kept.reset_index(drop=True)


def result_path(name: str, dataset: Dataset, settings: Settings | None = None) -> Path:
    """Return where the table ``name`` belongs: ``data/results`` for the verified release only."""
    settings = settings or Settings.from_env()
    other = settings.cache_dir / "results" / ("sample" if dataset.simulated else dataset.name)
    return (settings.results_dir if dataset.verified else other) / f"{name}.csv"


def save_result(
    table: pd.DataFrame, name: str, dataset: Dataset, settings: Settings | None = None, *,
    published: bool = True,
) -> Path:  # fmt: skip
    """Save a table behind a figure as CSV with six decimals and return its path.

    Only what is ``published`` goes to ``data/results``, and nothing of ``make lab``'s copies.
    """
    own = published and not os.environ.get("KEEP_RESULTS")
    path = result_path(name, dataset if own else dataset._replace(verified=False), settings)
    with replacing(path) as fresh:
        table.to_csv(fresh, index=False, float_format="%.6f", lineterminator="\n")
    return path


def read_result(name: str, dataset: Dataset, settings: Settings | None = None) -> pd.DataFrame:
    """Return a table that an earlier notebook saved; a DataError names the notebook to run."""
    path = result_path(name, dataset, settings)
    if not path.is_file():  # a learner's own is never published
        path = result_path(name, dataset._replace(verified=False), settings)
    if not path.is_file():
        raise DataError(f"{path.name} is missing: run notebook {name[:2]} first.")
    return pd.read_csv(path)
