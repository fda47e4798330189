"""Every notebook under nbval: strict on the real release, lax on the simulated sample.

Where a browser can be started, ``tests/browser/test_lab.py`` runs the sample instead.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time

import browsers
import psutil
import pytest

from conftest import NOTEBOOK_RUNS, ROOT
from helpers.data import locate

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MEMORY_LIMIT_MB = 1600  # what runs on Binder, which has 2 GB
MEMORY_LIMIT_OF_08_MB = 3000  # PyTorch and a JVM at once; it needs the extra, which Binder lacks
CELL_TIMEOUT_S = 600


class PeakMemory(threading.Thread):
    """Samples the memory of a process's descendants until it ends.

    Counts proportional set size where the system tells it (Linux), so that pages which processes
    share count once, else resident size. A child that Java has forked but that has not yet become
    another program borrows all of its parent's memory: it is left out.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.process, self.peak_mb = psutil.Process(pid), 0.0
        self.parts: list[tuple[str, float]] = []
        self.done = threading.Event()

    def stop(self) -> None:
        """Stop before the process ends."""
        self.done.set()
        self.join()

    def alive(self) -> bool:
        return self.process.status() != psutil.STATUS_ZOMBIE

    def run(self) -> None:
        while not self.done.is_set() and self.process.is_running() and self.alive():
            parts = []
            try:
                for child in self.process.children(recursive=True):
                    try:
                        name = child.name()
                        if name == "java" and child.cmdline() == child.parent().cmdline():
                            continue
                        memory = child.memory_full_info()
                        parts.append((name, getattr(memory, "pss", memory.rss) / 2**20))
                    except (psutil.Error, AttributeError):
                        continue
            except psutil.Error:
                return
            total = sum(size for _, size in parts)
            if total > self.peak_mb:
                self.peak_mb, self.parts = total, parts
            time.sleep(0.2)


@pytest.mark.parametrize("which", ["sample", "real"])
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, which, request):
    environment = dict(os.environ, MOVIELENS_DOWNLOAD="0", LLM_MODE="recorded")
    if which == "sample" and browsers.find().path:
        pytest.skip("runs in the browser (tests/browser/test_lab.py)")
    if which == "sample":
        environment.pop("MOVIELENS_DIR", None)
        if (ROOT / "data" / "ml-latest-small").exists():
            environment["MOVIELENS_DIR"] = str(ROOT / "data" / "sample")
    elif not locate().verified:
        pytest.skip("needs the real ml-latest-small (MOVIELENS_DIR)")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    command += ["--nbval" if which == "real" else "--nbval-lax"]
    command += [f"--nbval-cell-timeout={CELL_TIMEOUT_S}"]
    command += ["--nbval-sanitize-with", str(ROOT / "tests" / "nbval_sanitize.cfg"), str(path)]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    memory = PeakMemory(process.pid)
    memory.start()
    output, _ = process.communicate()
    memory.join()
    passed = re.search(r"(\d+) passed", output)
    cells = int(passed[1]) if passed else 0
    seconds = time.perf_counter() - start
    NOTEBOOK_RUNS.append((path.stem, which, cells, seconds, memory.peak_mb))
    assert process.returncode == 0, output[-6000:]
    assert cells > 5
    limit = MEMORY_LIMIT_OF_08_MB if path.stem.startswith("08") else MEMORY_LIMIT_MB
    assert 100 < memory.peak_mb < limit, memory.parts
