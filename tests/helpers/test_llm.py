"""The client in its modes, what each fault of a server gives, what is stored, and the budget."""

from __future__ import annotations

import dataclasses
import json
import warnings
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from misbehaving_server import FAULTS, completion, serve

from helpers import llm, prompts, ranking, servers
from helpers.budget import Budget
from helpers.replies import LocalStore, PendingRequests, Reply, request_key, write_jsonl
from helpers.settings import Settings, SettingsError

KEY = "sk-secret-0123456789abcdef"
MESSAGES = [{"role": "user", "content": "Rank A and B."}]
RANKED = '{"ranking": ["A"]}'


@pytest.fixture
def offline(tmp_path) -> Settings:
    (tmp_path / "data" / "sample").mkdir(parents=True)
    (tmp_path / "data" / "replies").mkdir()
    return Settings(root=tmp_path)


def live(settings, server, **changes) -> Settings:
    return dataclasses.replace(
        settings, llm_mode="live", llm_base_url=server.url, llm_api_key=KEY,
        llm_model="served", llm_timeout_s=5.0, **changes,
    )  # fmt: skip


def ask(settings, retries=0, messages=MESSAGES, **options):
    with llm.connect(settings).with_options(max_retries=retries) as client:
        return llm.ask(client, messages, model=llm.model(settings), **options)


def record(settings, body, answer):
    write_jsonl([Reply(request_key(body), answer, "", body)], settings.replies_dir / "x.jsonl")


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_has_its_kind_and_keeps_the_retrievers_order(offline, kind):
    with serve(FAULTS[kind]) as server:
        outcome = ask(live(offline, server))
    assert outcome.kind == kind and outcome.why in outcome.describe()
    ranked = ranking.read_ranking(
        outcome.text if kind != "refusal" else None, 3, fallback=[2, 0, 1]
    )
    assert ranked.failed and ranked.order == [2, 0, 1]


def test_a_slow_server_is_a_time_out_and_a_dead_port_names_the_address(offline):
    with serve(("sleep", 1.0)) as server:
        settings = dataclasses.replace(live(offline, server), llm_timeout_s=0.2)
        assert ask(settings).kind == "timeout"
    outcome = ask(settings)
    assert outcome.kind == "connection" and "OPENAI_BASE_URL" in outcome.why


# --- who answers ----------------------------------------------------------------------------------


def test_a_live_reply_is_stored_and_answers_again_but_the_key_is_nowhere(offline):
    with serve(("status", 500), ("ok", completion("fine"))) as server:
        settings = live(offline, server)
        assert ask(settings).kind == "server_error"  # which is not stored
        assert ask(settings).describe() == "LLM reply, live, by served"
        assert ask(settings).describe() == "LLM reply, stored, by served"
        assert len(server.requests) == 2 and server.authorization == f"Bearer {KEY}"
    assert ask(offline).text == "fine"
    for path in offline.cache_dir.rglob("*"):
        assert KEY.encode() not in path.read_bytes()
    assert KEY not in repr(settings)


def test_committed_records_come_first_without_a_server_and_never_with_one(offline):
    body = {"messages": MESSAGES}
    with LocalStore(offline.cache_dir / "replies.jsonl") as store:
        store.put(body, completion("mine"), model="served", server="s")
    assert "Claude" not in llm.describe(offline) and "served" in llm.describe(offline)
    assert ask(offline).describe() == "LLM reply, stored, by served"
    record(offline, body, completion("theirs") | {"model": "claude"})
    assert ask(offline).text == "theirs"
    assert ask(offline).describe() == "LLM reply, recorded, by claude"
    assert "Claude" in llm.describe(offline)
    with serve(("ok", completion("live"))) as server:
        assert ask(live(offline, server)).text == "live"


