"""The plain OpenAI client, which can also answer from records, or by a small model of its own."""

import dataclasses
from typing import Any

import httpx2
import openai
from openai.lib._parsing._completions import type_to_response_format_param

from helpers import answers, local_model, transport
from helpers.answers import Body, Outcome, estimate_tokens  # noqa: F401 (llm.estimate_tokens)
from helpers.replies import Store
from helpers.settings import Settings
from helpers.transport import Budget

PROVENANCE = "made by a Claude model from the prompt alone, see data/replies/README.md"
KINDS: dict[type[Exception], str] = {
    transport.NoReply: "no_reply",
    transport.OverBudget: "budget",
    openai.APITimeoutError: "timeout",
    openai.RateLimitError: "rate_limited",
    openai.InternalServerError: "server_error",
    openai.APIStatusError: "rejected",
    openai.APIConnectionError: "connection",
}


def is_live(settings: Settings) -> bool:
    """Whether requests go to a server."""
    named = settings.llm_model and (settings.llm_base_url or settings.llm_api_key)
    return bool(named) and settings.llm_mode in ("auto", "live")


def model(settings: Settings | None = None) -> str:
    """Return the model to ask: ``LLM_MODEL``, or a placeholder where nothing is sent."""
    settings = settings or Settings.from_env()
    return settings.llm_model or "" if is_live(settings) else "recorded"


def describe(settings: Settings | None = None) -> str:
    """Return one line that says who answers."""
    settings = settings or Settings.from_env()
    if is_live(settings):
        return f"LLM: live, {settings.llm_model}"
    mode, sources = settings.llm_mode, []
    if mode in ("auto", "recorded"):
        own = sorted({reply.asked for reply in Store(settings.cache_dir / "replies.jsonl").all()})
        recorded = any(settings.replies_dir.glob("*.jsonl"))
        sources += [f"recorded replies, {PROVENANCE}"] if recorded else []
        sources += [f"your own stored replies, by {', '.join(own)}"] if own else []
    if not sources and mode in ("auto", "local") and not local_model.missing():
        sources = [f"{local_model.MODEL}, a small LLM on this machine"]
    none = "none; lists keep the retriever's order and profiles are plain tables"
    line = f"LLM: {'; for the rest '.join(sources) or none}"
    if mode == "auto" and (settings.llm_base_url or settings.llm_api_key or settings.llm_model):
        line += "; no server is asked, because OPENAI_BASE_URL or LLM_MODEL is not set"
    return line


def connect(
    settings: Settings | None = None,
    *,
    budget: Budget | None = None,
    store: Store | None = None,
    live: httpx2.Client | None = None,
    local: bool = False,
) -> openai.OpenAI:
    """Return the OpenAI client; with ``local`` a small model answers what no record answers."""
    settings = settings or Settings.from_env()
    asks, mode, wait = is_live(settings), settings.llm_mode, settings.llm_timeout_s
    live = (live or httpx2.Client(follow_redirects=True, timeout=wait)) if asks else None
    local = (mode == "local" or (local and mode == "auto")) and not local_model.missing()
    budget, store = budget or Budget(settings), store or Store(settings.cache_dir / "replies.jsonl")
    under = transport.RecordingTransport(settings, live, budget, store, local)
    return openai.OpenAI(
        api_key=settings.llm_api_key or "no-key",
        base_url=settings.llm_base_url or "https://api.openai.com/v1",  # the SDK's own may be ""
        timeout=wait,
        http_client=httpx2.Client(transport=under),
    )


def response_format(schema: type) -> Any:
    """Return the ``response_format`` that the SDK's ``parse`` sends for a pydantic model."""
    return type_to_response_format_param(schema)


def ask(
    client: openai.OpenAI, messages: list[Body], *, schema: type | None = None, letters=0, **options
) -> Outcome:
    """Ask and return the text, or what went wrong; faults of a server are never raised."""
    if schema is not None:
        options["response_format"] = response_format(schema)
    if 0 < letters <= 26:  # in a header: what is asked, and so its record, stays the same
        options["extra_headers"] = {transport.LETTERS: str(letters)}
    options.setdefault("model", model())
    try:
        create: Any = client.chat.completions.with_raw_response.create
        response = create(messages=messages, **options).http_response
    except openai.OpenAIError as error:
        return fault_of(error)
    outcome = answers.outcome_of(response.text, response.headers[transport.SOURCE], messages)
    if schema is None or outcome.kind != "ok":
        return outcome
    made = {"source": outcome.source, "model": outcome.model, "response": outcome.response}
    return dataclasses.replace(answers.read(outcome.text, schema), **made)


def fault_of(error: Exception) -> Outcome:
    """Return the outcome that an OpenAIError stands for."""
    kind = next((kind for fault, kind in KINDS.items() if isinstance(error, fault)), "malformed")
    hints = {"timeout": "raise LLM_TIMEOUT_S", "connection": "check OPENAI_BASE_URL"}
    body = "" if " - " in str(error) else getattr(error, "body", None) or ""  # no message in it
    why = (str(error).rstrip("."), str(body), str(error.__cause__ or ""), hints.get(kind))
    return Outcome(None, kind, " ".join("; ".join(filter(None, why)).split())[:300])
