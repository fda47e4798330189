"""The doctor: a line for each check, and one question to the LLM."""

from __future__ import annotations

import json

import pytest
from misbehaving_server import completion, serve

from helpers import doctor


def test_a_line_per_check_and_a_status_that_tells_whether_any_failed(capsys):
    def broken():
        raise RuntimeError("do\nthis")

    assert doctor.main({"A": lambda: "fine", "B": broken, "C": lambda: "fine"}) == 1
    assert capsys.readouterr().out == "OK    A: fine\nFAIL  B: do this\nOK    C: fine\n"
    assert doctor.main({"A": lambda: "fine"}) == 0


def test_data_and_memory_are_checked(monkeypatch, settings):
    monkeypatch.setenv("MOVIELENS_DIR", str(settings.sample_dir))
    rows = len((settings.sample_dir / "ratings.csv").read_text().splitlines()) - 1
    assert doctor.dataset() == f"sample (simulated), {rows:,} ratings"
    monkeypatch.setattr(doctor, "WANTED_MEMORY_GB", 10**6)
    with pytest.raises(MemoryError, match="close programs"):
        doctor.memory()


def test_a_question_shows_what_the_server_answers(monkeypatch, tmp_path):
    (tmp_path / "data" / "sample").mkdir(parents=True)
    for name, value in {
        "HELPERS_HOME": str(tmp_path),
        "LLM_MODEL": "m",
        "LLM_MODE": "auto",
    }.items():
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
