"""From an LLM's answer to an order of the candidates, whatever the answer says.

The rules: an unknown candidate is dropped, a repeated one counts once, a missing one is appended in
the retriever's order, and each repair is counted. So any text gives a permutation of the
candidates, and nothing in a title or an answer can add, remove or rename one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

import openai
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from helpers import answers, llm


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
"""The share of the candidates that an answer must name: below it most of the order is not the
LLM's, and one letter of twenty would enter an evaluation as the retriever's order, improved."""

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
        return self.unknown + self.repeated + self.missing + self.damage


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
    lengths = (itertools.product(ascii_uppercase, repeat=length) for length in itertools.count(1))
    return ["".join(label) for label in itertools.islice(itertools.chain.from_iterable(lengths), n)]


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
    rest = [position for position in fallback if position not in set(order)]
    repairs = Repairs(len(picks) - len(known), len(known) - len(order), len(rest), damage)
    if len(order) < USABLE_SHARE * n:
        why = f"the answer names {len(order)} of {n} candidates"
        return Ranking(list(fallback), {}, repairs, True, why)
    return Ranking(order + rest, reasons, repairs)


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
    """Read an answer by letters; any text at all gives a permutation of ``range(n)``.

    Args:
        text: the message of the LLM, read as :class:`NamedRanking` (see :mod:`helpers.answers`).
        n: number of candidates, labelled by :func:`letters`.
        fallback: the retriever's order of the positions (default: 0, 1, 2, ...).
        titles: the candidates' titles in the order shown; with them a title may stand for a letter,
            and a letter beside the title of another candidate is unknown.
    """
    back = list(range(n)) if fallback is None else list(fallback)
    if sorted(back) != list(range(n)):
        raise ValueError("fallback must be a permutation of the candidates' positions.")
    answer = answers.read(text, NamedRanking)
    if answer.value is None:
        return failed(n, answer.why, back)
    place = {label: position for position, label in enumerate(letters(n))}
    titled = _places(titles or ())
    picks, reasons = [], {}
    for item in answer.value.ranking:
        pick = _pick(_named(item), place, titled)
        picks.append(pick)
        reason = item.get("reason") if isinstance(item, dict) else None
        if pick is not None and isinstance(reason, str) and reason.strip():
            reasons.setdefault(pick, " ".join(reason.split())[:300])
    return settle(picks, n, reasons, back, answer.repairs)


def _named(item: object) -> str:
    """Return how an item of a ranking names its candidate; an object may hold label and title."""
    if not isinstance(item, dict):
        return str(item)
    item = {str(key).casefold(): str(value) for key, value in item.items()}
    label = [item[key] for key in ("letter", "label", "id", "candidate") if key in item]
    title = [item[key] for key in ("title", "movie", "film", "name") if key in item]
    return ": ".join(label[:1] + title[:1])


_LABEL = re.compile(
    r"(?:\d{1,3}[.):]\s+)?(?P<word>(?:candidate|letter|movie|film|item|option)\s+)?"
    r"[(\[]?(?P<label>[a-z]{1,3})(?P<mark>[)\]\s.,:|=–—-]*)(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)
# Between a label and a title. A full stop is not enough: "M. Butterfly (1993)".
_STRONG = re.compile(r"[)\]:|=]|\s[–—-]+\s")
_YEAR = re.compile(r"\(\d{4}[^)]*\)")


def _pick(name: str, place: Mapping[str, int], titled: Mapping[str, set[int]]) -> int | None:
    """Return the position that a name stands for; ``None`` if it is unknown or ambiguous."""
    name = _plain(name[:400])
    picks = titled.get(name, set())
    match = _LABEL.fullmatch(name)
    label = place.get(match["label"].upper()) if match else None
    if match and label is not None:
        mark, rest = match["mark"], match["rest"]
        if not rest:
            return label
        beside = _starting(rest, titled)
        if mark and label in beside:
            picks = picks | {label}
        elif _STRONG.search(mark):  # beside a title of no candidate, or of another one
            picks = picks | {-1 if beside or (titled and _YEAR.search(rest)) else label}
    return next(iter(picks - {-1}), None) if len(picks) == 1 else None


def _starting(text: str, titled: Mapping[str, set[int]]) -> set[int]:
    """Return the positions of the longest title that ``text`` begins with."""
    names = [n for n in titled if text.startswith(n) and not text[len(n) :][:1].isalnum()]
    return titled[max(names, key=len)] if names else set()


def _plain(text: str) -> str:
    """Return text without case and marks, as titles and labels are compared."""
    text = re.sub(r"[*_`\"“”\\]", "", text.translate({0x2039: "<", 0x203A: ">"}))
    return " ".join(text.split()).strip("' ").casefold()


def _places(titles: Sequence[str]) -> dict[str, set[int]]:
    """Return the positions of each title: as written, without its year, its article in front."""
    places: dict[str, set[int]] = {}
    for position, title in enumerate(titles):
        bare = re.sub(r"\s*\(\d{4}[^)]*\)\s*$", "", title)
        names = {title, bare}
        if moved := re.match(r"(.*), (The|A|An)(\s*\(.*)?$", bare):
            front = f"{moved[2]} {moved[1]}"
            names |= {front, front + title[len(bare) :]}
        for name in map(_plain, names):
            if name:
                places.setdefault(name, set()).add(position)
    return places


def read_title_list(
    text: str | None, titles: Sequence[str], fallback: Sequence[int] | None = None
) -> Ranking:
    """Read a numbered or bulleted list of titles, the answer to the article's prompt.

    A line counts only when it begins, after its number, with a candidate's title: as written,
    without its year, or with a trailing article moved to the front. The longest match wins; of
    several lists, the last one that names enough.
    """
    n = len(titles)
    back = list(range(n)) if fallback is None else list(fallback)
    if not text or not text.strip():
        return failed(n, "the answer is empty", back)
    final = answers.final_text(text)
    if final is None:
        return failed(n, "the answer stops inside its draft", back)
    titled = _places(titles)
    lists: list[tuple[list[int | None], dict[int, str]]] = []
    last = 0
    for line in final.splitlines():
        match = re.match(r"\s*(?:#+\s*)?(?:\*\*)?\s*(\d{1,3})\s*[.):]\s*(.*)", line)
        if not match:
            continue
        if not lists or int(match[1]) < last:
            lists.append(([], {}))
        last, (picks, reasons) = int(match[1]), lists[-1]
        body = re.sub(r"[*_\"“”]", "", match[2]).strip()
        places = _starting(_plain(body), titled)
        pick = next(iter(places)) if len(places) == 1 else None
        picks.append(pick)
        if pick is not None:
            reason = re.sub(r"^[^–—-]*[–—-]+\s*", "", body[len(titles[pick]) :]).strip()
            if reason:
                reasons.setdefault(pick, reason[:300])
    if not lists:
        return failed(n, "the answer holds no numbered list", back)
    results = [settle(picks, n, reasons, back) for picks, reasons in lists]
    return next((result for result in reversed(results) if not result.failed), results[-1])


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


def reorder(lists: pd.DataFrame, orders: Mapping[int, Sequence[int]]) -> pd.DataFrame:
    """Return ``lists`` (``userId, rank, movieId``) in new orders, one per user.

    A user without an order is left out, and so scores zero in :mod:`helpers.metrics`: an answer
    that failed is not replaced by the retriever's order.

    Raises:
        ValueError: an order is not a permutation of the user's candidates.
    """
    rows = []
    candidates = {user: set(movies) for user, movies in lists.groupby("userId")["movieId"]}
    for user, order in orders.items():
        if len(order) != len(set(order)) or set(order) != candidates.get(user):
            raise ValueError(f"The order for user {user} is not one of the candidates, each once.")
        rows += [(user, rank, movie) for rank, movie in enumerate(order, 1)]
    return pd.DataFrame(rows, columns=pd.Index(["userId", "rank", "movieId"]), dtype=int)


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

    def ranked(user: int) -> tuple[int, Ranking, str]:
        shown, messages = requests[user]
        outcome = llm.ask(client, messages, schema=schema, **options)
        text = outcome.text if outcome.kind in READ else None
        result = read(text, shown) if read else read_ranking(text, len(shown))
        return user, result, result.why if outcome.kind in ("ok", "unreadable") else outcome.kind

    orders, failures, repairs = {}, {}, 0
    with ThreadPoolExecutor(threads) as pool:
        for user, result, why in pool.map(ranked, requests):
            if result.failed:
                failures[user] = why
            else:
                orders[user] = [requests[user][0][position] for position in result.order]
                repairs += result.repairs.total
    return Asked(orders, failures, repairs)
