"""python tools/experiments/08_embeddings.py --seed 0 (and 1, 2) fills 08_start_ranks.csv.

Trains LRURec with item embeddings that start from the vectors of notebook 08, tests it, and puts
the ranks of its test items in place of older ones. The recorded runs had one thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd
import torch

from helpers import data
from helpers.settings import Settings
from research import content, embeddings, neural
from research.protocol import Protocol
from research.sequence_models import Config

RANKS = "08_start_ranks"


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one seed, test it, and record the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args(arguments).seed
    torch.set_num_threads(1)  # the number of threads decides the last bits
    settings = Settings.from_env()
    dataset = data.locate(settings)
    print(dataset.describe())
    protocol = Protocol.of(data.load_pandas(dataset, "ratings"))
    movies = data.load_pandas(dataset, "movies").set_index("movieId")
    catalogue = movies.loc[protocol.known.items].reset_index()
    held_out = pd.concat([protocol.parts.test, protocol.parts.validation])
    texts = content.item_texts(catalogue, data.load_pandas(dataset, "tags"), held_out)
    vectors = embeddings.embed(texts.tolist(), settings, progress="embedding")
    config = Config.of("lrurec", seed=seed)
    trained = neural.train(
        protocol.seen,
        protocol.parts.validation,
        config,
        settings.cache_dir / "neural" / f"lrurec_from_text_seed{seed}.safetensors",
        command=f"python tools/experiments/08_embeddings.py --seed {seed}",
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


if __name__ == "__main__":
    main()
