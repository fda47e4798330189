"""A local server that takes its time, to measure a client with. It is no LLM and ranks nothing.

It answers every chat request after ``latency`` seconds with the candidates in the order in which
the prompt shows them: what a client does can be seen without a key, quality cannot. It runs in a
process of its own: it must not share the client's interpreter, nor end when the client is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

MODEL = "stand-in, not an LLM"

_PROMPTS: list[str] = []

HttpAnswer = tuple[int, bytes, dict[str, str]]  # status, body and further headers of an answer


@dataclass(frozen=True)
class Log:
    """What the server has seen: requests, different prompts, and the most at one time."""

    requests: int
    prompts: int
    most_at_once: int


@dataclass(frozen=True)
class StandIn:
    """A running stand-in; ``url`` is what ``OPENAI_BASE_URL`` takes."""

    url: str

    def log(self) -> Log:
        """Ask the server what it has seen since it was started."""
        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/log", timeout=30) as reply:
            return Log(**json.load(reply))


@contextlib.contextmanager
def standin(latency: float = 0.2) -> Iterator[StandIn]:
    """Run the server on a free port until the block ends; it answers after ``latency`` seconds."""
    command = [sys.executable, "-m", "research.standin", str(latency)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        try:
            yield StandIn(f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
        finally:
            process.kill()


def _answer(body: dict) -> HttpAnswer:
    prompt = "\n".join(str(message["content"]) for message in body["messages"])
    _PROMPTS.append(prompt)
    _, _, shown = prompt.rpartition("<candidates>\n")
    ranking = json.dumps({"ranking": re.findall(r"^([A-Z]+) \|", shown, re.MULTILINE)})
    message = {"role": "assistant", "content": ranking}
    usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(ranking) // 4}
    usage["total_tokens"] = sum(usage.values())
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    reply = {"id": "stand-in", "object": "chat.completion", "created": 0, "model": MODEL}
    reply |= {"choices": choices, "usage": usage}
    return 200, json.dumps(reply).encode(), {}


async def serve(answer: Callable[[dict], HttpAnswer], log: Callable[[int], Any], latency: float):
    """Serve on a free port of this machine and print it.

    ``answer`` makes the reply to the JSON body of a POST, sent ``latency`` seconds later; ``log``
    makes what a GET is answered with, from the most requests at one time so far.
    """
    level = [0, 0]  # requests being answered now, and the most at one time

    async def connection(reader, writer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                if head.startswith("GET"):
                    status, data, headers = 200, json.dumps(log(level[1])).encode(), {}
                else:
                    level[0] += 1
                    level[1] = max(level)
                    status, data, headers = answer(json.loads(body))
                    await asyncio.sleep(latency)
                    level[0] -= 1
                lines = {"Content-Type": "application/json", "Content-Length": len(data), **headers}
                text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{text}\r\n".encode() + data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _end_with_parent() -> None:
    sys.stdin.read()  # ends when the process that started this one does
    os._exit(0)


def _log(most: int) -> dict[str, int]:
    return asdict(Log(len(_PROMPTS), len(set(_PROMPTS)), most))


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(serve(_answer, _log, float(sys.argv[1])))
