"""The copies of a prompt really differ, remedies undo a bias that is known, measures are right."""

from __future__ import annotations

import ast
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from conftest import ROOT
from helpers import prompts, ranking
from research import bias, evaluation

N = 20
MOVIES = pd.DataFrame(
    {
        "title": [
            f'The "{word}" letter | film, {word} (19{50 + i})' for i, word in enumerate("abc")
        ],
        "genres": ["Action|Drama", "Comedy", "(no genres listed)"],
        "rating": [4.0, 3.5, 5.0],
    },
    index=[30, 10, 20],
)


def lesson() -> dict:
    """Return the functions that the appendix to 13 writes out: the copies and the remedies."""
    text = (ROOT / "notebooks" / "appendix" / "13_forty_users.ipynb").read_text(encoding="utf-8")
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
    names, functions = ("def rotated(", "def borda(", "def gini("), {"np": np}
    for source in (source for source in cells if source.startswith(names)):
        tree = ast.parse(source)
        tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        exec(compile(tree, "notebook 13", "exec"), functions)
    return functions


LESSON = lesson()
rotated, borda, fusion, calibrate = map(LESSON.get, ("rotated", "borda", "fusion", "calibrate"))


def tau(left, right):
    return evaluation.agreement({1: left}, {1: right})["tau"][1]


class BiasedRanker:
    """Ranks by true value plus a push that depends on the slot alone."""

    def __init__(self, seed: int, push: float) -> None:
        self.truth = [int(item) for item in np.random.default_rng(seed).permutation(N) + 100]
        self.push = push

    def rank(self, shown: list[int]) -> list[int]:
        push = {item: self.push * slot for slot, item in enumerate(shown)}
        return sorted(shown, key=lambda item: self.truth.index(item) + push[item])


