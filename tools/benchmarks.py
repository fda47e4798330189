"""``make bench``: seconds and peak memory of each notebook, in a fresh kernel with an empty cache.

Run All stands beside the minutes that the README promises, the memory of kernel and JVM beside
Binder's 2 GB (3 GB with PyTorch, which Binder lacks, and 5 GB for 08, which trains a pretrained
LLM): above that a notebook is killed, as there. ``python tools/benchmarks.py 02 03`` measures some;
the other rows of bench.csv stay. The seconds of each section go to section_times.csv. The status is
1 where a notebook misses what is promised.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import date, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

import nbformat
import pandas as pd
import psutil

from helpers import data

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from peak_memory import PeakMemory  # noqa: E402

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def promised() -> dict[str, float]:
    """Return the seconds that the README's table promises for each notebook."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pattern = r"^\| \[[^]]+\]\(notebooks/(\w+)\.ipynb\) \|[^|]*\|\s*([\d.]+)\s*\|"
    table = re.findall(pattern, text, re.MULTILINE)
    return {name: 60 * float(minutes) for name, minutes in table}


def by_section(cells: list) -> dict[str, float]:
    """Return the seconds of each numbered section, from the times that nbconvert notes."""
    section, seconds = "", {}
    for cell in cells:
        if cell.cell_type == "markdown":
            for section in re.findall(r"^## (.+)", cell.source, re.MULTILINE):
                seconds.setdefault(section, 0.0)
        elif noted := cell.metadata.get("execution"):
            names = ("iopub.execute_input", "shell.execute_reply")
            start, end = (datetime.fromisoformat(noted[name]) for name in names)
            seconds[section] = seconds.get(section, 0.0) + (end - start).total_seconds()
    return {name: value for name, value in seconds.items() if name[:1].isdigit()}


def measure(
    path: Path, dataset: data.Dataset, limit_mb: float
) -> tuple[float, float, dict[str, float]]:
    """Run a notebook; return its seconds (infinite if killed), peak in MB, seconds by section."""
    with tempfile.TemporaryDirectory() as folder:
        left_out = shutil.ignore_patterns("cache", "ml-*")
        shutil.copytree(ROOT / "data", Path(folder) / "data", ignore=left_out)
        environment = {"HELPERS_HOME": folder, "MOVIELENS_DIR": str(dataset.path)}
        command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute"]
        start = perf_counter()
        process = subprocess.Popen(
            [*command, "--log-level=ERROR", f"--output-dir={folder}", str(path)],
            env={**os.environ, **environment, "LLM_MODE": "recorded"},
        )
        memory = PeakMemory(process.pid, limit_mb=limit_mb)
        memory.start()
        status = process.wait()
        seconds = perf_counter() - start
        memory.join()
        if memory.killed:
            return float("inf"), memory.peak_mb, {}
        if status:
            raise RuntimeError(f"{path.name} failed; its error stands above.")
        cells = nbformat.read(Path(folder) / path.name, as_version=4).cells
    return seconds, memory.peak_mb, by_section(cells)


def compared(name: str, ours: float, promise: float, unit: str) -> dict[str, Any]:
    """Return a row of bench.csv; ``met`` says whether ours stays within the promise."""
    ours = float(f"{ours:.4g}")
    return {"name": name, "ours": ours, "promised": promise, "unit": unit, "met": ours <= promise}


def save(rows: list[dict[str, Any]], path: Path, key: str) -> pd.DataFrame:
    """Put rows, with machine and day, in place of those with the same ``key``; return the table."""
    cores, memory = psutil.cpu_count(), psutil.virtual_memory().total / 2**30
    machine = f"{platform.processor() or platform.machine()}, {cores} cores, {memory:.0f} GB, "
    machine += f"{platform.system()}, Python {platform.python_version()}"
    table = pd.DataFrame(rows).assign(machine=machine, date=date.today().isoformat())
    if path.exists():
        old = pd.read_csv(path)
        table = pd.concat([old.loc[~old[key].isin(table[key])], table])
    table = table.sort_values(key, kind="stable", ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n")
    return table


def main(names: Sequence[str]) -> int:
    """Measure the notebooks whose names begin so (all by default); return 1 if one was missed."""
    dataset, missed = data.locate(), False
    print(dataset.describe())
    for path in NOTEBOOKS:
        if names and not path.name.startswith(tuple(names)):
            continue
        code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        torch = re.search(r"\b(torch|sentence.transformers)\b", code[0].source)
        limit_mb = 5120 if path.stem.startswith("08") else 3072 if torch else 2048
        seconds, peak_mb, parts = measure(path, dataset, limit_mb)
        rows = [
            compared(f"{path.stem}: Run All", seconds, promised()[path.stem], "s"),
            compared(f"{path.stem}: peak memory", peak_mb, limit_mb, "MB"),
        ]
        print(pd.DataFrame(rows).to_string(index=False, header=False), flush=True)
        missed |= not all(row["met"] for row in rows)
        save(rows, data.result_path("bench", dataset), "name")
        sections = [
            {"notebook": path.stem, "section": section, "seconds": round(value, 1)}
            for section, value in parts.items()
        ]
        if sections:  # none are known of a notebook that was killed
            save(sections, data.result_path("section_times", dataset), "notebook")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
