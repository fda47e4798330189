"""Stored LLM replies as JSON Lines, one ``{"key", "request", "response"}`` a line.

In ``data/cache`` live replies are added, and ``pending.jsonl`` holds what found no answer.
"""

import hashlib
import json
import threading
import warnings
from collections import namedtuple
from pathlib import Path

from helpers.answers import Body

CONTENT = ["messages", "input", "response_format", "tools", "tool_choice"]
CONTENT += ["n", "logprobs", "stop", "seed"]
"""Fields that decide what is asked, with the caller's limit, at which an answer is cut."""
SCHEMA_NOTES = {"title", "description", "default", "examples"}  # differ between pydantic versions


def request_key(body: Body) -> str:
    """Return the SHA-256 of what a request asks, in hexadecimal digits."""

    def without_notes(node: Body) -> Body:  # but with a property that happens to be called "title"
        return {k: v for k, v in node.items() if k not in SCHEMA_NOTES or isinstance(v, dict)}

    content = {name: body[name] for name in CONTENT if body.get(name) is not None}
    if limit := body.get("max_completion_tokens") or body.get("max_tokens"):
        content["max_completion_tokens"] = limit
    if form := content.get("response_format"):
        content["response_format"] = json.loads(json.dumps(form), object_hook=without_notes)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# A stored answer from the file ``source``; ``asked`` is the model that was asked.
Reply = namedtuple("Reply", "key response source request asked")


class Store:
    """Replies by their keys, the newest last; threads and processes may append to one file."""

    def __init__(self, path: Path | str) -> None:
        """Read a file, or every ``*.jsonl`` of a folder; a torn line is skipped with a warning."""
        self._path, self._lock = Path(path), threading.Lock()
        self._known: dict[str, list[Reply]] = {}
        for file in [self._path] if self._path.is_file() else sorted(self._path.glob("*.jsonl")):
            for number, line in enumerate(file.read_bytes().splitlines(), 1):
                try:
                    if line.strip():
                        self._add(file.name, **json.loads(line))
                except (ValueError, TypeError, AttributeError) as error:
                    warnings.warn(f"{file.name}, line {number}: skipped ({error}).", stacklevel=2)

    def _add(self, file: str, *, request: Body, response: Body, model: str = "", **_: str) -> None:
        reply = Reply(request_key(request), dict(response), file, request, model)
        self._known.setdefault(reply.key, []).append(reply)

    def put(self, request: Body, response: Body, *, model: str = "") -> None:
        """Append a reply; no kill loses it afterwards."""
        key = request_key(request)
        record: Body = {"key": key, "request": request, "response": response, "model": model}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            with self._path.open("ab") as file:  # the first "\n" ends a line that a kill tore
                file.write(b"\n" + json.dumps(record).encode() + b"\n")
            self._add(self._path.name, **record)

    def get(self, key: str, model: str = "") -> Reply | None:
        """Return the newest reply, of ``model`` if one is named."""
        found = [reply for reply in self._known.get(key, []) if model in ("", reply.asked)]
        return found[-1] if found else None

    def all(self) -> list[Reply]:
        """Return all replies in the order in which their requests were first asked."""
        return [reply for replies in list(self._known.values()) for reply in replies]
