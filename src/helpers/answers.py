"""What an LLM's answer holds: a fault in one sentence, or text and the value that is read from it.

Dropped: a draft before ``</think>``, fences, prose, keys that the schema does not know. Damaged
JSON is repaired once, which is counted; the last value of the schema's shape wins.
"""

import contextlib
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import json_repair
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

Body = dict[str, Any]  # of a request or a response
MAX_CHARACTERS, MAX_DAMAGED, MAX_VALUES = 50_000, 8000, 50  # so that a hostile text takes no time
_DRAFT = re.compile(r"</?(?:think|thinking|reasoning)>|\[/?THINK\]")
_JSON = re.compile(r"""\{\s*\}|\{\s*["'“]?\w+["'”]?\s*:|\[\s*["'“{\[\d]""")  # the rest is prose
_REPEATED = re.compile(r"(.{1,80}?)\1{5,}+\W*+\w{0,80}+$", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """An answer or the reason why there is none; ``kind`` is ``ok`` or the name of the fault.

    ``value`` is the answer as the schema has it that was asked for, ``repairs`` the small damage
    mended to read it. ``source`` is ``live``, ``local``, ``recorded`` (committed) or ``stored``.
    """

    text: str | None
    kind: str
    why: str = ""
    response: ChatCompletion | None = None
    value: Any = None
    repairs: int = 0
    source: str = ""
    model: str = ""

    def describe(self) -> str:
        """Return one line: where the reply came from, or why there is none that is usable."""
        if self.kind == "ok":
            return f"LLM reply, {self.source or 'of unknown source'}, by {self.model or 'no name'}"
        made = f" by {self.model}" if self.model else ""
        return f"no usable LLM reply{made} ({self.kind}): {self.why or 'no reason is given'}"


def read(text: str | None, schema: type[BaseModel] | Body) -> Outcome:
    """Read a value (of a pydantic class, or JSON) from a text, or say why it is ``unreadable``."""
    *_, last = [None, *_DRAFT.finditer(text or "")]
    if last and "/" not in last[0]:
        return Outcome(text, "unreadable", "the answer stops inside its draft")
    final = (text or "")[last.end() if last else 0 :].strip()
    why = "the answer holds no JSON" if final else "the answer is empty"
    values = reversed(list(_values(final[-MAX_CHARACTERS:])))
    # A list may stand for the object whose only field it is, but not beside that object.
    for value, repairs in sorted(values, key=lambda found: isinstance(found[0], list)):
        try:
            return Outcome(text, "ok", value=_fit(value, schema), repairs=repairs)
        except ValueError as error:
            lines = str(error).splitlines()  # pydantic: a title, where, what [and the value]
            said = " ".join(lines[1:3] or lines).partition(" [type=")[0]
            why = textwrap.shorten(f"the answer's JSON does not fit: {said}", 200)
    return Outcome(text, "unreadable", why)


def _values(text: str) -> Iterator[tuple[Any, int]]:
    """Yield the JSON values of a text in their order, the last one repaired if it is damaged."""
    match, found = _JSON.search(text), 0
    with contextlib.suppress(ValueError, RecursionError):
        while match and (found := found + 1) <= MAX_VALUES:
            try:
                value, end = json.JSONDecoder().raw_decode(text, match.start())
                yield value, 0
                match = _JSON.search(text, end)
            except ValueError:
                damaged, match = text[match.start() :].partition("```")[0], None
                if len(damaged) <= MAX_DAMAGED:
                    yield json_repair.loads(damaged, skip_json_loads=True), 1


def _fit(value: Any, schema: type[BaseModel] | Body) -> Any:
    """Return a JSON value as the schema has it; a ``ValueError`` says what does not fit."""
    shape = schema if isinstance(schema, dict) else schema.model_json_schema()
    fields = list(shape.get("properties", ()))
    value = {fields[0]: value} if isinstance(value, list) and len(fields) == 1 else value
    if isinstance(schema, type):
        return schema.model_validate(value, extra="ignore")
    faults = Draft202012Validator(shape).iter_errors(value)
    fault = best_match(fault for fault in faults if fault.validator != "additionalProperties")
    if fault is not None:
        raise ValueError(f"{fault.json_path} {fault.message}")
    return value


def estimate_tokens(body: Body) -> int:
    """Estimate the prompt tokens of a request: one per 4 characters, 4 more per message."""
    messages = body.get("messages") or []
    texts = [message.get("content") or "" for message in messages] + [body.get("input") or ""]
    texts += [json.dumps(body["response_format"])] if body.get("response_format") else []
    return -(-sum(len(str(text)) for text in texts) // 4) + 4 * len(messages)


def outcome_of(response: Any, source: str = "", body: Body | None = None) -> Outcome:
    """Return what the JSON that answers ``body`` says; what is no completion is a fault too."""
    try:
        choice, model = response["choices"][0], str(response.get("model") or "")
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        if isinstance(text, list):  # in parts
            text = "".join(part.get("text") or "" for part in text)
    except (LookupError, TypeError, AttributeError):
        said = shortened(response if isinstance(response, str) else json.dumps(response))
        why = f"the server's answer is no chat completion, but {said!r}: check OPENAI_BASE_URL"
        return Outcome(None, "malformed", why, source=source)
    text, kind, why = None if text is None else str(text), "ok", ""
    if refusal or finish == "content_filter":
        text, kind, why = None, "refusal", f"the LLM refused: {refusal or 'its content filter'}"
    elif finish == "length" and _REPEATED.search((text or "")[-2000:]):
        kind, why = "repetition", "the LLM repeats itself without end"
    elif finish == "length":
        kind, why = "truncated", "the answer was cut at its limit: raise LLM_REPLY_TOKENS"
    elif not (text or "").strip() and not message.get("tool_calls"):
        kind, why = "empty", "the answer is empty"
    estimate = estimate_tokens({"messages": (body or {}).get("messages")})
    taken = tokens_taken(response, "prompt_tokens")
    if kind in ("ok", "truncated") and estimate > 1000 and 0 < taken < estimate / 2:
        kind = "prompt_cut"  # some servers drop what is beyond their window without a word
        why = f"the server read {taken} of about {estimate} tokens: raise its context window"
    return Outcome(text, kind, why, ChatCompletion.construct(**response), None, 0, source, model)


def tokens_taken(response: Any, kind: str) -> int:
    """Return what the usage in a response's JSON says of a kind of tokens, 0 for no such number."""
    usage = response.get("usage") if isinstance(response, dict) else None
    taken = usage.get(kind) if isinstance(usage, dict) else None
    return max(taken, 0) if isinstance(taken, int) else 0


def usable(body: Body, response: Any) -> str:
    """Return why the JSON that answers a request may not be stored, or "" where it may."""
    outcome = outcome_of(response, body=body)
    if body.get("logprobs") and outcome.kind in ("truncated", "empty"):  # one token was wanted
        return "" if response["choices"][0].get("logprobs") else outcome.why
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    return read(outcome.text, schema).why if schema and outcome.kind == "ok" else outcome.why


def json_of(text: str) -> Any:
    """Return the JSON that a text is, or the text where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def shortened(said: str) -> str:
    """Return what a server said, of the usual forms of an error its message, in 200 characters."""
    found = re.search(r'"(?:message|detail|error)":\s*("(?:[^"\\]|\\.)+")', said)
    with contextlib.suppress(ValueError):  # from an escape that JSON does not know
        said = json.loads(found[1], strict=False) if found else re.sub(r"<[^>]+>", " ", said)
    return textwrap.shorten(said, 200, placeholder=" ...")
