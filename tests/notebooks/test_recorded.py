"""The committed replies answer what the notebooks ask, for the users that are promised."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys

import course
import nbformat
import pytest

from conftest import ROOT
from helpers import llm, prompts, ranking, replies
from helpers.data import locate, result_path
from helpers.settings import Settings

REPLIES = ROOT / "data" / "replies"


def load_collect():
    spec = importlib.util.spec_from_file_location(
        "collect", ROOT / "tools" / "experiments" / "05_replies.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["collect"] = module  # where its data classes look for their module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Settings that see the committed replies only, with the results of notebooks 02 and 03."""

    def make(which: str) -> Settings:
        if which == "sample":
            monkeypatch.delenv("MOVIELENS_DIR", raising=False)
        settings = Settings.from_env()
        for name in ("02_grid", "03_implicit"):
            if not result_path(name, locate(settings), settings).is_file():
                for number in ("02", "03"):  # only a run of this test alone comes here
                    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
                    course.execute(path, progress=False)
        return settings

    return make


@pytest.mark.slow
@pytest.mark.parametrize("which", ["sample", "real"])
def test_every_user_has_all_four_replies(which, offline, request, monkeypatch):
    if which == "real":
        request.getfixturevalue("real")
    settings, collect = offline(which), load_collect()
    asked_keys = []
    store = llm.CommittedStore(REPLIES)

    def ask(client, messages, *, schema=None, **options):
        body = {"messages": messages}
        if schema is not None:
            body["response_format"] = llm.response_format(schema)
        asked_keys.append(replies.request_key(body))
        reply = store.get(asked_keys[-1])
        assert reply is not None, messages[-1]["content"][:200]
        return llm.Outcome(reply.response["choices"][0]["message"]["content"], "ok")

    monkeypatch.setattr(collect.llm, "ask", ask)
    monkeypatch.setattr(collect.llm, "connect", lambda settings: None)
    asked = collect.collect(locate(settings), dataclasses.replace(settings, llm_mode="recorded"))
    users = {one.user for one in asked}
    assert 12 in users and len(users) >= (6 if which == "sample" else 11)
    assert len(asked) == 4 * len(users)
    for one in asked:
        if one.what == "ranking":
            assert not ranking.read_ranking(one.outcome.text, 10).failed
        if one.what == "profile":
            prompts.Profile.model_validate_json(one.outcome.text)
    name = "core_sample" if which == "sample" else "core_ml-latest-small"
    kept = {reply.key for reply in replies.read_jsonl(REPLIES / f"{name}.jsonl")}
    assert kept == set(asked_keys)  # none is missing, none answers a prompt that is gone


@pytest.mark.slow
@pytest.mark.parametrize("which", ["sample", "real"])
def test_the_workshop_asks_what_is_recorded(which, offline, request, monkeypatch):
    """No reply is missing, and none answers a prompt that is gone."""
    if which == "real":
        request.getfixturevalue("real")
    name = "sample" if which == "sample" else "ml-latest-small"
    file = REPLIES / f"workshop_{name}.jsonl"
    if not file.is_file():
        pytest.skip("the workshop's replies are not recorded yet")
    settings, collect, asked_keys = offline(which), load_collect(), set()
    monkeypatch.setenv("LLM_MODE", "recorded")
    ask = llm.ask

    def noted(client, messages, *, schema=None, letters=0, **options):
        body = {"messages": messages, **options}
        if schema is not None:
            body["response_format"] = llm.response_format(schema)
        asked_keys.add(replies.request_key(body))
        return ask(client, messages, schema=schema, letters=letters, **options)

    monkeypatch.setattr(llm, "ask", noted)
    users = collect.SAMPLE_USERS if which == "sample" else collect.REAL_USERS
    for number in collect.FROM_HERE:
        variants = () if which == "sample" else collect.VARIANTS
        collect.run_notebook(number, users, settings, variants)
    assert {reply.key for reply in replies.read_jsonl(file)} <= asked_keys
    assert len(list(replies.read_jsonl(file))) == (12 if which == "sample" else 121)


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
    asked_keys, store = set(), llm.CommittedStore(REPLIES)

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
    kept = {reply.key for reply in replies.read_jsonl(REPLIES / f"{name}.jsonl")}
    earlier = {r.key for r in store.all() if r.source.startswith("evaluation_")}
    assert kept == asked_keys - earlier and len(kept) >= 20
    assert all(got.repairs <= len(got.orders) for got in space["asked"].values())
    if which == "real":
        assert all(got.repairs == 0 and not got.failures for got in space["asked"].values())


@pytest.mark.parametrize("path", sorted(REPLIES.glob("*.jsonl")), ids=lambda path: path.stem)
def test_records_are_whole_and_name_their_model(path, recwarn):
    lines = path.read_text(encoding="utf-8").splitlines()
    found = list(replies.read_jsonl(path))
    assert len(found) == len(lines) and not recwarn.list
    assert {reply.response["model"] for reply in found} == {"claude"}
    assert all("usage" not in json.loads(line)["response"] for line in lines)
    assert len({reply.key for reply in found}) == len(found)