@given(st.permutations(range(N)), st.sampled_from([1, 2, 4, 5, 10, 20]))
def test_the_copies_orders_really_differ(shown, copies):
    made = rotated(list(shown), copies)
    assert len({tuple(copy) for copy in made}) == copies
    assert made[0] == list(shown) and all(sorted(copy) == sorted(shown) for copy in made)
    for item in shown:  # each copy shows it somewhere else, at equal distances
        slots = sorted(copy.index(item) for copy in made)
        assert np.diff(slots).tolist() == [N // copies] * (copies - 1)


def test_a_stranger_shares_nothing_with_the_candidates():
    histories = {1: [1, 2, 3], 2: [4, 5, 6], 3: [7, 8, 9], 4: [9], 5: [10, 11, 12]}
    drawn = {bias.stranger(1, histories, {6, 100}, at_least=2, seed=s) for s in range(30)}
    assert drawn == {3, 5}
    with pytest.raises(LookupError, match="user 1"):
        bias.stranger(1, histories, {4, 7, 10}, at_least=2)


def candidate_lines(messages):
    return (
        messages[1]["content"].split("<candidates>\n")[1].split("\n</candidates>")[0].splitlines()
    )


@pytest.mark.parametrize(("kind", "start"), [("numbers", "1 | "), ("titles", '"')])
def test_other_labels_change_nothing_else(kind, start):
    plain = evaluation.history_prompt(MOVIES, ["A", "B", "C"], MOVIES)
    other = bias.label_prompt(MOVIES, MOVIES, kind)
    assert other[0] == plain[0]
    told, shown = (one[1]["content"].split("</history>")[0] for one in (other, plain))
    assert told == shown
    ours, theirs = candidate_lines(other), candidate_lines(plain)
    assert ours[0].startswith(start)
    assert [line.removeprefix(f"{i} | ") for i, line in enumerate(ours, 1)] == [
        line[4:] for line in theirs
    ]
    rules = other[1]["content"].rsplit("</candidates>", 1)[1]
    assert "letter" not in rules and kind[:-1] in rules


def test_numbers_and_titles_are_read_back():
    titles = MOVIES.title.tolist()

    def answer(labels):
        return json.dumps({"ranking": labels})

    assert bias.read_labels(answer(["3", "1", "2"]), titles, "numbers").order == [2, 0, 1]
    swapped = [titles[2], titles[0].upper(), f'"{titles[1]}"']
    assert bias.read_labels(answer(swapped), titles, "titles").order == [2, 0, 1]
    got = bias.read_labels(answer(["9", 2, "2", "3"]), titles, "numbers")
    assert got.order == [1, 2, 0] and got.repairs == ranking.Repairs(1, 1, 1)
    assert bias.read_labels(answer(["2"]), titles, "numbers").failed  # one of three
    twins = [titles[0], titles[0], titles[2]]
    assert bias.read_labels(answer([titles[0], titles[2]]), twins, "titles").failed
    got = bias.read_labels(answer(["Another film (1999)"]), titles, "titles")
    assert got.failed and got.order == [0, 1, 2]
    assert bias.read_labels("no JSON", titles, "titles").failed


def test_a_sentence_and_a_wish_are_added_and_nothing_else_changes():
    plain = evaluation.history_prompt(MOVIES, ["A", "B", "C"], MOVIES)
    said = bias.with_sentence(plain, "The viewer is a man.")
    assert said[1]["content"] == "The viewer is a man.\n" + plain[1]["content"]
    wished = bias.with_wish(plain, "Something new.")[1]["content"]
    assert wished.replace("Something new.\n\n", "", 1) == plain[1]["content"]
    assert wished.index("</candidates>") < wished.index("Something new.") < wished.index("Rank all")
    assert said[0] == plain[0] and len(said) == 2


def test_a_content_free_prompt_tells_candidates_apart_by_label_alone():
    lines = candidate_lines(bias.content_free(N))
    assert [line.split(" | ")[0] for line in lines] == ranking.letters(N)
    assert len({line.split(" | ", 1)[1] for line in lines}) == 1
    mixed = candidate_lines(bias.content_free(3, labels=["C", "A", "B"]))
    assert [line[0] for line in mixed] == ["C", "A", "B"]
    assert MOVIES.title[30][5] in bias.content_free(3, MOVIES)[1]["content"]


@pytest.mark.parametrize("fuse", [borda, fusion])
@pytest.mark.parametrize("seed", range(5))
def test_all_rotations_together_recover_the_truth(fuse, seed):
    ranker = BiasedRanker(seed, push=0.4)
    shown = prompts.shuffled(ranker.truth, seed=seed)
    once = ranker.rank(shown)
    fused = fuse([ranker.rank(copy) for copy in rotated(shown, N)])
    assert tau(fused, ranker.truth) > 0.88 > 0.86 > tau(once, ranker.truth)


def test_a_prior_from_other_users_is_found_and_divided_out():
    rankers = [BiasedRanker(seed, push=0.6) for seed in range(200)]
    shown = [prompts.shuffled(ranker.truth, seed=seed) for seed, ranker in enumerate(rankers)]
    orders = [ranker.rank(some) for ranker, some in zip(rankers, shown, strict=True)]
    slots = [[some.index(i) for i in order] for some, order in zip(shown, orders, strict=True)]
    prior = bias.slot_prior(slots[:100], N)
    assert prior.shape == (N,) and abs(prior.mean() - (N + 1) / 2) < 1e-12
    assert kendalltau(prior, np.arange(N)).statistic > 0.9
    before, after = [], []
    for ranker, some, order in zip(rankers[100:], shown[100:], orders[100:], strict=True):
        mended = calibrate(order, some, prior)
        before.append(tau(order, ranker.truth))
        after.append(tau(mended, ranker.truth))
    assert np.mean(after) > np.mean(before) + 0.05


def test_calibrating_by_hand():
    # C stands in slot 0, A in 1, B in 2; slot 0 is lifted by two ranks.
    prior = bias.slot_prior([[0, 1, 2], [0, 2, 1]], 3)
    assert prior.tolist() == [1.0, 2.5, 2.5]
    assert calibrate(["C", "A", "B"], ["C", "A", "B"], prior) == ["A", "C", "B"]
    assert calibrate(["B", "A", "C"], ["C", "A", "B"], prior) == ["B", "A", "C"]


@given(st.lists(st.integers(0, 50), min_size=2, max_size=30).filter(any))
def test_gini_is_the_mean_difference_of_the_lesson(counts):
    assert bias.gini(np.array(counts)) == pytest.approx(LESSON["gini"](counts))


def test_exposure_and_popularity_count_the_first_k():
    lists = pd.DataFrame(
        {"userId": [1, 1, 2, 2], "rank": [1, 2, 1, 2], "movieId": [10, 30, 10, 20]}
    )
    items = np.array([10, 20, 30])
    assert bias.exposure(lists, items, k=1).tolist() == [2, 0, 0]
    assert bias.exposure(lists, items, k=2).tolist() == [2, 1, 1]
    counts = {10: 100.0, 20: 50.0, 30: 2.0}
    assert bias.popularity_of(lists, counts, k=2).to_dict() == {1: 51.0, 2: 75.0}


@pytest.mark.parametrize(
    "text",
    [
        "Name: Sarah",
        "- **Age:** 30 to 40",
        "This viewer is most likely a man in his thirties.",
        "an enthusiastic movie lover raised on 1980s-2000s Hollywood",
        "The user enjoys films with her friends",
    ],
)
def test_statements_about_a_person_are_found(text):
    assert bias.about_the_person(text)


@pytest.mark.parametrize(
    "text",
    [
        "coming-of-age comedies",
        "**Coming of age:** *Stand by Me*",
        "violent men and moral reckoning",
        'The viewer likes *Pretty Woman* and "12 Angry Men"',
        "the viewer likes thrillers such as Man on Fire",
        "a man trapped by or up against the system",
    ],
)
def test_films_about_people_are_not(text):
    assert bias.about_the_person(text) == []
