"""Stores: nothing finished is lost, nothing corrupt is believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import warnings

import pytest
from misbehaving_server import completion

from conftest import ROOT
from helpers import llm
from helpers.replies import (
    CommittedStore,
    LocalStore,
    PendingRequests,
    Reply,
    StoreWarning,
    request_key,
    write_jsonl,
)


def body(text: str) -> dict:
    return {"messages": [{"role": "user", "content": text}]}


def replies_to(*texts: str) -> list[Reply]:
    return [Reply(request_key(body(t)), completion(t), "", body(t)) for t in texts]


def test_the_key_follows_what_is_asked_and_nothing_else():
    same = request_key({**body("a"), "model": "x", "temperature": 1, "user": "u"})
    assert same == request_key(body("a")) != request_key(body("a "))
    assert len({request_key({**body("a"), **seed}) for seed in ({}, {"seed": 1}, {"seed": 2})}) == 3
    old, new, more = (
        request_key({**body("a"), **limit})
        for limit in ({"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 6})
    )
    assert old == new != more and same not in (old, more)
    schema = {"type": "object", "properties": {"title": {"type": "string", "title": "T"}}}
    plain = {"type": "object", "properties": {"title": {"type": "string"}}}
    other = {"type": "object", "properties": {"name": {"type": "string"}}}
    keys = [request_key({**body("a"), "response_format": s}) for s in (schema, plain, other)]
    assert keys[0] == keys[1] != keys[2]


def test_sixteen_threads_lose_no_reply(tmp_path):
    store, other = LocalStore(tmp_path / "r.jsonl"), LocalStore(tmp_path / "r.jsonl")

    def write(thread: int) -> None:
        for number in range(10):
            (store, other)[number % 2].put(body(f"{thread}-{number}"), completion("x"), model="m")

    threads = [threading.Thread(target=write, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.all()) == len(other.all()) == 160 and store.models() == ["m"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_loses_no_finished_reply(tmp_path):
    path = tmp_path / "r.jsonl"
    script = (
        "import sys\nfrom helpers.replies import LocalStore\n"
        f"store = LocalStore({str(path)!r})\n"
        "for n in range(100000):\n"
        "    store.put({'messages': [{'role': 'user', 'content': str(n)}]},"
        " {'choices': [{'message': {}}]})\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    for _ in range(50):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    done = 50 + len(process.stdout.read().splitlines())
    process.wait()
    with LocalStore(path) as store:
        assert all(store.get(request_key(body(str(n)))) for n in range(done - 1))


def test_a_torn_line_costs_no_other(tmp_path):
    path = tmp_path / "r.jsonl"
    LocalStore(path).put(body("a"), completion("a"))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    store = LocalStore(path)
    store.put(body("b"), completion("b"))
    with pytest.warns(StoreWarning, match=r"r\.jsonl, line 2"):
        assert [reply.request for reply in store.all()] == [body("a"), body("b")]


def test_a_corrupt_line_is_skipped_and_named(tmp_path):
    path = tmp_path / "x.jsonl"
    write_jsonl(replies_to("a", "b"), path)
    lines = path.read_text().splitlines()
    forged = json.loads(lines[0]) | {"request": body("changed")}
    path.write_text("\n".join([lines[0], "{torn", json.dumps(forged), lines[1]]))
    with pytest.warns(StoreWarning) as caught:
        assert len(CommittedStore(tmp_path).all()) == 2
    messages = [str(warning.message) for warning in caught]
    assert "x.jsonl, line 2" in messages[0] and "x.jsonl, line 3" in messages[1]


def test_the_newest_reply_wins_unless_it_is_of_no_use(tmp_path):
    with LocalStore(tmp_path / "r.jsonl") as store:
        store.put(body("a"), completion("old"), model="one")
        store.put(body("a"), completion("new"), model="two")
        store.put(body("a"), completion("cut", finish="length"), model="two", server="s")
        key = request_key(body("a"))
        assert store.get(key, fault=llm.usable).response == completion("new")
        assert store.get(key, model="one").response == completion("old")
        assert store.get(key, model="three") is None and store.get(key, server="s") is not None
        store.put(body("a"), completion("again"), model="one")
        assert store.get(key).response == completion("again") and len(store.all()) == 3
        assert LocalStore(tmp_path / "r.jsonl").forget() == 3 and store.all() == []


def test_pending_requests_are_kept_once_with_every_character(tmp_path):
    mine, other = (PendingRequests(tmp_path / "p.jsonl") for _ in range(2))
    texts = ["next\u0085line", "line\u2028separator", "Amélie", "half \ud83d of a pair"]
    for text in texts:
        mine.add(body(text))
        other.add(body(text))
    assert mine.all() == other.all() == [body(text) for text in texts]
    assert len((tmp_path / "p.jsonl").read_bytes().splitlines()) == len(texts)


def test_the_committed_replies_are_whole_and_say_who_made_them():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        committed = CommittedStore(ROOT / "data" / "replies").all()
    assert len(committed) > 1700
    for reply in committed:
        assert reply.model == "claude"
        assert "usage" not in reply.response  # unknown, so not invented
