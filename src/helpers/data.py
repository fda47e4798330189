"""Find, check, load and split MovieLens (Harper and Konstan 2015, doi 10.1145/2827872).

Everything is keyed by ``movieId``: five titles of ml-latest-small belong to two movies each.
"""

from __future__ import annotations

import os
import re
from collections import namedtuple
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from pyspark.sql import DataFrame, SparkSession

from helpers import releases
from helpers.releases import NAME, SHA256, DataError, DownloadError, download, replacing, sha256
from helpers.settings import Settings

SCHEMAS = {
    "ratings": "userId int, movieId int, rating float, timestamp bigint",
    "movies": "movieId int, title string, genres string",
    "links": "movieId int, imdbId string, tmdbId int",
    "tags": "userId int, movieId int, tag string, timestamp bigint",
}
"""Spark schemas of the four files, in the order of their columns."""
TABLES = {table: dict(c.split() for c in schema.split(", ")) for table, schema in SCHEMAS.items()}
VALUE_FORMS = {  # of a type or a column: type in pandas, what a value looks like
    "int": ("int64", "[0-9]{1,9}"),
    "bigint": ("int64", "[0-9]{1,10}"),
    "float": ("float32", r"0?\.50*|[1-4](\.[05]0*)?|5(\.0+)?"),
    "string": ("object", ".*"),
    "imdbId": ("string", ".*"),  # with leading zeros
    "tmdbId": ("Int64", "[0-9]{0,9}"),
}
Tables = namedtuple("Tables", TABLES)
Counts = namedtuple("Counts", "ratings users rated_movies movies links tags")


@dataclass(frozen=True)
class Dataset:
    """A folder with the four files, and how it was found; ``note`` says why it is the sample."""

    path: Path
    name: str
    source: str
    simulated: bool
    verified: bool
    note: str = ""

    @property
    def checked(self) -> bool:
        """Whether the course's claims were checked on this data."""
        return self.verified or self.simulated

    def describe(self) -> str:
        """Return one line for the top of a notebook; it names no path of this machine."""
        by = f"found by {self.source}"
        if self.simulated:
            said = "For the real release set MOVIELENS_DIR or unpack ml-latest-small into data/."
            return f"Data: a SIMULATED sample, not MovieLens ({self.note or by}). {said}"
        if self.verified:
            return f"Data: {self.name}, verified by SHA-256 ({by})"
        said = f"The text speaks of {NAME}; the numbers computed here are those of {self.name}."
        return f"Data: {self.name}, not {NAME} as published, unverified ({by}). {said}"


def locate(settings: Settings | None = None) -> Dataset:
    """Return the first of ``MOVIELENS_DIR``, ``data/ml-latest-small/``, a download, the sample.

    Raises DataError where one of the folders is there but lacks a file.
    """
    settings = settings or Settings.from_env()
    local, note = settings.data_dir / NAME, "no copy found, download switched off"
    if settings.movielens_dir is not None:
        return _dataset(settings.movielens_dir, "MOVIELENS_DIR", settings)
    if local.exists():
        return _dataset(local, f"data/{NAME}", settings)
    if settings.allow_download:
        try:
            return _dataset(download(local), "download", settings)
        except DownloadError as error:
            note = f"no copy found, no download: {error}"
    return _dataset(settings.sample_dir, "data/sample", settings, note)


def _dataset(folder: Path, source: str, settings: Settings, note: str = "") -> Dataset:
    path = releases.find(folder, source)
    if (path / "SIMULATED").exists():
        return Dataset(path, "sample (simulated)", source, True, False, note)
    verified = all(sha256(path / file) == wanted for file, wanted in SHA256.items())
    return Dataset(path, NAME if verified else path.resolve().name, source, False, verified)


def for_training(dataset: Dataset, settings: Settings | None = None) -> Dataset:
    """Return ``dataset``, or the sample where it has no 5-core or all users rated all movies."""
    if dataset.verified:
        return dataset
    ratings, note = load_pandas(dataset, "ratings"), ""
    if len(ratings) == ratings["userId"].nunique() * ratings["movieId"].nunique():
        note = f"in {dataset.name} every user has rated every movie, so none can be recommended"
    try:
        core(ratings)
    except DataError:
        note = f"{dataset.name} is too small to learn from: no users and movies have 5 ratings each"
    settings = settings or Settings.from_env()
    return _dataset(settings.sample_dir, "data/sample", settings, note) if note else dataset


