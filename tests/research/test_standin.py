"""The stand-in answers late, in the order shown, and says that it is no LLM."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pandas as pd

from helpers import ranking
from research import evaluation, scale
from research.standin import MODEL, standin


def test_it_answers_late_in_the_order_shown_and_counts():
    movies = pd.DataFrame({"title": ["One (2001)", "Z | two (2002)"], "genres": ["Drama"] * 2})
    history = movies.assign(rating=4.0)
    asked = evaluation.history_prompt(history, ranking.letters(2), movies)
    with standin(0.3) as server, openai.OpenAI(base_url=server.url, api_key="x") as client:

        def ask(note: str):
            body = scale.request_body(scale.ToRank(1, [7, 8], asked), {"user": note})
            return client.chat.completions.create(model="any", **body)

        start = time.perf_counter()
        with ThreadPoolExecutor(3) as pool:
            replies = list(pool.map(ask, ["a", "b", "c"]))
        seconds = time.perf_counter() - start
        log = server.log()
    assert seconds >= 0.3
    assert {reply.model for reply in replies} == {MODEL}
    assert ranking.read_ranking(replies[0].choices[0].message.content, 2).order == [0, 1]
    assert (log.requests, log.prompts, log.most_at_once) == (3, 1, 3)


def test_it_ends_with_the_process_that_started_it():
    code = (
        "import os\n"
        "from research.standin import standin\n"
        "with standin() as server:\n"
        "    print(server.url, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    address = done.stdout.strip().removesuffix("/v1")
    assert address.startswith("http://127.0.0.1:")
    for _ in range(100):
        try:
            urllib.request.urlopen(address + "/log", timeout=5)
        except OSError:
            break
        time.sleep(0.1)
    else:
        raise AssertionError("the stand-in outlived its parent")
