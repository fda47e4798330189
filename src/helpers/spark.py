"""One quiet Spark session that gives the same numbers on every machine.

``randomSplit`` and ALS follow the number of partitions, so a seed alone does not repeat a result:
every option that decides a partition count is fixed here, whatever the number of cores.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from helpers.settings import Settings

HERE = ("local", "spark://127.0.0.1:")  # masters on this machine
JavaInfo = namedtuple("JavaInfo", "version path")


class JavaError(RuntimeError):
    """Java is missing or has a version that Spark cannot use."""


class SparkStartError(RuntimeError):
    """The session did not start; the message holds the reason."""


class SparkClosedError(RuntimeError):
    """A session that :func:`close_spark` has closed, or a table of it, was used again."""


INSTALL = {"Darwin": "brew install openjdk@17", "Linux": "sudo apt-get install openjdk-17-jre"}
"""Lines that install a suitable Java; conda has one for every system."""


def check_java() -> JavaInfo:
    """Return version and path of the Java that Spark will use (``JAVA_HOME``, else the path's).

    Raises JavaError where there is none or it is not 17 or 21: one sentence with the remedy.
    """
    home = os.environ.get("JAVA_HOME", "").strip()
    path = shutil.which("java", path=f"{home}/bin" if home else None)
    fault, version = f"JAVA_HOME ({home}) holds no Java" if home else "Java was not found", ""
    if path:
        done = subprocess.run([path, "-version"], capture_output=True, text=True)
        number = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
        version = number[1] if number else "of an unknown version"
        fault = f"{path} does not suit Spark (Java {version})"
    if path and version in ("17", "21"):
        return JavaInfo(int(version), path)
    line = INSTALL.get(platform.system(), "conda install -c conda-forge openjdk=17")
    raise JavaError(f"{fault}: install Java 17 with '{line}', or set JAVA_HOME to one.")


def get_spark(settings: Settings | None = None) -> SparkSession:
    """Return the running session, or start one with fixed partitioning and no console noise.

    ``SPARK_MASTER`` names a cluster's master, ``SPARK_REMOTE`` a Spark Connect server. All machines
    must see the data under the same path, and the executors' Python needs this package.
    """
    settings = settings or Settings.from_env()
    builder = SparkSession.builder.appName("llm-recommenders").config(map=sql_options(settings))
    if settings.spark_remote:
        try:
            return builder.remote(settings.spark_remote).getOrCreate()
        except Exception as error:  # its text may hold a token
            raise SparkStartError(
                f"No session on the Spark Connect server ({type(error).__name__}): start it, "
                'correct SPARK_REMOTE, or run pip install -e ".[scale]".'
            ) from None
    check_java()
    builder = builder.config(map=process_options(settings)).master(settings.spark_master)
    log = settings.cache_dir / "spark.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    environment, streams = dict(os.environ), [os.dup(1), os.dup(2)]
    with log.open("ab") as file:  # the JVM keeps the streams and variables with which it starts
        known = file.tell()
        try:
            _prepare(settings)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            return builder.getOrCreate()
        except Exception as error:
            text = log.read_bytes()[known:].decode(errors="replace")
            raise SparkStartError(
                f"Spark did not start: {start_fault(text) or start_fault(str(error)) or error}; "
                "check SPARK_MASTER and SPARK_DRIVER_MEMORY, the rest is in data/cache/spark.log."
            ) from None
        finally:
            for number, stream in enumerate(streams, start=1):
                os.dup2(stream, number)
                os.close(stream)
            os.environ.clear()
            os.environ.update(environment)


def sql_options(settings: Settings) -> dict[str, Any]:
    """Return the options that decide numbers, in any kind of session."""
    return {
        "spark.sql.shuffle.partitions": str(settings.spark_partitions),
        "spark.sql.leafNodeDefaultParallelism": str(settings.spark_partitions),
        "spark.sql.adaptive.enabled": "false",  # it picks partition counts at run time, by size
        "spark.sql.ansi.enabled": "false",  # a wrong cast stays visible as null, as in pandas
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.session.timeZone": "UTC",
    }


def process_options(settings: Settings) -> dict[str, Any]:
    """Return the options of a session whose driver is a JVM of this process."""
    options = {
        "spark.default.parallelism": str(settings.spark_partitions),
        "spark.driver.memory": settings.spark_driver_memory,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": str(settings.cache_dir / "spark-warehouse"),
        # ALS needs a deep stack; the default collector does not give memory back.
        "spark.driver.extraJavaOptions": (
            "-Xss4m -XX:+UseSerialGC -Xmn160m -XX:MinHeapFreeRatio=10 -XX:MaxHeapFreeRatio=25 "
            "-XX:ReservedCodeCacheSize=160m "
            f"-Dlog4j.configurationFile={Path(__file__).with_name('log4j2.properties').as_uri()}"
        ),
        "spark.executor.memory": settings.spark_executor_memory,
        "spark.executor.extraJavaOptions": "-Xss4m",
    }
    if settings.spark_executor_cores:
        options["spark.executor.cores"] = str(settings.spark_executor_cores)
    if settings.spark_driver_host:
        options["spark.driver.host"] = settings.spark_driver_host
    elif settings.spark_master.startswith(HERE):
        options |= dict.fromkeys(("spark.driver.host", "spark.driver.bindAddress"), "127.0.0.1")
    return options


def _prepare(settings: Settings) -> None:
    """Set the variables with which the JVM and the workers start."""
    if settings.spark_master.startswith("local"):  # the machine's own Spark is another one
        for name in [name for name in os.environ if re.match("(PY)?SPARK_|HADOOP_|YARN_", name)]:
            del os.environ[name]
    if settings.spark_master.startswith(HERE):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    # File names are UTF-8, and a random.py beside the notebook hides no module of the workers'.
    os.environ["LC_ALL"] = "en_US.UTF-8" if platform.system() == "Darwin" else "C.UTF-8"
    os.environ["PYTHONSAFEPATH"] = "1"


def close_spark(session: SparkSession) -> None:
    """Stop the session and end its JVM; its tables then raise a :class:`SparkClosedError`."""
    context = getattr(session, "_sc", None)
    if context is None:  # of Spark Connect
        session.stop()
    if context is None or context is not context._active_spark_context:  # closed before
        return
    gateway, java = context._gateway, (context._jsc, context._jvm)
    session.stop()
    gateway.shutdown()
    gateway._gateway_client.send_command = _refuse
    context._jsc, context._jvm = java
    type(context)._gateway = type(context)._jvm = None
    gateway.proc.stdin.close()  # at the end of its input the JVM ends
    gateway.proc.wait(20)


def _refuse(*_: object, **__: object) -> None:
    raise SparkClosedError("Spark was closed by the last cell: run the notebook again (Run All).")


def start_fault(text: str) -> str:
    """Return the first line of a JVM's output that says why it did not start, or ""."""
    signs = r"Exception: |Error: |Could not|Invalid|must"
    lines = (line.strip().rstrip(".") for line in text.splitlines())
    return next((line for line in lines if re.search(signs, line)), "")
