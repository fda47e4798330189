"""A small Spark cluster, or a Spark Connect server, on this machine, until Ctrl-C.

``python tools/cluster.py`` starts a master and two workers and prints the line that points the
notebooks there; ``--connect`` starts a Connect server. Linux and macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyspark

from helpers.spark import check_java, start_fault

HOME = Path(pyspark.__file__).parent
HERE = "127.0.0.1"
WAIT_S = 120.0
Process = subprocess.Popen[bytes]


@contextlib.contextmanager
def processes() -> Iterator[Callable[..., tuple[str, Process]]]:
    """Give a function that starts a Spark class, and stop whatever it started.

    The function waits for a pattern in the log and returns its first group and the process.
    """
    check_java()
    started: list[Process] = []
    with tempfile.TemporaryDirectory(prefix="cluster-", ignore_cleanup_errors=True) as folder:
        clients = ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED", "SPARK_MASTER")
        environment = {name: value for name, value in os.environ.items() if name not in clients}
        environment |= {"SPARK_HOME": str(HOME), "SPARK_LOCAL_IP": HERE, "SPARK_LOCAL_DIRS": folder}
        environment.setdefault("PYSPARK_PYTHON", sys.executable)

        def start(pattern: str, script: str, *arguments: str) -> tuple[str, Process]:
            log = Path(folder) / f"{len(started)}.log"
            command = [str(HOME / "bin" / script), *arguments]
            environment["SPARK_DAEMON_MEMORY"] = "1g" if script == "spark-submit" else "256m"
            with log.open("wb") as out:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment,
                    cwd=folder, start_new_session=True,
                )  # fmt: skip
            started.append(process)
            until = time.monotonic() + WAIT_S
            while not (ready := re.search(pattern, log.read_text(errors="replace"))):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{command}: {start_fault(log.read_text()) or 'not ready'}")
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
def local_cluster(count: int = 2) -> Iterator[tuple[str, list[Process]]]:
    """Start a master and workers of one core and 1 GB each; give the address and the workers."""
    deploy, here = "org.apache.spark.deploy", ("--host", HERE, "--port", "0", "--webui-port", "0")
    with processes() as start:
        ready = r"Starting Spark master at (spark://\S+)"
        master, _ = start(ready, "spark-class", f"{deploy}.master.Master", *here)
        sizes, ready = ("--cores", "1", "--memory", "1g"), "(registered) with master"
        worker = ("spark-class", f"{deploy}.worker.Worker", *here, *sizes, master)
        yield master, [start(ready, *worker)[1] for _ in range(count)]


@contextlib.contextmanager
def connect_server(master: str = "local[*]") -> Iterator[str]:
    """Start a Spark Connect server and give its ``sc://`` address."""
    options = {
        "spark.connect.grpc.binding.address": HERE,
        "spark.connect.grpc.binding.port": "0",
        "spark.driver.host": HERE,
        "spark.driver.extraJavaOptions": "-Xss4m -XX:+UseSerialGC",
        "spark.executor.extraJavaOptions": "-Xss4m",
        "spark.ui.enabled": "false",
    }
    with processes() as start:
        conf = [text for item in options.items() for text in ("--conf", "=".join(item))]
        service = ("--class", "org.apache.spark.sql.connect.service.SparkConnectServer")
        ready = r"Spark Connect server started at: \S*:(\d+)"
        command = ("spark-submit", *service, "--master", master, *conf, "spark-internal")
        yield f"sc://{HERE}:{start(ready, *command)[0]}"


def main() -> None:
    """Start a cluster or a Connect server and keep it until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="number of workers (default: 2)")
    parser.add_argument("--connect", action="store_true", help="start a Connect server instead")
    chosen = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        if chosen.connect:
            line = f"export SPARK_REMOTE={stack.enter_context(connect_server())}"
        else:
            line = f"export SPARK_MASTER={stack.enter_context(local_cluster(chosen.workers))[0]}"
        print(line, flush=True)
        signal.pause()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    main()
