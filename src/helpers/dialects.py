"""What a server refuses of a request, and what is said to it instead."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import warnings

import httpx2

from helpers.budgets import answer_of, completion_limit, json_of, token_count
from helpers.outcomes import no_quota, one_text, said
from helpers.replies import Body
from helpers.settings import Settings

ADAPTIONS = 6
"""How often a request is changed and sent again because the server refuses a part of it."""

Changes = dict[str, str]
"""A part of a request that a server refuses, to what takes its place; "" where it is left out."""

LIMITS = ("max_completion_tokens", "max_tokens")
RULES = ("system", "developer")
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
_NOT = r"not (supported|allowed|permitted|available|enabled|implemented)|unsupported|disabled"
_TOO_LARGE = r"too (large|high|big)|at most|less than|valid range|maximum (allowed )?(value|number)"
_INSTEAD = "\n\nAnswer with JSON that fits this JSON schema, and with nothing else:\n"
# A word like "user" or "stop" says something else in most sentences.
_WORD = (
    r"['\"`]{0}['\"`]|\b((parameter|argument|field|property|option)|input|un\w+|extra)s?"
    r"( supplied)?[:=]?\s+{0}\b|\b{0} (parameter|argument|field|property|option|"
    rf"(is|are) ({_NOT}))\b|\b{{0}} ?[=<>]"
)


class ServerWarning(UserWarning):
    """A server does not take a part of our requests; they are changed for it."""


def adapted(body: Body, changes: Changes) -> Body:
    """Return a request as a server takes it that refuses the keys of ``changes``."""
    sent = dict(body)
    for name, value in changes.items():
        if name == "limit":
            limits = [sent.pop(limit) for limit in LIMITS if limit in sent]
            sent |= {value: limits[0]} if value and limits else {}
        elif name == "system":
            messages = sent.get("messages") or []
            rules = [str(m.get("content") or "") for m in messages if m.get("role") in RULES]
            if rules:
                rest = [m for m in messages if m.get("role") not in RULES]
                sent["messages"] = _joined(rest, before="\n\n".join(rules))
        elif name == "strict":
            with contextlib.suppress(KeyError, TypeError):
                schema = dict(sent["response_format"]["json_schema"])
                schema.pop("strict", None)
                sent["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif (form := sent.pop(name, None)) and name == "response_format":
            if form.get("type") == "json_schema":
                schema = json.dumps(form["json_schema"].get("schema"), ensure_ascii=False)
                sent["messages"] = _joined(sent["messages"], after=_INSTEAD + schema)
            sent |= {name: {"type": value}} if value else {}
    if not sent.get("logprobs"):
        sent.pop("top_logprobs", None)  # which needs it
    return sent


def _joined(messages: list[Body], before: str = "", after: str = "") -> list[Body]:
    """Put text before the first message of the user, or after the last; make one if none is."""
    places = [i for i, message in enumerate(messages) if message.get("role") == "user"]
    if not places:
        fresh = [{"role": "user", "content": before or after.strip()}]
        return fresh + messages if before else messages + fresh
    place = places[0] if before else places[-1]
    content = messages[place].get("content")
    if isinstance(content, str):
        content = f"{before}\n\n{content}" if before else content + after
    else:
        part = {"type": "text", "text": before or after}
        content = [part, *(content or [])] if before else [*(content or []), part]
    return [*messages[:place], {**messages[place], "content": content}, *messages[place + 1 :]]


def refusal(sent: Body, words: str, changes: Changes) -> tuple[str, str] | None:
    """Say which part of a request a server's error names, and what to send instead, or ``None``.

    Where the error names several parts the first counts. ``changes`` are those in ``sent`` already.
    """
    text = words.lower()
    patterns: dict[tuple[str, str], str] = {}
    form = sent.get("response_format") or {}
    strict = "strict" in (form.get("json_schema") or {})
    if strict and re.search(r"\bstrict\b", text):
        patterns["strict", ""] = r"\bstrict\b"
    elif form:
        plainer = "json_object" if form.get("type") == "json_schema" else ""
        patterns["response_format", plainer] = _FORMAT
    if any(message.get("role") in RULES for message in sent.get("messages") or []):
        patterns["system", "user"] = _SYSTEM
    for name, other in (LIMITS, LIMITS[::-1]):
        if name in sent and "context" in text:
            patterns["window", ""] = rf"\b{name}\b|\b{other}\b|in the completion"
        elif name in sent:
            value = "" if "limit" in changes or re.search(_TOO_LARGE, text) else other
            patterns["limit", value] = rf"\b{name}\b|\b{other}\b"
    for name in sorted(sent.keys() - _KEPT):
        plain = "_" in name or name in ("temperature", "logprobs")
        spelled = name.replace("_", "[_ ]")
        patterns[name, ""] = rf"\b{spelled}\b" if plain else _WORD.replace("{0}", name)
    matches = {change: re.search(p, text, re.DOTALL) for change, p in patterns.items()}
    places = {change: match.start() for change, match in matches.items() if match}
    return min(places, key=places.__getitem__, default=None)


def _changed(name: str, value: str) -> str:
    instead = "a JSON object is asked for, and " if value else ""
    return {
        "system": "the role system (merged into the first user message)",
        "response_format": f"its response_format ({instead}the schema stands in the prompt)",
        "limit": f"the name of its limit ({value} is sent)" if value else "a limit (none is sent)",
    }.get(name, f"{name} (left out)")


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
            parts = ", ".join(_changed(name, value) for name, value in fresh.items())
            text = (
                f"The model {place[1]} does not take {parts}: its requests are changed from now on."
            )
            warnings.warn(text, ServerWarning, stacklevel=2)


class Attempt:
    """A request on its way to a server that may refuse parts of it; both transports use it."""

    def __init__(self, settings: Settings, dialects: Dialects, request: httpx2.Request, body: Body):
        """``body`` is what the caller asked; its limit is added where it names none."""
        self._settings, self._dialects, self._request = settings, dialects, request
        self._place = (server_of(request.url), str(body.get("model", "")))
        if "messages" in body and not any(body.get(name) for name in LIMITS):
            body = {**body, LIMITS[0]: settings.llm_reply_tokens}
        self._asked, self.body = body, body
        self._changes: Changes = {}
        self._once: Changes = {}
        self._left = ADAPTIONS

    def start(self) -> None:
        """Take over what other requests have learned until now, when this one is to be sent."""
        self._changes = self._dialects.of(self._place)
        self.body = adapted(self._asked, self._changes)

    def request(self) -> httpx2.Request:
        """Return the request as it is sent."""
        asked = self._request
        headers = _headers(asked, "content-length")
        return httpx2.Request(
            asked.method, asked.url, headers=headers, json=self.body, extensions=asked.extensions
        )

    def received(self, response: httpx2.Response) -> httpx2.Response:
        """Return a response, read before, as the SDK can take it and without the key.

        An error in a body of status 200 becomes an error, text in parts becomes one text, and an
        error that only money or time mends is marked so that the SDK does not ask again.
        """
        status, content, body = response.status_code, response.content, json_of(response.content)
        headers = _headers(response, "content-encoding", "content-length", "transfer-encoding")
        if response.is_success and isinstance(body, dict):
            error = body.get("error")
            if error and not body.get("choices"):
                headers.append(("x-reply-status", str(status)))
                code = error.get("code") if isinstance(error, dict) else None
                status = code if isinstance(code, int) and 400 <= code < 600 else 400
            else:
                headers = [(name, value) for name, value in headers if name != "content-type"]
                headers.append(("content-type", "application/json"))
                content = json.dumps(one_text(body)).encode()
        if not 200 <= status < 300:
            content = self._settings.scrub(response.text).encode()
            headers += [("x-should-retry", "false")] if no_quota(status, response.text) else []
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
            usage = (answer_of(response) or {}).get("usage")
            self.learn(token_count(usage, "completion_tokens") or 0)
            return False
        if response.status_code not in (400, 404, 415, 422, 500, 501) or not self._left:
            return False
        change = refusal(self.body, " ".join(said(response.text)), self._changes)
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


def _headers(message: httpx2.Request | httpx2.Response, *without: str) -> list[tuple[str, str]]:
    pairs = [(name.lower(), value) for name, value in message.headers.multi_items()]
    return [(name, value) for name, value in pairs if name not in without]


def server_of(url: httpx2.URL) -> str:
    """Return the name under which the replies of a server are stored."""
    return f"{url.host}:{url.port or ''}"
