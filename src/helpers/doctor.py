"""``python -m helpers.doctor``: what works here, a line each; ``--ask`` asks the LLM something."""

from __future__ import annotations

import platform
import random
import sys
from collections.abc import Callable

import psutil
from pydantic import create_model

from helpers import data, llm
from helpers.settings import Settings, versions
from helpers.spark import check_java

WANTED_MEMORY_GB = 2.0


def memory() -> str:
    """Check the memory that is free for a kernel and its JVM."""
    free = psutil.virtual_memory().available / 2**30
    if free < WANTED_MEMORY_GB:
        raise MemoryError(f"{free:.1f} GB free: close programs until {WANTED_MEMORY_GB:.0f} GB are")
    return f"{free:.1f} GB free"


def dataset() -> str:
    """Check the data that the notebooks would use."""
    located = data.locate()
    return f"{located.name}, {data.check(located).ratings:,} ratings"


CHECKS: dict[str, Callable[[], str]] = {
    "Python": platform.python_version,
    "Packages": lambda: versions("pyspark", "openai", "pandas"),
    "Java": lambda: str(check_java().version),
    "Memory": memory,
    "Data": dataset,
    "LLM": lambda: llm.describe().removeprefix("LLM: "),
}


def llm_answer() -> str:
    """Ask the LLM one small question with a schema; return what came of it."""
    if not llm.is_live(settings := Settings.from_env()):
        return "nothing is asked without a server: set OPENAI_BASE_URL and LLM_MODEL"
    question = f"How much is {random.randrange(1000)} plus 25?"  # not one that is stored already
    with llm.connect(settings) as client:
        messages = [{"role": "user", "content": question}]
        outcome = llm.ask(client, messages, schema=create_model("Total", total=int))
    if outcome.kind != "ok":
        raise RuntimeError(outcome.describe())
    return outcome.describe()


def main(checks: dict[str, Callable[[], str]] = CHECKS) -> int:
    """Print OK or FAIL for each check; return 1 if any failed."""
    status = 0
    for name, check in checks.items():
        try:
            print(f"OK    {name}: {check()}", flush=True)
        except Exception as error:
            status = 1
            print(f"FAIL  {name}: {' '.join(str(error).split())}", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(CHECKS | {"Answer": llm_answer} if "--ask" in sys.argv[1:] else CHECKS))
