"""Java's one sentence, a failed start, and a closed session."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from helpers.spark import check_java


def run(code: str, home: Path = ROOT, **variables: str) -> str:
    """Run Python code in a process of its own and return what it prints."""
    env = os.environ | {"HELPERS_HOME": str(home), "PYTHONPATH": str(ROOT / "src")} | variables
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    return done.stdout


def test_a_wrong_or_missing_java_is_one_sentence_with_the_install_line(tmp_path, monkeypatch):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    for version in ("11.0.2", "1.8.0_402", "21-ea"):
        java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
        java.chmod(0o755)
        if version != "21-ea":
            with pytest.raises(OSError, match=f'found version "{version}": run'):
                check_java()
    assert check_java() == 21
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="found none: run 'sudo apt-get install openjdk"):
        check_java()


@pytest.mark.parametrize(
    ("variable", "value", "logged"),
    [
        ("SPARK_DRIVER_MEMORY", "1zz", "Invalid maximum heap size"),
        ("SPARK_MASTER", "lokal", "Master must"),
        ("SPARK_REMOTE", "https://host:1/;token=abc123", ""),
    ],
)
def test_a_failed_start_is_one_sentence_and_no_gateway_error(tmp_path, variable, value, logged):
    code = "from helpers import spark\ntry: spark.get_spark()\nexcept RuntimeError as e: print(e)"
    (line,) = run(code, tmp_path, **{variable: value}).splitlines()
    assert "data/cache/spark.log" in line and variable in line
    assert "GATEWAY" not in line and "abc123" not in line
    assert not logged or logged in (tmp_path / "data" / "cache" / "spark.log").read_text()


CLOSING = """
import psutil
from dataclasses import replace
from helpers import als
from helpers.settings import Settings
from helpers.spark import close_spark, get_spark
javas = lambda: sum("java" in child.name() for child in psutil.Process().children(recursive=True))
for megabytes in (600, 800):
    session = get_spark(replace(Settings.from_env(), spark_driver_memory=f"{megabytes}m"))
    rows = session.createDataFrame([(1, 1, 3.0)], "userId int, movieId int, rating float")
    heap = session._jvm.java.lang.Runtime.getRuntime().maxMemory() / 2**20
    model = als.make_als(2, 0.1, max_iter=1).fit(rows)
    by_python = rows.mapInPandas(lambda frames: frames, rows.schema).count()
    print(model.userFactors.count(), by_python, abs(heap - megabytes) < 60)
    close_spark(session)
    for question in (rows.count, lambda: session.read):
        try:
            question()
        except RuntimeError as error:
            print("run the notebook again" in str(error), end=" ")
    print(javas())
"""


def test_a_closed_session_has_no_jvm_and_the_next_has_its_own_memory():
    """Its tables say what to do; another Spark and Python on this machine are not taken up."""
    printed = run(CLOSING, SPARK_HOME="/nowhere", PYSPARK_PYTHON="/nowhere")
    assert printed.splitlines() == ["1 1 True", "True True 0"] * 2
