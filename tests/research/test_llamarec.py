"""LlamaRec's second stage: what its questions know, and a training that a kill does not change."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from research import language_model, llamarec, neural  # noqa: E402
from research import verbalizer_torch as vt  # noqa: E402
from research.sequence_models import Config, Network  # noqa: E402
from research.sequential import Interactions  # noqa: E402
from research.training import ModelError  # noqa: E402

ITEMS = np.arange(100, 140)
TITLES = {int(item): f"Movie {item} ({1850 + item})" for item in ITEMS}
NAMES = list(TITLES.values())
MOVIE = {title: movie for movie, title in TITLES.items()}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def train_rows():
    """30 users who watch 12 of 40 movies in an order of their own."""
    random = np.random.default_rng(0)
    rows = [(user, int(movie)) for user in range(1, 31)
            for movie in random.choice(ITEMS, 12, replace=False)]  # fmt: skip
    return pd.DataFrame(rows, columns=["userId", "movieId"])


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(Config.of("lrurec", dim=16, length=12), ITEMS).eval()


def tuned(rank=8, **options):
    return vt.small_ranker(NAMES, **{"hidden": 32, "layers": 2, "heads": 2, **options}).with_lora(
        rank
    )


def example(seed, n=20):
    random = np.random.default_rng(seed)
    names = [NAMES[i] for i in random.permutation(len(NAMES))]
    return vt.LetterQuestion(tuple(names[:5]), tuple(names[5 : 5 + n]), seed % n)


# --- questions ------------------------------------------------------------------------------------


def test_a_question_knows_what_came_before_and_its_answer_is_a_candidate(network, train_rows):
    found = llamarec.training_questions(network, train_rows, ITEMS, TITLES, steps=3)
    own = [[TITLES[m] for m in movies] for _, movies in train_rows.groupby("userId")["movieId"]]
    ends = []
    for question in found:
        (watched,) = (titles for titles in own if titles[0] == question.history[0]
                      and titles[: len(question.history)] == list(question.history))  # fmt: skip
        end = len(question.history)
        assert question.candidates[question.label] == watched[end]
        assert len(set(question.candidates)) == 20
        assert not set(question.candidates) & set(question.history)
        ends.append(end)
    assert set(ends) == {9, 10, 11} and 30 < len(found) < 90  # not each is among the 20 of 29


def test_nothing_of_what_came_later_changes_a_question(network, train_rows):
    later = train_rows.groupby("userId").cumcount(ascending=False)
    whole = llamarec.training_questions(network, train_rows, ITEMS, TITLES, steps=3)
    cut = llamarec.training_questions(network, train_rows[later > 0], ITEMS, TITLES, steps=2)
    assert 0 < len(cut) < len(whole) and whole[-len(cut) :] == cut


def test_an_early_retriever_never_sees_the_last_steps(train_rows, monkeypatch, tmp_path):
    given = {}

    def remember(seen, target, config, path):
        given.update(seen=seen, target=target)
        return neural.Trained(Network(config, seen.items), [])

    monkeypatch.setattr(neural, "train", remember)
    llamarec.early_retriever(train_rows, ITEMS, 3, tmp_path / "early")
    movies = [list(own) for _, own in train_rows.groupby("userId")["movieId"]]
    assert [ITEMS[own].tolist() for own in given["seen"].histories()] == [own[:8] for own in movies]
    assert given["target"]["movieId"].tolist() == [own[8] for own in movies]


def test_a_user_with_a_movie_the_retriever_does_not_know_waits(network, train_rows):
    first = train_rows["movieId"].iloc[0]
    watchers = train_rows.loc[train_rows["movieId"] == first, "userId"].nunique()
    network.trained[first == ITEMS] = False
    found = llamarec.training_questions(network, train_rows, ITEMS, TITLES, steps=1)
    assert 0 < len(found) <= 30 - watchers + 1  # one may have it last
    assert all(TITLES[first] not in question.history for question in found)


def test_labels_follow_their_movie_and_a_shuffle_moves_all(network, train_rows):
    seen = Interactions.of(train_rows, ITEMS)
    lists = llamarec.retriever_lists(network, seen, 20)
    target = lists[lists["rank"] == lists["userId"] % 25 + 1][["userId", "movieId"]]
    plain = llamarec.requests_for(lists, seen, TITLES, target)
    mixed = llamarec.requests_for(lists, seen, TITLES, target, shuffle=5)
    assert set(plain) == set(mixed) == set(target["userId"]) and len(plain) < 30
    wanted = dict(zip(target["userId"], target["movieId"], strict=True))
    for user, (shown, question) in plain.items():
        other, moved = mixed[user]
        assert shown == lists.loc[lists["userId"] == user, "movieId"].tolist()
        assert sorted(other) == sorted(shown) and other != shown
        for movies, asked in ((shown, question), (other, moved)):
            assert [MOVIE[title] for title in asked.candidates] == movies
            assert movies[asked.label] == wanted[user]
    whole = llamarec.requests_for(lists, seen, TITLES, last=50, what="name")
    short = llamarec.requests_for(lists, seen, TITLES, last=3)
    for user, (_, question) in whole.items():
        assert question.what == "name" and question.history[-3:] == short[user][1].history
        assert len(question.history) > 3 and question.permuted([1, 0]).what == "name"
    unknown = llamarec.requests_for(lists, seen, TITLES)
    assert len(unknown) == 30 and all(asked.label is None for _, asked in unknown.values())


def test_a_movie_is_written_in_four_ways_and_never_too_long():
    movies = pd.DataFrame({"movieId": [3, 7], "title": ["Up (2009)", "Heat (1995)"]})
    movies["genres"] = ["Animation|Children", "Action|" + "|".join("Crime" * 4 for _ in range(9))]
    tags = pd.DataFrame({"userId": [1, 2], "movieId": [3, 3], "tag": ["balloons", "secret"]})
    ways = llamarec.forms(movies, tags, pd.DataFrame({"userId": [2], "movieId": [3]}))
    assert [ways[what][3] for what in ways] == [
        "movie 3", "Up (2009)", "Up (2009). Animation, Children",
        "Up (2009). Animation, Children. balloons",
    ]  # fmt: skip
    assert 60 < len(ways["title, genres"][7]) <= 100 and ways["title, genres"][7][-5:] == "Crime"


def test_random_negatives_stand_beside_the_right_movie():
    question, random = example(3), np.random.default_rng(0)
    found = [llamarec.with_random_negatives(question, NAMES, random) for _ in range(30)]
    for each in found:
        assert each.candidates[each.label] == question.candidates[question.label]
        assert len(set(each.candidates)) == 20 and each.history == question.history
        assert not set(each.candidates) & set(question.history)
    assert len({each.label for each in found}) > 8  # no place is the right one's
    drawn = set().union(*(each.candidates for each in found))
    assert drawn == set(NAMES) - set(question.history)


# --- training -------------------------------------------------------------------------------------


def weights(ranker):
    return [each.detach().clone() for each in ranker.model.parameters() if each.requires_grad]


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(tmp_path):
    asked, path = [example(seed) for seed in range(7)], tmp_path / "state.pt"
    whole = tuned()
    before = weights(whole)
    losses = list(llamarec.train(whole, asked, until=100))
    assert [done for done, _ in losses] == [*range(8, 100, 8), 100]
    killed = llamarec.train(tuned(), asked, path=path, until=100)
    seen = [next(killed) for _ in range(11)]
    killed.close()
    again = tuned()
    rest = list(llamarec.train(again, asked, path=path, until=100))
    assert seen + rest[1:] == losses  # the eleventh step is taken once more
    ended = weights(whole)
    assert all(torch.equal(*pair) for pair in zip(ended, weights(again), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(ended, before, strict=True))
    finished = tuned()
    assert list(llamarec.train(finished, asked, path=path, until=100)) == []
    assert all(torch.equal(*pair) for pair in zip(ended, weights(finished), strict=True))


def test_a_state_of_another_training_or_a_damaged_one_is_refused(tmp_path):
    asked, path = [example(0), example(1)], tmp_path / "state.pt"
    list(llamarec.train(tuned(), asked, path=path))
    other = [example(0), example(1).permuted(range(19, -1, -1))]
    for ranker, questions in ((tuned(), asked[:1]), (tuned(), other), (tuned(rank=4), asked)):
        with pytest.raises(ModelError, match=r"state\.pt belongs to another training: delete"):
            next(llamarec.train(ranker, questions, path=path))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"state\.pt is damaged: delete it"):
        next(llamarec.train(tuned(), asked, path=path))
    with pytest.raises(ModelError, match="nothing to train on"):
        next(llamarec.train(tuned(), []))
    with pytest.raises(ModelError, match="no answer"):
        next(llamarec.train(tuned(), [vt.LetterQuestion(("x",), ("y",))]))


def test_it_learns_what_it_is_asked():
    ranker, asked = (
        vt.small_ranker(NAMES, hidden=32, layers=2, heads=2),
        [example(s) for s in range(2)],
    )
    losses = [loss for _, loss in llamarec.train(ranker, asked, until=400)]
    assert losses[-1] < losses[0] - 2


# --- reading the answer ---------------------------------------------------------------------------


def test_letters_and_titles_are_read_from_whole_passes():
    ranker = vt.small_ranker(NAMES, hidden=32, layers=2, heads=2)
    requests = {user: ([], example(user, n=6)) for user in (3, 8)}
    logs = dict(llamarec.letter_logs(ranker, requests))
    for user, (_, question) in requests.items():
        (wanted,) = ranker.probabilities([question])
        np.testing.assert_allclose(np.exp(logs[user]), wanted, atol=0.01)  # in bfloat16
    for user, values in llamarec.title_logs(ranker, requests):
        question = requests[user][1]
        start = "Movies that a viewer watched, oldest first:\n" + "\n".join(question.history) + "\n"
        size = len(ranker.tokens(start))
        for title, value in zip(question.candidates, values, strict=True):
            ids = torch.tensor([ranker.tokens(f"{start}{title}\n")])
            with torch.inference_mode():
                rows = torch.log_softmax(ranker.model(ids).logits[0, size - 1 : -1], 1)
            mean = rows.gather(1, ids[0, size:, None]).mean()
            assert value == pytest.approx(float(mean), abs=0.03)


def test_a_model_of_titles_learns_the_order_in_which_they_are_watched(train_rows):
    seen = Interactions.of(train_rows, ITEMS)
    pieces = llamarec.stretches(seen, TITLES, length=4)
    first = next(iter(seen.histories()))
    told = [TITLES[int(item)] for item in seen.items[first[:4]]]
    assert pieces[0].text.removeprefix(llamarec.WATCHED).splitlines() == told
    assert len(pieces) == sum(len(watched) // 4 for watched in seen.histories())
    small = vt.small_ranker(NAMES, hidden=32, layers=2, heads=2)
    model = llamarec.TitleModel(small.model, small.tokenizer, "a small one")
    how = llamarec.Schedule(rate=5e-3, batch=1)
    losses = [loss for _, loss in llamarec.teach(model, pieces[:1], how, until=60)]
    assert losses[-1] < losses[0] - 4
    wrong = (TITLES[int(item)] for item in seen.items[-5:])
    question = vt.LetterQuestion(tuple(told[:3]), (*wrong, told[3]))
    [(_, values)] = llamarec.title_logs(model, {1: ([], question)})
    assert values.argmax() == 5


def test_ranks_are_those_of_the_label_and_ties_go_to_the_first():
    requests = {user: ([], example(label)) for user, label in ((7, 0), (5, 2), (9, 19))}
    requests[1] = ([], vt.LetterQuestion(("x",), ("y",)))  # what came next is not known
    flat = np.full(20, -np.log(20))
    logs = dict.fromkeys(requests, flat) | {5: np.eye(20)[2]}
    table = llamarec.inside(requests, logs).set_index("userId")
    assert table["rank"].to_dict() == {7: 1, 5: 1, 9: 20}
    assert table.loc[7, "loss"] == pytest.approx(np.log(20)) and table.loc[5, "loss"] == -1
    assert table["NDCG@10"].to_dict() == {7: 1, 5: 1, 9: 0}


# --- adapters -------------------------------------------------------------------------------------


def test_an_adapter_is_small_says_what_it_is_and_gives_the_same_model(tmp_path):
    ranker, path = tuned(), tmp_path / "adapter.safetensors"
    ranker.name = "somewhere/on/this/machine/base.gguf"
    list(llamarec.train(ranker, [example(0)], until=40))
    language_model.save_adapter(ranker, path, "python train.py --seed 0")
    kept, facts = language_model.read_weights(path)
    assert facts == {"base": "base.gguf", "layers": "2", "width": "32",
                     "made_by": "python train.py --seed 0"}  # fmt: skip
    assert {each.dtype for each in kept.values()} == {torch.float16}
    assert sum(each.numel() for each in kept.values()) == ranker.parameters()[0]
    again = tuned()
    again.name = "elsewhere/base.gguf"
    fresh = again.probabilities([example(5)])[0]
    language_model.load_adapter(again, path)
    wanted = ranker.probabilities([example(5)])[0]
    np.testing.assert_allclose(again.probabilities([example(5)])[0], wanted, atol=1e-4)
    assert abs(fresh - wanted).max() > 1e-3


def test_an_adapter_of_another_base_is_refused_and_changes_nothing(tmp_path):
    path = tmp_path / "adapter.safetensors"
    language_model.save_adapter(tuned(), path, "a test")
    named, wide, deep = tuned(), tuned(hidden=64), tuned(layers=3)
    named.name = "folder/other.gguf"
    plain = vt.small_ranker(NAMES, hidden=32, layers=2, heads=2)
    cases = [(named, r"adapts the small model \(2 layers.*this is other\.gguf \(2 layers of width"),
             (wide, "of width 32.*of width 64"), (deep, "2 layers.*3 layers"),
             (tuned(rank=4), "other matrices"), (plain, "other matrices")]  # fmt: skip
    for ranker, words in cases:
        before = weights(ranker)
        with pytest.raises(ModelError, match=words) as error:
            language_model.load_adapter(ranker, path)
        assert "\n" not in str(error.value)
        assert all(torch.equal(*pair) for pair in zip(before, weights(ranker), strict=True))
    for damaged in (path.read_bytes()[:5000], b"no adapter", b""):
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match=r"adapter\.safetensors is missing or damaged"):
            language_model.load_adapter(tuned(), path)
