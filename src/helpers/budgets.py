"""What requests to an LLM may take, in tokens and US dollars, before and after they are sent."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pandas as pd

from helpers.replies import Body
from helpers.settings import Settings, SettingsError

Reservation = tuple[int, float]  # tokens and US dollars set aside for a request

# Faults after which the server cannot have charged for anything.
_NEVER_REACHED = (
    httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError,
    httpx2.UnsupportedProtocol, httpx2.LocalProtocolError,
)  # fmt: skip
_ANSWER_LOST = {408, 502, 504, 524}  # somebody on the way gave up, the server may have gone on


class BudgetExceeded(openai.OpenAIError):
    """The next request could go over the budget; it was not sent."""


def estimate_tokens(body: Body) -> int:
    """Estimate the prompt tokens of a request: a token per 4 characters, 4 more per message.

    That is OpenAI's rule of thumb for English; other scripts take more. The schema counts too.
    """
    messages = body.get("messages") or []
    texts = body.get("input") or body.get("prompt") or []  # of a request for embeddings, or old
    texts = [texts] if isinstance(texts, str) else [*texts]
    texts += [message.get("content") or "" for message in messages]
    texts += [json.dumps(body["response_format"])] if body.get("response_format") else []
    return -(-sum(len(str(text)) for text in texts) // 4) + 4 * len(messages)


def completion_limit(body: Body, otherwise: int = Settings.llm_reply_tokens) -> int:
    """Return the most completion tokens a request may take: its limit times its choices.

    ``otherwise`` is the limit of a request that does not say (``LLM_REPLY_TOKENS``).
    """
    if "input" in body:
        return 0  # embeddings complete nothing
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return int(limit or otherwise) * int(body.get("n") or 1)


def token_count(usage: Any, name: str) -> int | None:
    """Return a count of a server's ``usage``, ``None`` where it gives none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return int(value) if isinstance(value, (int, float)) and value >= 0 else None


