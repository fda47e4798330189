"""Ranking for many users: at once and in batches; and what it will cost.

:func:`rank_users` asks for several users at a time within the limits of the server and of a budget,
and gives each ranking as it comes. An answer is on disk before it is given out, so that a job that
was killed and is started again asks only for what is missing. :func:`write_batches` and
:func:`import_batches` do the same through files of the Batch API. :class:`Cost` says beforehand
what a job costs.
"""

from __future__ import annotations

import collections
import contextlib
import email.utils
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from tqdm.auto import tqdm

from helpers import answers, llm, ranking
from helpers.answers import Body, estimate_tokens
from helpers.replies import Store, request_key
from helpers.settings import Settings, SettingsError
from helpers.transport import Budget, completion_limit
from research.evaluation import LetterRanking

RETRIES = 5
"""How often the SDK sends a request again after a 408, 409, 429, 5xx or a lost connection."""

BATCH_REQUESTS = 40_000
"""Requests in one input file of the Batch API, which takes 50,000 and 200 MB, 5 kB a prompt."""


class ToRank(NamedTuple):
    """A user to rank for: the movieIds in the order shown (A, B, ...) and the prompt."""

    user: int
    shown: Sequence[int]
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class Ranked:
    """What came of one user.

    ``order`` holds the movieIds, best first; it is empty unless ``kind`` is ``ok``. Other kinds are
    those of :func:`helpers.llm.ask`; ``source`` is ``live``, ``store`` or ``none``.
    """

    user: int
    order: list[int]
    kind: str = "ok"
    why: str = ""
    repairs: int = 0
    source: str = "none"

    @property
    def failed(self) -> bool:
        """Whether this user must be asked for again."""
        return self.kind != "ok"


# --- the pace -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Limits:
    """How many requests and tokens a server takes in ``window_s`` seconds; ``None`` for no limit.

    The window kept is 5 % longer, because requests travel for unequal times.
    """

    requests: int | None = None
    tokens: int | None = None
    window_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        for value in (self.requests, self.tokens, self.window_s):
            if value is not None and value <= 0:
                raise SettingsError(f"A limit is {value}; it must be above 0.")


class Pace:
    """Lets requests through, first come first served, so that no window holds more than its limits.

    It keeps the time of each request of the last window. A bucket that fills steadily would be
    simpler, but lets through its size and its inflow, twice the limit, in its first window.
    """

    def __init__(self, limits: Limits) -> None:
        """Start with an empty window."""
        self._limits, self._width = limits, limits.window_s * 1.05
        self._sent: collections.deque[tuple[float, int]] = collections.deque()
        self._paused_until, self._turn = 0.0, threading.Lock()

    def wait(self, tokens: int) -> None:
        """Return when a request of ``tokens`` may be sent; one above the limit travels alone."""
        with self._turn:
            while (delay := self._delay(tokens)) > 0:
                time.sleep(delay)
            self._sent.append((time.monotonic(), tokens))

    def pause(self, seconds: float) -> None:
        """Let nothing through for some time: a server that says so to one means all."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def _delay(self, tokens: int) -> float:
        now, limits = time.monotonic(), self._limits
        while self._sent and self._sent[0][0] + self._width <= now:
            self._sent.popleft()
        over = sum(sent for _, sent in self._sent) + tokens - (limits.tokens or float("inf"))
        full = limits.requests is not None and len(self._sent) >= limits.requests
        crowded = bool(self._sent) and (full or over > 0)
        until = self._sent[0][0] + self._width if crowded else 0.0
        return max(until, self._paused_until) - now


class PacedClient(httpx2.Client):
    """An HTTP client that keeps a pace; the SDK above it retries, so retries count too."""

    def __init__(self, pace: Pace, concurrency: int, timeout_s: float = 60.0) -> None:
        """Hold as many connections as there are requests under way."""
        limits = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        super().__init__(limits=limits, follow_redirects=True, timeout=timeout_s)
        self.pace = pace

    def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        """Send a request when its turn has come."""
        body = json.loads(request.content)
        self.pace.wait(estimate_tokens(body) + completion_limit(body))
        response = super().send(request, **options)
        if not response.is_success and (seconds := retry_after(response.headers)) is not None:
            self.pace.pause(seconds)
        return response


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait (``Retry-After``: a number or a date)."""
    value = headers.get("retry-after", "")
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


