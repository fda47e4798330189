"""A hard limit for what live requests may spend, and what they would take before they are sent."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
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
class Budget:
    """A hard limit for live requests, in tokens and, where prices are known, US dollars.

    Prices are dollars per million tokens. Room is set aside before a request is sent; then what the
    server reports is counted, else an estimate, and for a lost answer all that was set aside.
    """

    max_tokens: int = 200_000
    max_usd: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    spent_tokens: int = 0
    spent_usd: float = 0.0
    _room: threading.Condition = field(default_factory=threading.Condition, repr=False)
    _under_way: int = field(default=0, repr=False)

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

    def _count(self, tokens_in: int, tokens_out: int) -> None:
        self.spent_tokens += tokens_in + tokens_out
        self.spent_usd += self.usd(tokens_in, tokens_out)

    def _reserve(self, tokens_in: int, tokens_out: int) -> None:
        """Set room aside, once the requests under way leave some or none is left to wait for."""
        tokens, usd = tokens_in + tokens_out, self.usd(tokens_in, tokens_out)

        def over() -> str:
            if self.max_usd is not None and self.spent_usd + usd > self.max_usd:
                return f"LLM_BUDGET_USD is ${self.max_usd}"
            full = self.spent_tokens + tokens > self.max_tokens
            return f"LLM_MAX_TOKENS is {self.max_tokens} tokens" if full else ""

        with self._room:
            self._room.wait_for(lambda: not (self._under_way and over()))
            if limit := over():
                raise BudgetExceeded(
                    f"Not sent: {self.spent_tokens} tokens (${self.spent_usd:.4f}) are spent, this "
                    f"request may take {tokens} (${usd:.4f}), the limit {limit}: raise it, or "
                    "lower LLM_REPLY_TOKENS."
                )
            self._count(tokens_in, tokens_out)
            self._under_way += 1

    def spend(self, body: Body, send: Callable[[], httpx2.Response]) -> httpx2.Response:
        """Send a request when there is room, and count what it took.

        Raises:
            BudgetExceeded: the request could go over the limit.
        """
        asked = took = estimate_tokens(body), completion_limit(body)
        self._reserve(*asked)
        try:
            response = send()
            if (answer := answer_of(response)) is not None:
                usage = answer.get("usage") or {}
                tokens_in = usage.get("prompt_tokens") or asked[0]
                written = 0 if "input" in body else len(json.dumps(answer.get("choices"))) // 4
                # Some servers count what a model thinks in the total alone.
                thought = (usage.get("total_tokens") or 0) - tokens_in
                counted = max(usage.get("completion_tokens") or 0, thought)
                took = tokens_in, counted if usage else written
            elif not response.is_success and response.status_code not in ANSWER_LOST:
                took = 0, 0
            return response
        except NEVER_REACHED:
            took = 0, 0
            raise
        finally:
            with self._room:
                self._count(took[0] - asked[0], took[1] - asked[1])
                self._under_way -= 1
                self._room.notify_all()


def preview(bodies: Iterable[Body], settings: Settings | None = None) -> pd.Series:
    """Say what a set of requests would take live, before any is sent; tokens are estimates."""
    settings, bodies = settings or Settings.from_env(), list(bodies)
    budget, tokens_in = Budget.of(settings), sum(map(estimate_tokens, bodies))
    limits = ({"max_tokens": settings.llm_reply_tokens, **body} for body in bodies)
    tokens_out = sum(map(completion_limit, limits))
    cost = "unknown" if budget.price_in is None else f"{budget.usd(tokens_in, tokens_out):.4f}"
    return pd.Series(
        {
            "requests": len(bodies),
            "prompt tokens (estimated)": tokens_in,
            "completion tokens (at most)": tokens_out,
            "cost (US dollars, at most)": cost,
            "token limit": settings.llm_max_tokens,
        }
    )
