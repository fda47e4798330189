"""The benches: what they write, what counts as a shortfall, and that the docs tell the same."""

from __future__ import annotations

import re
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from conftest import ROOT

pytest.importorskip("torch")

import notebook_times
import rows
import run

from helpers import data

RESULTS = ROOT / "data" / "results"
NOTEBOOKS = [path.stem for path in notebook_times.NOTEBOOKS]


def test_the_committed_rows_are_complete_and_meet_their_targets():
    table = pd.read_csv(RESULTS / "bench.csv").set_index("name")
    whole = [name for name in run.TARGETS if name not in ("Run All", "peak memory")]
    each = [f"{name}: {what}" for name in NOTEBOOKS for what in ("Run All", "peak memory")]
    assert set(whole + each) <= set(table.index)
    assert table["met"].all() and (table["ratio"] >= table["target"]).all()
    again = run.compared("LRURec epoch, beside item by item", 3.251, 35.72)
    stored = table.loc["LRURec epoch, beside item by item"]
    assert again["ratio"] == pytest.approx(stored["ratio"], rel=0.01)
    assert (again["target"], again["unit"]) == (stored["target"], stored["unit"])


def test_the_docs_show_the_committed_rows():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    table = pd.read_csv(RESULTS / "bench.csv").set_index("name")
    for name, row in table.iterrows():
        notebook, _, what = str(name).rpartition(": ")
        if not notebook:
            cells = f"| {name} | {row.ours:.3g} {row.unit} | {row.baseline:.3g} {row.unit} | "
            assert f"{cells}{row.ratio:.1f} |" in text
        elif what == "Run All":
            memory = table.loc[f"{notebook}: peak memory"]
            cells = f"| {notebook} | {row.ours:.0f} s | {row.baseline:.0f} s | "
            assert f"{cells}{memory.ours:.0f} MB of {memory.baseline:.0f} |" in text
    for visit in pd.read_csv(RESULTS / "binder.csv").itertuples():
        if visit.finished:
            assert re.search(rf"^\| {visit.notebook} \|.* {visit.peak_mb:.0f} MB", text, re.M)


def test_every_committed_table_names_its_script():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in ("bench", "section_times", "binder", "14_scale", "14_spark_loses"):
        assert f"data/results/{name}.csv" in text
    for path in set(re.findall(r"tools/\w+/\w+\.py", text)):
        assert (ROOT / path).is_file(), path


def test_the_promises_of_the_readme_are_read():
    promised = notebook_times.promised()
    assert sorted(promised) == NOTEBOOKS and min(promised.values()) >= 60


@pytest.mark.parametrize(("baseline", "status"), [(3.0, 1), (4.0, 0)])
def test_a_shortfall_ends_with_a_status(tmp_path, monkeypatch, capsys, baseline, status):
    name = "grid search, beside the article's loop"
    dataset = SimpleNamespace(describe=lambda: "ratings")
    monkeypatch.setattr(data, "locate", lambda: dataset)
    monkeypatch.setattr(data, "result_path", lambda name, _: tmp_path / f"{name}.csv")
    monkeypatch.setattr(run, "BENCHES", {"bench_grid": lambda _: [(name, 1.0, baseline)]})
    assert run.main("bench_grid") == status and name in capsys.readouterr().out
    (row,) = pd.read_csv(tmp_path / "bench.csv").itertuples()
    assert row.met == (status == 0) and row.ratio == baseline and row.target == 3.5


def test_rows_measured_again_replace_the_old_ones(tmp_path):
    path = tmp_path / "new" / "table.csv"
    rows.save([{"ratings": 10, "seconds": 1.0}, {"ratings": 20, "seconds": 2.0}], path, "ratings")
    table = rows.save([{"ratings": 10, "seconds": 5.0}], path, "ratings")
    pd.testing.assert_frame_equal(pd.read_csv(path), table)
    assert dict(zip(table["ratings"], table["seconds"], strict=True)) == {20: 2.0, 10: 5.0}
    assert table["machine"].notna().all() and table["date"].str.match(r"\d{4}-\d\d-\d\d$").all()


def test_a_notebook_is_timed_and_killed_above_the_limit(tmp_path, sample):
    cells = [
        new_code_cell("import time"), new_markdown_cell("text\n\n## 1 Wait\n\ntext"),
        new_code_cell("time.sleep(0.5)"), new_code_cell("time.sleep(0.5)"),
        new_markdown_cell("## 2 Hold"), new_code_cell("held = b'x' * 300_000_000; time.sleep(2)"),
        new_markdown_cell("## 3 Talk"), new_markdown_cell("## Exercises"), new_code_cell("1"),
    ]  # fmt: skip
    path = tmp_path / "99_heavy.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    seconds, peak_mb, sections = notebook_times.measure(path, sample, 3000)
    assert list(sections) == ["1 Wait", "2 Hold", "3 Talk"] and sections["3 Talk"] == 0
    assert 1 <= sections["1 Wait"] < 2 <= sections["2 Hold"] < seconds - 1
    assert 300 < peak_mb < 1000
    seconds, peak_mb, sections = notebook_times.measure(path, sample, 200)
    assert seconds == float("inf") and peak_mb > 200 and not sections
