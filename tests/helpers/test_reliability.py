"""Faults of the machine, and Ctrl-C: no half file, nothing lost, a rerun works.

docs/reliability.md names a test for each fault; what other files test is not repeated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import course
import lessons
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from conftest import ROOT
from helpers import data, replies

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


def test_every_test_that_the_table_of_faults_names_is_there():
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 15
    for row in rows:
        named = re.findall(r"`(test_\w+)::(test_\w+)`", row)
        assert named, f"no test is named in: {row}"
        for module, test in named:
            [path] = (ROOT / "tests").glob(f"*/{module}.py")
            source = path.read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{module}::{test}"


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 256 kB in a folder."""
    (folder := tmp_path / "disk").mkdir()
    sudo = [] if sys.platform == "win32" or os.geteuid() == 0 else ["sudo", "-n"]
    command = [*sudo, "mount", "-t", "tmpfs", "-o", "size=256k,mode=777", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small disk of its own cannot be mounted here")
    yield folder
    subprocess.run([*sudo, "umount", "-l", str(folder)], check=True)


def test_a_copy_of_a_lesson_leaves_the_tables_of_the_course(
    sample, settings, tmp_path, monkeypatch
):
    project = dataclasses.replace(settings, root=tmp_path)
    release, table = (
        dataclasses.replace(sample, verified=True, simulated=False),
        pd.DataFrame({"a": [1]}),
    )
    first = data.save_result(table, "01_x", release, project)
    monkeypatch.setenv("KEEP_RESULTS", "1")
    own = data.save_result(table * 2, "01_x", release, project)
    assert first.parent == project.results_dir and project.cache_dir in own.parents
    assert data.read_result("01_x", release, project)["a"].item() == 1


def test_a_full_disk_leaves_the_old_table(tiny_disk, sample, settings):
    project = dataclasses.replace(settings, root=tiny_disk)
    small, large = (pd.DataFrame({"value": np.arange(rows)}) for rows in (3, 100_000))
    path = data.save_result(small, "01_x", sample, project)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        data.save_result(large, "01_x", sample, project)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_full_disk_loses_no_stored_reply(tiny_disk):
    path, answer = tiny_disk / "replies", {"choices": [{"message": {"content": "yes"}}]}
    with replies.LocalStore(path) as store:
        store.put({"messages": "first"}, answer)
        with pytest.raises(OSError, match=r"full|No space left"):
            store.put({"messages": "second" * 100_000}, answer)
    with replies.LocalStore(path) as store:
        assert [reply.request["messages"] for reply in store.all()] == ["first"]


# --- killed kernel, Ctrl-C ------------------------------------------------------------------------


def notebook_at(folder: Path, *cells: str) -> Path:
    (folder / "notebooks").mkdir(exist_ok=True)
    path = folder / "notebooks" / "01_a.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    return path


def test_a_killed_kernel_is_named_and_the_next_run_goes_on(tmp_path, settings):
    """It dies while it writes: the finished reply and the old table are there, the new one not."""
    project = dataclasses.replace(settings, root=tmp_path)
    first = (
        "from pathlib import Path; import os, signal; from helpers import data, replies\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "store = replies.LocalStore(folder / 'replies')\n"
        "print(len(store.all()), 'kept')\n"
        "store.put({'messages': 'asked'}, {'choices': [{'message': {}}]})"
    )
    second = (
        "with data.replacing(folder / 'table.csv') as fresh:\n"
        "    fresh.write_text('half' if (folder / 'kill').exists() else 'whole')\n"
        "    if (folder / 'kill').exists(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = notebook_at(tmp_path, first, second)
    before = path.read_bytes()
    (tmp_path / "kill").touch()
    (tmp_path / "table.csv").write_text("old")
    with pytest.raises(lessons.LessonError, match=r"01_a\.ipynb.*: Kernel died"):
        course.execute_in_place(project, ["01"])
    assert path.read_bytes() == before and (tmp_path / "table.csv").read_text() == "old"
    (tmp_path / "kill").unlink()
    course.execute_in_place(project, ["01"])
    assert nbformat.read(path, 4).cells[0].outputs[0].text == "1 kept\n"
    assert (tmp_path / "table.csv").read_text() == "whole"


def interrupted(command: list[str], after: str, home: Path) -> tuple[int, str]:
    """Start, send SIGINT to the group once the output holds ``after``; return status and output."""
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "HELPERS_HOME": str(home)},
        start_new_session=True,
    )  # fmt: skip
    guard = threading.Timer(180, os.killpg, (process.pid, signal.SIGKILL))
    guard.start()
    output = b""
    try:
        while after.encode() not in output and (piece := os.read(process.stdout.fileno(), 65536)):
            output += piece
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        output += process.communicate(timeout=20)[0]
    finally:
        guard.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output.decode(errors="replace")


DOWNLOAD = """
import io, sys, time, urllib.request
from pathlib import Path
from helpers import data
class Slow(io.BytesIO):
    def read(self):
        print("reading", flush=True)
        time.sleep(60)
urllib.request.urlopen = lambda url, timeout: Slow()
data.download(Path(sys.argv[1]))
"""


@needs_signals
def test_ctrl_c_in_the_download_leaves_nothing(tmp_path):
    status, output = interrupted(["-c", DOWNLOAD, str(tmp_path / "s" / "ml")], "reading", ROOT)
    assert status != 0 and output.strip().endswith("KeyboardInterrupt")
    assert not list(tmp_path.iterdir())


@needs_signals
def test_ctrl_c_in_make_run_is_one_line_and_leaves_no_kernel(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(ROOT / "data" / "sample")
    own, kernel = tmp_path / "pid", "import os, pathlib; "
    kernel += f"pathlib.Path({str(own)!r}).write_text(str(os.getpid()))"
    notebook_at(tmp_path, kernel, "import time; time.sleep(300)")
    command = [str(ROOT / "tools" / "course.py"), "run", "--to", "01", "--output"]
    status, output = interrupted([*command, str(tmp_path / "out")], "1/2", tmp_path)
    assert status == 130 and "Traceback" not in output and "Stopped by Ctrl-C" in output
    assert list((tmp_path / "out").iterdir()) == []
    deadline = time.time() + 10
    while psutil.pid_exists(int(own.read_text())):
        assert time.time() < deadline, "the kernel is left"
        time.sleep(0.2)
