"""A small Spark cluster, or a Spark Connect server, on this machine.

For trying out what a course about one machine cannot show: ``python tools/cluster.py`` starts a
master and two workers through Spark's own classes, as on a real standalone cluster, prints the line
that points the notebooks there, and stops them at Ctrl-C; ``--connect`` starts a Spark Connect
server. All listen on 127.0.0.1 only. Linux and macOS: Spark's launch scripts want a Unix shell.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pyspark

from helpers.spark import JavaError, check_java, start_fault

HOME = Path(pyspark.__file__).parent
"""Spark itself, as the pyspark package brings it."""

MASTER = "org.apache.spark.deploy.master.Master"
WORKER = "org.apache.spark.deploy.worker.Worker"
CONNECT = "org.apache.spark.sql.connect.service.SparkConnectServer"
LOOPBACK = "127.0.0.1"


class ClusterError(RuntimeError):
    """A process of the cluster did not start; the message says why and what to do."""


@dataclass(frozen=True)
class Cluster:
    """A running master and its workers.

    ``master`` is what ``SPARK_MASTER`` takes, ``status_url`` answers in JSON, ``workers`` are the
    workers' processes, each the head of a process group that holds its executors too.
    """

    master: str
    status_url: str
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def status(self) -> dict:
        """Return what the master knows of its workers and applications."""
        with urllib.request.urlopen(self.status_url, timeout=10) as answer:
            return json.load(answer)

    def kill_worker(self, number: int) -> None:
        """Kill a worker and its executors as a power cut would, with no word to the master."""
        _signal(self.workers[number], signal.SIGKILL)
        self.workers[number].wait()


@contextlib.contextmanager
def local_cluster(
    workers: int = 2,
    *,
    cores: int = 1,
    memory: str = "1g",
    folder: Path | None = None,
    wait_s: float = 120.0,
) -> Iterator[Cluster]:
    """Start a master and ``workers`` workers here, and stop them however the block ends.

    ``cores`` and ``memory`` are what each worker may give to executors. ``folder`` takes logs and
    the executors' files (default: a temporary folder, removed at the end). ``wait_s`` bounds each
    start, in seconds.

    Raises:
        JavaError: Java is missing or unsuitable.
        ClusterError: Windows, impossible sizes, or a process did not start in time.
    """
    if not re.fullmatch(r"\d+[mg]", memory) or cores < 1:
        raise ClusterError(
            f"A worker with {cores} cores and memory {memory!r} cannot be: give at least one core, "
            "and memory as a number with m or g, such as 512m."
        )
    with _processes(folder, "256m") as (start, place):
        here = ("--host", LOOPBACK, "--port", "0", "--webui-port", "0")
        log, process = start("master", "spark-class", MASTER, *here)
        master = _wait_for(r"Starting Spark master at (spark://\S+)", log, process, wait_s)
        web = _wait_for(r"(?:MasterWebUI|MasterUI).* (http://\S+)", log, process, wait_s)
        port = web.rpartition(":")[2].rstrip("/.")
        cluster = Cluster(master, f"http://{LOOPBACK}:{port}/json/")
        options = ("--cores", str(cores), "--memory", memory)
        logs = []
        for number in range(workers):
            work = ("--work-dir", str(place / f"work-{number}"))
            log, process = start(
                f"worker-{number}", "spark-class", WORKER, *here, *options, *work, master
            )
            cluster.workers.append(process)
            logs.append(log)
        for log, process in zip(logs, cluster.workers, strict=True):
            _wait_for(r"(Successfully registered) with master", log, process, wait_s)
        yield cluster


@contextlib.contextmanager
def connect_server(
    master: str = "local[*]",
    *,
    memory: str = "1g",
    folder: Path | None = None,
    wait_s: float = 120.0,
) -> Iterator[str]:
    """Start a Spark Connect server over ``master`` here and give its ``sc://`` address.

    The server's Python is this one, so that functions on pandas frames find the same packages.

    Raises:
        JavaError: Java is missing or unsuitable.
        ClusterError: Windows, or the server did not start in time.
    """
    options = {
        "spark.connect.grpc.binding.address": LOOPBACK,
        "spark.connect.grpc.binding.port": "0",
        "spark.driver.host": LOOPBACK,
        "spark.driver.extraJavaOptions": "-Xss4m -XX:+UseSerialGC",
        "spark.executor.extraJavaOptions": "-Xss4m",
        "spark.ui.enabled": "false",
    }
    with _processes(folder, memory) as (start, place):
        options["spark.sql.warehouse.dir"] = (place / "warehouse").as_uri()
        conf = [text for item in options.items() for text in ("--conf", "=".join(item))]
        log, process = start(
            "connect",
            "spark-submit",
            "--class",
            CONNECT,
            "--master",
            master,
            *conf,
            "spark-internal",
        )
        port = _wait_for(r"Spark Connect server started at: \S*:(\d+)", log, process, wait_s)
        yield f"sc://{LOOPBACK}:{port}"


Start = Callable[..., tuple[Path, "subprocess.Popen[bytes]"]]


@contextlib.contextmanager
def _processes(folder: Path | None, memory: str) -> Iterator[tuple[Start, Path]]:
    """Give a function that starts a Spark class, and stop whatever it started.

    ``memory`` is the heap of each, masters, workers and Connect servers alike.
    """
    if platform.system() == "Windows":
        raise ClusterError("Spark's cluster scripts need Linux or macOS: use WSL on Windows.")
    check_java()
    started: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        if folder is None:
            name = tempfile.TemporaryDirectory(
                prefix="helpers-cluster-", ignore_cleanup_errors=True
            )
            place = Path(stack.enter_context(name))
        else:
            place = folder
            place.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "SPARK_HOME": str(HOME),
            "SPARK_LOCAL_IP": LOOPBACK,
            "SPARK_LOCAL_DIRS": str(place),
            "SPARK_DAEMON_MEMORY": memory,
            "PYSPARK_PYTHON": os.environ.get("PYSPARK_PYTHON", sys.executable),
        }
        # A server or a worker is no client of another one.
        for name in ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED", "SPARK_MASTER"):
            environment.pop(name, None)

        def start(name: str, script: str, *arguments: str) -> tuple[Path, subprocess.Popen[bytes]]:
            log = place / f"{name}.log"
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [str(HOME / "bin" / script), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=environment,
                    cwd=place,
                    start_new_session=True,
                )
            started.append(process)
            return log, process

        try:
            yield start, place
        finally:
            for process in reversed(started):
                _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    _signal(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    _signal(process, signal.SIGKILL)  # what is left of the group: executors, or one that hangs
    process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _wait_for(pattern: str, log: Path, process: subprocess.Popen[bytes], wait_s: float) -> str:
    """Return the first group of ``pattern`` in a log that is being written.

    Raises:
        ClusterError: the process ended, or ``wait_s`` seconds passed.
    """
    until = time.monotonic() + wait_s
    while True:
        ended = process.poll() is not None  # before reading: what it wrote last counts
        text = log.read_text(encoding="utf-8", errors="replace")
        if found := re.search(pattern, text):
            return found[1]
        if ended or time.monotonic() > until:
            why = "ended" if ended else f"was not ready within {wait_s:.0f} s"
            told = start_fault(text) or (text.strip().splitlines() or ["it wrote nothing"])[-1]
            raise ClusterError(f"Spark's {log.stem} {why}: {told}")
        time.sleep(0.1)


def main(arguments: list[str] | None = None) -> int:
    """Start a cluster or a Connect server and keep it until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python tools/cluster.py", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="number of workers (default: 2)")
    parser.add_argument("--cores", type=int, default=1, help="cores of each worker (default: 1)")
    parser.add_argument("--memory", default="1g", help="memory of each worker (default: 1g)")
    parser.add_argument(
        "--connect", action="store_true", help="start a Spark Connect server instead, on local[*]"
    )
    chosen = parser.parse_args(arguments)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            if chosen.connect:
                with connect_server(memory=chosen.memory) as address:
                    _keep(f"export SPARK_REMOTE={address}")
            sizes = {"cores": chosen.cores, "memory": chosen.memory}
            with local_cluster(chosen.workers, **sizes) as cluster:
                _keep(f"export SPARK_MASTER={cluster.master}")
        except (ClusterError, JavaError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def _keep(line: str) -> NoReturn:
    print(f"{line}\nStop with Ctrl-C.", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # a closed terminal stops them too
        signal.signal(getattr(signal, name), lambda *_: sys.exit(0))
    sys.exit(main())
