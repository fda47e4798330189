"""The client in its modes, what each fault of a server gives, what is stored, and the budget."""

from __future__ import annotations

import dataclasses
import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import openai
import pytest
from misbehaving_server import FAULTS, completion, serve

from helpers import llm, local_model, prompts, ranking, transport
from helpers.answers import usable
from helpers.replies import LocalStore
from helpers.settings import Settings, SettingsError

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


def stored(settings) -> LocalStore:
    return LocalStore(settings.cache_dir / "replies.jsonl")


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
    theirs = LocalStore(offline.replies_dir / "x.jsonl")
    theirs.put(body, completion("theirs") | {"model": "claude"})
    assert ask(offline).describe() == "LLM reply, recorded, by claude"
    assert "Claude" in llm.describe(offline)
    with serve(("ok", completion("live"))) as server:
        assert ask(live(offline, server, llm_model="another")).text == "live"


def test_mode_none_ignores_records_and_notes_the_request(offline, monkeypatch):
    body = {"messages": MESSAGES}
    stored(offline).put(body, completion("mine"), model="served")
    settings = dataclasses.replace(offline, llm_mode="none")
    assert "none;" in llm.describe(settings)
    opened, path = [], offline.cache_dir / "pending.jsonl"
    monkeypatch.setattr(transport, "Store", lambda path: opened.append(path) or LocalStore(path))
    with llm.connect(settings) as client:
        for _ in range(2):
            outcome = llm.ask(client, MESSAGES)
            assert outcome.kind == "no_reply" and "no LLM is configured" in outcome.why
    (waiting,) = LocalStore(path).all()
    assert waiting.request == body and opened == [path]
    named = {"llm_mode": "recorded", "llm_base_url": "http://127.0.0.1:9/v1", "llm_model": "m"}
    outcome = ask(dataclasses.replace(offline, **named), messages=RULED)
    assert "No server is asked while LLM_MODE is recorded" in outcome.why


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


def test_what_is_missing_is_named(offline):
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL and LLM_MODEL"):
        llm.describe(dataclasses.replace(offline, llm_mode="live", llm_api_key=KEY))
    half = dataclasses.replace(offline, llm_base_url="http://127.0.0.1:9/v1")
    assert "LLM_MODEL is not set" in llm.describe(half)


def test_an_empty_address_in_the_environment_is_that_of_openai(offline, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "")
    with llm.connect(dataclasses.replace(offline, llm_model="m", llm_api_key=KEY)) as client:
        assert client.base_url == "https://api.openai.com/v1/"


RULED = [{"role": "system", "content": "Be brief."}, *MESSAGES]


def refuser(*parts):
    """Return a server's rule: a request with one of the parts is an error that says so."""

    def answer(body):
        for part in parts:
            role = part == "system" and any(m["role"] == "system" for m in body["messages"])
            kind = part == (body.get("response_format") or {}).get("type")
            if role or kind or part in body:
                return 500 if role else 400, {"error": {"message": f"{part}: no such role or part"}}
        return 200, completion(RANKED)

    return answer


@pytest.mark.parametrize(
    "parts", [["json_schema"], ["seed"], ["system"], ["max_completion_tokens"],
              ["json_schema", "system", "seed"]],
)  # fmt: skip
def test_what_a_server_refuses_is_asked_for_plainly_and_remembered(offline, parts):
    asked = {"schema": ranking.LetterRanking, "model": "served", "seed": 1, "temperature": 0.2}
    with serve(refuser(*parts)) as server:
        client = llm.connect(live(offline, server)).with_options(max_retries=0)
        with pytest.warns(UserWarning, match="served"):
            assert llm.ask(client, RULED, **asked).value == ranking.LetterRanking(ranking=["A"])
        assert len(server.requests) == 2
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other = [RULED[0], {"role": "user", "content": "Rank A and C."}]
            assert llm.ask(client, other, **asked).kind == "ok"
        assert len(server.requests) == 3  # at once in the form that was taken
    schema = llm.response_format(ranking.LetterRanking)["json_schema"]["schema"]
    last = server.requests[-1]["messages"][-1]["content"]
    assert "Rank A and C." in last and json.loads(last.rpartition("\n")[2]) == schema
    again = ask(offline, messages=RULED, schema=ranking.LetterRanking, seed=1)
    assert again.source == "stored"  # the record is that of the request as it was asked


