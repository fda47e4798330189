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
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import pyspark
from pyspark.sql import SparkSession

from helpers import remote_spark
from helpers.remote_spark import SparkStartError
from helpers.settings import Settings

SUPPORTED_JAVA = (17, 21)
"""Java versions that PySpark 4.3 is built and tested with."""

JVM_OPTIONS = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")
"""Variables with options that every JVM takes, wherever it is started."""

FOREIGN = ("SPARK_CONF_DIR", "HADOOP_CONF_DIR", "YARN_CONF_DIR", "SPARK_DIST_CLASSPATH",
           "SPARK_API_MODE", "PYSPARK_SUBMIT_ARGS", "PYSPARK_DRIVER_PYTHON",
           "PYSPARK_GATEWAY_PORT")  # fmt: skip
"""Variables of a Spark or Hadoop of the machine's own; a local session does without them."""


class JavaError(RuntimeError):
    """Java is missing or has a version that Spark cannot use."""


class SparkClosedError(RuntimeError):
    """A session that :func:`close_spark` has closed, or a table of it, was used again."""

    def _render_traceback_(self) -> list[str]:
        """Return what IPython shows: PySpark's frames would say nothing more."""
        return [f"{type(self).__name__}: {self}"]


CLOSED = (
    "Spark was closed by the notebook's last cell: run the notebook again from its start (Run "
    "All), or from the cell that calls get_spark."
)


@dataclass(frozen=True)
class JavaInfo:
    """The Java that Spark would start."""

    version: int
    path: str


def install_line() -> str:
    """Return the command that installs a suitable Java on this system."""
    systems = {
        "Darwin": "brew install openjdk@17",
        "Windows": "winget install EclipseAdoptium.Temurin.17.JDK",
    }
    managers = {
        "apt-get": "sudo apt-get install openjdk-17-jre-headless",
        "dnf": "sudo dnf install java-17-openjdk-headless",
    }
    fitting = [line for name, line in managers.items() if shutil.which(name)]
    anywhere = [*fitting, "conda install -c conda-forge openjdk=17"]
    return systems.get(platform.system(), anywhere[0])


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
    text = ""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([path, "-version"], capture_output=True, text=True, timeout=60)
        text = done.stderr + done.stdout
    version = parse_java_version(text)
    options = [name for name in JVM_OPTIONS if os.environ.get(name)]
    if version is None and options:
        why = start_fault(text) or "no reason given"
        raise JavaError(f"Java does not start ({why}): correct or unset {' and '.join(options)}.")
    if version is None:
        raise JavaError(f"{path} does not answer to 'java -version': {remedy}")
    if version not in SUPPORTED_JAVA:
        raise JavaError(f"Java {version} ({path}) does not suit Spark 4.3: {remedy}")
    return JavaInfo(version, path)


def parse_java_version(text: str) -> int | None:
    """Return the major version in the output of ``java -version``, or ``None``.

    ``1.8.0_402`` is Java 8, ``17.0.15`` and ``21-ea`` are 17 and 21.
    """
    number = re.search(r'version "(?:1\.)?(\d+)', text)
    return int(number[1]) if number else None


