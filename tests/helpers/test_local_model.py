"""The small LLM on this machine: what it answers, how it is named, and how it fails."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import time

import httpx2
import openai
import pandas as pd
import pytest

from conftest import ROOT
from helpers import llm, local_model, prompts, ranking
from helpers.replies import Store
from helpers.settings import Settings
from research import verbalizer
from research.evaluation import LetterRanking

pytestmark = pytest.mark.skipif(bool(local_model.missing()), reason=local_model.missing())
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def server():
    started = local_model.LocalServer()
    yield started
    started.close()


@pytest.fixture
def project(tmp_path, monkeypatch, server) -> Settings:
    """An empty project whose local model is the one that runs."""
    (tmp_path / "data" / "sample").mkdir(parents=True)
    monkeypatch.setattr(local_model, "SHARED", [server])
    return Settings(root=tmp_path)


def test_it_answers_what_no_record_answers_under_its_own_name(project):
    with llm.connect(project, local=True) as client:
        first, again = llm.ask(client, QUESTION), llm.ask(client, QUESTION)
    assert first.describe() == f"LLM reply, local, by {local_model.MODEL}"
    assert again.describe() == f"LLM reply, stored, by {local_model.MODEL}"
    assert first.text and first.text == again.text
    (reply,) = Store(project.cache_dir / "replies.jsonl").all()
    assert reply.response["model"] == reply.asked == local_model.MODEL
    other = [{"role": "user", "content": "Another."}]
    with llm.connect(project) as client:  # an evaluation asks without it
        assert llm.ask(client, other).kind == "no_reply"
    with llm.connect(dataclasses.replace(project, llm_mode="recorded"), local=True) as client:
        assert llm.ask(client, other).kind == "no_reply"
    with llm.connect(dataclasses.replace(project, llm_mode="local")) as client:
        assert llm.ask(client, other).source == "local"


def test_a_server_that_ended_is_started_again(monkeypatch):
    monkeypatch.setattr(local_model, "SHARED", [])
    body = {"messages": QUESTION, "max_tokens": 1}
    for _ in range(2):
        assert local_model.post("/v1/chat/completions", body).is_success
        (running,) = local_model.SHARED
        running.close()
    assert local_model.SHARED[0].process.poll() is not None


def test_a_tight_schema_gives_every_letter_a_place_and_every_text_an_end(project):
    shown = pd.DataFrame({"title": [f"Movie {i} (199{i})" for i in range(6)], "genres": "Comedy"})
    asked = prompts.ranking_prompt("Likes comedies.", ranking.letters(6), shown)
    with llm.connect(project, local=True) as client:
        outcome = llm.ask(client, asked, schema=ranking.RankingReply, letters=6)
    assert outcome.kind == "ok" and len(outcome.value.ranking) == 6
    assert {item.letter for item in outcome.value.ranking} <= set(ranking.letters(6))
    assert all(len(item.reason) <= 200 for item in outcome.value.ranking)


def test_the_plain_client_parses_a_schema(project):
    likes = [{"role": "user", "content": "I like Alien (1979) and Heat (1995). Answer as JSON."}]
    with llm.connect(project, local=True) as client:
        asked = {"model": "any", "response_format": LetterRanking, "messages": likes}
        choice = client.chat.completions.parse(**asked).choices[0]
    assert choice.finish_reason == "stop" and choice.message.parsed.ranking


def test_as_a_live_server_it_gives_logprobs_and_says_that_its_context_ends(project, server):
    """The same model as a server that the environment names."""
    named = {"llm_base_url": server.address + "/v1", "llm_model": local_model.MODEL}
    settings = dataclasses.replace(project, llm_mode="live", llm_timeout_s=300.0, **named)
    title = [f"Movie {i} (1999)" for i in range(5)]
    with llm.connect(settings).with_options(max_retries=0) as client:
        letter = verbalizer.letter_distribution(
            client, verbalizer.letter_prompt(title, title), 5, model=local_model.MODEL
        )
        long = llm.ask(client, [{"role": "user", "content": "word " * 9000}])
    assert letter.path == "logprobs" and letter.covered >= 3 and 0 < letter.mass <= 1
    assert long.kind == "rejected" and "context size" in long.why


@pytest.mark.parametrize("content", [b"GGUF" + b"\0" * 5000, b"no model", None])
def test_a_file_that_cannot_be_loaded_is_one_sentence(tmp_path, content, monkeypatch):
    path = tmp_path / "model.gguf"
    path.write_bytes(content or local_model.weights().open("rb").read(3_000_000))  # cut
    monkeypatch.setattr(local_model, "weights", lambda: path)
    with pytest.raises(openai.OpenAIError, match=r"model.gguf cannot be loaded.* memory"):
        local_model.LocalServer()


STARVED = """
import resource, openai
from helpers import local_model
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_AS, (300 << 20, 300 << 20))
try:
    local_model.LocalServer()
except openai.OpenAIError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
def test_a_model_that_does_not_fit_the_memory_is_one_sentence():
    command = [sys.executable, "-c", STARVED]
    (said,) = subprocess.check_output(command, env=ENVIRONMENT, text=True).splitlines()
    assert "memory is short" in said


def test_without_its_packages_the_course_says_so_and_goes_on(project, monkeypatch):
    monkeypatch.setattr(local_model.importlib.util, "find_spec", lambda _: None)
    assert "xllamacpp is not installed" in local_model.missing()
    assert "LLM: none;" in llm.describe(project)
    with llm.connect(project, local=True) as client:
        assert llm.ask(client, QUESTION).kind == "no_reply"


KERNEL = """
import time
from helpers import local_model
server = local_model.LocalServer()
print(server.address, flush=True)
time.sleep(600)
"""


def is_up(address: str) -> bool:
    with contextlib.suppress(httpx2.TransportError):
        return httpx2.get(address, timeout=10).status_code > 0
    return False


def test_two_kernels_have_two_servers_and_a_killed_one_takes_its_own_along():
    start = {"stdout": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    kernels = [subprocess.Popen([sys.executable, "-c", KERNEL], **start) for _ in range(2)]
    try:
        first, second = (kernel.stdout.readline().strip() for kernel in kernels)
        assert first != second and is_up(first) and is_up(second)
        kernels[0].kill()
        deadline = time.monotonic() + 20
        while is_up(first):
            assert time.monotonic() < deadline, "the server outlives its kernel"
            time.sleep(0.1)
        assert is_up(second)
    finally:
        for kernel in kernels:
            kernel.kill()
            kernel.wait()