def test_a_passing_fault_with_the_word_information_changes_no_request(offline):
    busy = ("reply", (500, {"error": {"message": "Busy: more information in the log."}}))
    with serve(busy, ("ok", completion("fine"))) as server:
        assert ask(live(offline, server)).kind == "server_error" and len(server.requests) == 1


def test_the_limit_takes_the_name_that_is_not_refused():
    names = ["max_tokens", "max_completion_tokens"]
    for refused, wanted in (names, names[::-1]):
        said = f"Unsupported parameter: '{refused}' is not supported. Use '{wanted}' instead."
        assert transport.plainer({"messages": MESSAGES, refused: 5}, said)[wanted] == 5


def test_the_small_model_gets_the_callers_limit_once(offline, monkeypatch):
    with serve(("ok", completion("fine"))) as server:
        monkeypatch.setattr(
            local_model, "server", lambda _: SimpleNamespace(address=lambda: server.url)
        )
        for limit in ({"max_tokens": 5}, {"max_completion_tokens": 6}, {}):
            local_model.post("", {"messages": MESSAGES, **limit}, offline.root)
    sent = [(body.get("max_tokens"), body["max_completion_tokens"]) for body in server.requests]
    assert sent == [(None, 5), (None, 6), (None, 600)]


def test_letters_are_in_what_is_sent_and_never_in_the_key(offline):
    with serve(("ok", completion('{"ranking": ["B", "A"]}'))) as server:
        settings = live(offline, server)
        assert ask(settings, schema=ranking.LetterRanking, letters=2).source == "live"
        ask(settings, schema=ranking.RankingReply, letters=3)
    first, second = (r["response_format"]["json_schema"]["schema"] for r in server.requests)
    listed = first["properties"]["ranking"]
    assert listed["items"]["enum"] == ["A", "B"] and listed["minItems"] == listed["maxItems"] == 2
    assert second["$defs"]["RankedItem"]["properties"]["letter"]["enum"] == ["A", "B", "C"]
    assert second["properties"]["ranking"]["maxItems"] == 3
    assert ask(offline, schema=ranking.LetterRanking).source == "stored"
    named = {"properties": {"ranking": {"type": "object"}}}  # a learner's: dict[str, str]
    form = {"response_format": {"json_schema": {"schema": named}}}
    assert transport.tightened(form, 2) == form


def shaped(finish="stop", **message):
    body = completion(None, finish=finish)
    body["choices"][0]["message"] = {"role": "assistant", **message}
    return body


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (shaped(content=[{"type": "text", "text": "fi"}, {"text": "ne"}]), "ok", "fine"),
        (shaped(content=None, refusal="no, not this"), "refusal", None),
        (shaped("length", content="fi"), "truncated", "fi"),
        (shaped("length", content="Heat, " * 40), "repetition", "Heat, " * 40),
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
    ("status", "error", "kind", "words"),
    [
        (404, {"error": {"message": "model 'x' not found"}}, "rejected", "'x' not found"),
        (404, {"error": "no such model"}, "rejected", "answered 404: no such model"),
        (401, {"error": {"message": f"Bad {KEY}"}}, "rejected", "Bad [key]"),
        (403, {"detail": "Forbidden for you"}, "rejected", "Forbidden for you"),
        (400, [{"error": {"message": '"k" not valid'}}], "rejected", '"k" not valid'),
        (429, {"error": {"message": "slow down"}}, "rate_limited", "slow down"),
        (503, b"<html><title>Busy and full</title></html>", "server_error", "503: Busy and"),
        (502, b"", "server_error", "502"),
        (500, {"error": {"message": "word " * 500}}, "server_error", "word ..."),
        (200, {"error": "overloaded, sorry"}, "malformed", "overloaded, sorry"),
        (200, {"hello": "world"}, "malformed", "world"),
        (500, rb'{"error": "cannot open C:\models\x.gguf"}', "server_error", "cannot open C:"),
        (200, rb'{"error": "cannot open C:\models\x.gguf"}', "malformed", "cannot open C:"),
    ],
)
def test_the_servers_own_words_are_kept_but_no_key(offline, status, error, kind, words):
    with serve(("reply", (status, error))) as server:
        outcome = ask(live(offline, server))
    assert outcome.kind == kind and words in outcome.why
    assert KEY not in outcome.why and len(outcome.why) < 300


