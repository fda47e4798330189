"""The doctor: a line for each check, and one question to the LLM."""

from __future__ import annotations

import json
from types import SimpleNamespace

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
    assert capsys.readouterr().out.endswith("Ready: make lab\n")


def test_every_check_prints_a_line(monkeypatch, settings, capsys, spark):
    free = SimpleNamespace(available=2**33, free=2**33)  # whatever this machine has
    room = SimpleNamespace(virtual_memory=lambda: free, disk_usage=lambda _: free)
    monkeypatch.setattr(doctor, "psutil", room)
    monkeypatch.setenv("MOVIELENS_DIR", str(settings.sample_dir))
    assert doctor.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == len(doctor.CHECKS) + 1
    assert "WARN  Data: a SIMULATED sample, not MovieLens (found by MOVIELENS_DIR): set" in printed
    assert "OK    Spark: it starts, counts and writes" in printed
    with pytest.raises(OSError, match=r"1\.0 GB free, 1\.7 are needed"):
        doctor.room(2**30)


def test_a_question_shows_what_the_server_answers(monkeypatch, tmp_path):
    given = {"HELPERS_HOME": str(tmp_path), "LLM_MODEL": "m", "LLM_MODE": "auto"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    steps = ("ok", completion(json.dumps({"total": 42}))), ("ok", completion("I cannot count."))
    with serve(*steps) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert "live" in doctor.answer()
        with pytest.raises(RuntimeError, match="unreadable"):
            doctor.answer()