def get_spark(settings: Settings | None = None) -> SparkSession:
    """Return the running session, or start one with fixed partitioning and no console noise.

    ``SPARK_MASTER`` names a cluster's master and ``SPARK_REMOTE`` a Spark Connect server; the rest
    of the course stays as it is. On a cluster every machine must see the data under the same path
    or address, and the executors' Python, ``PYSPARK_PYTHON``, needs this package.

    - A standalone master (``spark://host:port``): ``SPARK_EXECUTOR_MEMORY`` and
      ``SPARK_EXECUTOR_CORES`` size its executors; ``SPARK_DRIVER_HOST`` is the name under which
      they find this process (on this machine 127.0.0.1, elsewhere what Spark finds out itself).
    - Spark Connect: the server was started with its own memory and Java options, which a client
      cannot change; the options of Spark SQL, partition counts among them, are set here, and one
      that the server refuses is warned of.

    Raises:
        JavaError: Java is missing or unsuitable (there is no need of it with Spark Connect).
        SparkStartError: the session did not start, or no master, executor or server answered
            within seconds; the message holds the reason.
    """
    settings = settings or Settings.from_env()
    if settings.spark_remote:
        session = remote_spark.connect(settings, sql_options(settings))
        _closed.clear()
        return session
    check_java()
    environment = start_environment(settings)
    options = sql_options(settings) | process_options(settings)
    builder = SparkSession.builder.appName("llm-recommenders").config(map=options)
    remote_spark.await_master(settings.spark_master)
    log = settings.cache_dir / "spark.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.open("ab").close()
    known = log.stat().st_size  # earlier starts wrote there too
    try:
        with _environment(environment), _output_to(log):
            session = builder.master(settings.spark_master).getOrCreate()
    except Exception as error:
        text = log.read_bytes()[known:].decode(errors="replace")
        # PySpark's own text for a JVM that ended, JAVA_GATEWAY_EXITED, gives no reason.
        why = start_fault(text) or start_fault(str(error))
        why = why or ("its JVM ended" if "GATEWAY" in str(error) else error)
        suspects = {*JVM_OPTIONS, "SPARK_LOCAL_DIRS", *FOREIGN, "SPARK_HOME"} - {*environment}
        check = ", ".join([*sorted(suspects & {*os.environ}), "SPARK_MASTER"])
        raise SparkStartError(
            f"Spark did not start: {why}; check {check} and SPARK_DRIVER_MEMORY, the rest is in "
            f"{log.name} in data/cache."
        ) from None
    _closed.clear()
    if settings.spark_master.startswith("spark://"):
        remote_spark.await_executor(session)
    return session


def start_environment(settings: Settings) -> dict[str, str | None]:
    """Return the variables under which Spark is started; ``None`` removes one.

    A local session is PySpark's own, in this Python, whatever other Spark the machine has.

    Raises:
        SparkStartError: a variable names a Spark or Python that cannot serve the master, or this
            Python cannot hand the folders' names over; one sentence that names the variable.
    """
    installed = [package.version for package in metadata.distributions(name="pyspark")]
    if installed and pyspark.__version__ not in installed:
        raise SparkStartError(
            f"PySpark {pyspark.__version__} hides the course's {installed[0]}: take its folder out "
            "of PYTHONPATH and restart the kernel."
        )
    places = [str(place) for place in (settings.root, settings.movielens_dir) if place]
    if sys.getfilesystemencoding() != "utf-8" and not "".join(places).isascii():
        raise SparkStartError(
            f"The locale ({sys.getfilesystemencoding()}) cannot spell the folders of the course: "
            "set PYTHONUTF8=1, or LC_ALL to a UTF-8 locale, and restart the kernel."
        )
    environment: dict[str, str | None] = {
        # The JVM reads file names by its locale; the reasons it gives are then in English too.
        "LC_ALL": "en_US.UTF-8" if platform.system() == "Darwin" else "C.UTF-8",
        # A learner's random.py beside the notebook is no module of the workers'.
        "PYTHONSAFEPATH": "1",
    }
    if settings.spark_master.startswith("local"):
        # PySpark finds its own Spark where no SPARK_HOME is set. Functions on pandas frames run
        # in other processes: in this Python, not in the first python3 on the path. The machine's
        # name need not be known to any name server.
        environment |= dict.fromkeys((*FOREIGN, "SPARK_HOME"))
        return environment | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    return environment | remote_spark.executor_environment(settings.spark_master)


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Change the process's environment for a while."""
    before = {name: os.environ.get(name) for name in changes}
    try:
        _set_variables(changes)
        yield
    finally:
        _set_variables(before)


