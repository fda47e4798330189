"""Requests on their way to a server: tighter schemas, one plainer form, errors without the key."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx2

from helpers.replies import Body
from helpers.settings import Settings

QUOTA = r"insufficient_quota|quota|billing|credits?\b|(daily|monthly|usage) limit|payment"
LETTERS_HEADER = "x-letters"  # the header with the number of candidates; it is not sent


class ServerWarning(UserWarning):
    """A server does not take a part of our requests; they are changed for it."""


def tightened(body: Body, letters: str | None, *, texts: bool = False) -> Body:
    """Return a request whose JSON schema names the letters and their number.

    ``texts`` bounds texts and other lists too, which not every server takes; without it a small
    model repeats itself without end.
    """
    n = int(letters or 0) if int(letters or 0) <= 26 else 0
    names = {"type": "string", "enum": [chr(65 + i) for i in range(n)]}

    def tight(node: Body) -> Body:  # the inner parts come first
        known, kind = node.get("properties", {}), node.get("type")
        if texts and kind in ("string", "array"):
            node |= {"maxLength": 200} if kind == "string" else {"maxItems": 5}
        if n and "letter" in known:
            known["letter"] = names
        if n and "ranking" in known:
            known["ranking"] |= {"minItems": n, "maxItems": n}
            if known["ranking"]["items"].get("type") == "string":
                known["ranking"]["items"] = names
        return node

    form = json.loads(json.dumps(body.get("response_format") or {}), object_hook=tight)
    return {**body, "response_format": form} if form else body


def plainer(body: Body, refusal: str) -> Body:
    """Return a refused request as one message, without options, the schema in its text.

    The limit has its older name where ``refusal``, the server's error, names the newer one.
    """
    texts = [str(message["content"]) for message in body["messages"]]
    if schema := ((body.get("response_format") or {}).get("json_schema") or {}).get("schema"):
        wanted = json.dumps(schema, ensure_ascii=False)
        texts.append(f"Answer only with JSON that fits this schema:\n{wanted}")
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    name = "max_tokens" if "max_completion_tokens" in refusal else "max_completion_tokens"
    message = {"role": "user", "content": "\n\n".join(texts)}
    return {"model": body.get("model"), "messages": [message], name: limit}


def refused(response: httpx2.Response) -> bool:
    """Whether an error is about the form of a request, for which there may be a plainer one."""
    text, status = response.text.lower(), response.status_code
    said = status == 500 and re.search("template|role|format|schema", text)
    form = said or (status in (400, 415, 422, 501) and "context" not in text)
    return bool(form and not no_quota(status, text))


def received(response: httpx2.Response, settings: Settings) -> httpx2.Response:
    """Return a response, read before, without the key in its errors.

    An error in a body of status 200 becomes an error, and the SDK is told not to ask again where
    only money helps.
    """
    body = json_of(response)
    fault = isinstance(body, dict) and body.get("error") and not body.get("choices")
    if response.is_success and not fault:
        return httpx2.Response(200, content=response.content, request=response.request)
    status = 400 if response.is_success else response.status_code
    headers = {k: v for k, v in response.headers.items() if k == "retry-after"}
    if no_quota(status, response.text):
        headers["x-should-retry"] = "false"
    text = settings.scrub(response.text)
    return httpx2.Response(status, headers=headers, content=text, request=response.request)


def no_quota(status: int, text: str) -> bool:
    """Whether an error says that money is spent, which no waiting mends."""
    waits = re.search(r"(retry|again) (in|after) \d", text, re.IGNORECASE)
    spent = status in (400, 403, 429) and re.search(QUOTA, text, re.IGNORECASE)
    return status == 402 or bool(spent and not waits)


def json_of(response: httpx2.Response) -> Any:
    """Return what a response holds, ``None`` where it is no JSON."""
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None


def answer_of(response: httpx2.Response) -> Body | None:
    """Return the JSON of a completion or of embeddings, ``None`` for any other response."""
    body = json_of(response) if response.is_success else None
    known = isinstance(body, dict) and isinstance(body.get("choices", body.get("data")), list)
    return body if known else None
