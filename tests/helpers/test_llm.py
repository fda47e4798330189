"""The client in its three modes, and what each fault of a server gives."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from misbehaving_server import FAULTS, completion, serve

from helpers import dialects, llm, prompts, ranking
from helpers.replies import LocalStore, Reply, request_key, write_jsonl
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


# --- what a server refuses ------------------------------------------------------------------------

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rank A and B."}]
RANKED = '{"ranking": ["A"]}'
OPTIONS = {
    "temperature": 0.2, "seed": 3, "user": "u", "stop": ["x"], "logprobs": True, "top_logprobs": 5,
    "n": 2,
}  # fmt: skip


def said(message, **more):
    return {"error": {"message": message, **more}}


def missed(*place, text="Extra inputs are not permitted"):
    return {"detail": [{"type": "extra_forbidden", "loc": ["body", *place], "msg": text}]}


FORMAT, SYSTEM, LIMIT = {"response_format", "messages"}, {"messages"}, set(dialects.LIMITS)
REFUSED = [
    (400, said("Invalid parameter: 'response_format' of type 'json_schema' is not supported with "
               "this model.", param="response_format"), FORMAT),
    (400, said("This response_format type is unavailable now"), FORMAT),
    (400, said("This model does not support response format `json_schema`."), FORMAT),
    (400, {"error": "'response_format.type' must be 'json_object' or 'text'"}, FORMAT),
    (422, missed("response_format", "type", text="Input should be 'text'"), FORMAT),
    (400, {"object": "error", "message": "guided decoding is not supported"}, FORMAT),
    (400, said("Invalid schema: strict must be false", param="response_format.json_schema.strict"),
     {"response_format"}),
    (400, said("System role not supported"), SYSTEM),
    (500, said("Jinja Exception: System role not supported", code=500), SYSTEM),
    (400, {"message": "Only user and assistant roles are supported!"}, SYSTEM),
    (400, said("Conversation roles must alternate user/assistant/user/assistant/..."), SYSTEM),
    (400, said("Unsupported value: 'messages[0].role' does not support 'system' with this model.",
               param="messages[0].role", code="unsupported_value"), SYSTEM),
    (400, [said("Developer instruction is not enabled for models/gemma-3-27b-it")], SYSTEM),
    (422, missed("messages", 0, "role", text="Input should be 'user' or 'assistant'"), SYSTEM),
    (400, said("Unsupported parameter: 'max_completion_tokens' is not supported with this model.",
               param="max_completion_tokens", code="unsupported_parameter"), LIMIT),
    (422, {"object": "error", "message": missed("max_completion_tokens")}, LIMIT),
    (400, said("Invalid max_completion_tokens value, the valid range is [1, 2000]"),
     {"max_completion_tokens"}),
    (400, said("max_completion_tokens is too large: 4000. This model supports at most 2048"),
     {"max_completion_tokens"}),
    (400, said("Unsupported value: 'temperature' does not support 0.2 with this model. Only the "
               "default (1) value is supported.", param="temperature"), {"temperature"}),
    (400, said("seed is not supported"), {"seed"}),
    (400, said("property 'seed' is unsupported"), {"seed"}),
    (422, missed("seed"), {"seed"}),
    (400, said("Unknown parameter: 'user'.", param="user"), {"user"}),
    (400, said("", param="stop", code="unsupported_parameter"), {"stop"}),
    (400, said("Only n = 1 is supported"), {"n"}),
    (400, said("Unrecognized request argument supplied: n"), {"n"}),
    (400, said("top_logprobs must be at most 4"), {"top_logprobs"}),
    (400, said("You requested logprobs, but this model does not return them"),
     {"logprobs", "top_logprobs"}),
]  # fmt: skip


@pytest.mark.parametrize(("status", "error", "change"), REFUSED)
def test_a_part_that_a_server_refuses_is_replaced_remembered_and_told_once(
    offline, status, error, change
):
    with serve(("reply", (status, error)), ("ok", completion(RANKED))) as server:
        client = llm.connect(live(offline, server)).with_options(max_retries=0)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for text in ("Rank A and B.", "Rank A and C."):
                messages = [ASKED[0], {"role": "user", "content": text}]
                got = llm.ask(
                    client, messages, schema=ranking.LetterRanking, model="served", **OPTIONS
                )
                assert got.kind == "ok" and got.value == ranking.LetterRanking(ranking=["A"])
        client.close()
    first, second, third = server.requests
    assert {n for n in first | second if first.get(n) != second.get(n)} == change
    # Other warnings may be of objects that earlier tests left behind.
    [warning] = [w for w in told if w.category is llm.ServerWarning]
    assert "served" in str(warning.message)
    third["messages"] = json.loads(json.dumps(third["messages"]).replace("and C", "and B"))
    assert third == second
    if change == SYSTEM:
        assert second["messages"] == [{"role": "user", "content": "Be brief.\n\nRank A and B."}]


def test_a_schema_is_asked_for_in_ever_plainer_forms_and_the_record_stays_the_same(offline):
    def answer(body):
        form = body.get("response_format", {}).get("type")
        if form or any(m["role"] == "system" for m in body["messages"]) or "seed" in body:
            name = form or ("'seed'" if "seed" in body else "the system role")
            return 400, said(f"{name} is not supported")
        return 200, completion(RANKED)

    with serve(answer) as server, pytest.warns(llm.ServerWarning):
        client = llm.connect(live(offline, server))
        asked = {"schema": ranking.LetterRanking, "model": "served", "seed": 1}
        assert llm.ask(client, ASKED, **asked).kind == "ok"
        client.close()
    forms = [body.get("response_format", {}).get("type") for body in server.requests]
    assert forms == ["json_schema", "json_object", None, None, None]
    (message,) = server.requests[-1]["messages"]
    schema = llm.response_format(ranking.LetterRanking)["json_schema"]["schema"]
    assert message["content"].startswith("Be brief.\n\nRank A and B.")
    assert json.loads(message["content"].rpartition("\n")[2]) == schema
    client = llm.connect(offline)
    assert llm.ask(client, ASKED, **asked).source == "stored"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, said('model "x" not found, try pulling it first')),
        (400, said("Invalid request: the user is unknown, stop trying")),
        (400, said("This model's maximum context length is 512 tokens, the messages take 900")),
        (400, b"Bad Request"),
        (401, said("temperature")),
    ],
)
def test_an_error_that_names_nothing_we_send_is_asked_once(offline, status, error):
    with serve(("reply", (status, error))) as server:
        outcome = ask(live(offline, server), temperature=0.1, user="u", stop="x")
    assert outcome.kind == "rejected" and len(server.requests) == 1


def test_a_change_that_does_not_help_is_not_remembered_and_the_changes_end(offline):
    names = iter(f"'{name}' is not supported" for name in [*OPTIONS, "frequency_penalty", "top_p"])

    def answer(body):
        return 400, said(next(names, "no"))

    with serve(answer) as server:
        client = llm.connect(live(offline, server))
        options = {**OPTIONS, "frequency_penalty": 0.1, "top_p": 0.5}
        assert llm.ask(client, ASKED, model="served", **options).kind == "rejected"
        assert 1 < len(server.requests) <= dialects.ADAPTIONS + 1
        asked = len(server.requests)
        llm.ask(client, ASKED, model="served", **options)
        client.close()
    assert options.items() <= server.requests[asked].items()


def test_a_limit_above_what_a_small_window_leaves_is_left_out_for_that_prompt_alone(offline):
    def answer(body):
        if "max_completion_tokens" in body and "long" in body["messages"][0]["content"]:
            return 400, said("'max_completion_tokens' is too large: 4000. This model's maximum "
                             "context length is 4096 tokens and your request has 1200")  # fmt: skip
        return 200, completion("fine")

    with serve(answer) as server:
        client = llm.connect(live(offline, server))
        for text in ("long", "short"):
            got = llm.ask(client, [{"role": "user", "content": text}], model="served")
            assert got.kind == "ok"
        client.close()
    assert ["max_completion_tokens" in body for body in server.requests] == [True, False, True]


def test_messages_in_parts_are_merged_as_parts():
    parts = [{"type": "text", "text": "Rank."}]
    body = {"messages": [ASKED[0], {"role": "user", "content": parts}]}
    (message,) = dialects.adapted(body, {"system": "user"})["messages"]
    assert message["content"] == [{"type": "text", "text": "Be brief."}, *parts]
    (message,) = dialects.adapted({"messages": ASKED[:1]}, {"system": "user"})["messages"]
    assert message == {"role": "user", "content": "Be brief."}


# --- every shape of an answer ---------------------------------------------------------------------


def shaped(finish="stop", **message):
    body = completion(None, finish=finish)
    body["choices"][0]["message"] = {"role": "assistant", **message}
    return body


def text_parts(*parts):
    return shaped(content=list(parts))


PART = {"type": "text", "text": "fi"}, {"type": "output_text", "text": "ne"}
TWO = completion(None)
TWO["choices"].append({**completion("fine")["choices"][0], "index": 1})
BARE = completion("fine")
del BARE["choices"][0]["finish_reason"]
NO_USAGE = completion("fine") | {"usage": None}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (text_parts(*PART), "ok", "fine"),
        (text_parts({"type": "refusal", "refusal": "no"}), "refusal", None),
        (shaped(content=None, refusal="no, not this"), "refusal", None),
        (shaped(content=None, reasoning_content="hm"), "empty", None),
        (shaped(content="fine", reasoning_content="hm"), "ok", "fine"),
        (shaped("length", content=None, reasoning_content="hm"), "truncated", None),
        (shaped("length", content="fi"), "truncated", "fi"),
        (shaped("content_filter", content="fi"), "refusal", None),
        (shaped("tool_calls", content=None, tool_calls=[CALL]), "empty", None),
        (shaped(None, content="fine"), "ok", "fine"),
        (shaped(), "empty", None),
        (TWO, "ok", "fine"),
        (BARE, "ok", "fine"),
        (NO_USAGE, "ok", "fine"),
    ],
)
def test_each_shape_of_an_answer(offline, body, kind, text):
    with serve(("ok", body)) as server:
        outcome = ask(live(offline, server))
    assert (outcome.kind, outcome.text) == (kind, text)
    assert bool(outcome.why) == (kind != "ok")
    with llm.connect(offline) as client:  # stored only where it is usable
        assert llm.ask(client, MESSAGES).kind == ("ok" if kind == "ok" else "no_reply")


def test_parts_are_one_text_for_the_plain_client_too(offline):
    with serve(("ok", text_parts(*PART))) as server, llm.connect(live(offline, server)) as client:
        got = client.chat.completions.create(model="served", messages=MESSAGES)
    assert got.choices[0].message.content == "fine"


def test_calls_of_tools_are_an_answer_where_tools_were_offered(offline):
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    with serve(("ok", shaped("tool_calls", content=None, tool_calls=[CALL]))) as server:
        outcome = ask(live(offline, server), tools=tools)
    assert outcome.kind == "ok"
    assert outcome.response.choices[0].message.tool_calls[0].function.name == "f"
    with llm.connect(offline) as client:
        assert llm.ask(client, MESSAGES, tools=tools).source == "stored"


# --- why ------------------------------------------------------------------------------------------

SPENT = said("You exceeded your current quota, please check your plan.", code="insufficient_quota")


@pytest.mark.parametrize(
    ("status", "error", "kind", "words", "hint"),
    [
        (404, said("model 'x' not found, try pulling it first"), "rejected", "try pulling it first",
         "LLM_MODEL"),
        (404, {"error": "model not found"}, "rejected", "model not found", "OPENAI_BASE_URL"),
        (401, said("Incorrect API key provided"), "rejected", "Incorrect API", "OPENAI_API_KEY"),
        (403, {"detail": "Forbidden for you"}, "rejected", "Forbidden for you", "OPENAI_API_KEY"),
        (422, missed("messages", text="Field required"), "rejected", "messages: Field", ""),
        (400, {"message": "bad request body"}, "rejected", "bad request body", ""),
        (400, [said("API key not valid")], "rejected", "API key not valid", ""),
        (413, said("body too big"), "rejected", "body too big", "shorter"),
        (400, said("maximum context length is 10 tokens"), "rejected", "10 tokens", "shorter"),
        (429, said("slow down"), "rate_limited", "slow down", "wait"),
        (503, b"<html><head><title>503 Busy &amp; full</title></head></html>", "server_error",
         "503 Busy & full", "later"),
        (500, b"plain words", "server_error", "plain words", "later"),
        (502, b"", "server_error", "502", "later"),
        (200, said("Daily limit of 50 requests reached"), "quota", "Daily limit of 50", "billing"),
        (200, {"error": "overloaded, sorry"}, "rejected", "answered 200: overloaded, sorry", ""),
        (200, said("busy", code=503), "server_error", "busy", "later"),
        (200, b"<title>Log in</title>", "malformed", "Log in", "OPENAI_BASE_URL"),
        (400, said("Filtered.", code="content_filter"), "refusal", "Filtered", ""),
    ],
)  # fmt: skip
def test_the_servers_own_words_are_kept(offline, status, error, kind, words, hint):
    with serve(("reply", (status, error))) as server:
        outcome = ask(live(offline, server))
    assert outcome.kind == kind and words in outcome.why and hint in outcome.why
    assert outcome.describe() == f"no usable LLM reply ({kind}): {outcome.why}"


def test_long_words_are_shortened_and_a_key_is_never_among_them(offline):
    words = f"Incorrect API key provided: {KEY}, see https://x.example/?key={KEY} " + "word " * 500
    with serve(("reply", (401, said(words)))) as server:
        settings = live(offline, server)
        outcome = ask(settings)
        with llm.connect(settings) as client, pytest.raises(openai.AuthenticationError) as caught:
            client.chat.completions.create(model="served", messages=MESSAGES)
    assert KEY not in outcome.why + str(caught.value) and "[key]" in outcome.why
    assert len(outcome.why) < 300


@pytest.mark.parametrize(
    ("status", "error"),
    [(429, SPENT), (402, said("Insufficient Balance")), (429, said("Your credit is used up; no "
     "credits are left, see billing")), (200, SPENT)],
)  # fmt: skip
def test_spent_quota_is_not_asked_for_again(offline, status, error):
    with serve(("reply", (status, error))) as server:
        outcome = ask(live(offline, server), retries=2)
    assert outcome.kind == "quota" and len(server.requests) == 1


def test_a_limit_that_time_mends_is_no_spent_quota(offline):
    again = said("You exceeded your current quota. Please retry in 1.5s.")
    with serve(("reply", (429, again, {"Retry-After": "0.01"})), ("ok", completion("a"))) as server:
        assert ask(live(offline, server), retries=1).text == "a"


def test_a_fault_of_the_program_is_raised(offline):
    with llm.connect(offline) as client, pytest.raises(TypeError, match="no_such_option"):
        llm.ask(client, MESSAGES, model="m", no_such_option=1)


# --- storing --------------------------------------------------------------------------------------

BAD = {
    "truncated": completion(RANKED, finish="length"),
    "empty": completion(" "),
    "another schema": completion('{"genres": ["Romance"]}'),
    "prose": completion("I cannot."),
    "filtered": completion(RANKED, finish="content_filter"),
}


def ranked(settings, **options):
    return ask(settings, schema=ranking.LetterRanking, **options)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_neither_stored_nor_replayed_if_it_is(offline, name):
    body = {"messages": MESSAGES, "response_format": llm.response_format(ranking.LetterRanking)}
    with serve(("ok", BAD[name]), ("ok", completion(RANKED))) as server:
        settings = live(offline, server)
        assert ranked(settings).kind != "ok"
        with LocalStore(offline.cache_dir / "replies.jsonl") as store:
            assert store.all() == []
            address = f"127.0.0.1:{server.server_address[1]}"
            store.put(body, BAD[name], model="served", server=address)
        assert ranked(offline).kind == "no_reply"
        assert llm.usable(body, BAD[name])
        assert (ranked(settings).kind, len(server.requests)) == ("ok", 2)
    assert (ranked(offline).source, ranked(offline).model) == ("stored", "served")


def test_a_reply_cut_at_a_low_limit_says_nothing_about_a_higher_one(offline):
    def answer(body):
        limit = body.get("max_tokens") or body["max_completion_tokens"]
        return 200, completion("fi" if limit < 60 else "fine", usage=False)

    with serve(answer) as server:
        settings = live(offline, server)
        limits = {"max_tokens": 50}, {"max_completion_tokens": 50}, {"max_tokens": 4000}, {}
        assert [ask(settings, **limit).text for limit in limits] == ["fi", "fi", "fine", "fine"]
    assert [body.get("max_completion_tokens") for body in server.requests] == [None, None, 4000]


def test_committed_records_come_first_and_every_reply_names_its_model(offline):
    body = {"messages": MESSAGES}
    with LocalStore(offline.cache_dir / "replies.jsonl") as store:
        store.put(body, completion("mine"), model="served", server="s")
    assert "Claude" not in llm.describe(offline) and "served" in llm.describe(offline)
    mine = ask(offline)
    assert mine.describe() == "LLM reply, stored, by served"
    made = completion("theirs") | {"model": "claude"}
    write_jsonl([Reply(request_key(body), made, "", body)], offline.replies_dir / "x.jsonl")
    theirs = ask(offline)
    assert theirs.text == "theirs" and theirs.describe() == "LLM reply, recorded, by claude"
    assert "Claude" in llm.describe(offline) and "served" in llm.describe(offline)
    with serve(("ok", completion("live"))) as server:
        assert ask(live(offline, server)).describe() == "LLM reply, live, by served"


# --- limits ---------------------------------------------------------------------------------------


def test_every_request_carries_the_limit_that_is_set_aside_for_it(offline):
    with serve(("ok", completion("fine"))) as server:
        ask(live(offline, server, llm_reply_tokens=700))
        ask(live(offline, server), max_tokens=50)
    assert server.requests[0]["max_completion_tokens"] == 700
    assert server.requests[1]["max_tokens"] == 50
    assert "max_completion_tokens" not in server.requests[1]


def test_a_request_that_may_take_more_than_is_left_is_not_sent(offline):
    with serve(("ok", completion("fine"))) as server:
        outcome = ask(live(offline, server, llm_max_tokens=1100))
        assert outcome.kind == "budget" and "LLM_REPLY_TOKENS" in outcome.why
        assert ask(live(offline, server, llm_max_tokens=1100), max_tokens=900).kind == "ok"
    assert len(server.requests) == 1


@pytest.mark.parametrize("named", [True, False])
def test_the_limit_holds_where_a_server_ignores_the_requests(offline, named):
    """Eight threads, 8,000 tokens a reply whatever was asked, or unless max_tokens asks."""

    def answer(body):
        body = completion(f"fine {body['messages'][0]['content']}")
        body["usage"] = {"prompt_tokens": 20, "completion_tokens": 8000, "total_tokens": 8020}
        return 200, body

    with serve(answer) as server:
        settings = live(offline, server, llm_max_tokens=20_000)
        budget = llm.budget_of(settings)
        with llm.connect(settings, budget=budget) as client, ThreadPoolExecutor(8) as pool:
            texts = [[{"role": "user", "content": str(i)}] for i in range(24)]
            options = {"max_tokens": 100} if named else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", llm.ServerWarning)
                got = list(pool.map(lambda m: llm.ask(client, m, model="s", **options), texts))
    assert budget.spent_tokens == 8020 * len(server.requests) <= 20_000
    kinds = Counter(outcome.kind for outcome in got)
    assert kinds == {"ok": 2, "budget": 22}


def test_a_limit_that_is_not_heard_is_sent_under_its_other_name(offline):
    def answer(body):
        reply = completion("fine")
        reply["usage"]["completion_tokens"] = min(9000, body.get("max_tokens", 9000))
        return 200, reply

    told = pytest.warns(llm.ServerWarning, match="max_tokens")
    with serve(answer) as server, llm.connect(live(offline, server)) as client, told:
        for text in "ab":
            llm.ask(client, [{"role": "user", "content": text}], model="served")
    assert [body.get("max_tokens") for body in server.requests] == [None, 4000]


def test_threads_wait_for_room_that_comes_back(offline):
    with serve(("ok", completion("fine"))) as server:
        settings = live(offline, server, llm_max_tokens=4500)  # one at a time
        with llm.connect(settings) as client, ThreadPoolExecutor(8) as pool:
            texts = [[{"role": "user", "content": str(i)}] for i in range(20)]
            got = list(pool.map(lambda m: llm.ask(client, m, model="served").kind, texts))
    assert got == ["ok"] * 20


@pytest.mark.parametrize(
    ("step", "spent"),
    [
        (("sleep", 1.0), 108),
        ("cut", 108),
        (("raw", b"<html>"), 108),
        (("reply", (504, b"late")), 108),
        (("reply", (500, b"no")), 0),
        (("reply", (200, said("no"))), 0),
        (("ok", completion("fine")), 18),
        (("ok", completion("fine") | {"usage": {"prompt_tokens": 11, "completion_tokens": 7,
                                                "total_tokens": 900}}), 900),
    ],
)  # fmt: skip
def test_what_a_request_took_is_counted_and_a_lost_answer_in_full(offline, step, spent):
    with serve(step) as server:
        settings = dataclasses.replace(live(offline, server), llm_timeout_s=0.5)
        budget = llm.budget_of(settings)
        with llm.connect(settings, budget=budget).with_options(max_retries=0) as client:
            llm.ask(client, MESSAGES, model="served", max_tokens=100)
    assert budget.spent_tokens == spent and budget.held == (0, 0)


def test_a_request_that_never_left_costs_nothing(offline):
    settings = dataclasses.replace(
        offline, llm_mode="live", llm_base_url="http://127.0.0.1:9/v1", llm_model="m"
    )
    budget = llm.budget_of(settings)
    with llm.connect(settings, budget=budget).with_options(max_retries=0) as client:
        outcome = llm.ask(client, MESSAGES, model="m")
    assert outcome.kind == "connection" and "OPENAI_BASE_URL" in outcome.why
    assert budget.spent_tokens == 0


@pytest.mark.parametrize(("prompt", "kind"), [(512, "prompt_cut"), (1900, "ok"), (0, "ok")])
def test_a_prompt_cut_by_the_servers_window_is_said_and_not_stored(offline, prompt, kind):
    messages = [{"role": "user", "content": "word " * 1600}]  # about 2,000 tokens
    reply = completion("fine")
    reply["usage"]["prompt_tokens"] = prompt
    with serve(("ok", reply)) as server, llm.connect(live(offline, server)) as client:
        outcome = llm.ask(client, messages, model="served")
        assert (outcome.kind, outcome.text) == (kind, "fine")
        if kind != "ok":
            assert all(text in outcome.why for text in ("512", "2004", "context window"))
        again = llm.ask(client, messages, model="served")
    assert again.source == ("stored" if kind == "ok" else "live")


# --- on the way -----------------------------------------------------------------------------------


def test_a_proxy_counts_as_it_does_for_a_plain_client(offline, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serve(("ok", completion("fine"))) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        settings = dataclasses.replace(live(offline, server), llm_base_url="http://llm.invalid/v1")
        assert ask(settings).text == "fine"
        assert server.paths == ["http://llm.invalid/v1/chat/completions"]
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        assert ask(live(offline, server)).text == "fine"


def test_azure_gets_its_version_and_its_header(offline, monkeypatch):
    with serve(("ok", completion("fine"))) as server:
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        settings = dataclasses.replace(
            live(offline, server), llm_base_url="http://x.openai.azure.com/openai/v1",
            llm_query={"api-version": "2024-10-21"},
        )  # fmt: skip
        assert ask(settings).text == "fine"
    assert server.paths[0].endswith("/v1/chat/completions?api-version=2024-10-21")
    assert {name.lower(): value for name, value in server.headers.items()}["api-key"] == KEY
