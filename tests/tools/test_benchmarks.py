"""The benches: what they write, what counts as a shortfall, and that the docs tell the same."""

from __future__ import annotations

import re
from types import SimpleNamespace

import benchmarks
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell

from conftest import ROOT
from helpers import data

RESULTS = ROOT / "data" / "results"
NOTEBOOKS = [path.stem for path in benchmarks.NOTEBOOKS]


def test_the_committed_rows_are_complete_and_keep_what_is_promised():
    table = pd.read_csv(RESULTS / "bench.csv").set_index("name")
    each = [f"{name}: {what}" for name in NOTEBOOKS for what in ("Run All", "peak memory")]
    assert sorted(table.index) == sorted(each)
    assert table["met"].all() and (table["ours"] <= table["promised"]).all()


def test_the_docs_show_the_committed_rows():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    table = pd.read_csv(RESULTS / "bench.csv").set_index("name")
    for notebook in NOTEBOOKS:
        time, memory = (table.loc[f"{notebook}: {what}"] for what in ("Run All", "peak memory"))
        cells = f"| {notebook} | {time.ours:.0f} s | {time.promised:.0f} s | "
        assert f"{cells}{memory.ours:.0f} MB of {memory.promised:.0f} |" in text
    for visit in pd.read_csv(RESULTS / "binder.csv").itertuples():
        if visit.finished:
            assert re.search(rf"^\| {visit.notebook} \|.* {visit.peak_mb:.0f} MB", text, re.M)


def test_every_committed_table_names_its_script():
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for name in ("bench", "section_times", "binder", "14_scale", "14_spark_loses"):
        assert f"data/results/{name}.csv" in text
    for path in set(re.findall(r"tools/[\w/]+\.py", text)):
        assert (ROOT / path).is_file(), path


def test_the_promises_of_the_readme_are_read():
    promised = benchmarks.promised()
    assert sorted(promised) == NOTEBOOKS and min(promised.values()) >= 60


@pytest.mark.parametrize(("seconds", "status"), [(61.0, 1), (60.0, 0)])
def test_a_shortfall_ends_with_a_status(tmp_path, monkeypatch, capsys, seconds, status):
    monkeypatch.setattr(data, "locate", lambda: SimpleNamespace(describe=lambda: "ratings"))
    monkeypatch.setattr(data, "result_path", lambda name, _: tmp_path / f"{name}.csv")
    monkeypatch.setattr(benchmarks, "promised", lambda: dict.fromkeys(NOTEBOOKS, 60.0))
    monkeypatch.setattr(benchmarks, "measure", lambda *_: (seconds, 700.0, {"1 Wait": 2.0}))
    assert benchmarks.main(["04"]) == status and "04_profile" in capsys.readouterr().out
    met = pd.read_csv(tmp_path / "bench.csv").set_index("unit")["met"]
    assert met["MB"] and met["s"] == (status == 0)
    assert pd.read_csv(tmp_path / "section_times.csv")["seconds"].tolist() == [2.0]


def test_rows_measured_again_replace_the_old_ones(tmp_path):
    path = tmp_path / "new" / "table.csv"
    benchmarks.save(
        [{"ratings": 10, "seconds": 1.0}, {"ratings": 20, "seconds": 2.0}], path, "ratings"
    )
    table = benchmarks.save([{"ratings": 10, "seconds": 5.0}], path, "ratings")
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
    seconds, peak_mb, sections = benchmarks.measure(path, sample, 3000)
    assert list(sections) == ["1 Wait", "2 Hold", "3 Talk"] and sections["3 Talk"] == 0
    assert 1 <= sections["1 Wait"] < 2 <= sections["2 Hold"] < seconds - 1
    assert 300 < peak_mb < 1000
    seconds, peak_mb, sections = benchmarks.measure(path, sample, 200)
    assert seconds == float("inf") and peak_mb > 200 and not sections
