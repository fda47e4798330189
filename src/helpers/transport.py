"""What stands under the OpenAI client: answers from the stores, a server or the local model."""

import contextlib
import json
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from string import ascii_uppercase

import httpx2
import openai

from helpers import local_model
from helpers.answers import Body, estimate_tokens, usable
from helpers.replies import Store, request_key
from helpers.settings import Settings, SettingsError

LETTERS, SOURCE = "x-letters", "x-reply-source"  # headers between the client and its transport


class NoReply(openai.OpenAIError):
    """A request was not sent: no server is named, and no reply is stored."""


class OverBudget(openai.OpenAIError):
    """A request was not sent: it could take more tokens than are left."""


def completion_limit(body: Body) -> int:
    """Return the most completion tokens a request may take, 0 where it sets no limit."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    return int(limit) * (body.get("n") or 1)


class Budget:
    """A hard limit on the tokens of live requests; a limit in dollars buys the dearer kind."""

    def __init__(self, settings: Settings) -> None:
        """Refuse a limit in dollars without prices: it could not be kept."""
        self.limit, self.spent_tokens, self._lock = settings.llm_max_tokens, 0, threading.Lock()
        if settings.llm_budget_usd:
            if not (settings.llm_price_in and settings.llm_price_out):
                raise SettingsError("LLM_BUDGET_USD needs LLM_PRICE_IN and LLM_PRICE_OUT.")
            dearer = max(settings.llm_price_in, settings.llm_price_out)
            self.limit = min(self.limit, int(settings.llm_budget_usd / dearer * 1e6))

    def spend(self, body: Body, send: Callable[[Body], httpx2.Response]) -> httpx2.Response:
        """Send a request if the most it may take is left; what it took, if told, is counted."""
        most = took = estimate_tokens(body) + completion_limit(body)
        with self._lock:
            if most > (left := self.limit - self.spent_tokens):
                why = f"Not sent: it may take {most} tokens of the {left} that are left"
                raise OverBudget(f"{why}: raise LLM_MAX_TOKENS (or LLM_BUDGET_USD).")
            self.spent_tokens += most
        try:
            response = send(body)
            with contextlib.suppress(LookupError, TypeError, ValueError, RecursionError):
                took = max(0, int(response.json()["usage"]["total_tokens"])) or most
            took *= response.is_success
            return response
        except httpx2.ConnectError:  # nothing was sent
            took = 0
            raise
        finally:
            with self._lock:
                self.spent_tokens += took - most


def tightened(body: Body, letters: int, *, texts: bool = False) -> Body:
    """Return a request whose JSON schema names the letters; for a small model, bound ``texts``."""
    names = {"type": "string", "enum": list(ascii_uppercase[:letters])}
    bounds = {"string": {"maxLength": 200}, "array": {"maxItems": 5}} if texts else {}

    def tight(node: Body) -> Body:  # the inner parts come first
        known = node.get("properties", {})
        node |= bounds.get(str(node.get("type")), {})
        if letters and "letter" in known:
            known["letter"] = names
        if letters and "items" in known.get("ranking", {}):
            known["ranking"] |= {"minItems": letters, "maxItems": letters}
            if known["ranking"]["items"].get("type") == "string":
                known["ranking"]["items"] = names
        return node

    form = json.loads(json.dumps(body.get("response_format")), object_hook=tight)
    return {**body, "response_format": form} if form else {**body}


def plainer(body: Body, refusal: str) -> Body:
    """Return a request as one message, without options, the schema in its text."""
    texts = [str(message["content"]) for message in body["messages"]]
    if schema := ((body.get("response_format") or {}).get("json_schema") or {}).get("schema"):
        texts.append(f"Answer only with JSON that fits this schema:\n{json.dumps(schema)}")
    refused = "max_completion_tokens" in body and "max_completion_tokens" in refusal
    name = "max_tokens" if refused else "max_completion_tokens"
    message = {"role": "user", "content": "\n\n".join(texts)}
    return {"model": body.get("model"), "messages": [message], name: completion_limit(body)}


@dataclass(eq=False)
class RecordingTransport(httpx2.BaseTransport):
    """Answers from the stores, or asks a server or the local model and stores the answer."""

    settings: Settings
    live: httpx2.Client | None
    budget: Budget
    store: Store
    local: bool = False

    _committed = cached_property(lambda self: Store(self.settings.replies_dir))
    _pending = cached_property(lambda self: Store(self.settings.cache_dir / "pending.jsonl"))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request; raises NoReply."""
        live, mode = self.live, self.settings.llm_mode
        body = json.loads(request.read() or b"{}")
        if not body or body.get("stream"):
            raise openai.OpenAIError("This client asks for whole replies alone: leave stream out.")
        key, recorded = request_key(body), not live and mode in ("auto", "recorded")
        model = str(body.get("model")) if live else local_model.MODEL
        source, reply = "recorded", self._committed.get(key) if recorded else None
        if reply is None and mode != "none":
            source, reply = "stored", self.store.get(key, "" if recorded else model)
        if reply:
            return httpx2.Response(200, headers={SOURCE: source}, json=reply.response)
        letters = int(request.headers.pop(LETTERS, "0"))
        asked = {name: body[name] for name in body if name != "model"}
        if live:
            response, source = self._post(live, request, tightened(body, letters)), "live"
        elif self.local:
            form = tightened(asked, letters, texts=True)
            response, source = local_model.post(request.url.path, form), "local"
        else:
            if self._pending.get(key) is None:
                self._pending.put(asked, {})
            raise NoReply(
                "No reply to this request is recorded, and no LLM is configured: set "
                "OPENAI_BASE_URL, OPENAI_API_KEY and LLM_MODEL (see docs/running.md); the request "
                "was noted as pending."
            )
        text = self.settings.scrub(response.text)
        if response.is_success and not usable(asked, text):
            self.store.put(asked, json.loads(text), model=model)
        headers = {SOURCE: source, "retry-after": response.headers.get("retry-after", "")}
        return httpx2.Response(response.status_code, headers=headers, content=text)

    def _post(self, live: httpx2.Client, request: httpx2.Request, form: Body) -> httpx2.Response:
        """Send a request; where its form is refused, a plainer one."""
        if "input" not in form and not completion_limit(form):
            form["max_completion_tokens"] = self.settings.llm_reply_tokens
        del request.headers["content-length"]

        def send(form: Body) -> httpx2.Response:
            return live.post(request.url, json=form, headers=request.headers)

        response = self.budget.spend(form, send)
        if response.status_code in (400, 422, 501) and "messages" in form and "tools" not in form:
            warnings.warn("The server refused a request and gets a plainer one.", stacklevel=2)
            response = self.budget.spend(plainer(form, response.text), send)
        return response
