"""Java's one sentence, a failed start, a session of one's own, and a closed one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from helpers.spark import JavaError, check_java


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
        said = f'Picked up JAVA_TOOL_OPTIONS: -Xmx1g\nopenjdk version "{version}"'
        java.write_text(f"#!/bin/sh\necho '{said}' >&2\n")
        java.chmod(0o755)
        if version != "21-ea":
            with pytest.raises(JavaError, match=f'found openjdk version "{version}": run'):
                check_java()
    assert check_java() == 21
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(JavaError, match="found none: run 'sudo apt-get install openjdk"):
        check_java()


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("SPARK_DRIVER_MEMORY", "1zz", "Invalid maximum heap size"),
        ("SPARK_MASTER", "lokal", "Master must"),
        ("SPARK_REMOTE", "https://host:1/;token=abc123", "no such server"),
    ],
)
def test_a_failed_start_is_one_sentence_and_no_gateway_error(tmp_path, variable, value, reason):
    (tmp_path / "data" / "sample").mkdir(parents=True)
    code = (
        "from helpers.spark import get_spark\n"
        "try:\n    get_spark()\nexcept RuntimeError as error:\n    print(error)\n"
    )
    (line,) = run(code, tmp_path, **{variable: value}).splitlines()
    assert reason in line and variable in line
    assert "GATEWAY" not in line and "abc123" not in line


SURROUNDED = """
from helpers import data
from helpers.settings import Settings
from helpers.spark import get_spark
session = get_spark()
print(data.load(session, data.locate()).ratings.count())
print(session.range(3).mapInPandas(lambda frames: frames, "id long").count())
print(session.conf.get("spark.test.foreign", "none"))
"""


def test_a_local_session_is_its_own_whatever_the_machine_brings_along(tmp_path):
    """Another Spark and Python, a locale, a folder's name."""
    home, foreign = tmp_path / "Größe données 電影", tmp_path / "foreign"
    shutil.copytree(ROOT / "data" / "sample", home / "data" / "sample")
    foreign.mkdir()
    (foreign / "spark-defaults.conf").write_text("spark.test.foreign yes\n")
    printed = run(
        SURROUNDED, home, LC_ALL="C", SPARK_CONF_DIR=str(foreign), HADOOP_CONF_DIR=str(foreign),
        SPARK_HOME=str(foreign), PYSPARK_PYTHON=str(foreign), PYSPARK_SUBMIT_ARGS="--name x",
        MOVIELENS_DIR="",
    )  # fmt: skip
    rows = len((home / "data" / "sample" / "ratings.csv").read_text().splitlines()) - 1
    assert printed.split() == [str(rows), "3", "none"]


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
    print(model.userFactors.count(), abs(heap - megabytes) < 60)
    close_spark(session)
    for question in (rows.count, rows.toPandas, lambda: repr(rows), lambda: session.read):
        try:
            question()
        except RuntimeError as error:
            print("run the notebook again" in str(error), end=" ")
    print(javas())
"""


def test_a_closed_session_has_no_jvm_and_who_goes_back_gets_one_sentence():
    """So the memory of a notebook's JVM is free while its kernel stays open."""
    closed = "True True True True 0"
    assert run(CLOSING).splitlines() == ["1 True", closed, "1 True", closed]
