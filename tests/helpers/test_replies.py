"""Stores: nothing finished is lost, nothing corrupt is believed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from misbehaving_server import completion

from conftest import ROOT
from helpers.replies import Store, request_key


def body(text: str) -> dict:
    return {"messages": [{"role": "user", "content": text}]}


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


def test_threads_and_two_writers_lose_no_reply_and_no_character(tmp_path):
    stores = [Store(tmp_path / "r.jsonl") for _ in range(2)]
    odd = ["next\u0085line", "line\u2028separator", "Amélie", "half \ud83d of a pair"]
    texts = [*odd, *map(str, range(100))]
    with ThreadPoolExecutor(16) as pool:
        for number, text in enumerate(texts):
            pool.submit(stores[number % 2].put, body(text), completion(text), model="m")
    kept = Store(tmp_path / "r.jsonl")
    assert len(kept.all()) == len(texts) and {reply.asked for reply in kept.all()} == {"m"}
    assert all(kept.get(request_key(body(t))).response == completion(t) for t in texts)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_loses_no_finished_reply(tmp_path):
    script = (
        "import sys\nfrom helpers.replies import Store\n"
        f"store = Store({str(tmp_path / 'r.jsonl')!r})\n"
        "for n in range(100000):\n"
        "    store.put({'messages': [{'role': 'user', 'content': str(n)}]}, {})\n"
        "    print(n, flush=True)\n"
    )
    command = [sys.executable, "-c", script]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    for _ in range(50):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    done = 50 + len(process.stdout.read().splitlines())
    process.wait()
    store = Store(tmp_path / "r.jsonl")
    assert all(store.get(request_key(body(str(n)))) for n in range(done - 1))


def test_torn_lines_cost_no_other_and_are_named(tmp_path):
    path = tmp_path / "r.jsonl"
    Store(path).put(body("a"), completion("a"))
    record = path.read_bytes().strip()
    path.write_bytes(record + b'\n{"request": []}\n' + record[:50])
    with pytest.warns(UserWarning, match=r"r\.jsonl, line [23]: skipped"):
        Store(path).put(body("b"), completion("b"))
    with pytest.warns(UserWarning) as caught:
        kept = Store(tmp_path).all()
    assert [reply.request for reply in kept] == [body("a"), body("b")]
    assert ["line 2" in str(caught[0].message), "line 3" in str(caught[1].message)] == [True, True]


def test_the_newest_reply_wins(tmp_path):
    store, key = Store(tmp_path / "r.jsonl"), request_key(body("a"))
    for text, model in (("1", "one"), ("2", "two"), ("3", "two")):
        store.put(body("a"), completion(text), model=model)
    for found in (store, Store(tmp_path / "r.jsonl")):
        assert found.get(key).response == completion("3")
        assert found.get(key, "one").response == completion("1")
        assert found.get(key, "three") is None and len(found.all()) == 3
