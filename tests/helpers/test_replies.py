"""Stores: nothing finished is lost, nothing corrupt is believed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings

import course
import pytest
from misbehaving_server import completion

from conftest import ROOT
from helpers import llm, replies
from helpers.replies import (
    CommittedStore,
    LocalStore,
    PendingRequests,
    Reply,
    StoreDamagedError,
    StoreWarning,
    request_key,
    write_jsonl,
)
from research.batch import export_batch, import_batch


def body(text: str) -> dict:
    return {"messages": [{"role": "user", "content": text}]}


def test_the_key_follows_what_is_asked_and_nothing_else():
    same = request_key({**body("a"), "model": "x", "temperature": 1, "user": "u"})
    assert same == request_key(body("a"))
    # A seed asks for another reading of the same prompt.
    assert len({request_key({**body("a"), **seed}) for seed in ({}, {"seed": 1}, {"seed": 2})}) == 3
    assert request_key(body("a ")) != request_key(body("a"))
    # What bounds an answer is part of the question, whichever name it has.
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
    with LocalStore(tmp_path / "r.sqlite") as store:

        def write(thread: int) -> None:
            for number in range(10):
                store.put(body(f"{thread}-{number}"), completion("x"), model="m")

        threads = [threading.Thread(target=write, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(store.all()) == 160


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_loses_no_finished_reply(tmp_path):
    script = (
        "import sys\nfrom helpers.replies import LocalStore\n"
        f"store = LocalStore({str(tmp_path / 'r.sqlite')!r})\n"
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
    with LocalStore(tmp_path / "r.sqlite") as store:
        assert all(store.get(request_key(body(str(n)))) for n in range(done - 1))
        assert len(store.all()) >= done - 1
        with sqlite3.connect(tmp_path / "r.sqlite") as database:
            assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_kill_while_the_committed_file_is_written_leaves_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "x.jsonl"
    old = [Reply(request_key(body(str(n))), completion("x"), "", body(str(n))) for n in range(300)]
    write_jsonl(old, path)
    script = (
        "from pathlib import Path\nfrom helpers.replies import read_jsonl, write_jsonl\n"
        f"path = Path({str(path)!r})\n"
        "replies = list(read_jsonl(path))\n"
        "while True:\n"
        "    write_jsonl(replies, path)\n"
        "    print('again', flush=True)\n"
    )
    for pause in (0.0, 0.003, 0.007):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
        process.stdout.readline()
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a corrupt line would warn
            assert len(CommittedStore(tmp_path).all()) == 300


def test_a_corrupt_line_is_skipped_and_named(tmp_path):
    path = tmp_path / "x.jsonl"
    replies = [Reply(request_key(body(t)), completion(t), "", body(t)) for t in "ab"]
    write_jsonl(replies, path)
    lines = path.read_text().splitlines()
    forged = json.loads(lines[0])
    forged["request"] = body("changed")
    path.write_text("\n".join([lines[0], "{torn", json.dumps(forged), lines[1]]))
    with pytest.warns(StoreWarning) as caught:
        found = CommittedStore(tmp_path).all()
    assert len(found) == 2
    said = [str(warning.message) for warning in caught]
    assert "x.jsonl, line 2" in said[0] and "x.jsonl, line 3" in said[1]


def test_pending_requests_are_kept_once(tmp_path):
    pending = PendingRequests(tmp_path / "p.jsonl")
    for text in "aba":
        pending.add(body(text))
    assert pending.all() == [body("a"), body("b")]


def test_a_torn_pending_line_costs_no_other_request(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(body("a")) + '\n{"messages": [{"ro')
    PendingRequests(path).add(body("b"))
    assert PendingRequests(path).all() == [body("a"), body("b")]


def test_the_list_of_waiting_requests_grows_with_its_length_alone(tmp_path, monkeypatch):
    keys = []
    monkeypatch.setattr(replies, "request_key", lambda body: keys.append(1) or request_key(body))
    mine, other = (PendingRequests(tmp_path / "p.jsonl") for _ in range(2))
    for number in range(300):
        (mine, other)[number % 7 == 0].add(body(str(number)))
        mine.add(body(str(number)))  # also what another process has noted is noted once
    assert [one["messages"][0]["content"] for one in mine.all()] == [str(n) for n in range(300)]
    assert len(keys) < 300 * 5
    (tmp_path / "p.jsonl").unlink()
    mine.add(body("1"))
    assert mine.all() == [body("1")]


def test_one_command_forgets_stored_replies_and_waiting_requests(tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "sample").mkdir(parents=True)
    (tmp_path / "data" / "replies").mkdir()
    kept = tmp_path / "data" / "replies" / "x.jsonl"
    write_jsonl([Reply(request_key(body("a")), completion("a"), "", body("a"))], kept)
    PendingRequests(tmp_path / "data" / "cache" / "pending.jsonl").add(body("b"))
    with LocalStore(tmp_path / "data" / "cache" / "replies.sqlite") as store:
        store.put(body("c"), completion("c"))
        monkeypatch.setenv("HELPERS_HOME", str(tmp_path))
        assert course.main(["forget"]) == 0
        assert store.all() == []
    assert capsys.readouterr().out == "1 stored replies and 1 waiting requests are forgotten.\n"
    assert not PendingRequests(tmp_path / "data" / "cache" / "pending.jsonl").all()
    assert len(CommittedStore(kept.parent).all()) == 1


def test_an_older_sound_reply_stands_for_a_newer_bad_one(tmp_path):
    with LocalStore(tmp_path / "r.sqlite") as store:
        store.put(body("a"), completion("good"), model="one")
        time.sleep(0.01)
        store.put(body("a"), completion("cut", finish="length"), model="two")
        assert store.get(request_key(body("a")), fault=llm.usable).response == completion("good")


def test_any_character_survives_in_a_pending_request(tmp_path):
    texts = ["next\u0085line", "line\u2028separator", "Amélie", "half \ud83d of a pair"]
    pending = PendingRequests(tmp_path / "p.jsonl")
    for text in texts:
        pending.add(body(text))
    assert pending.all() == [body(text) for text in texts]
    assert export_batch(pending.all(), tmp_path / "in.jsonl", "m") == len(texts)
    assert len((tmp_path / "in.jsonl").read_bytes().splitlines()) == len(texts)


def test_batch_files_go_out_and_come_back_with_every_fault_reported(tmp_path):
    asked = [body(text) for text in "abcd"]
    keys = [request_key(one) for one in asked]
    assert export_batch([*asked, asked[0]], tmp_path / "in.jsonl", "some-model") == 4
    first = json.loads((tmp_path / "in.jsonl").read_text().splitlines()[0])
    assert first["custom_id"] == keys[0] and first["body"]["model"] == "some-model"
    assert first["url"] == "/v1/chat/completions" and first["method"] == "POST"
    answers = [
        {"custom_id": keys[0], "response": {"status_code": 200, "body": completion("yes")}},
        {"custom_id": keys[1], "response": {"status_code": 500, "body": {}}},
        {"custom_id": keys[2], "response": None, "error": {"message": "expired"}},
        {"custom_id": "stranger", "response": {"status_code": 200, "body": completion("?")}},
    ]
    text = "\n".join(json.dumps(answer) for answer in answers) + "\n{torn"
    (tmp_path / "out.jsonl").write_text(text)
    with LocalStore(tmp_path / "r.sqlite") as store:
        report = import_batch(tmp_path / "out.jsonl", asked, store)
        assert store.get(keys[0]).response["choices"][0]["message"]["content"] == "yes"
        assert len(store.all()) == 1
    assert report.imported == 1 and not report.complete
    assert dict(report.failed) == {
        keys[1]: "status 500", keys[2]: "expired", "line 5": "not a Batch API output line"
    }  # fmt: skip
    assert report.unanswered == [keys[3]] and report.unknown == ["stranger"]
    assert all(name in str(report) for name in (keys[1], "expired", "line 5", keys[3]))


def test_the_newest_reply_wins(tmp_path):
    with LocalStore(tmp_path / "r.sqlite") as store:
        store.put(body("a"), completion("old"), model="one")
        time.sleep(0.01)
        store.put(body("a"), completion("new"), model="two")
        assert (
            store.get(request_key(body("a"))).response["choices"][0]["message"]["content"] == "new"
        )
        assert store.get(request_key(body("a")), model="one") is not None
        assert store.get(request_key(body("a")), model="three") is None


def test_the_committed_replies_are_whole_and_say_who_made_them():
    found = CommittedStore(ROOT / "data" / "replies").all()
    assert found
    for reply in found:
        assert reply.model == "claude"
        assert "usage" not in reply.response  # unknown, so not invented


def test_a_damaged_local_store_is_one_sentence(tmp_path):
    path = tmp_path / "replies.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreDamagedError, match=r"replies\.sqlite cannot be read .*move it"):
        LocalStore(path)
    assert path.read_bytes().startswith(b"this is not")  # nothing was overwritten
