"""One quiet Spark session that gives the same numbers on every machine.

``randomSplit`` and ALS follow the number of partitions, so a seed alone does not repeat a result:
every option that decides a partition count is fixed here, whatever the number of cores.
"""

import os
import re
import shutil
import subprocess
import sys
from typing import Any

from pyspark import SparkConf, SparkContext
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from helpers.settings import Settings

COUNTS = ("default.parallelism", "sql.shuffle.partitions", "sql.leafNodeDefaultParallelism")
OPTIONS: dict[str, Any] = {  # a Spark Connect server takes those of SQL only
    "spark.sql.adaptive.enabled": "false",  # it picks partition counts at run time, by size
    "spark.sql.ansi.enabled": "false",  # a wrong cast stays visible as null, as in pandas
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.session.timeZone": "UTC",
    "spark.ui.enabled": "false",
    # ALS needs a deep stack; the default collector does not give memory back.
    "spark.driver.extraJavaOptions": "-Xss4m -XX:+UseSerialGC -Xmn160m -XX:MinHeapFreeRatio=10 "
    "-XX:MaxHeapFreeRatio=25 -XX:ReservedCodeCacheSize=160m",
    "spark.executor.extraJavaOptions": "-Xss4m",
}
OF_ANOTHER_SPARK = ("SPARK_HOME", "SPARK_CONF_DIR", "HADOOP_CONF_DIR", "PYSPARK_SUBMIT_ARGS")


class JavaError(RuntimeError):
    """Java is missing or has a version that Spark cannot use."""


def check_java() -> int:
    """Return the version of the Java that Spark will use: ``JAVA_HOME``'s, else the path's.

    Raises JavaError, one sentence with the line to install, where it is not 17 or 21.
    """
    home = os.environ.get("JAVA_HOME")
    path = shutil.which("java", path=f"{home}/bin" if home else None)
    said = subprocess.run([path, "-version"], capture_output=True, text=True).stderr if path else ""
    if found := re.search(r'version "(17|21)\b', said):
        return int(found[1])
    lines = [line for line in said.splitlines() if "Picked up " not in line]  # of an environment
    raise JavaError(
        f"Spark needs Java 17 or 21, found {(lines or ['none'])[0]}: run 'sudo "
        "apt-get install openjdk-17-jre', 'brew install openjdk@17' or 'conda install openjdk=17'."
    )


def get_spark(settings: Settings | None = None) -> SparkSession:
    """Return the running session, or start one with fixed partitioning and no console noise.

    ``SPARK_MASTER`` names a cluster's master, ``SPARK_REMOTE`` a Spark Connect server. All machines
    must see the data under the same path, and the executors' Python needs this package.
    Raises RuntimeError, with the reason, where the session does not start.
    """
    settings = settings or Settings.from_env()
    master, remote, cache = settings.spark_master, settings.spark_remote, settings.cache_dir
    options = OPTIONS | {f"spark.{name}": str(settings.spark_partitions) for name in COUNTS}
    options["spark.driver.memory"] = settings.spark_driver_memory
    options["spark.sql.warehouse.dir"] = str(cache / "spark-warehouse")
    builder = SparkSession.builder.appName("llm-recommenders").config(map=options)
    if not remote:
        check_java()
    if master.startswith(("local", "spark://127.0.0.1:")):  # PySpark's own Spark, on this machine
        for name in OF_ANOTHER_SPARK:
            os.environ.pop(name, None)
        os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
        os.environ["LC_ALL"] = "C.UTF-8"  # the names of files are UTF-8 for the JVM, too
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "spark.log").open("w+", errors="replace") as log:  # the JVM writes on there
        try:
            if remote:
                return builder.remote(remote).getOrCreate()
            if not SparkContext._gateway:
                conf = SparkConf().setMaster(master).setAll([*options.items()])
                gateway = launch_gateway(conf, {"stdout": log, "stderr": log})
                SparkContext._ensure_initialized(gateway=gateway)
            return builder.master(master).getOrCreate()
        except Exception as error:
            log.seek(0)
            why = "no such server, or no pip install '.[scale]'"  # an error may hold its token
            if not remote:
                signs = r"(?m)^.*(Exception: |Error: |Could not|Invalid|must).*"
                found = re.search(signs, f"{log.read()}\n{error}")
                why = found[0].strip().rstrip(".") if found else error
            see = "SPARK_REMOTE, SPARK_MASTER and SPARK_DRIVER_MEMORY, and data/cache/spark.log"
            raise RuntimeError(f"Spark did not start: {why}; see {see}.") from None


def close_spark(session: SparkSession) -> None:
    """Stop the session and end its JVM; who uses its tables then gets a RuntimeError."""
    if not hasattr(session, "_sc"):  # of Spark Connect
        return session.stop()
    gateway: Any = SparkContext._gateway
    session.stop()
    gateway._gateway_client.send_command = _refuse
    SparkContext._gateway = SparkContext._jvm = None
    gateway.proc.stdin.close()  # at the end of its input the JVM ends
    gateway.proc.wait(20)


def _refuse(*_: object, **__: object) -> None:
    raise RuntimeError("Spark was closed by the last cell: run the notebook again (Run All).")
