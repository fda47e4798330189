"""Bias of a ranker, measured: the same question asked in other ways, and what the answers show.

Notebook 10 asks an LLM about the same user and the same candidates again with one thing changed:
the place of the candidates, their labels, the history, a sentence about the viewer. The first half
of this module makes those requests; the texts it varies are those of :mod:`helpers.prompts`, which
stay as they are. A request is a pair (movieIds in the order shown, messages), as
:func:`research.evaluation.ask_all` takes it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict
from scipy.stats import kendalltau

from helpers import answers, prompts, ranking
from research import evaluation

Messages = list[dict[str, str]]

LABELS = ("letters", "numbers", "titles")
"""What an answer may call the candidates by."""

# --- the requests ---------------------------------------------------------------------------------


def rotations(shown: Sequence[int], copies: int) -> list[list[int]]:
    """Return ``copies`` orders of ``shown``, each moved on by the same step; the first is as given.

    With as many copies as items these are the rows of a cyclic Latin square: every item stands once
    in every slot. With fewer, an item's slots lie evenly over the list.

    Raises:
        ValueError: the number of items is not a multiple of ``copies``.
    """
    if copies < 1 or len(shown) % copies:
        raise ValueError(f"{len(shown)} items cannot be rotated in {copies} equal steps.")
    step, items = len(shown) // copies, list(shown)
    return [items[step * copy :] + items[: step * copy] for copy in range(copies)]


def balanced_users(
    slots: Mapping[int, int],
    count: int,
    step: int,
    *,
    first: Collection[int] = (),
    seed: int = 0,
) -> list[int]:
    """Choose users so that, over all copies of their lists, the held-out item covers every slot.

    A rotation by ``step`` takes slot s through s, s + step, and so on, so what counts is s modulo
    ``step``: each remainder gives the same number of users, as far as there are enough. The
    remainders take turns, so that the first users of the result are balanced too.

    Args:
        slots: slot, from 0, of each user's held-out item in the order first shown.
        count: users wanted; fewer come back where there are not enough.
        step: by how many slots a copy is moved on.
        first: users to prefer, such as those who were asked twice anyway.
        seed: decides among equals.
    """
    users = sorted(slots)
    random.Random(seed).shuffle(users)
    users.sort(key=lambda user: user not in first)  # stable: the drawn order stays within each part
    queues = [[user for user in users if slots[user] % step == rest] for rest in range(step)]
    chosen: list[int] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


def stranger(
    user: int,
    histories: Mapping[int, Sequence[int]],
    candidates: Collection[int],
    *,
    at_least: int,
    seed: int = 0,
) -> int:
    """Return another user, drawn by ``seed``, none of whose movies is among the ``candidates``.

    Args:
        histories: each user's last movies, oldest first.
        at_least: movies that the stranger's history must hold.

    Raises:
        LookupError: nobody fits.
    """
    others = [
        other
        for other in sorted(histories)
        if other != user
        and len(histories[other]) >= at_least
        and not set(histories[other]) & set(candidates)
    ]
    if not others:
        raise LookupError(f"No other user's history suits the candidates of user {user}.")
    return random.Random(seed * 1_000_003 + user).choice(others)


class LabelRanking(BaseModel):
    """All candidates by their label, best first."""

    model_config = ConfigDict(extra="forbid")
    ranking: list[str]


def label_prompt(history: pd.DataFrame, movies: pd.DataFrame, kind: str) -> Messages:
    """Return the prompt of :func:`research.evaluation.history_prompt` with other labels.

    Args:
        history: the viewer's last ratings in order (``title, genres, rating``).
        movies: candidates in the order shown (``title, genres``).
        kind: ``numbers`` (1, 2, ...) or ``titles`` (no label: a movie is named by its title);
            ``letters`` gives the prompt of the evaluation itself.
    """
    if kind not in LABELS:
        raise ValueError(f"kind is {kind!r}; it is one of {', '.join(LABELS)}.")
    plain = evaluation.history_prompt(history, ranking.letters(len(movies)), movies)
    if kind == "letters":
        return plain
    # Titles hold no line break, so this mark cannot come from one.
    told, _ = plain[1]["content"].split("\n\nEach line below is: letter", 1)
    lines = [
        f"{prompts.quote(title)} | {prompts.quote(genres.replace('|', ', '))[1:-1]}"
        for title, genres in zip(movies["title"], movies["genres"], strict=True)
    ]
    rules = evaluation.HISTORY_RULES.format(n=len(movies))
    if kind == "numbers":
        lines = [f"{number} | {line}" for number, line in enumerate(lines, 1)]
        columns, rules = "number | title | genres", rules.replace("letter", "number")
    else:
        columns = "title | genres"
        rules = rules.replace("every letter exactly once", "every title exactly once, as written")
    text = f"""\
{told}

