"""What stands under the OpenAI client: answers from the stores, a server or the local model."""

from __future__ import annotations

import json
import warnings
from functools import cached_property, partial

import httpx2
import openai

from helpers import local_model, servers
from helpers.budget import Budget
from helpers.outcomes import NoReply, usable
from helpers.replies import (
    LOCAL,
    Body,
    CommittedStore,
    LocalStore,
    PendingRequests,
    Reply,
    request_key,
)
from helpers.settings import Settings


class RecordingTransport(httpx2.BaseTransport):
    """Answers from the stores, or sends on and stores the answer."""

    def __init__(
        self,
        settings: Settings,
        live: httpx2.Client | None,
        budget: Budget,
        store: LocalStore | None = None,
    ) -> None:
        """``live`` is a client that reaches a server, proxies and all; ``None``: records only."""
        self.settings, self.live, self.budget, self.local = settings, live, budget, False
        self.store = store or LocalStore(settings.cache_dir / "replies.jsonl")
        self._refusals: dict[str, str] = {}  # of each model that takes plainer requests only

    @cached_property
    def committed(self) -> CommittedStore:
        """The course's replies, read when the first one is wanted."""
        return CommittedStore(self.settings.replies_dir)

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
        model, server = str(body.get("model", "")), f"{request.url.host}:{request.url.port or ''}"
        if reply := self._find(body, model, server):
            headers = {"x-reply-source": "stored" if reply.source == LOCAL else "recorded"}
            return httpx2.Response(200, headers=headers, json=reply.response, request=request)
        if self.live is not None:
            response = self._by_server(self.live, request, body)
            self._keep(body, response, model, server)
            return response
        if self.local:
            return self._by_local_model(request, body)
        pending = PendingRequests(self.settings.cache_dir / "pending.jsonl")
        pending.add({name: body[name] for name in body if name != "model"})
        raise NoReply(
            "No reply to this request is recorded, and no LLM is configured: set OPENAI_BASE_URL, "
            "OPENAI_API_KEY and LLM_MODEL (see README.md); the request was noted as pending."
        )

    def _find(self, body: Body, model: str, server: str) -> Reply | None:
        """Return a usable reply: where a server is asked, that model's own, from it or a batch."""
        key, find = request_key(body), partial(self.store.get, fault=usable)
        if self.settings.llm_mode == "local":
            return find(key, server=local_model.SERVER)
        if self.live is not None:
            return find(key, model=model, server=server) or find(key, model=model, server="batch")
        return None if self.settings.llm_mode == "none" else self.committed.get(key) or find(key)

    def _keep(self, body: Body, response: httpx2.Response, model: str, server: str) -> None:
        """Store an answer if it is usable."""
        answer = servers.answer_of(response)
        if answer is not None and not usable(body, answer):
            asked = {name: body[name] for name in body if name not in {"model", "user"}}
            self.store.put(asked, answer, model=model, server=server)

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
        self._keep(body, answer, local_model.MODEL, local_model.SERVER)
        headers, text = {"x-reply-source": "local"}, answer.content
        return httpx2.Response(answer.status_code, headers=headers, content=text, request=request)

    def close(self) -> None:
        """Close the connection."""
        if self.live is not None:
            self.live.close()