def test_mode_none_ignores_records_and_notes_the_request(offline):
    body = {"messages": MESSAGES}
    record(offline, body, completion("recorded"))
    settings = dataclasses.replace(offline, llm_mode="none")
    assert "none;" in llm.describe(settings) and ask(settings).kind == "no_reply"
    assert PendingRequests(offline.cache_dir / "pending.jsonl").all() == [body]


def test_parse_reads_a_recorded_profile(offline):
    profile = prompts.Profile(summary="s", genres=[], eras=[], themes=[], dislikes=[])
    form = llm.response_format(prompts.Profile)
    record(
        offline,
        {"messages": MESSAGES, "response_format": form},
        completion(profile.model_dump_json()),
    )
    with llm.connect(offline) as client:
        parsed = client.chat.completions.parse(
            model="any", messages=MESSAGES, response_format=prompts.Profile
        )
        assert parsed.choices[0].message.parsed == profile
        with pytest.raises(openai.OpenAIError, match="stream"):
            client.chat.completions.create(model="any", messages=MESSAGES, stream=True)


def test_what_is_missing_is_named(offline):
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL"):
        llm.describe(dataclasses.replace(offline, llm_mode="live"))
    with pytest.raises(SettingsError, match="LLM_MODEL"):
        llm.describe(dataclasses.replace(offline, llm_mode="live", llm_api_key=KEY))
    half = dataclasses.replace(offline, llm_base_url="http://127.0.0.1:9/v1")
    assert "LLM_MODEL is not set" in llm.describe(half)


# --- what a server refuses ------------------------------------------------------------------------

RULED = [{"role": "system", "content": "Be brief."}, *MESSAGES]


def refuser(*parts):
    """Return a server's rule: a request with one of the parts is an error that says so."""

    def answer(body):
        for part in parts:
            role = part == "system" and any(m["role"] == "system" for m in body["messages"])
            kind = part == (body.get("response_format") or {}).get("type")
            if role or kind or part in body:
                return 400, {"error": {"message": f"{part} is not supported"}}
        return 200, completion(RANKED)

    return answer


@pytest.mark.parametrize(
    ("parts", "requests"),
    [
        (["json_schema"], 2), (["temperature"], 2), (["seed"], 2), (["system"], 2),
        (["max_completion_tokens"], 2), (["json_schema", "system", "seed"], 2),
    ],
)  # fmt: skip
def test_what_a_server_refuses_is_asked_for_plainly_and_remembered(offline, parts, requests):
    asked = {"schema": ranking.LetterRanking, "model": "served", "seed": 1, "temperature": 0.2}
    with serve(refuser(*parts)) as server:
        client = llm.connect(live(offline, server)).with_options(max_retries=0)
        with pytest.warns(servers.ServerWarning, match="served"):
            assert llm.ask(client, RULED, **asked).value == ranking.LetterRanking(ranking=["A"])
        assert len(server.requests) == requests
        with warnings.catch_warnings():
            warnings.simplefilter("error", servers.ServerWarning)
            other = [RULED[0], {"role": "user", "content": "Rank A and C."}]
            assert llm.ask(client, other, **asked).kind == "ok"
        assert len(server.requests) == requests + 1  # at once in the form that was taken
        client.close()
    schema = llm.response_format(ranking.LetterRanking)["json_schema"]["schema"]
    last = server.requests[-1]["messages"][-1]["content"]
    assert "Rank A and C." in last and json.loads(last.rpartition("\n")[2]) == schema
    again = ask(offline, messages=RULED, schema=ranking.LetterRanking, seed=1)
    assert again.source == "stored"  # the record is that of the request as it was asked


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "model not found"), (400, "maximum context length is 512 tokens"), (401, "no")],
)
def test_an_error_that_no_plainer_form_mends_is_asked_once(offline, status, message):
    with serve(("reply", (status, {"error": {"message": message}}))) as server:
        assert ask(live(offline, server), seed=1).kind == "rejected" and len(server.requests) == 1


# --- shapes of answers and of errors --------------------------------------------------------------


