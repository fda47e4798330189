"""Start-up, Run All and peak memory of each notebook, in a fresh kernel and with an empty cache.

Start-up is the time until the data are ready (through the first cell that finds them), beside a
bare kernel that imports the same libraries, starts a Spark with its own settings if the notebook
has started one by then, and reads the same two files. Run All stands beside the minutes that the
README promises, memory (kernel and JVM, see ``peak_memory``) beside the 2 GB of Binder; notebooks
with PyTorch cannot run there and get 3 GB. The seconds of each section go to
``section_times.csv`` and from there to ``docs/teaching.md``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from peak_memory import PeakMemory
from rows import ROOT, notebooks, save_sections

from helpers.data import locate

HERE = Path(__file__).resolve().parent
BINDER_MB, WITH_TORCH_MB = 2048, 3072
PROMISED = {
    name: 60 * float(minutes)
    for name, minutes in re.findall(
        r"^\| \[[^]]+\]\(notebooks/(\w+)\.ipynb\) \|[^|]*\|\s*([\d.]+)\s*\|",
        (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE,
    )
}  # fmt: skip


def home_in(folder: Path) -> Path:
    """Return a project folder as after a fresh clone: what is saved and cached here stays as is."""
    left_out = shutil.ignore_patterns("cache", "ml-*")
    shutil.copytree(ROOT / "data", folder / "data", ignore=left_out)
    return folder


def run(*arguments: object, home: Path) -> tuple[dict, float]:
    """Return the times of a run of ``notebook_run.py`` (s) and its peak memory (MB)."""
    environment = dict(
        os.environ, HELPERS_HOME=str(home), MOVIELENS_DIR=str(locate().path), LLM_MODE="recorded"
    )
    process = subprocess.Popen(
        [sys.executable, str(HERE / "notebook_run.py"), *map(str, arguments)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    memory = PeakMemory(process.pid)
    memory.start()
    output, errors = process.communicate()
    memory.join()
    assert process.returncode == 0, errors[-4000:]
    return json.loads(output.splitlines()[-1]), memory.peak_mb


@pytest.mark.parametrize("name", notebooks())
def bench_notebook(name, versus, benchmark, tmp_path):
    path = ROOT / "notebooks" / f"{name}.ipynb"
    setup = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    with_torch = re.search(r"\b(torch|sentence_transformers)\b", setup.source) is not None
    if with_torch and importlib.util.find_spec("torch") is None:
        pytest.skip(f"notebook {name[:2]} needs PyTorch: pip install -e '.[llamarec]'")
    home = home_in(tmp_path)
    bare, _ = run(path, locate().path, home=home)
    times, peak = benchmark.pedantic(run, args=(path,), kwargs={"home": home})
    save_sections(name, times["sections"])
    versus.add(f"{name}: start-up", times["ready"], bare["ready"])
    versus.add(f"{name}: Run All", times["all"], PROMISED[name])
    versus.add(f"{name}: peak memory", peak, WITH_TORCH_MB if with_torch else BINDER_MB)
