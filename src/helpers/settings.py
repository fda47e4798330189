"""What the environment can change, in one dataclass; versions, and files that appear whole."""

import contextlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

MUST_BE = {
    "OPENAI_API_KEY": "be one line of ASCII; copy it again",  # pragma: allowlist secret
    "OPENAI_BASE_URL": "be an address without a password, such as http://localhost:8000/v1",
}


class SettingsError(ValueError):
    """An environment variable holds something that cannot be used; the text never shows what."""


def versions(*packages: str) -> str:
    """Return such as ``Python 3.11.7, pandas 2.3.3``; an ImportError names what is missing."""
    try:
        named = [f"{package} {metadata.version(package)}" for package in packages]
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            f"{sys.executable} lacks {error.name}: install what this notebook's opening asks for."
        ) from None
    return ", ".join([f"Python {platform.python_version()}", *named])


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; it takes the place of ``path`` only when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        yield Path(folder) / path.name
        (Path(folder) / path.name).replace(path)


def _address(url: str) -> str:
    """Return a server's address as the SDK takes it; without a path it is that of version 1."""
    url = url.rstrip("/").removesuffix("/chat/completions")
    return url if url.count("/") > 2 else f"{url}/v1"


Address = Annotated[
    str, Field(pattern=r"^https?://[\w\[][\w.:\[\]-]*(/\S*)?$"), AfterValidator(_address)
]
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().resolve())]
Key = Annotated[str, Field(pattern="^[!-~]+$")]
NAMES = ConfigDict(alias_generator=str.upper, validate_by_name=True)


@dataclass(frozen=True, config=NAMES)
class Settings:
    """Where things are and how to reach them; build it with :meth:`from_env`.

    Prices are US dollars per million tokens, ``None`` if unknown; ``llm_reply_tokens`` limit a
    request that sets no limit itself.
    """

    root: Folder = Field(default=Path(__file__).resolve().parents[2], alias="HELPERS_HOME")
    movielens_dir: Folder | None = None
    movielens_download: bool = True
    spark_master: str = "local[*]"
    spark_remote: str | None = Field(default=None, repr=False)
    spark_driver_memory: str = "1g"
    spark_partitions: PositiveInt = 1
    llm_mode: Literal["auto", "live", "recorded", "local", "none"] = "auto"
    llm_model: str | None = None
    llm_base_url: Address | None = Field(default=None, alias="OPENAI_BASE_URL", repr=False)
    llm_api_key: Key | None = Field(default=None, alias="OPENAI_API_KEY", repr=False)
    llm_timeout_s: PositiveFloat = 60.0
    llm_max_tokens: PositiveInt = 200_000
    llm_reply_tokens: PositiveInt = 4000
    llm_budget_usd: PositiveFloat | None = None
    llm_price_in: PositiveFloat | None = None
    llm_price_out: PositiveFloat | None = None
    llamarec_base_model: str | None = None
    embedding_model: str | None = None

    data_dir = property(lambda self: self.root / "data")
    sample_dir = property(lambda self: self.data_dir / "sample")
    replies_dir = property(lambda self: self.data_dir / "replies")
    results_dir = property(lambda self: self.data_dir / "results")
    cache_dir = property(lambda self: self.data_dir / "cache")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Read each field from the variable of its alias, or of its name in capitals.

        Raises SettingsError where a variable holds what it cannot.
        """
        given: dict[str, Any] = {n: text.strip(" \t\r\n\"'\ufeff") for n, text in environ.items()}
        try:
            return cls(**{name: text for name, text in given.items() if text})
        except ValidationError as error:
            name, wanted = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
            wanted = MUST_BE.get(str(name), wanted.removeprefix("Input should "))
            raise SettingsError(f"{name} must {wanted}.") from None

    def scrub(self, text: str) -> str:
        """Replace the key by ``[key]``; a short one is no secret, but may be a word of the text."""
        key = self.llm_api_key or ""
        return re.sub(rf"(?<!\w){re.escape(key)}(?!\w)", "[key]", text) if len(key) > 7 else text
