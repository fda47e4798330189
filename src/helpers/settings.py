"""Everything that the environment can change, read once into one dataclass.

All other modules take a :class:`Settings`; none of them reads an environment variable itself.
"""

from __future__ import annotations

import functools
import html
import ipaddress
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


class SettingsError(ValueError):
    """An environment variable holds something that cannot be used; the text never shows what."""


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
    shown, only tokens. ``llm_base_url`` is an address to which ``/chat/completions`` can be added,
    ``llm_query`` what its requests carry after a ``?``; ``llm_reply_tokens`` are the most
    completion tokens of a request that does not say itself. What may hold a secret is in no
    ``repr``.
    """

    root: Path
    movielens_dir: Path | None = None
    allow_download: bool = True
    spark_master: str = "local[*]"
    spark_remote: str | None = field(default=None, repr=False)
    spark_driver_memory: str = "1g"
    spark_driver_host: str | None = None
    spark_executor_memory: str = "1g"
    spark_executor_cores: int | None = None
    spark_partitions: int = 1
    llm_mode: str = "auto"
    llm_model: str | None = None
    llm_base_url: str | None = field(default=None, repr=False)
    llm_query: dict[str, str] = field(default_factory=dict, repr=False, hash=False)
    llm_api_key: str | None = field(default=None, repr=False)
    llm_timeout_s: float = 60.0
    llm_max_tokens: int = 200_000
    llm_reply_tokens: int = 4000
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
        """The local reply store and other files that can be made again."""
        return self.data_dir / "cache"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Read the settings from ``environ`` (default: the process environment).

        Raises:
            SettingsError: a variable has a value outside its range.
        """
        env = os.environ if environ is None else environ
        mode = _value(env, "LLM_MODE").lower() or "auto"
        if mode not in {"auto", "live", "recorded", "none"}:
            raise SettingsError("LLM_MODE must be auto, live, recorded or none.")
        for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):  # the SDK reads them as they are
            _checked(name, env.get(name, ""), header=True)
        values: dict[str, Any] = {"llm_api_key": _key(env) or None, "llm_mode": mode}
        values["llm_base_url"], values["llm_query"] = _address(env)
        values["allow_download"] = _value(env, "MOVIELENS_DOWNLOAD").lower() not in _NO
        if movielens := _value(env, "MOVIELENS_DIR"):
            values["movielens_dir"] = Path(movielens).expanduser()
        for variable, read in _READERS.items():
            if _value(env, variable):
                values[variable.lower()] = read(env, variable)
        return cls(root=find_root(env), **values)

    def scrub(self, text: str) -> str:
        """Return a text without the key and what else is secret, for messages and outputs.

        The key, in whatever way it is escaped, becomes ``[key]``, as do passwords and tokens of the
        addresses; user and password before the ``@`` of any address are left out.
        """
        text = re.sub(r"((?::|%3A)(?:\\?/|%2F){2})[^\s/?#\"'<>]+(?:@|%40)", r"\1", text)
        for secret in sorted(self._secrets(), key=len, reverse=True):
            pattern = "".join(map(_spellings, secret))
            if len(secret) < 8:  # "k" or "none", as servers without keys take them, is in any word
                pattern = rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"
            text = re.sub(pattern, "[key]", text)
        return text

    def _secrets(self) -> set[str]:
        secrets = {self.llm_api_key}
        for address in filter(None, (self.llm_base_url, self.spark_remote)):
            user, _, password = urlsplit(address).netloc.rpartition("@")[0].partition(":")
            secrets |= {unquote(password or user), *re.findall(r"token=([^;]+)", address)}
        secrets |= {value for name, value in self.llm_query.items() if _SECRET.search(name)}
        return {secret for secret in secrets if secret}


def find_root(environ: Mapping[str, str] | None = None) -> Path:
    """Find the project folder: ``HELPERS_HOME``, else the folder this package is installed from.

    Raises:
        SettingsError: neither holds a ``data/sample`` folder (a non-editable install, usually).
    """
    env = os.environ if environ is None else environ
    home = _value(env, "HELPERS_HOME")
    here = Path(__file__).resolve().parents[2]
    candidates = [Path(home).expanduser()] if home else [here, Path.cwd(), *Path.cwd().parents]
    for folder in candidates:
        if (folder / "data" / "sample").is_dir():
            return folder.resolve()
    raise SettingsError(
        "The project folder was not found: install with 'pip install -e .' from a clone, "
        "or set HELPERS_HOME to the clone."
    )


# --- one variable ---------------------------------------------------------------------------------

_QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019", "\u201e": "\u201c"}
_SECRET = re.compile(r"key|token|secret|sig|password|code", re.IGNORECASE)
_PLACEHOLDER = re.compile(
    r".*\.\.\..*|.*\*\*\*.*|[<$%{\[].*|(.*[\W_])?your.*|.*[-_]here|(sk-)?x{3,}|"
    r"(change|replace)[-_]?me|((my|openai)[-_])*api[-_]?key",
    re.IGNORECASE,
)
_CALL = re.compile(  # what a client adds itself, or what is Ollama's own
    r"/(chat(/completions)?|completions|embeddings|models|responses|api/(chat|generate|tags))$"
)
_AZURE = (".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com")


