"""What the environment can change, in one dataclass; versions, and files that appear whole."""

import contextlib
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError
from pydantic.dataclasses import dataclass

Address = Annotated[str, Field(pattern=r"^https?://[^@\s]+$")]  # without a password
Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().resolve())]
Key = Annotated[str, Field(pattern="^[!-~]+$")]


class SettingsError(ValueError):
    """An environment variable holds something that cannot be used; the text never shows what."""


def versions(*packages: str) -> str:
    """Return such as ``Python 3.11.7, pandas 2.3.3``; an ImportError names what is missing."""
    named = [f"{package} {version(package)}" for package in packages]
    return ", ".join([f"Python {platform.python_version()}", *named])


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a name to write to; it takes the place of ``path`` only when all went well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        yield Path(folder) / path.name
        (Path(folder) / path.name).replace(path)


@dataclass(frozen=True, config=ConfigDict(alias_generator=str.upper, validate_by_name=True))
class Settings:
    """Where things are and how to reach them; prices are US dollars per million tokens."""

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
    llm_reply_tokens: PositiveInt = 4000  # of a request that sets no limit itself
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
        """Read each field from its alias or its name in capitals; raises SettingsError."""
        given: dict[str, Any] = {name: text.strip(" \t\r\n\"'") for name, text in environ.items()}
        try:
            return cls(**{name: text for name, text in given.items() if text})
        except ValidationError as error:
            first = error.errors()[0]
            raise SettingsError(f"{first['loc'][0]}: {first['msg']}.") from None

    def scrub(self, text: str) -> str:
        """Replace the key by ``[key]``; a short one is no secret, but may be a word of the text."""
        key = self.llm_api_key or ""
        return text.replace(key, "[key]") if len(key) > 7 else text