# --- one job --------------------------------------------------------------------------------------


def request_body(person: ToRank, options: Body | None = None) -> Body:
    """Return the request for a user as the evaluation of notebook 06 makes it, without a model."""
    form = llm.response_format(LetterRanking)
    return {"messages": person.messages, "response_format": form, **(options or {})}


def judge(outcome: llm.Outcome, person: ToRank) -> Ranked:
    """Turn an answer into the order of the movies shown, or into the reason why there is none."""
    text = outcome.text if outcome.kind in ranking.READ else None
    result = ranking.read_ranking(text, len(person.shown))
    if result.failed:
        kind = "unreadable" if outcome.kind == "ok" else outcome.kind
        return Ranked(person.user, [], kind, outcome.why or result.why)
    order = [int(person.shown[position]) for position in result.order]
    source = "live" if outcome.source == "live" else "store"
    return Ranked(person.user, order, repairs=sum(result.repairs), source=source)


def rank_users(
    users: Iterable[ToRank],
    settings: Settings | None = None,
    *,
    store: Store | None = None,
    concurrency: int = 16,
    limits: Limits | None = None,
    budget: Budget | None = None,
    progress: bool = True,
    **options: Any,
) -> Iterator[Ranked]:
    """Yield a :class:`Ranked` for each user, in the order in which the answers come.

    At most ``concurrency`` users are taken from ``users`` ahead of those given out, so it may be a
    generator over more than memory holds. A usable answer is in the store before it is given out:
    started again on the same users, the job asks only for the others; at most the ``concurrency``
    requests that were under way at a kill are sent twice. Faults of the server are kinds of
    results, not exceptions. Without a server only stored replies are given.

    Args:
        users: (user, movieIds shown, messages), any iterable.
        settings: server, model and prices (default: the environment).
        store: where answers are kept (default: the local store of the course).
        concurrency: requests under way at the same time.
        limits: what the server takes in a minute; a 429 with ``Retry-After`` stops all requests.
        budget: the hard limit of this job (default: the one of ``settings``).
        progress: show a bar, with the tokens spent so far.
        options: go into every request (``temperature``, ``max_completion_tokens``, ``seed``).
    """
    settings = settings or Settings.from_env()
    budget = budget or Budget(settings)
    paced = PacedClient(Pace(limits or Limits()), concurrency, settings.llm_timeout_s)
    client = llm.connect(settings, live=paced, budget=budget, store=store)
    client = client.with_options(max_retries=RETRIES)
    options = {"model": llm.model(settings), "schema": LetterRanking, **options}

    def rank(person: ToRank) -> Ranked:
        outcome = llm.ask(client, person.messages, letters=len(person.shown), **options)
        return judge(outcome, person)

    source, under_way = (ToRank(*row) for row in users), set[Future[Ranked]]()
    pool, bar = ThreadPoolExecutor(concurrency), tqdm(unit="user", disable=not progress)
    try:
        while True:
            free = concurrency - len(under_way)
            under_way |= {pool.submit(rank, person) for person in islice(source, free)}
            if not under_way:
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for ranked in done:
                bar.set_postfix_str(f"{budget.spent_tokens} tokens", refresh=False)
                bar.update()
                yield ranked.result()
    finally:  # answers under way are paid for, and are waited for
        pool.shutdown(cancel_futures=True)
        bar.close()
        paced.close()


def _groups(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])


# --- Batch API ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchFile:
    """An input file of the Batch API; beside it, ``*.users.jsonl`` says who each request is for."""

    path: Path
    requests: int


