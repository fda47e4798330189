"""The doctor: a line for each check, and one question to the LLM."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from misbehaving_server import completion, serve

from helpers import doctor


def test_a_line_per_check_each_fault_once_and_what_comes_next(capsys):
    def broken():
        raise RuntimeError("do\nthis")

    def limited():
        raise UserWarning("less of it")

    assert doctor.main({"A": lambda: "fine", "B": broken, "C": broken, "D": limited}) == 1
    printed = "OK    A: fine\nFAIL  B: do this\nWARN  D: less of it\nNot ready: "
    assert capsys.readouterr().out.startswith(printed)
    assert doctor.main({"A": lambda: "fine", "D": limited}) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Ready: ")


def test_the_sample_is_a_warning_and_too_little_room_a_fault(monkeypatch, settings):
    monkeypatch.setenv("MOVIELENS_DIR", str(settings.sample_dir))
    with pytest.raises(UserWarning, match="SIMULATED sample"):
        doctor.dataset()
    with pytest.raises(OSError, match=r"^1\.5 GB free: close programs until 2 GB are$"):
        doctor.room(3 * 2**29, "close programs")
    monkeypatch.setattr(doctor.local_model, "missing", lambda: "the package is missing")
    with pytest.raises(UserWarning, match="package is missing: run pip install"):
        doctor.small_llm()


def test_spark_starts_and_a_writer_that_fails_is_a_warning(monkeypatch, spark):
    assert "writes" in doctor.spark()
    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", lambda: nullcontext("/dev/null"))
    with pytest.raises(UserWarning, match="winutils"):
        doctor.spark()


def test_a_question_shows_what_the_server_answers(monkeypatch, tmp_path):
    (tmp_path / "data" / "sample").mkdir(parents=True)
    given = {"HELPERS_HOME": str(tmp_path), "LLM_MODEL": "m", "LLM_MODE": "auto"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert "nothing is asked" in doctor.llm_answer()
    steps = ("ok", completion(json.dumps({"total": 42}))), ("ok", completion("I cannot count."))
    with serve(*steps) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert "live" in doctor.llm_answer()
        with pytest.raises(RuntimeError, match="unreadable"):
            doctor.llm_answer()
