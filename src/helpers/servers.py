"""Requests on their way to a server: a hard budget, and ever plainer forms for what it refuses."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pandas as pd

from helpers.replies import Body
from helpers.settings import Settings, SettingsError

NEVER_REACHED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
ANSWER_LOST = {408, 502, 504, 524}  # somebody on the way gave up, the server may have gone on
QUOTA = r"insufficient_quota|quota|billing|credits?\b|(daily|monthly|usage) limit|payment"
LETTERS = "x-letters"  # the header with the number of candidates; it is not sent
FORMS = 4
"""As asked; without sampling options and with any JSON object; one plain message; the same with
the older name of the limit."""


def tightened(body: Body, letters: str | None, *, texts: bool = False) -> Body:
    """Return a request whose JSON schema names the letters and their number.

    ``texts`` bounds texts and other lists too, which not every server takes; without it a small
    model repeats itself without end.
    """
    labels = [chr(65 + i) for i in range(int(letters or 0))]

    def bounded(node: Body) -> Body:
        if node.get("type") == "string" and texts and "enum" not in node:
            return {**node, "maxLength": 200}
        if node.get("type") == "array" and texts and "minItems" not in node:
            return {**node, "maxItems": 5}
        return node

    def lettered(node: Body) -> Body:
        known = node.get("properties", {})
        if "letter" in known:
            known["letter"] = {"type": "string", "enum": labels}
        if "ranking" in known:
            known["ranking"] |= {"minItems": len(labels), "maxItems": len(labels)}
            if known["ranking"]["items"].get("type") == "string":
                known["ranking"]["items"] = {"type": "string", "enum": labels}
        return node

    form = json.dumps(body.get("response_format") or {})
    if 0 < len(labels) <= 26:
        form = json.dumps(json.loads(form, object_hook=lettered))
    form = json.loads(form, object_hook=bounded)
    return {**body, "response_format": form} if form else body


class BudgetExceeded(openai.OpenAIError):
    """The next request could go over the budget; it was not sent."""


class ServerWarning(UserWarning):
    """A server does not take a part of our requests; they are changed for it."""


class Attempt:
    """A request on its way to a server that may refuse parts of it; then a plainer form is sent."""

    def __init__(
        self, settings: Settings, forms: dict[tuple[str, str], int], request: httpx2.Request
    ) -> None:
        """``forms`` remembers, for all requests of a client, what each (server, model) takes."""
        self.settings, self.asked = settings, json.loads(request.content or b"{}")
        self._forms, self._request = forms, request
        self.place = (server_of(request.url), str(self.asked.get("model", "")))
        self._form = forms.get(self.place, 0)
        self._tight = tightened(self.asked, request.headers.get(LETTERS))

    @property
    def body(self) -> Body:
        """The request as it is sent."""
        return plainer(self._tight, self._form, self.settings.llm_reply_tokens)

    def request(self) -> httpx2.Request:
        """Return the request as it is sent."""
        headers = [
            pair
            for pair in self._request.headers.multi_items()
            if pair[0] not in ("content-length", LETTERS)
        ]
        asked = self._request
        return httpx2.Request(
            "POST", asked.url, headers=headers, json=self.body, extensions=asked.extensions
        )

    def received(self, response: httpx2.Response) -> httpx2.Response:
        """Return a response, read before, without the key in its errors.

        An error in a body of status 200 becomes an error, and the SDK is told not to ask again
        where only money helps.
        """
        body = json_of(response)
        fault = isinstance(body, dict) and body.get("error") and not body.get("choices")
        if response.is_success and not fault:
            return httpx2.Response(200, content=response.content, request=self._request)
        status, headers = 400 if fault and response.is_success else response.status_code, {}
        if "retry-after" in response.headers:
            headers["retry-after"] = response.headers["retry-after"]
        if no_quota(status, response.text):
            headers["x-should-retry"] = "false"
        text = self.settings.scrub(response.text)
        return httpx2.Response(status, headers=headers, content=text, request=self._request)

    def again(self, response: httpx2.Response) -> bool:
        """Whether to send the next plainer form in place of the one that was refused."""
        known, text = self._forms.get(self.place, 0), response.text.lower()
        if response.is_success and self._form > known:
            self._forms[self.place] = self._form
            name = self.place[1]
            warnings.warn(
                f"{name} refuses parts of our requests and gets plainer ones.", ServerWarning, 2
            )
        said = response.status_code == 500 and re.search("template|role|format|schema", text)
        refused = said or (response.status_code in (400, 415, 422, 501) and "context" not in text)
        if not refused or no_quota(response.status_code, text) or self._form == FORMS - 1:
            return False
        self._form += 1
        return True


def server_of(url: httpx2.URL) -> str:
    """Return the name under which the replies of a server are stored."""
    return f"{url.host}:{url.port or ''}"


def no_quota(status: int, text: str) -> bool:
    """Whether an error says that money is spent, which no waiting mends."""
    waits = re.search(r"(retry|again) (in|after) \d", text, re.IGNORECASE)
    spent = status in (400, 403, 429) and re.search(QUOTA, text, re.IGNORECASE)
    return status == 402 or bool(spent and not waits)


def plainer(body: Body, form: int, reply_tokens: int) -> Body:
    """Return a request in one of the :data:`FORMS`; a schema then stands in the prompt."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or reply_tokens
    if "messages" not in body or form == 0:
        given = "input" in body or "max_tokens" in body
        return body if given else {**body, "max_completion_tokens": limit}
    kept = {
        name: body[name] for name in ("model", "tools", "logprobs", "top_logprobs") if name in body
    }
    messages = [dict(message) for message in body["messages"]]
    if form > 1:
        kept = {"model": body.get("model")}
        messages = [{"role": "user", "content": "\n\n".join(str(m["content"]) for m in messages)}]
    if schema := ((body.get("response_format") or {}).get("json_schema") or {}).get("schema"):
        wanted = json.dumps(schema, ensure_ascii=False)
        messages[-1]["content"] += f"\n\nAnswer only with JSON that fits this schema:\n{wanted}"
        kept |= {"response_format": {"type": "json_object"}} if form == 1 else {}
    name = "max_tokens" if form == FORMS - 1 else "max_completion_tokens"
    return {**kept, "messages": messages, name: limit}


