"""Everything that the environment can change, read once into one dataclass."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, HttpUrl, TypeAdapter, ValidationError


def _address(text: str) -> str:
    """Return a server's address as the SDK takes it; without a path it is that of version 1."""
    bare = HttpUrl(text).path in (None, "/")
    return text.rstrip("/").removesuffix("/chat/completions") + ("/v1" if bare else "")


Address = Annotated[str, AfterValidator(_address)]
Count = Annotated[int, Field(gt=0)]
Folder = Annotated[Path, AfterValidator(Path.expanduser)]
Key = Annotated[str, Field(pattern="^[!-~]+$")]
Mode = Literal["auto", "live", "recorded", "local", "none"]
Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NAMES = {
    "allow_download": "MOVIELENS_DOWNLOAD",
    "llm_api_key": "OPENAI_API_KEY",  # pragma: allowlist secret
    "llm_base_url": "OPENAI_BASE_URL",
}
"""Variables that are not called as their field is, in capitals."""
MUST_BE = {
    "LLM_MODE": "auto, live, recorded, local or none",
    "MOVIELENS_DOWNLOAD": "1 or 0",
    "OPENAI_API_KEY": "one line of ASCII: copy it again, or unset it",  # pragma: allowlist secret
    "OPENAI_BASE_URL": "an address such as http://localhost:8000/v1",
}


class SettingsError(ValueError):
    """An environment variable holds something that cannot be used; the text never shows what."""


def versions(*packages: str) -> str:
    """Return Python's version and those of packages, such as ``Python 3.11.7, pandas 2.3.3``.

    Raises:
        ImportError: one is missing; the sentence names the kernel's Python.
    """
    try:
        named = [f"{package} {metadata.version(package)}" for package in packages]
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            f"{sys.executable} lacks {error.name}: install what this notebook's opening asks for, "
            "or choose the kernel of the Python that has it."
        ) from None
    return ", ".join([f"Python {platform.python_version()}", *named])


_reader = functools.cache(TypeAdapter)  # turns texts into the types of a dataclass


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where things are and how to reach them; build it with :meth:`from_env`.

    A field is read from the variable of its name in capitals or of :data:`NAMES`. Prices are US
    dollars per million tokens, ``None`` if unknown; ``llm_reply_tokens`` limit a request that sets
    no limit itself.
    """

    root: Path
    movielens_dir: Folder | None = None
    allow_download: bool = True
    spark_master: str = "local[*]"
    spark_remote: str | None = dataclasses.field(default=None, repr=False)
    spark_driver_memory: str = "1g"
    spark_driver_host: str | None = None
    spark_executor_memory: str = "1g"
    spark_executor_cores: Count | None = None
    spark_partitions: Count = 1
    llm_mode: Mode = "auto"
    llm_model: str | None = None
    llm_base_url: Address | None = dataclasses.field(default=None, repr=False)
    llm_api_key: Key | None = dataclasses.field(default=None, repr=False)
    llm_timeout_s: Number = 60.0
    llm_max_tokens: Count = 200_000
    llm_reply_tokens: Count = 4000
    llm_budget_usd: Number | None = None
    llm_price_in: Number | None = None
    llm_price_out: Number | None = None
    llamarec_base_model: str | None = None
    embedding_model: str | None = None

    data_dir = property(lambda self: self.root / "data")
    sample_dir = property(lambda self: self.data_dir / "sample")
    replies_dir = property(lambda self: self.data_dir / "replies")
    results_dir = property(lambda self: self.data_dir / "results")
    cache_dir = property(lambda self: self.data_dir / "cache")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from ``environ`` (default: the process environment).

        Raises:
            SettingsError: a variable holds what it cannot; named, without its value.
        """
        env = os.environ if environ is None else environ
        given = {name: text for name in env if (text := env[name].strip(" \t\r\n\"'\ufeff"))}
        fields = {f.name: NAMES.get(f.name, f.name.upper()) for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {f: given[name] for f, name in fields.items() if name in given}
        values["root"] = find_root(given)
        try:
            return _reader(cls).validate_python(values)
        except ValidationError as error:
            name = fields[str(error.errors()[0]["loc"][0])]
            wanted = MUST_BE.get(name, "a number above 0; counts are whole")
            raise SettingsError(f"{name} must be {wanted}.") from None

    def scrub(self, text: str) -> str:
        """Replace the key, and the password in an address, by ``[key]``, for messages."""
        secrets = self.llm_api_key, urlsplit(self.llm_base_url or "").password
        for secret in filter(None, secrets):
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", "[key]", text)
        return text


def find_root(environ: Mapping[str, str] | None = None) -> Path:
    """Return the project folder: ``HELPERS_HOME``, else the clone this package is installed from.

    Raises:
        SettingsError: neither holds a ``data/sample`` folder (a non-editable install, usually).
    """
    home = (os.environ if environ is None else environ).get("HELPERS_HOME", "")
    here = [Path(__file__).resolve().parents[2], Path.cwd(), *Path.cwd().parents]
    for folder in [Path(home).expanduser()] if home else here:
        if (folder / "data" / "sample").is_dir():
            return folder.resolve()
    raise SettingsError("No project folder: 'pip install -e .' in a clone, or set HELPERS_HOME.")
