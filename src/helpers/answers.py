"""What an LLM's answer holds: a fault in one sentence, or text and the value that is read from it.

Drafts, fences, prose and unknown keys are dropped; the last value of the schema's shape wins.
"""

import contextlib
import json
import re
from dataclasses import dataclass
from typing import Any

import json_repair
from jsonschema import Draft202012Validator
from openai.types.chat import ChatCompletion
from pydantic import BaseModel

Body = dict[str, Any]  # of a request or a response
MAX_CHARACTERS, MAX_DAMAGED, MAX_VALUES = 50_000, 8000, 50  # so that a hostile text takes no time
_DRAFT = re.compile(r"\A.*[<[]/think\w*[]>]|[<[]think\w*[]>].*", re.DOTALL | re.IGNORECASE)
_JSON = re.compile(r"""\{\s*\}|\{\s*["'“]?\w+["'”]?\s*:|\[\s*["'“{\[\d]""")  # the rest is prose
_REPEATED = re.compile(r"(.{1,80}?)\1{5,}+\W*+\w{0,80}+$", re.DOTALL)


@dataclass(frozen=True)
class Outcome:
    """An answer or the reason why there is none.

    ``kind`` is ok, unreadable, or one of :func:`outcome_of` and of :data:`helpers.llm.KINDS`;
    ``source`` is live, local, recorded (committed) or stored; ``value`` was read from the text.
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
            return f"LLM reply, {self.source}, by {self.model or 'no name'}"
        return f"no usable LLM reply ({self.kind}): {self.why}"


def read(text: str | None, schema: type[BaseModel]) -> Outcome:
    """Read a value of a pydantic class from a text, or say why it is ``unreadable``."""
    final = _DRAFT.sub("", text or "").strip()
    why = "the answer holds no JSON" if final else "the answer is empty, or stops inside its draft"
    for value, repairs in _values(final, schema.model_json_schema()):
        try:
            found = schema.model_validate(value, extra="ignore")
            return Outcome(text, "ok", value=found, repairs=repairs)
        except ValueError as error:  # pydantic puts the answer's own words behind the type
            said = str(error).partition(" [type=")[0].split()
            why = f"the answer's JSON does not fit: {' '.join(said)[:150]}"
    return Outcome(text, "unreadable", why)


def _values(text: str, shape: Body) -> list[tuple[Any, int]]:
    """Return the JSON values of a text, the last first, lists last; the last may be repaired."""
    text, fields, found = text[-MAX_CHARACTERS:], list(shape.get("properties", ())), []
    match = _JSON.search(text)
    while match:
        try:
            value, end = json.JSONDecoder().raw_decode(text, match.start())
        except (ValueError, RecursionError):
            damaged = text[match.start() :].partition("```")[0][:MAX_DAMAGED]
            with contextlib.suppress(ValueError, RecursionError):
                found.append((json_repair.loads(damaged, skip_json_loads=True), 1))
            break
        found.append((value, 0))
        match = _JSON.search(text, end)
    found = sorted(found[: -MAX_VALUES - 1 : -1], key=lambda each: isinstance(each[0], list))
    if len(fields) == 1:  # a list may stand for the object whose only field it is
        found = [({fields[0]: v} if isinstance(v, list) else v, n) for v, n in found]
    return found


def estimate_tokens(body: Body) -> int:
    """Estimate the prompt tokens of a request: one per 4 characters, 4 more per message."""
    messages, form = body.get("messages") or [], body.get("response_format")
    texts = [message.get("content") or "" for message in messages]
    texts += [body.get("input") or "", json.dumps(form) if form else ""]
    return -(-sum(len(str(text)) for text in texts) // 4) + 4 * len(messages)


def outcome_of(response: Any, source: str = "", messages: list[Body] | None = None) -> Outcome:
    """Return what a response to ``messages`` says, JSON or its text; no completion is a fault."""
    try:
        response = json.loads(response) if isinstance(response, str) else response
        choice, model = response["choices"][0], str(response.get("model") or "")
        message, finish = choice["message"], choice.get("finish_reason")
        text, refusal = message.get("content"), message.get("refusal")
        if isinstance(text, list):  # in parts
            text = "".join(part.get("text") or "" for part in text)
        logprobs = choice.get("logprobs")  # of an answer in one token, which needs no text
        taken = int((response.get("usage") or {}).get("prompt_tokens") or 0)
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError, OverflowError):
        why = f"no chat completion, check OPENAI_BASE_URL: {str(response)[:200]!r}"
        return Outcome(None, "malformed", why, source=source)
    text, kind, why = None if text is None else str(text), "ok", ""
    estimate = estimate_tokens({"messages": messages})
    if refusal or finish == "content_filter":
        text, kind, why = None, "refusal", f"the LLM refused: {refusal or 'its content filter'}"
    elif finish == "length" and _REPEATED.search((text or "")[-2000:]):
        kind, why = "repetition", "the LLM repeats itself without end"
    elif not (text or "").strip() and not message.get("tool_calls") and not logprobs:
        kind, why = "empty", "the answer is empty"
    elif estimate > 1000 and 0 < taken < estimate / 2:  # cut by some servers without a word
        kind = "prompt_cut"
        why = f"the server read {taken} of about {estimate} tokens: raise its context window"
    elif finish == "length" and not logprobs:
        kind, why = "truncated", "the answer was cut at its limit: raise LLM_REPLY_TOKENS"
    return Outcome(text, kind, why, ChatCompletion.construct(**response), None, 0, source, model)


def usable(body: Body, response: Any) -> str:
    """Return why what answers a request may not be stored, or "" where it may."""
    outcome = outcome_of(response, messages=body.get("messages"))
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    if not schema or outcome.kind != "ok":
        return outcome.why
    validator = Draft202012Validator(schema)
    for value, _ in _values(_DRAFT.sub("", outcome.text or ""), schema):
        if {f.validator for f in validator.iter_errors(value)} <= {"additionalProperties"}:
            return ""
    return "the answer does not fit its schema"
