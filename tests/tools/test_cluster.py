"""The same job on one machine, a standalone cluster, through Spark Connect, and with a worker lost.

Each session has a process of its own (``cluster_client.py``): one process holds one JVM's session
only, and a client of Spark Connect needs none.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cluster as clusters
import pandas as pd
import pytest

from conftest import ROOT
from helpers import remote_spark
from helpers import spark as spark_module
from helpers.settings import Settings
from helpers.spark import JavaError, SparkStartError, check_java, get_spark

CLIENT = ROOT / "tests" / "support" / "cluster_client.py"
LIMIT_S = 280


@pytest.fixture(scope="module")
def ready():
    """Skip where no cluster can be started."""
    if platform.system() == "Windows":
        pytest.skip("Spark's cluster scripts need Linux or macOS")
    try:
        check_java()
    except JavaError as error:
        pytest.skip(str(error))


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
    env |= {"SPARK_PARTITIONS": "2"} | more
    return subprocess.Popen(
        [sys.executable, str(CLIENT), str(home / name), *arguments],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict:
    try:
        out, error = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 0, error[-3000:]
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def one_machine(ready, home) -> dict:
    return finish(start(home, "one", SPARK_MASTER="local[2]"))


@pytest.fixture(scope="module")
def cluster(ready, tmp_path_factory):
    with clusters.local_cluster(folder=tmp_path_factory.mktemp("cluster")) as running:
        yield running
    assert all(worker.poll() is not None for worker in running.workers)


def check_same(found: dict, wanted: dict, home: Path, name: str) -> None:
    """The parts of the split, the errors and every list are those of one machine."""
    assert found["split"] == wanted["split"] and found["by_hash"] == wanted["by_hash"]
    # With the partition counts pinned and the training rows in one partition, ALS adds in the same
    # order everywhere: nothing differed in any run. With rows in several partitions the order of
    # arrival decides the last bits.
    pd.testing.assert_frame_equal(
        pd.DataFrame(found["grid"]), pd.DataFrame(wanted["grid"]), rtol=1e-6
    )
    assert found["rmse"] == pytest.approx(wanted["rmse"], rel=1e-6)
    lists, expected = (pd.read_csv(home / part / "lists.csv") for part in (name, "one"))
    assert len(lists) == found["rows"] == wanted["rows"] > 1000
    pd.testing.assert_frame_equal(lists, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_cluster_gives_the_numbers_of_one_machine(cluster, one_machine, home):
    python = home / "python"
    python.write_text(f'#!/bin/sh\nCOURSE_MARK=reached exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    options = {"SPARK_EXECUTOR_MEMORY": "600m", "SPARK_EXECUTOR_CORES": "1"}
    options |= {"SPARK_MASTER": cluster.master, "PYSPARK_PYTHON": str(python)}
    found = finish(start(home, "cluster", **options))
    assert (found["master"], found["executors"]) == (cluster.master, 2)
    check_same(found, one_machine, home, "cluster")
    assert 600 in [done["memoryperexecutor"] for done in cluster.status()["completedapps"]]
    assert found["mark"] == "reached"  # the executors ran our PYSPARK_PYTHON


def run(script: str, home: Path, **more: str) -> str:
    """Run a short script in a process of its own and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"HELPERS_HOME": str(home)} | more,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    return done.stdout + done.stderr


NO_EXECUTOR = """
from helpers import remote_spark, spark
remote_spark.EXECUTOR_S = 2
try:
    spark.get_spark()
except spark.SparkStartError as error:
    print(error)
"""
STATIC_OPTION = """
from helpers import spark
spark.sql_options = lambda settings: {"spark.sql.warehouse.dir": "/elsewhere"}
spark.get_spark()
"""


def test_more_memory_than_any_worker_has_is_one_sentence(cluster, home):
    said = run(NO_EXECUTOR, home, SPARK_MASTER=cluster.master, SPARK_EXECUTOR_MEMORY="99g")
    assert said.startswith("The Spark master gave no executor within 2 s: start a worker")


@pytest.mark.slow
def test_spark_connect_gives_the_numbers_of_one_machine(ready, one_machine, home, tmp_path_factory):
    pytest.importorskip("grpc", reason="needs the scale extra: pip install -e '.[scale]'")
    with clusters.connect_server("local[2]", folder=tmp_path_factory.mktemp("connect")) as address:
        # There is no Java on a client's machine.
        found = finish(start(home, "remote", SPARK_REMOTE=address, JAVA_HOME=str(home / "no-java")))
        warned = run(STATIC_OPTION, home, SPARK_REMOTE=address)
    assert found["remote"] and not one_machine["remote"]
    check_same(found, one_machine, home, "remote")
    assert "The Spark Connect server keeps its own spark.sql.warehouse.dir: numbers" in warned


@pytest.mark.slow
def test_the_job_finishes_when_a_worker_is_killed_half_way(cluster, one_machine, home):
    log = home / "data" / "cache" / "spark.log"
    known = log.stat().st_size
    process = start(home, "killed", "--announce", SPARK_MASTER=cluster.master)
    try:
        # The client says so in the middle of ALS, while tasks run.
        assert process.stdout.readline() == "RUNNING\n"
        (application,) = cluster.status()["activeapps"]
        assert application["cores"] == 2  # one on each worker
        cluster.kill_worker(0)
        assert process.poll() is None
    except BaseException:
        process.kill()
        raise
    found = finish(process)
    check_same(found, one_machine, home, "killed")
    assert found["executors"] == 1 and cluster.status()["aliveworkers"] == 1
    assert "Lost executor" in log.read_bytes()[known:].decode(errors="replace")


