"""Next-item retrievers made of counting and one matrix inverse, under the leave-one-out protocol.

Each function turns :class:`Interactions` into a score matrix of shape (n_users, n_items), and
:func:`top_lists` turns that into lists: the strong simple rows beside ALS and the LLM. References:
Sarwar et al. 2001 (item neighbours); Steck 2019 (EASE); Garg et al. 2019 (recency in session
neighbours); Ferrari Dacrema et al. 2019 (why published methods need simple ones beside them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from tqdm.auto import tqdm

from helpers.als import Factors


@dataclass(frozen=True)
class Interactions:
    """Who interacted with what, in order, as arrays of positions.

    ``users`` and ``items`` are sorted ids; ``row`` and ``column``, of shape (n_interactions,),
    point into them, sorted by user and then by time. ``age`` counts the same user's later ones.
    """

    users: np.ndarray
    items: np.ndarray
    row: np.ndarray
    column: np.ndarray
    age: np.ndarray

    @classmethod
    def of(cls, ordered: pd.DataFrame, items: np.ndarray | None = None) -> Interactions:
        """Index a table with ``userId`` and ``movieId`` whose rows stand in order of time.

        ``items`` is the catalogue (default: the items that occur), for tables that share one.

        Raises:
            ValueError: the table is empty, or holds an item that is not in ``items``.
        """
        if ordered.empty:
            raise ValueError("There is no interaction.")
        table = ordered.sort_values("userId", kind="stable")
        users, row = np.unique(table["userId"].to_numpy(), return_inverse=True)
        items = np.unique(table["movieId"].to_numpy() if items is None else items)
        column = pd.Index(items).get_indexer(pd.Index(table["movieId"]))
        if (column < 0).any():
            raise ValueError("An interaction's movieId is not in the catalogue given.")
        age = np.bincount(row).cumsum()[row] - 1 - np.arange(len(row))
        return cls(users, items, row, column, age)

    @cached_property
    def counts(self) -> np.ndarray:
        """Interactions per item, shape (n_items,)."""
        return np.bincount(self.column, minlength=len(self.items)).astype(float)

    def histories(self) -> list[np.ndarray]:
        """Return each user's positions in ``items``, in order of time."""
        return np.split(self.column, np.bincount(self.row).cumsum()[:-1])

    def matrix(self, weights: np.ndarray | None = None) -> sparse.csr_array:
        """Return the (n_users, n_items) matrix with ``weights`` (default 1) per interaction."""
        values = np.ones(len(self.row)) if weights is None else weights
        shape = (len(self.users), len(self.items))
        return sparse.csr_array((values, (self.row, self.column)), shape=shape)

    def recent(self, decay: float, last: int | None = None) -> sparse.csr_array:
        """Return the matrix with weight ``decay ** age``, limited to each user's ``last`` items."""
        weights = np.power(float(decay), self.age)
        return self.matrix(weights if last is None else weights * (self.age < last))


def popularity(seen: Interactions) -> np.ndarray:
    """Score every item by its number of interactions, the same for all users."""
    return np.tile(seen.counts, (len(seen.users), 1))


def factor_scores(factors: Factors, seen: Interactions, min_support: int = 0) -> np.ndarray:
    """Score by ALS factors; minus infinity without them or below ``min_support`` interactions."""
    table = pd.DataFrame(
        factors.user_factors @ factors.movie_factors.T, factors.users, factors.movies
    )
    table = table.reindex(index=seen.users, columns=seen.items, fill_value=-np.inf)
    scores = table.to_numpy(copy=True)
    scores[:, seen.counts < min_support] = -np.inf
    return scores


def item_knn(seen: Interactions, *, neighbours: int = 100, shrinkage: float = 50.0) -> np.ndarray:
    """Score by the cosine between items, damped by ``shrinkage``, over the nearest neighbours.

    cos(i, j) = n_ij / (sqrt(n_i n_j) + shrinkage); an item keeps its ``neighbours`` largest.
    """
    x = seen.matrix()
    similarity = (x.T @ x).toarray()
    similarity /= np.sqrt(np.outer(seen.counts, seen.counts)) + shrinkage
    np.fill_diagonal(similarity, 0)
    if neighbours < len(seen.items):
        edge = np.partition(similarity, -neighbours, axis=1)[:, -neighbours]
        similarity[similarity < edge[:, None]] = 0
    return x @ similarity.T


