"""The benches: a complete table whose every row meets its target, and a shortfall that fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pandas as pd
import pytest

from conftest import ROOT

FOLDER = ROOT / "tools" / "benchmarks"
sys.path.insert(0, str(FOLDER))
import rows  # noqa: E402


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_csv(rows.RESULT)


def test_every_bench_and_every_notebook_has_its_row(table):
    assert table["name"].tolist() == rows.expected() and len(table) > 30


def test_every_row_meets_its_target_and_says_where_and_when(table):
    short = table.loc[~table["met"], "name"].tolist()
    assert not short
    assert (table["ratio"] >= table["target"]).all()
    assert (table["baseline"] / table["ours"] / table["ratio"] - 1).abs().max() < 0.01
    assert table["date"].str.fullmatch(r"20\d\d-\d\d-\d\d").all()
    assert table["machine"].str.fullmatch(r".+, \d+ cores, \d+ GB, \w+, Python 3\.\d+\.\d+").all()
    for row in table.itertuples():
        known, _, last = row.name.rpartition(": ")
        target, unit = rows.NOTEBOOK_TARGETS[last] if known else rows.TARGETS[row.name]
        assert (row.target, row.unit) == (target, unit)


def test_every_target_is_measured_by_a_bench():
    text = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("bench_*.py"))
    for name in rows.TARGETS:
        assert f'"{name}"' in text, name
    for what in rows.NOTEBOOK_TARGETS:
        assert f'"{{name}}: {what}"' in text, what


def test_the_promises_of_the_readme_are_read():
    from bench_notebooks import PROMISED

    assert sorted(PROMISED) == rows.notebooks() and min(PROMISED.values()) >= 60


def test_the_readme_shows_the_committed_tables(table):
    import binder

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.split(rows.MARK)[1].strip() == rows.markdown(table).strip()
    visits = pd.read_csv(binder.RESULT)
    assert readme.split(binder.MARK)[1].strip() == binder.markdown(visits).strip()


def test_the_notebooks_for_binder_fit_one_after_another():
    import binder

    visits = pd.read_csv(binder.RESULT)
    shut = visits.loc[visits["kernels"] == binder.SHUT]
    assert shut["notebook"].tolist() == [n for n in rows.notebooks() if n[:2] <= binder.LAST]
    assert shut["finished"].all() and shut["peak_mb"].between(100, binder.LIMIT_MB).all()
    opened = visits.loc[visits["kernels"] == binder.OPEN]
    assert opened["notebook"].str[:2].tolist() == ["01", "02"]  # as the README says
    assert opened["finished"].tolist() == [True, False]
    assert set(visits["limit_mb"]) == {2048} and set(visits["kernels"]) == {
        binder.SHUT, binder.OPEN
    }  # fmt: skip


FAKE = """
import time
NAME = "grid search, beside the article's loop"
def bench_slow(versus):
    versus(NAME, lambda: time.sleep(0.05), lambda: time.sleep(0.05), rounds=2)
def bench_fast(versus):
    versus(NAME, lambda: time.sleep(0.01), lambda: time.sleep(0.15), rounds=2)
def bench_broken(versus):
    raise RuntimeError("no row")
"""


@pytest.mark.alone  # beside other tests (`pytest -n 2`) pytest-benchmark measures nothing
@pytest.mark.parametrize(
    ("which", "status", "word"), [("slow", 1, "MISSED"), ("fast", 0, "met"), ("broken", 1, None)]
)
def test_a_shortfall_or_a_failure_ends_with_a_status(tmp_path, which, status, word):
    (tmp_path / "bench_fake.py").write_text(FAKE)
    out = tmp_path / "bench.csv"
    code = f"import run, pathlib, sys; sys.exit(run.main(['-k', {which!r}], {str(tmp_path)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{FOLDER}:{ROOT / 'src'}", "BENCH_CSV": str(out)},
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert out.exists() == (word is not None)
    if word:
        (row,) = pd.read_csv(out).itertuples()
        assert row.met == (status == 0) and (row.ratio >= row.target) == row.met
        assert re.search(rf"grid search.* {word}$", done.stdout, re.MULTILINE)
        assert ("Short of the target: grid search" in done.stdout) == (not row.met)


def test_a_part_that_did_not_run_keeps_its_row(tmp_path):
    names = list(rows.TARGETS)
    old = [rows.Row.of(names[1], 1.0, 200.0), rows.Row.of(names[0], 1.0, 9.0)]
    rows.save(old, tmp_path / "bench.csv")
    table = rows.save([rows.Row.of(names[0], 1.0, 2.0)], tmp_path / "bench.csv")
    assert table["name"].tolist() == names[:2] and table["ratio"].tolist() == [2.0, 200.0]
    assert table["met"].tolist() == [False, True]


def test_plain_pytest_collects_no_bench():
    assert not list(FOLDER.glob("test_*.py")) and not list(FOLDER.glob("conftest.py"))


def test_seconds_are_summed_by_section_and_shown_in_the_guide(tmp_path, monkeypatch):
    import notebook_run
    from nbformat.v4 import new_code_cell, new_markdown_cell

    cells = [
        new_code_cell("set-up"), new_markdown_cell("text\n\n## 1 One\n\ntext"), new_code_cell("a"),
        new_code_cell("b"), new_markdown_cell("## 2 Two"), new_markdown_cell("## 3 Three"),
        new_code_cell("c"), new_markdown_cell("## Exercises"), new_code_cell("d"),
    ]  # fmt: skip
    seconds = notebook_run.by_section(cells, [5.0, 6.0, 8.5, 8.75, 20.0])
    assert seconds == {"1 One": 3.5, "2 Two": 0.0, "3 Three": 0.25}
    monkeypatch.setenv("BENCH_CSV", str(tmp_path / "bench.csv"))
    rows.save_sections("02_b", {"1 One": 9})
    rows.save_sections("01_a", seconds)
    kept = rows.save_sections("02_b", {"1 One": 4})
    assert kept.notebook.tolist() == ["01_a"] * 3 + ["02_b"] and kept.seconds.tolist()[-1] == 4
    monkeypatch.setattr(rows, "SECTIONS", tmp_path / "section_times.csv")
    guide = tmp_path / "teaching.md"
    lines = [
        f"| [{name}](../notebooks/01_a.ipynb#{name[0]}) | 7 | ? |"
        for name in ("1 One", "2 Two", "3 Three")
    ]
    guide.write_text("\n".join(lines))
    rows.write_teaching(guide)
    shown = [line.split("|")[3].strip() for line in guide.read_text().splitlines()]
    assert shown == ["4", "< 1", "< 1"]