def shaped(finish="stop", **message):
    body = completion(None, finish=finish)
    body["choices"][0]["message"] = {"role": "assistant", **message}
    return body


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (shaped(content=[{"type": "text", "text": "fi"}, {"text": "ne"}]), "ok", "fine"),
        (shaped(content=None, refusal="no, not this"), "refusal", None),
        (shaped(content=None, reasoning_content="hm"), "empty", None),
        (shaped("length", content="fi"), "truncated", "fi"),
        (shaped("content_filter", content="fi"), "refusal", None),
        (shaped(None, content="fine"), "ok", "fine"),
        (shaped(), "empty", None),
        (completion("fine") | {"usage": None}, "ok", "fine"),
    ],
)
def test_each_shape_of_an_answer(offline, body, kind, text):
    with serve(("ok", body)) as server:
        outcome = ask(live(offline, server))
    assert (outcome.kind, outcome.text) == (kind, text) and bool(outcome.why) == (kind != "ok")
    assert ask(offline).kind == ("ok" if kind == "ok" else "no_reply")  # only the usable is stored


@pytest.mark.parametrize(
    ("status", "error", "kind", "words", "hint"),
    [
        (404, {"error": {"message": "model 'x' not found"}}, "rejected", "not found", "LLM_MODEL"),
        (404, {"error": "no such model"}, "rejected", "no such model", "OPENAI_BASE_URL"),
        (401, {"error": {"message": "Incorrect key"}}, "rejected", "Incorrect", "OPENAI_API_KEY"),
        (403, {"detail": "Forbidden for you"}, "rejected", "Forbidden for you", "OPENAI_API_KEY"),
        (400, [{"error": {"message": '"k" not valid'}}], "rejected", '"k" not valid', ""),
        (400, {"message": "maximum context length is 10"}, "rejected", "is 10", "shorter"),
        (429, {"error": {"message": "slow down"}}, "rate_limited", "slow down", "wait"),
        (503, b"<html><title>Busy and full</title></html>", "server_error", "Busy", "later"),
        (502, b"", "server_error", "502", "later"),
        (200, {"error": {"message": "Daily limit of 50"}}, "quota", "Daily limit", "billing"),
        (200, {"error": "overloaded, sorry"}, "rejected", "overloaded", ""),
        (200, {"hello": "world"}, "malformed", "world", "OPENAI_BASE_URL"),
    ],
)
def test_the_servers_own_words_are_kept(offline, status, error, kind, words, hint):
    with serve(("reply", (status, error))) as server:
        outcome = ask(live(offline, server))
    assert outcome.kind == kind and words in outcome.why and hint in outcome.why


def test_long_words_are_shortened_and_a_key_is_never_among_them(offline):
    said = f"Incorrect API key provided: {KEY}, see https://x.example/?key={KEY} " + "word " * 500
    with serve(("reply", (401, {"error": {"message": said}}))) as server:
        outcome = ask(live(offline, server))
    assert KEY not in outcome.why and "[key]" in outcome.why and len(outcome.why) < 300


def test_spent_quota_is_not_asked_for_again_but_a_pause_is(offline):
    spent = {"error": {"message": "You exceeded your current quota.", "code": "insufficient_quota"}}
    with serve(("reply", (429, spent))) as server:
        assert ask(live(offline, server), retries=2).kind == "quota" and len(server.requests) == 1
    with serve(("status", 429), ("ok", completion("fine"))) as server:
        assert ask(live(offline, server), retries=2).text == "fine"


@pytest.mark.parametrize("text", ['{"genres": ["Romance"]}', "I cannot."])
def test_an_answer_of_another_schema_is_neither_stored_nor_replayed(offline, text):
    body = {"messages": MESSAGES, "response_format": llm.response_format(ranking.LetterRanking)}
    with serve(("ok", completion(text)), ("ok", completion(RANKED))) as server:
        settings = live(offline, server)
        assert ask(settings, schema=ranking.LetterRanking).kind == "unreadable"
        with LocalStore(offline.cache_dir / "replies.jsonl") as store:
            assert store.all() == [] and llm.usable(body, completion(text))
            store.put(body, completion(text), model="served")
        assert ask(offline, schema=ranking.LetterRanking).kind == "no_reply"
        assert ask(settings, schema=ranking.LetterRanking).kind == "ok"


