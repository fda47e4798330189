"""What came of asking an LLM: an answer, or one sentence with the server's own words."""

from __future__ import annotations

import html
import re
import textwrap
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
from openai.types.chat import ChatCompletion

from helpers import answers
from helpers.budgets import BudgetExceeded, estimate_tokens, json_of, token_count
from helpers.replies import Body

CUT_FROM = 1000  # estimated prompt tokens from which on the server's count is compared with them

FAULTS = (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError)
"""What a request to a server can raise; a fault of the program is none of them."""

_WINDOW = r"(maximum|max|exceed\w*).{0,30}context|context.{0,15}(length|window|size)|too large"
_QUOTA = (
    r"insufficient_quota|exceeded your current quota|quota (was |is |has been )?exceeded|billing|"
    r"(daily|monthly|spend(ing)?|usage) limit|insufficient.{0,10}(balance|credit|fund)|"
    r"(out of|no|enough|more) credits|payment required"
)
_HINTS = {
    401: "check OPENAI_API_KEY", 403: "check OPENAI_API_KEY and what it may use",
    404: "check LLM_MODEL and OPENAI_BASE_URL", 405: "check OPENAI_BASE_URL",
    429: "wait, or ask for less at a time",
}  # fmt: skip


class NoReply(openai.OpenAIError):
    """No server is configured and no reply to this request is stored."""

    def __init__(self, key: str, missing: str = "") -> None:
        """Remember the request's key; ``missing`` names what an LLM lacks to be asked."""
        self.key = key
        names = missing or "OPENAI_BASE_URL, OPENAI_API_KEY and LLM_MODEL"
        super().__init__(
            f"No reply to this request is recorded, and no LLM is configured: set {names} "
            "(see README.md); the request was noted as pending."
        )


@dataclass(frozen=True)
class Outcome:
    """An answer or the reason why there is none; ``kind`` is ``ok`` or the name of the fault.

    ``text`` is also there for ``truncated``, ``unreadable`` and ``prompt_cut``. ``why`` is one
    sentence with the server's own words. ``value`` is the answer as an instance of the schema that
    was asked for, ``repairs`` the small damage that was mended to read it. ``source`` is ``live``,
    ``recorded`` (committed) or ``stored`` (an earlier live reply), ``model`` who the reply says
    made it.
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
    """Return what an answer says; ``body`` is what was asked, ``response`` the answer's JSON.

    Of several choices the first usable one counts. Never raises, whatever the answer holds.
    """
    response = one_text(response) if isinstance(response, dict) else {}
    choices = response.get("choices")
    read = [_choice(body, choice) for choice in choices] if isinstance(choices, list) else []
    if all(kind == "malformed" for _, kind, _ in read):
        why = "the server's answer is not a chat completion: check OPENAI_BASE_URL"
        return Outcome(None, "malformed", why, source=source)
    text, kind, why = next((choice for choice in read if choice[1] == "ok"), read[0])
    if kind in ("ok", "truncated") and (cut := _cut_prompt(body, response)):
        kind, why = "prompt_cut", cut
    completion = ChatCompletion.construct(**response)
    model = str(response.get("model") or "")
    return Outcome(text, kind, why, completion, source=source, model=model)


def _choice(body: Body, choice: Any) -> tuple[str | None, str, str]:
    """Return the text, kind and reason of one choice."""
    message = choice.get("message") if isinstance(choice, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(text, str | None):
        return None, "malformed", ""
    finish = choice.get("finish_reason")
    if message.get("refusal"):
        return None, "refusal", f"the LLM refused: {_short(str(message['refusal']))}"
    if finish == "content_filter":
        return None, "refusal", "the server's content filter stopped the answer"
    if finish == "length":
        why = "the answer was cut at its limit: raise LLM_REPLY_TOKENS or the request's own limit"
        return text, "truncated", why
    called = body.get("tools") and (message.get("tool_calls") or message.get("function_call"))
    if called or (text or "").strip():
        return text, "ok", ""
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    return (
        None,
        "empty",
        "the answer is empty" + (", the LLM gave only its reasoning" if reasoning else ""),
    )


def _cut_prompt(body: Body, response: Body) -> str:
    """Return why the prompt must have been cut by the server's window, or ""."""
    usage = response.get("usage") or {}
    count = token_count(usage, "prompt_tokens") or 0
    cached = token_count(usage.get("prompt_tokens_details"), "cached_tokens") or 0
    estimate = estimate_tokens({"messages": body.get("messages")})  # not all count the schema
    if not count or estimate < CUT_FROM or count + cached >= estimate / 2:
        return ""
    cut = f"the server read {count} tokens of a prompt of about {estimate}: its window cut it, "
    return cut + "raise the server's context window"


