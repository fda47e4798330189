"""MovieLens as it comes: the four CSV files, or those of ml-100k, ml-1m and ml-10m converted."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from itertools import compress
from pathlib import Path

import pandas as pd

NAME = "ml-latest-small"
URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
SHA256 = {
    "ratings.csv": "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
    "movies.csv": "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07",
    "links.csv": "97ad18e4e56a09363c65676b6cb3482ce3e2cea2372a24620c1599c843325f31",
    "tags.csv": "92a9f8bb7916dceef6151209845788c3643f794dfa79d1feaec7121b5960399d",
}
FILES = tuple(SHA256)
FORMS = (FILES, ("u.data", "u.item"), ("ratings.dat", "movies.dat"))
"""How the files of ratings and of movies are called, by which a release is known."""
GENRES = (
    "Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir "
    "Horror Musical Mystery Romance Sci-Fi Thriller War Western"
)
"""The flags of u.item from its seventh column on."""


class DataError(ValueError):
    """A file cannot be used; the message names it and says what is wrong."""


class DownloadError(RuntimeError):
    """The download failed; nothing of it is left behind."""


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a folder to fill; it becomes ``target`` in one step, and only when all went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as work:
        fresh = Path(work) / target.name
        fresh.mkdir()
        yield fresh
        if not target.is_dir():  # else another process was faster
            fresh.rename(target)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; it takes the place of ``path`` only when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        yield Path(folder) / path.name
        (Path(folder) / path.name).replace(path)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(target: Path, *, url: str = URL, checksums: dict[str, str] = SHA256) -> Path:
    """Fetch the release into ``target``: its four files and no others, checked, in one step."""
    try:
        with urllib.request.urlopen(url, timeout=5.0) as response:
            archive = zipfile.ZipFile(io.BytesIO(response.read()))
        with new_folder(target) as fresh:
            for name, wanted in checksums.items():
                (fresh / name).write_bytes(archive.read(f"{NAME}/{name}"))
                if sha256(fresh / name) != wanted:
                    raise ValueError(f"{name} has a wrong SHA-256")
    except Exception as error:  # the network, the disk, and each decompressor have their own
        raise DownloadError(f"{url} cannot be fetched ({error})") from None
    return target


def find(folder: Path, source: str) -> tuple[Path, tuple[str, ...]]:
    """Return the folder with MovieLens, ``folder`` or one in it, and what its files are called."""
    for place in (folder, *sorted(path for path in folder.glob("*") if path.is_dir())):
        for names in FORMS:
            if all((place / name).is_file() for name in names):
                return place, names
    if not folder.is_dir():
        raise DataError(f"{source} names a folder that does not exist: {folder}.")
    wanted = ", or ".join(", ".join(names) for names in FORMS)
    raise DataError(f"The folder found by {source} lacks a file; wanted are {wanted}.")


def convert(folder: Path, names: Sequence[str], cache: Path, tables: dict) -> Path:
    """Return a folder in ``cache`` with ``folder``'s files as CSV; made anew when they change.

    ``tables`` are the CSV files to write and their columns.
    """
    facts = (folder / names[0]).stat()
    target = cache / f"{folder.resolve().name}-{facts.st_size}-{facts.st_mtime_ns}"
    if target.is_dir():
        return target
    sources = dict(zip(("ratings", "movies", "tags"), (*names, "tags.dat"), strict=True))
    with new_folder(target) as fresh:
        for table, columns in tables.items():
            rows, path = pd.DataFrame(columns=[*columns]), folder / sources.get(table, "")
            if path.is_file():
                try:
                    rows = read(path).set_axis([*columns], axis="columns")
                except ValueError as error:
                    raise DataError(f"{path.name} is not as in the release: {error}") from None
            rows = rows.replace({"genres": {"": "(no genres listed)"}})
            rows.to_csv(fresh / f"{table}.csv", index=False, lineterminator="\n")
    return target


def read(path: Path) -> pd.DataFrame:
    """Return a file's columns as text, a movie's genres as ``Genre|Genre``."""
    separator = {"u.data": "\t", "u.item": "|", "ratings.dat": ":"}.get(path.name, "::")
    options = {"header": None, "dtype": str, "keep_default_na": False, "quoting": csv.QUOTE_NONE}
    options |= {"sep": separator, "engine": "python" if separator == "::" else "c"}
    if path.name == "tags.dat":  # a tag may hold the separator
        options["on_bad_lines"] = lambda parts: [*parts[:2], "::".join(parts[2:-1]), parts[-1]]
    try:
        rows = pd.read_csv(path, encoding="utf-8", **options)
    except UnicodeDecodeError:
        rows = pd.read_csv(path, encoding="latin-1", **options)
    if path.name == "ratings.dat":
        rows = rows.iloc[:, ::2]  # each second ":" is of a "::", which alone would be read slowly
    if path.name == "u.item":
        flags = (rows.iloc[:, 6:] == "1").to_numpy()
        rows = rows[[0, 1]].assign(
            genres=["|".join(compress(GENRES.split(), row)) for row in flags]
        )
    return rows