# --- the budget -----------------------------------------------------------------------------------


def test_every_request_carries_the_limit_that_is_set_aside_for_it(offline):
    with serve(("ok", completion("fine"))) as server:
        ask(live(offline, server, llm_reply_tokens=700))
        ask(live(offline, server), max_tokens=50)
        outcome = ask(live(offline, server, llm_max_tokens=1100), seed=1)
    assert outcome.kind == "budget" and "LLM_REPLY_TOKENS" in outcome.why
    assert [b.get("max_completion_tokens") for b in server.requests] == [700, None]
    assert server.requests[1]["max_tokens"] == 50


def test_threads_wait_for_room_that_comes_back(offline):
    with serve(("ok", completion("fine"))) as server:
        settings = live(offline, server, llm_max_tokens=4500)  # one at a time
        with llm.connect(settings) as client, ThreadPoolExecutor(8) as pool:
            texts = [[{"role": "user", "content": str(i)}] for i in range(20)]
            kinds = list(pool.map(lambda m: llm.ask(client, m, model="served").kind, texts))
    assert kinds == ["ok"] * 20


@pytest.mark.parametrize(
    ("step", "spent"),
    [
        (("sleep", 1.0), 108), ("cut", 108), (("raw", b"<html>"), 108),
        (("reply", (504, b"late")), 108), (("reply", (500, b"no")), 0),
        (("ok", completion("fine")), 18), (("ok", completion("fine", usage=False)), None),
    ],
)  # fmt: skip
def test_what_a_request_took_is_counted_and_a_lost_answer_in_full(offline, step, spent):
    with serve(step) as server:
        settings = dataclasses.replace(live(offline, server), llm_timeout_s=0.5)
        budget = Budget(5000, 1.0, price_in=1.0, price_out=2.0)
        with llm.connect(settings, budget=budget).with_options(max_retries=0) as client:
            llm.ask(client, MESSAGES, model="served", max_tokens=100)
    assert budget.spent_tokens == spent if spent is not None else 18 < budget.spent_tokens < 108
    if spent == 18:
        assert budget.spent_usd == pytest.approx(25e-6)


def test_a_request_that_never_left_costs_nothing_and_dollars_need_prices(offline):
    address = "http://127.0.0.1:9/v1"
    settings = dataclasses.replace(offline, llm_mode="live", llm_base_url=address, llm_model="m")
    budget = Budget.of(settings)
    with llm.connect(settings, budget=budget).with_options(max_retries=0) as client:
        assert llm.ask(client, MESSAGES, model="m").kind == "connection"
    assert budget.spent_tokens == 0
    with pytest.raises(SettingsError, match="LLM_PRICE_IN"):
        Budget(max_usd=1.0)


def test_a_prompt_cut_by_the_servers_window_is_said_and_not_stored(offline):
    messages = [{"role": "user", "content": "word " * 1600}]  # about 2,000 tokens
    reply = completion("fine")
    reply["usage"]["prompt_tokens"] = 512
    with serve(("ok", reply)) as server:
        outcome = ask(live(offline, server), messages=messages)
    assert outcome.kind == "prompt_cut" and "512 of about 2004" in outcome.why
    assert ask(offline, messages=messages).kind == "no_reply"


# --- on the way -----------------------------------------------------------------------------------


def test_a_proxy_counts_as_it_does_for_a_plain_client(offline, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(("ok", completion("fine"))) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        settings = dataclasses.replace(live(offline, server), llm_base_url="http://llm.invalid/v1")
        assert ask(settings).text == "fine"
        assert server.paths == ["http://llm.invalid/v1/chat/completions"]
