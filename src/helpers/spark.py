"""One quiet Spark session that gives the same numbers on every machine.

``randomSplit`` and ALS follow the number of partitions, so a seed alone does not repeat a result.
Every setting that decides a partition count is fixed here, whatever the number of cores. The
default is one partition: 100,000 ratings are a small table for Spark, and its work is spread over
the cores by running several fits at once. For a larger release set ``SPARK_PARTITIONS``; the
numbers are then again the same on every machine, but not those of the saved outputs.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import SparkSession

from helpers.faults import storing
from helpers.settings import Settings

SUPPORTED_JAVA = (17, 21)
"""Java versions that PySpark 4.3 is built and tested with."""


class JavaError(RuntimeError):
    """Java is missing or has a version that Spark cannot use."""


class SparkStartError(RuntimeError):
    """Java is there, yet Spark did not start."""


@dataclass(frozen=True)
class JavaInfo:
    """The Java that Spark would start."""

    version: int
    path: str


def install_line() -> str:
    """Return the command that installs a suitable Java on this system."""
    system = platform.system()
    if system == "Darwin":
        return "brew install openjdk@17"
    if system == "Windows":
        return "winget install EclipseAdoptium.Temurin.17.JDK"
    if shutil.which("apt-get"):
        return "sudo apt-get install openjdk-17-jre-headless"
    if shutil.which("dnf"):
        return "sudo dnf install java-17-openjdk-headless"
    return "conda install -c conda-forge openjdk=17"


def check_java() -> JavaInfo:
    """Find the Java that Spark will use (``JAVA_HOME``, else ``java`` on the path).

    Raises:
        JavaError: there is none, or its version is not 17 or 21; one sentence with the remedy.
    """
    remedy = f"install Java 17 with '{install_line()}', or point JAVA_HOME at a Java 17 or 21."
    home = os.environ.get("JAVA_HOME", "").strip()
    name = "java.exe" if platform.system() == "Windows" else "java"
    path = str(Path(home) / "bin" / name) if home else shutil.which("java")
    if not path or not Path(path).exists():
        where = f"JAVA_HOME ({home}) holds no Java" if home else "Java was not found"
        raise JavaError(f"{where}: {remedy}")
    try:
        done = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60)
        text = done.stderr + done.stdout
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    version = parse_java_version(text)
    if version is None:
        raise JavaError(f"{path} does not answer to 'java -version': {remedy}")
    if version not in SUPPORTED_JAVA:
        raise JavaError(f"Java {version} ({path}) does not suit Spark 4.3: {remedy}")
    return JavaInfo(version, path)


def parse_java_version(text: str) -> int | None:
    """Return the major version in the output of ``java -version``, or ``None``.

    ``1.8.0_402`` is Java 8, ``17.0.15`` and ``21-ea`` are 17 and 21.
    """
    found = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if not found:
        return None
    major = int(found[1])
    return int(found[2]) if major == 1 and found[2] else major


def get_spark(settings: Settings | None = None) -> SparkSession:
    """Return the running session, or start one with fixed partitioning and no console noise.

    ``SPARK_MASTER`` names another master, ``SPARK_REMOTE`` a Spark Connect server.

    Raises:
        JavaError: Java is missing or unsuitable.
        SparkStartError: the session did not start; the message holds the JVM's own reason.
    """
    settings = settings or Settings.from_env()
    builder = SparkSession.builder.appName("llm-recommenders")
    for key, value in _sql_options(settings).items():
        builder = builder.config(key, value)
    if settings.spark_remote:
        return builder.remote(settings.spark_remote).getOrCreate()
    check_java()
    for key, value in _process_options(settings).items():
        builder = builder.config(key, value)
    if settings.spark_master.startswith("local"):
        # Functions on pandas frames run in other processes: in this Python, where the course is
        # installed, and not in the first python3 on the path.
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    log = settings.cache_dir / "spark.log"
    with storing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.open("ab").close()
    known = log.stat().st_size if log.exists() else 0
    try:
        with _output_to(log):
            session = builder.master(settings.spark_master).getOrCreate()
    except Exception as error:
        with log.open("rb") as file:
            file.seek(known)  # earlier starts wrote there too
            text = file.read().decode("utf-8", errors="replace")
        # PySpark's own text for a JVM that ended, JAVA_GATEWAY_EXITED, gives no reason.
        why = start_fault(text) or ("its JVM ended" if "GATEWAY" in str(error) else error)
        raise SparkStartError(
            f"Spark did not start: {why}; check SPARK_MASTER and SPARK_DRIVER_MEMORY, the rest is "
            f"in {log.name} in data/cache."
        ) from None
    return session


def _sql_options(settings: Settings) -> dict[str, str]:
    return {
        "spark.sql.shuffle.partitions": str(settings.spark_partitions),
        # Adaptive execution picks partition counts at run time, by size.
        "spark.sql.adaptive.enabled": "false",
        # A wrong cast should stay visible as null, as in pandas.
        "spark.sql.ansi.enabled": "false",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.session.timeZone": "UTC",
    }


def _process_options(settings: Settings) -> dict[str, str]:
    options = {
        "spark.default.parallelism": str(settings.spark_partitions),
        "spark.driver.memory": settings.spark_driver_memory,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": str(settings.cache_dir / "spark-warehouse"),
        # ALS lineage grows with each iteration; the default stack is too small for long runs.
        "spark.driver.extraJavaOptions": (
            "-Xss4m "
            # A notebook must fit Binder's 2 GB. The default collector lets the heap grow to its
            # limit, whatever it needs; this one collects first and gives memory back.
            "-XX:+UseSerialGC -Xmn160m -XX:MinHeapFreeRatio=10 -XX:MaxHeapFreeRatio=25 "
            "-XX:ReservedCodeCacheSize=160m "
            f"-Dlog4j.configurationFile={Path(__file__).with_name('log4j2.properties').as_uri()}"
        ),
    }
    if settings.spark_master.startswith("local"):
        options["spark.driver.host"] = "localhost"
        options["spark.driver.bindAddress"] = "127.0.0.1"
    return options


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Point file descriptors 1 and 2 at ``log`` while the JVM starts, which then keeps them.

    The JVM writes to the descriptors itself (a failed start to 1, warnings to 2); Python's
    ``redirect_stderr`` does not reach them.
    """
    sys.stdout.flush()
    saved = [(number, os.dup(number)) for number in (1, 2)]
    try:
        with log.open("ab") as target:
            for number, _ in saved:
                os.dup2(target.fileno(), number)
            yield
    finally:
        for number, copy in saved:
            os.dup2(copy, number)
            os.close(copy)


def start_fault(text: str) -> str:
    """Return the line of a JVM's output that says why it did not start, or an empty string.

    The last lines of a Java error are frames of its stack, the first ones warnings.
    """
    told = r"invalid|exception|could not|cannot|error"
    lines = [line.strip() for line in text.splitlines() if not re.match(r"\s+at |WARNING", line)]
    lines = [line for line in lines if re.search(told, line, re.IGNORECASE)]
    # "Error occurred during initialization" announces the reason, which is on the next line.
    reasons = [line for line in lines if not line.startswith("Error occurred during")]
    return reasons[0].rstrip(".") if reasons else ""
