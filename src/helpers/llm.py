"""The plain OpenAI client, with a transport underneath that can answer from records.

``connect()`` returns an ``openai.OpenAI``. Its transport answers in one of three ways: live (the
server of ``OPENAI_BASE_URL``), recorded (a stored reply to exactly this request), or not at all,
with :class:`NoReply`. Live replies are stored; keys never are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import html
import json
import math
import re
import textwrap
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import openai
import pandas as pd
from openai.types.chat import ChatCompletion

from helpers import answers
from helpers.replies import (
    Body,
    CommittedStore,
    LocalStore,
    PendingRequests,
    Reply,
    request_key,
)
from helpers.settings import Settings, SettingsError

RECORDED_MODEL = "recorded"
PROVENANCE = "made by a Claude model from the prompt alone, see data/replies/README.md"
BATCH_SERVER = "batch"
"""The server's name under which replies of the Batch API are stored."""

ADAPTIONS = 6
"""How often a request is changed and sent again because the server refuses a part of it."""

CUT_FROM = 1000
"""Estimated prompt tokens from which on the server's count is compared with the estimate."""


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


class BudgetExceeded(openai.OpenAIError):
    """The next request could go over the budget; it was not sent."""


class ServerWarning(UserWarning):
    """A server does not take a part of our requests; they are changed for it."""


