"""Stored LLM replies: which reply answers which request, and where replies are kept.

Two stores. The committed one is JSON Lines in ``data/replies``, readable and diffable; the local
one is SQLite in ``data/cache``, written by many threads at once. Requests that found no answer are
collected, and leave and return as OpenAI Batch API files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from helpers.faults import storing

Body = dict[str, Any]

ENDPOINT = "/v1/chat/completions"
CONTENT = (
    "messages", "input", "response_format", "tools", "tool_choice", "n", "logprobs", "stop", "seed",
)  # fmt: skip
"""Fields of a request that decide what is asked. Two requests that differ in ``seed`` alone ask for
two readings of one prompt. A limit that the caller sets counts too, under either of its names: the
answer is cut there. All others (model, temperature, user, metadata, stream) are about who answers
and how."""

LOCAL = "local store"
"""The :attr:`Reply.source` of a reply that is not committed."""

Fault = Callable[[Body, Body], str]
"""From a request and its reply to the reason why the reply may not be used, or ""."""

IMPORTED_AT_ONCE = 500
"""Answers of a batch in one transaction: the disk takes milliseconds to confirm each."""

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
        self._folder, self._index = Path(folder), None

    def get(self, key: str) -> Reply | None:
        """Return the reply to a request, or ``None``."""
        return self._replies().get(key)

    def all(self) -> list[Reply]:
        """Return all replies."""
        return list(self._replies().values())

    def _replies(self) -> dict[str, Reply]:
        if self._index is None:
            files = sorted(self._folder.glob("*.jsonl"))
            self._index = {r.key: r for path in files for r in read_jsonl(path)}
        return self._index


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
    lines = [
        json.dumps(
            {"key": reply.key, "request": reply.request, "response": reply.response},
            ensure_ascii=False,
            sort_keys=True,
        )
        for reply in sorted(replies, key=lambda reply: reply.key)
    ]
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    fresh.replace(path)
    return len(lines)


class LocalStore:
    """Replies of live servers, in SQLite with a write-ahead log.

    Each thread has its own connection; a reply is on disk when :meth:`put` returns, so a killed
    process loses none that was finished.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            StoreDamagedError: the file is there but is no SQLite database, or a damaged one.
            StorageError: the disk is full, or the folder read-only.
        """
        self._path, self._local = Path(path), threading.local()
        self._open: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        try:
            with storing(self._path), self._folder() as connection:
                connection.execute(
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

    def _folder(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._connection()

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            connection = sqlite3.connect(self._path, timeout=60, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            self._local.connection = connection
            with self._lock:
                self._open.append(connection)
        return self._local.connection

    def put(self, request: Body, response: Body, *, model: str = "", server: str = "") -> str:
        """Store a reply and return its key; a second reply to the same request replaces it."""
        self.put_all([(request, response)], model=model, server=server)
        return request_key(request)

    def put_all(
        self, replies: Iterable[tuple[Body, Body]], *, model: str = "", server: str = ""
    ) -> None:
        """Store pairs of request and response in one transaction: all of them or none."""
        rows = [
            (request_key(body), model, server, json.dumps(body), json.dumps(answer), time.time())
            for body, answer in replies
        ]
        with storing(self._path), self._connection() as connection:
            connection.executemany("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)", rows)

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
            "WHERE key = ? AND (? IS NULL OR model = ?) AND (? IS NULL OR server = ?)",
            (key, model, model, server, server),
        )
        sound = (r for r in reversed(replies) if not (fault and fault(r.request, r.response)))
        return next(sound, None)

    def models(self) -> list[str]:
        """Return the names of the models whose replies are here."""
        rows = self._connection().execute("SELECT DISTINCT model FROM replies ORDER BY model")
        return [name for (name,) in rows.fetchall()]

    def forget(self) -> int:
        """Delete all replies and return their number."""
        with storing(self._path), self._connection() as connection:
            return connection.execute("DELETE FROM replies").rowcount

    def all(self) -> list[Reply]:
        """Return all replies, oldest first."""
        return self._rows("", ())

    def _rows(self, where: str, values: tuple) -> list[Reply]:
        query = f"SELECT key, server, request, response FROM replies {where} ORDER BY created"
        rows = self._connection().execute(query, values).fetchall()
        return [
            Reply(key, json.loads(response), LOCAL, json.loads(request), server)
            for key, server, request, response in rows
        ]

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()
        self._local = threading.local()

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
        with self._lock:
            self._catch_up()
            if request_key(body) in self._keys:
                return
            with storing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
            with storing(self._path), self._path.open("ab+") as file:
                # After a kill the last line may be torn; what comes next must not join it.
                start = b"\n" if _ends_torn(file) else b""
                file.write(start + json.dumps(body).encode() + b"\n")

    def _catch_up(self) -> None:
        """Read what this object or another process has appended since the last time."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size < self._read:  # forgotten, or another file
            self._keys, self._read = set(), 0
        if size > self._read:
            with self._path.open("rb") as file:
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._keys.update(request_key(body) for body in _bodies(whole))
            self._read += len(whole) + len(newline)

    def all(self) -> list[Body]:
        """Return the requests in their order; a line torn by a kill is left out."""
        return _bodies(self._path.read_bytes()) if self._path.exists() else []


