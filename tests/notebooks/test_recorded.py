"""The committed replies answer what the notebooks ask, for the users that are promised."""

from __future__ import annotations

import importlib
import json
from collections import Counter

import nbformat
import pytest

from conftest import ROOT
from helpers import llm, prompts, ranking, replies

REPLIES = ROOT / "data" / "replies"
script = importlib.import_module("05_replies")


@pytest.mark.slow
@pytest.mark.parametrize("which", ["sample", "real"])
def test_the_notebooks_ask_every_user_what_is_recorded(which, request, monkeypatch):
    """No reply is missing, and none answers a prompt that is gone."""
    if which == "real":
        request.getfixturevalue("real")
    else:
        request.getfixturevalue("sample_results")
        monkeypatch.delenv("MOVIELENS_DIR", raising=False)
    monkeypatch.setenv("LLM_MODE", "recorded")
    ask, outcomes = llm.ask, {}

    def noted(client, messages, *, schema=None, letters=0, **options):
        body = {"messages": messages, **options}
        if schema is not None:
            body["response_format"] = llm.response_format(schema)
        outcome = ask(client, messages, schema=schema, letters=letters, **options)
        outcomes[replies.request_key(body)] = schema and schema.__name__, outcome.text
        return outcome

    monkeypatch.setattr(llm, "ask", noted)
    script.ask(simulated=which == "sample")
    users = script.SAMPLE_USERS if which == "sample" else script.REAL_USERS
    name = "sample" if which == "sample" else "ml-latest-small"
    core, workshop = (
        {reply.key for reply in replies.Store(REPLIES / f"{file}_{name}.jsonl").all()}
        for file in ("core", "workshop")
    )
    assert core | workshop <= set(outcomes)
    assert len(workshop) == (12 if which == "sample" else 121)
    assert len(core) == 4 * len(users) and 12 in users
    kinds = [outcomes[key] for key in core]
    assert Counter(kind for kind, _ in kinds) == {
        None: 2 * len(users), "Profile": len(users), "RankingReply": len(users)
    }  # fmt: skip
    for kind, text in kinds:
        if kind == "RankingReply":
            assert not ranking.read_ranking(text, 10).failed
        elif kind == "Profile":
            prompts.Profile.model_validate_json(text)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["sample", "real"])
def test_the_appendix_on_forty_users_asks_what_is_recorded(which, settings, request, monkeypatch):
    """Run the cells that build and ask the requests; no reply is missing, none is left over."""
    if which == "real":
        request.getfixturevalue("real")
    else:
        monkeypatch.delenv("MOVIELENS_DIR", raising=False)
    monkeypatch.setenv("LLM_MODE", "recorded")
    path = ROOT / "notebooks" / "appendix" / "13_forty_users.ipynb"
    asked_keys, store = set(), replies.Store(REPLIES)

    def ask(client, messages, *, schema=None, **options):
        body = {"messages": messages, "response_format": llm.response_format(schema), **options}
        key = replies.request_key(body)
        asked_keys.add(key)
        reply = store.get(key)
        assert reply is not None, messages[-1]["content"][:200]
        return llm.Outcome(reply.response["choices"][0]["message"]["content"], "ok")

    monkeypatch.setattr(llm, "ask", ask)
    space: dict = {}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "setup" not in cell.metadata.get("tags", []):
            exec(compile(cell.source, path.name, "exec"), space)
            if "no_content" in space:
                break
    name = "bias_sample" if which == "sample" else "bias_ml-latest-small"
    kept = {reply.key for reply in replies.Store(REPLIES / f"{name}.jsonl").all()}
    earlier = {r.key for r in store.all() if r.source.startswith("evaluation_")}
    assert kept == asked_keys - earlier and len(kept) >= 20
    assert all(got.repairs <= len(got.orders) for got in space["asked"].values())
    if which == "real":
        assert all(got.repairs == 0 and not got.failures for got in space["asked"].values())


@pytest.mark.parametrize("path", sorted(REPLIES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_records_are_whole_and_name_their_model(path, recwarn):
    lines = path.read_text(encoding="utf-8").splitlines()
    found = replies.Store(path).all()
    assert [json.loads(line)["key"] for line in lines] == [reply.key for reply in found]
    assert not recwarn.list
    assert {reply.response["model"] for reply in found} == {"claude"}
    assert all("usage" not in json.loads(line)["response"] for line in lines)
    assert len({reply.key for reply in found}) == len(found)
