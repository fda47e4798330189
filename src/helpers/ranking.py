"""From an LLM's answer to an order of the candidates, whatever the answer says.

An unknown candidate is dropped, a repeated one counts once, a missing one is appended in the
retriever's order, and each repair is counted: any text gives a permutation of the candidates.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from helpers import answers


class RankedItem(BaseModel):
    """One candidate in the ranking."""

    model_config = ConfigDict(extra="forbid")
    letter: str = Field(description="the candidate's letter")
    reason: str = Field(description="why it stands here, at most 20 words")


class RankingReply(BaseModel):
    """The answer that the ranking prompt asks for."""

    model_config = ConfigDict(extra="forbid")
    ranking: list[RankedItem]


class LetterRanking(BaseModel):
    """The answer that the evaluation's prompt asks for: letters alone, which cost least."""

    model_config = ConfigDict(extra="forbid")
    ranking: list[str]


class NamedRanking(BaseModel):
    """A ranking in whatever form the candidates are named: text, a number, an object."""

    ranking: list[Any]


USABLE_SHARE = 0.5
"""The share of the candidates that an answer must name; below it the order is not the LLM's."""

READ = ("ok", "truncated", "unreadable")
"""Kinds of :class:`helpers.llm.Outcome` whose text may still hold a ranking."""


@dataclass(frozen=True)
class Repairs:
    """How often the answer had to be corrected; ``damage`` is that of its JSON."""

    unknown: int = 0
    repeated: int = 0
    missing: int = 0
    damage: int = 0

    @property
    def total(self) -> int:
        """All corrections together."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Ranking:
    """A permutation of the candidates: positions, best first, and the LLM's reason for each.

    Where nothing usable was said, ``failed`` is true and the order is the retriever's.
    """

    order: list[int]
    reasons: dict[int, str] = field(default_factory=dict)
    repairs: Repairs = Repairs()
    failed: bool = False
    why: str = ""


def letters(n: int) -> list[str]:
    """Return ``n`` labels, at most 702: A to Z, then AA, AB and so on."""
    return [*ascii_uppercase, *map("".join, itertools.product(ascii_uppercase, repeat=2))][:n]


def settle(
    picks: Sequence[int | None],
    n: int,
    reasons: dict[int, str],
    fallback: Sequence[int],
    damage: int = 0,
) -> Ranking:
    """Turn named positions (``None``: unknown) into a ranking, as notebook 05 writes out."""
    known = [pick for pick in picks if pick is not None and 0 <= pick < n]
    order = list(dict.fromkeys(known))
    left = [position for position in fallback if position not in set(order)]
    repairs = Repairs(len(picks) - len(known), len(known) - len(order), len(left), damage)
    if len(order) < USABLE_SHARE * n:
        why = f"the answer names {len(order)} of {n} candidates"
        return Ranking(list(fallback), {}, repairs, True, why)
    return Ranking(order + left, reasons, repairs)


def failed(n: int, why: str, fallback: Sequence[int] | None = None) -> Ranking:
    """Return the ranking that stands in for an answer that never came."""
    order = list(range(n)) if fallback is None else list(fallback)
    return Ranking(order, {}, Repairs(missing=n), True, why)


def read_ranking(
    text: str | None,
    n: int,
    fallback: Sequence[int] | None = None,
    titles: Sequence[str] | None = None,
) -> Ranking:
    """Read an answer that names ``n`` candidates by letter, or by title where ``titles`` are given.

    ``fallback`` is the retriever's order of the positions (default: 0, 1, 2, ...). A letter with
    the title of another candidate is unknown.
    """
    back = list(range(n)) if fallback is None else list(fallback)
    if sorted(back) != list(range(n)):
        raise ValueError("fallback must be a permutation of the candidates' positions.")
    answer = answers.read(text, NamedRanking)
    if answer.value is None:
        return failed(n, answer.why, back)
    titled = _titled(titles or ())
    picks, reasons = [], {}
    for item in answer.value.ranking:
        item = item if isinstance(item, dict) else {"letter": item}
        fields = {str(key).lower(): str(value) for key, value in item.items()}
        named = [fields[name] for name in _NAMES if name in fields]
        pick = _pick(": ".join(named), n, titled)
        picks.append(pick)
        if pick is not None and fields.get("reason"):
            reasons.setdefault(pick, " ".join(fields["reason"].split())[:300])
    return settle(picks, n, reasons, back, answer.repairs)


_NAMES = ("letter", "label", "candidate", "title", "movie")
_LETTER = re.compile(
    r"(?:candidate |letter |movie )?[(\[]?([a-z]{1,2})[)\].]?(?:(?: ?[:|]| -) ?(.*))?"
)


def _pick(name: str, n: int, titled: Mapping[str, set[int]]) -> int | None:
    """Return the position of "C", "C: Title" or "Title"; ``None`` if unknown or ambiguous."""
    name, labels = _plain(name[:400]), letters(n)
    match = _LETTER.fullmatch(name)
    if match is None or match[1].upper() not in labels:
        places = titled.get(name, set())
        return min(places) if len(places) == 1 else None
    pick = labels.index(match[1].upper())
    return pick if pick in titled.get(match[2] or "", {pick}) else None


def _plain(text: str) -> str:
    """Return text without case and marks, as titles and letters are compared."""
    text = re.sub(r"[*_`\"“”\\]", "", text.translate({0x2039: "<", 0x203A: ">"}))
    return " ".join(text.split()).strip("' ").casefold()


def _titled(titles: Sequence[str]) -> dict[str, set[int]]:
    """Return the positions of each title: as written, without its year, its article in front."""
    places: dict[str, set[int]] = {}
    for position, title in enumerate(titles):
        bare = re.sub(r"\s*\(\d{4}[^)]*\)\s*$", "", title)
        for name in (bare, re.sub(r"^(.*), (The|A|An)\b", r"\2 \1", bare)):
            for full in (name, name + title[len(bare) :]):
                places.setdefault(_plain(full), set()).add(position)
    return places


def blend(retriever: Sequence[int], llm: Sequence[int], weight: float) -> list[int]:
    """Mix two orders of the same items by their mean rank (Borda 1781).

    ``weight`` 0 gives the retriever's order, 1 the LLM's; ties go to the retriever.

    Raises:
        ValueError: the two do not hold the same items, or ``weight`` is outside 0 to 1.
    """
    if sorted(retriever) != sorted(llm) or len(set(retriever)) != len(retriever):
        raise ValueError("Both orders must hold the same items, each once.")
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; it lies between 0 (retriever) and 1 (LLM).")
    places = {i: (1 - weight) * retriever.index(i) + weight * llm.index(i) for i in retriever}
    # Rounded, so that 0.3 + 0.6 and 0.9 tie; sorted() keeps the retriever's order of ties.
    return sorted(retriever, key=lambda item: round(places[item], 9))
