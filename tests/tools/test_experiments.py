"""The long trainings behind data/results, in small: that they hold together and change no row."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from conftest import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("peft")

from helpers import metrics, prompts  # noqa: E402
from research import adapting as ad  # noqa: E402
from research import questions as qs  # noqa: E402
from research import sequence_models, splits, task_metrics  # noqa: E402
from research import verbalizer_torch as vt  # noqa: E402
from research.protocol import Protocol  # noqa: E402
from research.sequential import Interactions  # noqa: E402
from research.training import NO_CLIP, Training  # noqa: E402


def script(name: str):
    """Return a script of tools/experiments as a module."""
    path = ROOT / "tools" / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"experiment_{name}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its data classes look for their module
    spec.loader.exec_module(module)
    return module


RETRIEVERS, VERBALIZER = script("07_retrievers"), script("07_verbalizer")
WAYS, SMALL, SCALE = script("09_adapting"), script("09_small"), script("11_scale")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    for model, seed in (("lrurec", 1), ("sasrec", 0), ("lrurec", 1)):
        RETRIEVERS.main(["--model", model, "--seed", str(seed)])
    assert not (tmp_path / "data" / "results").exists()  # not the verified release
    (results,) = (tmp_path / "data" / "cache").glob("results/*/07_llamarec.csv")
    got = pd.read_csv(results)
    assert list(got.columns) == ["system", "seed", "metric", "value", "users"]
    assert not got.duplicated(["system", "seed", "metric"]).any() and set(got.users) == {60}
    ranks = pd.read_csv(results.with_name("07_llamarec_ranks.csv"))
    assert ranks.groupby(["system", "seed"]).userId.nunique().tolist() == [60, 60]
    share = (ranks.loc[ranks.system == "sasrec", "rank"] <= 10).mean()
    row = got.loc[(got.system == "sasrec") & (got.metric == "Recall@10"), "value"]
    assert row.item() == pytest.approx(share, abs=1e-6)


def test_the_two_recorded_tables_agree():
    table = pd.read_csv(ROOT / "data" / "results" / "07_llamarec.csv")
    stored = pd.read_csv(ROOT / "data" / "results" / "07_llamarec_ranks.csv")
    said = table.pivot(index=["system", "seed"], columns="metric", values="value")
    assert sorted(said.index) == sorted(stored.groupby(["system", "seed"]).groups)
    for key, rows in stored.groupby(["system", "seed"]):
        means = RETRIEVERS.metrics_of(rows[["userId", "rank"]]).set_index("metric").value
        assert rows.userId.nunique() == len(rows) == 610
        assert np.allclose(said.loc[key, means.index], means, atol=1e-6), key


TITLE_OF = {i: f"Movie {i} ({1950 + i})" for i in range(40)}


@pytest.fixture
def tiny():
    return vt.small(list(TITLE_OF.values()), hidden=32, layers=2, heads=2)


def test_three_orders_of_the_same_candidates_are_compared(tiny):
    """30 users who watch 12 of 40 movies, mostly in ascending order."""
    random = np.random.default_rng(0)
    rows = [(user, int(movie)) for user in range(30)
            for movie in np.sort(random.choice(40, 12, replace=False))]  # fmt: skip
    ordered = pd.DataFrame(rows, columns=["userId", "movieId"])
    parts = splits.leave_one_out(ordered.assign(timestamp=ordered.movieId, rating=4.0))
    seen, known = (Interactions.of(rows, np.arange(40)) for rows in (parts.train, parts.known))
    protocol = Protocol(parts, seen, known)
    table = VERBALIZER.compare_orders(tiny, protocol, TITLE_OF, "verbalizer", draws=20)
    values = table.pivot(index="ranker", columns="metric", values="value")
    assert set(values.index) == {"its own order", "random", "verbalizer"}
    assert values["Recall@20"].nunique() == 1  # twenty candidates: the order cannot matter
    assert values["NDCG@10"].nunique() == 3 and (table["users"] == 30).all()
    _, lists, target = protocol.test
    own = metrics.score_table(lists, target)["MRR@10"].mean()
    assert values.loc["its own order", "MRR@10"] == pytest.approx(own)
    hits = values.loc["random", "Recall@20"]
    by_chance = hits * sum(1 / np.log2(rank + 1) for rank in range(1, 11)) / 20
    assert values.loc["random", "NDCG@10"] == pytest.approx(by_chance, rel=0.15)


def test_title_vectors_start_close_for_movies_watched_together(tiny):
    before = tiny.model.get_input_embeddings().weight.detach().clone()
    random = np.random.default_rng(0)
    rows = [  # even users watch the first half of the catalogue, odd ones the second
        (user, int(movie) + 20 * (user % 2))
        for user in range(40)
        for movie in random.permutation(20)[:10]
    ]
    table = pd.DataFrame(rows, columns=["userId", "movieId"])
    VERBALIZER.start_from_counts(tiny, Interactions.of(table, np.arange(40)), TITLE_OF)
    after = tiny.model.get_input_embeddings().weight.detach()
    ids = [tiny.tokenizer(prompts.quote(title))["input_ids"][0] for title in TITLE_OF.values()]
    others = [i for i in range(len(after)) if i not in ids]
    assert torch.equal(after[others], before[others])
    vectors = torch.nn.functional.normalize(after[ids], dim=1)
    likeness = vectors @ vectors.T - torch.eye(40)
    assert likeness[:20, :20].sum() / 380 > likeness[:20, 20:].mean() + 0.1


# --- 09 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def course(sample) -> qs.Course:
    """All test questions, 20 training questions a task, short documents."""
    whole = qs.Course.of(sample, steps=3)
    train = {task: whole.train[task][:20] for task in qs.TASKS}
    users = {task: whole.train_users[task][:20] for task in qs.TASKS}
    early = whole.early.groupby("userId").head(6)
    return replace(whole, train=train, train_users=users, early=early)


@pytest.fixture(scope="module")
def base(course) -> ad.Model:
    return ad.small(course, hidden=32, layers=2, seed=1)


@pytest.fixture(scope="module")
def reader(course, base) -> tuple:
    """An encoder after two epochs, with the losses."""
    bert = ad.encoder(base)
    return bert, SMALL.pretrain_encoder(bert, base.tokenizer, course, 2)


def ndcg_by_hand(ranks, users) -> float:
    return sum(1 / np.log2(rank + 1) for rank in ranks if rank <= 10) / users


def test_popularity_and_mean_ratings_by_hand(course):
    trivial = WAYS.trivial_tasks(course)
    _, lists, target = course.protocol.test
    own = metrics.score_table(lists, target)["NDCG@10"].mean()
    assert trivial["transition counts"]["rank"][0] == pytest.approx(own)
    known = course.protocol.parts.known
    count = known["movieId"].value_counts().reindex(course.protocol.items, fill_value=0)
    pools, watched = (t.groupby("userId")["movieId"].agg(set) for t in (lists, known))
    in_lists, in_all = [], []
    for row in target.itertuples():
        for ranks, pool in ((in_lists, pools[row.userId]), (in_all, set(count.index))):
            left = sorted(pool - watched[row.userId], key=lambda item: (-count[item], item))
            if row.movieId in left:
                ranks.append(left.index(row.movieId) + 1)
    users = len(target)
    assert trivial["popularity"]["rank"][0] == pytest.approx(ndcg_by_hand(in_lists, users))
    assert trivial["popularity"]["next"][0] == pytest.approx(ndcg_by_hand(in_all, users))

    mean = known["rating"].mean()
    of_user, of_item = {}, {}
    for user, rows in known.groupby("userId"):
        of_user[user] = sum(rows["rating"] - mean) / (len(rows) + 5)
    for item, rows in known.groupby("movieId"):
        left = [r.rating - mean - of_user[r.userId] for r in rows.itertuples()]
        of_item[item] = sum(left) / (len(left) + 5)
    errors = [
        (mean + of_user[row.userId] + of_item.get(row.movieId, 0.0) - row.rating) ** 2
        for row in target.itertuples()
    ]
    assert trivial["user and movie means"]["rate"][0] == pytest.approx(np.mean(errors) ** 0.5)


def test_an_encoder_learns_to_fill_gaps_and_answers_the_same_in_any_batch(course, base, reader):
    bert, losses = reader
    assert losses[1] < losses[0]
    asked = [qs.document(q, course.catalogue) for q in list(course.test["next"].values())[:6]]
    asked[0] = replace(asked[0], text=" ".join([qs.WATCHED, course.catalogue[0]]))  # a short one
    together = SMALL.encoder_answers(bert, base, asked)
    for prompt, row in zip(asked, together, strict=True):
        alone = SMALL.encoder_answers(bert, base, [prompt])[0]
        np.testing.assert_allclose(alone, row, atol=1e-4)
        assert np.exp(row).sum() == pytest.approx(1) and len(row) == len(course.catalogue)


def test_a_head_learns_which_answer_is_yes(course, base, reader):
    asked = [qs.instruction(question) for question in course.train["like"][:8]]
    asked = [replace(prompt, label=i % 2) for i, prompt in enumerate(asked)]
    how = Training(3e-3, 60, 32, warm_up=0, second_beta=0.999, clip=NO_CLIP)
    yes = SMALL.like_head(reader[0], base.tokenizer, asked, asked, how)
    assert yes[::2].min() > 0.5 > yes[1::2].max()  # label 0 is yes


@pytest.mark.parametrize("whole_word", [False, True])
def test_two_token_ranks_are_ranks_among_candidates(course, whole_word):
    ranks, losses = SMALL.two_token_ranks(course, whole_word, epochs=2)
    assert len(ranks) == len(course.test["rank"]) and losses[1] < losses[0]
    assert ranks.min() >= 1 and ranks.max() <= 20 and len(set(ranks.tolist())) > 1


def test_the_measurements_name_each_way_once_and_hold_together(course, base, monkeypatch):
    monkeypatch.setattr(SMALL, "ENCODER_EPOCHS", 1)
    monkeypatch.setattr(task_metrics, "DRAWS", 20)
    record, named = WAYS.Record(course), WAYS.Record(course)
    WAYS.measure_ways(record, base)
    table = pd.DataFrame(record.rows)
    assert len(table) == 8 and not table.duplicated(["way", "prompt"]).any()
    assert list(table.questions.tail(4)) == [60, 60, 60, 80]
    assert list(table.trainable.tail(4))[::3] == [20 * 32, base.parameters()[1]]
    for rows in record.ranks:
        way = (rows.way.iloc[0], rows.prompt.iloc[0])
        value = table.set_index(["way", "prompt"]).value[way]
        assert value == pytest.approx(ndcg_by_hand(rows["rank"], len(course.protocol.test.target)))
    WAYS.measure_ways(named, base, "like", letters=True)
    assert "document" not in {row["prompt"] for row in named.rows} and len(named.rows) == 6

    tasks = WAYS.measure_tasks(record, base)
    assert len(record.rows) == 10  # instruction tuning, on two tasks
    tuned = tasks.loc[tasks.prompt != "none"]
    assert len(tuned) == 10 * 2 * 4 and not tuned.duplicated(["tuned_on", "prompt", "task"]).any()
    committed = pd.read_csv(ROOT / "data" / "results" / "09_tasks.csv")
    key = ["tuned_on", "prompt", "task"]
    pd.testing.assert_frame_equal(tasks[key], committed[key], check_dtype=False)
    ask = qs.forms(course)[0]
    whole = ad.tune_on_instructions(course, base, qs.TASKS, ask)
    rows = [*SMALL.measure_pod(course, whole), *SMALL.measure_families(course, base)]
    small = pd.DataFrame([*rows, *SMALL.measure_p5(course)], columns=SMALL.COLUMNS)
    committed = pd.read_csv(ROOT / "data" / "results" / "09_small.csv")
    assert small[SMALL.COLUMNS[:3]].equals(committed[SMALL.COLUMNS[:3]])
    values = small.set_index(SMALL.COLUMNS[:3]).value
    rate = task_metrics.task_scores(whole, course, ask, ("rate",))["rate"]
    assert values["POD", "instruction", "rate"] == rate[0]
    for scores in (tasks, small):
        assert np.isfinite(scores[["value", "low", "high"]]).all(axis=None)
        assert (scores.low <= scores.high).all()


# --- 11 -------------------------------------------------------------------------------------------


def test_hits_count_unseen_movies_only():
    items = pd.Series([[float(i)] for i in range(20)], range(1, 21))  # movie 20 is best, then 19
    users, test = pd.Series([[1.0]], [1]), pd.DataFrame({"userId": [1], "movieId": [1]})
    train = pd.DataFrame({"userId": 1, "movieId": range(11, 21)})
    assert SCALE.hit_rate(users, items, train, test) == 1.0  # the last of the ten that are left
    assert SCALE.hit_rate(users, items, train[2:], test) == 0.0
    assert SCALE.hit_rate(users, items, train, test.assign(movieId=99)) == 0.0  # nobody rated it


def test_a_step_is_measured():
    clock = SCALE.Clock()
    with clock.step("hold"):
        held = bytearray(60_000_000)
        held[::4096] = b"x" * len(held[::4096])
    (row,) = clock.rows
    assert row["step"] == "hold" and 0 < row["seconds"] < 20
    assert row["peak_mb"] > 80 and row["cpu_s"] >= 0
    clock.memory.stop()
