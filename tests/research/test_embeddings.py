"""Vectors from a model or a server: checked before anything is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from misbehaving_server import serve

pytest.importorskip("sentence_transformers")
torch = pytest.importorskip("torch")

from helpers.settings import Settings  # noqa: E402
from research import embeddings  # noqa: E402
from research.embeddings import EmbeddingError  # noqa: E402
from research.verbalizer_torch import small_ranker  # noqa: E402


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "data" / "sample").mkdir(parents=True)
    return Settings(root=tmp_path)


def fake(texts):
    return [[len(text), text.count("a") + 1.0, 1.0] for text in texts]


def files(settings):
    folder = settings.cache_dir / "embeddings"
    return {path.name: path.read_bytes() for path in folder.glob("*")} if folder.exists() else {}


def test_each_text_is_embedded_once_and_vectors_have_length_one(settings):
    asked = []

    def counting(texts):
        asked.extend(texts)
        return fake(texts)

    first = embeddings.embed(["aa", "b", "aa"], settings, make=counting)
    again = embeddings.embed(["b", "ccc"], settings, make=counting)
    assert asked == ["aa", "b", "ccc"]
    assert first.shape == (3, 3) and np.array_equal(first[0], first[2])
    assert np.array_equal(again[0], first[1])
    assert np.allclose(np.linalg.norm(first, axis=1), 1)


@pytest.mark.parametrize(
    "broken",
    [
        lambda texts: fake(texts)[:-1],
        lambda texts: fake(texts) * 2,
        lambda texts: [[1.0, 2.0] for _ in texts],  # other vectors have 3 numbers
        lambda texts: [[float("nan"), 1.0, 1.0] for _ in texts],
        lambda texts: [[0.0, 0.0, 0.0] for _ in texts],
        lambda texts: [[1.0] * (3 + i) for i, _ in enumerate(texts)],
        lambda texts: None,
    ],
)
def test_a_broken_answer_is_one_sentence_and_the_cache_stays(settings, broken):
    embeddings.embed(["kept"], settings, make=fake)
    before = files(settings)
    with pytest.raises(EmbeddingError, match="nothing was kept"):
        embeddings.embed(["kept", "new", "newer"], settings, make=broken)
    assert files(settings) == before and len(before) == 1


def test_a_failure_in_a_later_batch_keeps_nothing(settings):
    def second_fails(texts):
        return fake(texts) if texts[0] == "a" else [[float("nan")] * 3 for _ in texts]

    with pytest.raises(EmbeddingError):
        embeddings.embed(["a", "b"], settings, batch=1, make=second_fails)
    assert files(settings) == {}


def test_empty_foreign_and_endless_texts(settings):
    found = embeddings.embed(["", "   ", "Фильм", "x" * 100_000], settings, make=fake)
    assert found.shape == (4, 3) and np.array_equal(found[0], found[1])
    assert embeddings.embed([], settings, make=fake).shape[0] == 0


def test_two_models_and_two_servers_share_no_cache(settings):
    one = replace(settings, embedding_model="server:a/b", llm_base_url="http://one/v1")
    others = {"embedding_model": "server:a_b"}, {"llm_base_url": "http://two/v1"}
    paths = {embeddings.cache_path(made) for made in (one, *(replace(one, **o) for o in others))}
    assert len(paths) == 3


def test_a_model_that_is_neither_folder_nor_server(settings):
    with pytest.raises(EmbeddingError, match="EMBEDDING_MODEL"):
        embeddings.embed(["a"], replace(settings, embedding_model="no/such/model"))


def test_a_server_model_without_a_server(settings):
    with pytest.raises(EmbeddingError, match="OPENAI_BASE_URL"):
        embeddings.embed(["a"], replace(settings, embedding_model="server:any"))


@pytest.fixture
def ask(settings):
    """Embed two texts by a server that answers with these vectors, in reverse."""

    def answer(vectors, **changes):
        rows = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        body = {"object": "list", "data": rows[::-1], "model": "m"}
        with serve(("ok", body)) as server:
            made = replace(
                settings, embedding_model="server:tiny", llm_model="any", llm_api_key="k",
                llm_base_url=server.url, **changes,
            )  # fmt: skip
            return embeddings.embed(["a", "bbbb"], made)

    return answer


def test_a_server_answers_in_any_order(ask):
    vectors = ask([[1.0, 0.0], [0.0, 1.0]])
    assert vectors.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("vectors", [[[1.0, 2.0]], [], [None, None]])
def test_a_server_that_fails_leaves_no_cache(ask, settings, vectors):
    with pytest.raises(EmbeddingError):
        ask(vectors)
    assert files(settings) == {}


def test_embeddings_count_against_the_budget(ask):
    with pytest.raises(EmbeddingError, match="did not return embeddings"):
        ask([[1.0], [1.0]], llm_max_tokens=1)


def test_the_packaged_model_knows_what_is_close(settings):
    texts = ["A sad film about war", "A tragic movie of soldiers", "A recipe for pancakes"]
    vectors = embeddings.embed(texts, settings)
    close = embeddings.similar(vectors, vectors)
    assert vectors.shape == (3, 384)
    assert close[0, 1] > close[0, 2] + 0.2 and np.allclose(np.diag(close), 1, atol=1e-3)


def test_hidden_states_are_means_over_the_tokens_of_each_text_alone():
    texts = ["One (2001)", "A much longer title, of a movie that nobody knows (1999)", "Two (2002)"]
    model = small_ranker(texts, hidden=32, layers=2, heads=2)
    model.model.eval()
    means = []
    for text in texts:  # by itself, so without padding
        with torch.inference_mode():
            states = model.model.model(torch.tensor([model.tokens(text)])).last_hidden_state
        means.append(states[0].mean(0).numpy())
    wanted = np.array(means) - np.mean(means, axis=0)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    for size in (1, 3):
        found = embeddings.hidden_states(model, texts, size)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
