"""Seconds and peak memory of each notebook, in a fresh kernel and with an empty cache.

Run All stands beside the minutes that the README promises, the memory of kernel and JVM beside
Binder's 2 GB (3 GB with PyTorch, which Binder lacks, and 5 GB for 08, which trains a pretrained
LLM): above that a notebook is killed, as there.
The seconds of each section go to section_times.csv.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from time import perf_counter

import nbformat
import rows

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
        shutil.copytree(rows.ROOT / "data", Path(folder) / "data", ignore=left_out)
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


def bench_notebooks(dataset: data.Dataset) -> list[tuple[str, float, float]]:
    """Run all notebooks; return their comparisons, as in bench.csv."""
    comparisons, sections = [], []
    for path in NOTEBOOKS:
        code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        torch = re.search(r"\b(torch|sentence_transformers)\b", code[0].source)
        limit_mb = 5120 if path.stem.startswith("08") else 3072 if torch else 2048
        seconds, peak_mb, parts = measure(path, dataset, limit_mb)
        comparisons.append((f"{path.stem}: Run All", seconds, promised()[path.stem]))
        comparisons.append((f"{path.stem}: peak memory", peak_mb, limit_mb))
        for section, value in parts.items():
            row = {"notebook": path.stem, "section": section, "seconds": round(value, 1)}
            sections.append(row)
    rows.save(sections, data.result_path("section_times", dataset), "notebook")
    return comparisons