@pytest.mark.parametrize("text", ['{"genres": ["Romance"]}', "I cannot."])
def test_an_answer_of_another_schema_is_neither_stored_nor_replayed(offline, text):
    body = {"messages": MESSAGES, "response_format": llm.response_format(ranking.LetterRanking)}
    with serve(("ok", completion(text)), ("ok", completion(RANKED))) as server:
        settings = live(offline, server)
        assert ask(settings, schema=ranking.LetterRanking).kind == "unreadable"
        assert stored(offline).all() == [] and usable(body, completion(text))
        stored(offline).put(body, completion(text), model="served")
        assert ask(offline, schema=ranking.LetterRanking).kind == "no_reply"
        assert ask(settings, schema=ranking.LetterRanking).kind == "ok"


def test_every_request_carries_the_limit_that_is_set_aside_for_it(offline):
    with serve(("ok", completion("fine"))) as server:
        ask(live(offline, server, llm_reply_tokens=700))
        ask(live(offline, server), max_tokens=50)
        outcome = ask(live(offline, server, llm_max_tokens=1100), seed=1)
    assert outcome.kind == "budget" and "LLM_REPLY_TOKENS" in outcome.why
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


def used(usage):
    return completion("fine") | {"usage": usage}


@pytest.mark.parametrize(
    ("step", "spent"),
    [
        (("sleep", 1.0), 108), ("cut", 108), (("raw", b"<html>"), 108),
        (("reply", (503, b"no")), 0), (("ok", completion("fine")), 18),
        (("ok", completion("fine", usage=False)), 108), (("ok", used("unavailable")), 108),
        (("ok", used({"total_tokens": "n/a"})), 108), (("ok", used({"total_tokens": -9})), 108),
    ],
)  # fmt: skip
def test_what_a_request_took_is_counted_and_an_unknown_answer_in_full(offline, step, spent):
    with serve(step) as server:
        settings = live(offline, server, llm_timeout_s=0.5 if step[0] == "sleep" else 5.0)
        budget = llm.Budget(settings)
        with llm.connect(settings, budget=budget).with_options(max_retries=0) as client:
            llm.ask(client, MESSAGES, model="served", max_tokens=100)
    assert budget.spent_tokens == spent
    with llm.connect(settings, budget=budget).with_options(max_retries=0) as client:
        assert llm.ask(client, RULED, model="served").kind == "connection"
    assert budget.spent_tokens == spent  # nothing was sent


def test_dollars_need_prices_and_limit_the_tokens_too(offline):
    with pytest.raises(SettingsError, match="LLM_PRICE_IN"):
        llm.Budget(dataclasses.replace(offline, llm_budget_usd=1.0))
    priced = {"llm_budget_usd": 0.5, "llm_price_in": 1.0, "llm_price_out": 5.0}
    assert llm.Budget(dataclasses.replace(offline, **priced)).limit == 100_000
    shown = llm.preview([{"messages": MESSAGES}], dataclasses.replace(offline, **priced))
    assert shown["cost (US dollars, at most)"] == "0.0200" and shown["requests"] == 1
    shown = llm.preview([{"messages": MESSAGES}], dataclasses.replace(offline, llm_price_in=1.0))
    assert shown["cost (US dollars, at most)"] == "unknown"


def test_a_prompt_cut_by_the_servers_window_is_said_and_not_stored(offline):
    messages = [{"role": "user", "content": "word " * 1600}]  # about 2,000 tokens
    reply = completion("fine")
    reply["usage"]["prompt_tokens"] = 512
    with serve(("ok", reply)) as server:
        outcome = ask(live(offline, server), messages=messages)
    assert outcome.kind == "prompt_cut" and "512 of about 2004" in outcome.why
    assert ask(offline, messages=messages).kind == "no_reply"
    reply["usage"]["prompt_tokens"] = "n/a"
    assert usable({"messages": messages}, reply) == ""


def test_a_proxy_counts_as_it_does_for_a_plain_client(offline, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(("ok", completion("fine"))) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        settings = live(offline, server, llm_base_url="http://llm.invalid/v1")
        assert ask(settings).text == "fine"
        assert server.paths == ["http://llm.invalid/v1/chat/completions"]