@dataclass(frozen=True)
class BatchReport:
    """What an import did; ``again`` maps what must be asked again to the reason."""

    imported: int
    again: dict[Any, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return one line of counts and a line for each user who must be asked for again."""
        head = f"{self.imported} answers imported, {len(self.again)} users to ask for again"
        return "\n".join([head, *(f"  user {user}: {why}" for user, why in self.again.items())])


def export_batch(requests: Iterable[Body], path: Path, model: str) -> int:
    """Write a Batch API input file and return the number of its requests."""
    unique = {request_key(body): {**body, "model": model} for body in requests}
    call = {"method": "POST", "url": "/v1/chat/completions"}
    lines = [json.dumps({"custom_id": key, **call, "body": body}) for key, body in unique.items()]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return len(unique)


def import_batch(
    path: Path, requests: Iterable[Body], store: Store, model: str | None = None
) -> BatchReport:
    """Take a Batch API output file into ``store``.

    ``requests`` are those that were exported, ``model`` is the name to store answers under
    (default: the one that each names). Only usable answers are taken; ``again`` holds the keys of
    the other requests.
    """
    wanted = {request_key(body): body for body in requests}
    again = dict.fromkeys(wanted, "no answer")
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
            record = json.loads(line)
            key, answer = record["custom_id"], (record.get("response") or {}).get("body") or {}
            why = str(record["error"]) if record.get("error") else ""
            why = why or answers.usable(wanted[key], answer)
            if why:
                again[key] = why
                continue
            name = model or str(answer.get("model", ""))
            store.put(wanted[key], answer, model=name)
            again.pop(key, None)
    again = {key: why for key, why in again.items() if store.get(key) is None}
    return BatchReport(len(wanted) - len(again), again)


def write_batches(
    users: Iterable[ToRank],
    folder: Path,
    model: str,
    *,
    max_requests: int = BATCH_REQUESTS,
    **options: Any,
) -> list[BatchFile]:
    """Write ``batch-0001.jsonl`` and so on into a new folder, a request for each user.

    Raises:
        FileExistsError: the folder holds batches already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("batch-*.jsonl")):
        raise FileExistsError(f"{folder.name} holds batches already: use a new folder.")
    files = []
    for number, people in enumerate(_groups(users, max_requests), 1):
        path = folder / f"batch-{number:04d}.jsonl"
        bodies = [request_body(ToRank(*person), options) for person in people]
        files.append(BatchFile(path, export_batch(bodies, path, model)))
        keys = {
            int(person[0]): request_key(body) for person, body in zip(people, bodies, strict=True)
        }
        path.with_suffix(".users").write_text(json.dumps(keys), encoding="utf-8")
    return files


def import_batches(folder: Path, store: Store) -> BatchReport:
    """Take the outputs of the batches that :func:`write_batches` wrote into ``store``.

    For the input ``batch-0001.jsonl`` the API's output is expected beside it as
    ``batch-0001.output.jsonl``. :func:`rank_users` on the same users then gives the rankings, and
    asks a server, if there is one, for the rest.
    """
    imported, again = 0, {}
    for path in sorted(folder.glob("batch-[0-9][0-9][0-9][0-9].jsonl")):
        asked = [json.loads(line)["body"] for line in path.read_bytes().splitlines()]
        bodies = [{name: body[name] for name in body if name != "model"} for body in asked]
        output = path.with_suffix(".output.jsonl")
        if not output.exists():
            output.touch()
        report = import_batch(output, bodies, store, model=str(asked[0]["model"]))
        imported += report.imported
        keys = json.loads(path.with_suffix(".users").read_text(encoding="utf-8"))
        again |= {int(user): report.again[key] for user, key in keys.items() if key in report.again}
    return BatchReport(imported, again)


# --- cost -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a job costs in US dollars; prices are dollars per million tokens.

    ``cached_share`` is the share of the prompt tokens that the server reads from its cache, at
    ``cache_discount`` off; ``batch_discount`` comes off the whole. All three lie between 0 and 1.
    Whether a server grants both discounts at once is its own rule: set one to 0 where it does not.
    """

    users: int
    prompt_tokens: float
    output_tokens: float
    price_in: float
    price_out: float
    batch_discount: float = 0.0
    cached_share: float = 0.0
    cache_discount: float = 0.0

    def __post_init__(self) -> None:
        """Refuse shares outside 0 to 1."""
        for name in ("batch_discount", "cached_share", "cache_discount"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies between 0 and 1.")

    @property
    def total_usd(self) -> float:
        """For all users."""
        prompt = self.prompt_tokens * (1 - self.cached_share * self.cache_discount) * self.price_in
        answer = self.output_tokens * self.price_out
        return self.users * (prompt + answer) * (1 - self.batch_discount) / 1e6
