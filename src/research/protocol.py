"""The protocol of notebooks 07 and later: a 5-core, leave-one-out, and lists of candidates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd

from research import sequential, splits
from research.sequential import Interactions

CANDIDATES = 20
RETRIEVER = sequential.CHOSEN["release"].transitions
"""The transition counts that notebook 06 found best on validation."""


class Stage(NamedTuple):
    """What is known, the retriever's lists of candidates from it, and what came next."""

    seen: Interactions
    lists: pd.DataFrame
    target: pd.DataFrame


@dataclass(frozen=True)
class Protocol:
    """The leave-one-out protocol of notebook 06 on one catalogue.

    ``seen`` is the training part and ``known`` also holds the validation items; both number the
    same ``items``, the sorted movieIds of the core.
    """

    parts: splits.LeaveOneOut
    seen: Interactions
    known: Interactions

    @classmethod
    def of(cls, ratings: pd.DataFrame, k: int = 5) -> Protocol:
        """Take the ``k``-core of ``ratings`` and set each user's last two items apart."""
        rows = splits.core(ratings, k)
        parts, items = splits.leave_one_out(rows), np.unique(rows["movieId"])
        return cls(parts, Interactions.of(parts.train, items), Interactions.of(parts.known, items))

    @property
    def items(self) -> np.ndarray:
        """The catalogue, shape (n_items,)."""
        return self.known.items

    @cached_property
    def validation(self) -> Stage:
        """Candidates for the validation items."""
        return Stage(self.seen, candidate_lists(self.seen), self.parts.validation)

    @cached_property
    def test(self) -> Stage:
        """Candidates for the test items."""
        return Stage(self.known, candidate_lists(self.known), self.parts.test)


def candidate_lists(seen: Interactions, n: int = CANDIDATES) -> pd.DataFrame:
    """Return each user's ``n`` best unseen items by :data:`RETRIEVER`, as ``top_lists`` does."""
    scores = sequential.unseen(sequential.transitions(seen, RETRIEVER), seen)
    return sequential.top_lists(scores, seen, n)
