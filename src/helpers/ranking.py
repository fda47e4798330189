"""From an LLM's answer to an order of the candidates, whatever the answer says.

The rules: an unknown candidate is dropped, a repeated one counts once, a missing one is appended in
the retriever's order, and each repair is counted. So any text gives a permutation of the
candidates, and nothing in a title or an answer can add, remove or rename one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import openai
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from helpers import llm


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


@dataclass(frozen=True)
class Repairs:
    """How often the answer had to be corrected."""

    unknown: int = 0
    repeated: int = 0
    missing: int = 0

    @property
    def total(self) -> int:
        """All corrections together."""
        return self.unknown + self.repeated + self.missing


@dataclass(frozen=True)
class Ranking:
    """A permutation of the candidates, with what was done to get it.

    ``order`` holds positions in the list of candidates, best first; ``reasons`` maps a position to
    the LLM's reason. ``failed`` is true when nothing usable was said: the order is then the
    retriever's, ``why`` says so, and an evaluation counts the user as zero.
    """

    order: list[int]
    reasons: dict[int, str] = field(default_factory=dict)
    repairs: Repairs = Repairs()
    failed: bool = False
    why: str = ""


def letters(n: int) -> list[str]:
    """Return ``n`` labels: A to Z, then AA, AB and so on."""
    labels = []
    for number in range(n):
        label = ""
        number += 1
        while number:
            number, rest = divmod(number - 1, 26)
            label = chr(65 + rest) + label
        labels.append(label)
    return labels


def settle(
    picks: Sequence[int | None], n: int, reasons: dict[int, str], fallback: Sequence[int]
) -> Ranking:
    """Turn named positions (``None`` for an unknown name) into a counted, complete ranking."""
    order: list[int] = []
    unknown = repeated = 0
    for pick in picks:
        if pick is None or not 0 <= pick < n:
            unknown += 1
        elif pick in order:
            repeated += 1
        else:
            order.append(pick)
    if n and not order:
        repairs = Repairs(unknown, repeated, n)
        return Ranking(list(fallback), {}, repairs, True, "the answer names no candidate")
    rest = [position for position in fallback if position not in order]
    return Ranking(order + rest, reasons, Repairs(unknown, repeated, len(rest)))


def failed(n: int, why: str, fallback: Sequence[int] | None = None) -> Ranking:
    """Return the ranking that stands in for an answer that never came."""
    order = list(range(n)) if fallback is None else list(fallback)
    return Ranking(order, {}, Repairs(missing=n), True, why)


def read_ranking(text: str | None, n: int, fallback: Sequence[int] | None = None) -> Ranking:
    """Read an answer by letters; any text at all gives a permutation of ``range(n)``.

    Args:
        text: the message of the LLM; JSON of :class:`RankingReply`, also inside prose or a fence.
        n: number of candidates, labelled by :func:`letters`.
        fallback: the retriever's order of the positions (default: 0, 1, 2, ...).
    """
    back = list(range(n)) if fallback is None else list(fallback)
    if sorted(back) != list(range(n)):
        raise ValueError("fallback must be a permutation of the candidates' positions.")
    if not text or not text.strip():
        return failed(n, "the answer is empty", back)
    items = _items(text)
    if items is None:
        return failed(n, "the answer holds no JSON ranking", back)
    place = {label: position for position, label in enumerate(letters(n))}
    picks, reasons = [], {}
    for letter, reason in items:
        pick = place.get(re.sub(r"[^A-Za-z]", "", letter[:20]).upper())
        picks.append(pick)
        if pick is not None and reason:
            reasons.setdefault(pick, " ".join(reason.split())[:300])
    return settle(picks, n, reasons, back)


def _items(text: str) -> list[tuple[str, str]] | None:
    try:
        reply = RankingReply.model_validate_json(text)
        return [(item.letter, item.reason) for item in reply.ranking]
    except ValidationError:
        pass
    for value in _json_values(text):
        listed = value.get("ranking") if isinstance(value, dict) else value
        if isinstance(listed, list) and listed:
            return [_loose(item) for item in listed]
    return None


def _json_values(text: str):
    decoder = json.JSONDecoder()
    for found in list(re.finditer(r"[\[{]", text))[:50]:
        try:
            yield decoder.raw_decode(text, found.start())[0]
        except (ValueError, RecursionError):
            continue


def _loose(item: object) -> tuple[str, str]:
    if isinstance(item, dict):
        return str(item.get("letter", "")), str(item.get("reason", ""))
    return str(item), ""


def read_title_list(
    text: str | None, titles: Sequence[str], fallback: Sequence[int] | None = None
) -> Ranking:
    """Read a numbered or bulleted list of titles, the answer to the article's prompt.

    A line counts only when it begins, after its number, with a candidate's title: as written,
    without its year, or with a trailing article moved to the front. The longest match wins.
    """
    n = len(titles)
    back = list(range(n)) if fallback is None else list(fallback)
    if not text or not text.strip():
        return failed(n, "the answer is empty", back)
    names = sorted(
        ((name, position) for position, title in enumerate(titles) for name in _names(title)),
        key=lambda pair: -len(pair[0]),
    )
    picks, reasons = [], {}
    for line in text.splitlines():
        found = re.match(r"\s*(?:#+\s*)?(?:\*\*)?\s*\d{1,3}\s*[.):]\s*(.*)", line)
        if not found:
            continue
        body = re.sub(r"[*_\"“”]", "", found[1]).strip()
        key = body.casefold()
        pick = next(
            (p for name, p in names if key.startswith(name) and not key[len(name) :][:1].isalnum()),
            None,
        )
        picks.append(pick)
        if pick is not None:
            reason = re.sub(r"^[^–—-]*[–—-]+\s*", "", body[len(titles[pick]) :]).strip()
            if reason:
                reasons.setdefault(pick, reason[:300])
    if not picks:
        return failed(n, "the answer holds no numbered list", back)
    return settle(picks, n, reasons, back)


def _names(title: str) -> set[str]:
    bare = re.sub(r"\s*\(\d{4}[^)]*\)\s*$", "", title)
    year = title[len(bare) :]
    names = {title, bare}
    if moved := re.match(r"(.*), (The|A|An)(\s*\(.*)?$", bare):
        front = f"{moved[2]} {moved[1]}"
        names |= {front, front + year}
    return {name.casefold() for name in names if name}


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
    first = {item: rank for rank, item in enumerate(retriever)}
    second = {item: rank for rank, item in enumerate(llm)}
    # Rounded, so that 0.3 + 0.6 and 0.9 tie.
    return sorted(
        retriever, key=lambda i: (round((1 - weight) * first[i] + weight * second[i], 9), first[i])
    )


# --- re-ranking many users' lists -----------------------------------------------------------------


def reorder(lists: pd.DataFrame, orders: Mapping[int, Sequence[int]]) -> pd.DataFrame:
    """Return ``lists`` (``userId, rank, movieId``) in new orders, one per user.

    A user without an order is left out, and so scores zero in :mod:`helpers.metrics`: an answer
    that failed is not replaced by the retriever's order.

    Raises:
        ValueError: an order is not a permutation of the user's candidates.
    """
    tables = []
    mine = {user: set(rows) for user, rows in lists.groupby("userId")["movieId"]}
    for user, order in orders.items():
        if len(order) != len(set(order)) or set(order) != mine.get(user):
            raise ValueError(f"The order for user {user} is not one of the candidates, each once.")
        tables.append(
            pd.DataFrame({"userId": user, "rank": range(1, len(order) + 1), "movieId": list(order)})
        )
    if not tables:
        return pd.DataFrame({"userId": [], "rank": [], "movieId": []}, dtype=int)
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Asked:
    """What came of asking an LLM to rank the candidates of several users.

    ``orders`` holds the order of movieIds for each user with a usable answer, ``failures`` says
    for each other user what went wrong, and ``repairs`` sums the corrections.
    """

    orders: dict[int, list[int]]
    failures: dict[int, str]
    repairs: int

    @property
    def unanswered(self) -> int:
        """Users whose request was never sent: no reply is stored and no server or budget left."""
        return sum(why in {"no_reply", "budget"} for why in self.failures.values())


def ask_all(
    client: openai.OpenAI,
    requests: Mapping[int, tuple[list[int], list[dict[str, str]]]],
    *,
    threads: int = 8,
    schema: type[BaseModel] = LetterRanking,
    read: Callable[[str | None, list[int]], Ranking] | None = None,
    **options: Any,
) -> Asked:
    """Ask for each user's ranking by letter; ``requests`` maps users to (movieIds shown, messages).

    ``options`` go into every request (``seed`` tells a second reading from the first). A failed or
    unreadable answer is reported, not repaired by the retriever's order; letters missing from a
    readable one follow in the order shown. ``schema`` and ``read`` (from the answer and the
    movieIds shown to a :class:`Ranking`) are for answers that name candidates in another way.
    """

    def one(user: int) -> tuple[int, Ranking, str]:
        shown, messages = requests[user]
        outcome = llm.ask(client, messages, schema=schema, **options)
        text = outcome.text if outcome.kind in ("ok", "truncated", "unreadable") else None
        result = read(text, shown) if read else read_ranking(text, len(shown))
        return user, result, outcome.kind if outcome.kind != "ok" else result.why

    orders, failures, repairs = {}, {}, 0
    with ThreadPoolExecutor(threads) as pool:
        for user, result, why in pool.map(one, requests):
            if result.failed:
                failures[user] = why
            else:
                orders[user] = [requests[user][0][position] for position in result.order]
                repairs += result.repairs.total
    return Asked(orders, failures, repairs)
