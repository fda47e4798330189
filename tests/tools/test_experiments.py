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
WAYS, SMALL = script("09_adapting"), script("09_small")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- 07 -------------------------------------------------------------------------------------------


def test_retrievers_are_recorded_beside_other_rows(tmp_path, monkeypatch, capsys):
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
        assert RETRIEVERS.main(["--model", model, "--seed", str(seed)]) == 0
    assert "Test Recall@10" in capsys.readouterr().out
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
    assert not table.duplicated(["system", "seed", "metric"]).any()
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
    items = np.arange(40)
    protocol = Protocol(
        parts, Interactions.of(parts.train, items), Interactions.of(parts.known, items)
    )
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
    seen = Interactions.of(table, np.arange(40))
    VERBALIZER.start_from_counts(tiny, seen, TITLE_OF)
    after = tiny.model.get_input_embeddings().weight.detach()
    ids = [tiny.tokenizer(prompts.quote(title))["input_ids"][0] for title in TITLE_OF.values()]
    others = [i for i in range(len(after)) if i not in ids]
    assert torch.equal(after[others], before[others])
    vectors = torch.nn.functional.normalize(after[ids], dim=1)
    likeness = vectors @ vectors.T - torch.eye(40)
    within = likeness[:20, :20].sum() / 380
    across = likeness[:20, 20:].mean()
    assert within > across + 0.1


# --- 09 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def course(sample) -> qs.Course:
    return qs.Course.of(sample, steps=3)


@pytest.fixture(scope="module")
def base(course) -> ad.Model:
    return ad.small(course, hidden=32, layers=2, seed=1)


def ndcg_by_hand(ranks, users) -> float:
    return sum(1 / np.log2(rank + 1) for rank in ranks if rank <= 10) / users


def test_items_of_two_tokens_are_told_apart_and_share_a_whole_word_vector():
    model = SMALL.TwoTokens(10, True, hidden=16)
    pairs = model.tokens(np.arange(10)).reshape(10, 2)
    assert len({tuple(pair) for pair in pairs.tolist()}) == 10
    assert (pairs[:, 0] < model.base).all() and (pairs[:, 1] >= model.base).all()
    model(model.tokens(np.array([[1, 2, 3]]))).sum().backward()
    used = model.whole.weight.grad.abs().sum(1) > 0
    assert used.tolist()[:4] == [True, True, True, False]
    assert SMALL.TwoTokens(10, False, hidden=16).whole is None


