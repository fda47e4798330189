"""How well a language model does each of the four tasks of notebook 09, with intervals over users.

``rank`` and ``next``: NDCG@10 over all users. ``rate``: root mean squared error in stars, of the
expected number of stars. ``like``: area under the ROC curve. A score is (value, low, high).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.metrics import roc_auc_score

from helpers import metrics
from research import sequential
from research.language_model import LanguageModel, Prompt
from research.questions import LIKED, STARS, TASKS, Course, Form

Score = tuple[float, float, float]
DRAWS = 1000
"""Samples of the users behind the interval of an area under the curve."""


def rank_of(prompts: Sequence[Prompt], answers: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rank, from 1, of each right answer; what ties with it stands before it."""
    pairs = zip(answers, prompts, strict=True)
    return np.array([int((row >= row[prompt.label]).sum()) for row, prompt in pairs])


def ndcg(ranks: np.ndarray, users: int, k: int = 10) -> np.ndarray:
    """Return NDCG@k per user, with zeros for the users who have no rank."""
    gains = np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)
    return np.concatenate([gains, np.zeros(users - len(gains))])


def task_scores(
    model: LanguageModel, course: Course, ask: Form, tasks: Sequence[str] = TASKS
) -> dict[str, Score]:
    """Return each task's score on the test users."""
    prompts = {task: [ask(question) for question in course.test[task].values()] for task in tasks}
    answers = {task: model.scores(prompts[task]) for task in tasks}
    return {task: task_score(task, prompts[task], answers[task], course) for task in tasks}


def task_score(
    task: str, prompts: Sequence[Prompt], answers: Sequence[np.ndarray], course: Course
) -> Score:
    """Return the score of one task from the log-probabilities of the ``prompts``' answers."""
    seen, _, target = course.protocol.test
    if task == "rank":
        return interval(ndcg(rank_of(prompts, answers), len(target)))
    if task == "next":
        table = sequential.unseen(np.array(answers), seen)
        return interval(ndcg(sequential.target_ranks(table, seen, target), len(target)))
    stars = [float(question.truth or "nan") for question in course.test[task].values()]
    if task == "rate":
        return rmse(stars_of(answers), stars)
    if prompts[0].answers == STARS:  # a document: the stars stand for yes and no
        yes = [np.exp(row[STARS.index(f"{LIKED:.1f}") :]).sum() for row in answers]
    else:
        yes = [np.exp(row[0]) for row in answers]
    return auc(yes, np.array(stars) >= LIKED)


def stars_of(answers: Sequence[np.ndarray]) -> np.ndarray:
    """Return the expected number of stars."""
    return np.exp(np.array(answers)) @ np.array([float(stars) for stars in STARS])


def interval(values: np.ndarray) -> Score:
    """Return a mean over users with its 95 % bootstrap interval."""
    at = metrics.bootstrap_interval(values)
    return at.mean, at.low, at.high


def rmse(guess: Sequence[float] | np.ndarray, truth: Sequence[float] | np.ndarray) -> Score:
    """Return the root mean squared error with its interval."""
    value, low, high = np.sqrt(interval((np.array(guess) - np.array(truth)) ** 2))
    return float(value), float(low), float(high)


def auc(score: Sequence[float] | np.ndarray, right: Sequence[bool] | np.ndarray) -> Score:
    """Return the area under the ROC curve with its bootstrap interval over users."""
    score, right = np.array(score), np.array(right)
    picks = np.random.default_rng(0).integers(0, len(score), size=(DRAWS, len(score)))
    both = [pick for pick in picks if 0 < right[pick].sum() < len(pick)]  # else there is no area
    low, high = np.quantile([roc_auc_score(right[p], score[p]) for p in both], [0.025, 0.975])
    return float(roc_auc_score(right, score)), float(low), float(high)
