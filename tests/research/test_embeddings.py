"""Vectors from a model or a server: checked before anything is kept."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import numpy as np
import pytest

pytest.importorskip("sentence_transformers")

from helpers import llm
from helpers.settings import Settings
from research import embeddings
from research.embeddings import EmbeddingError


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
    ("broken", "words"),
    [
        (lambda texts: fake(texts)[:-1], "vectors for"),
        (lambda texts: [[1.0, 2.0] for _ in texts], "2 numbers where 3"),
        (lambda texts: [[float("nan"), 1.0, 1.0] for _ in texts], "not a finite number"),
        (lambda texts: [[float("inf"), 1.0, 1.0] for _ in texts], "not a finite number"),
        (lambda texts: [[0.0, 0.0, 0.0] for _ in texts], "zeros"),
        (lambda texts: [[1.0] * (3 + i) for i, _ in enumerate(texts)], "different lengths"),
        (lambda texts: None, "0 vectors"),
    ],
)
def test_a_broken_answer_is_one_sentence_and_the_cache_stays(settings, broken, words):
    embeddings.embed(["kept"], settings, make=fake)
    before = files(settings)
    with pytest.raises(EmbeddingError, match=words):
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
    assert embeddings.embed([], settings, make=fake).shape == (0, 3)


def test_two_models_and_two_servers_share_no_cache(settings):
    one = replace(settings, embedding_model="server:a/b", llm_base_url="http://one/v1")
    paths = {
        embeddings.cache_path(made.embedding_model, made)
        for made in (
            one,
            replace(one, embedding_model="server:a_b"),
            replace(one, llm_base_url="http://two/v1"),
        )
    }
    assert len(paths) == 3


def test_a_damaged_cache_says_what_to_delete(settings):
    embeddings.embed(["a"], settings, make=fake)
    (path,) = (settings.cache_dir / "embeddings").glob("*.parquet")
    path.write_bytes(b"not parquet")
    with pytest.raises(EmbeddingError, match="delete it"):
        embeddings.embed(["a"], settings, make=fake)


def test_a_model_that_is_neither_folder_nor_server(settings):
    with pytest.raises(EmbeddingError, match="EMBEDDING_MODEL"):
        embeddings.embed(["a"], replace(settings, embedding_model="no/such/model"))


def test_a_server_model_without_a_server(settings):
    with pytest.raises(EmbeddingError, match="OPENAI_BASE_URL"):
        embeddings.embed(["a"], replace(settings, embedding_model="server:any"))


class Server(BaseHTTPRequestHandler):
    answer = staticmethod(lambda texts: [[1.0, 2.0, 3.0] for _ in texts])
    seen: ClassVar[list] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Server.seen.append((self.path, body["model"]))
        rows = Server.answer(body["input"])
        if rows is None:
            self.send_response(400)
            self.end_headers()
            return
        listed = [{"object": "embedding", "index": i, "embedding": r} for i, r in enumerate(rows)]
        text = json.dumps({"object": "list", "data": listed[::-1], "model": "m"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(settings):
    http = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield replace(
        settings,
        embedding_model="server:tiny",
        llm_model="any",
        llm_base_url=f"http://127.0.0.1:{http.server_port}/v1",
        llm_api_key="k",
    )
    http.shutdown()
    Server.answer = staticmethod(lambda texts: [[1.0, 2.0, 3.0] for _ in texts])


def test_embeddings_count_against_the_budget(server):
    body = {"model": "tiny", "input": ["x" * 400, "y" * 400]}
    assert llm.estimate_tokens(body) == 200
    budget = llm.Budget(max_tokens=1000)
    reserved = budget.reserve(body)
    budget.settle(reserved, body, {"data": [], "usage": {"prompt_tokens": 180}})
    assert budget.spent_tokens == 180
    with pytest.raises(EmbeddingError, match="did not return embeddings"):
        embeddings.embed(["z" * 400], replace(server, llm_max_tokens=50))
    assert files(server) == {}


def test_a_server_answers_in_any_order(server):
    Server.answer = staticmethod(lambda texts: [[len(t), 1.0, 0.0] for t in texts])
    found = embeddings.embed(["a", "bbbb"], server)
    assert Server.seen[-1] == ("/v1/embeddings", "tiny")
    assert found[1][0] > found[0][0]


@pytest.mark.parametrize("rows", [None, [[1.0, 2.0]], []])
def test_a_server_that_fails_leaves_the_cache(server, rows):
    embeddings.embed(["kept"], server)
    before = files(server)
    Server.answer = staticmethod(lambda texts: rows)
    with pytest.raises(EmbeddingError):
        embeddings.embed(["one", "two"], server)
    assert files(server) == before


def test_the_packaged_model_knows_what_is_close(settings):
    texts = ["A sad film about war", "A tragic movie of soldiers", "A recipe for pancakes"]
    vectors = embeddings.embed(texts, settings)
    close = embeddings.similar(vectors, vectors)
    assert vectors.shape == (3, 384)
    assert close[0, 1] > close[0, 2] + 0.2 and np.allclose(np.diag(close), 1, atol=1e-3)
