"""``make bench``: seconds and peak memory of each notebook, in a fresh kernel with an empty cache.

They go to bench.csv beside what is promised, the seconds of each section to section_times.csv.
``python tools/benchmarks.py 02 03`` measures some; the other rows stay.
"""

import os
import platform
import re
import shutil
import sys
import tempfile
from collections import defaultdict
from datetime import date, datetime
from pathlib import Path
from unittest.mock import patch

import course
import lessons
import pandas as pd
import psutil

from helpers import data

sys.path.insert(0, str(lessons.ROOT / "tests" / "support"))
from peak_memory import PeakMemory

WITH_TORCH = {"07": 3072, "08": 5120, "09": 3072, "11": 3072, "12": 3072}  # 08 trains an LLM


def promised(path: Path) -> tuple[float, float]:
    """Return the seconds that the README promises for a notebook, and the MB that it may take."""
    text = (lessons.ROOT / "README.md").read_text(encoding="utf-8")
    minutes = re.search(rf"\(notebooks/{path.name}\) \|[^|]*\| (\d+) \|", text)[1]
    return 60.0 * int(minutes), WITH_TORCH.get(path.stem[:2], 2048)  # Binder has 2 GB


def measure(path: Path, dataset: data.Dataset) -> tuple[float, float, dict[str, float]]:
    """Run a notebook; return its seconds, its peak in MB, and the seconds of each section."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, LLM_MODE="recorded"):
        left_out = shutil.ignore_patterns("cache", "ml-*")
        shutil.copytree(lessons.ROOT / "data", Path(folder) / "data", ignore=left_out)
        os.environ |= {"HELPERS_HOME": folder, "MOVIELENS_DIR": str(dataset.path)}
        with PeakMemory(os.getpid(), new=True) as run:
            cells = course.execute(path).cells
    section, parts = "", defaultdict(float)
    for cell in cells:
        if cell.cell_type == "markdown":
            for section in re.findall(r"^## (.+)", cell.source, re.MULTILINE):
                parts[section] = 0.0
        elif noted := cell.metadata.get("execution"):
            names = ("iopub.execute_input", "shell.execute_reply")
            begin, end = (datetime.fromisoformat(noted[name]) for name in names)
            parts[section] += (end - begin).total_seconds()
    return run.seconds, run.peak_mb, {k: round(v, 1) for k, v in parts.items() if k[:1].isdigit()}


def save(rows: list[dict], path: Path, key: str) -> None:
    """Put rows, with machine and day, in place of those with the same ``key``."""
    memory = psutil.virtual_memory().total / 2**30
    machine = f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores, "
    machine += f"{memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"
    table = pd.DataFrame(rows).assign(machine=machine, date=date.today().isoformat())
    if path.exists():
        old = pd.read_csv(path)
        table = pd.concat([old.loc[~old[key].isin(table[key])], table])
    path.parent.mkdir(parents=True, exist_ok=True)
    table.sort_values(key, kind="stable").to_csv(path, index=False, lineterminator="\n")


def main(names: list[str]) -> int:
    """Measure the notebooks whose names begin so (all by default); return 1 if one was missed."""
    dataset, missed = data.locate(), False
    print(dataset.describe())
    for path in [p for p in lessons.paths() if p.name.startswith(tuple(names or [""]))]:
        *ours, parts = measure(path, dataset)
        what, ours = ["Run All", "peak memory"], [float(f"{value:.4g}") for value in ours]
        table = pd.DataFrame({"name": [f"{path.stem}: {each}" for each in what], "ours": ours,
                              "promised": promised(path), "unit": ["s", "MB"]})  # fmt: skip
        table["met"] = table["ours"] <= table["promised"]
        print(table.to_string(index=False, header=False), flush=True)
        missed |= not table["met"].all()
        save(table.to_dict("records"), data.result_path("bench", dataset), "name")
        rows = [{"notebook": path.stem, "section": k, "seconds": v} for k, v in parts.items()]
        save(rows, data.result_path("section_times", dataset), "notebook")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
