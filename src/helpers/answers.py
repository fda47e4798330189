"""From the text of an LLM to a value of a schema.

Dropped: a draft before ``</think>``, fences, prose, keys that the schema does not know. Damaged
JSON is repaired once, which is counted; the last value wins.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import json_repair
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from pydantic import BaseModel, ValidationError

MAX_CHARACTERS, MAX_DAMAGED, MAX_VALUES = 50_000, 8000, 50  # so that a hostile text takes no time

_DRAFT = re.compile(
    r"</?(?:think|thinking|reasoning)>|\[/?THINK\]|<\|channel\|>(?:analysis|final)<\|message\|>"
)
# Other brackets are prose.
_JSON = re.compile(r"""\{\s*\}|\{\s*["'“]?\w+["'”]?\s*:|\[\s*["'“{\[\d]""")


@dataclass(frozen=True)
class Answer:
    """A value that fits the schema with its number of repairs, or ``None`` and the reason why."""

    value: Any = None
    repairs: int = 0
    why: str = ""


def final_text(text: str) -> str | None:
    """Return what stands after the draft of a reasoning model; ``None`` if the draft never ends."""
    marks = list(_DRAFT.finditer(text))
    if not marks:
        return text
    last = marks[-1]
    return text[last.end() :] if "/" in last[0] or "final" in last[0] else None


def read(text: str | None, schema: type[BaseModel] | dict[str, Any]) -> Answer:
    """Read a value from the text of an LLM; no text makes it raise.

    ``schema`` is a pydantic class (the value is an instance) or a JSON schema (it is plain JSON).
    """
    if not text or not text.strip():
        return Answer(why="the answer is empty")
    if (final := final_text(text)) is None:
        return Answer(why="the answer stops inside its draft")
    listed, why = None, ""
    for value, repairs in reversed(list(_values(final[-MAX_CHARACTERS:]))):
        fitting, reason = _fit(value, schema)
        if fitting is None:
            why = why or reason
        elif isinstance(value, list):  # only an object has the schema's own shape
            listed = listed or Answer(fitting, repairs)
        elif listed and listed.value != fitting:
            return Answer(why="the answer holds a JSON object and, after it, another list")
        else:
            return Answer(fitting, repairs)
    return listed or Answer(why=why or "the answer holds no JSON")


def _values(text: str) -> Iterator[tuple[Any, int]]:
    """Yield the JSON values of a text in their order, the last one repaired if it is damaged."""
    position = 0
    with contextlib.suppress(RecursionError):
        for _ in range(MAX_VALUES):
            if not (match := _JSON.search(text, position)):
                return
            try:
                value, position = json.JSONDecoder().raw_decode(text, match.start())
                yield value, 0
            except ValueError:
                break
        damaged = text[match.start() :].partition("```")[0] if match else ""
        with contextlib.suppress(ValueError):
            if damaged and len(damaged) <= MAX_DAMAGED:
                yield json_repair.loads(damaged, skip_json_loads=True), 1


def _fit(value: Any, schema: type[BaseModel] | dict[str, Any]) -> tuple[Any, str]:
    """Return a JSON value as the schema has it, or ``None`` and why it does not fit."""
    shape = schema if isinstance(schema, dict) else schema.model_json_schema()
    fields = list(shape.get("properties", ()))
    value = {fields[0]: value} if isinstance(value, list) and len(fields) == 1 else value
    if isinstance(schema, type):
        try:
            return schema.model_validate(value, extra="ignore"), ""
        except ValidationError as error:
            path, why = error.errors()[0]["loc"], error.errors()[0]["msg"]
    else:
        faults = Draft202012Validator(shape).iter_errors(value)
        fault = best_match(fault for fault in faults if fault.validator != "additionalProperties")
        if fault is None:
            return value, ""
        path, why = fault.path, fault.message
    where = ", ".join(f"item {part + 1}" if isinstance(part, int) else part for part in path)
    return None, " ".join(f"the answer's JSON does not fit: {where} {why}".split())[:200]
