"""Faults of the machine: no half file, nothing lost, a rerun works.

docs/reliability.md names a test for each fault; what other files test is not repeated.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT
from helpers import data, replies


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
    release = sample._replace(verified=True, simulated=False)
    table = pd.DataFrame({"a": [1]})
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path))
    first = data.save_result(table, "01_x", release)
    monkeypatch.setenv("KEEP_RESULTS", "1")
    own = data.save_result(table * 2, "01_x", release)
    assert first.parent == project.results_dir and project.cache_dir in own.parents
    assert data.read_result("01_x", release, project)["a"].item() == 1


def test_a_full_disk_leaves_the_old_table_and_the_stored_replies(tiny_disk, sample, monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", str(tiny_disk))
    small, large = (pd.DataFrame({"value": np.arange(rows)}) for rows in (3, 100_000))
    path = data.save_result(small, "01_x", sample)
    before, store = path.read_bytes(), replies.Store(tiny_disk / "replies")
    store.put({"messages": "first"}, {})
    with pytest.raises(OSError, match="No space left"):
        data.save_result(large, "01_x", sample)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    with pytest.raises(OSError, match=r"full|No space left"):
        store.put({"messages": "second" * 100_000}, {})
    (tiny_disk / "replies").write_bytes((tiny_disk / "replies").read_bytes()[:9_000])  # some room
    store.put({"messages": "third"}, {})
    with pytest.warns(UserWarning, match="skipped"):
        kept = replies.Store(tiny_disk / "replies").all()
    assert [reply.request["messages"] for reply in kept] == ["first", "third"]
