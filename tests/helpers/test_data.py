"""Finding, downloading, checking, loading and splitting the data, and the ways it can fail."""

import dataclasses
import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from helpers import data
from helpers.data import DataError, Dataset, check, load, locate, split
from helpers.settings import Settings

FILES = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,2,0.5,964981247\n"
    "2,1,5.0,964982224\n",
    "movies.csv": 'movieId,title,genres\n1,"Matrix, The (1999)",Action|Sci-Fi\n'
    '2,"""Great Performances"" Cats (1998)",Musical\n3,Amélie (2001),Comedy|Romance\n',
    "links.csv": "movieId,imdbId,tmdbId\n1,0133093,603\n2,0173714,\n3,,194\n",
    "tags.csv": "userId,movieId,tag,timestamp\n1,1,None,964982800\n2,1,NA,964982801\n",
}
CHECKSUMS = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in FILES.items()}


def write(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8", newline="")
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small good folder to spoil."""
    return write(tmp_path / "my data")


@pytest.fixture
def home(tmp_path) -> Settings:
    """A project folder with nothing but a sample."""
    (write(tmp_path / "home" / "data" / "sample") / "SIMULATED").touch()
    return Settings(root=tmp_path / "home", movielens_download=False)


def dataset_at(path: Path) -> Dataset:
    return Dataset(path, path.name, "MOVIELENS_DIR", simulated=False, verified=False)


@pytest.mark.parametrize(
    ("name", "old", "new", "fault"),
    [
        ("ratings.csv", ",0.5,", ",x,", "column rating: Row #3: .* to float: invalid value 'x'"),
        ("ratings.csv", ",964981247", "", "Row #3: Expected 4 columns, got 3: 1,2,0.5"),
        ("ratings.csv", "userId,movieId", "movieId,userId", "row 1 must be 'userId,movieId"),
        ("links.csv", ",194", ",194.0", "column tmdbId: Row #4: .*'194.0'"),
    ],
)
def test_a_bad_value_is_named_with_file_line_and_column(folder, name, old, new, fault, spark):
    text = (folder / name).read_text(encoding="utf-8")
    (folder / name).write_text(text.replace(old, new, 1), encoding="utf-8", newline="")
    with pytest.raises(DataError, match=rf"^{name}.* {fault}"):
        load(spark, dataset_at(folder))


def test_another_encoding_is_refused(folder):
    (folder / "movies.csv").write_text(FILES["movies.csv"], encoding="latin-1")
    with pytest.raises(DataError, match=r"^movies\.csv cannot be read: .*UTF8"):
        check(dataset_at(folder))


def test_pandas_and_spark_read_the_same(folder, spark):
    for name, text in FILES.items():  # a byte order mark and line ends of Windows
        windows = ("\ufeff" + text).replace("\n", "\r\n")
        (folder / name).write_text(windows, encoding="utf-8", newline="")
    dataset = dataset_at(folder)
    assert check(dataset) == (3, 2, 2, 3, 3, 2)
    tables = load(spark, dataset)
    for table in ("ratings", "movies", "tags"):
        rows = data.load_pandas(dataset, table).itertuples(index=False, name=None)
        assert list(rows) == [tuple(row) for row in getattr(tables, table).collect()]
    titles = [row.title for row in tables.movies.collect()]
    assert titles[1:] == ['"Great Performances" Cats (1998)', "Amélie (2001)"]
    assert tables.tags.first().tag == "None"
    links = [(1, "0133093", 603), (2, "0173714", None), (3, None, 194)]
    assert [tuple(row) for row in tables.links.collect()] == links


def test_movielens_dir_comes_first_then_the_copy_then_a_download(home, folder, monkeypatch):
    local = home.data_dir / data.NAME
    monkeypatch.setattr(data, "download", lambda target: shutil.copytree(folder, target))
    home = dataclasses.replace(home, movielens_download=True)
    dataset = locate(dataclasses.replace(home, movielens_dir=folder))
    assert dataset.path == folder and not local.exists()
    assert dataset.describe().endswith(f"are those of {folder.name}.")
    dataset = locate(home)
    assert dataset.path == local and "found by data/ml-latest-small)" in dataset.describe()
    assert dataset.describe().endswith("are those of another ml-latest-small.")
    (folder / "links.csv").unlink()
    for path in (folder, folder / "nowhere"):
        with pytest.raises(DataError, match=r"MOVIELENS_DIR\) lacks a file; wanted"):
            locate(dataclasses.replace(home, movielens_dir=path))


def test_offline_gives_the_sample_and_says_why(home, monkeypatch):
    dataset = locate(home)
    assert (dataset.path, dataset.name) == (home.sample_dir, "sample (simulated)")
    assert "a SIMULATED sample, not MovieLens (no copy found): set" in dataset.describe()
    monkeypatch.setattr(data, "URL", "http://127.0.0.1:9/x.zip")
    dataset = locate(dataclasses.replace(home, movielens_download=True))
    assert dataset.simulated and "Connection refused" in dataset.describe()


def test_a_change_in_any_file_is_not_verified(home, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "SHA256", CHECKSUMS)
    folder = write(tmp_path / "ml-20m")
    home = dataclasses.replace(home, movielens_dir=folder)
    expected = "Data: ml-latest-small, verified by SHA-256 (found by MOVIELENS_DIR)"
    assert locate(home).describe() == expected
    for name, text in FILES.items():
        (folder / name).write_text(text + "\n", encoding="utf-8", newline="")
        found = locate(home)
        assert (found.verified, found.name, check(found).ratings) == (False, "ml-20m", 3)
        (folder / name).write_text(text, encoding="utf-8", newline="")


@pytest.mark.parametrize(("row", "small"), [("7,{0}", True), ("{0},7", True), ("{0},{0}", False)])
def test_a_set_too_small_to_learn_from_makes_way_for_the_sample(home, folder, row, small):
    lines = [row.format(number) + ",3.0,9" for number in range(20)]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(lines))
    used = data.for_training(dataset_at(folder), home)
    assert used.simulated == small == ("my data is too small to learn from" in used.describe())


def archive(**changed: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in {**FILES, "../../escaped": "", **changed}.items():
            bundle.writestr(f"ml-latest-small/{name}", text)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "why"),
    [
        (archive(), 200, ""),
        (archive()[:-40], 200, "not a zip file"),
        (archive(**{"tags.csv": "changed"}), 200, "a wrong SHA-256"),
        (b"", 404, "HTTP Error 404"),
    ],
)
def test_a_failed_download_leaves_nothing(httpserver, home, monkeypatch, body, status, why):
    httpserver.expect_request("/x.zip").respond_with_data(body, status)
    monkeypatch.setattr(data, "URL", httpserver.url_for("/x.zip"))
    monkeypatch.setattr(data, "SHA256", CHECKSUMS)
    before = {path.name for path in home.data_dir.parent.rglob("*")}
    dataset = locate(dataclasses.replace(home, movielens_download=True))
    assert dataset.simulated == bool(why) and why in dataset.source
    after = {path.name for path in home.data_dir.parent.rglob("*")} - before
    assert after == (set() if why else {"ml-latest-small", "escaped"})


def test_a_split_follows_rows_and_seed_alone(spark):
    rows = [(user, 7 * movie + user % 5, 3.5, 0) for user in range(40) for movie in range(50)]
    many = spark.createDataFrame(rows, data.SCHEMAS["ratings"])

    def pairs(frames) -> list[list[tuple[int, int]]]:
        return [sorted((row.userId, row.movieId) for row in frame.collect()) for frame in frames]

    expected = pairs(split(many))
    assert pairs(split(many.orderBy("movieId", ascending=False).repartition(7))) == expected
    assert len({pair for part in expected for pair in part}) == sum(map(len, expected)) == 2000
    assert [len(part) / 2000 for part in expected] == pytest.approx([0.6, 0.2, 0.2], abs=0.04)
    assert pairs(split(many, seed=1)) != expected


def test_the_real_release(real, spark):
    assert check(real) == (100_836, 610, 9_724, 9_742, 9_742, 3_683)
    movies = load(spark, real).movies.toPandas()
    pd.testing.assert_frame_equal(movies, data.load_pandas(real, "movies"), check_dtype=False)
