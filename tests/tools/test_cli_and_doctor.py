"""The doctor, and Java's one sentence."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import stat
import subprocess
import sys

import pytest
from misbehaving_server import completion
from werkzeug import Response

from helpers import doctor
from helpers import spark as spark_module
from helpers.settings import Settings, SettingsError
from helpers.spark import JavaError, check_java, parse_java_version


def test_the_doctors_own_checks_say_what_they_found(tmp_path, monkeypatch, settings):
    fake_java(tmp_path, monkeypatch, "17.0.15")
    assert doctor.java() == f"17 ({tmp_path}/bin/java)"
    with monkeypatch.context() as patch:
        patch.setenv("SPARK_REMOTE", "sc://elsewhere")
        assert doctor.java() == "not needed with Spark Connect"
    monkeypatch.setenv("MOVIELENS_DIR", str(settings.sample_dir))
    rows = len((settings.sample_dir / "ratings.csv").read_text().splitlines()) - 1
    with pytest.raises(doctor.CheckWarning, match="MOVIELENS_DIR") as caught:
        doctor.dataset()
    assert str(caught.value).startswith(f"sample (simulated), {rows:,} ratings")
    monkeypatch.setattr(doctor, "WANTED_MEMORY_GB", 10**6)
    with pytest.raises(doctor.CheckError, match="close programs"):
        doctor.memory()
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "LLM_MODEL"):
        monkeypatch.delenv(name, raising=False)
    for mode in ("recorded", "none"):
        monkeypatch.setenv("LLM_MODE", mode)
        assert doctor.language_model().startswith(mode)
    monkeypatch.setenv("LLM_MODE", "live")
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL"):
        doctor.language_model()


def test_the_doctor_prints_a_line_per_check_and_fails_on_any(capsys):
    def broken():
        raise doctor.CheckError("do this")

    def poor():
        raise doctor.CheckWarning("better do that")

    checks = {"A": lambda: "fine", "B": broken, "C": poor, "D": broken, "E": lambda: "fine"}
    assert doctor.main(checks) == 1
    printed = "OK    A: fine\nFAIL  B: do this\nWARN  C: better do that\nOK    E: fine\n"
    assert capsys.readouterr().out == printed
    assert doctor.main({"A": lambda: "fine", "C": poor}) == 0
    assert list(doctor.CHECKS) == ["Python", "Settings", "Java", "Memory", "Spark", "Data", "LLM"]


@pytest.fixture
def live(httpserver, monkeypatch, tmp_path):
    """The environment of a live LLM at ``httpserver``, in an empty project."""
    (tmp_path / "data" / "sample").mkdir(parents=True)
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path))
    for name in ("LLM_MODE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_BASE_URL", f"localhost:{httpserver.port}")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-S3cret0123456789")
    monkeypatch.setenv("LLM_MODEL", "mini")
    return httpserver


def sound(body: dict) -> dict:
    """Answer a request as a sound server does."""
    prompt = body["messages"][-1]["content"]
    top = [("A", -0.1), ("B", -2.5)] if body.get("logprobs") else None
    reply = completion('{"total": 42}' if "response_format" in body else "1 2 3", logprobs=top)
    words = len(prompt.split())
    return reply | {
        "usage": {"prompt_tokens": words, "completion_tokens": 7, "total_tokens": 7 + words}
    }


def interview(server, answer, capsys) -> tuple[int, list[str], list[dict]]:
    """Run the doctor's check of the LLM with --ask; return status, lines and requests."""
    bodies = []

    def respond(request):
        bodies.append(request.get_json())
        status, reply = answer(request.get_json())
        return Response(json.dumps(reply), status, content_type="application/json")

    server.expect_request("/v1/chat/completions").respond_with_handler(respond)
    status = doctor.main({"LLM": doctor.language_model}, ask=True)
    printed = capsys.readouterr().out
    assert "S3cret" not in printed
    return status, printed.splitlines(), bodies


