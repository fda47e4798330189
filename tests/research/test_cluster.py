"""The same job on one machine, a standalone cluster, through Spark Connect, and with a worker lost.

Each session has a process of its own (``cluster_client.py``): one process holds one JVM's session
only, and a client of Spark Connect needs none.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import clusters
import pandas as pd
import pytest

from conftest import ROOT

CLIENT = ROOT / "tests" / "support" / "cluster_client.py"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix shell")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A project folder whose data/cache is the test's own; all processes here see it."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(ROOT / "data" / "sample", folder / "data" / "sample")
    return folder


def start(home: Path, name: str, *arguments: str, **more: str) -> subprocess.Popen[str]:
    """Start the client; ``more`` are variables that say where its job runs."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("SPARK_")}
    env |= {"HELPERS_HOME": str(home), "MOVIELENS_DIR": str(home / "data" / "sample")}
    command = [sys.executable, str(CLIENT), str(home / name), *arguments]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env | {"SPARK_PARTITIONS": "2"} | more, **out)


def finish(process: subprocess.Popen[str]) -> dict:
    try:
        out, error = process.communicate(timeout=480)
    finally:
        process.kill()
    assert process.returncode == 0, error[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def one_machine(home) -> dict:
    return finish(start(home, "one", SPARK_MASTER="local[2]"))


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    with clusters.local_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running
    assert all(worker.poll() is not None for worker in running[1])


def check_same(found: dict, wanted: dict, home: Path, name: str) -> None:
    """The parts of the split, the errors and every list are those of one machine."""
    assert found["split"] == wanted["split"]
    assert found["rmse"] == pytest.approx(wanted["rmse"], rel=1e-6)
    lists, expected = (pd.read_csv(home / part / "lists.csv") for part in (name, "one"))
    assert len(lists) == found["rows"] == wanted["rows"] > 1000
    pd.testing.assert_frame_equal(lists, expected, rtol=1e-5)


@pytest.mark.slow
def test_spark_connect_gives_the_numbers_of_one_machine(one_machine, home, tmp_path):
    pytest.importorskip("grpc", reason="needs the scale extra: pip install -e '.[scale]'")
    with clusters.connect_server(tmp_path, "local[2]") as address:
        # There is no Java on a client's machine.
        found = finish(start(home, "remote", SPARK_REMOTE=address, JAVA_HOME=str(home / "no-java")))
    assert found["remote"] and not one_machine["remote"]
    check_same(found, one_machine, home, "remote")


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_gives_the_numbers_of_one_machine(
    two_workers, one_machine, home
):
    master, workers = two_workers
    options = {"SPARK_EXECUTOR_MEMORY": "600m", "SPARK_EXECUTOR_CORES": "1"}
    process = start(home, "killed", "--announce", SPARK_MASTER=master, **options)
    try:
        # The client says so in the middle of ALS, while tasks run.
        assert process.stdout.readline() == "RUNNING on 2\n"
        clusters.kill(workers[0])
        assert process.poll() is None
    except BaseException:
        process.kill()
        raise
    found = finish(process)
    check_same(found, one_machine, home, "killed")
    assert (found["master"], found["executors"]) == (master, 1)
