"""The small LLM on this machine: what it answers, how it is named, and how it fails."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time

import httpx2
import openai
import pandas as pd
import psutil
import pytest

from conftest import ROOT
from helpers import llm, local_model, prompts, ranking
from helpers.replies import LocalStore
from helpers.settings import Settings
from research import bias, embeddings, paradigm_prompts, scale, verbalizer

pytestmark = pytest.mark.skipif(bool(local_model.missing()), reason=local_model.missing())
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
SCHEMAS = [prompts.Profile, ranking.RankingReply, ranking.LetterRanking, bias.LabelRanking,
           paradigm_prompts.NamedMovies, paradigm_prompts.Queries,
           paradigm_prompts.CitedRanking]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = local_model.LocalServer(log=tmp_path_factory.mktemp("log") / "log")
    yield started
    started.close()


@pytest.fixture
def project(tmp_path, monkeypatch, server) -> Settings:
    """An empty project whose local model is the one that runs."""
    (tmp_path / "data" / "sample").mkdir(parents=True)
    monkeypatch.setattr(local_model, "server", lambda log: server)
    return Settings(root=tmp_path)


@pytest.fixture
def live(project, server) -> Settings:
    """The same model as a server that the environment names."""
    named = {"llm_base_url": server.address() + "/v1", "llm_model": local_model.MODEL}
    limits = {"llm_timeout_s": 300.0, "llm_reply_tokens": 600}
    return dataclasses.replace(project, llm_mode="live", **named, **limits)


def test_it_answers_what_no_record_answers_under_its_own_name(project):
    with llm.connect(project, local=True) as client:
        first, again = llm.ask(client, QUESTION), llm.ask(client, QUESTION)
    assert first.describe() == f"LLM reply, local, by {local_model.MODEL}"
    assert again.describe() == f"LLM reply, stored, by {local_model.MODEL}"
    assert first.text and first.text == again.text
    (reply,) = LocalStore(project.cache_dir / "replies.jsonl").all()
    assert reply.response["model"] == reply.asked == local_model.MODEL
    other = [{"role": "user", "content": "Another."}]
    with llm.connect(project) as client:  # an evaluation asks without it
        assert llm.ask(client, other).kind == "no_reply"
    for mode in ("recorded", "none"):
        with llm.connect(dataclasses.replace(project, llm_mode=mode), local=True) as client:
            assert llm.ask(client, other).kind == "no_reply"
    with llm.connect(dataclasses.replace(project, llm_mode="local")) as client:
        assert llm.ask(client, other).source == "local"


def test_a_server_that_ended_is_started_again(tmp_path):
    log = tmp_path / "log"
    first = local_model.server(log)
    assert local_model.server(log) is first and first.runs()
    first.close()
    again = local_model.server(log)
    assert again is not first and again.runs()
    again.close()


def test_prompts_of_the_past_take_no_memory(server):
    """llama.cpp would keep their keys and values, 23 kB a token, up to eight gigabytes."""
    served = [p for p in psutil.Process().children() if "helpers.local_model" in p.cmdline()]
    sizes = []
    for number in range(6):
        words = " ".join(f"{number}{word}" for word in range(150))  # some 500 tokens
        body = {"messages": [{"role": "user", "content": words}], "max_completion_tokens": 1}
        httpx2.post(f"{server.address()}/v1/chat/completions", json=body, timeout=120)
        sizes.append(sum(process.memory_info().rss for process in served) / 2**20)
    assert served and sizes[-1] - sizes[1] < 20


def test_a_tight_schema_gives_every_letter_a_place_and_every_text_an_end(project):
    shown = pd.DataFrame({"title": [f"Movie {i} (199{i})" for i in range(6)], "genres": "Comedy"})
    asked = prompts.ranking_prompt("Likes comedies.", ranking.letters(6), shown)
    with llm.connect(project, local=True) as client:
        outcome = llm.ask(client, asked, schema=ranking.RankingReply, letters=6)
    assert outcome.kind == "ok" and len(outcome.value.ranking) == 6
    assert {item.letter for item in outcome.value.ranking} <= set(ranking.letters(6))
    assert all(len(item.reason) <= 200 for item in outcome.value.ranking)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_the_plain_client_parses_every_schema_of_the_course(project, schema):
    likes = [{"role": "user", "content": "I like Alien (1979) and Heat (1995). Answer as JSON."}]
    with llm.connect(project, local=True) as client:
        asked = {"model": "any", "response_format": schema, "messages": likes}
        choice = client.chat.completions.parse(**asked).choices[0]
    assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, schema)


def test_as_a_live_server_it_ranks_many_users_gives_logprobs_and_says_its_faults(live):
    title = [f"Movie {i} (1999)" for i in range(5)]
    asked = verbalizer.letter_prompt(title, title)
    with llm.connect(live).with_options(max_retries=0) as client:
        letter = verbalizer.letter_distribution(client, asked, 5, model=local_model.MODEL)
        long = llm.ask(client, [{"role": "user", "content": "word " * 9000}])
    assert letter.path == "logprobs" and letter.covered >= 3 and 0 < letter.mass <= 1
    assert long.kind == "rejected" and "context size" in long.why
    shown, prompt = [10, 20, 30], "Rank the movies A, B and C as JSON: every letter once. Viewer "
    users = [(i, shown, [{"role": "user", "content": f"{prompt}{i}."}]) for i in range(4)]
    results = list(scale.rank_users(users, live, concurrency=4, progress=False))
    assert {r.user for r in results} == {0, 1, 2, 3}
    orders = [sorted(r.order) for r in results if not r.failed]
    assert orders and all(order == shown for order in orders)
    named = dataclasses.replace(live, embedding_model=f"server:{local_model.MODEL}")
    with pytest.raises(embeddings.EmbeddingError, match=r"not support embeddings.*was kept"):
        embeddings.embed(["A sad film about war"], named)


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
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", STARVED]
    (said,) = subprocess.check_output(command, env=environment, text=True).splitlines()
    assert said.startswith("No local model:") and "larger than the memory" in said


JOB = """
from research import scale
question = "Rank A and B for viewer {} as JSON."
users = [(i, [1, 2], [{"role": "user", "content": question.format(i)}]) for i in range(40)]
for ranked in scale.rank_users(users, concurrency=4, progress=False, max_completion_tokens=80):
    print(ranked.user, ranked.source, flush=True)
