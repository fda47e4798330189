"""``python -m helpers.doctor``: what works here, a line each, and what to do where not."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable

import psutil

from helpers import data, llm
from helpers.faults import command
from helpers.settings import Settings
from helpers.spark import check_java, get_spark

WANTED_MEMORY_GB = 2.0


class CheckError(RuntimeError):
    """A check failed; the message says what to do."""


def python() -> str:
    """Check the Python version."""
    if sys.version_info < (3, 11):  # noqa: UP036 - run before anything checked it
        raise CheckError(f"{platform.python_version()} is too old: install Python 3.11 or newer.")
    return platform.python_version()


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
        total = session.range(10).count()
        version = session.version
    finally:
        session.stop()
    if total != 10:
        raise CheckError(f"Spark counted {total} of 10 rows: install pyspark again.")
    return f"{version} starts"


def dataset() -> str:
    """Check the data that the notebooks would use."""
    found = data.locate()
    counts = data.check(found)
    return f"{found.name}, {counts.ratings:,} ratings"


def language_model() -> str:
    """Say who would answer; nothing is sent."""
    settings = Settings.from_env()
    return f"{llm.mode(settings)} ({llm.describe(settings).removeprefix('LLM: ')})"


CHECKS: dict[str, Callable[[], str]] = {
    "Python": python,
    "Java": java,
    "Memory": memory,
    "Spark": spark,
    "Data": dataset,
    "LLM": language_model,
}


def main(checks: dict[str, Callable[[], str]] | None = None) -> int:
    """Print OK or FAIL for each check; return 1 if any failed."""
    failures = 0
    for name, check in (CHECKS if checks is None else checks).items():
        try:
            print(f"OK    {name}: {check()}")
        except Exception as error:
            failures += 1
            print(f"FAIL  {name}: {error}")
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(command(main))
