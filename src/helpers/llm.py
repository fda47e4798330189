"""The plain OpenAI client, with a transport underneath that can answer from records.

``connect()`` returns an ``openai.OpenAI``. Its transport answers in one of three ways: live (the
server of ``OPENAI_BASE_URL``), recorded (a stored reply to exactly this request), or not at all,
with :class:`NoReply`. Live replies are stored; keys never are.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pandas as pd
from openai.types.chat import ChatCompletion

from helpers.replies import Body, CommittedStore, LocalStore, PendingRequests, request_key
from helpers.settings import Settings, SettingsError

RECORDED_MODEL = "recorded"
PROVENANCE = "made by a Claude model from the prompt alone, see data/replies/README.md"
DEFAULT_COMPLETION_TOKENS = 1000


class NoReply(openai.OpenAIError):
    """No server is configured and no reply to this request is stored."""

    def __init__(self, key: str) -> None:
        """Remember the request's key."""
        self.key = key
        super().__init__(
            "No reply to this request is recorded, and no LLM is configured: set OPENAI_BASE_URL, "
            "OPENAI_API_KEY and LLM_MODEL (see README.md); the request was noted as pending."
        )


class BudgetExceeded(openai.OpenAIError):
    """The next request could go over the budget; it was not sent."""


def estimate_tokens(body: Body) -> int:
    """Estimate the prompt tokens of a request: a token per 4 characters, 4 more per message.

    That is OpenAI's rule of thumb for English; other scripts take more. The schema counts too.
    """
    messages = body.get("messages") or []
    text = sum(len(str(message.get("content") or "")) for message in messages)
    text += len(json.dumps(body["response_format"])) if body.get("response_format") else 0
    texts = body.get("input") or []  # of a request for embeddings
    text += len(texts) if isinstance(texts, str) else sum(len(str(one)) for one in texts)
    return -(-text // 4) + 4 * len(messages)


@dataclass
class Budget:
    """A hard limit for live requests, in tokens and, where prices are known, US dollars.

    Prices are dollars per million tokens. ``spent_tokens`` counts what the server reports, else an
    estimate. Room is reserved before sending, so parallel requests cannot exceed it together.
    """

    max_tokens: int = 200_000
    max_usd: float | None = None
    price_in: float | None = None
    price_out: float | None = None
    spent_tokens: int = 0
    spent_usd: float = 0.0
    estimated: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __post_init__(self) -> None:
        """Refuse a limit in dollars without prices: it could not be kept."""
        if self.max_usd is not None and (self.price_in is None or self.price_out is None):
            raise SettingsError("LLM_BUDGET_USD needs LLM_PRICE_IN and LLM_PRICE_OUT.")

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """Return the price in US dollars, or ``None`` where prices are unknown."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def reserve(self, body: Body, factor: float = 1.0) -> tuple[int, float]:
        """Set room aside for a request; ``factor`` corrects the estimate of its prompt tokens.

        Raises:
            BudgetExceeded: it could go over the limit.
        """
        tokens_in, tokens_out = math.ceil(estimate_tokens(body) * factor), completion_limit(body)
        cost = self.cost(tokens_in, tokens_out) or 0.0
        with self._lock:
            if self.spent_tokens + tokens_in + tokens_out > self.max_tokens:
                raise BudgetExceeded(
                    f"Not sent: {self.spent_tokens} tokens are spent, this request may take "
                    f"{tokens_in + tokens_out}, the limit LLM_MAX_TOKENS is {self.max_tokens}."
                )
            if self.max_usd is not None and self.spent_usd + cost > self.max_usd:
                raise BudgetExceeded(
                    f"Not sent: ${self.spent_usd:.4f} are spent, this request may cost "
                    f"${cost:.4f}, the limit LLM_BUDGET_USD is ${self.max_usd:.4f}."
                )
            self.spent_tokens += tokens_in + tokens_out
            self.spent_usd += cost
        return tokens_in + tokens_out, cost

    def settle(self, reserved: tuple[int, float], body: Body, response: Body | None) -> None:
        """Replace the reserved room by what was used; ``None`` for a request without an answer."""
        usage = (response or {}).get("usage") or {}
        tokens_in, tokens_out = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if response is not None and "choices" not in response:
            tokens_out = 0  # embeddings
        unknown = response is not None and (tokens_in is None or tokens_out is None)
        if response is None:
            tokens_in = tokens_out = 0
        elif unknown:
            tokens_in = estimate_tokens(body)
            tokens_out = -(-len(json.dumps(response.get("choices", ""))) // 4)
        with self._lock:
            self.estimated |= unknown
            self.spent_tokens += tokens_in + tokens_out - reserved[0]
            self.spent_usd += (self.cost(tokens_in, tokens_out) or 0.0) - reserved[1]


def completion_limit(body: Body) -> int:
    """Return the most completion tokens a request may take (1000 where it does not say)."""
    if "input" in body:
        return 0  # embeddings complete nothing
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return int(limit or DEFAULT_COMPLETION_TOKENS) * int(body.get("n") or 1)


def preview(bodies: Iterable[Body], settings: Settings | None = None) -> pd.Series:
    """Say what a set of requests would take live, before any is sent; tokens are estimates."""
    settings = settings or Settings.from_env()
    bodies = list(bodies)
    tokens_in = sum(estimate_tokens(body) for body in bodies)
    tokens_out = sum(completion_limit(body) for body in bodies)
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


def budget_of(settings: Settings) -> Budget:
    """Return the budget that the environment sets."""
    return Budget(
        settings.llm_max_tokens,
        settings.llm_budget_usd,
        settings.llm_price_in,
        settings.llm_price_out,
    )


class RecordingTransport(httpx2.BaseTransport):
    """Answers from the stores, or sends on and stores the answer."""

    def __init__(
        self, settings: Settings, live: httpx2.BaseTransport | None, budget: Budget
    ) -> None:
        """``live`` is the transport to a server; ``None`` answers from records only."""
        self.settings, self.live, self.budget = settings, live, budget
        self.committed = CommittedStore(settings.replies_dir)
        self.local = LocalStore(settings.cache_dir / "replies.sqlite")
        self.pending = PendingRequests(settings.cache_dir / "pending.jsonl")

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request.

        Raises:
            NoReply: no server and no record.
            BudgetExceeded: the request may go over the budget; nothing was sent.
        """
        body = json.loads(request.read() or b"{}")
        if self.live is None:
            return self._recorded(body, request)
        return self._send(body, request)

    def _recorded(self, body: Body, request: httpx2.Request) -> httpx2.Response:
        if body.get("stream"):
            raise openai.OpenAIError("A recorded reply cannot be streamed: leave stream out.")
        key = request_key(body)
        reply = None
        if self.settings.llm_mode != "none":
            reply = self.local.get(key) or self.committed.get(key)
        if reply is None:
            self.pending.add({name: body[name] for name in body if name != "model"})
            raise NoReply(key)
        headers = {"x-reply-source": "recorded"}
        return httpx2.Response(200, json=reply.response, headers=headers, request=request)

    def _send(self, body: Body, request: httpx2.Request) -> httpx2.Response:
        model, server = str(body.get("model", "")), f"{request.url.host}:{request.url.port or ''}"
        # Only this server's own earlier reply may stand for a live one.
        stored = self.local.get(request_key(body), model=model, server=server)
        if stored is not None and not body.get("stream"):
            return httpx2.Response(200, json=stored.response, request=request)
        reserved = self.budget.reserve(body)
        answer: Body | None = None
        try:
            response = self.live.handle_request(request)
            if body.get("stream"):
                answer = {}
                return response
            response.read()
            answer = _usable(response)
        finally:
            self.budget.settle(reserved, body, answer)
        if answer is not None:
            kept = {name: body[name] for name in body if name not in {"model", "user"}}
            self.local.put(kept, answer, model=model, server=server)
        return response

    def close(self) -> None:
        """Close the store and the connection."""
        self.local.close()
        if self.live is not None:
            self.live.close()


def _usable(response: httpx2.Response) -> Body | None:
    if response.status_code != 200:
        return None
    try:
        body = response.json()
        if "choices" in body:
            return body if _well_formed(body["choices"][0]["message"]) else None
        return body if body["data"] else None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def _well_formed(message: Body) -> bool:
    # The SDK lets a message of any shape through.
    return message.get("content") is None or isinstance(message["content"], str)


def is_live(settings: Settings) -> bool:
    """Whether requests go to a server.

    Raises:
        SettingsError: ``LLM_MODE`` is live but the server or the model is not named.
    """
    if settings.llm_mode in {"recorded", "none"}:
        return False
    configured = bool(settings.llm_base_url or settings.llm_api_key)
    if settings.llm_mode == "live" and not configured:
        raise SettingsError("LLM_MODE is live: set OPENAI_BASE_URL or OPENAI_API_KEY too.")
    if configured and not settings.llm_model:
        if settings.llm_mode == "live":
            raise SettingsError("LLM_MODE is live: set LLM_MODEL to a model of your server.")
        return False
    return configured


def connect(settings: Settings | None = None, *, budget: Budget | None = None) -> openai.OpenAI:
    """Return the OpenAI client; it is ordinary in every other way.

    Raises:
        SettingsError: see :func:`is_live`.
    """
    settings = settings or Settings.from_env()
    live = httpx2.HTTPTransport() if is_live(settings) else None
    transport = RecordingTransport(settings, live, budget or budget_of(settings))
    client = httpx2.Client(transport=transport, timeout=settings.llm_timeout_s)
    return openai.OpenAI(
        api_key=settings.llm_api_key or "no-key",
        base_url=settings.llm_base_url if live else "http://recorded.invalid/v1",
        http_client=client,
        timeout=settings.llm_timeout_s,
    )


def mode(settings: Settings | None = None) -> str:
    """Return ``live``, ``recorded`` or ``none``."""
    settings = settings or Settings.from_env()
    if is_live(settings):
        return "live"
    if settings.llm_mode == "none":
        return "none"
    return "recorded" if CommittedStore(settings.replies_dir).all() else "none"


def model(settings: Settings | None = None) -> str:
    """Return the model to ask: ``LLM_MODEL``, or a placeholder where nothing is sent."""
    settings = settings or Settings.from_env()
    return settings.llm_model if is_live(settings) else RECORDED_MODEL


def describe(settings: Settings | None = None) -> str:
    """Return one line that says who answers."""
    settings = settings or Settings.from_env()
    line = {
        "live": f"LLM: live, {settings.llm_model}",
        "recorded": f"LLM: recorded replies, {PROVENANCE}",
        "none": "LLM: none; lists keep the retriever's order and profiles are plain tables",
    }[mode(settings)]
    name = missing(settings)
    return line + (f"; no server is asked, because {name} is not set" if name else "")


def missing(settings: Settings) -> str:
    """Return the variable without which the server that is half configured is not asked, or ""."""
    server = settings.llm_base_url or settings.llm_api_key
    if settings.llm_mode in {"recorded", "none"} or bool(server) == bool(settings.llm_model):
        return ""
    return "LLM_MODEL" if server else "OPENAI_BASE_URL"


@dataclass(frozen=True)
class Outcome:
    """An answer or the reason why there is none; ``kind`` is ``ok`` or the name of the fault."""

    text: str | None
    kind: str
    why: str = ""
    response: ChatCompletion | None = None


def response_format(schema: type) -> Body:
    """Return the ``response_format`` that the SDK's ``parse`` sends for a pydantic model."""
    from openai.lib._parsing._completions import type_to_response_format_param

    return type_to_response_format_param(schema)


def ask(
    client: openai.OpenAI,
    messages: list[dict[str, str]],
    *,
    schema: type | None = None,
    **options: Any,
) -> Outcome:
    """Ask and return the text, or what went wrong; faults of a server are never raised.

    Kinds: ok, no_reply, budget, timeout, connection, rate_limited, server_error, rejected,
    malformed, refusal, truncated, empty.
    """
    if schema is not None:
        options["response_format"] = response_format(schema)
    options.setdefault("model", model())
    try:
        return outcome_of(client.chat.completions.create(messages=messages, **options))
    except FAULTS as error:
        return fault_of(error)


FAULTS = (
    openai.OpenAIError,
    httpx2.HTTPError,
    httpx2.StreamError,
    ValueError,
    AttributeError,
    IndexError,
    TypeError,
    KeyError,
)
"""What a request to a server, or the reading of its answer, can raise."""


def outcome_of(response: ChatCompletion) -> Outcome:
    """Return what an answer says.

    Raises:
        AttributeError, IndexError, TypeError: it is no chat completion (see :data:`FAULTS`).
    """
    choice = response.choices[0]
    message = choice.message
    text = (message.content or "").strip()
    if getattr(message, "refusal", None):
        return Outcome(None, "refusal", "the LLM refused", response)
    if choice.finish_reason == "length":
        return Outcome(message.content, "truncated", "the answer was cut at its limit", response)
    if not text:
        return Outcome(None, "empty", "the answer is empty", response)
    return Outcome(message.content, "ok", "", response)


def fault_of(error: Exception) -> Outcome:
    """Return the outcome that an exception of :data:`FAULTS` stands for."""
    match error:
        case NoReply():
            return Outcome(None, "no_reply", str(error))
        case BudgetExceeded():
            return Outcome(None, "budget", str(error))
        case openai.APITimeoutError():
            return Outcome(None, "timeout", "the server did not answer in time")
        case openai.APIConnectionError():
            why = f"the connection failed ({error.__cause__ or error})"
            return Outcome(None, "connection", why)
        case openai.RateLimitError():
            return Outcome(None, "rate_limited", "the server answered 429 after all retries")
        case openai.APIStatusError():
            kind = "server_error" if error.status_code >= 500 else "rejected"
            return Outcome(None, kind, f"the server answered {error.status_code}")
        case httpx2.HTTPError() | httpx2.StreamError():
            return Outcome(None, "connection", "the connection broke while the answer was read")
    return Outcome(None, "malformed", "the server's answer is not a chat completion")
