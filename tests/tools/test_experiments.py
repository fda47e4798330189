"""The long trainings behind data/results, in small: that they hold together and change no row."""

from __future__ import annotations

import importlib
import os
import runpy
import sys
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from research import sequence_models  # noqa: E402
from research.questions import Course  # noqa: E402

RETRIEVERS, _, WAYS, SCALE = map(
    importlib.import_module, ("07_retrievers", "08_llamarec", "11_adapting", "14_scale")
)
pytestmark = pytest.mark.usefixtures("one_thread")


# --- 07 -------------------------------------------------------------------------------------------


def test_retrievers_are_recorded_beside_other_rows(tmp_path, monkeypatch):
    folder, random = tmp_path / "mine", np.random.default_rng(0)
    folder.mkdir()
    rows = [(user, movie, 4.0, place) for user in range(1, 61)
            for place, movie in enumerate(random.choice(40, 20, replace=False))]  # fmt: skip
    table = pd.DataFrame(rows, columns=["userId", "movieId", "rating", "timestamp"])
    table.to_csv(folder / "ratings.csv", index=False)
    for name, header in (("movies", "movieId,title,genres"), ("links", "movieId,imdbId,tmdbId"),
                         ("tags", "userId,movieId,tag,timestamp")):  # fmt: skip
        (folder / f"{name}.csv").write_text(header + "\n")
    (tmp_path / "data" / "sample").mkdir(parents=True)
    monkeypatch.setenv("HELPERS_HOME", str(tmp_path))
    monkeypatch.setenv("MOVIELENS_DIR", str(folder))
    tiny = {"dim": 16, "length": 12, "batch": 4, "epochs": 1}
    monkeypatch.setattr(sequence_models, "CHOSEN", dict.fromkeys(sequence_models.MODELS, tiny))
    trial = ("--trial", "dropout=0.5")
    for model, seed, *rest in (("lrurec", 1), ("sasrec", 0), ("lrurec", 1), ("lrurec", 0, *trial),
                               ("lrurec", 1, *trial)):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["", "--model", model, "--seed", str(seed), *rest])
        runpy.run_path(RETRIEVERS.__file__, run_name="__main__")
    assert not (tmp_path / "data" / "results").exists()  # not the verified release
    (results,) = (tmp_path / "data" / "cache").glob("results/*/07_retrievers.csv")
    got = pd.read_csv(results)
    assert list(got.columns) == ["system", "seed", "metric", "value", "users"]
    assert not got.duplicated(["system", "seed", "metric"]).any() and set(got.users) == {60}
    tried = pd.read_csv(results.with_name("07_tuning.csv"))
    assert tried["seed"].tolist() == [0, 0, 1, 1] and set(tried["dropout"]) == {0.5}
    ranks = pd.read_csv(results.with_name("07_ranks.csv"))
    assert ranks.groupby(["system", "seed"]).userId.nunique().tolist() == [60, 60]
    share = (ranks.loc[ranks.system == "sasrec", "rank"] <= 10).mean()
    row = got.loc[(got.system == "sasrec") & (got.metric == "Recall@10"), "value"]
    assert row.item() == pytest.approx(share, abs=1e-6)


def test_the_two_recorded_tables_agree():
    table = pd.read_csv(ROOT / "data" / "results" / "07_retrievers.csv")
    stored = pd.read_csv(ROOT / "data" / "results" / "07_ranks.csv")
    said = table.pivot(index=["system", "seed"], columns="metric", values="value")
    assert sorted(said.index) == sorted(stored.groupby(["system", "seed"]).groups)
    for key, rows in stored.groupby(["system", "seed"]):
        means = RETRIEVERS.metrics_of(rows[["userId", "rank"]]).set_index("metric").value
        assert rows.userId.nunique() == len(rows) == 610
        assert np.allclose(said.loc[key, means.index], means, atol=1e-6), key


# --- 11 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def course(sample):
    return Course.of(sample, steps=3)


def test_every_seed_has_questions_of_its_own_and_all_ways_the_same(course):
    for tasks in (("rank",), WAYS.MIXED[1:]):
        first, again, other = (WAYS.training(course, tasks, seed) for seed in (0, 0, 1))
        assert first == again != other
        each = WAYS.QUESTIONS // len(tasks)
        assert Counter(question.task for question in first) == dict.fromkeys(tasks, each)
    held = [way for name, way in WAYS.ways("rank").items() if "rank held out" in name]
    assert held and all("rank" not in way.tasks for way in held)


def test_places_count_ties_against_the_model_and_trivial_orders_are_what_they_say(course):
    asked = WAYS.asking(course, "test", "rank")
    flat = WAYS.placed(asked, [np.zeros(len(q.candidates)) for q in asked.values()])
    assert (flat["place"] == [len(q.candidates) for q in asked.values()]).all()
    own = WAYS.placed(asked, WAYS.trivial(course, "rank", asked)["retriever's order"])
    own = own.set_index("userId")["place"]
    assert all(own[u] == q.candidates.index(q.truth) + 1 for u, q in asked.items())
    likes = WAYS.asking(course, "test", "like")
    rows, known = WAYS.trivial(course, "like", likes), course.protocol.parts.known
    share = (known["rating"] >= 4).groupby(known["userId"]).mean()
    table = WAYS.placed(likes, rows["user's mean"]).set_index("userId")
    assert np.allclose(table["yes"], share[table.index].clip(1e-9), atol=1e-6)
    right = [(share[u] > 0.5) == (float(q.truth) >= 4) for u, q in likes.items() if share[u] != 0.5]
    assert (table["place"] == 1).sum() == sum(right)


def test_another_base_model_or_data_set_reads_no_kept_rows(settings, sample, monkeypatch):
    paths = []
    monkeypatch.setattr(WAYS, "kept_rows", lambda path, _: paths.append(path) or {})
    larger = replace(settings, llamarec_base_model="~/models/larger")
    other = sample._replace(name="mine")
    for own, dataset in ((settings, sample), (larger, sample), (settings, other)):
        work = SimpleNamespace(settings=own, dataset=dataset)
        WAYS.answers(work, "test", "rank", WAYS.ways("rank")["LoRA, task loss"], 1e-3, 0)
    assert len(set(paths)) == 3 and {path.name for path in paths} == {paths[0].name}


def test_the_two_tables_of_11_agree():
    folder = ROOT / "data" / "results"
    users, facts = (pd.read_csv(folder / f"11_{name}.csv") for name in ("users", "adapting"))
    means = users.groupby(["task", "way", "seed"])["place"].agg(["mean", "size"]).reset_index()
    both = facts.merge(means, on=["task", "way", "seed"])
    assert len(both) == len(facts) and np.allclose(both["place"], both["mean"])
    assert (both["users"] == both["size"]).all()
    assert not users.duplicated(["task", "way", "seed", "userId"]).any()


# --- 14 -------------------------------------------------------------------------------------------


def measured(size: int) -> tuple[float, float]:
    """Return the seconds and the MB that are measured while ``size`` bytes are held."""
    with SCALE.PeakMemory(os.getpid(), itself=True) as used:
        held = b"x" * size
        time.sleep(0.5)
    assert len(held) == size
    return used.seconds, used.peak_mb


def test_a_step_is_measured_alone():  # other tests leave a JVM here
    (_, rest), (seconds, hold) = (SCALE.alone(measured, size) for size in (1, 200_000_000))
    assert 150 < hold - rest < 250 and seconds >= 0.5