def estimate_tokens(body: Body) -> int:
    """Estimate the prompt tokens of a request: one per 4 characters, 4 more per message."""
    messages = body.get("messages") or []
    texts = [message.get("content") or "" for message in messages] + [body.get("input") or ""]
    texts += [json.dumps(body["response_format"])] if body.get("response_format") else []
    return -(-sum(len(str(text)) for text in texts) // 4) + 4 * len(messages)


def completion_limit(body: Body) -> int:
    """Return the most completion tokens a request may take: its limit times its choices."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or Settings.llm_reply_tokens
    return 0 if "input" in body else int(limit) * int(body.get("n") or 1)


def json_of(response: httpx2.Response) -> Any:
    """Return what a response holds, ``None`` where it is no JSON."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def answer_of(response: httpx2.Response | None) -> Body | None:
    """Return the JSON of a completion or of embeddings, ``None`` for any other response."""
    body = json_of(response) if response is not None and response.is_success else None
    known = isinstance(body, dict) and isinstance(body.get("choices", body.get("data")), list)
    return body if known else None


@dataclass
class Passage:
    """What became of a request that a budget let through."""

    sent: bool = False
    response: httpx2.Response | None = None


@dataclass
class Budget:
    """A hard limit for live requests, in tokens and, where prices are known, US dollars.

    Prices are dollars per million tokens. Room is set aside before a request is sent, so that
    parallel ones cannot exceed the limit together; then what the server reports is counted, else an
    estimate, and for an answer that was lost all that was set aside. Until the first answer is
    there requests travel alone: it shows whether the server keeps to the limit it is sent.
    """

    max_tokens: int = 200_000
    max_usd: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    spent_tokens: int = 0
    spent_usd: float = 0.0
    _room: threading.Condition = field(default_factory=threading.Condition, repr=False)
    _under_way: int = field(default=0, repr=False)
    _longest: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse a limit in dollars without prices: it could not be kept."""
        if self.max_usd is not None and None in (self.price_in, self.price_out):
            raise SettingsError("LLM_BUDGET_USD needs LLM_PRICE_IN and LLM_PRICE_OUT.")

    @classmethod
    def of(cls, settings: Settings) -> Budget:
        """Return the budget that the environment sets."""
        limits = settings.llm_max_tokens, settings.llm_budget_usd
        return cls(*limits, settings.llm_price_in, settings.llm_price_out)

    def usd(self, tokens_in: int, tokens_out: int) -> float:
        """Return the price in US dollars, 0 where prices are unknown."""
        return (tokens_in * (self.price_in or 0) + tokens_out * (self.price_out or 0)) / 1e6

    def reserve(self, body: Body) -> tuple[int, float] | None:
        """Set tokens and dollars aside; ``None`` while others under way may give room back.

        Raises:
            BudgetExceeded: the request could go over the limit.
        """
        tokens_in, tokens_out = estimate_tokens(body), completion_limit(body)
        tokens_out = max(tokens_out, self._longest or 0)
        tokens, usd = tokens_in + tokens_out, self.usd(tokens_in, tokens_out)
        with self._room:
            if self._longest is None and self._under_way:
                return None
            dollars = self.max_usd is not None and self.spent_usd + usd > self.max_usd
            if dollars or self.spent_tokens + tokens > self.max_tokens:
                if self._under_way:
                    return None
                name, limit = "LLM_MAX_TOKENS", f"{self.max_tokens} tokens"
                if dollars:
                    name, limit = "LLM_BUDGET_USD", f"${self.max_usd}"
                raise BudgetExceeded(
                    f"Not sent: {self.spent_tokens} tokens (${self.spent_usd:.4f}) are spent, this "
                    f"request may take {tokens} (${usd:.4f}), the limit {name} is {limit}: raise "
                    "it, or lower LLM_REPLY_TOKENS."
                )
            self.spent_tokens += tokens
            self.spent_usd += usd
            self._under_way += 1
            return tokens, usd

    def wait(self, body: Body) -> tuple[int, float]:
        """Return what :meth:`reserve` gives, once there is room."""
        with self._room:
            while (reserved := self.reserve(body)) is None:
                self._room.wait()
            return reserved

    @contextlib.contextmanager
    def passage(self, reserved: tuple[int, float], body: Body) -> Iterator[Passage]:
        """Count what an admitted request took when the block ends, however it ends."""
        passage = Passage()
        try:
            yield passage
        except NEVER_REACHED:
            passage.sent = False
            raise
        finally:
            response, answer = passage.response, answer_of(passage.response)
            lost = response is None or response.is_success or response.status_code in ANSWER_LOST
            tokens_in = tokens_out = 0
            if answer is not None:
                usage = answer.get("usage") or {}
                tokens_in = usage.get("prompt_tokens") or estimate_tokens(body)
                written = 0 if "input" in body else len(json.dumps(answer.get("choices"))) // 4
                # Some servers count what a model thinks in the total alone.
                thought = (usage.get("total_tokens") or 0) - tokens_in
                tokens_out = max(usage.get("completion_tokens") or 0, thought) if usage else written
            with self._room:
                self._under_way -= 1
                if answer is not None:
                    beyond = tokens_out if tokens_out > completion_limit(body) else 0
                    self._longest = max(self._longest or 0, beyond)
                if answer is not None or not (passage.sent and lost):
                    self.spent_tokens += tokens_in + tokens_out - reserved[0]
                    self.spent_usd += self.usd(tokens_in, tokens_out) - reserved[1]
                self._room.notify_all()


def preview(bodies: Iterable[Body], settings: Settings | None = None) -> pd.Series:
    """Say what a set of requests would take live, before any is sent; tokens are estimates."""
    settings, bodies = settings or Settings.from_env(), list(bodies)
    budget, tokens_in = Budget.of(settings), sum(map(estimate_tokens, bodies))
    limits = ({"max_tokens": settings.llm_reply_tokens, **body} for body in bodies)
    tokens_out = sum(map(completion_limit, limits))
    return pd.Series(
        {
            "requests": len(bodies),
            "prompt tokens (estimated)": tokens_in,
            "completion tokens (at most)": tokens_out,
            "cost (US dollars, at most)": "unknown"
            if budget.price_in is None
            else f"{budget.usd(tokens_in, tokens_out):.4f}",
            "token limit": settings.llm_max_tokens,
        }
    )
