"""Stored LLM replies as JSON Lines, one ``{"key", "request", "response"}`` a line.

The committed store in ``data/replies`` is only read; the local one in ``data/cache`` grows with
each live reply. Requests that found no answer are collected beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.settings import replacing

Body = dict[str, Any]
Fault = Callable[[Body, Body], str]  # from request and response to why it is of no use, or ""

CONTENT = (
    "messages", "input", "response_format", "tools", "tool_choice", "n", "logprobs", "stop", "seed",
)  # fmt: skip
"""Fields that decide what is asked, with the caller's limit, at which an answer is cut."""

LOCAL = "local store"  # the source of a reply that is not committed
SCHEMA_NOTES = {"title", "description", "default", "examples"}  # differ between pydantic versions


def request_key(body: Body) -> str:
    """Return the SHA-256 of what a request asks, in hexadecimal digits.

    Only :data:`CONTENT` and the caller's limit count, and a JSON schema without its notes.
    """
    content = {name: body[name] for name in CONTENT if body.get(name) is not None}
    if limit := body.get("max_completion_tokens") or body.get("max_tokens"):
        content["max_completion_tokens"] = limit
    if "response_format" in content:
        schema = json.dumps(content["response_format"])
        content["response_format"] = json.loads(schema, object_hook=_without_notes)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _without_notes(node: Body) -> Body:
    """Drop a schema's notes, but not the property that happens to be called ``title``."""
    return {k: v for k, v in node.items() if k not in SCHEMA_NOTES or isinstance(v, dict)}


@dataclass(frozen=True)
class Reply:
    """A stored answer to what the model ``asked`` was sent, and where it came from."""

    key: str
    response: Body
    source: str
    request: Body = field(default_factory=dict)
    asked: str = ""
    server: str = ""

    @property
    def model(self) -> str:
        """The model that the response names."""
        return str(self.response.get("model", "unknown"))


class StoreWarning(UserWarning):
    """A stored line could not be read and was skipped."""


def read_jsonl(path: Path) -> Iterator[Reply]:
    """Yield the replies of a file; a corrupt line is skipped with a warning."""
    return _replies(path.read_bytes(), path.name, path.name)


def _replies(lines: bytes, name: str, source: str) -> Iterator[Reply]:
    """Yield the replies whose key belongs to the request and whose response, if any, answers."""
    for number, line in enumerate(lines.splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if record["key"] != request_key(record["request"]):
                raise ValueError("the key does not belong to the request")
            if answer := record["response"]:
                answer["data"] if "data" in answer else answer["choices"][0]["message"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            warnings.warn(f"{name}, line {number}: skipped ({error}).", StoreWarning, 2)
            continue
        asked, server = record.get("model", ""), record.get("server", "")
        yield Reply(record["key"], answer, source, record["request"], asked, server)


def write_jsonl(replies: Iterable[Reply], path: Path) -> int:
    """Write replies sorted by key, in one atomic step, and return their number."""
    records = [{"key": r.key, "request": r.request, "response": r.response} for r in replies]
    records.sort(key=lambda record: record["key"])
    lines = [json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records]
    with replacing(path) as fresh:
        fresh.write_text("".join(lines), encoding="utf-8", newline="\n")
    return len(records)


class CommittedStore(dict[str, Reply]):
    """The replies in every ``*.jsonl`` of a folder, which need not exist, by key."""

    def __init__(self, folder: Path) -> None:
        """Read the files."""
        paths = sorted(Path(folder).glob("*.jsonl"))
        super().__init__((reply.key, reply) for path in paths for reply in read_jsonl(path))

    def all(self) -> list[Reply]:
        """Return all replies."""
        return list(self.values())


class LocalStore(AbstractContextManager):
    """Replies of live servers, in a file that threads and processes append to."""

    def __init__(self, path: Path) -> None:
        """Remember the file; it need not exist."""
        self._path, self._lock, self._read = Path(path), threading.RLock(), 0
        self._index: dict[str, dict[tuple[str, str], Reply]] = {}

    def put(self, request: Body, response: Body, *, model: str = "", server: str = "") -> None:
        """Store a reply in place of an earlier one of this model and server; no kill loses it."""
        record = {"key": request_key(request), "request": request, "response": response}
        record |= {"model": model, "server": server, "created": time.time()}
        line = json.dumps(record).encode() + b"\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self._path.open("ab+") as file:
            file.seek(max(file.tell() - 1, 0))
            torn = file.read() not in (b"", b"\n")  # by a kill: that line is ended first
            file.write(b"\n" * torn + line)
            file.flush()
            os.fsync(file.fileno())

    def _load(self) -> dict[str, dict[tuple[str, str], Reply]]:
        """Read what was appended; return replies by key, then by model and server, newest last."""
        with self._lock:
            if not self._path.exists():  # or no longer
                self._read, self._index = 0, {}
                return self._index
            with self._path.open("rb") as file:
                file.seek(self._read)
                lines = file.read()
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read += len(whole)
            for reply in _replies(whole, self._path.name, LOCAL):
                known = self._index.setdefault(reply.key, {})
                known.pop((reply.asked, reply.server), None)
                known[reply.asked, reply.server] = reply
            return self._index

    def get(
        self,
        key: str,
        *,
        model: str | None = None,
        server: str | None = None,
        fault: Fault | None = None,
    ) -> Reply | None:
        """Return the newest reply without a ``fault``, of ``model`` and ``server`` if given."""
        for reply in reversed(self._load().get(key, {}).values()):
            wanted = model in (None, reply.asked) and server in (None, reply.server)
            if wanted and not (fault and fault(reply.request, reply.response)):
                return reply
        return None

    def all(self) -> list[Reply]:
        """Return all replies, in the order in which their requests were first asked."""
        return [reply for known in self._load().values() for reply in known.values()]

    def models(self) -> list[str]:
        """Return the names of the models that were asked."""
        return sorted({reply.asked for reply in self.all()})

    def forget(self) -> int:
        """Delete all replies and return their number."""
        number = len(self.all())
        self._path.unlink(missing_ok=True)
        return number

    def __exit__(self, *_: object) -> None:
        """Do nothing: no file stays open."""


class PendingRequests:
    """Requests that found no answer, each once."""

    def __init__(self, path: Path) -> None:
        """Remember the file; it need not exist."""
        self._store = LocalStore(path)

    def add(self, body: Body) -> None:
        """Collect a request unless it is there already."""
        if self._store.get(request_key(body)) is None:
            self._store.put(body, {})

    def all(self) -> list[Body]:
        """Return the requests in their order."""
        return [reply.request for reply in self._store.all()]
