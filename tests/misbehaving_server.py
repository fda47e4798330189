"""A small OpenAI-compatible server on this machine that misbehaves on request."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, finish="stop", refusal=None, usage=True, logprobs=None):
    """Return a reply; ``logprobs`` lists (token, logprob), the token drawn first."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    body = {
        "id": "x", "object": "chat.completion", "created": 0, "model": "served",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }  # fmt: skip
    if logprobs is not None:
        listed = [{"token": token, "logprob": value, "bytes": None} for token, value in logprobs]
        content = [{**listed[0], "top_logprobs": listed}] if listed else []
        body["choices"][0]["logprobs"] = {"content": content, "refusal": None}
    if usage:
        body["usage"] = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return body


FAULTS = {
    "rate_limited": ("status", 429),
    "server_error": ("status", 500),
    "rejected": ("status", 400),
    "connection": "cut",
    "malformed": ("raw", b"<html>not json</html>"),
    "refusal": ("ok", completion(None, refusal="no")),
    "truncated": ("ok", completion('{"ranking": [', finish="length")),
    "empty": ("ok", completion("  ")),
}
"""What the server is to do, by the kind of fault that ``llm.ask`` must call it."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.requests.append(json.loads(self.rfile.read(length)))
        self.server.authorization = self.headers.get("Authorization")
        self.server.paths.append(self.path)
        self.server.headers = dict(self.headers)
        step = self.server.steps.pop(0) if len(self.server.steps) > 1 else self.server.steps[0]
        if callable(step):  # from the request's body to status and body
            step = ("reply", step(self.server.requests[-1]))
        kind, value = step if isinstance(step, tuple) else (step, None)
        if kind == "status":
            self._send(value, {"error": {"message": "no"}}, {"Retry-After": "0.05"})
        elif kind == "reply" and isinstance(value[1], bytes):
            self._raw(*value)
        elif kind == "reply":
            self._send(*value)
        elif kind == "limited":
            self._send(429, {"error": {"message": "no"}}, {"Retry-After": value})
        elif kind == "sleep":
            time.sleep(value)
            with contextlib.suppress(OSError):
                self._send(200, completion("late"))
        elif kind == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"id": "x", "choi')
            self.wfile.flush()
            self.close_connection = True
        elif kind == "raw":
            self._raw(200, value)
        else:
            self._send(200, value)

    def _send(self, status, body, headers=None):
        self._raw(status, json.dumps(body).encode(), headers)

    def _raw(self, status, data, headers=None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextlib.contextmanager
def serve(*steps):
    """Serve ``steps`` in turn, the last one for ever."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.steps, server.requests, server.authorization = list(steps), [], None
    server.paths, server.headers = [], {}
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