Each line below is: {columns}.
<candidates>
{chr(10).join(lines)}
</candidates>

{rules}"""
    return [plain[0], {"role": "user", "content": text}]


def with_sentence(messages: Messages, sentence: str) -> Messages:
    """Return the messages with a ``sentence`` about the viewer as the first line."""
    *rest, last = messages
    return [*rest, {**last, "content": f"{sentence}\n{last['content']}"}]


def with_wish(messages: Messages, wish: str) -> Messages:
    """Return the messages with a ``wish`` of the viewer before the rules of the answer."""
    *rest, last = messages
    told, rules = last["content"].rsplit("\n\nRank all ", 1)
    return [*rest, {**last, "content": f"{told}\n\n{wish}\n\nRank all {rules}"}]


def read_labels(text: str | None, titles: Sequence[str], kind: str) -> ranking.Ranking:
    """Read an answer that names candidates by number or by title; see ``ranking.read_ranking``.

    A title counts as written in the prompt, with or without quotes, in any case; nothing else does.
    """
    n = len(titles)
    if kind == "letters":
        return ranking.read_ranking(text, n, titles=titles)
    answer = answers.read(text, ranking.NamedRanking)
    if answer.value is None:
        return ranking.failed(n, answer.why)
    named = [str(label) for label in answer.value.ranking]
    if kind == "numbers":
        place = {str(number): position for position, number in enumerate(range(1, n + 1))}
        picks = [place.get(label.strip(" .#")) for label in named]
    else:
        spelled = [prompts.quote(title)[1:-1].replace('\\"', '"').casefold() for title in titles]
        # Two candidates of one title cannot be told apart.
        place = {t: position for position, t in enumerate(spelled) if spelled.count(t) == 1}
        picks = [
            place.get(label.strip().strip('"').strip().casefold(), place.get(label.casefold()))
            for label in named
        ]
    return ranking.settle(picks, n, {}, list(range(n)), answer.repairs)


NEUTRAL = "N/A"
"""Stands for a title or genres in a content-free prompt (Zhao et al. 2021)."""


def content_free(
    n: int, history: pd.DataFrame | None = None, *, labels: Sequence[str] | None = None
) -> Messages:
    """Return a prompt whose candidates cannot be told apart but by label and place.

    Args:
        n: number of candidates, and of history lines where ``history`` is not given.
        history: the viewer's last ratings; without it the history says nothing either.
        labels: one for each line (default: A, B, C and so on).
    """
    blank = pd.DataFrame({"title": [NEUTRAL] * n, "genres": [NEUTRAL] * n, "rating": 3.5})
    history = blank if history is None else history
    return evaluation.history_prompt(history, labels or ranking.letters(n), blank)


# --- what a place does ----------------------------------------------------------------------------


def placed(shown: Mapping[int, Sequence[int]], orders: Mapping[int, Sequence[int]]) -> pd.DataFrame:
    """Return where each candidate stood and where it came out: ``userId, movieId, slot, rank``.

    ``slot`` and ``rank`` count from 1. Users without an order are left out.
    """
    rows = []
    for user, order in orders.items():
        rank = {movie: place for place, movie in enumerate(order, 1)}
        rows += [(user, movie, slot, rank[movie]) for slot, movie in enumerate(shown[user], 1)]
    return pd.DataFrame(rows, columns=["userId", "movieId", "slot", "rank"])


def slot_shift(copies: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return by how many ranks a slot lifts or lowers what stands in it, per user and slot.

    Args:
        copies: one table of :func:`placed` per order of the same candidates.

    A candidate's rank is compared with its own mean over the copies, so that good and bad
    candidates cancel. The result has the columns ``userId, slot, shift``; a negative shift is a
    lift. Users who are not in every copy are left out.

    With fewer copies than slots, a slot is compared only with those its candidates also visited:
    for each user the shifts of those slots sum to zero, so that tests by slot depend on each other,
    and a steady slope over all slots comes out slightly too small (by 6 % for 20 slots, 4 copies).
    """
    table = pd.concat(copies, ignore_index=True)
    times = table.groupby(["userId", "movieId"])["rank"].transform("size")
    table = table.loc[times == len(copies)]
    own = table.groupby(["userId", "movieId"])["rank"].transform("mean")
    table = table.assign(shift=table["rank"] - own)
    return table.groupby(["userId", "slot"], as_index=False)["shift"].mean()


