"""What the tests themselves rely on: groups for two processes, and the memory of a family."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest
from peak_memory import borrows

from conftest import ROOT, group_of

CONFTEST = f"""
from importlib import util
spec = util.spec_from_file_location("course", {str(ROOT / "tests" / "conftest.py")!r})
course = util.module_from_spec(spec)
spec.loader.exec_module(course)
pytest_xdist_make_scheduler = course.pytest_xdist_make_scheduler
"""
TESTS = """
import os, pathlib, time, pytest
@pytest.mark.parametrize("name", list("wxyz"))
def test_one(name):
    time.sleep(0.1)
    with (pathlib.Path(__file__).parent / "ran.txt").open("a") as log:
        print(pathlib.Path(__file__).stem, os.environ["PYTEST_XDIST_WORKER"], file=log)
"""


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("tests/test_als.py::test_one[real-x]", "test_als.py-real"),
        ("tests/test_notebooks.py::test_notebook[sample-05_llm]", "test_notebooks.py-sample"),
        ("tests/test_notebooks.py::test_notebook[real-06_does_it]", "test_notebooks.py-real-06"),
        ("tests/browser/test_lab.py::test_run_all[05_llm_ranking]", "test_lab.py"),
        ("tests/test_als.py::test_real", "test_als.py"),
    ],
)
def test_the_group_is_the_file_and_the_data_set(test, group):
    assert group_of(test) == group


def test_two_processes_share_no_file(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for name in ("test_a.py", "test_b.py", "test_c.py", "test_d.py"):
        (tmp_path / name).write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    clean["PYTHONPATH"] = ":".join(str(ROOT / name) for name in ("src", "tests/support", "tools"))
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = (tmp_path / "ran.txt").read_text().splitlines()
    assert len(ran) == 16 and len(set(ran)) == 4  # each file in one process
    assert {line.split()[1] for line in ran} == {"gw0", "gw1"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_java_has_just_forked_is_not_counted():
    code = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    sys.stdin.readline()\n"
        "    os.execvp('sleep', ['sleep', '60'])\n"
        "os.wait()"
    )
    process = subprocess.Popen(
        ["java", "-c", code], executable=sys.executable, stdin=subprocess.PIPE, text=True
    )
    try:
        parent = psutil.Process(process.pid)
        deadline = time.monotonic() + 30
        while not parent.children() and time.monotonic() < deadline:
            time.sleep(0.02)
        [child] = parent.children()
        assert borrows(child) and not borrows(parent)
        process.stdin.write("\n")
        process.stdin.flush()
        while child.cmdline()[:1] != ["sleep"] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not borrows(child)
    finally:
        for one in [*parent.children(), parent]:
            one.kill()
        process.wait()
