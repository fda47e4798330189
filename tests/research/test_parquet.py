"""Parquet by user bucket: nothing lost, half a write never seen, one bucket for one user."""

from __future__ import annotations

import shutil

import pytest

from helpers import data
from research import parquet, splits
from research.parquet import ParquetError

SCHEMA = "userId int, movieId int, rating float"
ROWS = [(user, movie, 0.5 * (1 + (user + movie) % 10)) for user in range(12) for movie in range(5)]


@pytest.fixture(scope="module")
def rows(spark):
    return spark.createDataFrame(ROWS, SCHEMA)


def as_set(table) -> set[tuple]:
    return {tuple(row) for row in table.collect()}


def test_the_four_tables_come_back_as_they_were(spark, sample, tmp_path):
    folder = tmp_path / "a [strange] nàme {1} *"
    tables = data.load(spark, sample)
    written = parquet.save_tables(tables, folder, buckets=3)
    back = parquet.load_tables(spark, folder)
    for name in data.TABLES:
        before, after = getattr(tables, name), getattr(back, name)
        assert after.schema == data.SCHEMAS[name]
        rows = before.collect()
        assert sorted(rows, key=str) == sorted(after.collect(), key=str)
        assert written.rows[name] == len(rows)
    parts = sorted(path.name for path in (folder / "a" / "ratings").glob("bucket=*"))
    assert parts == ["bucket=0", "bucket=1", "bucket=2"]
    split, again = data.split(tables.ratings), data.split(back.ratings)
    assert as_set(split[2]) == as_set(again[2])


def test_one_user_opens_the_files_of_one_bucket(spark, rows, tmp_path):
    parquet.save({"ratings": rows}, tmp_path, buckets=4)
    for path in (tmp_path / "a" / "ratings").glob("bucket=[!1]/*.parquet"):
        path.write_bytes(b"not Parquet at all")
        path.with_name(f".{path.name}.crc").unlink()
    mine = parquet.load(spark, tmp_path, "ratings", users=[5, 9])
    assert as_set(mine) == {row for row in ROWS if row[0] in (5, 9)}
    with pytest.raises(Exception, match=r"(?i)parquet"):
        parquet.load(spark, tmp_path, "ratings").collect()


def test_a_write_that_is_cut_short_leaves_the_old_version(spark, rows, tmp_path, monkeypatch):
    parquet.save({"ratings": rows}, tmp_path, buckets=2)
    old = parquet.load(spark, tmp_path, "ratings")
    with monkeypatch.context() as patch:
        # Spark writes all data of the second version, and then the process is gone.
        patch.setattr(type(spark), "createDataFrame", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            parquet.save({"ratings": rows.where("userId < 3")}, tmp_path, buckets=2)
    assert (tmp_path / "b" / "ratings" / "_SUCCESS").exists()
    assert parquet.latest(spark, tmp_path).number == 1
    assert as_set(parquet.load(spark, tmp_path, "ratings")) == set(ROWS)
    # The next write replaces the half, and who reads the old version still can.
    written = parquet.save({"ratings": rows.where("userId > 3")}, tmp_path, buckets=3)
    assert (written.number, written.slot, written.rows) == (2, "b", {"ratings": 40})
    assert as_set(parquet.load(spark, tmp_path, "ratings")) == {r for r in ROWS if r[0] > 3}
    assert as_set(old) == set(ROWS)


def test_a_table_can_be_written_over_itself(spark, rows, tmp_path):
    parquet.save({"ratings": rows}, tmp_path, buckets=2)
    for number in (2, 3):
        kept = parquet.load(spark, tmp_path, "ratings").where(f"userId > {number}")
        assert parquet.save({"ratings": kept}, tmp_path, buckets=2).number == number
    assert as_set(parquet.load(spark, tmp_path, "ratings")) == {r for r in ROWS if r[0] > 3}


def test_an_empty_table_and_negative_ids_come_back(spark, rows, tmp_path):
    other = spark.createDataFrame([(-3, 1, 2.0)], SCHEMA)
    parquet.save({"none": rows.where("userId > 99"), "other": other}, tmp_path, buckets=2)
    assert parquet.load(spark, tmp_path, "none").collect() == []
    assert as_set(parquet.load(spark, tmp_path, "other", users=[-3])) == {(-3, 1, 2.0)}


def test_a_folder_without_a_finished_write_is_named(spark, rows, tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ParquetError, match=f"^{folder.name} holds no finished table"):
            parquet.load(spark, folder, "ratings")
    parquet.save({"ratings": rows}, tmp_path / "there", buckets=2)
    with pytest.raises(ParquetError, match="no table tags; it has ratings"):
        parquet.load(spark, tmp_path / "there", "tags")
    shutil.rmtree(tmp_path / "there" / "manifest")
    with pytest.raises(ParquetError, match="holds no finished table"):
        parquet.load(spark, tmp_path / "there", "ratings")
    with pytest.raises(ValueError, match="at least one"):
        parquet.save({"ratings": rows}, tmp_path / "there", buckets=0)


def test_addresses_of_other_file_systems_stay_as_they_are(tmp_path):
    assert parquet.location("s3://bucket/with space/") == "s3://bucket/with space"
    assert parquet.location("dbfs:/course") == "dbfs:/course"
    assert parquet.location(tmp_path / "x") == f"file://{tmp_path.resolve().as_posix()}/x"


def test_the_split_by_hash_depends_on_the_rows_alone(spark, sample):
    ratings = data.load(spark, sample).ratings
    first = [as_set(part) for part in splits.split_by_hash(ratings)]
    shuffled = ratings.repartition(5, "movieId").orderBy("rating")
    assert [as_set(part) for part in splits.split_by_hash(shuffled)] == first
    total = ratings.count()
    assert sum(map(len, first)) == total and len(set().union(*first)) == total
    # Four standard errors of a share of 0.2: a fair draw leaves them once in 16,000.
    for part, share in zip(first, (0.6, 0.2, 0.2), strict=True):
        assert len(part) / total == pytest.approx(
            share, abs=4 * (share * (1 - share) / total) ** 0.5
        )
    other = [as_set(part) for part in splits.split_by_hash(ratings, seed=1)]
    assert len(other[0] & first[0]) / len(first[0]) == pytest.approx(0.6, abs=0.04)
    with pytest.raises(ValueError, match="above 0"):
        splits.split_by_hash(ratings, (0.5, 0.0))