def estimate_tokens(body: Body) -> int:
    """Estimate the prompt tokens of a request: a token per 4 characters, 4 more per message.

    That is OpenAI's rule of thumb for English; other scripts take more. The schema counts too.
    """
    messages = body.get("messages") or []
    text = sum(len(str(message.get("content") or "")) for message in messages)
    text += len(json.dumps(body["response_format"])) if body.get("response_format") else 0
    texts = body.get("input") or body.get("prompt") or []  # of a request for embeddings, or old
    text += len(texts) if isinstance(texts, str) else sum(len(str(one)) for one in texts)
    return -(-text // 4) + 4 * len(messages)


# Faults after which the server cannot have charged for anything.
_NEVER_REACHED = (
    httpx2.ConnectError,
    httpx2.ConnectTimeout,
    httpx2.PoolTimeout,
    httpx2.ProxyError,
    httpx2.UnsupportedProtocol,
    httpx2.LocalProtocolError,
)
_ANSWER_LOST = {408, 502, 504, 524}  # somebody on the way gave up, the server may have gone on

Reservation = tuple[int, float]
"""Tokens and US dollars set aside for a request."""


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
            cost = self.cost(tokens_in, tokens_out) or 0.0
            if self.spent_tokens + tokens_in + tokens_out > self.max_tokens:
                raise BudgetExceeded(
                    f"Not sent: {self.spent_tokens} tokens are spent, this request may take "
                    f"{tokens_in + tokens_out}, the limit LLM_MAX_TOKENS is {self.max_tokens}: "
                    "raise it, or lower LLM_REPLY_TOKENS."
                )
            if self.max_usd is not None and self.spent_usd + cost > self.max_usd:
                raise BudgetExceeded(
                    f"Not sent: ${self.spent_usd:.4f} are spent, this request may cost "
                    f"${cost:.4f}, the limit LLM_BUDGET_USD is ${self.max_usd:.4f}."
                )
            self.spent_tokens += tokens_in + tokens_out
            self.spent_usd += cost
        return tokens_in + tokens_out, cost

    def admit(self, body: Body) -> Reservation | None:
        """Reserve for a request to be sent now; ``None``: wait for one under way to be settled.

        Raises:
            BudgetExceeded: there is no room, and none will come.
        """
        with self._room:
            if self._untried and self._under_way:
                return None
            try:
                reserved = self.reserve(body)
            except BudgetExceeded:
                # Requests under way hold the most they can cost and soon give some back.
                if self._under_way:
                    return None
                raise
            self._under_way.append(reserved)
            return reserved

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
                answer = _answer_of(response)
                lost = answer is None and (
                    response.is_success or response.status_code in _ANSWER_LOST
                )
        except _NEVER_REACHED:
            lost = False
            raise
        finally:
            with self._room:
                if lost and passage.sent:
                    # The server may charge for an answer that was lost: the reserve is spent.
                    self.estimated = True
                else:
                    self.settle(reserved, body, answer)
                self._under_way.remove(reserved)
                self._untried &= answer is None and not (lost and passage.sent)
                self._room.notify_all()

    def settle(self, reserved: Reservation, body: Body, response: Body | None) -> None:
        """Replace the reserved room by what was used; ``None`` for a request without an answer."""
        usage = (response or {}).get("usage") or {}
        tokens_in, tokens_out = (
            _count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens")
        )
        if response is not None and "choices" not in response:
            tokens_out = 0  # embeddings
        elif tokens_in is not None and tokens_out is not None:
            # Some servers count what a model thinks in the total alone.
            tokens_out = max(tokens_out, (_count(usage.get("total_tokens")) or 0) - tokens_in)
        unknown = response is not None and (tokens_in is None or tokens_out is None)
        if response is None:
            tokens_in = tokens_out = 0
        elif unknown:
            tokens_in = estimate_tokens(body)
            tokens_out = -(-len(json.dumps(response.get("choices", ""))) // 4)
        with self._room:
            self.estimated |= unknown
            self._prompt_factor = max(
                self._prompt_factor, tokens_in / max(1, estimate_tokens(body))
            )
            if tokens_out > completion_limit(body):
                self._longest = max(self._longest, tokens_out)
            self.spent_tokens += tokens_in + tokens_out - reserved[0]
            self.spent_usd += (self.cost(tokens_in, tokens_out) or 0.0) - reserved[1]


def _count(value: object) -> int | None:
    return int(value) if isinstance(value, (int, float)) and value >= 0 else None


def completion_limit(body: Body, otherwise: int = Settings.llm_reply_tokens) -> int:
    """Return the most completion tokens a request may take: its limit times its choices.

    ``otherwise`` is the limit of a request that does not say (``LLM_REPLY_TOKENS``).
    """
    if "input" in body:
        return 0  # embeddings complete nothing
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    return int(limit or otherwise) * int(body.get("n") or 1)


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


def budget_of(settings: Settings) -> Budget:
    """Return the budget that the environment sets."""
    return Budget(
        settings.llm_max_tokens,
        settings.llm_budget_usd,
        settings.llm_price_in,
        settings.llm_price_out,
    )


class Stores:
    """Where a reply to a request is looked up: one order for all who ask."""

    def __init__(self, settings: Settings, local: LocalStore | None = None) -> None:
        """Open the course's local store unless another one is given."""
        self.settings = settings
        self.committed = CommittedStore(settings.replies_dir)
        self.local = local or LocalStore(settings.cache_dir / "replies.sqlite")

    def find(self, body: Body, *, model: str | None = None, server: str = "") -> Reply | None:
        """Return a usable reply.

        Without ``model``, which is when nothing is live: a committed one, else the newest of the
        local store. With it only the model's own, from ``server`` or from a batch.
        """
        key = request_key(body)
        if model is None:
            if self.settings.llm_mode == "none":
                return None
            return self.committed.get(key) or self.local.get(key, fault=usable)
        for name in (server, BATCH_SERVER):
            if reply := self.local.get(key, model=model, server=name, fault=usable):
                return reply
        return None


# --- what a server refuses ------------------------------------------------------------------------

Changes = dict[str, str]
"""A part of a request that a server refuses, to what takes its place; "" where it is left out."""

LIMITS = ("max_completion_tokens", "max_tokens")
_KEPT = {"model", "messages", "input", "prompt", "tools", "stream", "response_format", *LIMITS}
_SYSTEM = (
    r"system.{0,40}\brole|\brole.{0,60}\bsystem|system (message|prompt|instruction)|developer|"
    r"(invalid|unexpected|unknown|unsupported) (message )?role|user.{0,20}assistant.{0,20}roles|"
    r"roles? must alternate|'messages\.[^']*role'"
)
_FORMAT = (
    r"response.?format|json.?schema|json.?object|json.?mode|structured.?output|guided|"
    r"response.?schema|response.?mime"
)
_WINDOW = r"(maximum|max|exceed\w*).{0,30}context|context.{0,15}(length|window|size)|too large"
_NOT = r"not (supported|allowed|permitted|available|enabled|implemented)|unsupported|disabled"
_TOO_LARGE = r"too (large|high|big)|at most|less than|valid range|maximum (allowed )?(value|number)"
_INSTEAD = "\n\nAnswer with JSON that fits this JSON schema, and with nothing else:\n"


def adapted(body: Body, changes: Changes) -> Body:
    """Return a request as a server takes it that refuses the keys of ``changes``."""
    sent = dict(body)
    for name, value in changes.items():
        if name == "limit":
            limits = [sent.pop(limit) for limit in LIMITS if limit in sent]
            sent |= {value: limits[0]} if value and limits else {}
        elif name == "system":
            sent["messages"] = _merged(sent.get("messages") or [])
        elif name == "strict":
            with contextlib.suppress(KeyError, TypeError):
                schema = dict(sent["response_format"]["json_schema"])
                schema.pop("strict", None)
                sent["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif name == "response_format":
            form = sent.get(name) or {}
            if form.get("type") == "json_schema":
                schema = json.dumps(form["json_schema"].get("schema"), ensure_ascii=False)
                sent["messages"] = _with_text(sent["messages"], _INSTEAD + schema)
            if form and value:
                sent[name] = {"type": value}
            else:
                sent.pop(name, None)
        else:
            sent.pop(name, None)
    if not sent.get("logprobs"):
        sent.pop("top_logprobs", None)  # which needs it
    return sent


def _merged(messages: list[Body]) -> list[Body]:
    rules = [m for m in messages if m.get("role") in ("system", "developer")]
    rest = [m for m in messages if m not in rules]
    place = next((i for i, m in enumerate(rest) if m.get("role") == "user"), None)
    texts = [str(m.get("content") or "") for m in rules]
    if not rules:
        return messages
    if place is None:
        return [{"role": "user", "content": "\n\n".join(texts)}, *rest]
    said = rest[place].get("content")
    joined: Any = "\n\n".join([*texts, said]) if isinstance(said, str) else None
    if joined is None:
        joined = [{"type": "text", "text": "\n\n".join(texts)}, *(said or [])]
    return [*rest[:place], {**rest[place], "content": joined}, *rest[place + 1 :]]


def _with_text(messages: list[Body], text: str) -> list[Body]:
    place = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=None)
    if place is None:
        return [*messages, {"role": "user", "content": text.strip()}]
    said = messages[place].get("content")
    said = said + text if isinstance(said, str) else [*(said or []), {"type": "text", "text": text}]
    return [*messages[:place], {**messages[place], "content": said}, *messages[place + 1 :]]


def refusal(sent: Body, words: str, changes: Changes) -> tuple[str, str] | None:
    """Say which part of a request a server's error names, and what to send instead, or ``None``.

    Where the error names several parts the first counts. ``changes`` are those in ``sent`` already.
    """
    text = words.lower()
    places: dict[tuple[str, str], int] = {}

    def note(change: tuple[str, str], pattern: str) -> None:
        if match := re.search(pattern, text, re.DOTALL):
            places[change] = match.start()

    form = sent.get("response_format") or {}
    if form:
        json_schema = form.get("type") == "json_schema"
        note(("response_format", "json_object" if json_schema else ""), _FORMAT)
        if json_schema and "strict" in form.get("json_schema", {}):
            note(("strict", ""), r"\bstrict\b")
            if ("strict", "") in places:
                places.pop(("response_format", "json_object"), None)
    if any(m.get("role") in ("system", "developer") for m in sent.get("messages") or []):
        note(("system", "user"), _SYSTEM)
    for name, other in (LIMITS, LIMITS[::-1]):
        if name in sent:
            named = rf"\b{name}\b|\b{other}\b"
            if "context" in text:
                note(("window", ""), named + "|in the completion")
            else:
                value = "" if "limit" in changes or re.search(_TOO_LARGE, text) else other
                note(("limit", value), named)
    for name in sorted(sent.keys() - _KEPT):
        bare = name.replace("_", "[_ ]")
        if "_" in name or name in ("temperature", "logprobs"):
            note((name, ""), rf"\b{bare}\b")
        else:  # a word like "user" or "stop" says something else in most sentences
            kind = r"parameter|argument|field|property|option"
            note(
                (name, ""),
                rf"['\"`]{name}['\"`]|\b({kind}|input|un\w+|extra)s?( supplied)?[:=]?\s+{name}\b|"
                rf"\b{name} ({kind}|(is|are) ({_NOT}))\b|\b{name} ?[=<>]",
            )
    return min(places, key=places.__getitem__, default=None)


def _changed(name: str, value: str) -> str:
    if name == "system":
        return "the role system (merged into the first user message)"
    if name == "response_format":
        instead = "a JSON object is asked for, and " if value else ""
        return f"its response_format ({instead}the schema stands in the prompt)"
    if name == "limit":
        return f"the name of its limit ({value} is sent)" if value else "a limit (none is sent)"
    return f"{name} (left out)"


class Dialects:
    """What the models behind one client refuse; learned from refusals, told once."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[tuple[str, str], Changes] = {}
        self._lock = threading.Lock()

    def of(self, place: tuple[str, str]) -> Changes:
        """Return the changes for a (server, model)."""
        with self._lock:
            return dict(self._known.get(place, {}))

    def learn(self, place: tuple[str, str], changes: Changes) -> None:
        """Remember changes with which a request was answered, and warn of the new ones."""
        with self._lock:
            known = self._known.setdefault(place, {})
            fresh = {name: value for name, value in changes.items() if known.get(name) != value}
            known |= fresh
        if fresh:
            told = ", ".join(_changed(name, value) for name, value in fresh.items())
            warnings.warn(
                f"The model {place[1]} does not take {told}: its requests are changed from now on.",
                ServerWarning,
                stacklevel=2,
            )


class Attempt:
    """A request on its way to a server that may refuse parts of it; both transports use it."""

    def __init__(self, settings: Settings, dialects: Dialects, request: httpx2.Request, body: Body):
        """``body`` is what the caller asked; its limit is added where it names none."""
        self._settings, self._dialects, self._request = settings, dialects, request
        self._place = (server_of(request.url), str(body.get("model", "")))
        self._changes: Changes = {}
        self._once: Changes = {}
        if "messages" in body and not any(body.get(name) for name in LIMITS):
            body = {**body, LIMITS[0]: settings.llm_reply_tokens}
        self._asked, self.body = body, body
        self._left = ADAPTIONS

    def start(self) -> None:
        """Take over what other requests have learned until now, when this one is to be sent."""
        self._changes = self._dialects.of(self._place)
        self.body = adapted(self._asked, self._changes)

    def request(self) -> httpx2.Request:
        """Return the request as it is sent."""
        sent = self._request
        headers = [(k, v) for k, v in sent.headers.multi_items() if k.lower() != "content-length"]
        return httpx2.Request(
            sent.method, sent.url, headers=headers, json=self.body, extensions=sent.extensions
        )

    def received(self, response: httpx2.Response) -> httpx2.Response:
        """Return a response, read before, as the SDK can take it and without the key.

        An error in a body of status 200 becomes an error, text in parts becomes one text, and an
        error that only money or time mends is marked so that the SDK does not ask again.
        """
        status, body = response.status_code, _json(response.content)
        headers = [
            (k, v)
            for k, v in response.headers.multi_items()
            if k.lower() not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        content = response.content
        if response.is_success and isinstance(body, dict) and _is_error(body):
            headers.append(("x-reply-status", str(status)))
            code = body["error"].get("code") if isinstance(body["error"], dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 400
        elif response.is_success and isinstance(body, dict):
            headers = [(k, v) for k, v in headers if k.lower() != "content-type"]
            headers.append(("content-type", "application/json"))
            content = json.dumps(one_text(body)).encode()
        if not 200 <= status < 300:
            content = self._settings.scrub(response.text).encode()
            if _no_quota(status, content.decode()):
                headers.append(("x-should-retry", "false"))
        return httpx2.Response(status, headers=headers, content=content, request=self._request)

    def learn(self, used: int = 0) -> None:
        """Remember with what the server answered; ``used`` are its completion tokens."""
        if used > completion_limit(self.body) and LIMITS[0] in self.body:
            # The limit was not heard; under its other name it may be.
            self._changes.setdefault("limit", LIMITS[1])
        self._dialects.learn(self._place, self._changes)

    def again(self, response: httpx2.Response) -> bool:
        """Whether to send the changed request in place of the one that was refused."""
        if response.is_success:
            usage = (_answer_of(response) or {}).get("usage") or {}
            self.learn(_count(usage.get("completion_tokens")) or 0)
            return False
        if response.status_code not in (400, 404, 415, 422, 500, 501) or not self._left:
            return False
        change = refusal(self.body, " ".join(_said(response.text)), self._changes)
        if change is None:
            return False
        self._left -= 1
        before = self.body
        if change[0] == "window":
            # What the window leaves is less than the limit, so that the limit holds without it;
            # for another prompt it may not, so this is not remembered.
            self._once = {"limit": ""}
        else:
            self._changes |= dict([change])
        self.body = adapted(self._asked, {**self._changes, **self._once})
        return self.body != before


def server_of(url: httpx2.URL) -> str:
    """Return the name under which the replies of a server are stored."""
    return f"{url.host}:{url.port or ''}"


class RecordingTransport(httpx2.BaseTransport):
    """Answers from the stores, or sends on and stores the answer."""

    def __init__(self, settings: Settings, live: httpx2.Client | None, budget: Budget) -> None:
        """``live`` is the client that reaches a server; ``None`` answers from records only."""
        self.settings, self.live, self.budget = settings, live, budget
        self.stores, self.dialects = Stores(settings), Dialects()
        self.pending = PendingRequests(settings.cache_dir / "pending.jsonl")

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request.

        Raises:
            NoReply: no server and no record.
            BudgetExceeded: the request may go over the budget; nothing was sent.
        """
        if self.live is not None and request.method != "POST":
            return self.live.send(request, stream=True)
        body = json.loads(request.read() or b"{}")
        if self.live is None:
            return self._recorded(body, request)
        return self._send(body, request)

    def _recorded(self, body: Body, request: httpx2.Request) -> httpx2.Response:
        if body.get("stream"):
            raise openai.OpenAIError("A recorded reply cannot be streamed: leave stream out.")
        reply = self.stores.find(body)
        if reply is None:
            self.pending.add({name: body[name] for name in body if name != "model"})
            raise NoReply(request_key(body), missing(self.settings))
        return _replayed(reply, request)

    def _send(self, body: Body, request: httpx2.Request) -> httpx2.Response:
        model, server = str(body.get("model", "")), server_of(request.url)
        if not body.get("stream"):
            stored = self.stores.find(body, model=model, server=server)
            if stored is not None:
                return _replayed(stored, request)
        attempt = Attempt(self.settings, self.dialects, request, body)
        reserved = self.budget.wait(attempt.body)
        attempt.start()
        with self.budget.passage(reserved, attempt.body) as passage, without_key(self.settings):
            while passage.response is None or attempt.again(passage.response):
                passage.sent = True
                response = self.live.send(attempt.request(), stream=True)
                if body.get("stream") and response.is_success:
                    attempt.learn()
                    return response  # what a stream takes is not read: it counts in full
                response.read()
                passage.response = attempt.received(response)
        response = passage.response
        answer = _answer_of(response)
        if answer is not None and not usable(body, answer):
            kept = {name: body[name] for name in body if name not in {"model", "user"}}
            self.stores.local.put(kept, answer, model=model, server=server)
        return response

    def close(self) -> None:
        """Close the store and the connection."""
        self.stores.local.close()
        if self.live is not None:
            self.live.close()


@contextlib.contextmanager
def without_key(settings: Settings) -> Iterator[None]:
    """Keep the key out of what a connection says that failed."""
    try:
        yield
    except httpx2.TransportError as error:
        if (text := settings.scrub(str(error))) == str(error):
            raise
        raise type(error)(text) from None


def _replayed(reply: Reply, request: httpx2.Request) -> httpx2.Response:
    headers = {"x-reply-source": reply.origin}
    return httpx2.Response(200, json=one_text(reply.response), headers=headers, request=request)


# --- what a server says ---------------------------------------------------------------------------


def json_of(response: httpx2.Response) -> Any:
    """Return what a response holds, ``None`` where it is no JSON."""
    return _json(response.content)


def _json(data: bytes | str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _answer_of(response: httpx2.Response) -> Body | None:
    """Return the JSON of a chat completion or of embeddings, or ``None``."""
    body = _json(response.content) if response.is_success else None
    if isinstance(body, dict) and any(isinstance(body.get(n), list) for n in ("choices", "data")):
        return body
    return None


def _is_error(body: Body) -> bool:
    return bool(body.get("error")) and not body.get("choices")


def _said(text: str) -> tuple[str, str]:
    """Return what an error body says in any of the usual forms: the parameters named, the words."""
    body = _json(text)
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
    words = next((error[form] for form in forms if error.get(form)), "")
    if isinstance(words, dict):
        words = next((words[form] for form in forms if words.get(form)), words)
    if isinstance(words, list):  # of FastAPI: where, and what
        rows = [row if isinstance(row, dict) else {"msg": row} for row in words]
        places = [".".join(str(p) for p in row.get("loc") or () if p != "body") for row in rows]
        names += places
        told = [str(row.get("msg") or row.get("message") or row) for row in rows]
        words = "; ".join(": ".join(filter(None, pair)) for pair in zip(places, told, strict=True))
    return " ".join(f"'{name}'" for name in names if name), str(words)


def _words(text: str) -> str:
    return textwrap.shorten(_said(text)[1], 200, placeholder=" ...").rstrip(".")


_QUOTA = (
    r"insufficient_quota|exceeded your current quota|quota (was |is |has been )?exceeded|billing|"
    r"(daily|monthly|spend(ing)?|usage) limit|insufficient.{0,10}(balance|credit|fund)|"
    r"(out of|no|enough|more) credits|payment required"
)


def _no_quota(status: int, text: str) -> bool:
    if status == 402:
        return True
    waits = re.search(r"retry (in|after) \d|try again in \d", text, re.IGNORECASE)
    return status in (400, 403, 429) and not waits and bool(re.search(_QUOTA, text, re.IGNORECASE))


def _hint(status: int, kind: str, text: str) -> str:
    if kind == "quota":
        return "look at the plan and the billing of your account"
    if status == 413 or re.search(_WINDOW, text, re.IGNORECASE):
        return "make the prompt shorter"
    return {
        401: "check OPENAI_API_KEY",
        403: "check OPENAI_API_KEY and what it may use",
        404: "check LLM_MODEL and OPENAI_BASE_URL",
        405: "check OPENAI_BASE_URL",
        429: "wait, or ask for less at a time",
    }.get(status, "try again later" if status >= 500 else "check LLM_MODEL and what is asked")


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
            texts = [p["text"] for p in parts if isinstance(p.get("text"), str)]
            refused = [p["refusal"] for p in parts if isinstance(p.get("refusal"), str)]
            message = {**message, "content": "".join(texts) or None}
            message["refusal"] = message.get("refusal") or "".join(refused) or None
            choice = {**choice, "message": message}
        joined.append(choice)
    return {**response, "choices": joined}


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


def client_options(settings: Settings) -> dict[str, Any]:
    """Return how the SDK's clients, the plain and the asynchronous one, reach the server."""
    host = httpx2.URL(settings.llm_base_url or "").host
    azure = settings.llm_api_key and host.endswith(".azure.com")
    return {
        "api_key": settings.llm_api_key or "no-key",
        "base_url": settings.llm_base_url,
        "default_query": settings.llm_query,
        "default_headers": {"api-key": settings.llm_api_key} if azure else None,
        "timeout": settings.llm_timeout_s,
    }


def connect(settings: Settings | None = None, *, budget: Budget | None = None) -> openai.OpenAI:
    """Return the OpenAI client; it is ordinary in every other way.

    Raises:
        SettingsError: see :func:`is_live`.
    """
    settings = settings or Settings.from_env()
    options = client_options(settings)
    live = None
    if is_live(settings):
        # An ordinary client, so that HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE count.
        live = httpx2.Client(follow_redirects=True)
    else:
        options["base_url"] = "http://recorded.invalid/v1"
    transport = RecordingTransport(settings, live, budget or budget_of(settings))
    client = httpx2.Client(transport=transport, timeout=settings.llm_timeout_s)
    return openai.OpenAI(**options, http_client=client)


def mode(settings: Settings | None = None) -> str:
    """Return ``live``, ``recorded`` or ``none``."""
    settings = settings or Settings.from_env()
    if is_live(settings):
        return "live"
    if settings.llm_mode == "none":
        return "none"
    committed = CommittedStore(settings.replies_dir).all()
    return "recorded" if committed or _stored_models(settings) else "none"


def _stored_models(settings: Settings) -> list[str]:
    """Return the models whose earlier live replies the local store holds."""
    path = settings.cache_dir / "replies.sqlite"
    if not path.exists():
        return []
    with LocalStore(path) as store:
        return store.models()


def model(settings: Settings | None = None) -> str:
    """Return the model to ask: ``LLM_MODEL``, or a placeholder where nothing is sent."""
    settings = settings or Settings.from_env()
    return settings.llm_model if is_live(settings) else RECORDED_MODEL


def describe(settings: Settings | None = None) -> str:
    """Return one line that says who answers."""
    settings = settings or Settings.from_env()
    line = {
        "live": f"LLM: live, {settings.llm_model}",
        "recorded": "LLM: ",
        "none": "LLM: none; lists keep the retriever's order and profiles are plain tables",
    }[mode(settings)]
    if mode(settings) == "recorded":
        sources = []
        if CommittedStore(settings.replies_dir).all():
            sources.append(f"recorded replies, {PROVENANCE}")
        if models := _stored_models(settings):
            sources.append(f"your own stored replies, by {', '.join(models)}")
        line += "; for the rest ".join(sources)
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

    Kinds: ok, no_reply, budget, quota, timeout, connection, rate_limited, server_error, rejected,
    malformed, refusal, truncated, empty, unreadable, prompt_cut.
    """
    if schema is not None:
        options["response_format"] = response_format(schema)
    options.setdefault("model", model())
    try:
        raw = client.chat.completions.with_raw_response.create(messages=messages, **options)
    except FAULTS as error:
        return fault_of(error)
    response = raw.http_response
    source = response.headers.get("x-reply-source", "live")
    outcome = outcome_of({"messages": messages, **options}, json_of(response), source)
    if outcome.kind == "malformed" and (words := _words(response.text)):
        return dataclasses.replace(outcome, why=f"{outcome.why}; it says: {words}")
    if schema is None or outcome.kind != "ok":
        return outcome
    answer = answers.read(outcome.text, schema)
    kind = "ok" if answer.value is not None else "unreadable"
    return dataclasses.replace(
        outcome, kind=kind, why=answer.why, value=answer.value, repairs=answer.repairs
    )


FAULTS = (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError)
"""What a request to a server can raise; a fault of the program is none of them."""


def outcome_of(body: Body, response: Any, source: str = "") -> Outcome:
    """Return what an answer says; ``body`` is what was asked, ``response`` the answer's JSON.

    Of several choices the first usable one counts. Never raises, whatever the answer holds.
    """
    response = one_text(response) if isinstance(response, dict) else {}
    choices = response.get("choices")
    told = [_choice(body, choice) for choice in choices] if isinstance(choices, list) else []
    if not told or not any(kind != "malformed" for _, kind, _ in told):
        why = "the server's answer is not a chat completion: check OPENAI_BASE_URL"
        return Outcome(None, "malformed", why, source=source)
    text, kind, why = next((one for one in told if one[1] == "ok"), told[0])
    if kind in ("ok", "truncated") and (cut := _cut_prompt(body, response)):
        kind, why = "prompt_cut", cut
    completion = ChatCompletion.construct(**response)
    named = str(response.get("model") or "")
    return Outcome(text, kind, why, completion, source=source, model=named)


def _choice(body: Body, choice: Any) -> tuple[str | None, str, str]:
    """Return the text, kind and reason of one choice."""
    message = choice.get("message") if isinstance(choice, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(text, str | None):
        return None, "malformed", ""
    finish = choice.get("finish_reason")
    if message.get("refusal"):
        words = textwrap.shorten(str(message["refusal"]), 200, placeholder=" ...")
        return None, "refusal", f"the LLM refused: {words}"
    if finish == "content_filter":
        return None, "refusal", "the server's content filter stopped the answer"
    if finish == "length":
        why = "the answer was cut at its limit: raise LLM_REPLY_TOKENS or the request's own limit"
        return text, "truncated", why
    if (text or "").strip():
        return text, "ok", ""
    if body.get("tools") and (message.get("tool_calls") or message.get("function_call")):
        return text, "ok", ""
    if message.get("reasoning_content") or message.get("reasoning"):
        return None, "empty", "the answer is empty, the LLM gave only its reasoning"
    return None, "empty", "the answer is empty"


def _cut_prompt(body: Body, response: Body) -> str:
    """Return why the prompt must have been cut by the server's window, or ""."""
    usage = response.get("usage") or {}
    count = _count(usage.get("prompt_tokens")) or 0
    cached = usage.get("prompt_tokens_details") or {}
    total = count + (_count(cached.get("cached_tokens")) or 0)
    estimate = estimate_tokens({"messages": body.get("messages")})  # not all count the schema
    if not count or estimate < CUT_FROM or total >= estimate / 2:
        return ""
    return (
        f"the server read {count} tokens of a prompt of about {estimate}: its window cut it, "
        "raise the server's context window"
    )


def usable(body: Body, response: Body) -> str:
    """Return "" if a reply may be stored: complete, not empty, of its schema; else why not."""
    if "input" in body:
        return "" if response.get("data") else "there are no embeddings"
    outcome = outcome_of(body, response)
    first = outcome.response.choices[0] if outcome.response else None
    if body.get("logprobs") and outcome.kind in ("truncated", "empty"):
        # One token's alternatives are all that was asked for.
        return "" if getattr(first, "logprobs", None) else outcome.why
    schema = ((body.get("response_format") or {}).get("json_schema") or {}).get("schema")
    if outcome.kind == "ok" and schema and outcome.text:
        return answers.read(outcome.text, schema).why
    return outcome.why


def fault_of(error: Exception) -> Outcome:
    """Return the outcome that an exception of :data:`FAULTS` stands for."""
    match error:
        case NoReply():
            return Outcome(None, "no_reply", str(error))
        case BudgetExceeded():
            return Outcome(None, "budget", str(error))
        case openai.APITimeoutError():
            why = "the server did not answer in time: raise LLM_TIMEOUT_S or ask for less"
            return Outcome(None, "timeout", why)
        case openai.APIConnectionError():
            why = f"the connection failed ({error.__cause__ or error}): check OPENAI_BASE_URL"
            return Outcome(None, "connection", why)
        case openai.APIStatusError():
            return _status_fault(error.response)
        case httpx2.HTTPError() | httpx2.StreamError():
            return Outcome(None, "connection", "the connection broke while the answer was read")
    return Outcome(None, "malformed", f"the request could not be made: {error}")


def _status_fault(response: httpx2.Response) -> Outcome:
    status, text = response.status_code, response.text
    if _no_quota(status, text):
        kind = "quota"
    elif status == 429:
        kind = "rate_limited"
    elif "content_filter" in text:
        return Outcome(None, "refusal", f"the server's content filter refused: {_words(text)}")
    else:
        kind = "server_error" if status >= 500 else "rejected"
    said = response.headers.get("x-reply-status", status)
    words = f": {words}" if (words := _words(text)) else ""
    return Outcome(None, kind, f"the server answered {said}{words}; {_hint(status, kind, text)}")