def _spellings(char: str) -> str:
    """Return a pattern for a character as it is, percent-encoded, or escaped in JSON or HTML."""
    percent = "".join(f"%(?:25)*(?i:{byte:02x})" for byte in char.encode())
    forms = {char, html.escape(char), repr(char)[1:-1], ascii(char)[1:-1]}
    forms |= set() if char.isalnum() else {"\\" + char}
    code = rf"\\u(?i:{ord(char):04x})"
    longest_first = map(re.escape, sorted(forms, key=len, reverse=True))
    return "(?:" + "|".join([percent, code, *longest_first]) + ")"


def _bare(text: str) -> str:
    """Return a text without white space and matching quotes around it."""
    text = text.strip().strip("\ufeff").strip()
    while len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
        text = text[1:-1].strip()
    return text


def _value(env: Mapping[str, str], name: str) -> str:
    return _bare(env.get(name, ""))


def _line(env: Mapping[str, str], name: str, *, header: bool = False) -> str:
    """Return a value of one line; one for a ``header`` or an address is ASCII without spaces."""
    return _checked(name, _value(env, name), header)


def _checked(name: str, text: str, header: bool) -> str:
    faults = {
        "a line break or another character that does not print": not text.isprintable(),
        "a space": header and " " in text,
        "a character that is not ASCII, such as a dash or quote of a word processor": header
        and not text.isascii(),
        "a quote": header and re.search("[\"'`]", text),
    }
    for fault, holds in faults.items():
        if holds:
            raise SettingsError(f"{name} holds {fault}: copy it again, or unset it.")
    if name != "OPENAI_API_KEY" and re.match(r"sk-|[Bb]earer\b", text):
        raise SettingsError(f"{name} holds what looks like a key: that belongs to OPENAI_API_KEY.")
    return text


def _key(env: Mapping[str, str]) -> str:
    name = "OPENAI_API_KEY"
    text = _value(env, name)
    text = _bare(re.sub(r"^(authorization:\s*)?bearer(\s+|$)", "", text, flags=re.IGNORECASE))
    if _PLACEHOLDER.fullmatch(text):
        raise SettingsError(f"{name} holds a placeholder: put your own key there, or unset it.")
    if "://" in text:
        raise SettingsError(f"{name} holds an address: that belongs to OPENAI_BASE_URL.")
    return _checked(name, text, header=True)


def _address(env: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """Return the address of the LLM's server as a client takes it, and its query."""
    name = "OPENAI_BASE_URL"
    text = _line(env, name, header=True)
    if not text:
        return None, {}
    text = re.sub(r"^(https?)(:/*|//)", r"\1://", text, flags=re.IGNORECASE)
    prefix = re.match(r"([\w+.-]*)://", text)
    scheme, rest = (prefix[1], text[prefix.end() :]) if prefix else ("", text)
    if scheme.lower() not in {"", "http", "https"}:
        raise SettingsError(f"{name} must begin with http:// or https://, and not {scheme}://.")
    try:
        parts = urlsplit("//" + rest.removeprefix("//"))
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", 0
    if port == 0 or not (":" in host or re.fullmatch(r"[\w-]+(\.[\w-]+)*\.?", host)):
        raise SettingsError(
            f"{name} names no host, or a port that is none: write http://host:port/v1."
        )
    path = re.sub("/+", "/", parts.path).rstrip("/")
    azure = host.endswith(_AZURE)
    base = path if azure and path == "/models" else _CALL.sub("", path)
    # A whole address from a service's manual is right even without /v1; at home all have it.
    if not base and (path != "/chat/completions" or _near(host)):
        base = "/openai/v1" if azure else "/v1"
    scheme = scheme.lower() or ("http" if _near(host) else "https")
    user, at, place = parts.netloc.rpartition("@")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return f"{scheme}://{user}{at}{place.lower().rstrip(':')}{base}", query


def _near(host: str) -> bool:
    """Whether a host is this machine or one of its own network."""
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".lan"))


def _number(env: Mapping[str, str], name: str) -> float:
    try:
        value = float(_value(env, name))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise SettingsError(f"{name} must be a number above 0.")
    return value


def _count(env: Mapping[str, str], name: str) -> int:
    value = _number(env, name)
    if value != int(value):
        raise SettingsError(f"{name} must be a whole number.")
    return int(value)


_NO = {"0", "no", "false"}
_READERS: dict[str, Callable[[Mapping[str, str], str], Any]] = {
    "SPARK_REMOTE": functools.partial(_line, header=True),
    **dict.fromkeys(
        ("SPARK_MASTER", "SPARK_DRIVER_MEMORY", "SPARK_DRIVER_HOST", "SPARK_EXECUTOR_MEMORY",
         "LLM_MODEL", "LLAMAREC_BASE_MODEL", "EMBEDDING_MODEL"), _line),
    **dict.fromkeys(
        ("SPARK_EXECUTOR_CORES", "SPARK_PARTITIONS", "LLM_MAX_TOKENS", "LLM_REPLY_TOKENS"), _count),
    **dict.fromkeys(("LLM_TIMEOUT_S", "LLM_BUDGET_USD", "LLM_PRICE_IN", "LLM_PRICE_OUT"), _number),
}  # fmt: skip
"""How a variable is read into the field of its name in small letters."""
