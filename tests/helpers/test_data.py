"""Finding, downloading, checking, loading and splitting the data, and every way it can fail."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import releases
from werkzeug import Response

from conftest import ROOT
from helpers import data, doctor
from helpers.data import DataError, Dataset, DownloadError, check, download, load, locate, split
from helpers.settings import Settings

FILES = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,2,0.5,964981247\n"
    "2,1,5.0,964982224\n",
    "movies.csv": 'movieId,title,genres\n1,"Matrix, The (1999)",Action|Sci-Fi\n'
    '2,"""Great Performances"" Cats (1998)",Musical\n3,Amélie (2001),Comedy|Romance\n',
    "links.csv": "movieId,imdbId,tmdbId\n1,0133093,603\n2,0173714,\n3,,194\n",
    "tags.csv": "userId,movieId,tag,timestamp\n1,1,None,964982800\n2,1,NA,964982801\n",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small good folder to spoil."""
    good = tmp_path / "good"
    good.mkdir()
    for name, text in FILES.items():
        (good / name).write_text(text, encoding="utf-8", newline="")
    return good


def dataset_at(path: Path) -> Dataset:
    return Dataset(path, path.name, "MOVIELENS_DIR", simulated=False, verified=False)


def spoil(folder: Path, name: str, old: str, new: str) -> Dataset:
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8", newline="")
    return dataset_at(folder)


# --- checking -----------------------------------------------------------------------------------


def test_a_good_folder_is_counted(folder):
    counts = check(dataset_at(folder))
    assert dataclasses.astuple(counts) == (3, 2, 2, 3, 3, 2)


@pytest.mark.parametrize(
    ("name", "old", "new", "line", "column"),
    [
        ("ratings.csv", ",0.5,", ",0.0,", 3, "rating"),
        ("ratings.csv", ",0.5,", ",5.5,", 3, "rating"),
        ("ratings.csv", ",0.5,", ",3.7,", 3, "rating"),
        ("ratings.csv", ",0.5,", ",-1,", 3, "rating"),
        ("ratings.csv", ",0.5,", ",nan,", 3, "rating"),
        ("ratings.csv", ",0.5,", ",,", 3, "rating"),
        ("ratings.csv", "2,1,5.0", "two,1,5.0", 4, "userId"),
        ("ratings.csv", "2,1,5.0", "2.0,1,5.0", 4, "userId"),
        ("ratings.csv", "2,1,5.0", "2, 1,5.0", 4, "movieId"),
        ("ratings.csv", "2,1,5.0", ",1,5.0", 4, "userId"),
        ("ratings.csv", "2,1,5.0", "3000000000,1,5.0", 4, "userId"),
        ("ratings.csv", "2,1,5.0", "2,9,5.0", 4, "movieId"),
        ("ratings.csv", "964981247", "2000-07-30", 3, "timestamp"),
        ("ratings.csv", "964981247", "964981247000", 3, "timestamp"),
        ("ratings.csv", "2,1,5.0", "1,2,5.0", 4, "userId/movieId"),
        ("ratings.csv", "2,1,5.0", "01,002,5.0", 4, "userId/movieId"),
        ("ratings.csv", "1,2,0.5,964981247", "1,2,0.5", 3, "timestamp"),
        ("ratings.csv", "1,2,0.5,964981247", "1,2,0.5,964981247,9", 3, "timestamp"),
        ("movies.csv", "3,Am", "x3,Am", 4, "movieId"),
        ("movies.csv", "3,Am", "1,Am", 4, "movieId"),
        ("movies.csv", "Amélie (2001)", "", 4, "title"),
        ("movies.csv", "Comedy|Romance", "", 4, "genres"),
        ("movies.csv", "Matrix, The", "Matrix,\n The", 3, "title"),
        ("links.csv", "0173714", "tt0173714", 3, "imdbId"),
        ("links.csv", ",194", ",194.0", 4, "tmdbId"),
        ("links.csv", "3,,194", "2,,194", 4, "movieId"),
        ("links.csv", "3,,194", "8,,194", 4, "movieId"),
        ("tags.csv", "2,1,NA", "2,7,NA", 3, "movieId"),
        ("tags.csv", "964982801", "yesterday", 3, "timestamp"),
    ],
)
def test_a_bad_value_is_named_with_file_line_and_column(folder, name, old, new, line, column):
    bad = spoil(folder, name, old, new)
    with pytest.raises(DataError) as caught:
        check(bad)
    assert str(caught.value).startswith(f"{name}, line {line}, column {column}: ")
    assert "\n" not in str(caught.value)


def test_the_bad_value_and_the_remedy_are_in_the_message(folder):
    with pytest.raises(DataError, match=r"'5\.5' is not a half-star rating from 0\.5 to 5; corr"):
        check(spoil(folder, "ratings.csv", ",0.5,", ",5.5,"))
    with pytest.raises(DataError, match=r"'1, 1' is there a second time; keep one"):
        check(spoil(folder, "ratings.csv", "1,2,5.5,", "1,1,0.5,"))


def test_the_line_counts_blank_lines(folder):
    text = FILES["ratings.csv"] + "\n\n" + "7,1,9.0,964982703\n"
    (folder / "ratings.csv").write_text(text, newline="")
    with pytest.raises(DataError, match=r"ratings\.csv, line 7, column rating: '9\.0'"):
        check(dataset_at(folder))


@pytest.mark.parametrize("name", FILES)
def test_latin_1_is_named_with_its_line(folder, name):
    lines = FILES[name].splitlines(keepends=True)
    field = 1 if name == "movies.csv" else len(lines[1].strip().split(",")) - 1
    values = lines[0].strip().split(",")
    values[:] = ["1"] * len(values)
    values[field] = '"Caché, é (2005)"'
    text = "".join(lines) + ",".join(values) + "\n"
    (folder / name).write_bytes(text.encode("latin-1", errors="replace"))
    expected = 4 if name == "movies.csv" else len(lines) + 1  # Amélie comes first there
    with pytest.raises(DataError) as caught:
        check(dataset_at(folder))
    assert str(caught.value).startswith(f"{name}, line {expected}: not UTF-8")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("end", ["\n", ""])
def test_a_missing_file_an_empty_one_and_one_without_rows(folder, name, end):
    optional = name in ("links.csv", "tags.csv")
    header = FILES[name].splitlines()[0] + end
    for text, message in ((header, "line 2: there is no row"), ("", "line 1: the file is empty")):
        (folder / name).write_text(text)
        if text and optional:
            assert getattr(check(dataset_at(folder)), name[:-4]) == 0
        else:
            with pytest.raises(DataError, match=f"^{name}, {message}"):
                check(dataset_at(folder))
    (folder / name).unlink()
    if not optional:
        with pytest.raises(DataError, match=f"^{name} is missing"):
            check(dataset_at(folder))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_column(folder, name):
    column = FILES[name].splitlines()[0].split(",")[-1]
    table = pd.read_csv(folder / name, dtype=str).drop(columns=column)
    table.to_csv(folder / name, index=False)
    for use in (check, lambda dataset: load(None, dataset)):
        with pytest.raises(DataError, match=f"^{name}, line 1: column {column} is missing"):
            use(dataset_at(folder))


def test_columns_in_another_order_are_refused(folder, spark):
    """Spark reads by position: users and movies would change places without a word."""
    bad = spoil(folder, "ratings.csv", "userId,movieId", "movieId,userId")
    with pytest.raises(DataError, match=r"^ratings\.csv, line 1: the columns are movieId,userId"):
        load(spark, bad)
    with pytest.raises(DataError, match=r"^ratings\.csv, line 1: the columns are movieId,userId"):
        check(bad)


def test_a_byte_order_mark_and_windows_line_ends_are_fine(folder, spark):
    for name, text in FILES.items():
        windows = ("\ufeff" + text).replace("\n", "\r\n")
        (folder / name).write_text(windows, encoding="utf-8", newline="")
    dataset = dataset_at(folder)
    assert check(dataset).ratings == 3
    assert load(spark, dataset).movies.toPandas()["genres"].tolist()[0] == "Action|Sci-Fi"
    assert data.load_pandas(dataset, "movies")["genres"].tolist()[0] == "Action|Sci-Fi"


# --- finding ------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, folder) -> Settings:
    """A project folder with nothing but a sample."""
    sample = tmp_path / "home" / "data" / "sample"
    shutil.copytree(folder, sample)
    (sample / "SIMULATED").write_text("Simulated.\n")
    return Settings(root=tmp_path / "home", allow_download=False)


@pytest.fixture
def no_download(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("nothing should be fetched here")

    monkeypatch.setattr(data, "download", refuse)


def test_movielens_dir_comes_first_then_the_copy_then_a_download(home, folder, monkeypatch):
    local = home.data_dir / "ml-latest-small"
    monkeypatch.setattr(data, "download", lambda target: Path(shutil.copytree(folder, target)))
    home = dataclasses.replace(home, allow_download=True)
    dataset = locate(dataclasses.replace(home, movielens_dir=folder))
    assert (dataset.path, dataset.source, dataset.name) == (folder, "MOVIELENS_DIR", "good")
    assert not dataset.verified and not dataset.simulated
    assert dataset.describe() == (
        "Data: good, other than ml-latest-small, unverified (found by MOVIELENS_DIR). The text "
        "speaks of ml-latest-small; the numbers computed here are those of good."
    )
    for source in ("download", "data/ml-latest-small"):
        dataset = locate(home)
        assert (dataset.path, dataset.source) == (local, source)


def test_then_the_sample_with_a_notice(home, no_download):
    found = locate(home)
    assert (found.path, found.source, found.simulated) == (home.sample_dir, "data/sample", True)
    assert found.name == "sample (simulated)"
    assert found.describe() == (
        "Data: a SIMULATED sample, not MovieLens (no copy found, download switched off). For the "
        "real release set MOVIELENS_DIR or unpack ml-latest-small into data/."
    )


def test_offline_gives_the_sample_and_says_why(home, monkeypatch):
    def offline(target):
        raise DownloadError("https://example.org cannot be reached: no route.")

    monkeypatch.setattr(data, "download", offline)
    found = locate(dataclasses.replace(home, allow_download=True))
    assert found.simulated
    assert "cannot be reached: no route). For the real" in found.describe()


def test_movielens_dir_that_points_nowhere_is_an_error(home, tmp_path):
    with pytest.raises(DataError, match="MOVIELENS_DIR names a folder that does not exist"):
        locate(dataclasses.replace(home, movielens_dir=tmp_path / "nowhere"))


def test_a_verified_folder_keeps_its_name_whatever_it_is_called(home, folder, monkeypatch):
    monkeypatch.setattr(data, "SHA256", checksums())
    found = locate(dataclasses.replace(home, movielens_dir=folder))
    assert (found.name, found.verified) == ("ml-latest-small", True)
    assert found.describe() == (
        "Data: ml-latest-small, verified by SHA-256 (found by MOVIELENS_DIR)"
    )


@pytest.mark.parametrize("name", FILES)
def test_a_change_in_any_of_the_four_files_is_not_verified(home, folder, monkeypatch, name):
    monkeypatch.setattr(data, "SHA256", checksums())
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write("\n")
    assert not locate(dataclasses.replace(home, movielens_dir=folder)).verified


# --- other releases -----------------------------------------------------------------------------

FORMS = {
    "ml-100k": (releases.write_ml_100k, "u.data and u.item", "unknown"),
    "ml-1m": (releases.write_ml_1m, "ratings.dat and movies.dat", "Movie 9, The (1939)"),
    "ml-10M100K": (releases.write_ml_10m, "ratings.dat and movies.dat", "Movie 9, The (1939)"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_release_is_read_as_it_comes(home, tmp_path, spark, name):
    write, files, tenth = FORMS[name]
    found = locate(dataclasses.replace(home, movielens_dir=write(tmp_path / name)))
    assert (found.name, found.verified, found.simulated) == (name, False, False)
    assert found.describe() == (
        f"Data: {name}, converted from {files}, unverified (found by MOVIELENS_DIR). The text "
        f"speaks of ml-latest-small; the numbers computed here are those of {name}."
    )
    counts = check(found)
    assert (counts.users, counts.movies, counts.links) == (60, 200, 0)
    assert counts.tags == (3 if name == "ml-10M100K" else 0)
    expected = releases.ratings(60, 200, 0)
    ratings = data.load_pandas(found, "ratings").astype({"rating": float})
    if name == "ml-10M100K":
        ratings["rating"] += 0.5 * (ratings["movieId"] % 2)
    assert sorted(ratings.itertuples(index=False, name=None)) == sorted(expected)
    tables = load(spark, found)
    for table in data.TABLES:
        assert getattr(tables, table).schema == data.SCHEMAS[table]
        assert getattr(tables, table).count() == len(data.load_pandas(found, table))
    movies = [tuple(row) for row in tables.movies.orderBy("movieId").collect()]
    assert movies == list(data.load_pandas(found, "movies").itertuples(index=False, name=None))
    assert [title for _, title, _ in movies[:7]] == list(releases.TITLES)
    assert movies[9][1] == tenth
    assert movies[9][2] == ("(no genres listed)" if tenth == "unknown" else "Horror|War")
    assert [genres for _, _, genres in movies[1:3]] == ["Animation|Sci-Fi", "Children's"]
    if name == "ml-10M100K":
        tags = data.load_pandas(found, "tags")["tag"].tolist()
        assert tags == ['très "bien", really', "a::b", "NA"]


@pytest.fixture
def named(home):
    """Locate a folder as ``MOVIELENS_DIR`` names it."""
    return lambda path: locate(dataclasses.replace(home, movielens_dir=path))


@pytest.mark.parametrize("missing", [["links"], ["tags"], ["links", "tags"]])
def test_without_links_or_tags_there_are_tables_without_rows(named, folder, spark, missing):
    full = {table: data.load_pandas(dataset_at(folder), table) for table in missing}
    for table in missing:
        (folder / f"{table}.csv").unlink()
    found = named(folder)
    without = " and ".join(f"{table}.csv" for table in missing)
    assert found.describe().startswith(f"Data: good, without {without}, unverified (found by ")
    tables = load(spark, found)
    for table in missing:
        assert getattr(check(found), table) == 0
        assert getattr(tables, table).schema == data.SCHEMAS[table]
        assert getattr(tables, table).count() == 0
        frame = data.load_pandas(found, table)
        same = frame.dtypes == full[table].dtypes
        assert same.drop("tag", errors="ignore").all()  # a column without a value has no type
        assert (len(frame), list(frame.columns)) == (0, data.SCHEMAS[table].fieldNames())
    assert check(found).ratings == tables.ratings.count() == 3


def test_the_files_more_of_ml_20m_and_25m_are_left_alone(named, folder):
    for name in ("genome-scores.csv", "genome-tags.csv", "README.txt"):
        (folder / name).write_text("tagId;tag")
    assert dataclasses.astuple(check(named(folder))) == (3, 2, 2, 3, 3, 2)


def test_a_release_in_a_folder_of_its_own_name_is_looked_into(named, tmp_path, settings):
    releases.write_ml_1m(tmp_path / "ml-1m" / "ml-1m")
    (tmp_path / "ml-1m" / "__MACOSX").mkdir()
    found = named(tmp_path / "ml-1m")
    assert (found.name, check(found).users) == ("ml-1m", 60)
    assert data.result_path("x", found, settings).parent == settings.cache_dir / "results" / "ml-1m"
    releases.write_ml_100k(tmp_path / "ml-1m" / "ml-100k")
    with pytest.raises(DataError, match="holds ml-100k and ml-1m: name one of them"):
        named(tmp_path / "ml-1m")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("ratings.csv u.item", "movies.csv is missing in .* holds ratings.csv and u.item; "),
        ("u.data u1.base", "u.item is missing in .* holds u.data and u1.base; "),
        ("movies.dat users.dat", "ratings.dat is missing in .* holds movies.dat and users.dat; "),
        ("rating.csv movie.csv", "ratings.csv and movies.csv are missing in .* holds movie.csv"),
        (
            "movies.csv ratings.csv/",
            "ratings.csv is missing in .* holds movies.csv and ratings.csv/",
        ),
        ("", "ratings.csv and movies.csv are missing in .* holds nothing; "),
        ("ml-1m.zip", r"which holds ml-1m.zip; if MovieLens is in ml-1m.zip, unpack it first"),
        ("a b c d e f g h i j", r"which holds a, b, c, d, e, f, g, h and 2 more; "),
    ],
)
def test_what_a_folder_holds_is_said(named, tmp_path, names, message):
    odd = tmp_path / "odd"
    odd.mkdir()
    for name in names.split():
        if name.endswith("/"):
            (odd / name).mkdir()
        else:
            (odd / name).write_text("x")
    with pytest.raises(DataError, match=message) as caught:
        named(odd)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ml-1m.zip", "ml-1m.zip: unpack it and name"),
        ("ratings.csv", "ratings.csv: name"),
    ],
)
def test_a_file_is_not_a_folder(named, tmp_path, name, message):
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=f"MOVIELENS_DIR names a file, {message}"):
        named(tmp_path / name)


def test_a_file_that_may_not_be_read_is_named(named, tmp_path, folder, monkeypatch):
    releases.write_ml_1m(tmp_path / "ml-1m")
    real_open = Path.open

    def locked(self, *args, **kwargs):
        if self.name in ("ratings.csv", "ratings.dat"):
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", locked)
    monkeypatch.setattr(data, "SHA256", checksums())
    for path, name in ((folder, "ratings.csv"), (tmp_path / "ml-1m", "ratings.dat")):
        with pytest.raises(DataError, match=f"^{name} in the folder found by MOVIELENS_DIR cannot"):
            named(path)


def test_a_release_is_converted_once_and_anew_when_it_changed(named, tmp_path):
    source = releases.write_ml_100k(tmp_path / "ml-100k")
    first = named(source)
    made = (first.path / "ratings.csv").stat().st_mtime_ns
    assert named(source) == first
    assert (first.path / "ratings.csv").stat().st_mtime_ns == made
    with (source / "u.data").open("a") as file:
        file.write("61\t1\t3\t881250949\n")
    second = named(source)
    assert (check(first).users, check(second).users) == (60, 61)


def test_many_conversions_at_once_give_one_good_folder(named, tmp_path):
    source = releases.write_ml_1m(tmp_path / "ml-1m")
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(named, [source] * 6))
    assert {check(dataset).ratings for dataset in found} == {len(releases.ratings(60, 200, 0))}
    assert list(found[0].path.parent.iterdir()) == [found[0].path]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("u.data", "1\t1\t6\t881250949"),
        ("u.data", "1\t1\t5"),
        ("u.data", "1,1,5,881250949"),
        ("u.item", "201|Title|01-Jan-1995"),
        ("u.item", "201|Title|01-Jan-1995||x|0" + "|2" * 18),
        ("ratings.dat", "1::1::5.5::881250949"),
        ("ratings.dat", "UserID::MovieID::Rating::Timestamp"),
        ("movies.dat", "201\tTitle\tDrama"),
        ("tags.dat", "1::1::good::yesterday"),
    ],
)
def test_a_line_that_cannot_be_converted_is_named_and_nothing_is_left(named, tmp_path, name, line):
    write = releases.write_ml_100k if name.startswith("u.") else releases.write_ml_10m
    source = write(tmp_path / "release")
    with (source / name).open("a") as file:
        file.write(f"{line}\n")
    number = (source / name).read_bytes().count(b"\n")
    with pytest.raises(DataError) as caught:
        named(source)
    assert str(caught.value).startswith(f"{name}, line {number}: {line!r} is not ")
    assert not list((tmp_path / "home").rglob("converted/release/*"))


def test_a_fault_in_converted_files_says_where_they_come_from(named, tmp_path):
    source = releases.write_ml_100k(tmp_path / "ml-100k")
    with (source / "u.data").open("a") as file:
        file.write("1\t999\t3\t881250949\n\n")
    with pytest.raises(DataError, match=r"'999' is not in .* \(these CSV .* u.data and u.item\)\."):
        check(named(source))


def test_a_movie_without_a_title_and_a_release_in_utf_8(named, tmp_path):
    """People open u.item in an editor, which saves it in UTF-8 and with other line ends."""
    source = releases.write_ml_100k(tmp_path / "ml-100k")
    text = (source / "u.item").read_text("latin-1").replace("|M (1931)|", "||")
    (source / "u.item").write_text(text, "utf-8-sig", newline="\r\n")
    movies = data.load_pandas(named(source), "movies")
    assert movies["title"][0] == "Misérables, Les (1995)"
    assert (movies["title"][5], len(movies)) == ("unknown", 200)


def test_a_full_disk_at_converting(named, tmp_path, monkeypatch):
    source = releases.write_ml_1m(tmp_path / "ml-1m")
    full_disk(monkeypatch, "movies.csv")
    with pytest.raises(OSError, match="No space left"):
        named(source)
    assert not list((tmp_path / "home").rglob("converted/ml-1m/*"))


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("ratings", "userId;movieId;rating;timestamp", "the separator is ';'; write the"),
        ("ratings", "userId\tmovieId\trating\ttimestamp", "the separator is a tab; "),
        ("ratings", "userId::movieId::rating::timestamp", "the separator is '::'; "),
        ("ratings", '"userId" "movieId" "rating" "timestamp"', "the separator is a space; "),
        ("ratings", "196\t242\t3\t881250949", "the separator is a tab; "),
        ("ratings", "user_id;item_id;rating", "the separator is ';'; "),
        ("movies", "movieId|title|genres", "the separator is '|'; "),
        ("movies", "1::Toy Story, The (1995)::Comedy", "the separator is '::'; "),
        (
            "movies",
            "1,Toy Story 2 (1999),Adventure|Comedy|War|Drama",
            "there is no header; put m",
        ),
        (
            "ratings",
            "1,31,2.5,1260759144",
            "there is no header; put userId,movieId,rating,timestamp a",
        ),
        (
            "ratings",
            "user_id,item_id,rating,timestamp",
            "'user_id' should be userId, 'item_id' should be movieId; the header should be",
        ),
        ("ratings", "UserID,MovieID,Rating,Timestamp", "'UserID' should be userId, 'MovieID'"),
        ("ratings", "userid,movieid,rating,timestamp", "'userid' should be userId, 'movieid'"),
        ("ratings", "userId, movieId, rating, timestamp", "' movieId' should be movieId, "),
        ("movies", "movie_id,movie_title,genre", "'movie_id' should be movieId, 'movie_title'"),
        (
            "ratings",
            "user id,movie id,rating,time of rating",
            "'user id' should be userId, 'movie id'",
        ),
        ("ratings", "userId,movieId,rating", "column timestamp is missing; the header should"),
        ("ratings", "userId,movieId,rating,timestamp,x", "the columns are userId,movieId,"),
        ("ratings", ",userId,movieId,rating,timestamp", "the columns are ,userId,movieId,"),
        ("ratings", "movieId,userId,rating,timestamp", "the columns are movieId,userId,"),
        ("ratings", "<!DOCTYPE html> <html> <head>", "column userId is missing; "),
        (
            "ratings",
            "userId,movieId,rating,timestamp\r1,1,4,9",
            "the lines end in carriage returns",
        ),
        ("ratings", "x" * 200_000, "column userId is missing; "),
        ("ratings", " ", "the line is empty; take it out"),
    ],
)
def test_what_a_first_line_is_is_said_by_whoever_reads_it(folder, name, header, message):
    _, _, rest = FILES[f"{name}.csv"].partition("\n")
    (folder / f"{name}.csv").write_text(f"{header}\n{rest}", newline="")
    dataset = dataset_at(folder)
    for read in (check, lambda it: load(None, it), lambda it: data.load_pandas(it, name)):
        with pytest.raises(DataError) as caught:
            read(dataset)
        assert str(caught.value).startswith(f"{name}.csv, line 1: {message}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_is_named(folder, name, encoding):
    (folder / name).write_text(FILES[name], encoding=encoding, newline="")
    for read in (check, lambda it: load(None, it)):
        with pytest.raises(DataError, match=f"^{name}, line 1: this is UTF-16 or UTF-32; save"):
            read(dataset_at(folder))


@pytest.mark.parametrize("name", ["movies", "tags"])
def test_every_reader_names_latin_1(folder, name):
    """Spark alone would put another character for each of these bytes, without a word."""
    text = FILES[f"{name}.csv"].replace("None", "né")
    (folder / f"{name}.csv").write_bytes(text.encode("latin-1"))
    for read in (check, lambda it: load(None, it), lambda it: data.load_pandas(it, name)):
        with pytest.raises(DataError, match=rf"^{name}\.csv, line \d: not UTF-8"):
            read(dataset_at(folder))


@pytest.mark.parametrize("utf8", ["", "0"])
def test_any_folder_name_is_read_in_the_c_locale(tmp_path, utf8):
    folder = releases.write_ml_100k(tmp_path / "Größe données 電影")
    shutil.copytree(ROOT / "data" / "sample", tmp_path / "home" / "data" / "sample")
    code = (
        "from helpers import data; d = data.locate(); print(d.describe());"
        "print(data.check(d).users, len(data.load_pandas(d, 'movies')))"
    )
    env = {"LC_ALL": "C", "HELPERS_HOME": str(tmp_path / "home"), "MOVIELENS_DIR": str(folder)}
    if utf8:
        env |= {"PYTHONUTF8": utf8}
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, check=False
    )
    assert run.stdout.endswith(b"60 200\n"), run.stderr.decode()
    assert utf8 or "Data: Größe données 電影, converted".encode() in run.stdout


def test_a_changed_ml_latest_small_is_not_called_other_than_itself(named, folder):
    found = named(folder.rename(folder.parent / "ml-latest-small"))
    assert found.describe().startswith("Data: ml-latest-small, other than GroupLens publishes, un")


def test_the_doctor_takes_the_release_too(tmp_path, home, monkeypatch):
    releases.write_ml_1m(tmp_path / "ml-1m")
    monkeypatch.setenv("HELPERS_HOME", str(home.root))
    monkeypatch.setenv("MOVIELENS_DIR", str(tmp_path / "ml-1m"))
    assert doctor.dataset() == "ml-1m, 2,603 ratings"


# --- downloading --------------------------------------------------------------------------------


def checksums() -> dict[str, str]:
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in FILES.items()}


def archive(extra: dict[str, str] | None = None, skip: str = "") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in FILES.items():
            if name != skip:
                bundle.writestr(f"ml-latest-small/{name}", text)
        for name, text in (extra or {}).items():
            bundle.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def server(httpserver):
    """Serves ``bodies`` in turn, the last one for ever; announces ``announce`` bytes, if set."""
    server = SimpleNamespace(bodies=[archive()], status=200, announce=None, requests=0)
    server.url = httpserver.url_for("/ml-latest-small.zip")

    def answer(_request) -> Response:
        body = server.bodies[min(server.requests, len(server.bodies) - 1)]
        server.requests += 1
        return Response([body], server.status, {"Content-Length": server.announce or len(body)})

    httpserver.expect_request("/ml-latest-small.zip").respond_with_handler(answer)
    return server


@pytest.fixture
def target(tmp_path) -> Path:
    return tmp_path / "store" / "ml-latest-small"


def fails(server: SimpleNamespace, target: Path, match: str) -> None:
    """Download, expect the message, and see that nothing is left behind."""
    with pytest.raises(DownloadError, match=match):
        download(target, url=server.url, checksums=checksums())
    assert not list(target.parent.glob("*"))


def test_a_good_download(server, target):
    assert download(target, url=server.url, checksums=checksums()) == target
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)
    for name, text in FILES.items():
        assert (target / name).read_bytes() == text.encode()
    assert [path.name for path in target.parent.iterdir()] == ["ml-latest-small"]
    assert check(dataset_at(target)).ratings == 3


def test_cut_short_twice(server, target):
    server.announce = len(archive())
    server.bodies = [archive()[:-40]]
    fails(server, target, "cannot be fetched: IncompleteRead")
    assert server.requests == 2


def test_cut_short_once_is_tried_again(server, target):
    server.announce = len(archive())
    server.bodies = [archive()[:-40], archive()]
    download(target, url=server.url, checksums=checksums())
    assert server.requests == 2
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)


def test_wrong_checksum(server, target):
    with pytest.raises(DownloadError, match=r"ratings\.csv has a wrong SHA-256"):
        download(target, url=server.url)  # against the checksums of the real release
    assert not list(target.parent.glob("*"))


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (archive(skip="tags.csv"), r"lacks tags\.csv"),
        (b"<html>Log in to this network</html>", "archive is damaged"),
        *[
            (archive(extra={member: "gotcha"}), "escapes its folder")
            for member in ("../escaped", "ml/../../escaped", "/escaped", "..\\escaped", "C:x")
        ],
    ],
)
def test_a_wrong_archive(server, target, body, match):
    server.bodies = [body]
    fails(server, target, match)
    assert not list(target.parent.parent.rglob("*escaped*"))


def test_damaged_bytes_in_the_archive(server, target):
    """Whatever byte is wrong, the outcome is an error of ours or the right files."""
    whole = archive()
    # Every 7th byte whole, and bit by bit the second file's flags, one of which says "encrypted".
    flags = whole.index(b"PK\x01\x02", whole.index(b"PK\x01\x02") + 4) + 8
    spoiled = [(position, 0xFF) for position in range(0, len(whole), 7)]
    for position, bits in spoiled + [(flags, 1 << bit) for bit in range(8)]:
        damaged = bytearray(whole)
        damaged[position] ^= bits
        server.bodies = [bytes(damaged)]
        try:
            download(target, url=server.url, checksums=checksums())
        except DownloadError:
            assert not list(target.parent.glob("*"))
        else:
            assert (target / "ratings.csv").read_text() == FILES["ratings.csv"]
            shutil.rmtree(target)


def test_not_found(server, target):
    server.status = 404
    fails(server, target, "cannot be fetched: HTTP Error 404")


def test_no_server(target):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x.zip"
    with pytest.raises(DownloadError, match="cannot be fetched"):
        download(target, url=url, checksums=checksums())
    assert not list(target.parent.glob("*"))


def full_disk(monkeypatch, suffix: str) -> None:
    """Let writing to files that end in ``suffix`` fail as on a full disk."""
    real_open = Path.open

    class Full(io.BytesIO):
        def write(self, _block):
            raise OSError(errno.ENOSPC, "No space left on device")

    def fake_open(self, mode="r", *args, **kwargs):
        if "w" in mode and self.name.endswith(suffix):
            return Full()
        return real_open(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fake_open)


def test_a_full_disk(server, target, monkeypatch):
    full_disk(monkeypatch, "movies.csv")
    fails(server, target, "cannot be stored: No space left on device")
    assert server.requests == 1, "trying again does not empty a disk"


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DownloadError, match="cannot be stored"):
        download(tmp_path / "file" / "ml", url=server.url, checksums=checksums())


def test_the_timeout_is_short_and_reaches_the_connection(target, monkeypatch):
    seen = []

    def urlopen(url, timeout):
        seen.append((url, timeout))
        raise TimeoutError("timed out")

    monkeypatch.setattr(data.urllib.request, "urlopen", urlopen)
    with pytest.raises(DownloadError, match="timed out"):
        download(target)
    assert seen == [(data.URL, 5.0)] * 2
    assert data.URL.startswith("https://")


def test_many_downloads_at_once_give_one_good_folder(server, target):
    errors: list[Exception] = []
    start = threading.Barrier(6)

    def fetch() -> None:
        start.wait()
        try:
            download(target, url=server.url, checksums=checksums())
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [path.name for path in target.parent.iterdir()] == ["ml-latest-small"]
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_something_else_has_the_name(server, target, kind):
    if kind == "folder":
        target.mkdir(parents=True)
        (target / "mine.txt").write_text("keep me")
    else:
        target.parent.mkdir()
        target.write_text("keep me")
    with pytest.raises(DownloadError, match="is there already and is not the release"):
        download(target, url=server.url, checksums=checksums())
    assert [path.name for path in target.parent.iterdir()] == ["ml-latest-small"]
    assert "keep me" in (target / "mine.txt" if kind == "folder" else target).read_text()


# --- loading ------------------------------------------------------------------------------------


def test_spark_reads_schema_quotes_accents_and_leading_zeros(folder, spark):
    tables = load(spark, dataset_at(folder))
    for table, schema in data.SCHEMAS.items():
        assert getattr(tables, table).schema == schema
    titles = [row.title for row in tables.movies.orderBy("movieId").collect()]
    assert titles == ["Matrix, The (1999)", '"Great Performances" Cats (1998)', "Amélie (2001)"]
    links = [tuple(row) for row in tables.links.orderBy("movieId").collect()]
    assert links == [(1, "0133093", 603), (2, "0173714", None), (3, None, 194)]
    assert sorted(row.tag for row in tables.tags.collect()) == ["NA", "None"]
    assert [row.rating for row in tables.ratings.collect()] == [4.0, 0.5, 5.0]


@pytest.mark.parametrize("table", data.TABLES)
def test_pandas_and_spark_agree(folder, spark, table):
    from_spark = getattr(load(spark, dataset_at(folder)), table).collect()
    from_pandas = data.load_pandas(dataset_at(folder), table)
    assert list(from_pandas.columns) == data.SCHEMAS[table].fieldNames()
    rows = [
        tuple(None if pd.isna(value) else value for value in row)
        for row in from_pandas.astype(object).itertuples(index=False)
    ]
    assert rows == [tuple(row) for row in from_spark]


def test_pandas_names_the_place_of_a_bad_value(folder):
    bad = spoil(folder, "ratings.csv", "2,1,5.0", "two,1,5.0")
    with pytest.raises(DataError, match=r"ratings\.csv, line 4, column userId: 'two'"):
        data.load_pandas(bad, "ratings")


def test_there_is_no_such_table(folder):
    with pytest.raises(DataError, match="choose one of ratings, movies, links, tags"):
        data.load_pandas(dataset_at(folder), "people")


def test_a_folder_name_with_spaces_and_brackets(folder, spark):
    odd = Path(shutil.copytree(folder, folder.parent / "my data [1] {x}"))
    assert load(spark, dataset_at(odd)).ratings.count() == 3


# --- splitting ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(spark):
    """2,000 made-up ratings."""
    rows = [(user, 7 * movie + user % 5, 3.5, 0) for user in range(40) for movie in range(50)]
    return spark.createDataFrame(rows, data.SCHEMAS["ratings"])


def pairs(frames) -> list[list[tuple[int, int]]]:
    return [sorted((row.userId, row.movieId) for row in frame.collect()) for frame in frames]


def test_a_split_does_not_depend_on_partitions_or_row_order(many):
    expected = pairs(split(many))
    for changed in (
        many.repartition(7),
        many.repartition(3, "movieId"),
        many.orderBy("rating", "movieId", ascending=False),
        many.orderBy("movieId").repartition(2),
    ):
        assert pairs(split(changed)) == expected


def test_a_split_gives_each_row_once_in_the_right_shares(many):
    parts = pairs(split(many))
    together = [pair for part in parts for pair in part]
    assert len(together) == len(set(together)) == 2000
    for part, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(part) / 2000 - share) < 0.04


def test_a_split_follows_its_seed_and_its_weights(many):
    assert pairs(split(many, seed=1)) != pairs(split(many, seed=0))
    two = pairs(split(many, weights=(0.5, 0.5)))
    assert len(two) == 2
    assert abs(len(two[0]) - 1000) < 100


# --- the real release ---------------------------------------------------------------------------


def test_the_real_release(real, spark):
    assert real.name == "ml-latest-small"
    for name, wanted in data.SHA256.items():
        assert data.sha256(real.path / name) == wanted
    assert dataclasses.astuple(check(real)) == (100_836, 610, 9_724, 9_742, 9_742, 3_683)
    tables = load(spark, real)
    assert tables.ratings.count() == 100_836
    shared = tables.movies.groupBy("title").count().where("count > 1").collect()
    assert len(shared) == 5
    assert "Emma (1996)" in {row.title for row in shared}
    nulls = tables.ratings.where("userId is null or movieId is null or rating is null")
    assert nulls.count() == 0
    assert tables.links.where("movieId = 1").first().imdbId == "0114709"


def test_pandas_and_spark_agree_on_the_real_titles(real, spark):
    from_spark = load(spark, real).movies.toPandas()
    pd.testing.assert_frame_equal(from_spark, data.load_pandas(real, "movies"), check_dtype=False)


# --- small sets ---------------------------------------------------------------------------------


def write_four_files(folder, pairs):
    folder.mkdir()
    rows = [f"{user},{movie},3.0,{900_000_000 + movie}" for user, movie in pairs]
    named = [f"{movie},Movie {movie},Drama" for movie in sorted({movie for _, movie in pairs})]
    for table, header, lines in (
        ("ratings", "userId,movieId,rating,timestamp", rows),
        ("movies", "movieId,title,genres", named),
        ("links", "movieId,imdbId,tmdbId", []),
        ("tags", "userId,movieId,tag,timestamp", []),
    ):
        text = "\n".join([header, *lines, ""])
        (folder / f"{table}.csv").write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([(7, movie) for movie in range(1, 40)], "no users and movies have 5 ratings each"),
        ([(u, m) for u in range(1, 9) for m in range(1, 9)], "every user has rated every movie"),
        ([(u, m) for u in range(1, 9) for m in range(1, 10) if (u + m) % 9], ""),
    ],
)
def test_a_set_too_small_to_learn_from_makes_way_for_the_sample(home, tmp_path, pairs, why):
    here = dataclasses.replace(home, movielens_dir=write_four_files(tmp_path / "mine", pairs))
    found = locate(here)
    used = data.trainable(found, here)
    if why:
        assert used.simulated and used.checked
        assert why in used.describe() and "mine" in used.describe()
    else:
        assert used == found and not used.checked


def test_a_changed_copy_is_not_told_apart_by_its_own_name(named, folder):
    line = named(folder.rename(folder.parent / "ml-latest-small")).describe()
    assert line == (
        "Data: ml-latest-small, other than GroupLens publishes, unverified (found by "
        "MOVIELENS_DIR). The text speaks of ml-latest-small; the numbers computed here are those "
        "of this copy."
    )
