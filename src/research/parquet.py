"""Tables with users as Parquet, partitioned by a bucket of users: ``userId % buckets``.

Reading one user opens one bucket's files. A folder is written beside its place and takes it by a
rename, so a write that is cut short leaves the old tables.
"""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterable, Mapping
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # noqa: N812

from helpers import data

BUCKETS = 16
"""Partitions by user, unless told otherwise; about 100 MB of a table in each is a good size."""
Saved = namedtuple("Saved", "rows")  # the number of rows of each table


def bucketed(table: DataFrame, buckets: int) -> DataFrame:
    """Put the rows of each bucket of users into one partition, its number in ``bucket``."""
    bucket = F.pmod("userId", F.lit(buckets)).cast("int")
    return table.withColumn("bucket", bucket).repartitionById(buckets, "bucket")


def write_folder(
    tables: Mapping[str, DataFrame],
    folder: Path | str,
    *,
    buckets: int = BUCKETS,
    order: Iterable[str] = ("userId", "movieId"),
) -> Saved:
    """Write tables in place of those in ``folder``; those with ``userId`` by bucket, in ``order``.

    Nothing but counts comes to the driver. On a cluster every machine must see the folder.
    """
    place = Path(folder).resolve()
    fresh, old = (place.with_name(f".{place.name}-{name}") for name in ("fresh", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    rows = {}
    for name, table in tables.items():
        path = _address(fresh / name)
        if "userId" in table.columns:
            ordered = bucketed(table, buckets).sortWithinPartitions("bucket", *order)
            ordered.write.partitionBy("bucket").parquet(path)
        else:
            table.coalesce(1).write.parquet(path)
        rows[name] = table.sparkSession.read.schema(table.schema).parquet(path).count()
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    return Saved(rows)


def read_table(
    spark: SparkSession,
    folder: Path | str,
    name: str,
    schema: str,
    *,
    users: Iterable[int] | None = None,
    buckets: int = BUCKETS,
) -> DataFrame:
    """Return a table with the columns of ``schema``, those it was saved with.

    ``users`` keeps their rows, and only their buckets' files are opened, of as many as were saved.
    """
    with_bucket = f"{schema}, bucket int" if "userId" in schema else schema
    table = spark.read.schema(with_bucket).parquet(_address(Path(folder).resolve() / name))
    if users is not None:
        chosen = [int(user) for user in users]
        places = sorted({user % buckets for user in chosen})
        table = table.where(F.col("bucket").isin(places) & F.col("userId").isin(chosen))
    return table.drop("bucket")


def _address(path: Path) -> str:
    return "file:///" + path.as_posix().lstrip("/")  # else a cluster's own file system is meant


def save_tables(tables: data.Tables, folder: Path | str, *, buckets: int = BUCKETS) -> Saved:
    """Write the four tables: ratings and tags by user bucket, the others in one file."""
    return write_folder(tables._asdict(), folder, buckets=buckets)


def load_tables(
    spark: SparkSession,
    folder: Path | str,
    users: Iterable[int] | None = None,
    *,
    buckets: int = BUCKETS,
) -> data.Tables:
    """Return what :func:`save_tables` wrote; ``users`` narrows ratings and tags to these."""
    tables = {}
    for name, schema in data.SCHEMAS.items():
        chosen = users if "userId" in schema else None
        tables[name] = read_table(spark, folder, name, schema, users=chosen, buckets=buckets)
    return data.Tables(**tables)
