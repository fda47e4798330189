"""LRURec, SASRec, NARM and BERT4Rec: the recurrence, causality, resuming, and bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from helpers import data, metrics  # noqa: E402
from research import neural, sequence_models, sequential, splits, training  # noqa: E402
from research.protocol import Protocol  # noqa: E402
from research.sequence_models import Config, Network  # noqa: E402
from research.sequential import Interactions  # noqa: E402
from research.training import ModelError  # noqa: E402

MODELS = list(sequence_models.MODELS)
CAUSAL = [model for model in MODELS if model != "bert4rec"]
ITEMS = np.arange(40) * 3 + 1
SMALL = {"dim": 16, "length": 12, "batch": 4, "dropout": 0.2, "epochs": 4}


pytestmark = pytest.mark.usefixtures("one_thread")


def table(users=12, each=15, seed=0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    rows = [
        (user, movie, place, 4.0)
        for user in range(1, users + 1)
        for place, movie in enumerate(random.choice(ITEMS, each - user % 4, replace=False))
    ]
    return pd.DataFrame(rows, columns=["userId", "movieId", "timestamp", "rating"])


@pytest.fixture(scope="module")
def parts() -> splits.LeaveOneOut:
    return splits.leave_one_out(table())


@pytest.fixture(scope="module")
def seen(parts) -> Interactions:
    return Interactions.of(parts.train, ITEMS)


def network(model: str, seed=0, **changes) -> Network:
    torch.manual_seed(seed)
    made = Network(Config.of(model, **(SMALL | changes)), ITEMS)
    with torch.no_grad():  # larger weights than at the start, so that a leak is seen
        for weights in made.parameters():
            if weights.ndim > 1:
                weights.mul_(20)
    return made.eval()


def scores(made: Network, batch) -> torch.Tensor:
    """Scores at every real position, shape (n_real, n_items)."""
    with torch.no_grad():
        return made.scores(made(torch.as_tensor(np.array(batch)))[0])


# --- the recurrence ---------------------------------------------------------------------------


def random_decay(width, random, dtype=torch.complex64):
    modulus, angle = random.uniform(0.3, 0.999, width), random.uniform(0, 2 * np.pi, width)
    return torch.from_numpy(modulus * np.exp(1j * angle)).to(dtype)


@given(
    length=st.integers(1, 300),
    batch=st.integers(1, 3),
    width=st.integers(1, 4),
    seed=st.integers(0),
)
@settings(max_examples=150, deadline=None)
def test_the_parallel_scan_equals_the_sequential_recurrence(length, batch, width, seed):
    random = np.random.default_rng(seed)
    values = random.normal(size=(2, batch, length, width))
    x = torch.from_numpy(values[0] + 1j * values[1]).to(torch.complex64)
    decay = random_decay(width, random)
    given_x = x.clone()
    got, wanted = sequence_models.parallel_scan(decay, x), sequence_models.sequential_scan(decay, x)
    assert torch.equal(x, given_x)
    assert (got - wanted).abs().max() <= 1e-5 * max(1.0, wanted.abs().max())


def test_the_recurrence_is_the_sum_it_stands_for():
    """h_t is the sum over s <= t of decay^(t - s) x_s: written out, in double precision."""
    random = np.random.default_rng(0)
    x, decay = random.normal(size=(1, 13, 2)), random_decay(2, random, torch.complex128)
    powers = decay.numpy()[None, None] ** np.subtract.outer(range(13), range(13))[:, :, None]
    wanted = np.einsum("tsd,bsd->btd", np.tril(powers.transpose(2, 0, 1)).transpose(1, 2, 0), x)
    for scan in (sequence_models.parallel_scan, sequence_models.sequential_scan):
        got = scan(decay, torch.from_numpy(x).to(torch.complex128))
        np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_gradients_of_the_scan(length):
    random = np.random.default_rng(length)
    x = torch.randn(2, length, 3, dtype=torch.complex128, requires_grad=True)
    decay = random_decay(3, random, torch.complex128).requires_grad_()
    assert torch.autograd.gradcheck(sequence_models.parallel_scan, (decay, x))


def test_the_softmax_loss_is_the_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    shapes = ((300, 4), (5, 4), (5,))  # two blocks, the last one short
    arrays = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    targets = torch.randint(5, (300,), generator=generator)
    states, vectors, bias = arrays
    results = []
    for loss in (
        sequence_models.SoftmaxLoss.apply(states, vectors, bias, targets),
        torch.nn.functional.cross_entropy(states @ vectors.T + bias, targets),
    ):
        results.append([loss, *torch.autograd.grad(loss, arrays)])
    torch.testing.assert_close(results[0], results[1])


def test_the_decay_starts_on_the_ring_and_stays_inside_the_circle():
    torch.manual_seed(0)
    unit = sequence_models.LinearRecurrentUnit(64)
    modulus = unit.decay().abs()
    assert unit.decay().shape == (128,) and modulus.min() >= 0.8 and modulus.max() <= 0.99
    squared = modulus.double() ** 2  # uniform in area: the square is uniform
    assert abs(squared.mean() - (0.8**2 + 0.99**2) / 2) < 0.03
    assert torch.allclose(unit.gamma_log.exp() ** 2, 1 - modulus**2, atol=1e-5)
    with torch.no_grad():
        unit.nu_log.normal_(0, 5)
    assert (unit.decay().abs() <= 1).all()


@pytest.mark.parametrize("probability", [0.0, 0.2, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(probability):
    torch.manual_seed(0)
    drop, x = sequence_models.Dropout(probability), torch.ones(999, 101)
    got = drop(x)
    assert (got == 0).float().mean() == pytest.approx(probability, abs=0.005)
    assert got.mean() == pytest.approx(1, abs=0.02) and len(got.unique()) <= 2
    if probability == 0.5:
        assert not torch.equal(got, drop(x)) and not torch.equal(got[0], got[1])
        neighbours = (got[:, 1:] * got[:, :-1]).mean()  # 1 if one value says nothing of the next
        assert neighbours == pytest.approx(1, abs=0.03)
    assert torch.equal(drop.eval()(x), x)


# --- what a position may see ------------------------------------------------------------------


@pytest.mark.parametrize("model", CAUSAL)
@pytest.mark.parametrize("place", [1, 5, 9])
def test_no_score_sees_a_later_item(model, place):
    made = network(model)
    batch = np.random.default_rng(0).integers(1, 41, (3, 10))
    other = batch.copy()
    other[1, place] = other[1, place] % 40 + 1
    before, after = (scores(made, b).view(3, 10, -1) for b in (batch, other))
    assert torch.equal(before[[0, 2]], after[[0, 2]])  # nor another user's
    torch.testing.assert_close(before[1, :place], after[1, :place], rtol=0, atol=1e-6)
    assert ((before[1, place:] - after[1, place:]).abs().amax(1) > 1e-3).all()
    longer = np.concatenate([batch, other[:, :2]], axis=1)
    torch.testing.assert_close(scores(made, longer).view(3, 12, -1)[:, :10], before)


def test_bert4rec_looks_both_ways_but_never_at_a_hidden_item():
    """It is not causal: a later item moves earlier scores. Its guarantee is another one.

    The item that a masked place must guess is not in the input, so it cannot be seen; and when a
    recommendation is asked for, the mask comes last, so that all that it sees is earlier.
    """
    made, config = network("bert4rec"), Config.of("bert4rec", **SMALL)
    batch = np.random.default_rng(0).integers(1, 41, (1, 10))
    other = batch.copy()
    other[0, 9] = other[0, 9] % 40 + 1
    assert ((scores(made, batch) - scores(made, other)).abs().amax(1) > 1e-3).all()
    part = np.arange(1, 13)
    for seed in range(50):
        random = np.random.default_rng(seed)
        inputs, targets = neural.inputs_and_targets(part, config, made.mask_id, random)
        hidden = inputs == made.mask_id
        assert hidden.any() and (targets[hidden] == part[hidden]).all()
        assert (targets[~hidden] == 0).all() and (inputs[~hidden] == part[~hidden]).all()


@pytest.mark.parametrize("model", MODELS)
def test_padding_on_either_side_changes_nothing(model):
    made = network(model)
    alone = torch.cat([scores(made, [[3, 9, 4]]), scores(made, [[7, 1, 8, 2, 5]])])
    right = scores(made, [[3, 9, 4, 0, 0, 0, 0], [7, 1, 8, 2, 5, 0, 0]])
    left = scores(made, [[0, 0, 0, 0, 3, 9, 4], [0, 0, 7, 1, 8, 2, 5]])
    torch.testing.assert_close(right, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(left, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", CAUSAL)
def test_scores_after_a_history_are_those_of_its_last_position(model):
    made = network(model)
    rows = [np.array([3, 9, 4]), np.arange(1, 31), np.array([5])]
    together = neural.next_scores(made, rows, batch=2)
    for row, got in zip(rows, together, strict=True):
        torch.testing.assert_close(got, scores(made, [row[-12:]])[-1], rtol=1e-5, atol=1e-5)


# --- training ---------------------------------------------------------------------------------


def test_every_step_of_a_history_is_trained_once():
    history = np.arange(1, 31)
    got = neural.windows(history, 12)
    steps = [(a, b) for part in got for a, b in pairwise(part)]
    assert sorted(steps) == list(pairwise(history))
    assert [len(part) for part in got] == [13, 13, 6] and got[0][-1] == 30
    assert neural.windows(np.array([1]), 12) == []


@pytest.mark.parametrize("model", MODELS)
def test_each_model_overfits_ten_sequences(model):
    random = np.random.default_rng(1)
    parts = [random.permutation(40)[:9] + 1 for _ in range(10)]
    torch.manual_seed(0)
    config = Config.of(model, dim=32, length=12, batch=10, dropout=0.0, learning_rate=0.01)
    made = Network(config, ITEMS)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.01)
    for epoch in range(150 if model == "bert4rec" else 60):  # it learns a fifth of the places
        losses = neural.epoch_losses(made, parts, epoch)
        training.run_epoch(made, optimizer, losses, 5.0, lambda: None)
    best = neural.next_scores(made, [part[:-1] for part in parts]).argmax(1) + 1
    assert best.tolist() == [part[-1] for part in parts]


class KilledError(RuntimeError):
    pass


def digits_as_ranks(scores, *_):
    """Ranks that any difference between two score matrices changes; real ones are too coarse."""
    return 1 + (np.abs(scores).ravel() * 1e7).astype(int) % 20


@pytest.mark.parametrize("model", MODELS)
def test_a_killed_training_goes_on_and_ends_with_the_same_weights(
    model, parts, seen, tmp_path, monkeypatch
):
    config = Config.of(model, **SMALL, seed=3)
    monkeypatch.setattr(sequential, "target_ranks", digits_as_ranks)

    def run(name):
        return neural.train(seen, parts.validation, config, tmp_path / name)

    whole = run("whole.safetensors")
    real, calls = neural.loss_of, []

    def dies(*arguments):
        calls.append(1)
        if len(calls) in (5, 9):  # in the middle of the second and then of a later epoch
            raise KilledError
        return real(*arguments)

    monkeypatch.setattr(neural, "loss_of", dies)
    for _ in range(2):
        with pytest.raises(KilledError):
            run("killed.safetensors")
    resumed = run("killed.safetensors")
    assert resumed.history == whole.history and len(calls) > 9
    for name, weights in whole.network.state_dict().items():
        assert torch.equal(weights, resumed.network.state_dict()[name]), name
    facts = [neural.metadata_of(tmp_path / f"{name}.safetensors") for name in ("whole", "killed")]
    assert facts[0] == facts[1]
    assert {p.suffix for p in tmp_path.iterdir()} == {".safetensors"}  # nothing left over
    calls.clear()
    again = run("whole.safetensors")
    assert not calls and again.history == whole.history  # finished: loaded, not repeated


def test_a_seed_decides_the_result_and_leaves_the_callers_alone(parts, seen, tmp_path):
    config = Config.of("lrurec", **(SMALL | {"epochs": 1}))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    got = [
        neural.train(seen, parts.validation, c, tmp_path / f"{n}.safetensors")
        for n, c in enumerate((config, config, replace(config, seed=1)))
    ]
    assert torch.equal(torch.get_rng_state(), before)
    first, second, other = (one.network.embed.weight for one in got)
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_what_is_kept_is_a_running_mean_of_the_weights(parts, seen, tmp_path, monkeypatch):
    kept, drawn, real = {}, [], torch.optim.AdamW.step

    def step(optimizer):
        real(optimizer)
        drawn.append(optimizer.param_groups[0]["params"][0].detach().clone())

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    for share in (0.0, 0.5):
        drawn.clear()
        config = Config.of("lrurec", **(SMALL | {"epochs": 1, "average": share}))
        done = neural.train(seen, parts.validation, config, tmp_path / f"{share}.safetensors")
        mean = drawn[0]
        for weights in drawn[1:]:
            mean = share * mean + (1 - share) * weights
        kept[share] = next(done.network.parameters()).detach()
        torch.testing.assert_close(kept[share], mean)
    assert not torch.allclose(kept[0.0], kept[0.5])


def test_the_best_epoch_is_kept_and_patience_ends_training(parts, seen, tmp_path, monkeypatch):
    hits = iter([0.2, 0.5, 0.4, 0.5, 0.3, 0.9])
    network_seen = []

    def ranks(scores, *_):
        network_seen.append(scores)
        share = next(hits)
        return np.where(np.arange(10) < share * 10, 1.0, 99.0)

    monkeypatch.setattr(sequential, "target_ranks", ranks)
    config = Config.of("lrurec", **(SMALL | {"epochs": 9, "patience": 3}))
    done = neural.train(seen, parts.validation, config, tmp_path / "a.safetensors")
    assert done.history == [0.2, 0.5, 0.4, 0.5, 0.3] and done.best == 0.5
    np.testing.assert_allclose(neural.score_matrix(done.network, seen), network_seen[1], atol=1e-5)
    facts = neural.metadata_of(tmp_path / "a.safetensors")
    assert json.loads(facts["history"]) == done.history


# --- bad input --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("neural") / "sasrec.safetensors"
    neural.save(network("sasrec"), path, command="a command")
    return path


def test_a_checkpoint_comes_back_as_it_was_saved(checkpoint):
    made, back = network("sasrec"), neural.load(checkpoint, ITEMS, "sasrec")
    assert back.config == made.config and not back.training
    assert torch.equal(scores(made, [[1, 2]]), scores(back, [[1, 2]]))
    assert neural.metadata_of(checkpoint)["command"] == "a command"


def test_a_file_that_does_not_fit_is_refused(checkpoint, tmp_path):
    with pytest.raises(ModelError, match="choose lrurec, sasrec"):
        Config("gru4rec")
    broken = tmp_path / "broken.safetensors"
    for text in (None, "no weights"):
        if text:
            broken.write_text(text)
        with pytest.raises(ModelError, match="missing or damaged"):
            neural.load(broken, ITEMS)
    for items, model in ((ITEMS + 1, None), (ITEMS, "lrurec")):
        with pytest.raises(ModelError, match="another catalogue or model"):
            neural.load(checkpoint, items, model)


def test_scores_need_the_networks_catalogue_and_items_from_training(parts, tmp_path):
    rows = parts.train.loc[parts.train.movieId != ITEMS[0]]
    config, path = Config.of("lrurec", **(SMALL | {"epochs": 1})), tmp_path / "a.safetensors"
    neural.train(Interactions.of(rows, ITEMS), parts.validation, config, path)
    made = neural.load(path, ITEMS)
    known = Interactions.of(pd.DataFrame({"userId": [1], "movieId": [ITEMS[0]]}), ITEMS)
    with pytest.raises(ModelError, match=f"No training history holds movieId {ITEMS[0]}"):
        neural.score_matrix(made, known)
    with pytest.raises(ModelError, match="another catalogue"):
        neural.score_matrix(made, Interactions.of(pd.DataFrame({"userId": [1], "movieId": [4]})))


# --- the committed weights --------------------------------------------------------------------


def test_the_committed_weights_give_the_recorded_result(real):
    """Within two users: the last bits of a sum differ between machines."""
    from conftest import ROOT

    path = ROOT / "data" / "weights" / "lrurec_seed0.safetensors"
    assert path.stat().st_size < 5_000_000
    protocol = Protocol.of(data.load_pandas(real, "ratings"))
    made = neural.load(path, protocol.seen.items, "lrurec")
    assert made.config == Config.of("lrurec", seed=0)
    assert neural.metadata_of(path)["command"] == "python -m helpers.neural --model lrurec --seed 0"
    table = pd.read_csv(ROOT / "data" / "results" / "07_retrievers.csv")
    recorded = table.loc[(table.system == "lrurec") & (table.seed == 0)].set_index("metric").value
    ranks = neural.ranks_on_test(made, protocol)
    one_item = ranks.assign(movieId=0)
    found = metrics.score_table(one_item, one_item, (10, 20)).mean()
    for metric in ("Recall@10", "NDCG@10", "MRR@10", "Recall@20"):
        assert found[metric] == pytest.approx(recorded[metric], abs=2 / 610)
    assert found["Recall@10"] >= 0.125 - 2 / 610 and found["NDCG@10"] >= 0.066
    stored = pd.read_csv(ROOT / "data" / "results" / "07_ranks.csv")
    stored = stored.loc[(stored.system == "lrurec") & (stored.seed == 0)]
    assert stored.userId.tolist() == ranks.userId.tolist()
    assert (stored["rank"].to_numpy() == ranks["rank"].to_numpy()).mean() > 0.95


# --- a start from vectors -------------------------------------------------------------------------


def test_training_begins_at_the_start_given(parts, seen, tmp_path):
    vectors = np.random.default_rng(1).normal(size=(len(ITEMS), 64)) + 3.0
    vectors[1] = vectors[0] + 0.01
    start = neural.start_from(vectors, 16)
    gaps = np.linalg.norm(start - start[0], axis=1)
    assert gaps[1] == np.sort(gaps)[1] and abs(start.std() - 0.02) < 1e-9  # what is close stays so
    config = Config.of("lrurec", **(SMALL | {"epochs": 1, "average": 0.0, "learning_rate": 1e-9}))
    path = tmp_path / "from_vectors.safetensors"
    done = neural.train(seen, parts.validation, config, path, start=start)
    kept = done.network.embed.weight[1 : len(ITEMS) + 1].detach().numpy()
    assert np.allclose(kept, start, atol=1e-5)
    with pytest.raises(ModelError, match="another path"):  # not to be taken for the plain training
        neural.train(seen, parts.validation, config, path)
    lonely = Interactions.of(pd.DataFrame({"userId": [1, 2], "movieId": [1, 4]}), ITEMS)
    with pytest.raises(ModelError, match="nothing to learn"):
        neural.train(lonely, parts.validation, config, tmp_path / "b.safetensors")


def test_finished_parts_are_kept_and_a_failed_one_leaves_no_file(tmp_path):
    path, calls = tmp_path / "part.npz", []

    def compute():
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return {"7": np.arange(3.0)}

    with pytest.raises(KeyboardInterrupt):
        training.kept_rows(path, compute)
    assert not path.exists()
    for _ in range(2):
        assert training.kept_rows(path, compute)["7"].tolist() == [0.0, 1.0, 2.0]
    assert len(calls) == 2
