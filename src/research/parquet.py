"""Tables with users as Parquet, partitioned by a bucket of users: ``userId % buckets``.

Reading one user opens one bucket's files. A folder is written beside its place and takes it by a
rename, so a write that is cut short leaves the old tables. pyarrow writes, where the rows are:
Spark's own writer needs a part of Hadoop on Windows (winutils).
"""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark import TaskContext
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


def write(table: DataFrame, folder: Path) -> int:
    """Write a table into a new folder and return its rows; a ``bucket`` is a folder in it.

    A partition becomes one file, so it must not hold rows of two buckets.
    """
    folder.mkdir(parents=True)
    by_bucket = "bucket" in table.columns

    def save(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        number = context.partitionId() if context else 0
        place, writer, rows = folder, None, 0
        for batch in batches:
            if by_bucket and batch.num_rows:
                place = folder / f"bucket={batch['bucket'][0]}"
            batch = batch.drop_columns(["bucket"]) if by_bucket else batch
            if writer is None:
                place.mkdir(parents=True, exist_ok=True)
                writer = pq.ParquetWriter(place / f"part-{number:05d}.parquet", batch.schema)
            writer.write_batch(batch)
            rows += batch.num_rows
        if writer:
            writer.close()
        yield pa.RecordBatch.from_pydict({"rows": [rows]})

    written = table.mapInArrow(save, "rows bigint").agg(F.sum("rows").alias("rows")).collect()
    return written[0]["rows"] or 0


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
        if "userId" in table.columns:
            table = bucketed(table, buckets).sortWithinPartitions("bucket", *order)
        rows[name] = write(table, fresh / name)
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