def test_the_doctor_asks_and_says_what_the_answers_show(live, capsys, tmp_path):
    status, lines, bodies = interview(live, lambda body: (200, sound(body)), capsys)
    assert status == 0 and len(bodies) == 4
    beginnings = [
        f"LLM: live, mini; localhost:{live.port} listens",
        "LLM model: the server answers as served", "LLM speed: ",
        "LLM schema: the answer fits", "LLM logprobs: 2 alternatives", "LLM window: a prompt of ",
    ]  # fmt: skip
    for line, beginning in zip(lines, beginnings, strict=True):
        assert line.startswith(f"OK    {beginning}")
    assert "(7 in " in lines[2]
    assert doctor.main({"LLM": doctor.language_model}, ask=True) == 0
    assert len({json.dumps(body["messages"]) for body in bodies}) == 8  # none is asked again
    assert not (tmp_path / "data" / "cache").exists()


@pytest.mark.parametrize(
    ("status", "message", "told"),
    [
        (401, "Incorrect API key provided: sk-S3cret0123456789.", ["Incorrect API key", "[key]"]),
        (404, 'model "mini" not found, try pulling it first', ["try pulling it", "LLM_MODEL"]),
        (429, "You exceeded your current quota", ["exceeded your current quota"]),
        (500, "out of memory", ["out of memory"]),
    ],
)
def test_a_server_that_refuses_is_asked_once_and_quoted(live, capsys, status, message, told):
    error = {"error": {"message": message}}
    result, lines, bodies = interview(live, lambda _: (status, error), capsys)
    assert result == 1 and len(bodies) == 1
    (fault,) = [line for line in lines if not line.startswith("OK")]
    assert fault.startswith("FAIL  LLM model: ") and str(status) in fault
    assert all(words in fault for words in told)


def fenced(body):
    if body.get("response_format", {}).get("type") == "json_schema":
        return 400, {"error": {"message": "response_format json_schema is not supported"}}
    return 200, sound(body)


def unable(body):
    return 200, sound({"messages": body["messages"]})


def cut_at(window):
    def answer(body):
        reply = sound(body)
        reply["usage"]["prompt_tokens"] = min(window, reply["usage"]["prompt_tokens"])
        return 200, reply

    return answer


def uncounted(body):
    reply = sound(body)
    return 200, {name: reply[name] for name in reply if name != "usage"}


def too_long(body):
    if "film" in str(body["messages"]):
        return 400, {"error": {"message": "the prompt is longer than 512"}}
    return 200, sound(body)


@pytest.mark.parametrize(
    ("answer", "status", "faults"),
    [
        (fenced, 0, {"WARN  LLM schema": "response_format"}),
        (
            unable,
            0,
            {"WARN  LLM schema": "no answer that fits", "WARN  LLM logprobs": "whole lists"},
        ),
        (cut_at(2048), 0, {"WARN  LLM window": "2048"}),
        (cut_at(1024), 0, {"WARN  LLM window": "1024"}),
        (uncounted, 0, {"WARN  LLM speed": "counts no tokens"}),
        (too_long, 1, {"FAIL  LLM window": "longer than 512"}),
    ],
)
def test_what_a_server_cannot_do_is_told_once(live, capsys, answer, status, faults):
    result, lines, _ = interview(live, answer, capsys)
    told = dict(line.split(": ", 1) for line in lines if not line.startswith("OK"))
    assert result == status and told.keys() == faults.keys()
    assert all(words in told[name] for name, words in faults.items())


def test_a_port_where_nothing_listens_is_not_called_live(live, monkeypatch, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://{'me:S3cret'}@127.0.0.1:{port}/v1")
        assert doctor.main({"LLM": doctor.language_model}, ask=True) == 1
        assert capsys.readouterr().out == (
            f"FAIL  LLM: nothing listens at 127.0.0.1:{port}: start the server, or unset "
            "OPENAI_BASE_URL\n"
        )
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "elsewhere")
        assert "behind a proxy" in doctor.language_model()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with pytest.raises(doctor.CheckError, match="nothing listens"):
            doctor.language_model()


def test_half_a_configuration_is_a_warning(live, monkeypatch, capsys):
    monkeypatch.delenv("LLM_MODEL")
    assert doctor.main({"LLM": doctor.language_model}, ask=True) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("WARN  LLM: ") and "LLM_MODEL is not set" in line


def test_a_wrong_variable_is_one_line_of_the_doctor(monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk—S3cret")
    checks = {name: doctor.CHECKS[name] for name in ("Settings", "Data", "LLM")}
    assert doctor.main(checks, ask=True) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("FAIL  Settings: OPENAI_API_KEY") and "S3cret" not in line


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