def check(dataset: Dataset) -> Counts:
    """Read all four files and return their counts.

    Raises DataError for the first fault, with its file, line (1 is the header), column and value.
    """
    tables = {table: load_pandas(dataset, table) for table in TABLES}
    for table, rows in tables.items():
        _refuse(table, rows["movieId"], rows["movieId"].isin(tables["movies"]["movieId"]))
        ids = rows[[name for name in rows if name in ("userId", "movieId")]]
        if table != "tags" and ids.duplicated().any():
            pair = ids[ids.duplicated()].iloc[0].to_dict()
            raise DataError(f"{table}.csv has a second row of {pair}: keep one of the two.")
    users, rated = tables["ratings"][["userId", "movieId"]].nunique()
    ratings, *others = map(len, tables.values())
    return Counts(ratings, users, rated, *others)


def load_pandas(dataset: Dataset, table: str) -> pd.DataFrame:
    """Return one of ``ratings``, ``movies``, ``links``, ``tags`` as a pandas data frame.

    Raises DataError where a column is missing or a value does not belong there.
    """
    text = _read(dataset, table)
    forms = {name: VALUE_FORMS.get(name, VALUE_FORMS[kind]) for name, kind in TABLES[table].items()}
    for name, (_, pattern) in forms.items():
        _refuse(table, text[name], text[name].str.fullmatch(pattern))
    text = text.replace("", pd.NA) if table == "links" else text
    return text.astype({name: kind for name, (kind, _) in forms.items()})


def _read(dataset: Dataset, table: str, nrows: int | None = None) -> pd.DataFrame:
    """Return a file's columns as text, or its first ``nrows`` rows."""
    path = dataset.path / f"{table}.csv"
    try:
        text = pd.read_csv(
            path, nrows=nrows, dtype="string[pyarrow]", keep_default_na=False, index_col=False,
            encoding="utf-8-sig",
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise DataError(f"{path.name} cannot be read: {str(error).strip()}.") from None
    if list(text) != list(TABLES[table]):
        header, wanted = ",".join(map(str, text))[:80], ",".join(TABLES[table])
        raise DataError(f"{path.name}, line 1 is {header!r}: it must be {wanted!r}.")
    return text


def _refuse(table: str, values: pd.Series, good: pd.Series) -> None:
    """Name the first of the values that is not good, if any."""
    if not good.all():
        line = int(good.idxmin())
        where = f"{table}.csv, line {line + 2}, column {values.name}"
        said = "does not belong there; correct it or copy the file again"
        raise DataError(f"{where}: {str(values[line])!r} {said}.")


def load(spark: SparkSession, dataset: Dataset) -> Tables:
    """Return the four tables as Spark data frames; :func:`check` reads their values."""
    tables = []
    for table, schema in SCHEMAS.items():
        _read(dataset, table, nrows=None if table in ("movies", "tags") else 0)
        path = re.sub(r"([][{}*?])", r"\\\1", str(dataset.path / f"{table}.csv"))  # no pattern
        options = {"header": True, "encoding": "UTF-8", "quote": '"', "escape": '"'}  # RFC 4180
        tables.append(spark.read.options(**options).csv(path, schema=schema))
    return Tables(*tables)


def split(
    ratings: DataFrame, weights: Sequence[float] = (0.6, 0.2, 0.2), seed: int = 0
) -> tuple[DataFrame, ...]:
    """Split ratings at random into one table per weight, the same on every machine.

    ``randomSplit`` draws by partition and row order: so the rows come sorted, in one partition.
    """
    ordered = ratings.coalesce(1).sortWithinPartitions("userId", "movieId")
    return tuple(ordered.randomSplit(list(weights), seed=seed))


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
    table: pd.DataFrame,
    name: str,
    dataset: Dataset,
    settings: Settings | None = None,
    *,
    published: bool = True,
) -> Path:
    """Save a table behind a figure as CSV with six decimals and return its path.

    Numbers of another LLM or user (``published`` is false), and of the copies that ``make lab``
    opens (it sets ``KEEP_RESULTS``), do not go to ``data/results``.
    """
    own = published and not os.environ.get("KEEP_RESULTS")
    path = result_path(name, dataset if own else replace(dataset, verified=False), settings)
    with replacing(path) as fresh:
        table.to_csv(fresh, index=False, float_format="%.6f", lineterminator="\n")
    return path


def read_result(name: str, dataset: Dataset, settings: Settings | None = None) -> pd.DataFrame:
    """Return a table that an earlier notebook saved; a DataError names the notebook to run."""
    path = result_path(name, dataset, settings)
    if not path.is_file():
        raise DataError(f"{path.name} is missing: run notebook {name[:2]} first.")
    return pd.read_csv(path)
