"""The plain OpenAI client, with a transport underneath that can answer from records.

``connect()`` returns an ``openai.OpenAI``. Its transport answers in one of three ways: live (the
server of ``OPENAI_BASE_URL``), recorded (a stored reply to exactly this request), or not at all,
with :class:`NoReply`. Live replies are stored; keys never are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any, cast

import httpx2
import openai
from openai.lib._parsing._completions import type_to_response_format_param

from helpers import answers
from helpers.budgets import Budget, answer_of, budget_of, estimate_tokens, json_of, preview  # noqa: F401
from helpers.dialects import Attempt, Dialects, ServerWarning, server_of  # noqa: F401
from helpers.outcomes import FAULTS, NoReply, Outcome, fault_of, one_text, outcome_of, usable, words
from helpers.replies import Body, CommittedStore, LocalStore, PendingRequests, Reply, request_key
from helpers.settings import Settings, SettingsError

RECORDED_MODEL = "recorded"
PROVENANCE = "made by a Claude model from the prompt alone, see data/replies/README.md"


def connect(settings: Settings | None = None, *, budget: Budget | None = None) -> openai.OpenAI:
    """Return the OpenAI client; it is ordinary in every other way.

    Raises:
        SettingsError: see :func:`is_live`.
    """
    settings = settings or Settings.from_env()
    options, live = client_options(settings), None
    if is_live(settings):
        # An ordinary client, so that HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE count.
        live = httpx2.Client(follow_redirects=True)
    else:
        options["base_url"] = "http://recorded.invalid/v1"
    transport = RecordingTransport(settings, live, budget or budget_of(settings))
    client = httpx2.Client(transport=transport, timeout=settings.llm_timeout_s)
    return openai.OpenAI(**options, http_client=client)


def client_options(settings: Settings) -> dict[str, Any]:
    """Return how the SDK's clients, the plain and the asynchronous one, reach the server."""
    azure = httpx2.URL(settings.llm_base_url or "").host.endswith(".azure.com")
    return {
        "api_key": settings.llm_api_key or "no-key",
        "base_url": settings.llm_base_url,
        "default_query": settings.llm_query,
        "default_headers": {"api-key": settings.llm_api_key or ""} if azure else None,
        "timeout": settings.llm_timeout_s,
    }


def response_format(schema: type) -> Body:
    """Return the ``response_format`` that the SDK's ``parse`` sends for a pydantic model."""
    return cast(Body, type_to_response_format_param(schema))


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
    create: Any = client.chat.completions.with_raw_response.create
    try:
        response = create(messages=messages, **options).http_response
    except FAULTS as error:
        return fault_of(error)
    source = response.headers.get("x-reply-source", "live")
    outcome = outcome_of({"messages": messages, **options}, json_of(response.content), source)
    if outcome.kind == "malformed" and (server_words := words(response.text)):
        return dataclasses.replace(outcome, why=f"{outcome.why}; it says: {server_words}")
    if schema is None or outcome.kind != "ok":
        return outcome
    answer = answers.read(outcome.text, schema)
    kind = "ok" if answer.value is not None else "unreadable"
    return dataclasses.replace(outcome, kind=kind, **vars(answer))


def is_live(settings: Settings) -> bool:
    """Whether requests go to a server.

    Raises:
        SettingsError: ``LLM_MODE`` is live but the server or the model is not named.
    """
    if settings.llm_mode in {"recorded", "none"}:
        return False
    server = bool(settings.llm_base_url or settings.llm_api_key)
    if settings.llm_mode == "live" and not (server and settings.llm_model):
        name = "LLM_MODEL to a model of your server" if server else "OPENAI_BASE_URL too"
        raise SettingsError(f"LLM_MODE is live: set {name}.")
    return server and bool(settings.llm_model)


def missing(settings: Settings) -> str:
    """Return the variable without which the server that is half configured is not asked, or ""."""
    server = settings.llm_base_url or settings.llm_api_key
    if settings.llm_mode in {"recorded", "none"} or bool(server) == bool(settings.llm_model):
        return ""
    return "LLM_MODEL" if server else "OPENAI_BASE_URL"


