"""The client in its modes, what each fault of a server gives, what is stored, and the budget."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import openai
import pytest
from misbehaving_server import FAULTS, completion, serve

from helpers import llm, local_model, prompts, ranking
from helpers.replies import Store
from helpers.settings import Settings, SettingsError
from research.evaluation import LetterRanking

KEY = "sk-secret-0123456789abcdef"
MESSAGES = [{"role": "user", "content": "Rank A and B."}]
RANKED = '{"ranking": ["A"]}'


@pytest.fixture
def offline(tmp_path) -> Settings:
    (tmp_path / "data" / "sample").mkdir(parents=True)
    return Settings(root=tmp_path)


def live(settings, server, **changes) -> Settings:
    named = {"llm_mode": "live", "llm_base_url": server.url, "llm_model": "served"}
    named |= {"llm_api_key": KEY, "llm_timeout_s": 5.0}
    return dataclasses.replace(settings, **{**named, **changes})


def ask(settings, retries=0, messages=MESSAGES, **options):
    with llm.connect(settings).with_options(max_retries=retries) as client:
        return llm.ask(client, messages, model=llm.model(settings), **options)


def stored(settings) -> Store:
    return Store(settings.cache_dir / "replies.jsonl")


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_has_its_kind_and_keeps_the_retrievers_order(offline, kind):
    with serve(FAULTS[kind]) as server:
        outcome = ask(live(offline, server))
    assert outcome.kind == kind and outcome.why in outcome.describe()
    text = outcome.text if outcome.kind in ranking.READ else None
    ranked = ranking.read_ranking(text, 3, fallback=[2, 0, 1])
    assert ranked.failed and ranked.order == [2, 0, 1] and stored(offline).all() == []


def test_a_slow_server_is_a_time_out_and_a_dead_port_names_the_address(offline):
    with serve(("sleep", 1.0)) as server:
        settings = live(offline, server, llm_timeout_s=0.2)
        assert ask(settings).kind == "timeout"
    outcome = ask(settings)
    assert outcome.kind == "connection" and "OPENAI_BASE_URL" in outcome.why


def test_a_live_reply_is_stored_and_answers_again_but_the_key_is_nowhere(offline):
    steps = ("status", 500), ("status", 429), ("ok", completion(f"fine, {KEY}"))
    with serve(*steps) as server:
        settings = live(offline, server)
        assert ask(settings).kind == "server_error"  # which is not stored
        first = ask(settings, retries=1)
        assert first.describe() == "LLM reply, live, by served" and first.text == "fine, [key]"
        assert ask(settings).describe() == "LLM reply, stored, by served"
        assert ask(live(offline, server, llm_model="other")).source == "live"
        assert len(server.requests) == 4 and server.authorization == f"Bearer {KEY}"
    assert ask(offline).source == "stored" and "served" in llm.describe(offline)
    for path in offline.cache_dir.rglob("*"):
        assert KEY.encode() not in path.read_bytes()


def test_committed_records_come_first_without_a_server_and_never_with_one(offline):
    body = {"messages": MESSAGES}
    stored(offline).put(body, completion("mine"), model="served")
    assert "Claude" not in llm.describe(offline) and ask(offline).source == "stored"
    theirs = completion("theirs") | {"model": "claude"}
    Store(offline.replies_dir / "x.jsonl").put(body, theirs)
    assert ask(offline).describe() == "LLM reply, recorded, by claude"
    assert "Claude" in llm.describe(offline)
    with serve(("ok", completion("live"))) as server:
        assert ask(live(offline, server, llm_model="another")).text == "live"


def test_mode_none_ignores_records_and_notes_the_request(offline):
    body = {"messages": MESSAGES}
    stored(offline).put(body, completion("mine"), model="served")
    settings = dataclasses.replace(offline, llm_mode="none")
    assert "none;" in llm.describe(settings)
    with llm.connect(settings) as client:
        for _ in range(2):
            outcome = llm.ask(client, MESSAGES)
            assert outcome.kind == "no_reply" and "no LLM is configured" in outcome.why
    (waiting,) = Store(offline.cache_dir / "pending.jsonl").all()
    assert waiting.request == body


def test_the_plain_client_parses_a_record(offline):
    profile = prompts.Profile(summary="s", genres=[], eras=[], themes=[], dislikes=[])
    body = {"messages": MESSAGES, "response_format": llm.response_format(prompts.Profile)}
    stored(offline).put(body, completion(profile.model_dump_json()))
    asked = {"model": "any", "messages": MESSAGES}
    with llm.connect(offline) as client:
        parsed = client.chat.completions.parse(**asked, response_format=prompts.Profile)
        assert parsed.choices[0].message.parsed == profile
        with pytest.raises(openai.OpenAIError, match="stream"):
            client.chat.completions.create(**asked, stream=True)


RULED = [{"role": "system", "content": "Be brief."}, *MESSAGES]


def refuser(part):
    """Return a server's rule: a request with the part is an error that says so."""

    def answer(body):
        role = part in [message["role"] for message in body["messages"]]
        if role or part in body or part == (body.get("response_format") or {}).get("type"):
            return 400, {"error": {"message": f"Unsupported: {part}. Use max_completion_tokens"}}
        return 200, completion(RANKED)

    return answer


