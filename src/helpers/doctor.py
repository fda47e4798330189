"""``python -m helpers.doctor``: what works here, a line each; ``--ask`` asks the LLM something."""

import random
import sys
from collections.abc import Callable

import psutil
from pydantic import create_model

from helpers import data, llm
from helpers.settings import versions
from helpers.spark import check_java, get_spark


def llm_answer() -> str:
    """Ask the LLM one small question with a schema; return what came of it."""
    question = f"How much is {random.randrange(1000)} plus 25?"  # not one that is stored already
    messages, total = [{"role": "user", "content": question}], create_model("Total", total=int)
    with llm.connect() as client:
        outcome = llm.ask(client, messages, schema=total)
    if outcome.kind != "ok":
        raise RuntimeError(outcome.describe())
    return outcome.describe()


Checks = dict[str, Callable[[], object]]
CHECKS: Checks = {
    "Packages": lambda: versions("pyspark", "openai", "pandas"),
    "Java": check_java,
    "Memory": lambda: f"{psutil.virtual_memory().available / 2**30:.1f} GB free (1.7 are needed)",
    "Data": lambda: data.locate().describe().removeprefix("Data: "),
    "Spark": lambda: f"it starts and counts to {get_spark().range(3).count()}",
    "Notebooks 07 to 12": lambda: versions("torch", "transformers", "peft"),
    "LLM": lambda: llm.describe().removeprefix("LLM: "),
}


def main(checks: Checks = CHECKS) -> int:
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
    sys.exit(main(CHECKS | {"Answer": llm_answer} if "--ask" in sys.argv[1:] else CHECKS))