# --- remedies -------------------------------------------------------------------------------------


def _same_items(orders: Sequence[Sequence[int]]) -> list[int]:
    items = list(orders[0]) if orders else []
    if not items or any(sorted(order) != sorted(items) for order in orders):
        raise ValueError("Give one or more orders of the same items, each item once.")
    return items


def borda(orders: Sequence[Sequence[int]]) -> list[int]:
    """Return the items by their mean rank over the orders (Borda 1781); ties as in the first order.

    Raises:
        ValueError: the orders do not hold the same items.
    """
    items = _same_items(orders)
    total = dict.fromkeys(items, 0)
    for order in orders:
        for rank, item in enumerate(order):
            total[item] += rank
    return sorted(items, key=lambda item: total[item])  # stable


def reciprocal_rank_fusion(orders: Sequence[Sequence[int]], k: float = 60) -> list[int]:
    """Return the items by the sum of 1 / (k + rank) over the orders (Cormack et al. 2009).

    A small ``k`` lets the first places decide. Ties go as in the first order.

    Raises:
        ValueError: the orders do not hold the same items, or ``k`` is negative.
    """
    items = _same_items(orders)
    if k < 0:
        raise ValueError(f"k is {k}; it must not be negative.")
    total = dict.fromkeys(items, 0.0)
    for order in orders:
        for rank, item in enumerate(order, 1):
            total[item] += 1 / (k + rank)
    return sorted(items, key=lambda item: -round(total[item], 12))


def slot_prior(orders_of_slots: Sequence[Sequence[int]], n: int) -> np.ndarray:
    """Return the mean rank, from 1, of what stands in each slot; shape (n,).

    Args:
        orders_of_slots: rankings as slots, best first, from 0: of content-free prompts, or of many
            users' shuffled candidates, where good and bad ones are spread evenly.
        n: number of slots.

    Raises:
        ValueError: there is no ranking.
    """
    if not orders_of_slots:
        raise ValueError("A prior needs at least one ranking.")
    total = np.zeros(n)
    for order in orders_of_slots:
        total[list(order)] += np.arange(1, n + 1)
    return total / len(orders_of_slots)


def calibrated(
    order: Sequence[int], shown: Sequence[int], prior: np.ndarray, strength: float = 1.0
) -> list[int]:
    """Return ``order`` with the prior of each slot taken out, after Zhao et al. 2021.

    They divide the probability of a label by its probability in a content-free prompt. A ranking
    has no probabilities; on its scale a division is a difference: from an item's rank the mean rank
    of its slot (:func:`slot_prior`) is subtracted, ``strength`` times. Ties stay as they were.
    """
    slot = {item: place for place, item in enumerate(shown)}
    value = {item: rank - strength * prior[slot[item]] for rank, item in enumerate(order, 1)}
    return sorted(order, key=lambda item: round(float(value[item]), 9))


# --- how alike two lists are ----------------------------------------------------------------------