def _bodies(data: bytes) -> list[Body]:
    bodies = []
    # As bytes: text would also be cut at U+2028 and other characters that JSON keeps.
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            bodies.append(json.loads(line))
    return bodies


def _ends_torn(file: IO[bytes]) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


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


def export_batch(requests: Iterable[Body], path: Path, model: str) -> int:
    """Write an OpenAI Batch API input file and return the number of its requests."""
    unique = {request_key(body): body for body in requests}
    lines = [batch_line(body, model) for body in unique.values()]
    Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def batch_line(body: Body, model: str) -> str:
    """Return one line of a Batch API input file; ``custom_id`` is the request's key."""
    return json.dumps(
        {
            "custom_id": request_key(body),
            "method": "POST",
            "url": ENDPOINT,
            "body": {**body, "model": model},
        }
    )


@dataclass(frozen=True)
class ImportReport:
    """What an import did; ``failed`` holds pairs of custom id (or line) and reason."""

    imported: int
    failed: list[tuple[str, str]]
    unanswered: list[str]
    unknown: list[str]

    @property
    def complete(self) -> bool:
        """Whether every request has an answer."""
        return not (self.failed or self.unanswered)

    def __str__(self) -> str:
        """Return one line of counts and a line for each request that is still open."""
        head = (
            f"{self.imported} imported, {len(self.failed)} failed, "
            f"{len(self.unanswered)} unanswered, {len(self.unknown)} never asked"
        )
        open_ones = [*self.failed, *((key, "unanswered") for key in self.unanswered)]
        return "\n".join([head, *(f"  {name}: {why}" for name, why in open_ones)])


def import_batch(
    path: Path,
    requests: Iterable[Body],
    store: LocalStore,
    *,
    model: str | None = None,
    judge: Callable[[str, Body], str] | None = None,
) -> ImportReport:
    """Take a Batch API output file into ``store``; ``requests`` are those that were exported.

    Args:
        path: the output file, or the file of errors, which has the same form.
        requests: the bodies that were asked.
        store: where the answers go, under the server's name "batch".
        model: the model to store them under (default: the one that each answer names).
        judge: gets a request's key and the answer, and says why it must not be stored, or "".
    """
    asked = {request_key(body): body for body in requests}
    done: set[str] = set()
    failed: list[tuple[str, str]] = []
    unknown: list[str] = []
    good: dict[str, list[tuple[Body, Body]]] = {}
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name = str(record["custom_id"])
        except (ValueError, KeyError, TypeError):
            failed.append((f"line {number}", "not a Batch API output line"))
            continue
        if name not in asked:
            unknown.append(name)
            continue
        why = _fault(record)
        response = None if why else record["response"]["body"]
        if not why and judge is not None:
            why = judge(name, response)
        if why:
            failed.append((name, why))
            continue
        named_model = str(response.get("model", "")) if model is None else model
        good.setdefault(named_model, []).append((asked[name], response))
        if len(good[named_model]) == IMPORTED_AT_ONCE:
            store.put_all(good.pop(named_model), model=named_model, server="batch")
        done.add(name)
    for named_model, pairs in good.items():
        store.put_all(pairs, model=named_model, server="batch")
    named = done | {name for name, _ in failed}
    # An earlier import may have answered the rest.
    unanswered = [key for key in asked if key not in named and store.get(key) is None]
    return ImportReport(len(done), failed, unanswered, unknown)


def _lines(path: Path) -> Iterator[bytes]:
    # One at a time: an output file may be larger than memory allows for a copy.
    with Path(path).open("rb") as file:
        yield from file


def _fault(record: Body) -> str:
    if record.get("error"):
        error = record["error"]
        return str(error.get("message", error) if isinstance(error, dict) else error)
    response = record.get("response") or {}
    status = response.get("status_code")
    if status != 200:
        return f"status {status}"
    try:
        response["body"]["choices"][0]["message"]
    except (KeyError, IndexError, TypeError):
        return "the response holds no message"
    return ""
