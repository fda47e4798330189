"""The benches: what they write, what counts as a shortfall, and that the docs tell the same."""

import os
import re
from types import SimpleNamespace

import benchmarks
import lessons
import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from conftest import ROOT
from helpers import data

RESULTS = ROOT / "data" / "results"
TEXT = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
NOTEBOOKS = [path.stem for path in lessons.paths()]


def test_the_committed_rows_are_complete_kept_and_shown_in_the_docs():
    table = pd.read_csv(RESULTS / "bench.csv").set_index("name")
    assert table["met"].all() and (table["ours"] <= table["promised"]).all()
    assert len(table) == 2 * len(NOTEBOOKS)
    for notebook in NOTEBOOKS:
        time, memory = (table.loc[f"{notebook}: {what}"] for what in ("Run All", "peak memory"))
        cells = f"| {notebook} | {time.ours:.0f} s | {time.promised:.0f} s | "
        assert f"{cells}{memory.ours:.0f} MB of {memory.promised:.0f} |" in TEXT
    for visit in pd.read_csv(RESULTS / "binder.csv").itertuples():
        if visit.finished:
            assert re.search(rf"^\| {visit.notebook} \|.* {visit.peak_mb:.0f} MB", TEXT, re.M)


def test_every_committed_table_names_its_script():
    for name in ("bench", "section_times", "binder", "14_scale", "14_spark_loses"):
        assert f"data/results/{name}.csv" in TEXT
    for path in set(re.findall(r"tools/[\w/]+\.py", TEXT)):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize(("seconds", "status"), [(61.0, 1), (60.0, 0)])
def test_a_shortfall_ends_with_a_status_and_new_rows_replace_the_old(
    tmp_path, monkeypatch, capsys, seconds, status
):
    monkeypatch.setattr(data, "locate", lambda: SimpleNamespace(describe=lambda: "ratings"))
    monkeypatch.setattr(data, "result_path", lambda name, _: tmp_path / "new" / f"{name}.csv")
    monkeypatch.setattr(benchmarks, "measure", lambda *_: (seconds, 700.0, {"1 Wait": 2.0}))
    for names in (["04", "05"], ["04"]):
        assert benchmarks.main(names) == status and "04_profile" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "new" / "bench.csv")
    assert table["promised"].tolist() == [60, 2048] * 2 and table["machine"].notna().all()
    met = table.set_index("unit")["met"]
    assert met["MB"].all() and met["s"].all() == (status == 0)
    times = pd.read_csv(tmp_path / "new" / "section_times.csv")
    assert times["seconds"].tolist() == [2.0, 2.0]


def test_a_notebook_is_timed_by_section_and_its_memory_measured(tmp_path, sample):
    before = dict(os.environ)
    cells = [
        new_code_cell("import time"), new_markdown_cell("text\n\n## 1 Wait\n\ntext"),
        new_code_cell("time.sleep(0.5)"), new_code_cell("time.sleep(0.5)"),
        new_markdown_cell("## 2 Hold"), new_code_cell("held = b'x' * 300_000_000; time.sleep(2)"),
        new_markdown_cell("## 3 Talk"), new_markdown_cell("## Exercises"), new_code_cell("1"),
    ]  # fmt: skip
    path = tmp_path / "99_heavy.ipynb"
    nbformat.write(new_notebook(cells=cells), path)
    seconds, peak_mb, sections = benchmarks.measure(path, sample)
    assert list(sections) == ["1 Wait", "2 Hold", "3 Talk"] and sections["3 Talk"] == 0
    assert sections["1 Wait"] >= 1 and sections["2 Hold"] >= 2 and sum(sections.values()) <= seconds
    assert 300 < peak_mb < 1000 and os.environ == before
