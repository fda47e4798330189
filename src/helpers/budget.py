"""A hard limit for what live requests may spend, and what they would take before they are sent."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import httpx2
import openai
import pandas as pd

from helpers.replies import Body
from helpers.servers import answer_of
from helpers.settings import Settings, SettingsError

NEVER_REACHED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
ANSWER_LOST = {408, 502, 504, 524}  # somebody on the way gave up, the server may have gone on


class BudgetExceeded(openai.OpenAIError):
    """The next request could go over the budget; it was not sent."""


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

    def _reserve(self, body: Body) -> tuple[int, float]:
        """Set tokens and dollars aside, once those under way leave room or nobody else is there."""
        tokens_in, limit = estimate_tokens(body), completion_limit(body)
        with self._room:
            while True:
                tokens_out = max(limit, self._longest or 0)
                tokens, usd = tokens_in + tokens_out, self.usd(tokens_in, tokens_out)
                dollars = self.max_usd is not None and self.spent_usd + usd > self.max_usd
                full = dollars or self.spent_tokens + tokens > self.max_tokens
                if not self._under_way or not (full or self._longest is None):
                    break
                self._room.wait()
            if full:
                name, most = "LLM_MAX_TOKENS", f"{self.max_tokens} tokens"
                if dollars:
                    name, most = "LLM_BUDGET_USD", f"${self.max_usd}"
                raise BudgetExceeded(
                    f"Not sent: {self.spent_tokens} tokens (${self.spent_usd:.4f}) are spent, this "
                    f"request may take {tokens} (${usd:.4f}), the limit {name} is {most}: raise "
                    "it, or lower LLM_REPLY_TOKENS."
                )
            self.spent_tokens += tokens
            self.spent_usd += usd
            self._under_way += 1
            return tokens, usd

    @contextlib.contextmanager
    def passage(self, body: Body) -> Iterator[Passage]:
        """Let a request pass when there is room; count what it took however the block ends.

        Raises:
            BudgetExceeded: the request could go over the limit.
        """
        reserved, passage = self._reserve(body), Passage()
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
