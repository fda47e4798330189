"""The plain OpenAI client, with a transport underneath that can answer from records.

Four ways to answer: live (the server of ``OPENAI_BASE_URL``), from a stored reply to exactly this
request, by the small model on this machine, or not at all. Replies are stored; keys never are.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import httpx2
import openai
from openai.lib._parsing._completions import type_to_response_format_param

from helpers import answers, local_model, servers
from helpers.budget import Budget, estimate_tokens, preview  # noqa: F401 (notebooks use them)
from helpers.outcomes import FAULTS, Outcome, fault_of, outcome_of, usable  # noqa: F401
from helpers.replies import Body, CommittedStore, LocalStore
from helpers.settings import Settings, SettingsError
from helpers.transport import RecordingTransport

PROVENANCE = "made by a Claude model from the prompt alone, see data/replies/README.md"


def is_live(settings: Settings) -> bool:
    """Whether requests go to a server.

    Raises:
        SettingsError: ``LLM_MODE`` is live but the server or the model is not named.
    """
    if settings.llm_mode == "live" and unset(settings) != "":
        raise SettingsError(f"LLM_MODE is live: set {unset(settings)}.")
    return settings.llm_mode in {"auto", "live"} and unset(settings) == ""


def unset(settings: Settings) -> str:
    """Return the variables without which no server is asked, or ""."""
    named = {
        "OPENAI_BASE_URL": settings.llm_base_url or settings.llm_api_key,
        "LLM_MODEL": settings.llm_model,
    }
    return " and ".join(name for name, value in named.items() if not value)


def model(settings: Settings | None = None) -> str:
    """Return the model to ask: ``LLM_MODEL``, or a placeholder where nothing is sent."""
    settings = settings or Settings.from_env()
    return settings.llm_model if settings.llm_model and is_live(settings) else "recorded"


def describe(settings: Settings | None = None) -> str:
    """Return one line that says who answers."""
    settings = settings or Settings.from_env()
    line, name = f"LLM: {_answering(settings)}", unset(settings)
    half = settings.llm_mode == "auto" and name in {"OPENAI_BASE_URL", "LLM_MODEL"}
    return f"{line}; no server is asked, because {name} is not set" if half else line


def _answering(settings: Settings) -> str:
    """Return who answers first."""
    if is_live(settings):
        return f"live, {settings.llm_model}"
    if settings.llm_mode in {"auto", "recorded"}:
        committed = CommittedStore(settings.replies_dir)
        sources = [f"recorded replies, {PROVENANCE}"] if committed else []
        if models := LocalStore(settings.cache_dir / "replies.jsonl").models():
            sources.append(f"your own stored replies, by {', '.join(models)}")
        if sources:
            return "; for the rest ".join(sources)
    why = local_model.missing() if settings.llm_mode in {"auto", "local"} else "not wanted"
    if not why:
        return f"{local_model.MODEL}, a small LLM on this machine"
    line = "none; lists keep the retriever's order and profiles are plain tables"
    return line + (f" ({why})" if settings.llm_mode == "local" else "")


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
