"""From an LLM's answer to an order of the candidates: any text gives a permutation of them."""

import re
from collections import namedtuple
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from pydantic import BaseModel, Field, create_model

from helpers import answers

READ = ("ok", "truncated", "unreadable")  # kinds of llm.Outcome whose text may hold a ranking


class RankedItem(BaseModel, extra="forbid"):
    """One candidate in the ranking."""

    letter: str = Field(description="the candidate's letter")
    reason: str = Field(description="why it stands here, at most 20 words")


class RankingReply(BaseModel, extra="forbid"):
    """The answer that the ranking prompt asks for."""

    ranking: list[RankedItem]


NamedRanking = create_model("NamedRanking", ranking=(list[Any], ...))  # text, numbers, objects
Repairs = namedtuple("Repairs", "unknown repeated missing damage", defaults=[0] * 4)
# Positions, best first, and reasons by position; of a failed one the order is the retriever's.
Ranking = namedtuple("Ranking", "order reasons repairs failed why")


def letters(n: int) -> list[str]:
    """Return ``n`` labels, at most 702: A to Z, then AA, AB and so on."""
    return [a + b for a in ("", *ascii_uppercase) for b in ascii_uppercase][:n]


def settle(
    picks: Sequence[int | None], reasons: dict[int, str], fallback: Sequence[int],
    damage: int = 0, why: str = "",
) -> Ranking:  # fmt: skip
    """Turn named positions (``None``: unknown) into a ranking, as notebook 05 writes out.

    An answer counts if it names half of ``fallback``, the retriever's order of all positions.
    """
    known = [pick for pick in picks if pick is not None]
    order = list(dict.fromkeys(known))
    left = [position for position in fallback if position not in order]
    repairs = Repairs(len(picks) - len(known), len(known) - len(order), len(left), damage)
    if why or len(order) < len(left):
        why = why or f"the answer names {len(order)} of {len(fallback)} candidates"
        return Ranking(list(fallback), {}, repairs, True, why)
    return Ranking(order + left, reasons, repairs, False, "")


_MARKS = r"""[\s*_`"'“”()\[\].\\]*"""
_LETTER = re.compile(
    rf"{_MARKS}(?:(?:candidate|letter|movie) {_MARKS})?([A-Z]{{1,2}}){_MARKS}(?:(?:[:|]|- ).*)?",
    re.IGNORECASE | re.DOTALL,
)


def read_ranking(text: str | None, n: int, fallback: Sequence[int] | None = None) -> Ranking:
    """Read an answer that names ``n`` candidates by letter, as in ``C``, ``(c)`` or ``C: Title``.

    ``fallback`` is the retriever's order of the positions (default: 0, 1, 2, ...).
    """
    answer, labels, picks, reasons = answers.read(text, NamedRanking), letters(n), [], {}
    for item in answer.value.ranking if answer.value else ():
        item = item if isinstance(item, dict) else {"letter": item}
        fields = {str(key).lower(): str(value) for key, value in item.items()}
        match = _LETTER.fullmatch(fields.get("letter") or fields.get("label", ""))
        pick = labels.index(match[1].upper()) if match and match[1].upper() in labels else None
        picks.append(pick)
        if pick is not None and fields.get("reason"):
            reasons.setdefault(pick, " ".join(fields["reason"].split())[:300])
    fallback = range(n) if fallback is None else fallback
    return settle(picks, reasons, fallback, answer.repairs, answer.why)
