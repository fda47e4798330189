"""Ranking for many users: at once, in batches, and inside Spark; and what it will cost.

:func:`rank_users` takes users from any iterable, asks for several at a time within the limits of
the server and of a budget, and gives each ranking as it comes. An answer is on disk before it is
given out, so that a job that was killed and is started again asks only for what is missing.
:func:`write_batches` and :func:`import_batches` do the same through files of the Batch API,
:func:`in_partitions` inside Spark. :class:`Cost` says beforehand what a job costs.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import email.utils
import functools
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpx2
import openai
import pandas as pd
from tqdm.auto import tqdm

from helpers import llm, ranking
from helpers.replies import Body, LocalStore, request_key
from helpers.settings import Settings, SettingsError
from research.batch import batch_line, import_batch

T = TypeVar("T")

GRACE_S = 5.0
"""How long a job that is stopped waits for answers that are already paid for."""

WAIT_S = 0.02
"""How often a request looks whether the budget has room again."""

BATCH_REQUESTS = 50_000
BATCH_BYTES = 200_000_000
"""What one input file of the Batch API may hold (200 MB, read as 200 million bytes):
https://platform.openai.com/docs/guides/batch"""


class ToRank(NamedTuple):
    """A user to rank for: the movieIds in the order shown (A, B, ...) and the prompt."""

    user: int
    shown: Sequence[int]
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class Ranked:
    """What came of one user.

    ``order`` holds the movieIds, best first; it is empty unless ``kind`` is ``ok``. Other kinds are
    those of :func:`helpers.llm.ask`, ``unreadable`` for an answer that names no candidate, and
    ``too_large`` for a request that the limits never let through. ``repairs`` counts corrections,
    ``source`` says whether the answer was asked for now (``live``), found (``store``), or is not
    there (``none``).
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


@dataclass(frozen=True)
class Limits:
    """How much a server takes in a window of time; ``None`` for no limit.

    ``requests`` and ``tokens`` are those of a window of ``window_s`` seconds (a minute, as the
    servers count). A request's tokens are its estimated prompt and all that it may answer. The
    window kept here is longer by the share ``margin``, because requests travel for unequal times.
    """

    requests: int | None = None
    tokens: int | None = None
    window_s: float = 60.0
    margin: float = 0.05

    def __post_init__(self) -> None:
        """Refuse limits that let nothing through."""
        for name in ("requests", "tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"The limit for {name} is {value}; it must be at least 1.")
        if self.window_s <= 0 or self.margin < 0:
            raise SettingsError("window_s must be above 0 and margin must not be negative.")

    def split(self, parts: int) -> Limits:
        """Return an equal share of the limits for each of ``parts`` clients at work together.

        Raises:
            SettingsError: there are more clients than requests or tokens.
        """
        requests = None if self.requests is None else self.requests // parts
        tokens = None if self.tokens is None else self.tokens // parts
        return Limits(requests, tokens, self.window_s, self.margin)


class TooLarge(openai.OpenAIError):
    """One request takes more tokens than the limits allow in a whole window."""


class Pace:
    """Lets requests through, first come first served, so that no window holds more than its limits.

    It keeps the time of each request of the last window. A bucket that fills steadily would be
    simpler, but lets through its size and its inflow, twice the limit, in its first window.
    """

    def __init__(self, limits: Limits) -> None:
        """Start with an empty window."""
        self._limits, self._width = limits, limits.window_s * (1 + limits.margin)
        self._sent: collections.deque[tuple[float, int]] = collections.deque()
        self._tokens, self._paused_until = 0, 0.0
        self._turn = asyncio.Lock()

    async def wait(self, tokens: int) -> None:
        """Return when a request of ``tokens`` may be sent.

        Raises:
            TooLarge: it never may.
        """
        limit = self._limits.tokens
        if limit is not None and tokens > limit:
            raise TooLarge(
                f"Not sent: the request may take {tokens} tokens, the limit is {limit} in "
                f"{self._limits.window_s:g} seconds."
            )
        async with self._turn:
            while (delay := self._delay(tokens)) > 0:
                await asyncio.sleep(delay)
            if self._limits.requests is not None or limit is not None:
                self._sent.append((time.monotonic(), tokens))
                self._tokens += tokens

    def pause(self, seconds: float) -> None:
        """Let nothing through for some time: a server that says so to one means all."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)

    def _delay(self, tokens: int) -> float:
        now = time.monotonic()
        while self._sent and self._sent[0][0] + self._width <= now:
            self._tokens -= self._sent.popleft()[1]
        until = self._paused_until
        limits = self._limits
        if limits.requests is not None and len(self._sent) >= limits.requests:
            until = max(until, self._sent[0][0] + self._width)
        if limits.tokens is not None:
            over = self._tokens + tokens - limits.tokens
            for sent, freed in self._sent:
                if over <= 0:
                    break
                until, over = max(until, sent + self._width), over - freed
        return until - now


