"""Ranking for many users, against a server that takes 200 ms for an answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections import Counter

import openai
import pandas as pd
import pytest
from misbehaving_server import completion, serve
from slow_server import slow_server

from conftest import ROOT
from helpers import budgets, llm
from helpers.replies import LocalStore, request_key
from helpers.settings import Settings, SettingsError
from research import evaluation, scale

SHOWN = [10, 20, 30]
MANY = int(os.environ.get("SCALE_USERS", "2000"))


def user(number: int, note: str = "") -> scale.ToRank:
    return scale.ToRank(number, SHOWN, [{"role": "user", "content": f"user {number} {note}"}])


def users(n: int, note: str = ""):
    return (user(number, note) for number in range(n))


def settings_for(url: str | None, **more: str) -> Settings:
    env = {"HELPERS_HOME": str(ROOT), "LLM_MAX_TOKENS": "100000000", **more}
    if url:
        env |= {"OPENAI_BASE_URL": url, "LLM_MODEL": "served"}
    return Settings.from_env(env)


def rank(people, url, tmp_path, **options):
    options = {"progress": False, "max_completion_tokens": 40, **options}
    settings = options.pop("settings", None) or settings_for(url)
    with LocalStore(tmp_path / "replies.jsonl") as store:
        return list(scale.blocking(scale.rank_users(people, settings, store=store, **options)))


def stored(tmp_path) -> set[int]:
    with LocalStore(tmp_path / "replies.jsonl") as store:
        texts = [reply.request["messages"][-1]["content"] for reply in store.all()]
    return {int(text.split()[1]) for text in texts}


# --- speed and limits -----------------------------------------------------------------------------


@pytest.mark.alone
def test_sixteen_at_a_time_are_many_times_as_fast(tmp_path):
    """The target is 12; 9 is what a busy machine must reach, and half the concurrency cannot."""
    n, alone, ratios = 208, 8, []
    with slow_server(0.2) as server, openai.OpenAI(base_url=server.url, api_key="x") as client:
        for turn in range(8):  # the machine may be busy with something else
            start = time.perf_counter()
            for one in users(alone, f"alone {turn}"):
                body = scale.request_body(one, {"max_completion_tokens": 40})
                client.chat.completions.create(model="served", **body)
            sequential = alone / (time.perf_counter() - start)
            start = time.perf_counter()
            results = rank(users(n, f"turn {turn}"), server.url, tmp_path, concurrency=16)
            ratios.append(n / (time.perf_counter() - start) / sequential)
            assert {(r.user, *r.order) for r in results} == {(i, 30, 10, 20) for i in range(n)}
            assert {r.source for r in results} == {"live"}
            if ratios[-1] >= 12:
                break
        assert server.told()["most"] == 16
    print(f"\n{max(ratios):.1f} times the sequential throughput (turns: {len(ratios)})")
    assert max(ratios) >= 9, ratios


def busiest(times: list[float], amounts: list[int], window: float) -> int:
    """The most that any window holds; it is enough to look at those that begin with a request."""
    rows = list(zip(times, amounts, strict=True))
    return max(sum(a for t, a in rows if start <= t < start + window) for start in times)


def test_no_window_holds_more_requests_than_the_limit(tmp_path):
    limits = scale.Limits(requests=12, window_s=0.8, margin=0.25)
    people = [user(i, "fault=once503" if i % 6 == 0 else "") for i in range(34)]
    with slow_server(0.02) as server:
        results = rank(people, server.url, tmp_path, limits=limits)
        times = [at for at, _, _ in server.log()]
    assert not any(r.failed for r in results)
    assert len(times) == 34 + 6  # what is sent again counts again
    assert busiest(times, [1] * 40, 0.8) == 12
    # Without the limits it is over at once; with them, three windows must pass, and no more.
    assert 2.4 <= times[-1] - times[0] < 6


def test_no_window_holds_more_tokens_than_the_limit(tmp_path):
    notes = ["", "x" * 400, "x" * 1000]
    people = [user(i, notes[i % 3]) for i in range(30)]
    takes = {one.user: llm.estimate_tokens(scale.request_body(one)) + 40 for one in people}
    limit = 4 * max(takes.values())
    limits = scale.Limits(requests=1000, tokens=limit, window_s=0.8, margin=0.25)
    with slow_server(0.02) as server:
        results = rank(people, server.url, tmp_path, limits=limits)
        log = server.log()
    assert not any(r.failed for r in results)
    most = busiest([at for at, _, _ in log], [takes[one] for _, one, _ in log], 0.8)
    assert limit / 2 < most <= limit


def test_a_request_beyond_the_limits_is_a_failure_and_not_a_wait(tmp_path):
    limits = scale.Limits(tokens=500)
    with slow_server(0.0) as server:
        results = rank([user(1, "x" * 4000)], server.url, tmp_path, limits=limits)
        assert server.log() == []
    assert [r.kind for r in results] == ["too_large"]


def test_limits_are_divided_and_refuse_what_lets_nothing_through():
    parts = scale.Limits(requests=500, tokens=30_000).split(4)
    assert (parts.requests, parts.tokens, parts.window_s) == (125, 7500, 60)
    with pytest.raises(SettingsError, match="at least 1"):
        scale.Limits(requests=3).split(4)
    with pytest.raises(SettingsError, match="window_s"):
        scale.Limits(window_s=0)
    assert scale.Limits().split(8) == scale.Limits()


# --- faults of the server -------------------------------------------------------------------------


def test_retry_after_stops_every_request(tmp_path):
    refused = {"first": 1, "status": 429, "headers": {"Retry-After": "1.5"}}
    with slow_server(0.1, **refused) as server:
        results = rank(users(12), server.url, tmp_path, concurrency=3)
        log = server.log()
    assert not any(r.failed for r in results)
    assert [status for _, _, status in log].count(429) == 1
    assert sorted(one for _, one, status in log if status == 200) == list(range(12))
    told = log[0][0] + 0.1  # when the answer with the wait left the server
    # Two others were on their way with the first; nobody else came before the wait was over.
    early = [at for at, _, _ in log if at < told + 1.4]
    assert 1 <= len(early) <= 3


def test_retry_after_may_be_a_date_or_nonsense():
    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 27 < scale.retry_after({"retry-after": soon}) <= 30
    assert scale.retry_after({"retry-after": "2.5"}) == 2.5
    assert scale.retry_after({"retry-after": "-1"}) == 0
    assert scale.retry_after({"retry-after": "later"}) is None
    assert scale.retry_after({}) is None


def test_server_errors_are_tried_again_and_given_up_after_the_retries(tmp_path):
    people = [
        user(1, "fault=once503"),
        user(2, "fault=always500"),
        user(3),
        user(4, "fault=once400"),
    ]
    with slow_server(0.02) as server:
        results = {r.user: r for r in rank(people, server.url, tmp_path, retries=2)}
        asked = Counter(server.users())
    assert {one: result.kind for one, result in results.items()} == {
        1: "ok", 2: "server_error", 3: "ok", 4: "rejected",
    }  # fmt: skip
    assert asked == {1: 2, 2: 3, 3: 1, 4: 1}
    assert stored(tmp_path) == {1, 3}


def test_malformed_answers_are_failures_and_never_stored(tmp_path):
    faults = {1: "html", 2: "number", 3: "prose", 4: "nobody", 5: "cut"}
    people = [user(one, f"fault={fault}") for one, fault in faults.items()] + [user(6)]
    with slow_server(0.02) as server:
        results = {r.user: r for r in rank(people, server.url, tmp_path)}
        assert {one: result.kind for one, result in results.items()} == {
            1: "malformed", 2: "malformed", 3: "unreadable", 4: "unreadable", 5: "truncated",
            6: "ok",
        }  # fmt: skip
        assert all(
            result.order == [] and result.why for result in results.values() if result.failed
        )
        assert stored(tmp_path) == {6}
        # So that another run asks for these again, and for these alone.
        before = len(server.log())
        rank(people, server.url, tmp_path)
        assert sorted(server.users()[before:]) == [1, 2, 3, 4, 5]


def test_a_server_that_is_not_there_is_a_failure(tmp_path):
    results = rank(users(3), "http://127.0.0.1:9/v1", tmp_path, retries=0)
    assert [r.kind for r in results] == ["connection"] * 3


# --- budget ---------------------------------------------------------------------------------------


def test_the_budget_is_used_up_and_never_exceeded(tmp_path):
    # An answer takes 50 + 30 tokens: 10 dollars a million in, 20 out, 0.0011 dollars each.
    def budget():
        return llm.Budget(10**9, 0.05, price_in=10.0, price_out=20.0)

    first, again = budget(), budget()
    with slow_server(0.05) as server:
        results = rank(users(100), server.url, tmp_path, budget=first, concurrency=16)
        kinds = Counter(r.kind for r in results)
        assert len(results) == 100 and set(kinds) == {"ok", "budget"}
        answered = len(server.log())
        assert kinds["ok"] == answered == len(stored(tmp_path))
        assert first.spent_usd == pytest.approx(answered * 0.0011) and first.spent_usd <= 0.05
        # What requests under way had set aside was given back and used: the room left is less
        # than one request may cost, some 100 tokens in and 40 out.
        assert first.max_usd - first.spent_usd < 0.0025
        # A second run does not get the money anew, unless it is told so.
        results = rank(users(100), server.url, tmp_path, budget=again)
        assert len(server.log()) == answered
        assert again.spent_usd == pytest.approx(first.spent_usd)
        assert Counter(r.source for r in results) == {"store": answered, "none": 100 - answered}
        rank(users(100), server.url, tmp_path, budget=budget(), count_stored=False)
        assert len(server.log()) == min(100, 2 * answered)


def test_the_budget_holds_where_prompts_take_more_tokens_than_estimated(tmp_path):
    body = scale.request_body(user(0), {"max_completion_tokens": 40})
    assert 3 * llm.estimate_tokens(body) < 500
    budget = llm.Budget(20_000)
    with slow_server(0.05, prompt_tokens=500) as server:
        results = rank(users(80), server.url, tmp_path, budget=budget)
        asked = len(server.log())
    assert Counter(r.kind for r in results) == {"ok": asked, "budget": 80 - asked}
    # 530 tokens each: 37 fit.
    assert budget.spent_tokens == 530 * asked <= 20_000 and asked == 37


def test_an_answer_that_got_lost_counts_in_full(tmp_path):
    settings = settings_for(None)
    with slow_server(3.0) as server:
        settings = settings_for(server.url, LLM_TIMEOUT_S="0.3")
        budget = llm.Budget(10_000)
        results = rank(users(2), None, tmp_path, settings=settings, budget=budget, retries=0)
        body = scale.request_body(user(0), {"max_completion_tokens": 40})
    assert [r.kind for r in results] == ["timeout"] * 2
    assert budget.spent_tokens == 2 * (llm.estimate_tokens(body) + 40) and budget.estimated


# --- one client with helpers.llm ------------------------------------------------------------------


def test_what_a_server_refuses_is_left_out_for_all_users(tmp_path):
    def answer(body):
        if form := body.get("response_format"):
            return 400, {"error": {"message": f"{form['type']} is not supported"}}
        return 200, completion('{"ranking": ["C", "A", "B"]}')

    with serve(answer) as server, pytest.warns(llm.ServerWarning) as told:
        results = rank(users(6), server.url, tmp_path)
    assert {r.kind for r in results} == {"ok"} and len(told) == 1
    assert len(server.requests) == 6 + 2
    assert stored(tmp_path) == set(range(6))


def test_spent_quota_is_asked_for_once(tmp_path):
    spent = {"error": {"message": "no", "code": "insufficient_quota"}}
    with serve(("reply", (429, spent))) as server:
        (result,) = rank(users(1), server.url, tmp_path, retries=3)
    assert result.kind == "quota" and "billing" in result.why and len(server.requests) == 1


def test_the_budget_holds_where_a_server_ignores_the_limit(tmp_path):
    reply = completion('{"ranking": ["C", "A", "B"]}')
    reply["usage"] = {"prompt_tokens": 50, "completion_tokens": 8000, "total_tokens": 8050}
    budget = llm.Budget(20_000)
    with serve(("ok", reply)) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore", llm.ServerWarning)
        results = rank(users(12), server.url, tmp_path, budget=budget, concurrency=8)
    assert budget.spent_tokens == 8050 * len(server.requests) <= 20_000
    assert Counter(r.kind for r in results) == {"ok": 2, "budget": 10}


def test_a_cut_prompt_and_a_cut_answer_are_not_stored(tmp_path):
    text = '{"ranking": ["C", "A", "B"]}'
    steps = ("ok", completion(text)), ("ok", completion(text, finish="length"))
    with serve(*steps) as server:  # the first says that it read 11 tokens
        results = rank([user(1, "word " * 1600), user(2)], server.url, tmp_path, concurrency=1)
    assert [r.kind for r in results] == ["prompt_cut", "ok"] and stored(tmp_path) == set()


# --- streams --------------------------------------------------------------------------------------


def test_users_are_taken_only_as_far_ahead_as_requests_go(tmp_path):
    taken, ahead = [], []

    def endless():
        number = 0
        while True:
            taken.append(number)
            yield user(number)
            number += 1

    with slow_server(0.01) as server, LocalStore(tmp_path / "replies.jsonl") as store:
        settings = settings_for(server.url)
        results = scale.rank_users(endless(), settings, store=store, concurrency=4, progress=False)
        with contextlib.closing(scale.blocking(results)) as stream:
            for given, _ in enumerate(stream, 1):
                ahead.append(len(taken) - given)
                if given == 40:
                    break
        asked = server.users()
    assert 1 <= max(ahead) <= 4
    # Leaving the loop waits for what was paid for, and all of it is kept.
    assert len(asked) == len(set(asked)) and stored(tmp_path) == set(asked)


def test_the_same_prompt_is_asked_once(tmp_path):
    people = [user(1)._replace(user=number) for number in range(6)]
    with slow_server(0.1) as server:
        results = rank(people, server.url, tmp_path, concurrency=3)
        assert len(server.log()) == 1
    assert sorted(r.user for r in results) == list(range(6))
    assert {tuple(r.order) for r in results} == {(30, 10, 20)}


def test_it_runs_inside_a_running_loop_and_shows_the_cost(tmp_path, capsys):
    async def inside(url):
        settings = settings_for(url, LLM_PRICE_IN="10", LLM_PRICE_OUT="20")
        with LocalStore(tmp_path / "replies.jsonl") as store:
            stream = scale.rank_users(users(5), settings, store=store, total=5)
            direct = [r.user async for r in stream]
            threaded = list(
                scale.blocking(scale.rank_users(users(5), settings, store=store, progress=False))
            )
        return direct, threaded

    with slow_server(0.02) as server:
        direct, threaded = asyncio.run(inside(server.url))
    assert sorted(direct) == [0, 1, 2, 3, 4] and {r.source for r in threaded} == {"store"}
    bar = capsys.readouterr().err
    assert "5/5" in bar and "$0.0055" in bar


def test_a_store_that_cannot_be_written_stops_the_job(tmp_path, monkeypatch):
    def full(*_, **__):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(LocalStore, "put_all", full)
    with slow_server(0.02) as server:
        with pytest.raises(sqlite3.OperationalError, match="full"):
            rank(users(500), server.url, tmp_path, concurrency=4)
        # It does not go on paying for answers that are thrown away.
        assert len(server.log()) <= 8


def test_a_user_without_candidates_costs_nothing(tmp_path):
    results = rank([scale.ToRank(1, [], [])], "http://127.0.0.1:9/v1", tmp_path)
    assert results == [scale.Ranked(1, [])]


def test_replies_are_those_of_the_notebooks(tmp_path):
    with slow_server(0.02) as server:
        env = {"HELPERS_HOME": str(tmp_path), "LLM_MAX_TOKENS": "100000"}
        (tmp_path / "data" / "sample").mkdir(parents=True)
        settings = Settings.from_env({**env, "OPENAI_BASE_URL": server.url, "LLM_MODEL": "served"})
        with llm.connect(settings) as client:
            requests = {one.user: (SHOWN, one.messages) for one in users(3)}
            asked = evaluation.ask_all(client, requests, model="served")
        found = list(scale.blocking(scale.rank_users(users(4), settings, progress=False)))
        assert len(server.log()) == 4
        offline = Settings.from_env(env)
        kept = list(scale.blocking(scale.rank_users(users(5), offline, progress=False)))
    assert {r.user: r.source for r in found} == {0: "store", 1: "store", 2: "store", 3: "live"}
    assert {r.user: r.order for r in found if r.source == "store"} == asked.orders
    assert {r.user: r.kind for r in kept} == {0: "ok", 1: "ok", 2: "ok", 3: "ok", 4: "no_reply"}


# --- kill -----------------------------------------------------------------------------------------

JOB = """
import sys
from pathlib import Path
from research import evaluation, scale
from helpers.replies import LocalStore
users = (
    (user, [10, 20, 30], [{"role": "user", "content": f"user {user} "}])
    for user in range(int(sys.argv[2]))
)
with LocalStore(Path(sys.argv[1])) as store:
    for one in scale.blocking(scale.rank_users(users, store=store, progress=False)):
        print(one.user, one.kind, one.source, flush=True)
