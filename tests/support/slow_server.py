"""An OpenAI-compatible server in a process of its own, which takes its time and remembers.

In the process of the tests it would compete with the client for one interpreter, and a client that
is killed would take it along. What it does with a request stands in the last message:
``user 7`` names the user, ``fault=html`` and the like what goes wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from misbehaving_server import completion

TEXTS = {
    "prose": "I would rather not choose.",
    "nobody": '{"ranking": ["Z"]}',
    "cut": '{"ranking": ["B',
}
LOG: list[tuple[float, int, int]] = []


def answer(body: dict, options: dict) -> tuple[int, bytes, dict]:
    text = body["messages"][-1]["content"]
    user = int(re.search(r"user (\d+)", text)[1])
    fault = re.search(r"fault=(\w+)", text)
    seen = sum(one == user for _, one, _ in LOG)
    status, headers = 200, {}
    if len(LOG) < options.get("first", 0):
        status, headers = options["status"], options.get("headers", {})
    elif fault and fault[1].startswith("once") and not seen:
        status = int(fault[1][4:])
    elif fault and fault[1].startswith("always"):
        status = int(fault[1][6:])
    LOG.append((time.monotonic(), user, status))
    if status != 200:
        return status, b'{"error": {"message": "no"}}', headers
    if fault and fault[1] == "html":
        return 200, b"<html>busy</html>", {}
    if fault and fault[1] == "number":
        return 200, json.dumps(completion(12)).encode(), {}
    said = TEXTS.get(fault[1] if fault else "", '{"ranking": ["C", "A", "B"]}')
    reply = completion(said, finish="length" if fault and fault[1] == "cut" else "stop")
    prompt = options.get("prompt_tokens", 50)
    reply["usage"] = {"prompt_tokens": prompt, "completion_tokens": 30, "total_tokens": prompt + 30}
    return 200, json.dumps(reply).encode(), {}


async def serve(options: dict) -> None:
    """Serve on a free port of this machine and print it; a GET is answered with the log."""
    level = [0, 0]  # requests being answered now, and the most at one time

    async def connection(reader, writer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                if head.startswith("GET"):
                    told = {"log": LOG, "most": level[1]}
                    status, data, headers = 200, json.dumps(told).encode(), {}
                else:
                    level[0] += 1
                    level[1] = max(level)
                    status, data, headers = answer(json.loads(body), options)
                    if status == 200:  # a refusal comes at once, before the others' answers
                        await asyncio.sleep(options["latency"])
                    level[0] -= 1
                lines = {"Content-Type": "application/json", "Content-Length": len(data), **headers}
                text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{text}\r\n".encode() + data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@dataclass
class Server:
    url: str

    def told(self) -> dict:
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/log", timeout=30) as reply:
            return json.load(reply)

    def log(self) -> list[tuple[float, int, int]]:
        """Arrival (s), user and status of each request so far."""
        return [tuple(row) for row in self.told()["log"]]

    def users(self) -> list[int]:
        return [user for _, user, _ in self.log()]


@contextlib.contextmanager
def slow_server(latency: float = 0.2, **options):
    """Start the server; ``first`` requests get ``status`` and ``headers``."""
    told = json.dumps({"latency": latency, **options})
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), told], stdout=subprocess.PIPE, text=True
    )
    try:
        yield Server(f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.argv[1])))
