"""``python -m helpers.doctor``: what works here, a line each, and what to do where not.

``--ask`` sends four small questions to the LLM, within the budget; their replies are not stored.
"""

from __future__ import annotations

import dataclasses
import platform
import secrets
import socket
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import psutil
from pydantic import create_model

from helpers import data, llm
from helpers.faults import command
from helpers.settings import Settings
from helpers.spark import check_java, get_spark

WANTED_MEMORY_GB = 2.0
REACH_S = 5.0
TEXT = "A film about a long winter in a small town by the sea. " * 240
WORDS = 240 * 12  # no tokenizer makes one token of two words
UNCOUNTED = "the server counts no tokens: window and speed are unknown, the budget is an estimate"
SHORT = {"max_completion_tokens": 256}
QUESTIONS: dict[str, tuple[str, dict]] = {
    "model": ("Write the numbers from 1 to 50, and nothing else.", {}),
    "schema": ("How much is 17 plus 25?", {"schema": create_model("Total", total=int)}),
    "logprobs": ("Answer with A or B.", {"logprobs": True, "top_logprobs": 5, **SHORT}),
    "window": (TEXT + "Answer with the word yes.", SHORT),
}


class CheckError(RuntimeError):
    """A check failed; the message says what to do."""


class CheckWarning(UserWarning):
    """The course runs, but not as it could; the message says what to do."""


def python() -> str:
    """Check the Python version."""
    if sys.version_info < (3, 11):  # noqa: UP036 - run before anything checked it
        raise CheckError(f"{platform.python_version()} is too old: install Python 3.11 or newer.")
    return platform.python_version()


def variables() -> str:
    """Check the environment variables."""
    llm.Budget.of(Settings.from_env())
    return "can be read"


def java() -> str:
    """Check the Java that Spark would use."""
    if Settings.from_env().spark_remote:
        return "not needed with Spark Connect"
    found = check_java()
    return f"{found.version} ({found.path})"


def memory() -> str:
    """Check the memory that is free for a kernel and its JVM."""
    free = psutil.virtual_memory().available / 2**30
    if free < WANTED_MEMORY_GB:
        raise CheckError(f"{free:.1f} GB free: close programs until {WANTED_MEMORY_GB:.0f} GB are.")
    return f"{free:.1f} GB free"


def spark() -> str:
    """Start a session and compute something."""
    session = get_spark()
    try:
        total, version = session.range(10).count(), session.version
    finally:
        session.stop()
    if total != 10:
        raise CheckError(f"Spark counted {total} of 10 rows: install pyspark again.")
    return f"{version} starts"


def dataset() -> str:
    """Check the data that the notebooks would use."""
    found = data.locate()
    line = f"{found.name}, {data.check(found).ratings:,} ratings"
    if found.simulated:
        raise CheckWarning(f"{line}: set MOVIELENS_DIR to a copy of MovieLens for real ones")
    return line


def language_model() -> str:
    """Say who would answer, and whether a server listens; nothing is sent."""
    settings = Settings.from_env()
    line = llm.describe(settings).removeprefix("LLM: ")
    if llm.missing(settings):
        raise CheckWarning(line)
    if not llm.is_live(settings):
        return line
    url = urlsplit(settings.llm_base_url or "https://api.openai.com/v1")
    name = "OPENAI_BASE_URL" if settings.llm_base_url else "OPENAI_API_KEY"
    host, port = str(url.hostname), url.port or (443 if url.scheme == "https" else 80)
    if getproxies().keys() & {url.scheme, "all"} and not proxy_bypass(host):
        return f"{line}; {host}:{port} is behind a proxy, only --ask can tell whether it answers"
    try:
        socket.create_connection((host, port), timeout=REACH_S).close()
    except (OSError, UnicodeError) as error:
        fault = f"nothing answers at {host}:{port}: check the address and the network"
        if isinstance(error, ConnectionRefusedError):
            fault = f"nothing listens at {host}:{port}: start the server"
        raise CheckError(f"{fault}, or unset {name}") from None
    return f"{line}; {host}:{port} listens, --ask sends questions"