def usable(body: Body, response: Body) -> str:
    """Return "" if a reply may be stored: complete, not empty, of its schema; else why not."""
    if "input" in body:
        return "" if response.get("data") else "there are no embeddings"
    outcome = outcome_of(body, response)
    if body.get("logprobs") and outcome.response and outcome.kind in ("truncated", "empty"):
        # One token's alternatives are all that was asked for.
        return "" if getattr(outcome.response.choices[0], "logprobs", None) else outcome.why
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    if outcome.kind == "ok" and schema and outcome.text:
        return answers.read(outcome.text, schema).why
    return outcome.why


def one_text(response: Body) -> Body:
    """Return a completion in which text that came in parts is one text."""
    choices = response.get("choices")
    if not isinstance(choices, list):
        return response
    joined = []
    for choice in choices:
        message = choice.get("message") if isinstance(choice, dict) else None
        if isinstance(message, dict) and isinstance(message.get("content"), list):
            parts = [part for part in message["content"] if isinstance(part, dict)]
            content, refused = (
                "".join(part[name] for part in parts if isinstance(part.get(name), str)) or None
                for name in ("text", "refusal")
            )
            refused = message.get("refusal") or refused
            choice = {**choice, "message": {**message, "content": content, "refusal": refused}}
        joined.append(choice)
    return {**response, "choices": joined}


def fault_of(error: Exception) -> Outcome:
    """Return the outcome that an exception of :data:`FAULTS` stands for."""
    kind, why = "malformed", f"the request could not be made: {error}"
    match error:
        case NoReply():
            kind, why = "no_reply", str(error)
        case BudgetExceeded():
            kind, why = "budget", str(error)
        case openai.APITimeoutError():
            kind = "timeout"
            why = "the server did not answer in time: raise LLM_TIMEOUT_S or ask for less"
        case openai.APIConnectionError():
            kind = "connection"
            why = f"the connection failed ({error.__cause__ or error}): check OPENAI_BASE_URL"
        case openai.APIStatusError():
            return _status_fault(error.response)
        case httpx2.HTTPError() | httpx2.StreamError():
            kind, why = "connection", "the connection broke while the answer was read"
    return Outcome(None, kind, why)


def _status_fault(response: httpx2.Response) -> Outcome:
    status, text, server_words = response.status_code, response.text, words(response.text)
    kind = "server_error" if status >= 500 else "rejected"
    hint = "try again later" if status >= 500 else "check LLM_MODEL and what is asked"
    hint = _HINTS.get(status, hint)
    if no_quota(status, text):
        kind, hint = "quota", "look at the plan and the billing of your account"
    elif status == 429:
        kind = "rate_limited"
    elif "content_filter" in text:
        return Outcome(None, "refusal", f"the server's content filter refused: {server_words}")
    if kind != "quota" and (status == 413 or re.search(_WINDOW, text, re.IGNORECASE)):
        hint = "make the prompt shorter"
    status = response.headers.get("x-reply-status", status)
    answer = f"{status}: {server_words}" if server_words else status
    return Outcome(None, kind, f"the server answered {answer}; {hint}")


def no_quota(status: int, text: str) -> bool:
    """Whether an error says that money is spent, which no waiting mends."""
    if status == 402:
        return True
    waits = re.search(r"retry (in|after) \d|try again in \d", text, re.IGNORECASE)
    return status in (400, 403, 429) and not waits and bool(re.search(_QUOTA, text, re.IGNORECASE))


def said(text: str) -> tuple[str, str]:
    """Return what an error body says in any of the usual forms: the parameters named, the words."""
    body = json_of(text)
    if isinstance(body, list) and body:
        body = body[0]  # as Google's servers wrap it
    if not isinstance(body, dict):
        if title := re.search(r"<title[^>]*>(.*?)</title>", text, re.DOTALL | re.IGNORECASE):
            text = title[1]
        return "", html.unescape(re.sub(r"<[^>]+>", " ", text))
    error = body.get("error")
    if isinstance(error, str) and error:
        return "", error
    error = error if isinstance(error, dict) else body
    names = [error["param"]] if isinstance(error.get("param"), str) else []
    forms = ("message", "detail", "msg", "errors", "title", "type", "code")
    message = next((error[form] for form in forms if error.get(form)), "")
    if isinstance(message, dict):
        message = next((message[form] for form in forms if message.get(form)), message)
    if isinstance(message, list):  # of FastAPI: where, and what
        rows = [row if isinstance(row, dict) else {"msg": row} for row in message]
        places = [".".join(str(p) for p in row.get("loc") or () if p != "body") for row in rows]
        names += places
        texts = [str(row.get("msg") or row.get("message") or row) for row in rows]
        message = "; ".join(
            ": ".join(filter(None, pair)) for pair in zip(places, texts, strict=True)
        )
    return " ".join(f"'{name}'" for name in names if name), str(message)


def words(text: str) -> str:
    """Return the words of an error body, shortened."""
    return _short(said(text)[1]).rstrip(".")


def _short(text: str) -> str:
    return textwrap.shorten(text, 200, placeholder=" ...")
