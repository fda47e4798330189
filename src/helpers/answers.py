"""From the text of an LLM to a value of a schema; nothing is guessed.

Dropped: a draft before ``</think>``, fences, prose, keys that the schema does not know. Counted:
small damage to the JSON, and a list that was cut after whole items. The last value wins.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import json_repair
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from pydantic import BaseModel, ValidationError

MAX_CHARACTERS, MAX_VALUES, MAX_DEPTH = 50_000, 50, 40  # so that a hostile text takes no time

_DRAFT = re.compile(
    r"</?(?:think|thinking|reasoning)>|\[/?THINK\]|<\|channel\|>(?:analysis|final)<\|message\|>"
)
# Other brackets are prose.
_JSON = re.compile(r"""\{\s*\}|\{\s*["'“]?\w+["'”]?\s*:|\[\s*["'“{\[\d]""")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},]')
_STRAIGHT = str.maketrans("“”„‘’", '"""\'\'')


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

    ``schema`` is a pydantic class (the value is an instance), or a JSON schema or a
    ``response_format`` (the value is plain JSON).
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
    """Yield the JSON values of a text in their order, each with the number of its repairs."""
    position = 0
    for _ in range(MAX_VALUES):
        if not (match := _JSON.search(text, position)):
            return
        with contextlib.suppress(ValueError, RecursionError):
            value, position = json.JSONDecoder().raw_decode(text, match.start())
            yield value, 0
            continue
        end, closers = _end(text, match.start())
        if end:
            piece, repairs = text[match.start() : end] + closers, int(bool(closers))
            try:
                yield json.loads(piece), repairs
            except ValueError:
                piece = piece if '"' in piece else piece.translate(_STRAIGHT)
                yield json_repair.loads(piece, skip_json_loads=True), repairs + 1
        position = len(text) if closers else end or match.end()


def _end(text: str, start: int) -> tuple[int | None, str]:
    """Return where a damaged value ends; if it was cut, after which item and what closes it."""
    stack: list[str] = []
    whole: tuple[int | None, str] = None, ""
    for token in _TOKEN.finditer(text, start):
        mark = token[0]
        if mark in "[{":
            stack.append("]" if mark == "[" else "}")
        elif mark in "]}":
            while stack and stack.pop() != mark:
                pass
        if not stack or len(stack) > MAX_DEPTH:
            return (token.end(), "") if not stack else (None, "")
        if mark not in "[{" and stack[-1] == "]" and stack.count("]") == 1:
            whole = token.start() if mark == "," else token.end(), "".join(reversed(stack))
    return whole


def _fit(value: Any, schema: type[BaseModel] | dict[str, Any]) -> tuple[Any, str]:
    """Return a JSON value as the schema has it, or ``None`` and why it does not fit."""
    shape = schema if isinstance(schema, dict) else schema.model_json_schema()
    shape = shape.get("json_schema", {}).get("schema", shape)
    parts = [shape, *shape.get("$defs", {}).values()]
    names = {name.casefold(): name for part in parts for name in part.get("properties", ())}
    fields = list(shape.get("properties", ()))
    value = {fields[0]: value} if isinstance(value, list) and len(fields) == 1 else value

    def spelled(node: dict[str, Any]) -> dict[str, Any]:
        return {names.get(key.casefold(), key): part for key, part in node.items()}

    try:
        value = json.loads(json.dumps(value), object_hook=spelled)
        if isinstance(schema, type):
            return schema.model_validate(value, extra="ignore"), ""
    except ValidationError as error:
        return None, _reason(error.errors()[0]["loc"], error.errors()[0]["msg"])
    except RecursionError:
        return None, "the answer's JSON is nested too deeply"
    faults = Draft202012Validator(shape).iter_errors(value)
    fault = best_match(fault for fault in faults if fault.validator != "additionalProperties")
    return (None, _reason(fault.path, fault.message)) if fault else (value, "")


def _reason(path: Iterable[str | int], message: str) -> str:
    where = ", ".join(f"item {part + 1}" if isinstance(part, int) else part for part in path)
    return " ".join(f"the answer's JSON does not fit: {where} {message}".split())[:200]
