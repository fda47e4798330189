"""The client in its three modes, and what each fault of a server gives."""

from __future__ import annotations

import dataclasses
import json

import openai
import pytest
from misbehaving_server import FAULTS, completion, serve

from helpers import llm, prompts, ranking
from helpers.replies import Reply, request_key, write_jsonl
from helpers.settings import Settings, SettingsError

KEY = "sk-secret-0123456789abcdef"
MESSAGES = [{"role": "user", "content": "Rank A and B."}]


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


def ask(settings, **options):
    client = llm.connect(settings).with_options(max_retries=options.pop("retries", 0))
    try:
        return llm.ask(client, MESSAGES, model=llm.model(settings), **options)
    finally:
        client.close()


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_has_its_kind_and_keeps_the_retrievers_order(offline, kind):
    with serve(FAULTS[kind]) as server:
        outcome = ask(live(offline, server))
    assert outcome.kind == kind
    got = ranking.read_ranking(outcome.text if kind != "refusal" else None, 3, fallback=[2, 0, 1])
    assert got.failed and got.order == [2, 0, 1]


def test_a_slow_server_is_a_time_out(offline):
    with serve(("sleep", 1.5)) as server:
        settings = dataclasses.replace(live(offline, server), llm_timeout_s=0.3)
        assert ask(settings).kind == "timeout"


def test_retry_after_429_is_honoured_by_the_sdk(offline):
    with serve(("status", 429), ("ok", completion("fine"))) as server:
        outcome = ask(live(offline, server), retries=2)
        assert (outcome.kind, outcome.text) == ("ok", "fine")
        assert len(server.requests) == 2


def test_a_live_reply_is_stored_and_reused_but_the_key_is_nowhere(offline):
    with serve(("ok", completion("fine"))) as server:
        settings = live(offline, server)
        assert ask(settings).text == ask(settings).text == "fine"
        assert len(server.requests) == 1 and server.authorization == f"Bearer {KEY}"
    for path in offline.cache_dir.rglob("*"):
        assert KEY.encode() not in path.read_bytes()
    assert KEY not in repr(settings)


def test_a_live_reply_answers_later_without_a_server(offline):
    with serve(("ok", completion("fine"))) as server:
        ask(live(offline, server))
    assert ask(offline).text == "fine"


def test_a_fault_is_not_stored(offline):
    with serve(("status", 500), ("ok", completion("fine"))) as server:
        settings = live(offline, server)
        assert ask(settings).kind == "server_error"
        assert ask(settings).text == "fine"


def test_a_committed_reply_never_answers_a_live_request(offline):
    body = {"messages": MESSAGES}
    reply = Reply(request_key(body), completion("recorded"), "", body)
    write_jsonl([reply], offline.replies_dir / "x.jsonl")
    assert ask(offline).text == "recorded"
    with serve(("ok", completion("live"))) as server:
        assert ask(live(offline, server)).text == "live"


def test_mode_none_ignores_records_and_notes_the_request(offline):
    body = {"messages": MESSAGES}
    write_jsonl(
        [Reply(request_key(body), completion("recorded"), "", body)],
        offline.replies_dir / "x.jsonl",
    )
    settings = dataclasses.replace(offline, llm_mode="none")
    assert llm.mode(offline) == "recorded" and llm.mode(settings) == "none"
    client = llm.connect(settings)
    with pytest.raises(llm.NoReply) as caught:
        client.chat.completions.create(model="any", messages=MESSAGES)
    assert caught.value.key == request_key(body)
    pending = (offline.cache_dir / "pending.jsonl").read_text()
    assert [json.loads(line) for line in pending.splitlines()] == [body]


def test_parse_reads_a_recorded_profile(offline):
    profile = prompts.Profile(summary="s", genres=[], eras=[], themes=[], dislikes=[])
    schema = llm.response_format(prompts.Profile)
    body = {"messages": MESSAGES, "response_format": schema}
    reply = Reply(request_key(body), completion(profile.model_dump_json()), "", body)
    write_jsonl([reply], offline.replies_dir / "x.jsonl")
    client = llm.connect(offline)
    got = client.chat.completions.parse(
        model="any", messages=MESSAGES, response_format=prompts.Profile
    )
    assert got.choices[0].message.parsed == profile


def test_nothing_is_sent_over_the_budget(offline):
    with serve(("ok", completion("fine"))) as server:
        outcome = ask(live(offline, server, llm_max_tokens=50))
        assert outcome.kind == "budget" and server.requests == []


def test_the_budget_counts_what_the_server_reports_or_an_estimate():
    budget = llm.Budget(max_tokens=5000, max_usd=1.0, price_in=1.0, price_out=2.0)
    body = {"messages": MESSAGES}
    budget.settle(budget.reserve(body), body, completion("fine"))
    assert budget.spent_tokens == 18 and budget.spent_usd == pytest.approx(25e-6)
    assert not budget.estimated
    budget.settle(budget.reserve(body), body, completion("fine", usage=False))
    assert budget.estimated and budget.spent_tokens > 18
    spent = budget.spent_tokens
    budget.settle(budget.reserve(body), body, None)
    assert budget.spent_tokens == spent


def test_a_dollar_limit_without_prices_is_refused():
    with pytest.raises(SettingsError, match="LLM_PRICE_IN"):
        llm.Budget(max_usd=1.0)


def test_live_needs_a_server_and_a_model(offline):
    with pytest.raises(SettingsError, match="OPENAI_BASE_URL"):
        llm.mode(dataclasses.replace(offline, llm_mode="live"))
    with pytest.raises(SettingsError, match="LLM_MODEL"):
        llm.mode(dataclasses.replace(offline, llm_mode="live", llm_api_key=KEY))


def test_streaming_a_record_says_what_to_do(offline):
    client = llm.connect(offline)
    with pytest.raises(openai.OpenAIError, match="stream"):
        client.chat.completions.create(model="any", messages=MESSAGES, stream=True)
