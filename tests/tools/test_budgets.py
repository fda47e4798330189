"""The house stays small: lines are counted, comments and docstrings included."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import ROOT

PACKAGES = [("helpers", 1_600, 250), ("research", 5_000, 450)]
SUBJECTS = [("helpers", "src/helpers"), ("research", "src/research"), ("tools", "tools")]


def lines(folder: Path) -> dict[str, int]:
    """Return the number of lines of each Python file below ``folder``."""
    files = sorted(folder.rglob("*.py"))
    return {str(f.relative_to(folder)): len(f.read_text("utf-8").splitlines()) for f in files}


@pytest.mark.parametrize(("package", "budget", "module_budget"), PACKAGES)
def test_a_package_and_its_modules_fit_their_budgets(package, budget, module_budget):
    counts = lines(ROOT / "src" / package)
    assert {name: count for name, count in counts.items() if count > module_budget} == {}
    assert 0 < sum(counts.values()) <= budget


def test_the_tools_fit_their_budget():
    assert 0 < sum(lines(ROOT / "tools").values()) <= 2_000


@pytest.mark.parametrize(("tests", "subject"), SUBJECTS)
def test_tests_are_smaller_than_what_they_test(tests, subject):
    counts = (sum(lines(ROOT / folder).values()) for folder in (f"tests/{tests}", subject))
    assert next(counts) < next(counts)


def test_the_makefile_is_read_at_once():
    assert len((ROOT / "Makefile").read_text(encoding="utf-8").splitlines()) <= 60
