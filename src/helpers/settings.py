"""Everything that the environment can change, read once into one dataclass.

All other modules take a :class:`Settings`; none of them reads an environment variable itself.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path


class SettingsError(ValueError):
    """An environment variable holds something that cannot be used."""


def versions(*packages: str) -> str:
    """Return Python's version and those of installed packages, such as ``Python 3.11.7, pandas 3``.

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


@dataclass(frozen=True)
class Settings:
    """Where things are and how to reach them; build it with :meth:`from_env`.

    Prices are US dollars per million tokens; ``None`` means unknown, and then no cost in money is
    shown, only tokens.
    """

    root: Path
    movielens_dir: Path | None = None
    allow_download: bool = True
    spark_master: str = "local[*]"
    spark_remote: str | None = None
    spark_driver_memory: str = "1g"
    spark_driver_host: str | None = None
    spark_executor_memory: str = "1g"
    spark_executor_cores: int | None = None
    spark_partitions: int = 1
    llm_mode: str = "auto"
    llm_model: str | None = None
    llm_base_url: str | None = None
    llm_api_key: str | None = field(default=None, repr=False)
    llm_timeout_s: float = 60.0
    llm_max_tokens: int = 200_000
    llm_budget_usd: float | None = None
    llm_price_in: float | None = None
    llm_price_out: float | None = None
    llamarec_base_model: str | None = None
    embedding_model: str | None = None

    @property
    def data_dir(self) -> Path:
        """The committed ``data/`` folder."""
        return self.root / "data"

    @property
    def sample_dir(self) -> Path:
        """The simulated stand-in for MovieLens."""
        return self.data_dir / "sample"

    @property
    def replies_dir(self) -> Path:
        """Recorded LLM replies that are part of the project."""
        return self.data_dir / "replies"

    @property
    def results_dir(self) -> Path:
        """Tables behind the figures, as CSV."""
        return self.data_dir / "results"

    @property
    def cache_dir(self) -> Path:
        """Saved models, the local reply store and other files that can be made again."""
        return self.data_dir / "cache"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from ``environ`` (default: the process environment).

        Raises:
            SettingsError: a variable has a value outside its range.
        """
        env = os.environ if environ is None else environ
        mode = env.get("LLM_MODE", "auto").strip().lower() or "auto"
        if mode not in {"auto", "live", "recorded", "none"}:
            raise SettingsError(f"LLM_MODE is {mode!r}; use auto, live, recorded or none.")
        movielens = env.get("MOVIELENS_DIR", "").strip()
        return cls(
            root=find_root(env),
            movielens_dir=Path(movielens).expanduser() if movielens else None,
            allow_download=env.get("MOVIELENS_DOWNLOAD", "1").strip() not in {"0", "no", "false"},
            spark_master=env.get("SPARK_MASTER", "").strip() or "local[*]",
            spark_remote=env.get("SPARK_REMOTE", "").strip() or None,
            spark_driver_memory=env.get("SPARK_DRIVER_MEMORY", "").strip() or "1g",
            spark_driver_host=env.get("SPARK_DRIVER_HOST", "").strip() or None,
            spark_executor_memory=env.get("SPARK_EXECUTOR_MEMORY", "").strip() or "1g",
            spark_executor_cores=_count(env, "SPARK_EXECUTOR_CORES", 0) or None,
            spark_partitions=_count(env, "SPARK_PARTITIONS", 1),
            llm_mode=mode,
            llm_model=env.get("LLM_MODEL", "").strip() or None,
            llm_base_url=env.get("OPENAI_BASE_URL", "").strip() or None,
            llm_api_key=env.get("OPENAI_API_KEY", "").strip() or None,
            llm_timeout_s=_positive(env, "LLM_TIMEOUT_S", 60.0),
            llm_max_tokens=_count(env, "LLM_MAX_TOKENS", 200_000),
            llm_budget_usd=_optional(env, "LLM_BUDGET_USD"),
            llm_price_in=_optional(env, "LLM_PRICE_IN"),
            llm_price_out=_optional(env, "LLM_PRICE_OUT"),
            llamarec_base_model=env.get("LLAMAREC_BASE_MODEL", "").strip() or None,
            embedding_model=env.get("EMBEDDING_MODEL", "").strip() or None,
        )


def find_root(environ: Mapping[str, str] | None = None) -> Path:
    """Find the project folder: ``HELPERS_HOME``, else the folder this package is installed from.

    Raises:
        SettingsError: neither holds a ``data/sample`` folder (a non-editable install, usually).
    """
    env = os.environ if environ is None else environ
    home = env.get("HELPERS_HOME", "").strip()
    here = Path(__file__).resolve().parents[2]
    candidates = [Path(home).expanduser()] if home else [here, *_parents(Path.cwd())]
    for folder in candidates:
        if (folder / "data" / "sample").is_dir():
            return folder.resolve()
    raise SettingsError(
        "The project folder was not found: install with 'pip install -e .' from a clone, "
        "or set HELPERS_HOME to the clone."
    )


def _parents(folder: Path) -> list[Path]:
    return [folder, *folder.parents]


def _optional(env: Mapping[str, str], name: str) -> float | None:
    return _number(env, name) if env.get(name, "").strip() else None


def _positive(env: Mapping[str, str], name: str, default: float) -> float:
    return _number(env, name) if env.get(name, "").strip() else default


def _count(env: Mapping[str, str], name: str, default: int) -> int:
    value = _positive(env, name, default)
    if value != int(value):
        raise SettingsError(f"{name} is {env[name].strip()!r}; a whole number is wanted.")
    return int(value)


def _number(env: Mapping[str, str], name: str) -> float:
    text = env[name].strip()
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{name} is {text!r}; a number is wanted.") from None
    if not 0 < value < float("inf"):
        raise SettingsError(f"{name} is {text!r}; a number above 0 is wanted.")
    return value
