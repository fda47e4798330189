"""Questions about viewers and how they are put to a language model: the data of notebook 09.

Four tasks: which candidate came next (``rank``), which movie of all (``next``), how many stars
(``rate``), liked or not (``like``). Each is asked with an instruction, as a document that breaks
off, with examples before it, or without words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from helpers import data, prompts, ranking
from research import sequential
from research.language_model import Prompt
from research.protocol import Protocol, Stage, candidate_lists

TASKS = ("rank", "next", "rate", "like")
HISTORY = 20
"""Movies of the history in a prompt, as in notebook 07."""
LIKED = 4.0
"""Stars from which on a movie counts as liked."""
STARS = tuple(f"{half / 2:.1f}" for half in range(1, 11))
STEPS = 20
"""The last items of each training history that the base model never reads: adaptation data."""


@dataclass(frozen=True)
class Question:
    """One question about one user: what a prompt is made of, and the answer where it is known.

    ``history`` holds titles, oldest first, and ``stars`` their ratings. ``item`` is the movie asked
    about (``rate``, ``like``), ``candidates`` are titles to choose from (``rank``), ``truth`` is a
    title (``rank``, ``next``) or the stars (``rate``, ``like``).
    """

    task: str
    history: tuple[str, ...]
    stars: tuple[str, ...]
    truth: str | None = None
    item: str | None = None
    candidates: tuple[str, ...] = ()


WORDS = {
    "rank": "Which one of these movies came next ? {candidates} Answer with a title :",
    "next": "Which movie came next ? Answer with a title :",
    "rate": "How many stars does this viewer give {item} ? Answer with a number :",
    "like": "Does this viewer like {item} ? Answer yes or no :",
}
LETTERS = "Which one of these movies came next ? {candidates} Answer with a letter :"
WATCHED, RATED = "Watched :", "Watched and rated :"


def wrap(title: str) -> str:
    """Return a title as it stands in a prompt; nothing in it can end the quotation."""
    return prompts.quote(title)


def _history(question: Question) -> str:
    titles = [wrap(title) for title in question.history]
    if question.task in ("rank", "next"):
        return " ".join([WATCHED, *titles])
    pairs = (f"{a} {b}" for a, b in zip(titles, question.stars, strict=True))
    return " ".join([RATED, *pairs])


def _answers(question: Question, titles: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Return the answers to compare and the right one; without words, like is asked in stars."""
    if question.task in ("rate", "like"):
        return STARS, question.truth
    truth = None if question.truth is None else wrap(question.truth)
    names = titles if question.task == "next" else map(wrap, question.candidates)
    return tuple(names), truth


def instruction(question: Question, titles: Sequence[str] = (), *, letters: bool = False) -> Prompt:
    """Return the prompt with an instruction.

    ``titles`` is the whole catalogue, the answers of ``next``. With ``letters`` candidates are
    answered by letter (notebook 07), for models to which a title is many tokens.
    """
    answers, truth = _answers(question, titles)
    words, shown = WORDS[question.task], [wrap(title) for title in question.candidates]
    if question.task == "rank" and letters:
        names = ranking.letters(len(shown))
        shown = [f"({a}) {b}" for a, b in zip(names, shown, strict=True)]
        truth = names[answers.index(truth)] if truth in answers else None
        answers, words = tuple(names), LETTERS
    elif question.task == "like":
        answers = ("yes", "no")
        truth = None if question.truth is None else answers[float(question.truth) < LIKED]
    item = "" if question.item is None else wrap(question.item)
    text = words.replace("{candidates}", " ".join(shown)).replace("{item}", item)
    label = answers.index(truth) if truth in answers else None
    return Prompt(f"{_history(question)} {text}", answers, label)


def document(question: Question, titles: Sequence[str] = ()) -> Prompt:
    """Return the prompt as a document that breaks off where the answer would stand.

    Candidates are not shown, only compared; ``like`` compares the stars, as ``rate`` does.
    """
    answers, truth = _answers(question, titles)
    text = _history(question) + ("" if question.item is None else " " + wrap(question.item))
    return Prompt(text, answers, answers.index(truth) if truth in answers else None)


def with_examples(question: Question, examples: Sequence[Question], **options: Any) -> Prompt:
    """Return the instruction prompt with answered ``examples`` before it (in-context learning)."""
    prompt = instruction(question, **options)
    shown = [instruction(example, **options) for example in examples]
    parts = [f"{each.text} {each.answers[each.label]}" for each in shown if each.label is not None]
    return replace(prompt, text=" ".join([*parts, prompt.text]))