def ease_weights(seen: Interactions, reg: float = 300.0) -> np.ndarray:
    """Return EASE's item-item weights B, shape (n_items, n_items), with zeros on the diagonal.

    B = -P / diag(P) with P = (X'X + reg I)^-1 (Steck 2019, equation 8), X binary. With fewer users
    than items P = (I - X'(XX' + reg I)^-1 X) / reg, from the smaller matrix (Woodbury 1950).
    """
    x = seen.matrix()
    if len(seen.users) < len(seen.items):
        inner = np.linalg.solve((x @ x.T).toarray() + reg * np.eye(len(seen.users)), x.toarray())
        inverse = (x.T @ inner) / -reg
        inverse[np.diag_indices_from(inverse)] += 1 / reg
    else:
        inverse = np.linalg.inv((x.T @ x).toarray() + reg * np.eye(len(seen.items)))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def ease(
    seen: Interactions, *, reg: float = 300.0, decay: float = 1.0, weights: np.ndarray | None = None
) -> np.ndarray:
    """Score by EASE; with ``decay`` below 1 an interaction of age a counts ``decay ** a``.

    ``weights`` from :func:`ease_weights` saves the inverse when only ``decay`` changes.
    """
    return seen.recent(decay) @ (ease_weights(seen, reg) if weights is None else weights)


@dataclass(frozen=True)
class Transitions:
    """Settings of the transition counts.

    A pair of interactions of one user ``d`` places apart, ``d`` up to ``window``, adds
    ``gap_decay ** (d - 1)`` to the count from the earlier item to the later one and ``backward``
    times that to the opposite count. A count towards an item is divided by its number of
    interactions to the power ``popularity``. A user's score sums the counts from the ``last``
    items, weighted ``age_decay ** age``.
    """

    window: int = 10
    gap_decay: float = 0.8
    backward: float = 0.5
    popularity: float = 0.4
    last: int = 10
    age_decay: float = 0.8


def transition_counts(seen: Interactions, how: Transitions) -> sparse.csr_array:
    """Return the normalised counts, shape (n_items, n_items), from row item to column item."""
    size, parts = len(seen.items), []
    for gap in range(1, how.window + 1):
        same = seen.row[gap:] == seen.row[:-gap]
        source, target = seen.column[:-gap][same], seen.column[gap:][same]
        parts.append((source, target, np.full(len(source), how.gap_decay ** (gap - 1))))
    source, target, weight = (np.concatenate(column) for column in zip(*parts, strict=True))
    forward = sparse.csr_array((weight, (source, target)), shape=(size, size))
    total = forward + how.backward * forward.T
    scale = np.power(np.maximum(seen.counts, 1), -how.popularity)
    return sparse.csr_array(total @ sparse.diags_array(scale))


def transitions(seen: Interactions, how: Transitions | None = None) -> np.ndarray:
    """Score by transition counts from each user's last items; see :class:`Transitions`."""
    how = how or Transitions()
    scores = seen.recent(how.age_decay, how.last) @ transition_counts(seen, how)
    return sparse.csr_array(scores).toarray()


def transitions_so_far(
    seen: Interactions, times: np.ndarray, moments: np.ndarray, how: Transitions
) -> np.ndarray:
    """Score as :func:`transitions`, from what all users had rated before each user's own moment.

    ``times`` of shape (n_interactions,) belong to the interactions, ``moments`` of shape (n_users,)
    to the users. A pair is known when the later of its two interactions is.
    """
    columns, size = [], len(seen.items)
    for gap in range(1, how.window + 1):
        same = seen.row[gap:] == seen.row[:-gap]
        source, target, time = seen.column[:-gap][same], seen.column[gap:][same], times[gap:][same]
        weight = np.full(len(source), how.gap_decay ** (gap - 1))
        columns += [(source, target, weight, time), (target, source, how.backward * weight, time)]
    source, target, weight, time = (np.concatenate(part) for part in zip(*columns, strict=True))
    order = np.argsort(source, kind="stable")
    start = np.searchsorted(source[order], np.arange(size + 1))
    scores = np.zeros((len(seen.users), size))
    for row, (moment, history) in enumerate(zip(moments, seen.histories(), strict=True)):
        for age, item in enumerate(history[::-1][: how.last]):
            pairs = order[start[item] : start[item + 1]]
            pairs = pairs[time[pairs] < moment]
            found = np.bincount(target[pairs], weight[pairs], minlength=size)
            scores[row] += how.age_decay**age * found
        counts = np.bincount(seen.column[times < moment], minlength=size)
        scores[row] *= np.maximum(counts, 1.0) ** -how.popularity
    return scores


