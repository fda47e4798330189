"""From the text of an LLM to a value of a schema, whatever stands around it; nothing is guessed.

Dropped: what stands before the end of a draft (``</think>`` and its kin), fences, prose, keys that
the schema does not know. Accepted and counted: small damage to the JSON, and a list that was cut
after whole items. Of several values with the schema's shape the last one wins. A list alone may
stand for the only field of a schema, and the value may be wrapped in one more object.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import json_repair
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from pydantic import BaseModel, ValidationError

# No answer of the course comes near these; they keep the time for a hostile text short.
MAX_DEPTH, MAX_VALUES, MAX_PARTS, MAX_REPAIRED_CHARACTERS = 40, 50, 20, 20_000

_DRAFT = re.compile(
    r"</?(?:\w+:)?(?:think|thinking|thoughts?|reasoning|reflection|scratchpad|analysis)\b[^<>]*>"
    r"|\[/?think\]|◁/?think▷|<\|(?:begin|end)_of_thought\|>",
    re.IGNORECASE,
)
# The final channel of gpt-oss, also as a server writes it that drops the special tokens.
_FINAL = re.compile(
    r"<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|assistantfinal(?=\W)"
)
_FENCE = re.compile(r"(?:```+|~~~+)[\w+-]*")
_OPENING = re.compile(r"[\[{]")
_TOKEN = re.compile(r'"(?:[^"\\\n]|\\.)*"?|[\[\]{},]')
# Only what begins like this is read: json_repair makes a list of any prose in brackets.
_LIKE_JSON = re.compile(r"""\{\s*["'“”„‘’]?\w+["'“”‘’]?\s*:|\[\s*["'“„‘{\[\d]""")
_STRAIGHT = str.maketrans("“”„‟‘’", '""""\'\'')


@dataclass(frozen=True)
class Answer:
    """What was read: a value that fits the schema, or ``None`` and the reason in one clause.

    ``repairs`` counts small damage: 1 for characters (commas, quotes, brackets), 1 for a cut end.
    """

    value: Any = None
    repairs: int = 0
    why: str = ""


def final_text(text: str) -> str | None:
    """Return what stands after the draft of a reasoning model; ``None`` if the draft never ends."""
    final = list(_FINAL.finditer(text))
    if final:
        text = re.split(r"<\|(?:return|end|start|channel|call)\|>", text[final[-1].end() :])[0]
    elif "<|channel|>" in text:
        return None
    tags = list(_DRAFT.finditer(text))
    start = max((tag.end() for tag in tags if tag[0][1] == "/" or "|end" in tag[0]), default=0)
    return None if any(tag.start() >= start for tag in tags) else text[start:]


def read(text: str | None, schema: type[BaseModel] | dict[str, Any]) -> Answer:
    """Read a value from the text of an LLM; no text makes it raise.

    Args:
        text: the message of the LLM.
        schema: a pydantic class (the value is an instance), or a JSON schema or ``response_format``
            (the value is plain JSON).
    """
    text = (text or "").strip("\ufeff\u200b \t\r\n")
    if not text:
        return Answer(why="the answer is empty")
    shape = _shape_of(schema) if isinstance(schema, type) else _Shape(schema)
    listed, why = None, ""
    for value, repairs, bare in _values(text):
        fitting, reason = shape.fit(value, bare=bare and listed is None)
        why = why or reason
        if fitting is None:
            continue
        if isinstance(value, dict | str):
            if listed is not None and listed.value != fitting:
                return Answer(why="the answer holds a JSON object and, after it, another list")
            return Answer(fitting, repairs)
        listed = listed or Answer(fitting, repairs)  # only an object has the schema's own shape
    if listed is None and not why:
        unfinished = final_text(text) is None
        why = "the answer stops inside its draft" if unfinished else "the answer holds no JSON"
    return listed or Answer(why=why)


class _Shape:
    """Whether a JSON value fits a schema, once its keys are spelled as the schema spells them."""

    def __init__(self, schema: type[BaseModel] | dict[str, Any]) -> None:
        self.model = schema if isinstance(schema, type) else None
        shape = schema.model_json_schema() if self.model else schema
        shape = shape.get("json_schema", {}).get("schema", shape)
        self.closed = shape.get("additionalProperties") is False
        self.names: dict[str, str] = {}
        self.shape = json.loads(json.dumps(shape), object_hook=self._open)
        fields, required = self.shape.get("properties", {}), self.shape.get("required", [])
        lists = [name for name in required if fields[name].get("type") == "array"]
        self.only = lists[0] if len(required) == len(lists) == 1 else None

    def _open(self, node: dict[str, Any]) -> dict[str, Any]:
        self.names |= {name.casefold(): name for name in node.get("properties", ())}
        return {key: part for key, part in node.items() if key != "additionalProperties"}

    def _spell(self, value: Any, depth: int = 0) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("the answer's JSON is nested too deeply")
        if isinstance(value, list):
            return [self._spell(item, depth + 1) for item in value]
        if not isinstance(value, dict):
            return value
        known, spelled = set(self.names.values()), {}
        for key, part in value.items():
            name = key if key in known else self.names.get(key.casefold(), key)
            if (name == key or name not in value) and (name in known or not self.closed):
                spelled[name] = self._spell(part, depth + 1)
        return spelled

    def fit(self, value: Any, *, bare: bool, inner: int = 2) -> tuple[Any, str]:
        """Return the value as the schema has it, or ``None`` and why it does not fit."""
        if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):  # JSON inside JSON
            with contextlib.suppress(ValueError, RecursionError):
                value = json.loads(value)
        why, parts = "", []
        if isinstance(value, dict):
            fitting, why = self._validate(value)
            if fitting is not None:
                return fitting, ""
            # An echo of the schema is no answer.
            parts = [part for key, part in value.items() if key != "properties"]
        elif isinstance(value, list) and len(value) == 1:
            parts = value
        if not inner or len(parts) > MAX_PARTS:
            parts = []
        wrapped = [self.fit(part, bare=False, inner=inner - 1)[0] for part in parts]
        wrapped = [part for part in wrapped if part is not None]
        if len(wrapped) == 1:
            return wrapped[0], ""
        texts = isinstance(value, list) and all(isinstance(item, str | dict) for item in value)
        if bare and texts and value and self.only:
            return self._validate({self.only: value})
        return None, why

    def _validate(self, value: dict[str, Any]) -> tuple[Any, str]:
        try:
            value = self._spell(value)
        except ValueError as error:
            return None, str(error)
        if self.model is None:
            error = best_match(_VALIDATOR(self.shape).iter_errors(value))
            return (value, "") if error is None else (None, _reason(error.path, error.message))
        try:
            return self.model.model_validate(value, extra="ignore"), ""
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            plain = {"missing": "is missing", "model_type": "should be an object"}
            message = plain.get(first["type"], first["msg"].removeprefix("Input "))
            return None, _reason(first["loc"], message)


_shape_of = functools.cache(_Shape)  # of a class: to make its JSON schema takes longer than to read

# A whole number may be written as text, as pydantic takes it.
_VALIDATOR = extend(
    Draft202012Validator,
    type_checker=Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: re.fullmatch(r"\s*-?\d+(\.0*)?\s*", str(value)) is not None
    ),
)


def _reason(path: Iterable[str | int], message: str) -> str:
    where = ", ".join(f"item {part + 1}" if isinstance(part, int) else part for part in path)
    return " ".join(f"the answer's JSON does not fit: {where} {message}".split())[:200]


def _values(text: str) -> Iterator[tuple[Any, int, bool]]:
    """Yield the JSON values of a text, the last one first: value, repairs, may be a list alone."""
    try:
        json.loads(text)
        segments = [text]
    except (ValueError, RecursionError):
        segments = _FENCE.split(final_text(text) or "")
    tried, left = 0, MAX_REPAIRED_CHARACTERS
    for segment in reversed(segments):
        with contextlib.suppress(ValueError, RecursionError):
            yield json.loads(segment), 0, True
            continue
        limit = float("inf")
        for key, start, end, closers, bare in _spans(segment):
            if key > limit or tried == MAX_VALUES or not _LIKE_JSON.match(segment, start):
                continue
            piece, repairs = segment[start:end] + closers, int(bool(closers))
            tried += 1
            try:
                value = json.loads(piece)
            except ValueError:
                left -= len(piece)
                if left < 0:
                    return
                straight = piece if '"' in piece else piece.translate(_STRAIGHT)
                value, repairs = json_repair.loads(straight, skip_json_loads=True), repairs + 1
            limit = start  # parts of a value are no values
            yield value, repairs, bare


def _spans(text: str) -> list[tuple[float, int, int, str, bool]]:
    """Return the bracketed spans of a text, the last first, an outer one before its parts.

    A span that never closes ends after its last whole item and gets the ``closers`` it lacks. It
    comes after the spans inside it, in which an object of the schema's shape would be an answer.
    """
    stack: list[int] = []
    spans, whole, position = [], {}, 0
    while match := (_TOKEN if stack else _OPENING).search(text, position):
        token, position = match[0], match.end()
        if token in ("[", "{"):
            stack.append(match.start())
            if len(stack) > MAX_DEPTH:
                return []
        elif token in ("]", "}"):
            partner = "[" if token == "]" else "{"
            # A bracket that is missing before this one is small damage.
            found = next((i for i in (1, 2) if text[stack[-i:][0]] == partner), 0)
            if found:
                spans.append((float(position), stack[-found], position, "", True))
                del stack[-found:]
                if stack:
                    whole[stack[-1]] = position
        elif text[stack[-1]] == "[":
            if token == "," and text[match.start() - 1] in "\"'”’]}0123456789":
                whole[stack[-1]] = match.start()
            elif len(token) > 1 and token.endswith('"'):
                whole[stack[-1]] = position
    for place, start in enumerate(stack):
        lists = [i for i in range(place, len(stack)) if text[stack[i]] == "["]
        chain = stack[place : lists[0] + 1 if lists else len(stack)]
        while chain and chain[-1] not in whole:
            chain.pop()
        if chain and _LIKE_JSON.match(text, start):
            closers = "".join("]" if text[i] == "[" else "}" for i in reversed(chain))
            spans = [(*span[:4], span[1] < start) for span in spans]
            spans.append((start + 0.5, start, whole[chain[-1]], closers, True))
            break
    return sorted(spans, key=lambda span: (-span[0], span[1]))
