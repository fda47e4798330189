"""Every notebook under nbval: strict on the real release, lax on the simulated sample.

Where a browser can be started, ``tests/browser/test_lab.py`` runs the sample instead.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time

import browsers
import pytest
from peak_memory import CELL_TIMEOUT_S, MEMORY_LIMIT_MB, MEMORY_LIMIT_OF_08_MB, PeakMemory

from conftest import ROOT
from helpers.data import locate

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


@pytest.fixture(scope="module")
def sample_home(tmp_path_factory):
    """A home of its own: models saved by the runs on the real release must not meet these."""
    home = tmp_path_factory.mktemp("home")
    others = shutil.ignore_patterns("cache", "ml-latest-small")
    shutil.copytree(ROOT / "data", home / "data", ignore=others)
    return home


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("which", ["real", "sample"])
def test_notebook(path, which, request, record_property):
    environment = dict(os.environ, MOVIELENS_DOWNLOAD="0", LLM_MODE="recorded")
    if which == "sample" and browsers.find().path:
        pytest.skip("runs in the browser (tests/browser/test_lab.py)")
    if which == "sample":
        environment.pop("MOVIELENS_DIR", None)
        environment["HELPERS_HOME"] = str(request.getfixturevalue("sample_home"))
    elif not locate().verified:
        pytest.skip("needs the real ml-latest-small (MOVIELENS_DIR)")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header"]
    command += ["--nbval" if which == "real" else "--nbval-lax"]
    command += [f"--nbval-cell-timeout={CELL_TIMEOUT_S}"]
    command += [
        "--nbval-sanitize-with",
        str(ROOT / "tests" / "support" / "nbval_sanitize.cfg"),
        str(path),
    ]
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
    record_property("notebook", (path.stem, which, cells, seconds, memory.peak_mb))
    assert process.returncode == 0, output[-6000:]
    assert cells > 5
    limit = MEMORY_LIMIT_OF_08_MB if path.stem.startswith("08") else MEMORY_LIMIT_MB
    assert 100 < memory.peak_mb < limit, memory.parts
