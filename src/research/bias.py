"""Bias of a ranker, measured: the same question asked in other ways, and what the answers show.

The appendix to 13 asks an LLM about the same user and the same candidates with one thing changed:
their labels, the history, a sentence about the viewer. The first half of this module makes those
prompts from that of notebook 06, the second half measures the answers.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
from pydantic import BaseModel

from helpers import answers, prompts, ranking
from helpers.prompts import Messages
from research import evaluation

_COUNTRIES = (
    "Argentina Australia Brazil Canada Chile China Colombia Denmark Egypt Finland France Germany "
    "Ghana Greece Hungary India Indonesia Iran Ireland Israel Italy Japan Kenya Mexico Morocco "
    "Nigeria Norway Peru Poland Portugal Romania Senegal Spain Sweden Thailand Turkey Ukraine "
    "Uruguay Vietnam Zambia"
)
_JOBS = (
    "accountant actor architect baker barber bricklayer butcher carpenter cashier chemist cleaner "
    "cook dentist driver economist electrician farmer firefighter florist gardener judge "
    "journalist lawyer librarian mechanic midwife miner musician nurse painter pharmacist pilot "
    "plumber professor sailor soldier tailor teacher waiter welder"
)
_PEOPLE = "woman man girl boy mother father sister brother"
_PLACES = ("in a city", "in a village", "by the sea", "in the mountains", "in a suburb")
_AGES = np.linspace(16, 76, 40).round().astype(int)
SENTENCES = {
    "gender": [f"The viewer is a {a} who lives {b}." for b in _PLACES for a in _PEOPLE.split()],
    "age": [
        f"The viewer is {age} years old." for age in np.linspace(16, 76, 40).round().astype(int)
    ],
    "country": [f"The viewer lives in {country}." for country in _COUNTRIES.split()],
    "occupation": [f"Occupation of the viewer: {job}." for job in _JOBS.split()],
}
"""Forty sentences of each kind, of which one is all that an LLM is told about a viewer."""


def stranger(
    user: int,
    histories: Mapping[int, Sequence[int]],
    candidates: Collection[int],
    *,
    at_least: int,
    seed: int = 0,
) -> int:
    """Draw another user with ``at_least`` movies, none of which is among the ``candidates``.

    Raises:
        LookupError: nobody fits.
    """
    others = [
        other
        for other, movies in sorted(histories.items())
        if other != user and len(movies) >= at_least and not {*movies} & {*candidates}
    ]
    if not others:
        raise LookupError(f"No other user's history suits the candidates of user {user}.")
    return random.Random(seed * 1_000_003 + user).choice(others)


class LabelRanking(BaseModel, extra="forbid"):
    """All candidates by their label, best first."""

    ranking: list[str]


def label_prompt(history: pd.DataFrame, movies: pd.DataFrame, kind: str) -> Messages:
    """Return the history prompt of notebook 06 with other labels for the candidates.

    ``kind`` is ``numbers`` (1, 2, ...) or ``titles`` (no label: a movie is named by its title).
    """
    plain = evaluation.history_prompt(history, ranking.letters(len(movies)), movies)
    # Titles hold no line break, so this mark cannot come from one.
    opening, _ = plain[1]["content"].split("\n\nEach line below is: letter", 1)
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
{opening}

Each line below is: {columns}.
<candidates>
{chr(10).join(lines)}
</candidates>

{rules}"""
    return [plain[0], {"role": "user", "content": text}]


def with_sentence(messages: Messages, sentence: str) -> Messages:
    """Return the messages with a ``sentence`` about the viewer as the first line."""
    *before, last = messages
    return [*before, {**last, "content": f"{sentence}\n{last['content']}"}]


def with_wish(messages: Messages, wish: str) -> Messages:
    """Return the messages with a ``wish`` of the viewer before the rules of the answer."""
    *before, last = messages
    question, rules = last["content"].rsplit("\n\nRank all ", 1)
    return [*before, {**last, "content": f"{question}\n\n{wish}\n\nRank all {rules}"}]


def read_labels(text: str | None, titles: Sequence[str], kind: str) -> ranking.Ranking:
    """Read an answer that names candidates by number or by title; see :func:`label_prompt`.

    A title counts as written in the prompt, with or without quotes, in any case; nothing else does.
    """
    n = len(titles)
    answer = answers.read(text, ranking.NamedRanking)
    if answer.value is None:
        return ranking.settle([], {}, range(n), why=answer.why)
    named = [str(label) for label in answer.value.ranking]
    if kind == "numbers":
        place = {str(position + 1): position for position in range(n)}
        picks = [place.get(label.strip(" .#")) for label in named]
    else:
        spelled = [prompts.quote(title)[1:-1].replace('\\"', '"').casefold() for title in titles]
        # Two candidates of one title cannot be told apart.
        place = {t: position for position, t in enumerate(spelled) if spelled.count(t) == 1}
        picks = [
            place.get(label.strip().strip('"').strip().casefold(), place.get(label.casefold()))
            for label in named
        ]
    return ranking.settle(picks, {}, range(n), answer.repairs)


def content_free(
    n: int, history: pd.DataFrame | None = None, *, labels: Sequence[str] | None = None
) -> Messages:
    """Return a prompt whose ``n`` candidates differ by label and place alone (Zhao et al. 2021).

    Without a ``history`` that says nothing either; ``labels`` are A, B, C and so on.
    """
    blank = pd.DataFrame({"title": ["N/A"] * n, "genres": ["N/A"] * n, "rating": 3.5})
    history = blank if history is None else history
    return evaluation.history_prompt(history, labels or ranking.letters(n), blank)


def placed(shown: Mapping[int, Sequence[int]], orders: Mapping[int, Sequence[int]]) -> pd.DataFrame:
    """Return where each candidate stood and where it came out: ``userId, movieId, slot, rank``.

    ``slot`` and ``rank`` count from 1. Users without an order are left out.
    """
    rows = []
    for user, order in orders.items():
        rank = {movie: place for place, movie in enumerate(order, 1)}
        rows += [(user, movie, slot, rank[movie]) for slot, movie in enumerate(shown[user], 1)]
    return pd.DataFrame(rows, columns=["userId", "movieId", "slot", "rank"])


def slot_prior(orders_of_slots: Sequence[Sequence[int]], n: int) -> np.ndarray:
    """Return the mean rank, from 1, of what stands in each of ``n`` slots; shape (n,).

    Each of ``orders_of_slots`` is a ranking as slots, best first, from 0.
    """
    total = np.zeros(n)
    for order in orders_of_slots:
        total[list(order)] += np.arange(1, n + 1)
    return total / len(orders_of_slots)


def gini(counts: np.ndarray) -> float:
    """Return the Gini coefficient of how often each item of the catalogue is recommended.

    0 if all are shown equally often, near 1 if one takes all. With counts in rising order,
    G = sum((2i - n - 1) x_i) / (n sum(x)).
    """
    x = np.sort(np.asarray(counts, dtype=float))
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

The words must be about the viewer: "coming-of-age" and "violent men" pass. A search by words is no
proof: a hint in other words is missed.
"""


def about_the_person(text: str) -> list[str]:
    """Return the phrases of a profile that speak of the viewer as a person (:data:`PERSONAL`).

    What stands in italics or quotation marks, mostly titles, does not count.
    """
    bare = re.sub(r"(?<!\*)\*[^*\n]+\*(?!\*)|[\"“][^\"”\n]+[\"”]", "...", text)
    return [match[0].strip() for match in PERSONAL.finditer(bare)]
