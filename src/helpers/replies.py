"""Stored LLM replies: which reply answers which request, and where replies are kept.

Two stores. The committed one is JSON Lines in ``data/replies``, readable and diffable; the local
one is SQLite in ``data/cache``, written by many threads at once. Requests that found no answer are
collected, and leave and return as OpenAI Batch API files.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from helpers.faults import storing

Body = dict[str, Any]

CONTENT = (
    "messages", "input", "response_format", "tools", "tool_choice", "n", "logprobs", "stop", "seed",
)  # fmt: skip
"""Fields of a request that decide what is asked. Two requests that differ in ``seed`` alone ask for
two readings of one prompt. A limit that the caller sets counts too, under either of its names: the
answer is cut there. All others (model, temperature, user, metadata, stream) are about who answers
and how."""

LOCAL = "local store"  # the source of a reply that is not committed
Fault = Callable[[Body, Body], str]
"""From a request and its reply to the reason why the reply may not be used, or ""."""

SCHEMA_NOTES = {"title", "description", "default", "examples"}
"""Notes in a JSON schema that differ between pydantic versions."""


def request_key(body: Body) -> str:
    """Return the SHA-256 of what a request asks, in hexadecimal digits.

    Only the fields in :data:`CONTENT` and the caller's limit count, with sorted keys; the JSON
    schema of ``response_format`` counts without its notes. White space in a message counts.
    """
    content = {name: body[name] for name in CONTENT if body.get(name) is not None}
    if limit := body.get("max_completion_tokens") or body.get("max_tokens"):
        content["max_completion_tokens"] = limit
    if "response_format" in content:
        content["response_format"] = _bare_schema(content["response_format"])
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _bare_schema(value: Any, names: bool = False) -> Any:
    """Drop notes, but not a property that happens to be called ``title``."""
    if isinstance(value, dict):
        return {
            key: _bare_schema(item, names=key in {"properties", "$defs"} and not names)
            for key, item in value.items()
            if names or key not in SCHEMA_NOTES
        }
    if isinstance(value, list):
        return [_bare_schema(item) for item in value]
    return value


@dataclass(frozen=True)
class Reply:
    """A stored answer: the response body as the server sent it, and where it came from."""

    key: str
    response: Body
    source: str
    request: Body = field(default_factory=dict)
    server: str = ""

    @property
    def model(self) -> str:
        """The model that the response names."""
        return str(self.response.get("model", "unknown"))

    @property
    def origin(self) -> str:
        """``stored`` for an earlier live reply, ``recorded`` for a committed one."""
        return "stored" if self.source == LOCAL else "recorded"


class StoreWarning(UserWarning):
    """A stored line could not be read and was skipped."""


class StoreDamagedError(RuntimeError):
    """The local store is not a readable database; the message says what to do."""


class CommittedStore:
    """Reads every ``*.jsonl`` in a folder; read once, on first use."""

    def __init__(self, folder: Path) -> None:
        """Remember the folder; it need not exist."""
        self._folder = Path(folder)

    @cached_property
    def _index(self) -> dict[str, Reply]:
        files = sorted(self._folder.glob("*.jsonl"))
        return {reply.key: reply for path in files for reply in read_jsonl(path)}

    def get(self, key: str) -> Reply | None:
        """Return the reply to a request, or ``None``."""
        return self._index.get(key)

    def all(self) -> list[Reply]:
        """Return all replies."""
        return list(self._index.values())


def read_jsonl(path: Path) -> Iterator[Reply]:
    """Yield the replies of a JSON Lines file; a corrupt line is skipped with a warning."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            request, response = record["request"], record["response"]
            if record["key"] != request_key(request):
                raise ValueError("the key does not belong to the request")
            response["choices"][0]["message"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            warnings.warn(f"{path.name}, line {number}: skipped ({error}).", StoreWarning, 2)
            continue
        yield Reply(record["key"], response, path.name, request)


def write_jsonl(replies: Iterable[Reply], path: Path) -> int:
    """Write replies sorted by key, in one atomic step, and return their number."""
    replies, fresh = list(replies), path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8", newline="\n") as file:
        for reply in sorted(replies, key=lambda reply: reply.key):
            record = {"key": reply.key, "request": reply.request, "response": reply.response}
            file.write(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n")
    fresh.replace(path)
    return len(replies)


class LocalStore:
    """Replies of live servers, in SQLite with a write-ahead log.

    Many threads may share it; a reply is on disk when :meth:`put` returns, so a killed process
    loses none that was finished.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            StoreDamagedError: the file is there but is no SQLite database, or a damaged one.
            StorageError: the disk is full, or the folder read-only.
        """
        self._path, self._lock = Path(path), threading.RLock()
        try:
            with storing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(path, timeout=60, check_same_thread=False)
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=FULL")
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS replies (key TEXT, model TEXT, server TEXT, "
                    "request TEXT, response TEXT, created REAL, PRIMARY KEY (key, model, server))"
                )
        except sqlite3.OperationalError:
            raise  # locked, for instance: the file itself may be sound
        except sqlite3.DatabaseError as error:
            raise StoreDamagedError(
                f"{self._path.name} cannot be read ({error}): move it out of {self._path.parent} "
                "and run again; a new one is made, and the replies of the old one are asked anew."
            ) from None

    def put(self, request: Body, response: Body, *, model: str = "", server: str = "") -> None:
        """Store a reply; a second reply to the same request replaces it."""
        self.put_all([(request, response)], model=model, server=server)

    def put_all(
        self, replies: Iterable[tuple[Body, Body]], *, model: str = "", server: str = ""
    ) -> None:
        """Store pairs of request and response in one transaction: all of them or none."""
        rows = [
            (request_key(body), model, server, json.dumps(body), json.dumps(answer), time.time())
            for body, answer in replies
        ]
        insert = "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)"
        with storing(self._path), self._lock, self._database:
            self._database.executemany(insert, rows)

    def get(
        self,
        key: str,
        *,
        model: str | None = None,
        server: str | None = None,
        fault: Fault | None = None,
    ) -> Reply | None:
        """Return the newest reply, of ``model`` and ``server`` if given, or ``None``.

        A reply with a ``fault`` is passed over.
        """
        replies = self._rows(
            "WHERE key = ?1 AND model = ifnull(?2, model) AND server = ifnull(?3, server)",
            (key, model, server),
        )
        sound = (r for r in reversed(replies) if not (fault and fault(r.request, r.response)))
        return next(sound, None)

    def models(self) -> list[str]:
        """Return the names of the models whose replies are here."""
        with self._lock:
            rows = self._database.execute("SELECT DISTINCT model FROM replies ORDER BY model")
            return [name for (name,) in rows]

    def forget(self) -> int:
        """Delete all replies and return their number."""
        with storing(self._path), self._lock, self._database:
            return self._database.execute("DELETE FROM replies").rowcount

    def all(self) -> list[Reply]:
        """Return all replies, oldest first."""
        return self._rows()

    def _rows(self, where: str = "", values: Sequence[str | None] = ()) -> list[Reply]:
        query = f"SELECT key, server, request, response FROM replies {where} ORDER BY created"
        with self._lock:
            rows = self._database.execute(query, values).fetchall()
        return [
            Reply(key, json.loads(response), LOCAL, json.loads(request), server)
            for key, server, request, response in rows
        ]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> LocalStore:
        """Return the store."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the store."""
        self.close()


class PendingRequests:
    """Requests that found no answer, one JSON line each, every request once."""

    _lock = threading.Lock()

    def __init__(self, path: Path) -> None:
        """Remember the file; it need not exist."""
        self._path = Path(path)
        self._keys: set[str] = set()
        self._read = 0  # bytes of the file whose keys are known

    def add(self, body: Body) -> None:
        """Collect a request unless it is there already."""
        with self._lock, storing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab+") as file:
                if file.tell() < self._read:  # forgotten, or another file
                    self._keys, self._read = set(), 0
                file.seek(self._read)  # what this object or another process has appended
                whole, newline, torn = file.read().rpartition(b"\n")
                self._keys |= {request_key(body) for body in _bodies(whole)}
                self._read += len(whole) + len(newline)
                if request_key(body) not in self._keys:
                    # After a kill the last line may be torn; what comes next must not join it.
                    file.write((b"\n" if torn else b"") + json.dumps(body).encode() + b"\n")

    def all(self) -> list[Body]:
        """Return the requests in their order; a line torn by a kill is left out."""
        return _bodies(self._path.read_bytes()) if self._path.exists() else []


def _bodies(data: bytes) -> list[Body]:
    bodies = []
    # As bytes: text would also be cut at U+2028 and other characters that JSON keeps.
    for line in data.splitlines():
        with suppress(ValueError):
            bodies.append(json.loads(line))
    return bodies


def forget(folder: Path) -> tuple[int, int]:
    """Delete the local store's replies and the waiting requests of ``folder``; return how many.

    Raises:
        StoreDamagedError, StorageError: see :class:`LocalStore`.
    """
    waiting = Path(folder) / "pending.jsonl"
    number = len(PendingRequests(waiting).all())
    with LocalStore(Path(folder) / "replies.sqlite") as store:
        replies = store.forget()
    with storing(waiting):
        waiting.unlink(missing_ok=True)
    return replies, number
