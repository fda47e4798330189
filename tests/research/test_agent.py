"""The agent loop: whatever the LLM calls, it ends, and says how."""

from __future__ import annotations

import json

import pytest
from openai.types.chat import ChatCompletion

from helpers import llm
from research import agent

TOOLS = [agent.tool("look", "Look.", what={"type": "string"}), agent.tool(agent.FINAL, "End.")]


def reply(content=None, *calls):
    message = {"role": "assistant", "content": content}
    if calls:
        message["tool_calls"] = [
            {"id": f"c{i}", "type": "function", "function": {"name": name, "arguments": given}}
            for i, (name, given) in enumerate(calls)
        ]
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
    return llm.Outcome(content, "ok", "", ChatCompletion.model_validate(body))


@pytest.fixture
def play(monkeypatch):
    """Run the loop against replies given beforehand; returns the trace and what was sent."""

    def run(*replies, functions=None, **options):
        sent, left = [], list(replies)

        def ask(client, messages, **given):
            sent.append(list(messages))
            return left.pop(0)

        monkeypatch.setattr(llm, "ask", ask)
        functions = functions or {"look": lambda what: f"seen {what}"}
        question = [{"role": "user", "content": "go"}]
        return agent.run(None, question, TOOLS, functions, **options), sent

    return run


def final(ids):
    return (agent.FINAL, json.dumps({"movie_ids": ids}))


def test_results_go_back_and_the_final_call_ends_the_run(play):
    trace, sent = play(
        reply("plan", ("look", '{"what": "a"}'), ("look", '{"what": "b"}')),
        reply(None, final([3, 1, 3])),
    )
    assert trace.ended == "recommended" and trace.movie_ids == [3, 1]
    assert trace.calls == ["look", "look", "recommend"] and trace.faults == 0
    results = [m for m in sent[1] if m["role"] == "tool"]
    assert [m["tool_call_id"] for m in results] == ["c0", "c1"]
    assert [m["content"] for m in results] == ["seen a", "seen b"]


@pytest.mark.parametrize(
    "call",
    [
        ("fly", "{}"),
        ("look", "not json"),
        (agent.FINAL, '{"movie_ids": []}'),
        (agent.FINAL, '{"movie_ids": "12"}'),
    ],
)
def test_a_call_that_cannot_be_run_is_answered_and_may_be_mended(play, call):
    trace, sent = play(reply(None, call), reply(None, final([5])))
    assert trace.faults == 1 and trace.movie_ids == [5]
    assert sent[1][-1]["content"].startswith("Error: ")


def test_a_tool_that_fails_does_not_stop_the_run(play):
    def broken(what):
        raise LookupError("no such movie")

    call = reply(None, ("look", '{"what": "x"}'))
    trace, sent = play(call, reply(None, final([1])), functions={"look": broken})
    assert trace.ended == "recommended" and "no such movie" in sent[1][-1]["content"]


def test_turns_run_out(play):
    trace, sent = play(*[reply(None, ("look", '{"what": "x"}'))] * 3, max_turns=3)
    assert trace.ended == "turns" and trace.movie_ids == [] and len(sent) == 3


@pytest.mark.parametrize(
    ("outcome", "end"),
    [(reply("Watch The Godfather."), "no call"), (llm.Outcome(None, "timeout"), "timeout")],
)
def test_words_alone_and_a_failed_request_end_the_run(play, outcome, end):
    trace, _ = play(outcome)
    assert trace.ended == end and trace.movie_ids == []


def test_ids_are_whole_numbers(play):
    trace, _ = play(reply(None, final([1, "2", "x", 2.5, None, 1, True, "²", "9" * 5000])))
    assert trace.movie_ids == [1, 2]