class PacedTransport(httpx2.AsyncBaseTransport):
    """Sends what the budget and the pace allow; the SDK above it retries, so retries count too."""

    def __init__(
        self, settings: Settings, live: httpx2.AsyncClient, budget: llm.Budget, pace: Pace
    ):
        """``live`` is the client that reaches the server."""
        self._settings, self._live, self._budget, self._pace = settings, live, budget, pace
        self._dialects, self._turn = llm.Dialects(), asyncio.Lock()
        self.stopping = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send one request.

        Raises:
            BudgetExceeded: it may go over the budget; nothing was sent.
            TooLarge: it alone is over the limits; nothing was sent.
        """
        body = json.loads(await request.aread())
        attempt = llm.Attempt(self._settings, self._dialects, request, body)
        async with self._turn:  # first come, first served
            while (reserved := self._budget.admit(attempt.body)) is None:
                await asyncio.sleep(WAIT_S)
        attempt.start()
        with self._budget.passage(reserved, attempt.body) as passage:
            while passage.response is None or attempt.again(passage.response):
                await self._pace.wait(reserved[0])
                if self.stopping:
                    raise openai.OpenAIError("Not sent: the job was stopped.")
                passage.sent = True
                with llm.without_key(self._settings):
                    response = await self._live.send(attempt.request(), stream=True)
                    await response.aread()
                passage.response = response = attempt.received(response)
                if not response.is_success and (wait := retry_after(response.headers)) is not None:
                    self._pace.pause(wait)
        return passage.response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._live.aclose()


def retry_after(headers: Any) -> float | None:
    """Return the seconds that a server asks to wait (``Retry-After``: a number or a date)."""
    value = headers.get("retry-after")
    if not value:
        return None
    with contextlib.suppress(ValueError):
        return max(0.0, float(value))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


# --- one job --------------------------------------------------------------------------------------


def request_body(one: ToRank, options: Body | None = None) -> Body:
    """Return the request that :func:`research.evaluation.ask_all` makes too, without the model."""
    return {"messages": one.messages, "response_format": _FORMAT, **(options or {})}


_FORMAT = llm.response_format(ranking.LetterRanking)


def judge(outcome: llm.Outcome, one: ToRank, source: str) -> Ranked:
    """Turn an answer into the order of the movies shown, or into the reason why there is none."""
    text = outcome.text if outcome.kind in ranking.READ else None
    result = ranking.read_ranking(text, len(one.shown))
    if not result.failed:
        order = [int(one.shown[position]) for position in result.order]
        return Ranked(one.user, order, repairs=result.repairs.total, source=source)
    kind, why = outcome.kind, outcome.why
    if kind in ("ok", "unreadable"):
        kind, why = "unreadable", result.why
    return Ranked(one.user, [], kind, why)


async def rank_users(
    users: Iterable[ToRank],
    settings: Settings | None = None,
    *,
    store: LocalStore | None = None,
    concurrency: int = 16,
    limits: Limits | None = None,
    budget: llm.Budget | None = None,
    count_stored: bool = True,
    retries: int = 5,
    progress: bool = True,
    total: int | None = None,
    **options: Any,
) -> AsyncGenerator[Ranked, None]:
    """Rank for each user, in the order in which the answers come.

    At most ``concurrency`` users are taken from ``users`` ahead of those given out, so it may be a
    generator over more than memory holds; its steps run between the requests and should be quick.
    An answer that names candidates is in the store before it is given out; started again on the
    same users, the job asks only for those without one: at most the ``concurrency`` requests that
    were under way at a kill are sent twice. Other answers are failures and are never stored. Two
    users with the same prompt are asked once. Without a server only stored replies are given.

    Args:
        users: (user, movieIds shown, messages), any iterable.
        settings: server, model and prices (default: the environment).
        store: where answers are kept (default: the local store of the course).
        concurrency: requests under way at the same time.
        limits: what the server takes in a minute; a 429 with ``Retry-After`` stops all requests.
        budget: the hard limit (default: the one of ``settings``). What a request may cost is set
            aside before it is sent, by an estimate of its prompt that follows what the server
            counts; an answer that got lost counts in full.
        count_stored: whether stored answers of these users count towards the budget, so that a job
            started again does not get the budget anew.
        retries: how often the SDK sends a request again after a 408, 409, 429, 5xx or a lost
            connection.
        progress: show a bar, with the cost so far.
        total: the number of users, for the bar.
        options: go into every request (``temperature``, ``max_completion_tokens``, ``seed``).

    Yields:
        One :class:`Ranked` per user. Faults of the server are kinds, not exceptions.

    Raises:
        SettingsError: see :func:`helpers.llm.is_live`, or ``concurrency`` is below 1.
        StorageError, sqlite3.Error: an answer could not be stored; what is under way is still
            waited for.
    """
    if concurrency < 1:
        raise SettingsError(f"concurrency is {concurrency}; it must be at least 1.")
    settings = settings or Settings.from_env()
    own = store is None
    store = store or LocalStore(settings.cache_dir / "replies.jsonl")
    budget = budget or llm.budget_of(settings)
    job = _Job(settings, store, budget, limits or Limits(), concurrency, retries, options)
    job.count_stored = count_stored
    source, under_way = iter(users), set()
    bar = tqdm(total=total, unit="user", disable=not progress)
    try:
        while True:
            for one in islice(source, concurrency - len(under_way)):
                under_way.add(asyncio.create_task(job.rank(ToRank(*one))))
            if not under_way:
                return
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                result = task.result()
                bar.set_postfix_str(job.cost_so_far(), refresh=False)
                bar.update()
                yield result
    finally:
        bar.close()
        await job.stop(under_way)
        if own:
            store.close()


class _Job:
    """What the tasks of one :func:`rank_users` share."""

    count_stored = True

    def __init__(
        self,
        settings: Settings,
        store: LocalStore,
        budget: llm.Budget,
        limits: Limits,
        concurrency: int,
        retries: int,
        options: Body,
    ) -> None:
        self.store, self.budget, self.options = store, budget, options
        self.writer = _Writer(store)
        self.asking: dict[str, asyncio.Task[llm.Outcome]] = {}
        self.client: openai.AsyncOpenAI | None = None
        self.stores = llm.Stores(settings, store)
        if not llm.is_live(settings):
            return
        self.model = str(settings.llm_model)
        pool = httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        live = httpx2.AsyncClient(limits=pool, follow_redirects=True)
        self.transport = PacedTransport(settings, live, budget, Pace(limits))
        http = httpx2.AsyncClient(transport=self.transport, timeout=settings.llm_timeout_s)
        self.client = openai.AsyncOpenAI(
            **llm.client_options(settings), http_client=http, max_retries=retries
        )
        self.server = llm.server_of(self.client.base_url)
        self.create = self.client.chat.completions.with_raw_response.create

    async def rank(self, one: ToRank) -> Ranked:
        if not one.shown:
            return Ranked(one.user, [], source="none")
        body = request_body(one, self.options)
        key = request_key(body)
        live = {} if self.client is None else {"model": self.model, "server": self.server}
        stored = self.stores.find(body, **live)
        if stored is not None:
            found = judge(llm.outcome_of(body, stored.response), one, "store")
            if not found.failed and self.count_stored and self.client is not None:
                self.budget.settle((0, 0.0), body, stored.response)
            if not found.failed or self.client is None:
                return found
        if self.client is None:
            return Ranked(one.user, [], "no_reply", "no reply is stored and no server configured")
        if key not in self.asking:
            self.asking[key] = asyncio.create_task(self._ask(body, one))
            self.asking[key].add_done_callback(lambda _: self.asking.pop(key))
        try:
            outcome = await asyncio.shield(self.asking[key])
        except TooLarge as error:
            return Ranked(one.user, [], "too_large", str(error))
        return judge(outcome, one, "live")

    async def _ask(self, body: Body, one: ToRank) -> llm.Outcome:
        try:
            raw = await self.create(model=self.model, **body)
        except TooLarge:
            raise
        except llm.FAULTS as error:
            return llm.fault_of(error)
        response = llm.json_of(raw.http_response.content)
        outcome = llm.outcome_of(body, response)
        if not judge(outcome, one, "live").failed and not llm.usable(body, response):
            kept = {name: body[name] for name in body if name != "user"}
            await self.writer.put(kept, response, self.model, self.server)
        return outcome

    def cost_so_far(self) -> str:
        held = self.budget.held
        if self.budget.price_in is None or self.budget.price_out is None:
            return f"{self.budget.spent_tokens - held[0]} tokens"
        return f"${self.budget.spent_usd - held[1]:.4f}"

    async def stop(self, under_way: set[asyncio.Task]) -> None:
        """Wait a little for answers under way, then end everything."""
        if self.client is not None:
            self.transport.stopping = True
        tasks = {*under_way, *self.asking.values()}
        if tasks:
            await asyncio.wait(tasks, timeout=GRACE_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.writer.close()
        if self.client is not None:
            await self.client.close()


class _Writer:
    """Stores replies from a thread of its own, all that wait in one transaction.

    Each transaction waits for the disk; one for each reply would be the slowest part of a job.
    """

    def __init__(self, store: LocalStore) -> None:
        self._store, self._pool = store, ThreadPoolExecutor(1)
        self._waiting: list[tuple[tuple[Body, Body], asyncio.Future]] = []
        self._task: asyncio.Task | None = None
        self._names = ("", "")

    async def put(self, request: Body, response: Body, model: str, server: str) -> None:
        """Return when the reply is on disk."""
        done = asyncio.get_running_loop().create_future()
        self._names = (model, server)
        self._waiting.append(((request, response), done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._drain())
        await done

    async def _drain(self) -> None:
        loop, (model, server) = asyncio.get_running_loop(), self._names
        while self._waiting:
            taken, self._waiting = self._waiting, []
            pairs = [pair for pair, _ in taken]
            error: Exception | None = None
            put = functools.partial(self._store.put_all, pairs, model=model, server=server)
            try:
                await loop.run_in_executor(self._pool, put)
            except Exception as problem:
                error = problem
            for _, done in taken:
                if done.cancelled():
                    continue
                if error is None:
                    done.set_result(None)
                else:
                    done.set_exception(error)

    def close(self) -> None:
        self._pool.shutdown()


def blocking(results: AsyncGenerator[T, None]) -> Iterator[T]:
    """Read an asynchronous generator from ordinary code, also in a notebook or in Spark.

    It runs in a thread with an event loop of its own: a notebook's kernel runs one already, and
    ``asyncio.run`` fails there. Leaving the loop early, or Ctrl-C, ends the generator in order.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    end: Any = object()
    step: list[asyncio.Task] = []

    async def following() -> T:
        step[:] = [asyncio.current_task()]
        return await anext(results, end)

    async def finish() -> None:
        if step and not step[0].done():
            step[0].cancel()
            await asyncio.wait(step)
        await results.aclose()

    try:
        while (item := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not end:
            yield item
    finally:
        asyncio.run_coroutine_threadsafe(finish(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


# --- Batch API ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BatchFile:
    """An input file of the Batch API; beside it, ``*.users.jsonl`` says who each request is for."""

    path: Path
    requests: int
    size: int


def write_batches(
    users: Iterable[ToRank],
    folder: Path,
    model: str,
    *,
    store: LocalStore | None = None,
    max_requests: int = BATCH_REQUESTS,
    max_bytes: int = BATCH_BYTES,
    **options: Any,
) -> list[BatchFile]:
    """Write ``batch-0001.jsonl`` and so on into a new folder, each within the limits of the API.

    Users whose answer by ``model`` is in ``store`` are left out, so a second call, in another
    folder, writes what failed the first time. Two users with the same prompt share a request.
    Requests are written as they come; what grows with the users is one hash each.

    Raises:
        FileExistsError: the folder holds batches already.
        ValueError: one request alone is larger than ``max_bytes``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("batch-*.jsonl")):
        raise FileExistsError(f"{folder.name} holds batches already: use a new folder.")
    files: list[BatchFile] = []
    place: dict[bytes, int] = {}  # which file asks a request
    with contextlib.ExitStack() as stack:
        names: list[Any] = []
        file = None
        for one in (ToRank(*row) for row in users):
            body = request_body(one, options)
            key = request_key(body)
            if not one.shown or (store is not None and _answered(store, key, model, one)):
                continue
            who = json.dumps({"key": key, "user": int(one.user), "shown": _ints(one.shown)})
            known = place.get(bytes.fromhex(key))
            if known is not None:
                names[known].write(who + "\n")
                continue
            line = (batch_line(body, model) + "\n").encode()
            if len(line) > max_bytes:
                raise ValueError(
                    f"The request for user {one.user} takes {len(line)} bytes, a file of the Batch "
                    f"API {max_bytes}: shorten its prompt."
                )
            last = files[-1] if files else None
            if last is None or last.requests == max_requests or last.size + len(line) > max_bytes:
                last = BatchFile(folder / f"batch-{len(files) + 1:04d}.jsonl", 0, 0)
                files.append(last)
                if file is not None:
                    file.close()
                file = stack.enter_context(last.path.open("wb"))
                named = last.path.with_suffix(".users.jsonl")
                names.append(stack.enter_context(named.open("w", encoding="utf-8")))
            file.write(line)
            names[-1].write(who + "\n")
            place[bytes.fromhex(key)] = len(files) - 1
            files[-1] = BatchFile(last.path, last.requests + 1, last.size + len(line))
    return files


def _answered(store: LocalStore, key: str, model: str, one: ToRank) -> bool:
    reply = store.get(key, model=model, fault=llm.usable)
    if reply is None:
        return False
    return not judge(llm.outcome_of(reply.request, reply.response), one, "store").failed


def _ints(values: Sequence[int]) -> list[int]:
    return [int(value) for value in values]


@dataclass(frozen=True)
class BatchReport:
    """What an import did; ``again`` maps each user to ask for again to the reason."""

    imported: int
    again: dict[int, str] = field(default_factory=dict)
    unknown: int = 0

    def __str__(self) -> str:
        """Return one line of counts and a line for each user who must be asked for again."""
        head = f"{self.imported} answers imported, {len(self.again)} users to ask for again"
        head += f", {self.unknown} lines that belong to no request" if self.unknown else ""
        return "\n".join([head, *(f"  user {user}: {why}" for user, why in self.again.items())])


def import_batches(folder: Path, store: LocalStore) -> BatchReport:
    """Take the outputs of the batches that :func:`write_batches` wrote into ``store``.

    For the input ``batch-0001.jsonl`` the API's output is expected beside it as
    ``batch-0001.output.jsonl`` and its file of errors as ``batch-0001.error.jsonl``; either may be
    missing. An answer that names no candidate is not stored. :func:`rank_users` on the same users
    then gives the rankings, and asks a server, if there is one, for the rest.
    """
    imported, unknown, again = 0, 0, {}
    for path in sorted(Path(folder).glob("batch-[0-9]*.jsonl")):
        if path.stem.count("."):
            continue
        bodies = [json.loads(line)["body"] for line in path.open("rb")]
        model = str(bodies[0]["model"])
        wanted = [{name: body[name] for name in body if name != "model"} for body in bodies]
        people: dict[str, list[ToRank]] = {}
        with path.with_suffix(".users.jsonl").open("rb") as file:
            for line in file:
                row = json.loads(line)
                one = ToRank(row["user"], row["shown"], [])
                people.setdefault(row["key"], []).append(one)

        asked = {request_key(body): body for body in wanted}

        def unreadable(key: str, answer: Body, people: dict = people, asked: dict = asked) -> str:
            found = judge(llm.outcome_of(asked[key], answer), people[key][0], "batch")
            return found.why if found.failed else llm.usable(asked[key], answer)

        why: dict[str, str] = {}
        for kind in ("output", "error"):
            file = path.with_suffix(f".{kind}.jsonl")
            if file.exists():
                report = import_batch(file, wanted, store, model=model, judge=unreadable)
                imported += report.imported
                unknown += len(report.unknown)
                unknown += sum(name not in people for name, _ in report.failed)
                why.update(report.failed)
        for key, waiting in people.items():
            if not _answered(store, key, model, waiting[0]):
                again.update({one.user: why.get(key, "no answer") for one in waiting})
    return BatchReport(imported, again, unknown)


# --- Spark ----------------------------------------------------------------------------------------

SPARK_SCHEMA = (
    "userId long, movieIds array<long>, kind string, why string, repairs long, source string"
)
"""Columns of what :func:`in_partitions` gives, a row per user."""


def rows_to_rank(frame: pd.DataFrame) -> Iterator[ToRank]:
    """Read users from the columns ``userId``, ``shown`` (movieIds) and ``messages`` (JSON)."""
    for row in frame.itertuples(index=False):
        yield ToRank(int(row.userId), _ints(row.shown), json.loads(row.messages))


def in_partitions(
    settings: Settings,
    store: Path,
    *,
    partitions: int,
    at_once: int | None = None,
    limits: Limits | None = None,
    concurrency: int = 16,
    retries: int = 5,
    to_rank: Callable[[pd.DataFrame], Iterable[ToRank]] = rows_to_rank,
    rows_at_once: int = 500,
    **options: Any,
) -> Callable[[Iterator[pd.DataFrame]], Iterator[pd.DataFrame]]:
    """Return the function for ``mapInPandas``; its result has the columns of :data:`SPARK_SCHEMA`.

    Each partition has its own client and its share of the limits and of the budget in
    ``settings``: clients in other processes, or on other machines, cannot share them exactly.
    ``settings`` travels to the workers with the key inside, as the function's data. A task that
    Spark runs again finds the answers of its first attempt only where it finds the same store: on
    one machine, or on a disk that all share and that SQLite can lock.

    Args:
        settings: server, model, prices, budget.
        store: path of the SQLite file, as seen by the workers.
        partitions: of the table; the budget is divided by it.
        at_once: partitions that run at the same time (default: all); the limits are divided by it.
        limits: those of the server, for all partitions together.
        concurrency: requests under way in each partition.
        retries: see :func:`rank_users`.
        to_rank: turns a pandas frame of the table into users (default: :func:`rows_to_rank`); it
            runs in the thread that asks.
        rows_at_once: rows of a frame of results.
        options: go into every request.

    Raises:
        SettingsError: the limits or the budget are too small to be divided.
    """
    share = (limits or Limits()).split(at_once or partitions)
    tokens = settings.llm_max_tokens // partitions
    if tokens < 1:
        raise SettingsError("LLM_MAX_TOKENS is smaller than the number of partitions: raise it.")
    dollars = None if settings.llm_budget_usd is None else settings.llm_budget_usd / partitions

    def rank(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        budget = llm.Budget(tokens, dollars, settings.llm_price_in, settings.llm_price_out)
        with LocalStore(store) as opened:
            results = rank_users(
                (one for frame in frames for one in to_rank(frame)),
                settings,
                store=opened,
                concurrency=concurrency,
                limits=share,
                budget=budget,
                retries=retries,
                progress=False,
                **options,
            )
            with contextlib.closing(blocking(results)) as ranked:
                while rows := list(islice(ranked, rows_at_once)):
                    yield _as_frame(rows)

    return rank


def _as_frame(rows: Iterable[Ranked]) -> pd.DataFrame:
    values = [(row.user, row.order, row.kind, row.why, row.repairs, row.source) for row in rows]
    names = ["userId", "movieIds", "kind", "why", "repairs", "source"]
    return pd.DataFrame(values, columns=names)


# --- cost -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a job costs in US dollars; prices are dollars per million tokens.

    ``cached_share`` is the share of the prompt tokens that the server reads from its cache, at
    ``cache_discount`` off; ``batch_discount`` comes off the whole. Both are shares between 0 and 1.
    Whether a server grants both at once is its own rule: set one to 0 where it does not.
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
        """Refuse shares outside 0 to 1 and negative amounts."""
        for name in ("batch_discount", "cached_share", "cache_discount"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it lies between 0 and 1.")
        for name in ("users", "prompt_tokens", "output_tokens", "price_in", "price_out"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative.")

    @property
    def input_usd(self) -> float:
        """For all prompts."""
        paid = 1 - self.cached_share * self.cache_discount
        tokens = self.users * self.prompt_tokens
        return tokens * paid * self.price_in * (1 - self.batch_discount) / 1e6

    @property
    def output_usd(self) -> float:
        """For all answers."""
        tokens = self.users * self.output_tokens
        return tokens * self.price_out * (1 - self.batch_discount) / 1e6

    @property
    def total_usd(self) -> float:
        """For everything."""
        return self.input_usd + self.output_usd

    @property
    def usd_per_1000_users(self) -> float:
        """For a thousand users; 0 where there are none."""
        return 1000 * self.total_usd / self.users if self.users else 0.0
