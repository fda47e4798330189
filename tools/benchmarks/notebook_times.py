"""Seconds and peak memory of each notebook, in a fresh kernel and with an empty cache.

Run All stands beside the minutes that the README promises, the memory of kernel and JVM beside
Binder's 2 GB (3 GB with PyTorch, which Binder lacks): above that a notebook is killed, as there.
The seconds of each section go to section_times.csv.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import nbformat
import rows
from nbclient import NotebookClient

from helpers import data

sys.path.insert(0, str(rows.ROOT / "tests" / "support"))
from peak_memory import PeakMemory

NOTEBOOKS = sorted((rows.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def promised() -> dict[str, float]:
    """Return the seconds that the README's table promises for each notebook."""
    text = (rows.ROOT / "README.md").read_text(encoding="utf-8")
    pattern = r"^\| \[[^]]+\]\(notebooks/(\w+)\.ipynb\) \|[^|]*\|\s*([\d.]+)\s*\|"
    table = re.findall(pattern, text, re.MULTILINE)
    return {name: 60 * float(minutes) for name, minutes in table}


def by_section(cells: list, ends: list[float]) -> dict[str, float]:
    """Return the seconds of each numbered section; ``ends`` are when the code cells ended."""
    section, last, seconds, times = "", 0.0, {}, iter(ends)
    for cell in cells:
        if cell.cell_type == "markdown":
            for section in re.findall(r"^## (.+)", cell.source, re.MULTILINE):
                seconds.setdefault(section, 0.0)
        else:
            end = next(times)
            seconds[section] = seconds.get(section, 0.0) + end - last
            last = end
    return {name: value for name, value in seconds.items() if name[:1].isdigit()}


def execute(path: Path) -> dict:
    """Run a notebook and return the seconds of all and of each section."""
    notebook, ends = nbformat.read(path, as_version=4), []
    client = NotebookClient(
        notebook, timeout=1200, kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda **_: ends.append(perf_counter()),
    )  # fmt: skip
    start = perf_counter()
    client.execute()
    times = [end - start for end in ends]
    return {"all": times[-1], "sections": by_section(notebook.cells, times)}


def measure(path: Path, dataset: data.Dataset, limit_mb: float) -> tuple[dict | None, float]:
    """Return the times of a run in a process of its own (none if killed) and its peak in MB."""
    with tempfile.TemporaryDirectory() as folder:
        left_out = shutil.ignore_patterns("cache", "ml-*")
        shutil.copytree(rows.ROOT / "data", Path(folder) / "data", ignore=left_out)
        environment = {"HELPERS_HOME": folder, "MOVIELENS_DIR": str(dataset.path)}
        process = subprocess.Popen(
            [sys.executable, __file__, str(path)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, **environment, "LLM_MODE": "recorded"},
        )  # fmt: skip
        memory = PeakMemory(process.pid, limit_mb=limit_mb)
        memory.start()
        output, _ = process.communicate()
        memory.join()
    if process.returncode and not memory.killed:
        raise RuntimeError(f"{path.name} failed; its error stands above.")
    return None if memory.killed else json.loads(output.splitlines()[-1]), memory.peak_mb


def bench_notebooks(dataset: data.Dataset) -> list[tuple[str, float, float]]:
    """Run all notebooks; return their comparisons, as in bench.csv."""
    comparisons, sections = [], []
    for path in NOTEBOOKS:
        code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        torch = re.search(r"\b(torch|sentence_transformers)\b", code[0].source)
        limit_mb = 3072 if torch else 2048
        times, peak_mb = measure(path, dataset, limit_mb)
        if times:
            comparisons.append((f"{path.stem}: Run All", times["all"], promised()[path.stem]))
            for section, value in times["sections"].items():
                row = {"notebook": path.stem, "section": section, "seconds": round(value, 1)}
                sections.append(row)
        comparisons.append((f"{path.stem}: peak memory", peak_mb, limit_mb))
    rows.save(sections, data.result_path("section_times", dataset), "notebook")
    return comparisons


if __name__ == "__main__":
    print(json.dumps(execute(Path(sys.argv[1]))))
