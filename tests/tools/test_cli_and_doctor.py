"""The commands, the doctor, and Java's one sentence."""

from __future__ import annotations

import dataclasses
import json
import re
import socket
import stat

import course
import nbformat
import pandas as pd
import publish
import pytest
from misbehaving_server import completion
from nbconvert.filters.markdown import markdown2html
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from werkzeug import Response

from helpers import doctor, replies
from helpers.data import Dataset
from helpers.settings import Settings, SettingsError
from helpers.spark import JavaError


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


def fake_java(tmp_path, monkeypatch, version: str):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))


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


def test_settings_refuse_nonsense():
    for name, value in {
        "LLM_MODE": "maybe",
        "LLM_MAX_TOKENS": "-3",
        "SPARK_PARTITIONS": "x",
    }.items():
        with pytest.raises(SettingsError, match=name):
            Settings.from_env({name: value})
