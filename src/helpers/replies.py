"""Stored LLM replies as JSON Lines, one ``{"key", "request", "response"}`` a line.

The files in ``data/replies`` are only read; ``replies.jsonl`` in ``data/cache`` grows with each
live reply; ``pending.jsonl`` beside it holds what found no answer, with an empty response.
"""

import hashlib
import json
import threading
import warnings
from collections import namedtuple
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from helpers.answers import Body, usable

CONTENT = (
    "messages", "input", "response_format", "tools", "tool_choice", "n", "logprobs", "stop", "seed",
)  # fmt: skip
"""Fields that decide what is asked, with the caller's limit, at which an answer is cut."""
SCHEMA_NOTES = {"title", "description", "default", "examples"}  # differ between pydantic versions


def request_key(body: Body) -> str:
    """Return the SHA-256 of what a request asks, in hexadecimal digits.

    Only :data:`CONTENT` and the caller's limit count, and a JSON schema without its notes.
    """

    def without_notes(node: Body) -> Body:  # but with a property that happens to be called "title"
        return {k: v for k, v in node.items() if k not in SCHEMA_NOTES or isinstance(v, dict)}

    content = {name: body[name] for name in CONTENT if body.get(name) is not None}
    if limit := body.get("max_completion_tokens") or body.get("max_tokens"):
        content["max_completion_tokens"] = limit
    if "response_format" in content:
        schema = json.dumps(content["response_format"])
        content["response_format"] = json.loads(schema, object_hook=without_notes)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# A stored answer from the file ``source``; ``asked`` is the model that was asked.
Reply = namedtuple("Reply", "key response source request asked")


def read_jsonl(path: Path) -> Iterator[Reply]:
    """Yield the replies of a file; a line that was torn or changed is skipped with a warning."""
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            if line.strip():
                record = json.loads(line)
                key, answer, request = record["key"], dict(record["response"]), record["request"]
                if key != request_key(request):
                    raise ValueError("the key does not belong to the request")
                yield Reply(key, answer, path.name, request, record.get("model", ""))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            warnings.warn(f"{path.name}, line {number}: skipped ({error}).", stacklevel=2)


class Store(AbstractContextManager):
    """Replies by their keys, the newest last; threads and processes may append to one file."""

    def __init__(self, path: Path | str) -> None:
        """Read a file, or every ``*.jsonl`` of a folder; neither need exist."""
        self._path, self._lock = Path(path), threading.Lock()
        self._known: dict[str, list[Reply]] = {}
        for file in [self._path] if self._path.is_file() else sorted(self._path.glob("*.jsonl")):
            for reply in read_jsonl(file):
                self._known.setdefault(reply.key, []).append(reply)

    def put(self, request: Body, response: Body, *, model: str = "") -> None:
        """Append a reply; no kill loses it afterwards."""
        reply = Reply(request_key(request), response, self._path.name, request, model)
        record = {"key": reply.key, "request": request, "response": response, "model": model}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            with self._path.open("ab") as file:  # the first "\n" ends a line that a kill tore
                file.write(b"\n" + json.dumps(record).encode() + b"\n")
            self._known.setdefault(reply.key, []).append(reply)

    def get(self, key: str) -> Reply | None:
        """Return the newest reply."""
        return next(reversed(self._known.get(key, [])), None)

    def usable(self, key: str, model: str = "") -> Reply | None:
        """Return the newest reply that is usable, of ``model`` if one is named."""
        found = [reply for reply in self._known.get(key, []) if model in ("", reply.asked)]
        return next((r for r in reversed(found) if not usable(r.request, r.response)), None)

    def all(self) -> list[Reply]:
        """Return all replies, usable or not, in the order in which their requests were asked."""
        return [reply for replies in list(self._known.values()) for reply in replies]

    def __exit__(self, *_: object) -> None:
        """Do nothing: no file stays open."""


CommittedStore = LocalStore = Store  # the course's replies, a folder; and one's own, a file
