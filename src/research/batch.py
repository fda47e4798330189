"""Requests to LLMs as files of the Batch API: written, and their answers taken in."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from helpers.replies import Body, LocalStore, request_key

ENDPOINT = "/v1/chat/completions"


IMPORTED_AT_ONCE = 500
"""Answers of a batch in one transaction: the disk takes milliseconds to confirm each."""


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