def agreement(
    one: Mapping[int, Sequence[int]], other: Mapping[int, Sequence[int]], k: int = 5
) -> pd.DataFrame:
    """Return Kendall's tau and the overlap of the first ``k`` for each user in both.

    ``tau`` is 1 for equal orders, 0 for unrelated ones; ``overlap`` is the share of the first ``k``
    that both have. Indexed by ``userId``.
    """
    rows = {}
    for user in sorted(set(one) & set(other)):
        items = sorted(one[user])
        ranks = [[list(order[user]).index(item) for item in items] for order in (one, other)]
        common = set(list(one[user])[:k]) & set(list(other[user])[:k])
        rows[user] = (float(kendalltau(*ranks).statistic), len(common) / k)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["tau", "overlap"])
    return table.rename_axis("userId")


# --- popularity -----------------------------------------------------------------------------------


def gini(counts: np.ndarray) -> float:
    """Return the Gini coefficient of how often each item of the catalogue is recommended.

    0 if all are shown equally often, near 1 if one takes all. With counts in rising order,
    G = sum((2i - n - 1) x_i) / (n sum(x)).

    Raises:
        ValueError: nothing was recommended, or a count is negative.
    """
    x = np.sort(np.asarray(counts, dtype=float))
    if x.size == 0 or x[0] < 0 or x.sum() == 0:
        raise ValueError("Counts must not be negative, and at least one must be positive.")
    n = x.size
    return float(((2 * np.arange(1, n + 1) - n - 1) * x).sum() / (n * x.sum()))


def exposure(lists: pd.DataFrame, items: np.ndarray, k: int = 10) -> np.ndarray:
    """Return how many users have each item among their first ``k``; shape (n_items,)."""
    top = lists.loc[lists["rank"] <= k, "movieId"]
    return np.bincount(np.searchsorted(items, top), minlength=len(items))


def popularity_of(lists: pd.DataFrame, counts: Mapping[int, float], k: int = 10) -> pd.Series:
    """Return the mean ``counts`` of each user's first ``k`` movies, indexed by ``userId``."""
    top = lists.loc[lists["rank"] <= k]
    return top["movieId"].map(counts).groupby(top["userId"]).mean()


# --- statements about a person --------------------------------------------------------------------

_AGE = r"(?:teens|twenties|thirties|forties|fifties|sixties|seventies|\d0s)"
_WHO = (  # lower case only: "films such as Man on Fire"
    r"(?-i:wom[ae]n|m[ae]n|female|male|girl|boy|mother|father|mom|dad|parent|teenager|student)"
)
_VIEWER = r"(?:viewer|user|person|fan|lover|buff|audience|moviegoer|cinephile|someone)"
PERSONAL = re.compile(
    r"^\W*(?:name|age|gender|sex|location|nationality|occupation|background|relationship status"
    rf"|age group|demographics?)\W*:"
    rf"|\b{_VIEWER}\b[^.;\n]*\b(?:is|as|be|probably|likely|a|an)\s+(?:an?\s+)?(?:\w+\s+)?{_WHO}\b"
    rf"|\bis an? (?:\w+ )?{_WHO}\b"
    rf"|\b(?:his|her|their) (?:early |mid-?|late )?{_AGE}\b|\b\d+ (?:to \d+ )?years old\b"
    r"|\baged (?:\d|between)|\b(?:raised on|grew up|came of age in|born in)\b"
    r"|\b(?:millennial|baby boomer|gen(?:eration)? [XYZ])\b"
    rf"|\b{_VIEWER}\b[^.;\n]*\b(?:he|she|his|her|him|hers)\b"
    r"|\b(?:husband|wife|married|two children)\b",
    re.IGNORECASE | re.MULTILINE,
)
"""Phrases that say or suggest who the viewer is: a field of a form, a gender, an age, a youth.

Unlike ``prompts.PERSON`` it wants the words to be about the viewer, so that "coming-of-age", "young
wizards" and "violent men" pass. A search by words is no proof: a hint in other words is missed.
"""


def about_the_person(text: str) -> list[str]:
    """Return the phrases of a profile that speak of the viewer as a person (:data:`PERSONAL`).

    What stands in italics or quotation marks, mostly titles, does not count.
    """
    bare = re.sub(r"(?<!\*)\*[^*\n]+\*(?!\*)|[\"“][^\"”\n]+[\"”]", "...", text)
    return [found[0].strip() for found in PERSONAL.finditer(bare)]
