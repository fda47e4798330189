"""What came of asking an LLM: an answer, or one sentence with the server's own words."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
from openai.types.chat import ChatCompletion

from helpers import answers
from helpers.budget import BudgetExceeded, estimate_tokens
from helpers.replies import Body
from helpers.servers import no_quota

FAULTS = (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError)
"""What a request can raise; a fault of the program is none of them."""

HINTS = {
    401: "check OPENAI_API_KEY", 403: "check OPENAI_API_KEY and what it may use",
    404: "check LLM_MODEL and OPENAI_BASE_URL", 413: "make the prompt shorter",
    429: "wait, or ask for less at a time",
}  # fmt: skip


class NoReply(openai.OpenAIError):
    """No server is configured and no reply to this request is stored."""


@dataclass(frozen=True)
class Outcome:
    """An answer or the reason why there is none; ``kind`` is ``ok`` or the name of the fault.

    ``text`` is also there for ``truncated``, ``unreadable`` and ``prompt_cut``. ``value`` is the
    answer as an instance of the schema that was asked for, ``repairs`` the small damage mended to
    read it. ``source`` is ``live``, ``recorded`` (committed) or ``stored`` (an earlier live reply).
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
        if self.kind != "ok":
            made = f" by {self.model}" if self.model else ""
            return f"no usable LLM reply{made} ({self.kind}): {self.why or 'no reason is given'}"
        return f"LLM reply, {self.source or 'of unknown source'}, by {self.model or 'no name'}"


def outcome_of(body: Body, response: Any, source: str = "") -> Outcome:
    """Return what an answer's JSON says; ``body`` is what was asked."""
    try:
        choice, model = response["choices"][0], str(response.get("model") or "")
        message, finish = choice["message"], choice.get("finish_reason")
        text, refused = message.get("content"), message.get("refusal")
        if isinstance(text, list):  # in parts
            text = "".join(part.get("text") or "" for part in text)
        text = text if text is None else str(text)
    except (LookupError, TypeError, AttributeError):
        why = f"the server's answer is no chat completion, but {words(json.dumps(response))!r}"
        return Outcome(None, "malformed", f"{why}: check OPENAI_BASE_URL", source=source)
    kind, why = "ok", ""
    if refused or finish == "content_filter":
        text, kind, why = None, "refusal", f"the LLM refused: {refused or 'its content filter'}"
    elif finish == "length" and re.search(r"(.{1,80}?)\1{5,}\W*\w{0,80}$", text or "", re.DOTALL):
        kind, why = "repetition", "the LLM repeats itself without end"
    elif finish == "length":
        kind, why = "truncated", "the answer was cut at its limit: raise LLM_REPLY_TOKENS"
    elif not (text or "").strip() and not message.get("tool_calls"):
        kind, why = "empty", "the answer is empty"
    read = (response.get("usage") or {}).get("prompt_tokens") or 0
    estimate = estimate_tokens({"messages": body.get("messages")})
    if kind in ("ok", "truncated") and estimate > 1000 and 0 < read < estimate / 2:
        kind = "prompt_cut"
        why = f"the server read {read} of about {estimate} tokens: raise its context window"
    return Outcome(text, kind, why, ChatCompletion.construct(**response), None, 0, source, model)


def usable(body: Body, response: Body) -> str:
    """Return why a reply may not be stored (cut, empty, not of its schema), or ""."""
    if "input" in body:
        return "" if response.get("data") else "there are no embeddings"
    outcome = outcome_of(body, response)
    if body.get("logprobs") and outcome.response and outcome.kind in ("truncated", "empty"):
        # One token's alternatives are all that was asked for.
        return "" if getattr(outcome.response.choices[0], "logprobs", None) else outcome.why
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    if outcome.kind == "ok" and schema:
        return answers.read(outcome.text, schema).why
    return outcome.why


def fault_of(error: Exception) -> Outcome:
    """Return the outcome that one of :data:`FAULTS` stands for."""
    match error:
        case NoReply():
            return Outcome(None, "no_reply", str(error))
        case BudgetExceeded():
            return Outcome(None, "budget", str(error))
        case openai.APITimeoutError():
            why = "the server did not answer in time: raise LLM_TIMEOUT_S or ask for less"
            return Outcome(None, "timeout", why)
        case openai.APIStatusError():
            return _status_fault(error.response.status_code, error.response.text)
        case openai.APIConnectionError() | httpx2.HTTPError() | httpx2.StreamError():
            why = f"the connection failed ({error.__cause__ or error}): check OPENAI_BASE_URL"
            return Outcome(None, "connection", why)
    return Outcome(None, "malformed", f"the request could not be made: {error}")


def _status_fault(status: int, text: str) -> Outcome:
    kind = "server_error" if status >= 500 else "rejected"
    hint = HINTS.get(status, "try again later" if status >= 500 else "check what is asked")
    if no_quota(status, text):
        kind, hint = "quota", "look at the plan and the billing of your account"
    elif status == 429:
        kind = "rate_limited"
    elif re.search(r"context.{0,15}(length|window|size)|maximum context", text, re.IGNORECASE):
        hint = "make the prompt shorter"
    why = f"the server answered {status}: {words(text) or 'nothing'}; {hint}"
    return Outcome(None, kind, why)


def words(text: str) -> str:
    """Return what an error's body says, in any of the usual forms, shortened."""
    said = re.search(r'"(?:message|detail|error)":\s*("(?:[^"\\]|\\.)+")', text)
    text = json.loads(said[1], strict=False) if said else re.sub(r"<[^>]+>", " ", text)
    return textwrap.shorten(text, 200, placeholder=" ...").rstrip(".")