def blend_scores(parts: Sequence[tuple[float, np.ndarray]], floor: float = 0.01) -> np.ndarray:
    """Return the logarithm of the weighted geometric mean of score matrices.

    Each user's row is divided by its highest score; mask what was seen beforehand (:func:`unseen`).
    ``floor`` is added before the logarithm, so that an item that one part does not know is damped,
    not ruled out. Scores below zero count as zero.
    """
    total = np.zeros(parts[0][1].shape)
    for weight, scores in parts:
        positive = np.maximum(scores, 0)
        top = positive.max(axis=1, keepdims=True)
        total += weight * np.log(positive / np.where(top > 0, top, 1) + floor)
    return total


@dataclass(frozen=True)
class Chosen:
    """Settings of the retrievers of notebook 06, as its appendix chooses them on the real release.

    ``explicit`` and ``implicit`` are what :func:`helpers.als.make_als` takes.
    """

    explicit: Mapping[str, Any]
    min_support: int
    implicit: Mapping[str, Any]
    neighbours: int
    shrinkage: float
    ease_reg: float
    ease_decay: float
    transitions: Transitions
    blend_transitions: Transitions
    blend_reg: float = 200.0
    blend_decay: float = 0.95
    blend_weight: float = 0.7


CHOSEN = {
    "release": Chosen(
        {"rank": 10, "reg": 0.1}, 100, {"rank": 64, "reg": 0.2, "implicit": True, "alpha": 1.0},
        10, 0.0, 100.0, 0.9,
        Transitions(30, 0.95, 0.5, 0.5, 10, 0.7), Transitions(30, 0.95, 0.5, 0.7, 10, 0.6),
    ),
    "sample": Chosen(
        {"rank": 6, "reg": 0.1}, 50, {"rank": 16, "reg": 0.2, "implicit": True, "alpha": 0.3},
        50, 0.0, 200.0, 0.98,
        Transitions(30, 0.95, 0.5, 0.4, 10, 0.8), Transitions(30, 0.95, 0.5, 0.4, 10, 0.8),
    ),
}  # fmt: skip
"""The lists that the recorded replies rest on come from these settings."""


def nine_lists(
    seen: Interactions, chosen: Chosen, explicit: Factors, implicit: Factors, n: int = 20
) -> tuple[dict[str, pd.DataFrame], np.ndarray]:
    """Return the lists of nine retrievers, ``n`` movies a user, and the transition scores."""
    weights = ease_weights(seen, chosen.ease_reg)
    counted = transitions(seen, chosen.transitions)
    follow = unseen(transitions(seen, chosen.blend_transitions), seen)
    knn = {"neighbours": chosen.neighbours, "shrinkage": chosen.shrinkage}
    recent = unseen(ease(seen, reg=chosen.blend_reg, decay=chosen.blend_decay), seen)
    scores = {
        "explicit ALS": lambda: factor_scores(explicit, seen),
        "explicit ALS, support": lambda: factor_scores(explicit, seen, chosen.min_support),
        "popularity": lambda: popularity(seen),
        "implicit ALS": lambda: factor_scores(implicit, seen),
        "ItemKNN": lambda: item_knn(seen, **knn),
        "EASE": lambda: ease(seen, weights=weights),
        "EASE, recent": lambda: ease(seen, decay=chosen.ease_decay, weights=weights),
        "transitions": lambda: counted,
        "blend": lambda: blend_scores([(1, follow), (chosen.blend_weight, recent)]),
    }  # one after the other: each is 18 MB on the real release
    return {name: top_lists(score(), seen, n) for name, score in scores.items()}, counted