@pytest.mark.parametrize("part", ["json_schema", "system", "max_tokens", "max_completion_tokens"])
def test_what_a_server_refuses_is_asked_for_plainly(offline, part):
    limit = {part: 50} if part.startswith("max") else {}
    asked = {"schema": LetterRanking, "seed": 1, "messages": RULED, **limit}
    with serve(refuser(part)) as server:
        outcome = ask(live(offline, server), temperature=0.2, **asked)
    assert outcome.value == LetterRanking(ranking=["A"]) and len(server.requests) == 2
    schema = llm.response_format(LetterRanking)["json_schema"]["schema"]
    last = server.requests[-1]["messages"][-1]["content"]
    assert "Rank A and B." in last and json.loads(last.rpartition("\n")[2]) == schema
    assert ask(offline, **asked).source == "stored"  # the record is that of what was asked


def test_the_small_model_gets_the_callers_limit(monkeypatch):
    with serve(("ok", completion("fine"))) as server:
        running = SimpleNamespace(address=server.url, process=SimpleNamespace(poll=lambda: None))
        monkeypatch.setattr(local_model, "SHARED", [running])
        for limit in ({"max_tokens": 5}, {"max_completion_tokens": 6}, {}):
            local_model.post("", {"messages": MESSAGES, **limit})
    assert [body["max_completion_tokens"] for body in server.requests] == [5, 6, 600]


def test_letters_are_in_what_is_sent_and_never_in_the_key(offline):
    with serve(("ok", completion('{"ranking": ["B", "A"]}'))) as server:
        settings = live(offline, server)
        assert ask(settings, schema=LetterRanking, letters=2).source == "live"
        ask(settings, schema=ranking.RankingReply, letters=3)
    first, second = (r["response_format"]["json_schema"]["schema"] for r in server.requests)
    listed = first["properties"]["ranking"]
    assert listed["items"]["enum"] == ["A", "B"] and listed["minItems"] == listed["maxItems"] == 2
    assert second["$defs"]["RankedItem"]["properties"]["letter"]["enum"] == ["A", "B", "C"]
    assert second["properties"]["ranking"]["maxItems"] == 3
    assert ask(offline, schema=LetterRanking).source == "stored"


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (completion("Heat, " * 40, finish="length"), "repetition", "Heat, " * 40),
        (completion("fi", finish="content_filter"), "refusal", None),
        (completion("fine", finish=None), "ok", "fine"),
        (completion("fine") | {"usage": None}, "ok", "fine"),
    ],
)
def test_each_shape_of_an_answer(offline, body, kind, text):
    with serve(("ok", body)) as server:
        outcome = ask(live(offline, server))
    assert (outcome.kind, outcome.text) == (kind, text) and bool(outcome.why) == (kind != "ok")
    assert ask(offline).kind == ("ok" if kind == "ok" else "no_reply")  # only the usable is stored


@pytest.mark.parametrize(
    ("status", "error", "kind", "words"),
    [
        (401, {"error": {"message": f"Bad {KEY}"}}, "rejected", "Bad [key]"),
        (429, {"error": {"message": "slow down"}}, "rate_limited", "slow down"),
        (503, b"<html><title>Busy</title></html>", "server_error", "503"),
        (500, {"error": {"message": "word " * 500}}, "server_error", "word word"),
        (200, {"error": f"overloaded, {KEY}"}, "malformed", "overloaded, [key]"),
        (200, rb'{"error": "cannot open C:\models\x.gguf"}', "malformed", "cannot open C:"),
    ],
)
def test_the_servers_own_words_are_kept_but_no_key(offline, status, error, kind, words):
    with serve(("reply", (status, error))) as server:
        outcome = ask(live(offline, server))
    assert outcome.kind == kind and words in outcome.why
    assert KEY not in outcome.why and len(outcome.why) < 301


