"""Spark elsewhere: a standalone cluster's master and executors, or a Spark Connect server."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pyspark
from pyspark.sql import SparkSession

from helpers.settings import Settings

REACH_S = 10.0
"""Seconds to wait for an answer from a master or a Spark Connect server."""
EXECUTOR_S = 60.0
"""Seconds to wait for the first executor; starting its JVM takes a few."""
LOOPBACK = {"localhost", "127.0.0.1"}


class SparkStartError(RuntimeError):
    """Spark did not start, or nobody answers where it should run."""


def connect(settings: Settings, options: dict[str, Any]) -> SparkSession:
    """Return a session on the Spark Connect server; nothing here touches a JVM.

    Raises:
        SparkStartError: the client is not installed, or the server does not answer.
    """
    url = settings.spark_remote or ""
    try:
        from pyspark.sql.connect.client import DefaultChannelBuilder

        channels = DefaultChannelBuilder(url)
        channel = channels.toChannel()
    except ImportError:
        raise SparkStartError(
            "Spark Connect needs its client: install it with pip install -e '.[scale]'."
        ) from None
    except ValueError:  # the address itself may hold a token
        raise SparkStartError(
            "SPARK_REMOTE is no address of a Spark Connect server: write sc://host:port."
        ) from None
    answered = threading.Event()
    # Spark's own client tries again for minutes.
    channel.subscribe(
        lambda state: answered.set() if state.name == "READY" else None, try_to_connect=True
    )
    ready = answered.wait(REACH_S)
    channel.close()
    if not ready:
        raise SparkStartError(
            f"No Spark Connect server answers at {channels.endpoint} within {REACH_S:.0f} s: "
            "start it, or correct SPARK_REMOTE."
        )
    session = SparkSession.builder.config(map=options).remote(url).getOrCreate()
    refused = [key for key, value in options.items() if session.conf.get(key, None) != value]
    if refused:
        warnings.warn(
            f"The Spark Connect server keeps its own {', '.join(refused)}: numbers may differ from "
            "those of one machine.",
            stacklevel=3,
        )
    return session


def executor_options(settings: Settings) -> dict[str, str]:
    """Return the options of a session whose executors run elsewhere."""
    options = {
        "spark.executor.memory": settings.spark_executor_memory,
        "spark.executor.extraJavaOptions": "-Xss4m",
        "spark.executor.cores": str(settings.spark_executor_cores or ""),
        "spark.driver.host": settings.spark_driver_host or "",
    }
    if not settings.spark_driver_host and on_this_machine(settings.spark_master):
        options["spark.driver.host"] = "127.0.0.1"
    return {key: value for key, value in options.items() if value}


def executor_environment(master: str) -> dict[str, str]:
    """Return the variables of a session on a cluster.

    Raises:
        SparkStartError: SPARK_HOME or PYSPARK_PYTHON names a version that is not this one.
    """
    home = os.environ.get("SPARK_HOME", "").strip()
    if home and not any(Path(home).glob(f"jars/spark-core_*-{pyspark.__version__}.jar")):
        raise SparkStartError(
            f"SPARK_HOME ({home}) holds no Spark {pyspark.__version__}, the version of PySpark: "
            "correct or unset it."
        )
    python = os.environ.get("PYSPARK_PYTHON", "").strip()
    if not python:
        return {"PYSPARK_PYTHON": sys.executable} if on_this_machine(master) else {}
    if shutil.which(python) or on_this_machine(master):
        version, wanted = "", "{}.{}".format(*sys.version_info)
        command = [python, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
            version = done.stdout.strip()
        if version != wanted:
            raise SparkStartError(
                f"PYSPARK_PYTHON ({python}) is {version or 'no Python'}, this is Python {wanted}: "
                "both must be the same version."
            )
    return {}


def on_this_machine(master: str) -> bool:
    """Whether every master of the address is on this machine."""
    hosts = {host for host, _ in _addresses(master)}
    return master.startswith("local") or (bool(hosts) and hosts <= LOOPBACK)


def _addresses(master: str) -> list[tuple[str, int]]:
    if not master.startswith("spark://"):
        return []
    addresses = re.findall(r"(?:^|,)([^,]+):(\d{1,5})(?=,|$)", master[8:])
    if len(addresses) != master.count(",") + 1:
        raise SparkStartError(f"SPARK_MASTER is {master!r}: write spark://host:port.")
    return [(host.strip("[]"), int(port)) for host, port in addresses]


def await_master(master: str) -> None:
    """Refuse at once a standalone master that nobody answers for; Spark itself takes a minute."""
    addresses = _addresses(master)
    for address in addresses:
        with contextlib.suppress(OSError), socket.create_connection(address, REACH_S):
            return
    if addresses:
        raise SparkStartError(
            f"No Spark master answers at {master}: start it, or correct SPARK_MASTER."
        )


def await_executor(session: SparkSession) -> None:
    """Wait for the first executor: without one every job waits for ever."""
    context: Any = session.sparkContext
    status = context._jsc.sc().statusTracker()
    until = time.monotonic() + EXECUTOR_S
    while len(status.getExecutorInfos()) < 2:  # the driver is one of them
        if time.monotonic() > until:
            session.stop()
            raise SparkStartError(
                f"The Spark master gave no executor within {EXECUTOR_S:.0f} s: start a worker or "
                "free one, or ask for less with SPARK_EXECUTOR_MEMORY and SPARK_EXECUTOR_CORES."
            )
        time.sleep(0.2)
