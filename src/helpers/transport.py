"""What stands under the OpenAI client: answers from the stores, a server or the local model."""

import json
import re
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from string import ascii_uppercase

import httpx2
import openai

from helpers import local_model
from helpers.answers import Body, estimate_tokens, json_of, tokens_taken, usable
from helpers.replies import Store, request_key
from helpers.settings import Settings, SettingsError

LETTERS, SOURCE = "x-letters", "x-reply-source"  # headers between the client and its transport


class NoReply(openai.OpenAIError):
    """A request was not sent: none may be and no reply is stored, or it could cost too much."""

    kind = "no_reply"  # or "budget"


def completion_limit(body: Body) -> int:
    """Return the most completion tokens a request may take, 0 where it sets no limit."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or 0
    return int(limit) * int(body.get("n") or 1)


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

    def spend(self, body: Body, send: Callable[[], httpx2.Response]) -> httpx2.Response:
        """Send a request if the most it may take is left, also beside others; count what it took.

        What is not reported counts as the most. Raises NoReply of kind ``budget``.
        """
        most = took = estimate_tokens(body) + completion_limit(body)
        with self._lock:
            if self.spent_tokens + most > self.limit:
                fault = NoReply(
                    f"Not sent: {self.spent_tokens} of {self.limit} tokens are spent, this request "
                    f"may take {most}: raise LLM_MAX_TOKENS (or LLM_BUDGET_USD), or lower "
                    "LLM_REPLY_TOKENS."
                )
                fault.kind = "budget"
                raise fault
            self.spent_tokens += most
        try:
            response = send()
            told = tokens_taken(json_of(response.text), "total_tokens")
            took = (told or most) if response.is_success else 0
            return response
        except httpx2.ConnectError:  # nothing was sent
            took = 0
            raise
        finally:
            with self._lock:
                self.spent_tokens += took - most


def tightened(body: Body, letters: int, *, texts: bool = False) -> Body:
    """Return a request whose JSON schema names the letters and their number.

    ``texts`` bounds texts and lists too, which a small model needs and not every server takes.
    """
    names = {"type": "string", "enum": list(ascii_uppercase[:letters])}

    def tight(node: Body) -> Body:  # the inner parts come first
        known, kind = node.get("properties", {}), node.get("type")
        if texts and kind in ("string", "array"):
            node |= {"maxLength": 200} if kind == "string" else {"maxItems": 5}
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
        wanted = json.dumps(schema, ensure_ascii=False)
        texts.append(f"Answer only with JSON that fits this schema:\n{wanted}")
    # The limit has the name that is not refused; an error names the refused one first.
    named = re.findall("max_completion_tokens|max_tokens", refusal)
    name = "max_tokens" if named[:1] == ["max_completion_tokens"] else "max_completion_tokens"
    message = {"role": "user", "content": "\n\n".join(texts)}
    return {"model": body.get("model"), "messages": [message], name: completion_limit(body)}


@dataclass(eq=False)
class RecordingTransport(httpx2.BaseTransport):
    """Answers from the stores, or asks a server or the local model and stores the answer.

    ``live`` is a client that reaches the server, proxies and all.
    """

    settings: Settings
    live: httpx2.Client | None
    budget: Budget
    store: Store
    local: bool = False
    _refusals: dict[str, str] = field(default_factory=dict)  # of models that get plainer requests

    @cached_property
    def committed(self) -> Store:
        """The course's replies, read when the first one is wanted."""
        return Store(self.settings.replies_dir)

    @cached_property
    def pending(self) -> Store:
        """The requests that found no answer."""
        return Store(self.settings.cache_dir / "pending.jsonl")

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request; raises NoReply."""
        live, mode = self.live, self.settings.llm_mode
        if live and request.method != "POST":
            return live.send(request, stream=True)
        body = json.loads(request.read() or b"{}")
        if body.get("stream"):
            raise openai.OpenAIError("This client stores whole replies: leave stream out.")
        key, recorded = request_key(body), not live and mode in ("auto", "recorded")
        model = str(body.get("model")) if live else local_model.MODEL
        source, reply = "recorded", self.committed.get(key) if recorded else None
        if reply is None and mode != "none":
            source, reply = "stored", self.store.usable(key, "" if recorded else model)
        if reply:
            return httpx2.Response(200, headers={SOURCE: source}, json=reply.response)
        letters = int(request.headers.pop(LETTERS, "0"))
        asked = {name: body[name] for name in body if name != "model"}
        if live:
            response, source = self._post(live, request, tightened(body, letters)), "live"
        elif self.local:
            form, log = tightened(asked, letters, texts=True), "local_model.log"
            response = local_model.post(request.url.path, form, self.settings.cache_dir / log)
            source = "local"
        else:
            if self.pending.get(key) is None:
                self.pending.put(asked, {})
            why = "No reply to this request is recorded, and no LLM is configured: set "
            why += "OPENAI_BASE_URL, OPENAI_API_KEY and LLM_MODEL"
            if mode != "auto" and self.settings.llm_model:
                why = f"No server is asked while LLM_MODE is {mode}: set it to auto"
            raise NoReply(f"{why} (see docs/running.md); the request was noted as pending.")
        text = self.settings.scrub(response.text)
        if response.is_success and not usable(asked, answer := json_of(text)):
            self.store.put(asked, answer, model=model)
        wait = {k: v for k, v in response.headers.items() if k == "retry-after"}
        return httpx2.Response(response.status_code, headers=wait | {SOURCE: source}, content=text)

    def _post(self, live: httpx2.Client, request: httpx2.Request, form: Body) -> httpx2.Response:
        """Send a request; where its form is refused, and from then on, a plainer one."""
        if "input" not in form and not completion_limit(form):
            form["max_completion_tokens"] = self.settings.llm_reply_tokens
        headers = {k: v for k, v in request.headers.items() if k != "content-length"}
        parts = {"headers": headers, "extensions": request.extensions}

        def send(form: Body) -> httpx2.Response:
            sent = httpx2.Request("POST", request.url, json=form, **parts)
            return self.budget.spend(form, lambda: live.send(sent))

        name, chat = str(form.get("model")), "messages" in form and "tools" not in form
        if chat and name in self._refusals:
            return send(plainer(form, self._refusals[name]))
        response = send(form)
        status, refusal = response.status_code, response.text
        said = re.search(r"(?<![a-z])(template|role|format|schema)", refusal, re.IGNORECASE)
        if chat and (status in (400, 415, 422, 501) or (said and status == 500)):
            response = send(plainer(form, refusal))
            if response.is_success:
                self._refusals[name] = refusal
                warnings.warn(f"{name} refuses our requests and gets plainer ones.", stacklevel=2)
        return response

    def close(self) -> None:
        """Close the connection."""
        if self.live:
            self.live.close()