# --- options --------------------------------------------------------------------------------------


def options(**variables: str) -> dict[str, str]:
    settings = Settings.from_env({"HELPERS_HOME": str(ROOT)} | variables)
    return spark_module.process_options(settings) | spark_module.sql_options(settings)


def test_executors_get_their_sizes_and_the_driver_its_name():
    assert not [key for key in options() if key.startswith("spark.executor")]
    far = {"SPARK_MASTER": "spark://far:7077,second:7077"}
    more = {"SPARK_EXECUTOR_CORES": "4", "SPARK_EXECUTOR_MEMORY": "8g", "SPARK_DRIVER_HOST": "me"}
    sized = options(**far, **more)
    assert (sized["spark.executor.cores"], sized["spark.executor.memory"]) == ("4", "8g")
    assert (
        sized["spark.driver.host"] == "me" and "-Xss4m" in sized["spark.executor.extraJavaOptions"]
    )
    # Spark finds the name out itself; on this machine that may be one that nothing resolves.
    plain = options(**far)
    assert "spark.driver.host" not in plain and "spark.executor.cores" not in plain
    assert options(SPARK_MASTER="spark://localhost:7077")["spark.driver.host"] == "127.0.0.1"
    assert options(SPARK_MASTER="yarn")["spark.executor.memory"] == "1g"


# --- nobody answers -------------------------------------------------------------------------------


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings_for(**variables: str) -> Settings:
    return Settings.from_env({"HELPERS_HOME": str(ROOT)} | variables)


def test_a_master_that_does_not_answer_is_named_at_once(closed_port):
    master = f"spark://127.0.0.1:{closed_port}"
    started = time.monotonic()
    with pytest.raises(SparkStartError, match=f"^No Spark master answers at {master}: start it"):
        get_spark(settings_for(SPARK_MASTER=master))
    assert time.monotonic() - started < 5
    with pytest.raises(SparkStartError, match="write spark://host:port"):
        get_spark(settings_for(SPARK_MASTER="spark://nohost"))


def test_a_connect_server_that_does_not_answer_is_named_in_seconds(closed_port, monkeypatch):
    pytest.importorskip("grpc", reason="needs the scale extra: pip install -e '.[scale]'")
    monkeypatch.setattr(remote_spark, "REACH_S", 1.0)
    with pytest.raises(SparkStartError, match=f"^No Spark Connect .*127.0.0.1:{closed_port} with"):
        get_spark(settings_for(SPARK_REMOTE=f"sc://127.0.0.1:{closed_port}"))
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes calls and never says a word
        port = mute.getsockname()[1]
        with pytest.raises(SparkStartError, match=rf"127\.0\.0\.1:{port} within 1 s"):
            get_spark(settings_for(SPARK_REMOTE=f"sc://127.0.0.1:{port}"))


def test_a_wrong_connect_address_does_not_show_its_token():
    pytest.importorskip("grpc", reason="needs the scale extra: pip install -e '.[scale]'")
    with pytest.raises(SparkStartError, match=r"write sc://host:port\.$") as caught:
        get_spark(settings_for(SPARK_REMOTE="https://host:1/;token=abc123"))
    assert "abc123" not in str(caught.value)


def test_without_the_client_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyspark.sql.connect.client", None)
    with pytest.raises(SparkStartError, match=r"pip install -e '\.\[scale\]'"):
        get_spark(settings_for(SPARK_REMOTE="sc://127.0.0.1:1"))


def test_a_process_that_ends_or_hangs_says_why(tmp_path):
    log = tmp_path / "worker-0.log"
    log.write_text("WARNING: nothing\njava.net.BindException: Address in use\n\tat a.b(C.java:1)\n")
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        with pytest.raises(
            clusters.ClusterError, match=r"^Spark's worker-0 ended: java\.net\.Bind"
        ):
            clusters._wait_for("never", log, process, 60)
    with subprocess.Popen(["sleep", "60"]) as process:
        with pytest.raises(clusters.ClusterError, match=r"was not ready within 0 s: .*in use"):
            clusters._wait_for("never", log, process, 0.1)
        process.kill()


def test_impossible_workers_are_refused():
    for options in ({"memory": "1 potato"}, {"cores": 0}):
        with (
            pytest.raises(clusters.ClusterError, match="such as 512m"),
            clusters.local_cluster(**options),
        ):
            pass


def test_the_command_prints_what_to_set_and_stops_at_ctrl_c(ready, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "cluster.py"), "--workers", "0"]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    # A run in the background ignores Ctrl-C, and its children inherit that.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, text=True, preexec_fn=heard
    )
    try:
        line = process.stdout.readline()
        host, port = re.fullmatch(r"export SPARK_MASTER=spark://(.+):(\d+)\n", line).groups()
        socket.create_connection((host, int(port)), 5).close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 5)
    assert list(tmp_path.glob("helpers-cluster-*")) == []


def test_the_command_says_in_a_line_what_is_wrong(capsys):
    assert clusters.main(["--memory", "much"]) == 1
    assert "such as 512m" in capsys.readouterr().err


def test_windows_is_told_what_to_use(monkeypatch):
    monkeypatch.setattr(clusters.platform, "system", lambda: "Windows")
    with pytest.raises(clusters.ClusterError, match="WSL"), clusters.local_cluster():
        pass
