"""python tools/experiments/09_embeddings.py start --seed 0 (and 1, 2) fills 09_start_ranks.csv.

``start`` trains LRURec with item embeddings that start from the vectors of notebook 09, tests it,
and puts the ranks of its test items in place of older ones. ``vectors`` makes 09_vectors.csv: the
ranks of the test items by nearness alone, for MiniLM and the hidden states of SmolLM2, on three
kinds of text, and for SmolLM2 after notebook 08's training; half an hour. One thread each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from helpers import data
from helpers.settings import Settings
from research import content, embeddings, neural
from research.language_model import LanguageModel, inner, load_adapter
from research.protocol import Protocol
from research.sequence_models import Config
from research.sequential import Interactions, target_ranks
from research.training import padded
from research.verbalizer_torch import Verbalizer

RANKS = "09_start_ranks"
POWERS = (0.0, 0.3, 0.6)  # of the number of ratings


class Work(NamedTuple):
    """What both commands share; ``texts`` are the full ones."""

    settings: Settings
    dataset: data.Dataset
    protocol: Protocol
    movies: pd.DataFrame
    texts: pd.Series


def prepare() -> Work:
    """Read the data and write the movies' texts, without tags of held-out ratings."""
    settings = Settings.from_env()
    dataset = data.locate(settings)
    print(dataset.describe())
    protocol = Protocol.of(data.load_pandas(dataset, "ratings"))
    movies = data.load_pandas(dataset, "movies").set_index("movieId")
    catalogue = movies.loc[protocol.known.items].reset_index()
    held_out = pd.concat([protocol.parts.test, protocol.parts.validation])
    texts = content.item_texts(catalogue, data.load_pandas(dataset, "tags"), held_out)
    return Work(settings, dataset, protocol, catalogue, texts)


def start(work: Work, seed: int) -> None:
    """Train one seed, test it, and record the result."""
    settings, dataset, protocol, _, texts = work
    vectors = embeddings.embed(texts.tolist(), settings, progress="embedding")
    config = Config.of("lrurec", seed=seed)
    trained = neural.train(
        protocol.seen,
        protocol.parts.validation,
        config,
        settings.cache_dir / "neural" / f"lrurec_from_text_seed{seed}.safetensors",
        command=f"python tools/experiments/09_embeddings.py start --seed {seed}",
        start=neural.start_from(vectors, config.dim),
    )
    rows = neural.ranks_on_test(trained.network, protocol).assign(
        system="LRURec, text start", seed=seed, epochs=trained.best_epoch
    )
    path = data.result_path(RANKS, dataset, settings)
    if path.is_file():
        old = pd.read_csv(path)
        rows = pd.concat([old.loc[old["seed"] != seed], rows], ignore_index=True)
    data.save_result(rows.sort_values(["seed", "userId"], kind="stable"), RANKS, dataset, settings)
    print(f"Validation Recall@10 {trained.best:.4f}, recorded in {path.name}")


def hidden(model: LanguageModel, texts: Sequence[str], batch: int = 32) -> np.ndarray:
    """Return the mean of each text's last hidden states, of length 1, shape (n_texts, width).

    The mean of all texts is taken off first: the states of a causal model all point one way.
    """
    rows, inside = [], inner(model.model).model
    with torch.inference_mode():
        for first in tqdm(range(0, len(texts), batch), desc=model.name, mininterval=30):
            ids, mask = padded([model.tokens(text) for text in texts[first : first + batch]])
            states = inside(input_ids=ids, attention_mask=mask).last_hidden_state
            share = (mask / mask.sum(1, keepdim=True)).unsqueeze(-1)
            rows.append((states * share).sum(1).numpy())
    table = np.concatenate(rows)
    table -= table.mean(axis=0)
    return table / np.linalg.norm(table, axis=1, keepdims=True)


def vectors(work: Work) -> None:
    """Rank the test items by nearness for each model and kind of text, and record the ranks."""
    settings, dataset, protocol, movies, texts = work
    bare = movies.set_index("movieId").title
    kinds = {
        "title": bare,
        "title, genres": content.item_texts(movies),
        "title, genres, tags": texts,
    }
    base = Verbalizer.load(settings)
    tuned = base.clone().with_lora(seed=0)
    load_adapter(tuned, settings.data_dir / "weights" / "llamarec_seed0.safetensors")
    makers = {
        "MiniLM": lambda texts: embeddings.embed(texts, settings),
        "SmolLM2": lambda texts: hidden(base, texts),
        "SmolLM2, after LoRA": lambda texts: hidden(tuned, texts),
    }
    parts, rows = protocol.parts, []
    for (model, make), (kind, lines) in product(makers.items(), kinds.items()):
        if make is makers["SmolLM2, after LoRA"] and lines is not texts:
            continue
        near = embeddings.similar(*[make(lines.tolist())] * 2)
        np.fill_diagonal(near, 0)

        def ranks(seen: Interactions, target: pd.DataFrame, power: float, near=near) -> np.ndarray:
            how = content.Near(popularity=power)
            return target_ranks(content.near_scores(near, seen, how), seen, target)

        scores = {p: (1 / ranks(protocol.seen, parts.validation, p)).mean() for p in POWERS}
        chosen = max(scores, key=scores.get)
        for power in sorted({0.0, chosen}):
            test = ranks(protocol.known, parts.test, power)
            rows.append(parts.test[["userId"]].assign(
                model=model, text=kind, popularity=power, rank=test.astype(int)))  # fmt: skip
            print(model, kind, power, f"MRR {np.mean(1 / test):.4f}", flush=True)
    data.save_result(pd.concat(rows, ignore_index=True), "09_vectors", dataset, settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["start", "vectors"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the number of threads decides the last bits
    work = prepare()
    start(work, options.seed) if options.command == "start" else vectors(work)


if __name__ == "__main__":
    main()
