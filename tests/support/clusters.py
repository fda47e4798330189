"""A cluster with two workers, and a Spark Connect server, started as docs/running.md says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyspark
from browsers import ROOT

SPARK = Path(pyspark.__file__).parent
TEXT = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
MASTER, WORKER, CONNECT = re.findall(r"^spark-\w+ .+", TEXT, re.MULTILINE)
Process = subprocess.Popen[bytes]


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[Callable[[str, str], tuple[str, Process]]]:
    """Give a function that starts a line of the documents, and stop whatever it started.

    It waits for a pattern in the log and returns its first group and the process.
    """
    started: list[Process] = []
    env = {key: value for key, value in os.environ.items() if not key.startswith("SPARK_")}
    env |= {
        "SPARK_HOME": str(SPARK),
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": str(folder),
    }
    env["PYSPARK_PYTHON"] = sys.executable

    def start(line: str, pattern: str) -> tuple[str, Process]:
        log = folder / f"{len(started)}.log"
        command = [str(SPARK / "bin" / line.split()[0]), *line.split()[1:]]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, stdout=out, stderr=out, env=env, cwd=folder, start_new_session=True
            )
        started.append(process)
        until = time.monotonic() + 120
        while not (ready := re.search(pattern, log.read_text(errors="replace"))):
            assert process.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.1)
        return ready[1], process

    try:
        yield start
    finally:
        for process in reversed(started):
            kill(process)


def kill(process: Process) -> None:
    """Kill a process and its children, a worker's executors, as a power cut would."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def local_cluster(folder: Path) -> Iterator[tuple[str, list[Process]]]:
    """Start a master and two workers; give the address and the workers."""
    free = "--port 0 --webui-port 0"  # tests need ports that nobody else has
    with starting(folder) as start:
        address, _ = start(f"{MASTER} {free}", r"Starting Spark master at (spark://\S+)")
        worker = re.sub(r"spark://\S+", f"{free} {address}", WORKER)
        yield address, [start(worker, "(registered) with master")[1] for _ in range(2)]


@contextlib.contextmanager
def connect_server(folder: Path, master: str) -> Iterator[str]:
    """Start a Spark Connect server and give its ``sc://`` address."""
    own = (
        f"--master {master} --conf spark.connect.grpc.binding.port=0 --conf spark.ui.enabled=false"
    )
    with starting(folder) as start:
        line = CONNECT.replace("spark-internal", f"{own} spark-internal")
        yield f"sc://127.0.0.1:{start(line, r'Connect server started at: .*:([0-9]+)')[0]}"
