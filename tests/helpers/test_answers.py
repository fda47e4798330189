"""One reader for every schema: what stands around an answer goes, damage is counted, no guess."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from misbehaving_server import completion

from conftest import ROOT
from helpers import answers, prompts, replies
from helpers.ranking import RankingReply
from research import bias
from research.evaluation import LetterRanking
from research.paradigm_prompts import CitedRanking, NamedMovies, Queries

GOOD = json.dumps({"ranking": ["E", "D", "C"]})
DRAFT = 'First idea: ["A", "B", "C"]. No, E is best.'


@pytest.mark.parametrize(
    "text",
    [f"<thinking>{DRAFT}</thinking>{GOOD}", f"[THINK]{DRAFT}[/THINK]{GOOD}",
     f"{DRAFT}</think>{GOOD}", f'{GOOD} Not ["A", "B"].', f"{GOOD} Note [1]: by fit.",
     f"<think>{DRAFT} <think>{DRAFT}</think>{GOOD}", f'First ["A", "B"], then {GOOD}',
     'First ["A", "B", "C"]. Final: ["E", "D", "C"]', f"```json\n{GOOD}\n```", f"```json\n{GOOD}",
     f"Sure [of it] {{I am}}!\n{GOOD}\nEnjoy [REC] (2007) {{}} [].", "\ufeff" + GOOD,
     f'The "fav" 5" screen [sic: {GOOD}', json.dumps(LetterRanking.model_json_schema()) + GOOD,
     '{"sure": 0.9, "ranking": ["E", "D", "C"]}', f'{{"ranking": ["A"]}} {GOOD}'],
)  # fmt: skip
def test_what_stands_around_an_answer_is_dropped_without_a_repair(text):
    got = answers.read(text, LetterRanking)
    assert (got.value.ranking, got.repairs, got.kind) == (["E", "D", "C"], 0, "ok")


@pytest.mark.parametrize(
    "text",
    [GOOD.replace("]", ",]"), GOOD.replace('"', "'"), "{“ranking”: [“E”, “D”, “C”]}", GOOD[:-1],
     GOOD[:-2], GOOD.replace('"ranking"', "ranking"), GOOD[:-2] + ",", GOOD[:-3],
     f"```json\n{GOOD[:-2]},\n```\nThe rest follows.", f'["A"] was a draft. {GOOD[:-2]}'],
)  # fmt: skip
def test_small_damage_and_a_cut_end_are_repaired_and_counted(text):
    got = answers.read(text, LetterRanking)
    assert (got.value.ranking, got.repairs) == (["E", "D", "C"], 1)


@pytest.mark.parametrize(
    ("text", "why"),
    [(None, "empty"), (" \n", "empty"), (f"<think>{DRAFT} {GOOD}", "draft"),
     ("I like [A, B, C] and {E}", "no JSON"), ('{"excluded": ["E", "D", "C"]}', "ranking"),
     (f'{{"draft": {GOOD}}}', "ranking"), ('{"ranking": "E"}', "ranking Input should be"),
     ("3", "no JSON"), ('{"ranking": ' + "[" * 3000, "no JSON")],
)  # fmt: skip
def test_what_is_no_answer_is_not_guessed(text, why):
    got = answers.read(text, LetterRanking)
    assert got.value is None and why in got.why and got.kind == "unreadable"
    assert "E" not in got.why  # the answer's own words are no reason
    assert answers.read('["A", "B"]', CitedRanking).value is None  # a list could be either field


@pytest.mark.parametrize(
    "text",
    ["[" * 10**6, '{"a":' * 10**5, '["a",' * 10**5, '["a"]' * 10**5, '"' * 10**6, "<think>" * 10**5,
     '{"a": [' + "[" * 900 + "]" * 900 + "]}", "['x' " * 10**5, '{"a": ["x" "y"]}' * 10**5,
     '{"ranking": [' + "'A'," * 10**5, "9" * 5000, "\ud800[",
     "a" * 16_000 + " b c"],
    ids=range(13),
)  # fmt: skip
def test_long_and_deep_texts_are_read_at_once(text):
    started = time.process_time()
    assert answers.read(text, RankingReply).value is None
    assert answers.outcome_of(completion(text, finish="length")).kind in ("truncated", "repetition")
    assert time.process_time() - started < 5


PIECES = [*"[]{}\",:'\\ \n", "ranking", "A", "E", "<think>", "</think>", "```", "“", "//", GOOD]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@settings(deadline=None)
def test_no_text_makes_the_reader_raise(text):
    for schema in (RankingReply, LetterRanking, prompts.Profile):
        got = answers.read(text, schema)
        assert (got.value is None) == bool(got.why)


def test_every_committed_reply_is_read_as_it_stands():
    """The recorded results rest on this: a plain answer is never repaired."""
    schemas = [prompts.Profile, NamedMovies, Queries, CitedRanking, RankingReply, LetterRanking]
    named = {schema.__name__: schema for schema in [*schemas, bias.LabelRanking]}
    for reply in replies.Store(ROOT / "data" / "replies").all():
        assert reply.response["model"] == "claude" and "usage" not in reply.response
        if form := reply.request.get("response_format"):
            text = reply.response["choices"][0]["message"]["content"]
            got = answers.read(text, schema := named[form["json_schema"]["name"]])
            assert got.value == schema.model_validate_json(text) and got.repairs == 0