def json_of(data: bytes | str) -> Any:
    """Return what a response holds, ``None`` where it is no JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def answer_of(response: httpx2.Response) -> Body | None:
    """Return the JSON of a chat completion or of embeddings, ``None`` for any other response."""
    body = json_of(response.content) if response.is_success else None
    if isinstance(body, dict) and any(isinstance(body.get(n), list) for n in ("choices", "data")):
        return body
    return None


@dataclass
class Passage:
    """What became of a request that a budget let through."""

    sent: bool = False
    response: httpx2.Response | None = None


@dataclass
class Budget:
    """A hard limit for live requests, in tokens and, where prices are known, US dollars.

    Prices are dollars per million tokens. ``spent_tokens`` counts what the server reports, else an
    estimate, and for an answer that was lost all that was set aside. Room is reserved before
    sending, so parallel requests cannot exceed it together. The reservation follows the server:
    the most prompt tokens it counted for each that was estimated, and the longest answer it gave
    beyond the limit it was sent. Until the first answer is there, requests travel one by one.
    """

    max_tokens: int = 200_000
    max_usd: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    spent_tokens: int = 0
    spent_usd: float = 0.0
    estimated: bool = False
    _room: threading.Condition = field(default_factory=threading.Condition, repr=False)
    _under_way: list[Reservation] = field(default_factory=list, repr=False)
    _untried: bool = field(default=True, repr=False)
    _prompt_factor: float = field(default=1.0, repr=False)
    _longest: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        """Refuse a limit in dollars without prices: it could not be kept."""
        if self.max_usd is not None and (self.price_in is None or self.price_out is None):
            raise SettingsError("LLM_BUDGET_USD needs LLM_PRICE_IN and LLM_PRICE_OUT.")

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """Return the price in US dollars, or ``None`` where prices are unknown."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    @property
    def held(self) -> Reservation:
        """What is set aside for requests under way, in tokens and US dollars."""
        with self._room:
            return sum(r[0] for r in self._under_way), sum(r[1] for r in self._under_way)

    def reserve(self, body: Body) -> Reservation:
        """Set room aside for a request.

        Raises:
            BudgetExceeded: it could go over the limit.
        """
        with self._room:
            tokens_in = math.ceil(estimate_tokens(body) * self._prompt_factor)
            tokens_out = completion_limit(body)
            tokens_out = max(tokens_out, self._longest) if tokens_out else 0
            tokens, cost = tokens_in + tokens_out, self.cost(tokens_in, tokens_out) or 0.0
            if self.spent_tokens + tokens > self.max_tokens:
                raise BudgetExceeded(
                    f"Not sent: {self.spent_tokens} tokens are spent, this request may take "
                    f"{tokens}, the limit LLM_MAX_TOKENS is {self.max_tokens}: "
                    "raise it, or lower LLM_REPLY_TOKENS."
                )
            if self.max_usd is not None and self.spent_usd + cost > self.max_usd:
                raise BudgetExceeded(
                    f"Not sent: ${self.spent_usd:.4f} are spent, this request may cost "
                    f"${cost:.4f}, the limit LLM_BUDGET_USD is ${self.max_usd:.4f}."
                )
            self.spent_tokens += tokens
            self.spent_usd += cost
            return tokens, cost

    def admit(self, body: Body) -> Reservation | None:
        """Reserve for a request to be sent now; ``None``: wait for one under way to be settled.

        Raises:
            BudgetExceeded: there is no room, and none will come.
        """
        with self._room:
            if self._untried and self._under_way:
                return None
            try:
                self._under_way.append(self.reserve(body))
            except BudgetExceeded:
                # Requests under way hold the most they can cost and soon give some back.
                if not self._under_way:
                    raise
                return None
            return self._under_way[-1]

    def wait(self, body: Body) -> Reservation:
        """Return what :meth:`admit` gives, once there is room."""
        with self._room:
            while (reserved := self.admit(body)) is None:
                self._room.wait()
            return reserved

    @contextlib.contextmanager
    def passage(self, reserved: Reservation, body: Body) -> Iterator[Passage]:
        """Count what a request of :meth:`admit` took when the block ends, however it ends.

        A refused request takes nothing: what is sent in its place has the same reservation.
        """
        passage, answer, lost = Passage(), None, True
        try:
            yield passage
            if (response := passage.response) is not None:
                answer = answer_of(response)
                charged = response.is_success or response.status_code in _ANSWER_LOST
                lost = answer is None and charged
        except _NEVER_REACHED:
            lost = False
            raise
        finally:
            lost = lost and passage.sent
            with self._room:
                if lost:  # the server may charge for it all the same: the reserve is spent
                    self.estimated = True
                else:
                    self.settle(reserved, body, answer)
                self._under_way.remove(reserved)
                self._untried &= answer is None and not lost
                self._room.notify_all()

    def settle(self, reserved: Reservation, body: Body, response: Body | None) -> None:
        """Replace the reserved room by what was used; ``None`` for a request without an answer."""
        tokens_in = tokens_out = 0
        if response is not None:
            usage, estimate = response.get("usage"), estimate_tokens(body)
            tokens_in = token_count(usage, "prompt_tokens")
            tokens_out = token_count(usage, "completion_tokens")
            if "choices" not in response:
                tokens_out = 0  # embeddings
            elif tokens_in is not None and tokens_out is not None:
                # Some servers count what a model thinks in the total alone.
                tokens_out = max(tokens_out, (token_count(usage, "total_tokens") or 0) - tokens_in)
            if tokens_in is None or tokens_out is None:
                self.estimated, tokens_in = True, estimate
                tokens_out = -(-len(json.dumps(response.get("choices", ""))) // 4)
            self._prompt_factor = max(self._prompt_factor, tokens_in / max(1, estimate))
            if tokens_out > completion_limit(body):
                self._longest = max(self._longest, tokens_out)
        self.spent_tokens += tokens_in + tokens_out - reserved[0]
        self.spent_usd += (self.cost(tokens_in, tokens_out) or 0.0) - reserved[1]


def budget_of(settings: Settings) -> Budget:
    """Return the budget that the environment sets."""
    limits = settings.llm_max_tokens, settings.llm_budget_usd
    return Budget(*limits, settings.llm_price_in, settings.llm_price_out)


def preview(bodies: Iterable[Body], settings: Settings | None = None) -> pd.Series:
    """Say what a set of requests would take live, before any is sent; tokens are estimates."""
    settings = settings or Settings.from_env()
    bodies = list(bodies)
    tokens_in = sum(estimate_tokens(body) for body in bodies)
    tokens_out = sum(completion_limit(body, settings.llm_reply_tokens) for body in bodies)
    cost = budget_of(settings).cost(tokens_in, tokens_out)
    return pd.Series(
        {
            "requests": len(bodies),
            "prompt tokens (estimated)": tokens_in,
            "completion tokens (at most)": tokens_out,
            "cost (US dollars, at most)": "unknown" if cost is None else f"{cost:.4f}",
            "token limit": settings.llm_max_tokens,
        }
    )
