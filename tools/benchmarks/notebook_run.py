"""Run a notebook, or the bare kernel beside it, and print what it took as a line of JSON.

A program of its own, so that its descendants are the kernel and the JVM and nothing else.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from time import perf_counter

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

# What anyone needs who reads the same file with the same libraries and no helpers.
PANDAS = "import pandas; print(len(pandas.read_csv({ratings!r})), len(pandas.read_csv({movies!r})))"
SPARK = """from pyspark.sql import SparkSession
session = SparkSession.builder.master("local[*]").getOrCreate()
for path in ({ratings!r}, {movies!r}):
    print(session.read.csv(path, header=True, inferSchema=True).count())"""


def opening(cells: list) -> int:
    """Return how many code cells there are through the first that finds the data."""
    return 1 + next(i for i, cell in enumerate(cells) if "data.locate(" in cell.source)


def by_section(cells: list, times: list[float]) -> dict[str, float]:
    """Return the seconds of each numbered section; ``times`` are the ends of the code cells."""
    now, last, seconds, ends = "", 0.0, {}, iter(times)
    for cell in cells:
        if cell.cell_type == "markdown":
            for heading in re.findall(r"^## (.+)", cell.source, re.MULTILINE):
                now = heading
                seconds.setdefault(now, 0.0)
        else:
            end = next(ends)
            seconds[now] = seconds.get(now, 0.0) + end - last
            last = end
    return {name: value for name, value in seconds.items() if name[:1].isdigit()}


def bare(notebook, folder: Path):
    """Return a notebook with the set-up cell of ``notebook``, and the files read with no helper."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    with_spark = any("get_spark(" in cell.source for cell in cells[: opening(cells)])
    files = {name: str(folder / f"{name}.csv") for name in ("ratings", "movies")}
    reading = (SPARK if with_spark else PANDAS).format(**files)
    return new_notebook(cells=[new_code_cell(cells[0].source), new_code_cell(reading)])


def main(path: Path, data: str | None) -> None:
    """Run ``path``; with the folder ``data`` the bare kernel instead."""
    notebook = nbformat.read(path, as_version=4)
    if data:
        notebook = bare(notebook, Path(data))
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    ends = []
    client = NotebookClient(
        notebook, timeout=1200, kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=lambda cell, **_: ends.append(perf_counter()),
    )  # fmt: skip
    start = perf_counter()
    client.execute()
    times = [end - start for end in ends]
    assert len(times) == len(cells)
    ready = times[-1] if data else times[opening(cells) - 1]
    sections = {} if data else by_section(notebook.cells, times)
    print(json.dumps({"ready": ready, "all": times[-1], "sections": sections}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
