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
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import TracebackType

import pyspark
from pyspark.sql import SparkSession

from helpers.faults import storing
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


class SparkStartError(RuntimeError):
    """Java is there, yet Spark did not start."""


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
    found = re.search(r'version "(\d+)(?:\.(\d+))?', text)
    if not found:
        return None
    major = int(found[1])
    return int(found[2]) if major == 1 and found[2] else major


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
        session = _connect(settings)
        _closed.clear()
        return session
    check_java()
    environment = start_environment(settings)
    builder = SparkSession.builder.appName("llm-recommenders")
    for key, value in (_sql_options(settings) | _process_options(settings)).items():
        builder = builder.config(key, value)
    _await_master(settings.spark_master)
    log = settings.cache_dir / "spark.log"
    with storing(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.open("ab").close()
    known = log.stat().st_size if log.exists() else 0
    try:
        with _environment(environment), _output_to(log):
            session = builder.master(settings.spark_master).getOrCreate()
    except Exception as error:
        with log.open("rb") as file:
            file.seek(known)  # earlier starts wrote there too
            text = file.read().decode("utf-8", errors="replace")
        # PySpark's own text for a JVM that ended, JAVA_GATEWAY_EXITED, gives no reason.
        why = start_fault(text) or start_fault(str(error))
        why = why or ("its JVM ended" if "GATEWAY" in str(error) else error)
        known_to_matter = (*JVM_OPTIONS, "SPARK_LOCAL_DIRS", *FOREIGN, "SPARK_HOME")
        check = [name for name in known_to_matter if os.environ.get(name)]
        check = ", ".join([name for name in check if name not in environment] + ["SPARK_MASTER"])
        raise SparkStartError(
            f"Spark did not start: {why}; check {check} and SPARK_DRIVER_MEMORY, the rest is in "
            f"{log.name} in data/cache."
        ) from None
    _closed.clear()
    if settings.spark_master.startswith("spark://"):
        _await_executor(session)
    return session


def start_environment(settings: Settings) -> dict[str, str | None]:
    """Return the variables under which Spark is started; ``None`` removes one.

    A local session is PySpark's own, in this Python, whatever other Spark the machine has.

    Raises:
        SparkStartError: a variable names a Spark or Python that cannot serve the master, or this
            Python cannot hand the folders' names over; one sentence that names the variable.
    """
    installed = [found.version for found in metadata.distributions(name="pyspark")]
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
    home = os.environ.get("SPARK_HOME", "").strip()
    if home and not any(Path(home).glob(f"jars/spark-core_*-{pyspark.__version__}.jar")):
        raise SparkStartError(
            f"SPARK_HOME ({home}) holds no Spark {pyspark.__version__}, the version of PySpark: "
            "correct or unset it."
        )
    python = os.environ.get("PYSPARK_PYTHON", "").strip()
    if not python and _on_this_machine(settings.spark_master):
        environment["PYSPARK_PYTHON"] = sys.executable
    elif python and (shutil.which(python) or _on_this_machine(settings.spark_master)):
        wanted = "{}.{}".format(*sys.version_info)
        version = _python_version(python)
        if version != wanted:
            raise SparkStartError(
                f"PYSPARK_PYTHON ({python}) is {version or 'no Python'}, this is Python {wanted}: "
                "both must be the same version."
            )
    return environment


def _python_version(python: str) -> str:
    """Return such as ``3.11``, or nothing where ``python`` does not run."""
    command = [python, "-c", "import sys; print('{}.{}'.format(*sys.version_info))"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()
    return ""


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """Change the process's environment for a while."""
    before = {name: os.environ.get(name) for name in changes}

    def write(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    write(changes)
    try:
        yield
    finally:
        write(before)


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
    context = getattr(pyspark, "SparkContext", None)  # a client of Spark Connect may lack it
    gateway = getattr(context, "_gateway", None)
    process = getattr(gateway, "proc", None)
    if process is None:
        return
    gateway.shutdown()
    # Objects of the old session still hold its client, and would tell of a refused connection;
    # their context holds nothing, of which they would tell an AttributeError.
    gateway._gateway_client.send_command = _refuse
    session._sc._jsc, session._sc._jvm = java_context, gateway.jvm
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


REACH_S = 10.0
"""Seconds to wait for an answer from a master or a Spark Connect server."""

EXECUTOR_S = 60.0
"""Seconds to wait for the first executor; starting its JVM takes a few."""


def _connect(settings: Settings) -> SparkSession:
    """Return a session on the Spark Connect server; nothing here touches a JVM.

    Raises:
        SparkStartError: the client is not installed, or the server does not answer.
    """
    url = settings.spark_remote
    try:
        from pyspark.sql.connect.client import DefaultChannelBuilder

        channels = DefaultChannelBuilder(url)
        channel = channels.toChannel()
    except ImportError:
        raise SparkStartError(
            "Spark Connect needs its client: install it with pip install -e '.[scale]'."
        ) from None
    except ValueError:
        # The address itself may hold a token.
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
    options = _sql_options(settings)
    builder = SparkSession.builder
    for key, value in options.items():
        builder = builder.config(key, value)
    session = builder.remote(url).getOrCreate()
    refused = [key for key, value in options.items() if session.conf.get(key, None) != value]
    if refused:
        warnings.warn(
            f"The Spark Connect server keeps its own {', '.join(refused)}: numbers may differ from "
            "those of one machine.",
            stacklevel=3,
        )
    return session


def _on_this_machine(master: str) -> bool:
    hosts = {host for host, _ in _addresses(master)}
    return master.startswith("local") or (bool(hosts) and hosts <= LOOPBACK)


def _sql_options(settings: Settings) -> dict[str, str]:
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
    options["spark.executor.memory"] = settings.spark_executor_memory
    options["spark.executor.extraJavaOptions"] = "-Xss4m"
    if settings.spark_executor_cores:
        options["spark.executor.cores"] = str(settings.spark_executor_cores)
    if settings.spark_driver_host:
        options["spark.driver.host"] = settings.spark_driver_host
    elif _on_this_machine(settings.spark_master):
        options["spark.driver.host"] = "127.0.0.1"
    return options


LOOPBACK = {"localhost", "127.0.0.1"}


def _addresses(master: str) -> list[tuple[str, int]]:
    """Return hosts and ports of ``spark://host:port,host:port``, and nothing for other masters.

    Raises:
        SparkStartError: an address lacks its host or port.
    """
    if not master.startswith("spark://"):
        return []
    found = [re.fullmatch(r"(.+):(\d{1,5})", part) for part in master[8:].split(",")]
    if not all(found):
        raise SparkStartError(f"SPARK_MASTER is {master!r}: write spark://host:port.")
    return [(match[1].strip("[]"), int(match[2])) for match in found]


def _await_master(master: str) -> None:
    """Refuse at once a standalone master that nobody answers for; Spark itself takes a minute."""
    addresses = _addresses(master)
    for address in addresses:
        with contextlib.suppress(OSError), socket.create_connection(address, REACH_S):
            return
    if addresses:
        raise SparkStartError(
            f"No Spark master answers at {master}: start it, or correct SPARK_MASTER."
        )


def _await_executor(session: SparkSession) -> None:
    """Wait for the first executor: without one every job waits for ever."""
    status = session.sparkContext._jsc.sc().statusTracker()
    until = time.monotonic() + EXECUTOR_S
    while len(status.getExecutorInfos()) < 2:  # the driver is one of them
        if time.monotonic() > until:
            session.stop()
            raise SparkStartError(
                f"The Spark master gave no executor within {EXECUTOR_S:.0f} s: start a worker or "
                "free one, or ask for less with SPARK_EXECUTOR_MEMORY and SPARK_EXECUTOR_CORES."
            )
        time.sleep(0.2)


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
    told = (
        r"Caused by: ", r"(Exception in thread \S+ |: )?[\w.$]+(Exception|Error)\b",
        r"(?i).*(invalid|exception|could not|cannot|error|multiple|conflicting|fail|unrecognized)",
    )  # fmt: skip
    causes, exceptions, others = ([x for x in lines if re.match(like, x)] for like in told)
    reason = (causes[-1:] or exceptions or others or [""])[0]
    prefix = r"Caused by: |Exception in thread \S+ |[\d:]{8} (ERROR|WARN) \w+: |: "
    return re.sub(rf"^({prefix})", "", reason).rstrip(".")
