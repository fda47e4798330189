"""The plain OpenAI client, with a transport underneath that can answer from records.

The transport of ``connect()`` answers live (the server of ``OPENAI_BASE_URL``), from a stored reply
to exactly this request, by the small model on this machine (:mod:`helpers.local_model`), or not at
all (:class:`helpers.outcomes.NoReply`). Replies are stored; keys never are.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from typing import Any, cast

import httpx2
import openai
from openai.lib._parsing._completions import type_to_response_format_param

from helpers import answers, local_model, servers
from helpers.budget import Budget, estimate_tokens, preview  # noqa: F401 (notebooks use them)
from helpers.outcomes import FAULTS, NoReply, Outcome, fault_of, outcome_of, usable
from helpers.replies import Body, CommittedStore, LocalStore, PendingRequests, Reply, request_key
from helpers.settings import Settings, SettingsError

PROVENANCE = "made by a Claude model from the prompt alone, see data/replies/README.md"


def is_live(settings: Settings) -> bool:
    """Whether requests go to a server.

    Raises:
        SettingsError: ``LLM_MODE`` is live but the server or the model is not named.
    """
    if settings.llm_mode not in {"auto", "live"}:
        return False
    absent = unset(settings)
    if settings.llm_mode == "live" and (absent or not settings.llm_model):
        raise SettingsError(f"LLM_MODE is live: set {absent or 'OPENAI_BASE_URL and LLM_MODEL'}.")
    return bool(settings.llm_model) and not absent


def unset(settings: Settings) -> str:
    """Return the variable without which a server that is half configured is not asked, or ""."""
    server = bool(settings.llm_base_url or settings.llm_api_key)
    if settings.llm_mode not in {"auto", "live"} or server == bool(settings.llm_model):
        return ""
    return "LLM_MODEL" if server else "OPENAI_BASE_URL"


def mode(settings: Settings | None = None) -> str:
    """Return who answers first: ``live``, ``recorded``, ``local`` or ``none``."""
    return _answering(settings or Settings.from_env())[0]


def model(settings: Settings | None = None) -> str:
    """Return the model to ask: ``LLM_MODEL``, or a placeholder where nothing is sent."""
    settings = settings or Settings.from_env()
    return settings.llm_model if settings.llm_model and is_live(settings) else "recorded"


def describe(settings: Settings | None = None) -> str:
    """Return one line that says who answers."""
    settings = settings or Settings.from_env()
    line, name = _answering(settings)[1], unset(settings)
    return f"LLM: {line}" + (f"; no server is asked, because {name} is not set" if name else "")


def _answering(settings: Settings) -> tuple[str, str]:
    """Return who answers first, and that in words; the stores are read once for both."""
    if is_live(settings):
        return "live", f"live, {settings.llm_model}"
    if settings.llm_mode in {"auto", "recorded"}:
        stores = Stores(settings)
        sources = [f"recorded replies, {PROVENANCE}"] if stores.committed.all() else []
        if models := stores.local.models():
            sources.append(f"your own stored replies, by {', '.join(models)}")
        if sources:
            return "recorded", "; for the rest ".join(sources)
    why = local_model.missing() if settings.llm_mode in {"auto", "local"} else "not wanted"
    if not why:
        return "local", f"{local_model.MODEL}, a small LLM on this machine"
    line = "none; lists keep the retriever's order and profiles are plain tables"
    return "none", line + (f" ({why})" if settings.llm_mode == "local" else "")


def connect(
    settings: Settings | None = None,
    *,
    budget: Budget | None = None,
    transport: RecordingTransport | None = None,
    local: bool = False,
) -> openai.OpenAI:
    """Return the OpenAI client; it is ordinary in every way but its transport.

    With ``local`` the small model on this machine answers what no record answers; evaluations do
    without it, so that no figure mixes the two.

    Raises:
        SettingsError: see :func:`is_live`.
    """
    settings = settings or Settings.from_env()
    live = httpx2.Client(follow_redirects=True) if is_live(settings) else None
    transport = transport or RecordingTransport(settings, live, budget or Budget.of(settings))
    here = settings.llm_mode == "local" or (local and settings.llm_mode == "auto" and live is None)
    transport.local = here and not local_model.missing()
    return openai.OpenAI(
        api_key=settings.llm_api_key or "no-key",
        base_url=settings.llm_base_url if transport.live else "http://recorded.invalid/v1",
        timeout=settings.llm_timeout_s,
        http_client=httpx2.Client(transport=transport, timeout=settings.llm_timeout_s),
    )


def response_format(schema: type) -> Body:
    """Return the ``response_format`` that the SDK's ``parse`` sends for a pydantic model."""
    return cast(Body, type_to_response_format_param(schema))


