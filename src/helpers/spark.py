"""One quiet Spark session with fixed partitions: randomSplit and ALS follow them and the seed."""

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


def check_java() -> int:
    """Return the version of ``JAVA_HOME``'s Java, else the path's; an OSError if none suits."""
    home = os.environ.get("JAVA_HOME")
    path = shutil.which("java", path=f"{home}/bin" if home else None)
    said = subprocess.run([path, "-version"], capture_output=True, text=True).stderr if path else ""
    found = re.search(r'version "(\d+).*', said)
    if found and found[1] in ("17", "21"):
        return int(found[1])
    raise OSError(
        f"Spark needs Java 17 or 21, found {found[0] if found else 'none'}: run 'sudo apt-get "
        "install openjdk-17-jre', 'brew install openjdk@17' or 'conda install openjdk=17'."
    )


def get_spark(settings: Settings | None = None) -> SparkSession:
    """Return the running session, or start one; RuntimeError or (Java) OSError says why not."""
    settings = settings or Settings.from_env()
    master, remote, cache = settings.spark_master, settings.spark_remote, settings.cache_dir
    options = OPTIONS | {f"spark.{name}": str(settings.spark_partitions) for name in COUNTS}
    options["spark.driver.memory"] = settings.spark_driver_memory
    options["spark.sql.warehouse.dir"] = str(cache / "spark-warehouse")
    builder = SparkSession.builder.appName("llm-recommenders").config(map=options)
    if not remote:
        check_java()
    if master.startswith(("local", "spark://127.0.0.1:")):  # PySpark's own Spark, on this machine
        os.environ.pop("SPARK_HOME", None)
        os.environ |= {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    cache.mkdir(parents=True, exist_ok=True)
    try:
        if remote:
            return builder.remote(remote).getOrCreate()
        if not SparkContext._gateway:
            conf = SparkConf().setMaster(master).setAll([*options.items()])
            with (cache / "spark.log").open("w") as log:  # the JVM writes on there
                gateway = launch_gateway(conf, {"stdout": log, "stderr": log})
            SparkContext._ensure_initialized(gateway=gateway)
        return builder.master(master).getOrCreate()
    except Exception:  # its text may hold the token of SPARK_REMOTE
        see = "data/cache/spark.log, SPARK_MASTER, SPARK_DRIVER_MEMORY or SPARK_REMOTE"
        raise RuntimeError(f"Spark did not start: see {see}.") from None


def close_spark(session: SparkSession) -> None:
    """Stop the session and end its JVM, so that its memory is free while the kernel stays open."""
    gateway: Any = SparkContext._gateway
    session.stop()
    if gateway:  # Spark Connect has none
        gateway._gateway_client.send_command = _refuse
        SparkContext._gateway = SparkContext._jvm = None
        gateway.proc.stdin.close()  # at the end of its input the JVM ends
        gateway.proc.wait(20)


def _refuse(*_: object, **__: object) -> None:
    raise RuntimeError("Spark was closed by the last cell: run the notebook again (Run All).")
