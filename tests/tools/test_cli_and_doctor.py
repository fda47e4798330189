"""The commands, the doctor, and Java's one sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import subprocess
import sys

import course
import nbformat
import pandas as pd
import publish
import pytest
from misbehaving_server import completion
from nbconvert.filters.markdown import markdown2html
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers import replies
from helpers import spark as spark_module
from helpers.data import Dataset
from helpers.settings import Settings, SettingsError
from helpers.spark import JavaError, check_java, parse_java_version


@pytest.fixture
def project(tmp_path, settings):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for name in ("01_a", "02_b", "03_c"):
        cells = [new_markdown_cell("# T"), new_code_cell("print(6 * 7)"), new_markdown_cell("end")]
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    return dataclasses.replace(settings, root=tmp_path)


def test_navigation_links_neighbours_and_is_idempotent(project):
    course.write_navigation(project)
    texts = [path.read_text() for path in course.notebooks(project)]
    course.write_navigation(project)
    assert texts == [path.read_text() for path in course.notebooks(project)]
    first = nbformat.read(course.notebooks(project)[1], 4).cells[0].source
    assert "(01_a.ipynb)" in first and "(03_c.ipynb)" in first and first.count(publish.NAV) == 1
    assert markdown2html(first).count("<a href=") == 3


def test_execute_saves_clean_outputs(project):
    path = course.notebooks(project)[0]
    notebook = nbformat.read(path, 4)
    notebook.cells[1].source += "\nimport sys; print('noise', file=sys.stderr)"
    nbformat.write(notebook, path)
    assert course.execute_in_place(project, ["01"]) == 0
    cell = nbformat.read(path, 4).cells[1]
    assert [output.text for output in cell.outputs] == ["42\n"] and cell.execution_count == 1


def test_a_failing_cell_is_named(project):
    path = course.notebooks(project)[0]
    notebook = nbformat.read(path, 4)
    notebook.cells[1].source = "1 / 0"
    nbformat.write(notebook, path)
    with pytest.raises(course.NotebookFailedError, match=r"01_a\.ipynb.*ZeroDivisionError"):
        course.execute(path, progress=False)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (
            "from helpers.prompts import Profile\nProfile.model_validate({'likes': 3})",
            r"\(from helpers.prompts import Profile\): ValidationError: \d+ validation errors? for "
            r"Profile \w+ .+",
        ),
        ("# Odd\nraise ValueError('first\\nlast')", r"\(# Odd\): ValueError: first"),
        ("raise OSError('Why:\\nlast')", r"\(raise .*\): OSError: Why: last"),
        ("assert " + "1 > 2 or " * 20 + "0", r"\(assert [^)]{53}\): AssertionError"),
    ],
)
def test_a_failed_cell_is_named_by_its_place_and_the_reasons_first_line(project, source, reason):
    path = course.notebooks(project)[0]
    cells = [new_code_cell(text) for text in ("1", "", source, "2")]
    cells.insert(1, new_markdown_cell("text"))
    nbformat.write(new_notebook(cells=cells), path)
    with pytest.raises(course.NotebookFailedError) as caught:
        course.execute(path, progress=False)
    assert re.fullmatch(rf"01_a\.ipynb, code cell 3 of 4 {reason}", str(caught.value))
    assert "further information" not in str(caught.value)


def test_the_ranked_list_is_printed(tmp_path, capsys):
    rows = [{"rank": 1, "movieId": 7, "title": "Emma (1996)", "source": "LLM", "reason": "warm"}]
    pd.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    course.print_ranked_list(tmp_path / "x.csv")
    printed = capsys.readouterr().out
    assert "ranked by: LLM" in printed and "1. Emma (1996)" in printed and "warm" in printed


def test_run_executes_in_order_and_ends_with_the_list(project, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(course, "check_java", lambda: None)
    monkeypatch.setattr(course.data, "locate", lambda _: Dataset(tmp_path, "d", "s", False, False))
    ranked = project.cache_dir / course.RANKED_LIST
    ranked.parent.mkdir(parents=True)
    ranked.write_text("stale")  # a list of an earlier run must not pass for this one's
    rows = "rank,title,source,reason\\n1,Emma (1996),LLM,warm\\n"
    path = course.notebooks(project)[1]
    notebook = nbformat.read(path, 4)
    notebook.cells[1].source = f"import pathlib; pathlib.Path({str(ranked)!r}).write_text('{rows}')"
    nbformat.write(notebook, path)
    assert course.run(project, "01", "02", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert printed.index("2 notebooks in") < printed.index("1. Emma (1996)")
    done = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert done == ["01_a.ipynb", "02_b.ipynb"]
    assert nbformat.read(tmp_path / "out" / "01_a.ipynb", 4).cells[1].outputs[0].text == "42\n"
    assert not nbformat.read(course.notebooks(project)[0], 4).cells[1].outputs  # the original stays


def test_run_stops_at_a_failing_notebook_without_a_stale_list(
    project, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(course, "check_java", lambda: None)
    monkeypatch.setattr(course.data, "locate", lambda _: Dataset(tmp_path, "d", "s", False, False))
    ranked = project.cache_dir / course.RANKED_LIST
    ranked.parent.mkdir(parents=True)
    ranked.write_text("rank,title,source,reason\n1,Stale (1900),LLM,\n")
    path = course.notebooks(project)[0]
    notebook = nbformat.read(path, 4)
    notebook.cells[1].source = "1 / 0"
    nbformat.write(notebook, path)
    assert course.run(project, "01", "02", tmp_path / "out") == 1
    printed = capsys.readouterr()
    assert "01_a.ipynb" in printed.err and "ZeroDivisionError" in printed.err
    assert "Stale" not in printed.out
    assert not (tmp_path / "out" / "02_b.ipynb").exists()


def test_run_without_java_or_data_is_one_sentence(project, tmp_path, capsys, monkeypatch):
    def missing():
        raise JavaError("Java was not found: install it.")

    monkeypatch.setattr(course, "check_java", missing)
    assert course.run(project, "01", "02", tmp_path / "out") == 1
    assert capsys.readouterr().err == "Java was not found: install it.\n"
    monkeypatch.setattr(course, "check_java", lambda: None)
    nowhere = dataclasses.replace(project, movielens_dir=tmp_path / "nowhere")
    assert course.run(nowhere, "01", "02", tmp_path / "out") == 1
    assert capsys.readouterr().err.startswith("MOVIELENS_DIR names a folder that does not exist")


def test_a_wrong_setting_is_one_sentence(capsys, monkeypatch):
    monkeypatch.setenv("LLM_MODE", "banana")
    assert course.main(["run"]) == 1
    assert capsys.readouterr().err == "LLM_MODE must be auto, live, recorded or none.\n"


def test_batch_sends_each_open_request_once(project, tmp_path, capsys):
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in "abc"]
    keys = [replies.request_key(body) for body in bodies]
    pending = replies.PendingRequests(project.cache_dir / "pending.jsonl")
    for body in bodies:
        pending.add(body)
    project.replies_dir.mkdir()
    committed = replies.Reply(keys[0], completion("x"), "", bodies[0])
    replies.write_jsonl([committed], project.replies_dir / "x.jsonl")
    sent, back = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    assert course.exchange_batch(project, "export", sent) == 0
    names = [json.loads(line)["custom_id"] for line in sent.read_text().splitlines()]
    assert names == keys[1:]
    answer = {"custom_id": keys[1], "response": {"status_code": 200, "body": completion("yes")}}
    back.write_text(json.dumps(answer) + "\n")
    capsys.readouterr()
    assert course.exchange_batch(project, "import", back) == 1  # one is still open
    assert capsys.readouterr().out.splitlines() == [
        "1 imported, 0 failed, 1 unanswered, 0 never asked", f"  {keys[2]}: unanswered"
    ]  # fmt: skip
    assert course.exchange_batch(project, "export", sent) == 0
    assert [json.loads(line)["custom_id"] for line in sent.read_text().splitlines()] == keys[2:]
    last = {"custom_id": keys[2], "response": {"status_code": 200, "body": completion("yes")}}
    back.write_text(json.dumps(last) + "\n")
    assert course.exchange_batch(project, "import", back) == 0


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "21-ea"', 21),
        ("nothing", None),
    ],
)
def test_java_versions(text, version):
    assert parse_java_version(text) == version


def fake_java(tmp_path, monkeypatch, version: str):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))


def test_a_wrong_or_missing_java_is_one_sentence_with_the_install_line(tmp_path, monkeypatch):
    fake_java(tmp_path, monkeypatch, "11.0.2")
    with pytest.raises(JavaError, match=r"^Java 11 .*install Java 17 with '.+'") as caught:
        check_java()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(JavaError, match="holds no Java"):
        check_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setattr(spark_module.shutil, "which", lambda _: None)
    with pytest.raises(JavaError, match="Java was not found"):
        check_java()


@pytest.mark.parametrize(
    ("system", "tool", "line"),
    [
        ("Darwin", "", "brew install openjdk@17"),
        ("Windows", "", "winget install EclipseAdoptium.Temurin.17.JDK"),
        ("Linux", "apt-get", "sudo apt-get install openjdk-17-jre-headless"),
        ("Linux", "dnf", "sudo dnf install java-17-openjdk-headless"),
        ("Linux", "", "conda install -c conda-forge openjdk=17"),
    ],
)
def test_the_install_line_is_that_of_the_system(monkeypatch, system, tool, line):
    monkeypatch.setattr(spark_module.platform, "system", lambda: system)
    monkeypatch.setattr(spark_module.shutil, "which", lambda name: name if name == tool else None)
    assert spark_module.install_line() == line


def test_a_suitable_java_is_reported(tmp_path, monkeypatch):
    fake_java(tmp_path, monkeypatch, "21.0.1")
    assert check_java().version == 21


def test_options_that_every_java_takes_are_named_where_they_stop_it(monkeypatch):
    monkeypatch.setenv("_JAVA_OPTIONS", "-Xmx1x")
    with pytest.raises(JavaError, match=r"Invalid maximum heap size: -Xmx1x.*_JAVA_OPTIONS\.$"):
        check_java()


@pytest.mark.parametrize(
    ("variable", "made", "text"),
    [
        ("SPARK_HOME", None, ""),
        ("SPARK_HOME", "spark/jars/spark-core_2.13-3.5.1.jar", ""),
        ("PYSPARK_PYTHON", None, ""),
        ("PYSPARK_PYTHON", "spark", "#!/bin/sh\necho 3.9\n"),
        ("PYSPARK_PYTHON", "spark", "#!/bin/sh\nexit 1\n"),
    ],
)
def test_a_cluster_is_told_which_variable_does_not_fit(
    tmp_path, monkeypatch, settings, variable, made, text
):
    for name in ("SPARK_HOME", "PYSPARK_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    cluster = dataclasses.replace(settings, spark_master="spark://127.0.0.1:7077")
    assert spark_module.start_environment(cluster)["PYSPARK_PYTHON"] == sys.executable
    if made:
        (tmp_path / made).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / made).write_text(text)
        (tmp_path / made).chmod(0o755)
    monkeypatch.setenv(variable, str(tmp_path / "spark"))
    with pytest.raises(spark_module.SparkStartError, match=rf"^{variable} \("):
        spark_module.start_environment(cluster)
    here = spark_module.start_environment(settings)  # a local master takes PySpark's own
    assert here["SPARK_HOME"] is None and here["PYSPARK_PYTHON"] == sys.executable


def test_another_pyspark_and_an_unfit_locale_are_told_before_java_starts(monkeypatch, settings):
    abroad = dataclasses.replace(settings, movielens_dir=settings.root / "電影")
    with monkeypatch.context() as patch:
        patch.setattr(spark_module.sys, "getfilesystemencoding", lambda: "iso8859-1")
        with pytest.raises(spark_module.SparkStartError, match=r"locale \(iso8859-1\).*LC_ALL"):
            spark_module.start_environment(abroad)
    spark_module.start_environment(abroad)
    monkeypatch.setattr(spark_module.pyspark, "__version__", "3.5.1")
    with pytest.raises(spark_module.SparkStartError, match=r"3\.5\.1 hides .* PYTHONPATH"):
        spark_module.start_environment(settings)


def test_settings_refuse_nonsense():
    for name, value in {
        "LLM_MODE": "maybe",
        "LLM_MAX_TOKENS": "-3",
        "SPARK_PARTITIONS": "x",
    }.items():
        with pytest.raises(SettingsError, match=name):
            Settings.from_env({name: value})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "WARNING: an error\nInvalid maximum heap size: -Xmx1zz\nError: no JVM.",
            "Invalid maximum",
        ),
        ("Error occurred during initialization of VM\nCould not reserve enough space", "Could not"),
        (
            'Exception in thread "main" X: bad master\n\tat a.Exception(b.java)',
            "X: bad master",
        ),
        (
            "Picked up JAVA_TOOL_OPTIONS: -XX:OnError=x\n"
            "Error occurred during initialization of VM\nMultiple garbage collectors selected",
            "Multiple garbage collectors",
        ),
        (
            'Exception in thread "main" java.lang.ExceptionInInitializerError\n\tat a.b(c.java)\n'
            "Caused by: java.net.UnknownHostException: here: here: Name or service not known\n"
            "\t... 10 more\nCaused by: java.net.UnknownHostException: here: Name not known\n\tat x",
            "java.net.UnknownHostException: here: Name not known",
        ),
        (
            "12:32:24 ERROR JavaUtils: Failed to create directory /tmp/spark-7\n"
            "java.nio.file.FileSystemException: /tmp/spark-7: Read-only file system\n\tat x",
            "java.nio.file.FileSystemException: /tmp/spark-7: Read-only",
        ),
        ("12:32:24 ERROR JavaUtils: Failed to create it", "Failed to create it"),
        ("nothing told", ""),
    ],
)
def test_the_reason_of_a_failed_start_is_found(text, reason):
    found = spark_module.start_fault(text)
    assert found.startswith(reason) and bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("SPARK_DRIVER_MEMORY", "1zz", "Invalid maximum heap size"),
        ("SPARK_DRIVER_MEMORY", "900000g", "Could not reserve enough space"),
        ("SPARK_MASTER", "lokal", "Master must"),
        ("JAVA_TOOL_OPTIONS", "-XX:+UseG1GC", "Multiple garbage collectors"),
    ],
)
def test_a_failed_start_is_one_sentence_and_no_gateway_error(tmp_path, variable, value, reason):
    script = (
        "from helpers.spark import SparkStartError, get_spark\n"
        "try:\n    get_spark()\nexcept SparkStartError as error:\n    print(error)\n"
    )
    environment = dict(os.environ, HELPERS_HOME=str(tmp_path)) | {variable: value}
    (tmp_path / "data" / "sample").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120
    )
    (line,) = done.stdout.splitlines()
    assert reason in line and variable in line
    assert "GATEWAY" not in done.stdout + done.stderr