"""


@pytest.mark.slow
def test_a_killed_job_goes_on_where_it_was(tmp_path):
    """Set SCALE_USERS=10000 for the long version."""
    out = tmp_path / "out.txt"

    def start(server):
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "HELPERS_HOME": str(ROOT),
            "OPENAI_BASE_URL": server.url,
            "LLM_MODEL": "served",
            "LLM_MODE": "live",
            "LLM_MAX_TOKENS": "100000000",
        }
        command = [sys.executable, "-c", JOB, str(tmp_path / "replies.jsonl"), str(MANY)]
        return subprocess.Popen(command, env=env, stdout=out.open("w"))

    with slow_server(0.02) as server:
        job = start(server)
        while len(server.log()) < MANY * 0.4:
            assert job.poll() is None, "the job ended before it was killed"
            time.sleep(0.3)
        job.send_signal(signal.SIGKILL)
        assert job.wait() == -signal.SIGKILL
        survived, before = stored(tmp_path), server.users()
        # What was given out is on disk; a kill may tear the last line.
        assert {int(line.split()[0]) for line in out.read_text().splitlines()[:-1]} <= survived
        assert MANY * 0.3 < len(survived) < MANY and len(before) == len(set(before))
        assert start(server).wait(timeout=300) == 0
        asked = Counter(server.users())
    twice = {one for one, times in asked.items() if times > 1}
    assert set(asked) == set(range(MANY)) and max(asked.values()) <= 2
    assert len(twice) <= 16 and not twice & survived
    assert twice == set(before) - survived
    assert stored(tmp_path) == set(range(MANY))
    rows = [line.split() for line in out.read_text().splitlines()]
    assert sorted(int(row[0]) for row in rows) == list(range(MANY))
    assert {row[1] for row in rows} == {"ok"}
    assert Counter(row[2] for row in rows) == {
        "store": len(survived), "live": MANY - len(survived)
    }  # fmt: skip


# --- Batch API ------------------------------------------------------------------------------------


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reply_to(line: dict, text: str = '{"ranking": ["B", "A", "C"]}') -> str:
    message = {"role": "assistant", "content": text}
    body = {
        "model": "served-2026-01-01",
        "choices": [{"finish_reason": "stop", "message": message}],
    }
    return json.dumps(
        {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}}
    )


def test_batches_keep_the_limits_of_the_api(tmp_path):
    assert (scale.BATCH_REQUESTS, scale.BATCH_BYTES) == (50_000, 200_000_000)
    files = scale.write_batches(users(25), tmp_path / "a", "served", max_requests=10)
    assert [file.requests for file in files] == [10, 10, 5]
    size = files[0].size // 10
    by_size = scale.write_batches(users(25), tmp_path / "b", "served", max_bytes=size * 4)
    assert all(file.path.stat().st_size == file.size <= size * 4 for file in by_size)
    # As full as they can be: no file had room for the first request of the next.
    assert [file.requests for file in by_size[:-1]] == [4] * (len(by_size) - 2) + [3] or all(
        file.requests in (3, 4) for file in by_size[:-1]
    )
    for folder in (files, by_size):
        asked = [line for file in folder for line in lines(file.path)]
        assert len({line["custom_id"] for line in asked}) == len(asked) == 25
        assert {line["url"] for line in asked} == {"/v1/chat/completions"}
        assert all(line["custom_id"] == request_key(line["body"]) for line in asked)
    with pytest.raises(FileExistsError, match="new folder"):
        scale.write_batches(users(1), tmp_path / "a", "served")
    with pytest.raises(ValueError, match="user 0"):
        scale.write_batches(users(1), tmp_path / "c", "served", max_bytes=50)


def test_batches_stream_and_say_what_to_ask_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    people = [*users(10), user(3)._replace(user=99)]  # 99 has the prompt of 3
    files = scale.write_batches(iter(people), first, "served", max_requests=4)
    one, two, _ = (lines(file.path) for file in files)
    failed = {"custom_id": one[3]["custom_id"], "response": {"status_code": 400, "body": {}}}
    output = [reply_to(line) for line in one[:2]] + [reply_to(one[2], "banana"), "{torn"]
    (first / "batch-0001.output.jsonl").write_text("\n".join(output))
    (first / "batch-0001.error.jsonl").write_text(json.dumps(failed) + "\n")
    stranger = {**two[0], "custom_id": "someone"}
    output = [reply_to(line) for line in [*two, stranger]]
    (first / "batch-0002.output.jsonl").write_text("\n".join(output))
    with LocalStore(tmp_path / "replies.jsonl") as store:
        report = scale.import_batches(first, store)
        assert (report.imported, report.unknown) == (6, 2)
        assert report.again == {
            2: "the answer holds no JSON", 3: "status 400", 99: "status 400",
            8: "no answer", 9: "no answer",
        }  # fmt: skip
        assert "5 users to ask for again" in str(report)
        # Another import changes nothing; another export asks for the rest, each prompt once.
        assert scale.import_batches(first, store).again == report.again
        rest = scale.write_batches(people, second, "served", store=store)
        assert [file.requests for file in rest] == [4]
        (second / "batch-0001.output.jsonl").write_text(
            "\n".join(reply_to(line) for line in lines(rest[0].path))
        )
        assert scale.import_batches(second, store).again == {}
        assert scale.write_batches(people, tmp_path / "third", "served", store=store) == []
    # A live job with the same model finds them, and has nothing to ask.
    results = rank(people, "http://127.0.0.1:9/v1", tmp_path, max_completion_tokens=None)
    assert {r.user: (r.source, *r.order) for r in results} == {
        one.user: ("store", 20, 10, 30) for one in people
    }


# --- Spark ----------------------------------------------------------------------------------------


def test_each_partition_ranks_with_its_own_client(tmp_path, spark):
    people = [*users(11), user(11, "fault=prose")]
    table = pd.DataFrame(
        [(one.user, one.shown, json.dumps(one.messages)) for one in people],
        columns=["userId", "shown", "messages"],
    )
    store = tmp_path / "replies.jsonl"
    with slow_server(0.1) as server:
        settings = settings_for(server.url)
        ranked = scale.in_partitions(settings, store, partitions=2, concurrency=3, rows_at_once=4)
        frame = spark.createDataFrame(table).repartition(2, "userId")
        found = frame.mapInPandas(ranked, scale.SPARK_SCHEMA).toPandas().set_index("userId")
        asked = server.users()
        assert sorted(asked) == list(range(12)) and 1 < server.told()["most"] <= 6
        # Spark hands the function an iterator of frames; here it gets one without Spark.
        frames = list(ranked(iter([table[:7], table[7:]])))
        assert [len(one) for one in frames] == [4, 4, 4]
        assert server.users()[12:] == [11]
        # Each partition has half of the budget: room for one request that is under way.
        body = scale.request_body(people[0])
        room = llm.estimate_tokens(body) + budgets.completion_limit(body) + 100
        poor = settings_for(server.url, LLM_MAX_TOKENS=str(2 * room))
        little = scale.in_partitions(poor, tmp_path / "b.sqlite", partitions=2)
        kinds = Counter(pd.concat(little(iter([table])))["kind"])
    again = pd.concat(frames).set_index("userId")
    assert sorted(found.index) == sorted(again.index) == list(range(12))
    assert list(found.loc[11, ["kind", "source"]]) == ["unreadable", "none"]
    good = found.drop(index=11)
    assert set(good["kind"]) == {"ok"} and set(good["source"]) == {"live"}
    assert {tuple(order) for order in good["movieIds"]} == {(30, 10, 20)}
    assert set(again.drop(index=11)["source"]) == {"store"}
    # An answer takes 80 tokens, and the next one needs room for 1,000.
    assert kinds == {"ok": 2, "budget": 10}
    with pytest.raises(SettingsError, match="partitions"):
        scale.in_partitions(settings_for(None, LLM_MAX_TOKENS="3"), store, partitions=4)


# --- cost -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "input_usd", "output_usd"),
    [
        # A million users, 1,000 tokens in at $1 and 100 out at $4 a million.
        ({}, 1000.0, 400.0),
        ({"batch_discount": 0.5}, 500.0, 200.0),
        # 80 % of the prompt at a tenth of the price: 0.2 + 0.08 = 0.28.
        ({"cached_share": 0.8, "cache_discount": 0.9}, 280.0, 400.0),
        ({"cached_share": 0.8, "cache_discount": 0.9, "batch_discount": 0.5}, 140.0, 200.0),
        ({"cached_share": 1.0}, 1000.0, 400.0),
        ({"cache_discount": 1.0}, 1000.0, 400.0),
        ({"cached_share": 1.0, "cache_discount": 1.0}, 0.0, 400.0),
        ({"batch_discount": 1.0}, 0.0, 0.0),
    ],
)
def test_cost_by_hand(options, input_usd, output_usd):
    cost = scale.Cost(1_000_000, 1000, 100, price_in=1.0, price_out=4.0, **options)
    assert cost.input_usd == pytest.approx(input_usd)
    assert cost.output_usd == pytest.approx(output_usd)
    assert cost.total_usd == pytest.approx(input_usd + output_usd)
    assert cost.usd_per_1000_users == pytest.approx((input_usd + output_usd) / 1000)


def test_cost_agrees_with_the_budget_and_refuses_nonsense():
    cost = scale.Cost(600, 850, 120, price_in=0.25, price_out=2.0)
    assert cost.total_usd == pytest.approx(600 * llm.Budget(1, None, 0.25, 2.0).cost(850, 120))
    assert scale.Cost(0, 850, 120, 1.0, 1.0).usd_per_1000_users == 0
    with pytest.raises(ValueError, match="between 0 and 1"):
        scale.Cost(1, 1, 1, 1, 1, batch_discount=50)
    with pytest.raises(ValueError, match="negative"):
        scale.Cost(1, -1, 1, 1, 1)
