"""The parts of `make bench-scale` that can be wrong without anybody seeing it in the times."""

from __future__ import annotations

import importlib.util
import time

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT

PATH = ROOT / "tools" / "benchmarks" / "bench_scale.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("bench_scale", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def times(power: float) -> pd.DataFrame:
    rows = [
        {"ratings": n, "step": step, "seconds": share * n**power, "cpu_s": share * n}
        for n in (100_000, 1_000_000, 10_000_000, 32_000_000)
        for step, share in (("start", 9.0), ("load", 0.25), ("fit", 0.75))
    ]
    table = pd.DataFrame(rows)
    table.loc[table["step"] == "start", "seconds"] = 1e9  # start-up does not count
    table.loc[table["ratings"] == 100_000, "seconds"] = 1e9  # nor does the smallest size
    return table


@pytest.mark.parametrize(("power", "code"), [(1.0, 0), (1.09, 0), (1.11, 1), (1.5, 1)])
def test_the_exponent_is_the_slope_and_decides(bench, power, code):
    assert bench.exponent(times(power)) == pytest.approx(power)
    assert bench.exponent(times(power), "cpu_s") == pytest.approx(1.0)
    assert bench.missed(times(power)) == code


def test_a_run_that_dies_is_no_success(bench, monkeypatch):
    monkeypatch.setattr(bench, "__file__", str(ROOT / "tests" / "conftest.py" / "nowhere"))
    with pytest.raises(SystemExit, match="ended with"):
        bench.in_process("scale", 1000, {})


def test_sizes_measured_again_replace_their_rows(bench, tmp_path):
    path = tmp_path / "table.csv"
    bench.save(pd.DataFrame({"ratings": [10, 20], "seconds": [1.0, 2.0]}), path)
    bench.save(pd.DataFrame({"ratings": [10], "seconds": [5.0]}), path)
    stored = pd.read_csv(path)
    assert stored["ratings"].tolist() == [10, 20] and stored["seconds"].tolist() == [5.0, 2.0]
    assert stored["machine"].notna().all() and stored["date"].str.match(r"\d{4}-\d\d-\d\d$").all()


def test_hits_count_unseen_movies_only(bench):
    movies = np.arange(1, 21)
    train = pd.DataFrame({"userId": 1, "movieId": movies[10:]}).assign(timestamp=0)
    vectors = np.arange(20, dtype=float)[:, None]  # movie 20 is best, then 19, ...

    def rate(wanted: int) -> float:
        test = pd.DataFrame({"userId": [1], "movieId": [wanted]})
        return bench.hit_rate(lambda ids: np.ones((1, 1)), vectors, movies, train, test)

    assert rate(1) == 1.0  # tenth of the ten that are left
    other = train[train["movieId"] > 12]
    test = pd.DataFrame({"userId": [1], "movieId": [1]})
    assert bench.hit_rate(lambda ids: np.ones((1, 1)), vectors, movies, other, test) == 0.0


def test_the_last_rating_is_held_out(bench):
    table = pd.DataFrame(
        {"userId": [1, 1, 2, 2], "timestamp": [5, 9, 8, 3], "movieId": [1, 2, 3, 4]}
    )
    train, test = bench.hold_out(table)
    assert test["movieId"].tolist() == [2, 3] and train["movieId"].tolist() == [1, 4]


def test_a_step_is_measured(bench):
    clock = bench.Clock()
    with clock.step("wait"):
        time.sleep(0.3)
        held = bytearray(60_000_000)
        held[::4096] = b"x" * len(held[::4096])
        time.sleep(0.6)
    (row,) = clock.close()
    assert row["step"] == "wait" and 0.9 <= row["seconds"] < 20
    assert row["peak_mb"] > 80 and row["cpu_s"] >= 0
