"""Tables with users as partitioned Parquet, on any file system that Spark can write to.

A folder holds two slots and a list of versions::

    folder/manifest/    one small Parquet file for each finished write
    folder/a/ratings/bucket=0/ ... bucket=15/
    folder/b/ratings/   the version before

A write goes to the slot that nobody reads and becomes visible with its manifest file, which is
added last. So a reader sees the old version or the new one, never half of one, after a crash too,
and without renaming folders, which object stores cannot do in one step. The price is the disk for
two versions. There may be one writer at a time.

``bucket = userId % buckets`` is a partition column: reading one user opens one bucket's files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.types import IntegerType, StructField, StructType

from helpers import data

BUCKETS = 16
"""Partitions by user, unless told otherwise; about 100 MB of a table in each is a good size."""

_MANIFEST = "number long, slot string, buckets int, name string, schema string, rows long"


class ParquetError(ValueError):
    """A folder cannot be read as a table; the message says what to do."""


@dataclass(frozen=True)
class Version:
    """A finished write: its number (1, 2, ...), its slot, buckets, and the rows of each table."""

    number: int
    slot: str
    buckets: int
    rows: dict[str, int]
    schemas: dict[str, StructType]


def location(folder: Path | str) -> str:
    """Return ``folder`` as Spark takes it: an address (``s3://...``) as it is, else a local path.

    A local path is made absolute and gets the scheme ``file``: on a cluster a bare path would be
    looked for in the cluster's own file system.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", str(folder)):
        return str(folder).rstrip("/")
    text = Path(folder).expanduser().resolve().as_posix()
    return f"file://{text}" if text.startswith("/") else f"file:///{text}"


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
) -> Version:
    """Write tables as the next version of ``folder``; those with ``userId`` are partitioned by it.

    Nothing but counts comes to the driver. Within a bucket the rows are sorted by ``order``, so
    that Parquet's own statistics narrow a search further. ``aligned`` says that the rows of a
    bucket are in one Spark partition already, as :func:`research.spark_lists.recommend_all` leaves
    them: then they are not moved again.

    Raises:
        ValueError: ``buckets`` is below 1.
    """
    if buckets < 1:
        raise ValueError(f"buckets is {buckets}; there must be at least one.")
    spark, root = next(iter(tables.values())).sparkSession, location(folder)
    before = _versions(spark, root)
    number = 1 + max(before, default=0)
    slot = "ba"[number % 2]
    rows = []
    for name, table in tables.items():
        target, schema = f"{root}/{slot}/{name}", table.schema
        if "userId" in table.columns:
            table = bucketed(table, buckets)
            if not aligned:
                table = table.repartitionById(buckets, "bucket")
            table = table.sortWithinPartitions("bucket", *order)
            writer = table.write.partitionBy("bucket")
        else:
            writer = table.coalesce(1).write
        # Dynamic overwriting, should the session prefer it, would leave old buckets behind.
        writer.option("partitionOverwriteMode", "static").mode("overwrite").parquet(target)
        count = _table(spark, target, schema).count()
        rows.append((number, slot, buckets, name, schema.json(), count))
    manifest = spark.createDataFrame(rows, _MANIFEST).coalesce(1)
    manifest.write.mode("append").parquet(f"{root}/manifest")
    return _version(rows)


def latest(spark: SparkSession, folder: Path | str) -> Version:
    """Return the last finished version of ``folder``.

    Raises:
        ParquetError: there is none.
    """
    versions = _versions(spark, location(folder))
    if not versions:
        raise ParquetError(
            f"{Path(folder).name} holds no finished table: write it first, or correct the folder; "
            "on a cluster every machine must see the same one."
        )
    return versions[max(versions)]


def load(
    spark: SparkSession, folder: Path | str, name: str, users: Iterable[int] | None = None
) -> DataFrame:
    """Return a table of the last version, with the columns it was saved with.

    ``users`` keeps the rows of these users, and only the files of their buckets are opened.

    Raises:
        ParquetError: the folder has no finished version, or no table of this name.
    """
    version = latest(spark, folder)
    if name not in version.schemas:
        raise ParquetError(
            f"{Path(folder).name} holds no table {name}; it has {', '.join(version.schemas)}."
        )
    schema = version.schemas[name]
    table = _table(spark, f"{location(folder)}/{version.slot}/{name}", schema)
    if users is not None:
        wanted = sorted({int(user) for user in users})
        in_buckets = sorted({user % version.buckets for user in wanted})
        table = table.where(F.col("bucket").isin(in_buckets) & F.col("userId").isin(wanted))
    return table.select(*schema.fieldNames())


def _table(spark: SparkSession, address: str, schema: StructType) -> DataFrame:
    # With a schema a table without rows, which has no file, can be read too.
    if "userId" in schema.fieldNames():
        schema = StructType([*schema.fields, StructField("bucket", IntegerType())])
    return spark.read.schema(schema).parquet(_escaped(address))


def _versions(spark: SparkSession, root: str) -> dict[int, Version]:
    try:
        found = spark.read.schema(_MANIFEST).parquet(_escaped(f"{root}/manifest")).collect()
    except AnalysisException as error:
        if error.getCondition() != "PATH_NOT_FOUND":
            raise
        return {}
    numbers = {row["number"] for row in found}
    return {
        number: _version([tuple(row) for row in found if row["number"] == number])
        for number in numbers
    }


def _version(rows: list[tuple]) -> Version:
    number, slot, buckets = rows[0][:3]
    return Version(
        number,
        slot,
        buckets,
        rows={row[3]: row[5] for row in rows},
        schemas={row[3]: StructType.fromJson(json.loads(row[4])) for row in rows},
    )


def _escaped(address: str) -> str:
    return re.sub(r"([][{}*?\\])", r"\\\1", address)  # Spark takes what it reads for a pattern


def save_tables(tables: data.Tables, folder: Path | str, *, buckets: int = BUCKETS) -> Version:
    """Write the four tables as Parquet: ratings and tags by user bucket, the others in one file.

    ``folder`` is a local path or an address of a shared file system (``s3://...``); a cluster's
    machines must all see it. See the top of this module for the layout and for what happens when a
    write is cut short.
    """
    return save({name: getattr(tables, name) for name in data.TABLES}, folder, buckets=buckets)


def load_tables(
    spark: SparkSession, folder: Path | str, users: Iterable[int] | None = None
) -> data.Tables:
    """Return what :func:`save_tables` wrote, as :func:`helpers.data.load` returns CSV files.

    ``users`` narrows ratings and tags to these users; the files of other buckets stay closed.

    Raises:
        ParquetError: the folder holds no finished write.
    """
    people = {"ratings": users, "tags": users}
    return data.Tables(*(load(spark, folder, name, people.get(name)) for name in data.TABLES))
