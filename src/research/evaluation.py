"""Ask for the rankings of many users and put the answers into an evaluation's lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import openai
import pandas as pd
from pydantic import BaseModel

from helpers import llm
from helpers.ranking import READ, LetterRanking, Ranking, read_ranking


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
