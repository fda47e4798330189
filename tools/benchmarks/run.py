"""`make bench`: ours beside a baseline, as rows of data/results/bench.csv; about an hour.

``python tools/benchmarks/run.py --only bench_grid`` measures a part; the other rows stay, with
their own date. The status is 1 where a ratio (baseline over ours) falls short of its target.
"""

from __future__ import annotations

import argparse
import sys

import pandas as pd
import rows
from comparisons import bench_candidates, bench_grid, bench_llm, bench_lru, bench_one_token
from notebook_times import bench_notebooks

from helpers import data

BENCHES = {
    bench.__name__: bench
    for bench in (
        bench_grid, bench_candidates, bench_llm, bench_one_token, bench_lru, bench_notebooks
    )
}  # fmt: skip
TARGETS = {
    "grid search, beside the article's loop": (3.5, "s"),
    "candidates, beside Spark user by user": (100, "ms a user"),
    "candidates, beside the same arrays user by user": (3, "ms a user"),
    "LLM requests, 16 at a time beside one by one": (12, "ms a user"),
    "one token, beside a generated list": (10, "s"),
    "one token, output tokens beside the list's": (20, "tokens"),
    "LRURec epoch, beside item by item": (5, "s"),
    # After a notebook's name and a colon; beside the README's minutes, and Binder's 2 GB of memory.
    "Run All": (1, "s"),
    "peak memory": (1, "MB"),
}


def compared(name: str, ours: float, baseline: float) -> dict:
    """Return a row of bench.csv; ``met`` says whether the ratio reaches the target."""
    target, unit = TARGETS[name.rpartition(": ")[2]]
    numbers = {"ours": ours, "baseline": baseline, "ratio": baseline / ours}
    numbers = {column: float(f"{value:.4g}") for column, value in numbers.items()}
    met = bool(numbers["ratio"] >= target)
    return {"name": name, **numbers, "target": target, "unit": unit, "met": met}


def main(only: str = "") -> int:
    """Measure, print and save; return 1 if a target was missed."""
    dataset = data.locate()
    print(dataset.describe())
    missed = False
    for name in [only] if only else BENCHES:
        measured = [compared(*comparison) for comparison in BENCHES[name](dataset)]
        print(pd.DataFrame(measured).to_string(index=False), flush=True)
        missed |= not all(row["met"] for row in measured)
        rows.save(measured, data.result_path("bench", dataset), "name")
    return int(missed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", choices=["", *BENCHES], help="one of the benches")
    sys.exit(main(parser.parse_args().only))