def _set_variables(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


CLOSE_S = 20.0
"""Seconds that a JVM gets to end by itself."""


def close_spark(session: SparkSession) -> None:
    """Stop the session and end the JVM that this process started for it.

    ``session.stop()`` alone keeps the JVM, with all the memory it has taken, for a next session.
    A session of Spark Connect has no JVM here: it is stopped. The next :func:`get_spark` starts a
    new JVM, with the memory of its own settings. Until then whatever a notebook asks of Spark, and
    afterwards whatever it asks of the old session's tables, is a :class:`SparkClosedError`.
    """
    java_context = getattr(getattr(session, "_sc", None), "_jsc", None)
    try:
        session.stop()
    except SparkClosedError:  # it was closed before
        session._sc._jsc = java_context
        return
    _explain_closed()
    context: Any = getattr(pyspark, "SparkContext", None)  # a client of Spark Connect may lack it
    gateway: Any = getattr(context, "_gateway", None)
    process = getattr(gateway, "proc", None)
    if process is None:
        return
    gateway.shutdown()
    # Objects of the old session still hold its client, and would tell of a refused connection;
    # their context holds nothing, of which they would tell an AttributeError.
    gateway._gateway_client.send_command = _refuse
    old: Any = session._sc
    old._jsc, old._jvm = java_context, gateway.jvm
    context._gateway = context._jvm = None
    if platform.system() == "Windows":  # the process is a script there, and the JVM its child
        command = ["taskkill", "/f", "/t", "/pid", str(process.pid)]
        subprocess.run(command, capture_output=True, check=False)
    process.stdin.close()  # at the end of its input the JVM ends
    try:
        process.wait(CLOSE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_closed = threading.Event()


def _refuse(*_: object, **__: object) -> None:
    raise SparkClosedError(CLOSED)


def _explain_closed() -> None:
    """Let the notebook show one sentence for what PySpark raises while no session is open."""
    _closed.set()
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None:
        return

    def show(
        shell, kind: type, error: Exception, trace: TracebackType, tb_offset: int | None = None
    ) -> None:
        names = (frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(trace))
        if _closed.is_set() and {"pyspark", "py4j"} & {name.split(".")[0] for name in names}:
            kind, error = SparkClosedError, SparkClosedError(CLOSED)
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)

    shell.set_custom_exc((Exception,), show)


def sql_options(settings: Settings) -> dict[str, Any]:
    """Return the options that decide numbers, in any kind of session."""
    return {
        "spark.sql.shuffle.partitions": str(settings.spark_partitions),
        # The partitions of files and of tables from this process; on one machine it follows
        # spark.default.parallelism, which a client of Spark Connect cannot set.
        "spark.sql.leafNodeDefaultParallelism": str(settings.spark_partitions),
        # Adaptive execution picks partition counts at run time, by size.
        "spark.sql.adaptive.enabled": "false",
        # A wrong cast should stay visible as null, as in pandas.
        "spark.sql.ansi.enabled": "false",
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.session.timeZone": "UTC",
    }


def process_options(settings: Settings) -> dict[str, str]:
    """Return the options of a session whose driver runs in a JVM of this process."""
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
    return options | remote_spark.executor_options(settings)


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

    The last lines of a Java error are frames of its stack, the first ones warnings; the root of a
    chain of exceptions is the last that is named as a cause, and a logged error announces one.
    """
    quiet = r"\s+at |\s+\.\.\. \d+ more|WARNING|Picked up |Error occurred during|\s*$"
    lines = [line.strip() for line in text.splitlines() if not re.match(quiet, line)]
    signs = (
        r"Caused by: ", r"(Exception in thread \S+ |: )?[\w.$]+(Exception|Error)\b",
        r"(?i).*(invalid|exception|could not|cannot|error|multiple|conflicting|fail|unrecognized)",
    )  # fmt: skip
    causes, exceptions, others = (
        [line for line in lines if re.match(sign, line)] for sign in signs
    )
    reason = (causes[-1:] or exceptions or others or [""])[0]
    prefix = r"Caused by: |Exception in thread \S+ |[\d:]{8} (ERROR|WARN) \w+: |: "
    return re.sub(rf"^({prefix})", "", reason).rstrip(".")
