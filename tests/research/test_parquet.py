"""Parquet by user bucket: nothing lost, half a write never seen, one bucket for one user."""

from __future__ import annotations

import pytest

from helpers import data
from research import parquet

SCHEMA = "userId int, movieId int, rating float"
ROWS = [(user, movie, 0.5 * (1 + (user + movie) % 10)) for user in range(12) for movie in range(5)]


@pytest.fixture(scope="module")
def rows(spark):
    return spark.createDataFrame(ROWS, SCHEMA)


def as_set(table) -> set[tuple]:
    return {tuple(row) for row in table.collect()}


def test_the_four_tables_come_back_as_they_were(spark, sample, tmp_path):
    folder = tmp_path / "a strange nàme"
    tables = data.load(spark, sample)
    saved = parquet.save_tables(tables, folder, buckets=3)
    back = parquet.load_tables(spark, folder, buckets=3)
    for name in data.TABLES:
        before, after = getattr(tables, name).collect(), getattr(back, name)
        assert after.schema == getattr(tables, name).schema
        assert sorted(before, key=str) == sorted(after.collect(), key=str)
        assert saved.rows[name] == len(before)
    buckets = sorted(path.name for path in (folder / "ratings").glob("bucket=*"))
    assert buckets == ["bucket=0", "bucket=1", "bucket=2"]
    split, again = data.split(tables.ratings), data.split(back.ratings)
    assert as_set(split[2]) == as_set(again[2])


def test_one_user_opens_the_files_of_one_bucket(spark, rows, tmp_path):
    parquet.write_folder({"ratings": rows}, tmp_path / "x", buckets=4)
    for path in (tmp_path / "x" / "ratings").glob("bucket=[!1]/*.parquet"):
        path.write_bytes(b"not Parquet at all")
    mine = parquet.read_table(spark, tmp_path / "x", "ratings", SCHEMA, users=[5, 9], buckets=4)
    assert as_set(mine) == {row for row in ROWS if row[0] in (5, 9)}


def test_a_write_that_is_cut_short_leaves_the_old_tables(spark, rows, tmp_path, monkeypatch):
    folder = tmp_path / "x"
    parquet.write_folder({"ratings": rows}, folder)
    with monkeypatch.context() as patch:
        # The whole second table is written, and then the process is gone.
        patch.setattr(parquet.Path, "rename", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            parquet.write_folder({"ratings": rows.where("userId < 3")}, folder)
    assert as_set(parquet.read_table(spark, folder, "ratings", SCHEMA)) == set(ROWS)
    # The next write, of a table over itself, replaces the half.
    kept = parquet.read_table(spark, folder, "ratings", SCHEMA).where("userId > 3")
    assert parquet.write_folder({"ratings": kept}, folder).rows == {"ratings": 40}
    assert as_set(parquet.read_table(spark, folder, "ratings", SCHEMA)) == {
        r for r in ROWS if r[0] > 3
    }
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_an_empty_table_and_negative_ids_come_back(spark, rows, tmp_path):
    other = spark.createDataFrame([(-3, 1, 2.0)], SCHEMA)
    parquet.write_folder({"none": rows.where("userId > 99"), "other": other}, tmp_path / "x")
    assert parquet.read_table(spark, tmp_path / "x", "none", SCHEMA).collect() == []
    other = parquet.read_table(spark, tmp_path / "x", "other", SCHEMA, users=[-3])
    assert as_set(other) == {(-3, 1, 2.0)}
