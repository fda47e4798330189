"""Rankings from a server that takes 200 ms for each, sixteen at a time beside one by one."""

from __future__ import annotations

import itertools

import openai
from slow_server import slow_server

from helpers.replies import LocalStore
from helpers.settings import Settings
from research import scale

SHOWN = [10, 20, 30]
AT_ONCE, ALONE = 480, 16  # users


def bench_llm(versus, tmp_path):
    turn = itertools.count()

    def users(n):
        note = next(turn)  # no request may be answered from the store
        for number in range(n):
            yield scale.ToRank(
                number, SHOWN, [{"role": "user", "content": f"user {number} of turn {note}"}]
            )

    with slow_server(0.2) as server, openai.OpenAI(base_url=server.url, api_key="x") as client:
        env = {"OPENAI_BASE_URL": server.url, "LLM_MODEL": "served", "LLM_MAX_TOKENS": "100000000"}
        settings = Settings.from_env(env)

        def one_by_one():
            for one in users(ALONE):
                client.chat.completions.create(model="served", **scale.request_body(one))

        def sixteen():
            with LocalStore(tmp_path / "replies.jsonl") as store:
                asked = scale.rank_users(
                    users(AT_ONCE), settings, store=store, concurrency=16, progress=False
                )
                results = list(scale.blocking(asked))
            assert {row.source for row in results} == {"live"} and len(results) == AT_ONCE

        versus(
            "LLM requests, 16 at a time beside one by one", sixteen, one_by_one, rounds=3,
            parts=(AT_ONCE / 1000, ALONE / 1000),
        )  # fmt: skip
        assert server.told()["most"] == 16