def ask(
    client: openai.OpenAI,
    messages: list[dict[str, str]],
    *,
    schema: type | None = None,
    letters: int = 0,
    **options: Any,
) -> Outcome:
    """Ask and return the text, or what went wrong; faults of a server are never raised.

    A server may write no other labels than those of ``letters`` candidates, each place once. Kinds:
    ok, no_reply, budget, quota, timeout, connection, rate_limited, server_error, rejected,
    malformed, refusal, truncated, repetition, empty, unreadable, prompt_cut.
    """
    if schema is not None:
        options["response_format"] = response_format(schema)
    if letters:  # in a header: what is asked, and so its record, stays the same
        options["extra_headers"] = {servers.LETTERS_HEADER: str(letters)}
    options.setdefault("model", model())
    create: Any = client.chat.completions.with_raw_response.create
    try:
        response = create(messages=messages, **options).http_response
    except FAULTS as error:
        return fault_of(error)
    source = response.headers.get("x-reply-source", "live")
    outcome = outcome_of({"messages": messages, **options}, servers.json_of(response), source)
    if schema is None or outcome.kind != "ok":
        return outcome
    answer = answers.read(outcome.text, schema)
    kind = "ok" if answer.value is not None else "unreadable"
    return dataclasses.replace(outcome, kind=kind, **vars(answer))


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
        if self.settings.llm_mode == "local":
            return self.local.get(key, server=local_model.SERVER, fault=usable)
        if model is None:
            if self.settings.llm_mode == "none":
                return None
            return self.committed.get(key) or self.local.get(key, fault=usable)
        own = self.local.get(key, model=model, server=server, fault=usable)
        return own or self.local.get(key, model=model, server="batch", fault=usable)

    def keep(self, body: Body, response: httpx2.Response, *, model: str, server: str) -> None:
        """Store an answer if it is usable."""
        answer = servers.answer_of(response)
        if answer is not None and not usable(body, answer):
            asked = {name: body[name] for name in body if name not in {"model", "user"}}
            self.local.put(asked, answer, model=model, server=server)


class RecordingTransport(httpx2.BaseTransport):
    """Answers from the stores, or sends on and stores the answer."""

    def __init__(
        self,
        settings: Settings,
        live: httpx2.Client | None,
        budget: Budget,
        stores: Stores | None = None,
    ) -> None:
        """``live`` is a client that reaches a server, proxies and all; ``None``: records only."""
        self.settings, self.live, self.budget = settings, live, budget
        self.stores, self.local = stores or Stores(settings), False
        self.pending = PendingRequests(settings.cache_dir / "pending.jsonl")
        self._refusals: dict[str, str] = {}  # of each model that takes plainer requests only

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request.

        Raises:
            NoReply: no server and no record.
            BudgetExceeded: the request may go over the budget; nothing was sent.
        """
        if self.live is not None and request.method != "POST":
            return self.live.send(request, stream=True)
        body = json.loads(request.read() or b"{}")
        if body.get("stream"):
            raise openai.OpenAIError("This client stores whole replies: leave stream out.")
        server = f"{request.url.host}:{request.url.port or ''}"
        asked = {"model": str(body.get("model", "")), "server": server}
        if reply := self.stores.find(body, **(asked if self.live else {})):
            headers = {"x-reply-source": reply.origin}
            return httpx2.Response(200, headers=headers, json=reply.response, request=request)
        if self.live is not None:
            response = self._by_server(self.live, request, body)
            self.stores.keep(body, response, **asked)
            return response
        if self.local:
            return self._by_local_model(request, body)
        self.pending.add({name: body[name] for name in body if name != "model"})
        names = unset(self.settings) or "OPENAI_BASE_URL, OPENAI_API_KEY and LLM_MODEL"
        raise NoReply(
            f"No reply to this request is recorded, and no LLM is configured: set {names} "
            "(see README.md); the request was noted as pending."
        )

    def _by_server(
        self, live: httpx2.Client, request: httpx2.Request, body: Body
    ) -> httpx2.Response:
        """Send a request; where its form is refused, and from then on, a plainer one."""
        headers = {k: v for k, v in request.headers.items() if k != "content-length"}
        asked = {**servers.tightened(body, headers.pop(servers.LETTERS_HEADER, None))}
        if not {"input", "max_tokens", "max_completion_tokens"} & set(body):
            asked["max_completion_tokens"] = self.settings.llm_reply_tokens
        name, chat = str(body.get("model", "")), "messages" in body and "tools" not in body

        def send(form: Body) -> httpx2.Response:
            sent = httpx2.Request(
                "POST", request.url, headers=headers, json=form, extensions=request.extensions
            )
            try:
                return servers.received(live.send(sent), self.settings)
            except httpx2.TransportError as error:  # a key may stand in an address
                raise type(error)(self.settings.scrub(str(error))) from None

        if name not in self._refusals or not chat:
            response = self.budget.spend(asked, lambda: send(asked))
            if not (chat and servers.refused(response)):
                return response
        refusal = self._refusals.get(name) or response.text
        plain = servers.plainer(asked, refusal)
        response = self.budget.spend(plain, lambda: send(plain))
        if response.is_success and name not in self._refusals:
            self._refusals[name] = refusal
            said = f"{name} refuses parts of our requests and gets plainer ones."
            warnings.warn(said, servers.ServerWarning, 2)
        return response

    def _by_local_model(self, request: httpx2.Request, body: Body) -> httpx2.Response:
        letters, log = request.headers.get(servers.LETTERS_HEADER), "local_model.log"
        asked = servers.tightened(local_model.request(body), letters, texts=True)
        answer = local_model.post(request.url.path, asked, self.settings.cache_dir / log)
        self.stores.keep(body, answer, model=local_model.MODEL, server=local_model.SERVER)
        headers, text = {"x-reply-source": "local"}, answer.content
        return httpx2.Response(answer.status_code, headers=headers, content=text, request=request)

    def close(self) -> None:
        """Close the connection."""
        if self.live is not None:
            self.live.close()
