"""A release of MovieLens: where its four CSV files are, their checksums, and their download."""

from __future__ import annotations

import contextlib
import hashlib
import io
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

NAME = "ml-latest-small"
URL = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"
SHA256 = {
    "ratings.csv": "aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646",
    "movies.csv": "5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07",
    "links.csv": "97ad18e4e56a09363c65676b6cb3482ce3e2cea2372a24620c1599c843325f31",
    "tags.csv": "92a9f8bb7916dceef6151209845788c3643f794dfa79d1feaec7121b5960399d",
}
FILES = tuple(SHA256)


class DataError(ValueError):
    """A file cannot be used; the message names it and says what is wrong."""


class DownloadError(RuntimeError):
    """The download failed; nothing of it is left behind."""


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
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=target.parent) as work:
            fresh = Path(work) / NAME
            fresh.mkdir()
            for name, wanted in checksums.items():
                (fresh / name).write_bytes(archive.read(f"{NAME}/{name}"))
                if sha256(fresh / name) != wanted:
                    raise ValueError(f"{name} has a wrong SHA-256")
            if not target.is_dir():  # else another process was faster
                fresh.rename(target)
    except Exception as error:  # the network, the disk, and each decompressor have their own
        raise DownloadError(f"{url} cannot be fetched ({error})") from None
    return target


def find(folder: Path, source: str) -> Path:
    """Return the folder with the four files: ``folder`` or one in it.

    Raises:
        DataError: there is none; ``source`` says who named the folder.
    """
    if not folder.is_dir():
        raise DataError(f"{source} names a folder that does not exist: {folder}.")
    for place in [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]:
        if all((place / name).is_file() for name in FILES):
            return place
    raise DataError(
        f"The folder found by {source} lacks a file; wanted are {', '.join(FILES)}, the format of "
        "ml-latest-small, ml-latest, ml-20m, ml-25m and ml-32m."
    )
