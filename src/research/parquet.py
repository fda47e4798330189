"""Tables with users as Parquet, partitioned by a bucket of users.

``bucket = userId % buckets`` is a partition column: reading one user opens one bucket's files. A
local folder is written beside its place and takes it by one rename, so a write that is cut short
leaves the old tables. An object store (``s3://...``) has no such rename; there Spark's own
committer decides what a reader sees.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.types import IntegerType, StructField, StructType

from helpers import data

BUCKETS = 16
"""Partitions by user, unless told otherwise; about 100 MB of a table in each is a good size."""


class ParquetError(ValueError):
    """A folder cannot be read as a table; the message says what to do."""


class Saved(NamedTuple):
    """What was written: the rows of each table."""

    rows: dict[str, int]


def bucketed(table: DataFrame, buckets: int) -> DataFrame:
    """Add ``bucket``, the user's partition; the remainder of a negative id is positive too."""
    return table.withColumn("bucket", F.pmod("userId", F.lit(buckets)).cast("int"))


def save(
    tables: Mapping[str, DataFrame],
    folder: Path | str,
    *,
    buckets: int = BUCKETS,
    order: Iterable[str] = ("userId", "movieId"),
    aligned: bool = False,
) -> Saved:
    """Write tables in place of those in ``folder``; those with ``userId`` are partitioned by it.

    Nothing but counts comes to the driver. Within a bucket the rows are sorted by ``order``, so
    that Parquet's own statistics narrow a search further. ``aligned`` says that the rows of a
    bucket are in one Spark partition already, as :func:`research.spark_lists.recommend_all` leaves
    them: then they are not moved again.

    Raises:
        ValueError: ``buckets`` is below 1.
    """
    if buckets < 1:
        raise ValueError(f"buckets is {buckets}; there must be at least one.")
    place = None if "://" in str(folder) else Path(folder).expanduser().resolve()
    fresh = place and place.with_name(f".{place.name}-fresh")
    root = _address(fresh or folder)
    rows = {}
    for name, table in tables.items():
        schema = table.schema
        writer = table.coalesce(1).write
        if "userId" in table.columns:
            table = bucketed(table, buckets)
            if not aligned:
                table = table.repartitionById(buckets, "bucket")
            writer = table.sortWithinPartitions("bucket", *order).write.partitionBy("bucket")
        # Dynamic overwriting, should the session prefer it, would leave old buckets behind.
        writer.option("partitionOverwriteMode", "static").mode("overwrite").parquet(
            f"{root}/{name}"
        )
        rows[name] = _table(table.sparkSession, f"{root}/{name}", schema).count()
    if place and fresh:
        old = place.with_name(f".{place.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if place.exists():
            place.rename(old)
        fresh.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    return Saved(rows)


def load(
    spark: SparkSession,
    folder: Path | str,
    name: str,
    schema: StructType,
    *,
    users: Iterable[int] | None = None,
    buckets: int = BUCKETS,
) -> DataFrame:
    """Return a table with the columns of ``schema``, those it was saved with.

    ``users`` keeps the rows of these users, and only the files of their buckets are opened;
    ``buckets`` must be the number that the table was saved with.

    Raises:
        ParquetError: there is no such table.
    """
    try:
        table = _table(spark, f"{_address(folder)}/{name}", schema)
    except AnalysisException as error:
        if error.getCondition() != "PATH_NOT_FOUND":
            raise
        raise ParquetError(
            f"{Path(folder).name} holds no table {name}: write it first, or correct the folder; on "
            "a cluster every machine must see the same one."
        ) from None
    if users is not None:
        wanted = sorted({int(user) for user in users})
        in_buckets = sorted({user % buckets for user in wanted})
        table = table.where(F.col("bucket").isin(in_buckets) & F.col("userId").isin(wanted))
    return table.select(*schema.fieldNames())


def _address(folder: Path | str) -> str:
    if "://" in str(folder):
        return str(folder).rstrip("/")
    # A bare path would be looked for in a cluster's own file system; Spark takes no percent signs.
    path = Path(folder).expanduser().resolve().as_posix()
    return f"file://{path}" if path.startswith("/") else f"file:///{path}"


def _table(spark: SparkSession, address: str, schema: StructType) -> DataFrame:
    # With a schema a table without rows, which has no file, can be read too.
    if "userId" in schema.fieldNames():
        schema = StructType([*schema.fields, StructField("bucket", IntegerType())])
    pattern = re.sub(r"([][{}*?\\])", r"\\\1", address)  # Spark takes what it reads for a pattern
    return spark.read.schema(schema).parquet(pattern)


def save_tables(tables: data.Tables, folder: Path | str, *, buckets: int = BUCKETS) -> Saved:
    """Write the four tables: ratings and tags by user bucket, the others in one file.

    ``folder`` is a local path or an address of a shared file system (``s3://...``); a cluster's
    machines must all see it.
    """
    return save({name: getattr(tables, name) for name in data.TABLES}, folder, buckets=buckets)


def load_tables(
    spark: SparkSession,
    folder: Path | str,
    users: Iterable[int] | None = None,
    *,
    buckets: int = BUCKETS,
) -> data.Tables:
    """Return what :func:`save_tables` wrote, as :func:`helpers.data.load` returns CSV files.

    ``users`` narrows ratings and tags to these users; see :func:`load`.
    """
    tables = []
    for name in data.TABLES:
        chosen = users if name in ("ratings", "tags") else None
        schema = data.SCHEMAS[name]
        tables.append(load(spark, folder, name, schema, users=chosen, buckets=buckets))
    return data.Tables(*tables)
