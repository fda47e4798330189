"""From the text of an LLM to a value of a schema; nothing is guessed.

Dropped: a draft before ``</think>``, fences, prose, keys that the schema does not know. Counted:
small damage to the JSON, and a list that was cut after whole items. The last value wins.
"""

from __future__ import annotations

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
    r"</?(?:think|thinking|reasoning)>|\[/?THINK\]|<\|channel\|>(?:analysis|final)<\|message\|>",
    re.I,
)
_JSON = re.compile(
    r"""\{\s*\}|\{\s*["'“]?\w+["'”]?\s*:|\[\s*["'“{\[\d]"""
)  # other brackets are prose
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
    if not (text or "").strip():
        return Answer(why="the answer is empty")
    if (final := final_text(text)) is None:
        return Answer(why="the answer stops inside its draft")
    listed, why = None, ""
    for value, repairs, inside in reversed(list(_values(final[-MAX_CHARACTERS:]))):
        fitting, reason = _fit(value, schema)
        if fitting is None:
            why = why or reason
        elif isinstance(value, list):  # only an object has the schema's own shape
            listed = listed or (None if inside else Answer(fitting, repairs))
        elif listed and listed.value != fitting:
            return Answer(why="the answer holds a JSON object and, after it, another list")
        else:
            return Answer(fitting, repairs)
    return listed or Answer(why=why or "the answer holds no JSON")


def _values(text: str) -> Iterator[tuple[Any, int, bool]]:
    """Yield the JSON values of a text, their repairs, and whether they lie in a cut value."""
    position, inside = 0, False
    for _ in range(MAX_VALUES):
        if not (match := _JSON.search(text, position)):
            return
        try:
            value, position = json.JSONDecoder().raw_decode(text, match.start())
            yield value, 0, inside
        except (ValueError, RecursionError):
            end, closers = _end(text, match.start())
            if end is None:
                position = match.end()
                continue
            piece = text[match.start() : end] + closers
            try:
                value, repairs = json.loads(piece), 1
            except ValueError:
                piece = piece if '"' in piece else piece.translate(_STRAIGHT)
                value = json_repair.loads(piece, skip_json_loads=True)
                repairs = 2 if closers else 1
            yield value, repairs, inside
            position, inside = (match.start() + 1, True) if closers else (end, inside)


def _end(text: str, start: int) -> tuple[int | None, str]:
    """Return where a damaged value ends: at its last bracket, or after its last whole item.

    In the second case, with the brackets to add; ``None`` where no item is whole.
    """
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
    model = schema if isinstance(schema, type) else None
    shape = schema.model_json_schema() if isinstance(schema, type) else schema
    shape = shape.get("json_schema", {}).get("schema", shape)
    names: dict[str, str] = {}

    def opened(node: dict[str, Any]) -> dict[str, Any]:
        names.update((name.casefold(), name) for name in node.get("properties", ()))
        return {key: part for key, part in node.items() if key != "additionalProperties"}

    def spelled(node: dict[str, Any]) -> dict[str, Any]:
        return {names.get(key.casefold(), key): part for key, part in node.items()}

    shape = json.loads(json.dumps(shape), object_hook=opened)
    if isinstance(value, list):
        fields = shape.get("properties", {})
        if len(fields) != 1 or next(iter(fields.values())).get("type") != "array":
            return None, ""
        value = {next(iter(fields)): value}
    try:
        value = json.loads(json.dumps(value), object_hook=spelled)
        if model:
            return model.model_validate(value, extra="ignore"), ""
        if fault := best_match(Draft202012Validator(shape).iter_errors(value)):
            return None, _reason(fault.path, fault.message)
        return value, ""
    except ValidationError as error:
        fault = error.errors()[0]
        return None, _reason(fault["loc"], fault["msg"])
    except RecursionError:
        return None, "the answer's JSON is nested too deeply"


def _reason(path: Iterable[str | int], message: str) -> str:
    where = ", ".join(f"item {part + 1}" if isinstance(part, int) else part for part in path)
    return " ".join(f"the answer's JSON does not fit: {where} {message}".split())[:200]