@pytest.mark.parametrize("text", ['{"genres": ["Romance"]}', "I cannot.", '{"ranking": "A"}'])
def test_an_answer_of_another_schema_is_not_stored(offline, text):
    with serve(("ok", completion(text)), ("ok", completion(RANKED))) as server:
        settings = live(offline, server)
        assert ask(settings, schema=LetterRanking).kind == "unreadable"
        assert stored(offline).all() == []
        assert ask(settings, schema=LetterRanking).kind == "ok"
    assert ask(offline, schema=LetterRanking).source == "stored"


def test_every_request_carries_the_limit_that_is_set_aside_for_it(offline):
    with serve(("ok", completion("fine"))) as server:
        ask(live(offline, server, llm_reply_tokens=700))
        ask(live(offline, server), max_tokens=50)
        outcome = ask(live(offline, server, llm_max_tokens=1100), seed=1)
    assert outcome.kind == "budget" and "LLM_MAX_TOKENS" in outcome.why
    assert [b.get("max_completion_tokens") for b in server.requests] == [700, None]
    assert server.requests[1]["max_tokens"] == 50


def test_eight_threads_never_go_over_the_limit(offline):
    with serve(("ok", completion("fine"))) as server:
        settings = live(offline, server, llm_max_tokens=400)
        budget = llm.Budget(settings)
        with llm.connect(settings, budget=budget) as client, ThreadPoolExecutor(8) as pool:
            texts = [[{"role": "user", "content": str(i)}] for i in range(60)]
            asked = {"model": "served", "max_tokens": 100}
            kinds = list(pool.map(lambda m: llm.ask(client, m, **asked).kind, texts))
    assert set(kinds) == {"ok", "budget"} and len(server.requests) == kinds.count("ok")
    assert budget.spent_tokens == 18 * kinds.count("ok") <= 400


@pytest.mark.parametrize(
    ("step", "spent"),
    [(("sleep", 1.0), 108), ("cut", 108), (("raw", b"<html>"), 108), (("reply", (503, b"no")), 0),
     (("ok", completion("fine")), 18), (("ok", completion("fine", usage=False)), 108),
     (("ok", completion("fine") | {"usage": {"total_tokens": 0}}), 108)],
)  # fmt: skip
def test_what_a_request_took_is_counted_and_an_unknown_answer_in_full(offline, step, spent):
    with serve(step) as server:
        settings = live(offline, server, llm_timeout_s=0.5 if step[0] == "sleep" else 5.0)
        budget = llm.Budget(settings)
        with llm.connect(settings, budget=budget).with_options(max_retries=0) as client:
            llm.ask(client, MESSAGES, model="served", max_tokens=100)
    assert budget.spent_tokens == spent
    with llm.connect(settings, budget=budget).with_options(max_retries=0) as client:  # it is gone
        asked = {"model": "served", "max_tokens": 100, "seed": 1}
        assert llm.ask(client, MESSAGES, **asked).kind == "connection"
    assert budget.spent_tokens == spent


def test_an_answer_in_parts_is_one_text(offline):
    parts = completion("")
    parts["choices"][0]["message"]["content"] = [{"type": "text", "text": t} for t in ("fi", "ne")]
    with serve(("ok", parts)) as server:
        assert ask(live(offline, server)).text == "fine"


def test_dollars_need_prices_and_limit_the_tokens_too(offline):
    with pytest.raises(SettingsError, match="LLM_PRICE_IN"):
        llm.Budget(dataclasses.replace(offline, llm_budget_usd=1.0))
    priced = {"llm_budget_usd": 0.5, "llm_price_in": 1.0, "llm_price_out": 5.0}
    assert llm.Budget(dataclasses.replace(offline, **priced)).limit == 100_000


def test_a_prompt_cut_by_the_servers_window_is_said_and_not_stored(offline):
    messages = [{"role": "user", "content": "word " * 1600}]  # about 2,000 tokens
    reply = completion("fine") | {"usage": {"prompt_tokens": 512}}
    with serve(("ok", reply)) as server:
        outcome = ask(live(offline, server), messages=messages)
    assert outcome.kind == "prompt_cut" and "512 of about 2004" in outcome.why
    assert ask(offline, messages=messages).kind == "no_reply"