def test_neighbours_by_genre_have_more_in_common_than_random_ones(course):
    genres = sorted({g for every in course.genres.values() for g in every})
    rows = np.array(
        [[g in course.genres[int(i)] for g in genres] for i in course.protocol.items], float
    )
    rows += 1e-3 * np.random.default_rng(0).normal(size=rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    noise = np.random.default_rng(1).normal(size=rows.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    assert (
        SMALL.shared_genres(rows, course).mean() > 1.5 * SMALL.shared_genres(noise, course).mean()
    )


def test_popularity_and_mean_ratings_by_hand(course):
    found = WAYS.trivial_tasks(course)
    _, lists, target = course.protocol.test
    own = metrics.score_table(lists, target)["NDCG@10"].mean()
    assert found["transition counts"]["rank"][0] == pytest.approx(own)
    known = course.protocol.parts.known
    count = dict.fromkeys((int(item) for item in course.protocol.items), 0)
    watched: dict[int, set[int]] = {}
    for row in known.itertuples():
        count[row.movieId] += 1
        watched.setdefault(row.userId, set()).add(row.movieId)
    pools = lists.groupby("userId")["movieId"].agg(list)
    in_lists, in_all = [], []
    for row in target.itertuples():
        for ranks, pool in ((in_lists, pools[row.userId]), (in_all, count)):
            left = [item for item in pool if item not in watched[row.userId]]
            left.sort(key=lambda item: (-count[item], item))
            if row.movieId in left:
                ranks.append(left.index(row.movieId) + 1)
    users = len(target)
    assert found["popularity"]["rank"][0] == pytest.approx(ndcg_by_hand(in_lists, users))
    assert found["popularity"]["next"][0] == pytest.approx(ndcg_by_hand(in_all, users))

    mean = sum(known["rating"]) / len(known)
    of_user, of_item = {}, {}
    for user, rows in known.groupby("userId"):
        of_user[user] = sum(rows["rating"] - mean) / (len(rows) + 5)
    for item, rows in known.groupby("movieId"):
        left = [r.rating - mean - of_user[r.userId] for r in rows.itertuples()]
        of_item[item] = sum(left) / (len(left) + 5)
    errors, flat = [], []
    for row in target.itertuples():
        guess = mean + of_user[row.userId] + of_item.get(row.movieId, 0.0)
        errors.append((guess - row.rating) ** 2)
        flat.append((mean - row.rating) ** 2)
    assert found["user and movie means"]["rate"][0] == pytest.approx(np.mean(errors) ** 0.5)
    assert found["overall mean"]["rate"][0] == pytest.approx(np.mean(flat) ** 0.5)


@pytest.fixture(scope="module")
def toy(course) -> qs.Course:
    """All test questions, 20 training questions a task, short documents."""
    train = {task: course.train[task][:20] for task in qs.TASKS}
    users = {task: course.train_users[task][:20] for task in qs.TASKS}
    early = course.early.groupby("userId").head(6)
    return replace(course, train=train, train_users=users, early=early)


@pytest.fixture(scope="module")
def reader(toy, base) -> tuple:
    """An encoder after two epochs, with the losses."""
    bert = ad.encoder(base)
    return bert, SMALL.pretrain_encoder(bert, base.tokenizer, toy, 2)


def test_an_encoder_learns_to_fill_gaps_and_answers_the_same_in_any_batch(toy, base, reader):
    bert, losses = reader
    assert losses[1] < losses[0]
    asked = [qs.document(one, toy.catalogue) for one in list(toy.test["next"].values())[:6]]
    asked[0] = replace(asked[0], text=" ".join([qs.WATCHED, toy.catalogue[0]]))  # a short one
    together = SMALL.encoder_answers(bert, base, asked)
    for one, row in zip(asked, together, strict=True):
        alone = SMALL.encoder_answers(bert, base, [one])[0]
        np.testing.assert_allclose(alone, row, atol=1e-4)
        assert np.exp(row).sum() == pytest.approx(1) and len(row) == len(toy.catalogue)


def weights(network) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def test_a_head_learns_which_answer_is_yes_and_leaves_the_encoder_alone(toy, base, reader):
    bert, _ = reader
    before = weights(bert)
    asked = [qs.instruction(one) for one in toy.train["like"][:8]]
    asked = [replace(one, label=i % 2) for i, one in enumerate(asked)]
    how = Training(3e-3, 60, 32, warm_up=0, second_beta=0.999, clip=NO_CLIP)
    found = SMALL.like_head(bert, base.tokenizer, asked, asked, how)
    assert found[::2].min() > 0.5 > found[1::2].max()  # label 0 is yes
    assert all(torch.equal(value, weights(bert)[name]) for name, value in before.items())


def test_title_vectors_are_one_per_title_and_of_length_one(toy, base, reader):
    for network in (reader[0], base.model):
        vectors = SMALL.title_vectors(network, base.tokenizer, toy)
        assert vectors.shape == (len(toy.catalogue), 32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)


@pytest.mark.parametrize("whole_word", [False, True])
def test_two_token_ranks_are_ranks_among_candidates(toy, whole_word):
    ranks, losses = SMALL.two_token_ranks(toy, whole_word, epochs=2)
    assert len(ranks) == len(toy.test["rank"]) and losses[1] < losses[0]
    assert ranks.min() >= 1 and ranks.max() <= 20 and len(set(ranks.tolist())) > 1


def test_the_measurements_name_each_way_once_and_hold_together(toy, base, monkeypatch):
    monkeypatch.setattr(SMALL, "ENCODER_EPOCHS", 1)
    monkeypatch.setattr(task_metrics, "DRAWS", 20)
    record, named = WAYS.Record(toy), WAYS.Record(toy)
    WAYS.measure_ways(record, base)
    table = pd.DataFrame(record.rows)
    assert len(table) == 8 and not table.duplicated(["way", "prompt"]).any()
    assert list(table.questions.tail(4)) == [60, 60, 60, 80]
    assert list(table.trainable.tail(4))[::3] == [20 * 32, base.parameters()[1]]
    for rows in record.ranks:
        way = (rows.way.iloc[0], rows.prompt.iloc[0])
        value = table.set_index(["way", "prompt"]).value[way]
        users = len(toy.protocol.test.target)
        assert value == pytest.approx(ndcg_by_hand(rows["rank"], users))
    WAYS.measure_ways(named, base, "like", letters=True)
    assert "document" not in {row["prompt"] for row in named.rows} and len(named.rows) == 6

    tasks = WAYS.measure_tasks(record, base)
    assert len(record.rows) == 10  # instruction tuning, on two tasks
    tuned = tasks.loc[tasks.prompt != "none"]
    assert len(tuned) == 10 * 2 * 4 and not tuned.duplicated(["tuned_on", "prompt", "task"]).any()
    ask = qs.forms(toy)[0]
    whole = ad.tune_on_instructions(toy, base, qs.TASKS, ask)
    rows = [*SMALL.measure_pod(toy, whole), *SMALL.measure_families(toy, base)]
    rows += SMALL.measure_p5(toy)
    names = ["part", "name", "measure", "value", "low", "high"]
    small = pd.DataFrame(rows, columns=names).set_index(names[:3]).sort_index()
    rate = task_metrics.task_scores(whole, toy, ask, ("rate",))["rate"]
    assert small.value["POD", "instruction", "rate"] == rate[0]
    fewer = small.value["POD", "instruction"] - small.value["POD", "3 vectors"]
    assert fewer["tokens rank"] == 13 - 3 and fewer["tokens rate"] == 13 - 3
    assert set(small.loc["families"].index.get_level_values(0)) == {"encoder", "decoder", "random"}
    for scores in (tasks, small):
        assert np.isfinite(scores[["value", "low", "high"]]).all(axis=None)
        assert (scores.low <= scores.high).all()