"""


def test_a_job_of_forty_users_is_killed_and_goes_on(live):
    named = {"OPENAI_BASE_URL": live.llm_base_url, "LLM_MODEL": local_model.MODEL}
    named |= {"LLM_MODE": "live", "HELPERS_HOME": str(live.root), "PYTHONPATH": str(ROOT / "src")}
    start = {"stdout": subprocess.PIPE, "text": True, "env": {**os.environ, **named}}
    with subprocess.Popen([sys.executable, "-c", JOB], **start) as job:
        given = [job.stdout.readline().split()[0] for _ in range(10)]
        job.send_signal(signal.SIGKILL)
    kept = len(LocalStore(live.cache_dir / "replies.jsonl").all())
    done = subprocess.run([sys.executable, "-c", JOB], **start, check=True)
    sources = dict(line.split() for line in done.stdout.splitlines())
    assert len(sources) == 40 and list(sources.values()).count("store") == kept >= 1
    assert {sources[user] for user in given} == {"store"}


def test_without_its_packages_the_course_says_so_and_goes_on(project, monkeypatch):
    monkeypatch.setattr(local_model.importlib.util, "find_spec", lambda _: None)
    assert "xllamacpp is not installed" in local_model.missing()
    assert "LLM: none;" in llm.describe(project)
    with llm.connect(project, local=True) as client:
        assert llm.ask(client, QUESTION).kind == "no_reply"
    assert "xllamacpp" in llm.describe(dataclasses.replace(project, llm_mode="local"))


KERNEL = """
import time
from helpers import local_model
server = local_model.LocalServer()
print(server.address(), flush=True)
time.sleep(600)
"""


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; a zombie has, and nobody may be there to bury it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def test_two_kernels_have_two_servers_and_a_killed_one_takes_its_own_along():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    start = {"stdout": subprocess.PIPE, "text": True, "env": environment}
    kernels = [subprocess.Popen([sys.executable, "-c", KERNEL], **start) for _ in range(2)]
    try:
        addresses = [kernel.stdout.readline() for kernel in kernels]
        assert len(set(addresses)) == 2 and all(a.startswith("http://127.0.0.1") for a in addresses)
        children = [psutil.Process(kernel.pid).children()[0] for kernel in kernels]
        kernels[0].kill()
        kernels[0].wait()
        deadline = time.monotonic() + 20
        while runs(children[0]):
            assert time.monotonic() < deadline, "the server outlives its kernel"
            time.sleep(0.1)
        assert runs(children[1])
    finally:
        for kernel in kernels:
            kernel.kill()
            kernel.wait()
