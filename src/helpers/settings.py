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
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlsplit

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(gt=0)]
Folder = Annotated[Path, AfterValidator(Path.expanduser)]
Number = Annotated[float, Field(gt=0, allow_inf_nan=False)]


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


_NO = {"0", "no", "false"}
_reader = functools.cache(TypeAdapter)  # turns texts into the types of a dataclass


@dataclasses.dataclass(frozen=True)
class Settings:
    """Where things are and how to reach them; build it with :meth:`from_env`.

    A field is read from the variable of its name in capitals, except where :meth:`from_env` says
    so. Prices are US dollars per million tokens, ``None`` if unknown; ``llm_query`` is what
    requests carry after a ``?``; ``llm_reply_tokens`` limit one that sets no limit itself.
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
    llm_mode: str = "auto"
    llm_model: str | None = None
    llm_base_url: str | None = dataclasses.field(default=None, repr=False)
    llm_query: dict[str, str] = dataclasses.field(default_factory=dict, repr=False, hash=False)
    llm_api_key: str | None = dataclasses.field(default=None, repr=False)
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
        names = [field.name for field in dataclasses.fields(cls)]
        values: dict[str, Any] = {n: given[n.upper()] for n in names if n.upper() in given}
        values["root"] = find_root(given)
        values["allow_download"] = given.get("MOVIELENS_DOWNLOAD", "").lower() not in _NO
        values["llm_api_key"] = _key(given.get("OPENAI_API_KEY", ""))
        values["llm_base_url"], values["llm_query"] = _address(given.get("OPENAI_BASE_URL", ""))
        values["llm_mode"] = given.get("LLM_MODE", "auto").lower()
        if values["llm_mode"] not in {"auto", "live", "recorded", "local", "none"}:
            raise SettingsError("LLM_MODE must be auto, live, recorded, local or none.")
        try:
            return _reader(cls).validate_python(values)
        except ValidationError as error:
            name = str(error.errors()[0]["loc"][0]).upper()
            raise SettingsError(f"{name} must be a number above 0; counts are whole.") from None

    def scrub(self, text: str) -> str:
        """Replace the key, and what is secret in an address, by ``[key]``, for messages."""
        password = urlsplit(self.llm_base_url or "").password
        secrets = [self.llm_api_key, password, *self.llm_query.values()]
        secrets += re.findall(r"token=([^;]+)", self.spark_remote or "")
        for secret in filter(None, secrets):
            spellings = {re.escape(spelling) for spelling in (secret, quote(secret, safe=""))}
            text = re.sub(rf"(?<!\w)({'|'.join(spellings)})(?!\w)", "[key]", text)
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


def _key(text: str) -> str | None:
    text = re.sub(r"^bearer\s+", "", text, flags=re.IGNORECASE).strip("\"' ")
    if re.search(r"\.\.\.|\*\*\*|(^|-)xxx|^[<$]|(^|[-_])your|[-_]here$", text, re.IGNORECASE):
        raise SettingsError("OPENAI_API_KEY holds a placeholder: put your own key there.")
    if not re.fullmatch("[!-~]*", text):
        raise SettingsError("OPENAI_API_KEY must be one line of ASCII: copy it again, or unset it.")
    return text or None


def _address(text: str) -> tuple[str | None, dict[str, str]]:
    """Return the server's address as the SDK takes it, and its query."""
    if not text:
        return None, {}
    near = re.match(r"localhost\b|\[::1\]|(127|10|192\.168|172\.(1[6-9]|2\d|3[01]))\.\d", text)
    fault = SettingsError("OPENAI_BASE_URL must be an address such as http://localhost:8000/v1.")
    try:
        parts = urlsplit(text if "://" in text else f"{'http' if near else 'https'}://{text}")
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        raise fault from None
    if not usable or re.search(r"\s", text):
        raise fault
    azure = str(parts.hostname).endswith((".openai.azure.com", ".services.ai.azure.com"))
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    path = path or ("/openai/v1" if azure else "/v1")
    return f"{parts.scheme}://{parts.netloc}{path}", dict(parse_qsl(parts.query))
