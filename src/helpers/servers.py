"""Requests on their way to a server: ever plainer forms for what it refuses."""

from __future__ import annotations

import json
import re
import warnings
from typing import Any

import httpx2

from helpers.replies import Body
from helpers.settings import Settings

QUOTA = r"insufficient_quota|quota|billing|credits?\b|(daily|monthly|usage) limit|payment"
LETTERS_HEADER = "x-letters"  # the header with the number of candidates; it is not sent
LAST_FORM = 3
"""0: as asked; 1: without sampling options and with any JSON object; 2: one plain message; 3: the
same with the older name of the limit."""


def tightened(body: Body, letters: str | None, *, texts: bool = False) -> Body:
    """Return a request whose JSON schema names the letters and their number.

    ``texts`` bounds texts and other lists too, which not every server takes; without it a small
    model repeats itself without end.
    """
    labels = [chr(65 + i) for i in range(int(letters or 0))]

    def bounded(node: Body) -> Body:
        if node.get("type") == "string" and texts and "enum" not in node:
            return {**node, "maxLength": 200}
        if node.get("type") == "array" and texts and "minItems" not in node:
            return {**node, "maxItems": 5}
        return node

    def lettered(node: Body) -> Body:
        known = node.get("properties", {})
        if "letter" in known:
            known["letter"] = {"type": "string", "enum": labels}
        if "ranking" in known:
            known["ranking"] |= {"minItems": len(labels), "maxItems": len(labels)}
            if known["ranking"]["items"].get("type") == "string":
                known["ranking"]["items"] = {"type": "string", "enum": labels}
        return node

    form = json.dumps(body.get("response_format") or {})
    if 0 < len(labels) <= 26:
        form = json.dumps(json.loads(form, object_hook=lettered))
    form = json.loads(form, object_hook=bounded)
    return {**body, "response_format": form} if form else body


class ServerWarning(UserWarning):
    """A server does not take a part of our requests; they are changed for it."""


class Attempt:
    """A request on its way to a server that may refuse parts of it; then a plainer form is sent."""

    def __init__(
        self, settings: Settings, forms: dict[tuple[str, str], int], request: httpx2.Request
    ) -> None:
        """``forms`` remembers, for all requests of a client, what each (server, model) takes."""
        self.settings, self.asked = settings, json.loads(request.content or b"{}")
        self._forms, self._request = forms, request
        self.place = (server_of(request.url), str(self.asked.get("model", "")))
        self._form = forms.get(self.place, 0)
        self._tight = tightened(self.asked, request.headers.get(LETTERS_HEADER))

    @property
    def body(self) -> Body:
        """The request as it is sent."""
        return plainer(self._tight, self._form, self.settings.llm_reply_tokens)

    def request(self) -> httpx2.Request:
        """Return the request as it is sent."""
        headers = [
            pair
            for pair in self._request.headers.multi_items()
            if pair[0] not in ("content-length", LETTERS_HEADER)
        ]
        asked = self._request
        return httpx2.Request(
            "POST", asked.url, headers=headers, json=self.body, extensions=asked.extensions
        )

    def received(self, response: httpx2.Response) -> httpx2.Response:
        """Return a response, read before, without the key in its errors.

        An error in a body of status 200 becomes an error, and the SDK is told not to ask again
        where only money helps.
        """
        body = json_of(response)
        fault = isinstance(body, dict) and body.get("error") and not body.get("choices")
        if response.is_success and not fault:
            return httpx2.Response(200, content=response.content, request=self._request)
        status, headers = 400 if fault and response.is_success else response.status_code, {}
        if "retry-after" in response.headers:
            headers["retry-after"] = response.headers["retry-after"]
        if no_quota(status, response.text):
            headers["x-should-retry"] = "false"
        text = self.settings.scrub(response.text)
        return httpx2.Response(status, headers=headers, content=text, request=self._request)

    def again(self, response: httpx2.Response) -> bool:
        """Whether to send the next plainer form in place of the one that was refused."""
        known, text = self._forms.get(self.place, 0), response.text.lower()
        if response.is_success and self._form > known:
            self._forms[self.place] = self._form
            name = self.place[1]
            warnings.warn(
                f"{name} refuses parts of our requests and gets plainer ones.", ServerWarning, 2
            )
        said = response.status_code == 500 and re.search("template|role|format|schema", text)
        refused = said or (response.status_code in (400, 415, 422, 501) and "context" not in text)
        if not refused or no_quota(response.status_code, text) or self._form == LAST_FORM:
            return False
        self._form += 1
        return True


def server_of(url: httpx2.URL) -> str:
    """Return the name under which the replies of a server are stored."""
    return f"{url.host}:{url.port or ''}"


def no_quota(status: int, text: str) -> bool:
    """Whether an error says that money is spent, which no waiting mends."""
    waits = re.search(r"(retry|again) (in|after) \d", text, re.IGNORECASE)
    spent = status in (400, 403, 429) and re.search(QUOTA, text, re.IGNORECASE)
    return status == 402 or bool(spent and not waits)


def plainer(body: Body, form: int, reply_tokens: int) -> Body:
    """Return a request in a form up to :data:`LAST_FORM`; from 1 a schema is in the prompt."""
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or reply_tokens
    if "messages" not in body or form == 0:
        given = "input" in body or "max_tokens" in body
        return body if given else {**body, "max_completion_tokens": limit}
    kept = {
        name: body[name] for name in ("model", "tools", "logprobs", "top_logprobs") if name in body
    }
    messages = [dict(message) for message in body["messages"]]
    if form > 1:
        kept = {"model": body.get("model")}
        messages = [{"role": "user", "content": "\n\n".join(str(m["content"]) for m in messages)}]
    if schema := ((body.get("response_format") or {}).get("json_schema") or {}).get("schema"):
        wanted = json.dumps(schema, ensure_ascii=False)
        messages[-1]["content"] += f"\n\nAnswer only with JSON that fits this schema:\n{wanted}"
        kept |= {"response_format": {"type": "json_object"}} if form == 1 else {}
    name = "max_tokens" if form == LAST_FORM else "max_completion_tokens"
    return {**kept, "messages": messages, name: limit}


def json_of(response: httpx2.Response) -> Any:
    """Return what a response holds, ``None`` where it is no JSON."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def answer_of(response: httpx2.Response | None) -> Body | None:
    """Return the JSON of a completion or of embeddings, ``None`` for any other response."""
    body = json_of(response) if response is not None and response.is_success else None
    known = isinstance(body, dict) and isinstance(body.get("choices", body.get("data")), list)
    return body if known else None
