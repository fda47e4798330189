"""The plain OpenAI client, with a transport underneath that can answer from records.

Four ways to answer: live (the server of ``OPENAI_BASE_URL``), from a stored reply to exactly this
request, by the small model on this machine, or not at all. Replies are stored; keys never are.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, cast

import httpx2
import openai
import pandas as pd
from openai.lib._parsing._completions import type_to_response_format_param

from helpers import answers, local_model, transport
from helpers.answers import Body, Outcome, estimate_tokens
from helpers.replies import CommittedStore, LocalStore  # noqa: F401 (llm.CommittedStore)
from helpers.settings import Settings, SettingsError
from helpers.transport import Budget, completion_limit

PROVENANCE = "made by a Claude model from the prompt alone, see data/replies/README.md"
FAULTS = (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError)
"""What a request can raise; a fault of the program is none of them."""


def is_live(settings: Settings) -> bool:
    """Whether requests go to a server; a SettingsError where they must but it is not named."""
    named = bool(settings.llm_model and (settings.llm_base_url or settings.llm_api_key))
    if settings.llm_mode == "live" and not named:
        raise SettingsError("LLM_MODE is live: set OPENAI_BASE_URL and LLM_MODEL.")
    return settings.llm_mode in ("auto", "live") and named


def model(settings: Settings | None = None) -> str:
    """Return the model to ask: ``LLM_MODEL``, or a placeholder where nothing is sent."""
    settings = settings or Settings.from_env()
    return settings.llm_model if settings.llm_model and is_live(settings) else "recorded"


def describe(settings: Settings | None = None) -> str:
    """Return one line that says who answers."""
    settings = settings or Settings.from_env()
    if is_live(settings):
        return f"LLM: live, {settings.llm_model}"
    mode, sources, why = settings.llm_mode, [], local_model.missing()
    if mode in ("auto", "recorded"):
        own = {reply.asked for reply in LocalStore(settings.cache_dir / "replies.jsonl").all()}
        recorded = any(settings.replies_dir.glob("*.jsonl"))
        sources += [f"recorded replies, {PROVENANCE}"] if recorded else []
        sources += [f"your own stored replies, by {', '.join(sorted(own))}"] if own else []
    if not sources and mode in ("auto", "local") and not why:
        sources = [f"{local_model.MODEL}, a small LLM on this machine"]
    none = "none; lists keep the retriever's order and profiles are plain tables"
    line = "; for the rest ".join(sources) or none + f" ({why})" * (mode == "local")
    if mode == "auto" and (settings.llm_base_url or settings.llm_api_key or settings.llm_model):
        line += "; no server is asked, because OPENAI_BASE_URL or LLM_MODEL is not set"
    return f"LLM: {line}"


def preview(bodies: Iterable[Body], settings: Settings | None = None) -> pd.Series:
    """Say what a set of requests would take live, before any is sent; tokens are estimates."""
    settings, bodies = settings or Settings.from_env(), list(bodies)
    limited = [{"max_tokens": settings.llm_reply_tokens, **body} for body in bodies]
    prompts, most = sum(map(estimate_tokens, bodies)), sum(map(completion_limit, limited))
    dollars = prompts * (settings.llm_price_in or 0) + most * (settings.llm_price_out or 0)
    cost = f"{dollars / 1e6:.4f}" if settings.llm_price_in and settings.llm_price_out else "unknown"
    return pd.Series(
        {
            "requests": len(bodies),
            "prompt tokens (estimated)": prompts,
            "completion tokens (at most)": most,
            "cost (US dollars, at most)": cost,
            "token limit": settings.llm_max_tokens,
        }
    )


def connect(
    settings: Settings | None = None,
    *,
    budget: Budget | None = None,
    store: LocalStore | None = None,
    live: httpx2.Client | None = None,
    local: bool = False,
) -> openai.OpenAI:
    """Return the OpenAI client; it is ordinary in every way but its transport.

    ``live`` reaches the server. With ``local`` the small model on this machine answers what no
    record answers; evaluations do without it, so that no figure mixes the two.
    """
    settings = settings or Settings.from_env()
    asks = is_live(settings)
    local = settings.llm_mode == "local" or (local and settings.llm_mode == "auto" and not asks)
    under = transport.RecordingTransport(
        settings,
        live or httpx2.Client(follow_redirects=True) if asks else None,
        budget or Budget(settings),
        store or LocalStore(settings.cache_dir / "replies.jsonl"),
        local and not local_model.missing(),
    )
    address = settings.llm_base_url or "https://api.openai.com/v1"  # the SDK's own may be ""
    return openai.OpenAI(
        api_key=settings.llm_api_key or "no-key",
        base_url=address if asks else "http://recorded.invalid/v1",
        timeout=settings.llm_timeout_s,
        http_client=httpx2.Client(transport=under),
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
    ok, no_reply, budget, timeout, connection, rate_limited, server_error, rejected, malformed,
    refusal, truncated, repetition, empty, unreadable, prompt_cut.
    """
    if schema is not None:
        options["response_format"] = response_format(schema)
    if 0 < letters <= 26:  # in a header: what is asked, and so its record, stays the same
        options["extra_headers"] = {transport.LETTERS: str(letters)}
    options.setdefault("model", model())
    create: Any = client.chat.completions.with_raw_response.create
    try:
        response = create(messages=messages, **options).http_response
    except FAULTS as error:
        return fault_of(error)
    source = response.headers[transport.SOURCE]
    outcome = answers.outcome_of(answers.json_of(response.text), source, {"messages": messages})
    if schema is None or outcome.kind != "ok":
        return outcome
    made = {"source": source, "model": outcome.model, "response": outcome.response}
    return dataclasses.replace(answers.read(outcome.text, schema), **made)


def fault_of(error: Exception) -> Outcome:
    """Return the outcome that one of :data:`FAULTS` stands for."""
    kind, why = "malformed", f"the request could not be made: {error}"
    match error:
        case transport.NoReply():  # or no budget
            kind, why = error.kind, str(error)
        case openai.APITimeoutError():
            kind = "timeout"
            why = "the server did not answer in time: raise LLM_TIMEOUT_S or ask for less"
        case openai.APIStatusError(status_code=status):
            kind = "server_error" if status >= 500 else "rejected"
            kind = "rate_limited" if status == 429 else kind
            said = answers.shortened(error.response.text) or "nothing"
            why = f"the server answered {status}: {said}"
        case openai.APIConnectionError() | httpx2.HTTPError() | httpx2.StreamError():
            kind = "connection"
            why = f"the connection failed ({error.__cause__ or error}): check OPENAI_BASE_URL"
    return Outcome(None, kind, why)