def unseen(scores: np.ndarray, seen: Interactions) -> np.ndarray:
    """Return a copy of ``scores`` with minus infinity for what each user has seen."""
    scores = np.array(scores, dtype=float)
    scores[seen.row, seen.column] = -np.inf
    return scores


def steps_back(
    known: pd.DataFrame, items: np.ndarray, steps: int = 3
) -> list[tuple[Interactions, pd.DataFrame]]:
    """Return what was seen and what came next, 1 to ``steps`` items before the end of ``known``.

    Each is a validation set of its own. A user with too short a history is left out of a step.
    """
    later = known.groupby("userId").cumcount(ascending=False)
    earlier = known.groupby("userId").cumcount()
    pairs = []
    for step in range(steps):
        target = known.loc[(later == step) & (earlier > 0)]
        seen = known.loc[(later > step) & known["userId"].isin(target["userId"])]
        pairs.append((Interactions.of(seen, items), target))
    return pairs


def coordinate_search(
    score: Callable[[Any], float],
    start: Any,
    choices: Mapping[str, Sequence[Any]],
    rounds: int = 2,
    progress: str | None = None,
) -> tuple[Any, pd.DataFrame]:
    """Improve one field of a data class at a time, until a round changes nothing.

    Returns the best settings and a table of all that was tried: a column per field and ``score``.
    Only a strictly higher score moves a field. ``progress`` names a bar.
    """
    tried = {start: score(start)}  # a frozen data class can be a key
    best = start
    with tqdm(desc=progress, unit="setting", disable=progress is None) as bar:
        for _ in range(rounds):
            before = best
            for name, values in choices.items():
                for value in values:
                    new = replace(best, **{name: value})
                    if new not in tried:
                        tried[new] = score(new)
                        bar.update()
                        best = new if tried[new] > tried[best] else best
            if best == before:
                break
    return best, pd.DataFrame([{**asdict(how), "score": value} for how, value in tried.items()])


def _in_units(scores: np.ndarray, seen: Interactions) -> tuple[np.ndarray, np.ndarray]:
    """Mask what was seen and round to nine significant digits of each user's highest score.

    The last bits of a sum, which differ between machines, then decide nothing.
    """
    scores = unseen(scores, seen)
    top = np.max(np.abs(scores), axis=1, where=np.isfinite(scores), initial=0.0, keepdims=True)
    unit = np.where(top > 0, top, 1) * 1e-9
    return np.round(scores / unit), unit


def target_ranks(scores: np.ndarray, seen: Interactions, targets: pd.DataFrame) -> np.ndarray:
    """Return the rank, from 1, of each row of ``targets`` (``userId, movieId``) among unseen items.

    The rank that :func:`top_lists` would give; infinite where the score is minus infinity.

    Raises:
        ValueError: a target's user or item is unknown.
    """
    rounded, _ = _in_units(scores, seen)
    row = pd.Index(seen.users).get_indexer(pd.Index(targets["userId"]))
    column = pd.Index(seen.items).get_indexer(pd.Index(targets["movieId"]))
    if (row < 0).any() or (column < 0).any():
        raise ValueError("A target's userId or movieId is not among the interactions'.")
    rows, own = rounded[row], rounded[row, column][:, None]
    earlier = np.arange(len(seen.items)) < column[:, None]
    ahead = (rows > own).sum(axis=1) + ((rows == own) & earlier).sum(axis=1)
    return np.where(np.isfinite(own[:, 0]), 1.0 + ahead, np.inf)


def top_lists(scores: np.ndarray, seen: Interactions, n: int = 20) -> pd.DataFrame:
    """Return each user's ``n`` best items without those in ``seen``, best first.

    Columns ``userId, rank, movieId, score``. Scores are compared at nine significant digits and
    ties go to the lower movieId. A score of minus infinity is never listed.
    """
    scores, unit = _in_units(scores, seen)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :n]
    best = np.take_along_axis(scores, order, axis=1)
    user, place = np.nonzero(np.isfinite(best))
    return pd.DataFrame(
        {
            "userId": seen.users[user],
            "rank": place + 1,
            "movieId": seen.items[order[user, place]],
            "score": best[user, place] * unit[user, 0],
        }
    )
