"""Where there is no browser, tests skip with a sentence that says what to do."""

from __future__ import annotations

import browsers
import pytest

find = browsers.find.__wrapped__


@pytest.fixture
def bare(monkeypatch):
    """A machine without any browser, where none may be installed."""
    monkeypatch.setattr(browsers, "NAMES", ())
    monkeypatch.setattr(browsers, "_own", lambda: None)
    monkeypatch.setattr(browsers, "_install", lambda: iter([None]))
    monkeypatch.setattr(browsers, "starts", lambda path: path == "/found")
    monkeypatch.setattr(browsers.os, "geteuid", lambda: 1000, raising=False)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BROWSER_TESTS", raising=False)
    return monkeypatch


def test_the_reason_says_what_to_do(bare):
    assert find() == browsers.Found(
        None, "no Chromium was found: run 'python -m playwright install chromium'"
    )


def test_it_is_installed_in_continuous_integration_only(bare):
    bare.setattr(browsers, "_install", lambda: iter([None, "/found"]))
    assert find().path is None
    bare.setenv("CI", "true")
    assert find().path == "/found"
    bare.setattr(browsers, "_install", lambda: iter([None]))
    assert "none could be installed" in find().why


def test_the_first_one_that_starts_is_taken(bare):
    bare.setattr(browsers, "NAMES", ("broken", "good"))
    bare.setattr(browsers.shutil, "which", lambda name: {"good": "/found"}.get(name, f"/{name}"))
    assert find().path == "/found"


def test_browser_tests_can_be_turned_off(monkeypatch):
    monkeypatch.setenv("BROWSER_TESTS", "0")
    assert "BROWSER_TESTS=0" in find().why


def test_a_program_that_shows_no_page_is_no_browser(tmp_path):
    fake = tmp_path / "chromium"
    fake.write_text("#!/bin/sh\necho hello\n")
    fake.chmod(0o755)
    assert not browsers.starts(str(fake)) and not browsers.starts(str(tmp_path / "none"))