CHECKS: dict[str, Callable[[], str]] = {
    "Python": python,
    "Settings": variables,
    "Java": java,
    "Memory": memory,
    "Spark": spark,
    "Data": dataset,
    "LLM": language_model,
}


def questions() -> Iterator[tuple[str, str, str]]:
    """Ask the LLM; yield OK, WARN or FAIL, what was looked at, and what the answer shows."""
    settings = Settings.from_env()
    if not llm.is_live(settings):
        yield "WARN", "LLM", "nothing is asked: set OPENAI_BASE_URL and LLM_MODEL, unset LLM_MODE"
        return
    with tempfile.TemporaryDirectory() as folder:  # has a store of its own
        elsewhere = dataclasses.replace(settings, root=Path(folder))
        with llm.connect(elsewhere).with_options(max_retries=0) as client:
            for name, (text, options) in QUESTIONS.items():
                text = f"Question {secrets.token_hex(4)}. {text}"  # servers store replies, too
                start = time.perf_counter()
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    messages = [{"role": "user", "content": text}]
                    outcome = llm.ask(client, messages, model=settings.llm_model, **options)
                seconds = time.perf_counter() - start
                yield from (("WARN", f"LLM {name}", str(one.message)) for one in caught)
                unfit = name == "model" and outcome.kind not in {"ok", "truncated"}
                if outcome.response is None or unfit:
                    yield "FAIL", f"LLM {name}", outcome.why
                    if name == "model" or outcome.kind != "rejected":
                        return  # the others would meet the same
                else:
                    yield from findings(name, outcome, seconds)


def findings(name: str, outcome: llm.Outcome, seconds: float) -> Iterator[tuple[str, str, str]]:
    """Yield what the answer to one of :data:`QUESTIONS` shows."""
    usage, logprobs = outcome.response.usage, outcome.response.choices[0].logprobs
    counts = (getattr(usage, f"{part}_tokens", None) for part in ("prompt", "completion"))
    read, written = (count if isinstance(count, int) else None for count in counts)
    good, bad = "", outcome.why
    if name == "model":
        yield "OK", "LLM model", f"the server answers as {outcome.model or 'nobody'}"
        name, bad = "speed", bad or UNCOUNTED
        if written is not None and outcome.kind == "ok":
            good = f"{written / seconds:,.0f} tokens a second ({written} in {seconds:.1f} s)"
    elif name == "schema":
        good = "the answer fits the JSON schema" if outcome.kind == "ok" else ""
        bad = f"no answer that fits the JSON schema: {outcome.why}"
    elif name == "logprobs":
        content = getattr(logprobs, "content", None)
        top = getattr(content[0], "top_logprobs", None) if content else None
        good = f"{len(top)} alternatives come with a token" if top else ""
        bad = "no top_logprobs come: notebook 07 asks for whole lists instead"
    elif outcome.kind != "prompt_cut":
        good = f"a prompt of {read:,} tokens is read whole" if (read or 0) >= WORDS else ""
        bad = f"{read} of more than {WORDS} tokens were read: raise the server's context window"
        bad = bad if read else UNCOUNTED
    yield ("OK" if good else "WARN"), f"LLM {name}", good or bad


def main(checks: dict[str, Callable[[], str]] = CHECKS, *, ask: bool = False) -> int:
    """Print OK, WARN or FAIL for each check, a fault only once; return 1 if any failed."""
    faults: dict[str, str] = {}

    def report(level: str, name: str, text: str) -> None:
        if text not in faults:
            print(f"{level:5} {name}: {text}", flush=True)
        if level != "OK":
            faults[text] = level

    for name, check in checks.items():
        try:
            level, text = "OK", check()
        except Exception as error:
            level = "WARN" if isinstance(error, CheckWarning) else "FAIL"
            text = " ".join(str(error).split()) or type(error).__name__
        report(level, name, text)
    if ask and level == "OK":  # of the last check, the LLM's
        for line in questions():
            report(*line)
    return int("FAIL" in faults.values())


if __name__ == "__main__":
    sys.exit(command(lambda: main(ask="--ask" in sys.argv[1:])))