def bare(question: Question, titles: Sequence[str] = ()) -> Prompt:
    """Return the instruction prompt without its words: history, then candidates or the movie.

    What POD (Li et al. 2023) leaves of a prompt. ``rate`` and ``like`` have the same text.
    """
    whole = instruction(question, titles)
    shown = [wrap(title) for title in question.candidates]
    shown += [wrap(question.item)] if question.item else []
    return replace(whole, text=" ".join([_history(question), *shown]))


Form = Callable[[Question], Prompt]


def forms(course: Course, letters: bool = False) -> tuple[Form, Form]:
    """Return the two ways to ask: with an instruction, and as a document."""
    titles = course.catalogue
    return lambda q: instruction(q, titles, letters=letters), lambda q: document(q, titles)


@dataclass(frozen=True)
class Course:
    """All questions on one data set, by task (``validation`` and ``test`` also by user).

    ``early`` is what the base model reads: training histories without their last ``STEPS`` items,
    about which ``train`` asks. Only users whose item was retrieved have a ``rank`` question.
    """

    protocol: Protocol
    titles: dict[int, str]
    genres: dict[int, tuple[str, ...]]
    early: pd.DataFrame
    train: dict[str, list[Question]]
    train_users: dict[str, list[int]]
    validation: dict[str, dict[int, Question]]
    test: dict[str, dict[int, Question]]

    @property
    def catalogue(self) -> tuple[str, ...]:
        """All titles as they stand in prompts, in the order of the protocol's items."""
        return tuple(wrap(self.titles[int(item)]) for item in self.protocol.items)

    @classmethod
    def of(cls, dataset: data.Dataset, steps: int = STEPS) -> Course:
        """Prepare a data set; titles that two movies share get their movieId."""
        protocol = Protocol.of(data.load_pandas(dataset, "ratings"))
        movies = data.load_pandas(dataset, "movies").set_index("movieId").loc[protocol.items]
        twice = movies["title"].duplicated(keep=False)
        names = movies["title"].mask(twice, movies["title"] + " [" + movies.index.astype(str) + "]")
        titles = {item: str(name) for item, name in zip(names.index.tolist(), names, strict=True)}
        genres = {
            item: () if text.startswith("(") else tuple(text.split("|"))
            for item, text in zip(movies.index.tolist(), movies["genres"], strict=True)
        }
        rows = protocol.parts.train
        early = rows.loc[rows.groupby("userId").cumcount(ascending=False) >= steps]
        train: dict[str, list[Question]] = {task: [] for task in TASKS}
        train_users: dict[str, list[int]] = {task: [] for task in TASKS}
        pairs = sequential.steps_back(rows, protocol.items, steps)
        for step, (seen, target) in enumerate(pairs, 1):
            stage = Stage(seen, candidate_lists(seen), target)
            for task, by_user in _questions(stage, rows, titles, seed=100_003 * step).items():
                train[task] += by_user.values()
                train_users[task] += by_user.keys()
        whole = pd.concat([protocol.parts.known, protocol.parts.test])
        validation, test = (
            _questions(stage, whole, titles) for stage in (protocol.validation, protocol.test)
        )
        return cls(protocol, titles, genres, early, train, train_users, validation, test)


def _questions(
    stage: Stage, rows: pd.DataFrame, titles: Mapping[int, str], seed: int = 0
) -> dict[str, dict[int, Question]]:
    """Return each task's questions by user; ``rows`` is where ratings are looked up."""
    seen, lists, target = stage
    columns = (rows["userId"], rows["movieId"], rows["rating"])
    stars = {(u, m): f"{max(r, 0.5):.1f}" for u, m, r in zip(*columns, strict=True)}
    watched = dict(zip(seen.users.tolist(), seen.histories(), strict=True))
    pools = {user: ids.tolist() for user, ids in lists.groupby("userId")["movieId"]}
    questions: dict[str, dict[int, Question]] = {task: {} for task in TASKS}
    for user, movie in zip(target["userId"].tolist(), target["movieId"].tolist(), strict=True):
        last = seen.items[watched[user][-HISTORY:]].tolist()
        names = tuple(titles[item] for item in last)
        base = Question("next", names, tuple(stars[user, item] for item in last), titles[movie])
        questions["next"][user] = base
        rated = replace(base, item=titles[movie], truth=stars[user, movie])
        for task in ("rate", "like"):
            questions[task][user] = replace(rated, task=task)
        pool = prompts.shuffled(pools.get(user, []), seed + user)
        if movie in pool:
            names = tuple(titles[int(item)] for item in pool)
            questions["rank"][user] = replace(base, task="rank", candidates=names)
    return questions
