"""Questions about viewers and how they are put to a language model: the data of notebook 11.

Which candidate came next (``rank``), which movie of all (``next``), how many stars (``rate``),
liked or not (``like``), which genre (``genre``). The small model, with a token per title, gets an
:func:`instruction` or a :func:`document` that breaks off; a pretrained one gets :func:`worded`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
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
    about, ``candidates`` are what to choose from, ``truth`` is a title, the stars, or a genre.
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


def instruction(question: Question, titles: Sequence[str] = ()) -> Prompt:
    """Return the small model's prompt; ``titles`` is the whole catalogue, the answers of ``next``.

    Answers are titles, stars, or yes and no.
    """
    answers, truth = _answers(question, titles)
    words, shown = WORDS[question.task], [wrap(title) for title in question.candidates]
    if question.task == "like":
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


SPOKEN = {
    "rank": "Which of these movies did the viewer watch next?\n{choices}\nAnswer with a letter.",
    "like": "Did the viewer like {item}?\nAnswer yes or no.",
    "rate": "How many stars, from one to five, did the viewer give {item}?\nAnswer with a word.",
    "genre": "Which genre is {item}?\n{choices}\nAnswer with a letter.",
}
"""The questions to a pretrained model, by task."""
OPINIONS = ("liked", "not liked")
COUNTS = ("one", "two", "three", "four", "five")
EXPERT = (
    "You are an expert who knows thousands of movies and the people who watch them. Think about "
    "the taste that this viewer's history shows, and then answer.\n\n"
)
USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
WORDINGS = ("plain", "expert", "chat")


def _spoken(question: Question) -> Iterator[str]:
    """Yield the lines of the history; ratings stand in the words of the task's answers."""
    head = "Movies that a viewer watched, oldest first:"
    yield head if question.task == "rank" else head.replace("watched", "watched and rated")
    for title, stars in zip(question.history, question.stars, strict=True):
        words = {"rate": COUNTS[_count(stars)], "like": OPINIONS[float(stars) < LIKED]}
        yield wrap(title) + (f": {words[question.task]}" if question.item else "")


def _count(stars: str) -> int:
    return max(int(float(stars) + 0.5), 1) - 1


def worded(question: Question, wording: str = "plain") -> Prompt:
    """Return the prompt for a pretrained model; each answer is one token.

    The ``wording`` is ``plain``, ``expert`` (a role before it) or ``chat`` (SmolLM2's own marks).
    """
    truth, text = question.truth, SPOKEN[question.task]
    if question.task == "like":
        answers, label = ("yes", "no"), None if truth is None else int(float(truth) < LIKED)
    elif question.task == "rate":
        answers, label = COUNTS, None if truth is None else _count(truth)
    else:
        answers = tuple(ranking.letters(len(question.candidates)))
        label = question.candidates.index(truth) if truth in question.candidates else None
        names = question.candidates if question.task == "genre" else map(wrap, question.candidates)
        lines = (f"{letter}. {name}" for letter, name in zip(answers, names, strict=True))
        text = text.replace("{choices}", "\n".join(lines))
    text = text.replace("{item}", wrap(question.item or ""))
    if question.task != "genre":
        text = "\n".join([*_spoken(question), text])
    if wording == "chat":
        return Prompt(f"{USER}{text}{ASSISTANT}Answer:", answers, label)
    return Prompt((EXPERT if wording == "expert" else "") + text + "\nAnswer:", answers, label)


def beside(question: Question) -> Prompt:
    """Return history and possible answers as a cross-encoder reads them, in pairs."""
    asked = worded(question)
    if question.task == "like":
        answers = tuple(f"{wrap(question.item or '')}: {opinion}" for opinion in OPINIONS)
    else:
        titles = zip(asked.answers, question.candidates, strict=True)
        answers = tuple(f"{letter}. {wrap(title)}" for letter, title in titles)
    return Prompt("\n".join(_spoken(question)), answers, asked.label)


def shown(examples: Sequence[Question]) -> str:
    """Return answered examples as they stand before a question (in-context learning)."""
    asked = [worded(example) for example in examples]
    return "".join(f"{p.text} {p.answers[p.label]}\n\n" for p in asked if p.label is not None)


def short(question: Question, random: np.random.Generator) -> Question:
    """Return the question with the last five of the history and eight candidates.

    The right one and seven others, drawn at random, stay in the retriever's order.
    """
    history, stars = question.history[-5:], question.stars[-5:]
    kept = list(question.candidates)
    if question.task == "rank":
        others = [i for i, title in enumerate(kept) if title != question.truth]
        away = random.permutation(others)[: max(len(kept) - 8, 0)]
        kept = [title for i, title in enumerate(kept) if i not in away]
    return replace(question, history=history, stars=stars, candidates=tuple(kept))


def about_genre(question: Question, course: Course, random: np.random.Generator) -> Question:
    """Return a question about the genre of the movie that came next, with four to choose from."""
    (own,) = [i for i, title in course.titles.items() if title == question.item]
    names = {name for genres in course.genres.values() for name in genres}
    others = random.permutation(sorted(names - set(course.genres[own])))[:3].tolist()
    truth = course.genres[own][0] if course.genres[own] else "no genre"
    four = tuple(random.permutation([truth, *others]).tolist())
    return replace(question, task="genre", history=(), stars=(), candidates=four, truth=truth)


@dataclass(frozen=True)
class Course:
    """All questions on one data set, by task (``validation`` and ``test`` also by user).

    ``early`` is what the base model reads: training histories without their last ``STEPS`` items,
    about which ``train`` asks. Only users whose item was retrieved have a ``rank`` question, with
    candidates in the order of the retriever.
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
        for seen, target in pairs:
            stage = Stage(seen, candidate_lists(seen), target)
            for task, by_user in _questions(stage, rows, titles).items():
                train[task] += by_user.values()
                train_users[task] += by_user.keys()
        whole = pd.concat([protocol.parts.known, protocol.parts.test])
        validation, test = (
            _questions(stage, whole, titles) for stage in (protocol.validation, protocol.test)
        )
        return cls(protocol, titles, genres, early, train, train_users, validation, test)


def _questions(
    stage: Stage, rows: pd.DataFrame, titles: Mapping[int, str]
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
        pool = pools.get(user, [])
        if movie in pool:
            names = tuple(titles[int(item)] for item in pool)
            questions["rank"][user] = replace(base, task="rank", candidates=names)
    return questions
