"""A local server that takes its time, to measure a client with. It is no LLM and ranks nothing.

It answers every chat request after ``latency`` seconds with the candidates in the order in which
the prompt shows them, under the model name :data:`MODEL`. What a client does (how many requests at
once, how many a second, what after a kill) can be seen without a key; whether a ranking is good
cannot, and no quality may be computed from its answers. It runs in a process of its own: in the
client's process the two would share one interpreter, and a killed client would take it along.
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
from dataclasses import dataclass

MODEL = "stand-in, not an LLM"

_SEEN: dict[str, int] = {}

Reply = tuple[int, bytes, dict[str, str]]
"""Status, body and further headers of an answer."""


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
    """Run the server on a free port of this machine until the block ends.

    Args:
        latency: seconds between a request and its answer.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "research.standin", str(latency)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield StandIn(f"http://127.0.0.1:{int(process.stdout.readline())}/v1")
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def _answer(body: dict) -> Reply:
    prompt = "\n".join(str(message["content"]) for message in body["messages"])
    _SEEN[prompt] = _SEEN.get(prompt, 0) + 1
    _, _, shown = prompt.rpartition("<candidates>\n")
    letters = re.findall(r"^([A-Z]+) \|", shown, re.MULTILINE)
    said = json.dumps({"ranking": letters})
    usage = {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(said) // 4}
    usage["total_tokens"] = sum(usage.values())
    message = {"role": "assistant", "content": said}
    reply = {
        "id": "stand-in",
        "object": "chat.completion",
        "created": 0,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": usage,
    }
    return 200, json.dumps(reply).encode(), {}


async def serve(
    answer: Callable[[dict], Reply], told: Callable[[int], dict], latency: float
) -> None:
    """Serve on a free port of this machine and print it: the wire part of a server for tests.

    Args:
        answer: from the JSON body of a POST to its reply, which is sent ``latency`` seconds later.
        told: from the most requests at one time so far to what a GET is answered with.
        latency: seconds.
    """
    level = [0, 0]  # requests being answered now, and the most at one time

    async def connection(reader, writer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                body = await reader.readexactly(int(length[1])) if length else b""
                if head.startswith("GET"):
                    status, data, headers = 200, json.dumps(told(level[1])).encode(), {}
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
    sys.stdin.read()  # ends when the process that started this one does, however it ends
    os._exit(0)


def _told(most: int) -> dict:
    return {"requests": sum(_SEEN.values()), "prompts": len(_SEEN), "most_at_once": most}


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(serve(_answer, _told, float(sys.argv[1])))