def mode(settings: Settings | None = None) -> str:
    """Return ``live``, ``recorded`` or ``none``."""
    settings = settings or Settings.from_env()
    if is_live(settings):
        return "live"
    return "recorded" if settings.llm_mode != "none" and _sources(settings) else "none"


def model(settings: Settings | None = None) -> str:
    """Return the model to ask: ``LLM_MODEL``, or a placeholder where nothing is sent."""
    settings = settings or Settings.from_env()
    return settings.llm_model if settings.llm_model and is_live(settings) else RECORDED_MODEL


def describe(settings: Settings | None = None) -> str:
    """Return one line that says who answers."""
    settings = settings or Settings.from_env()
    line = {
        "live": f"live, {settings.llm_model}",
        "recorded": "; for the rest ".join(_sources(settings)),
        "none": "none; lists keep the retriever's order and profiles are plain tables",
    }[mode(settings)]
    name = missing(settings)
    return f"LLM: {line}" + (f"; no server is asked, because {name} is not set" if name else "")


def _sources(settings: Settings) -> list[str]:
    """Return what answers without a server, in words."""
    sources = []
    if CommittedStore(settings.replies_dir).all():
        sources.append(f"recorded replies, {PROVENANCE}")
    path = settings.cache_dir / "replies.jsonl"
    if path.exists():
        with LocalStore(path) as store:
            models = ", ".join(store.models())
        sources += [f"your own stored replies, by {models}"] if models else []
    return sources


class Stores:
    """Where a reply to a request is looked up: one order for all who ask."""

    def __init__(self, settings: Settings, local: LocalStore | None = None) -> None:
        """Open the course's local store unless another one is given."""
        self.settings, self.committed = settings, CommittedStore(settings.replies_dir)
        self.local = local or LocalStore(settings.cache_dir / "replies.jsonl")

    def find(self, body: Body, *, model: str | None = None, server: str = "") -> Reply | None:
        """Return a usable reply: the ``model``'s own, from ``server`` or from a batch.

        Without ``model`` (nothing is live): a committed one, else the newest of the local store.
        """
        key = request_key(body)
        if model is None:
            if self.settings.llm_mode == "none":
                return None
            return self.committed.get(key) or self.local.get(key, fault=usable)
        for name in (server, "batch"):
            if reply := self.local.get(key, model=model, server=name, fault=usable):
                return reply
        return None


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
        model, server, stream = body.get("model", ""), server_of(request.url), body.get("stream")
        if self.live is None and stream:
            raise openai.OpenAIError("A recorded reply cannot be streamed: leave stream out.")
        place = {"model": str(model), "server": server} if self.live is not None else {}
        reply = None if stream else self.stores.find(body, **place)
        if reply is not None:
            source, answer = {"x-reply-source": reply.origin}, one_text(reply.response)
            return httpx2.Response(200, headers=source, json=answer, request=request)
        if self.live is None:
            self.pending.add({name: body[name] for name in body if name != "model"})
            raise NoReply(request_key(body), missing(self.settings))
        response = self._send(self.live, body, request)
        answer = None if stream and response.is_success else answer_of(response)
        if answer is not None and not usable(body, answer):
            kept = {name: body[name] for name in body if name not in {"model", "user"}}
            self.stores.local.put(kept, answer, **place)
        return response

    def _send(self, live: httpx2.Client, body: Body, request: httpx2.Request) -> httpx2.Response:
        attempt = Attempt(self.settings, self.dialects, request, body)
        reserved = self.budget.wait(attempt.body)
        attempt.start()
        with self.budget.passage(reserved, attempt.body) as passage, without_key(self.settings):
            while passage.response is None or attempt.again(passage.response):
                passage.sent = True
                response = live.send(attempt.request(), stream=True)
                if body.get("stream") and response.is_success:
                    attempt.learn()
                    return response  # what a stream takes is not read: it counts in full
                response.read()
                passage.response = attempt.received(response)
        return passage.response

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
