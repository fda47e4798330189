"""python tools/experiments/09_embeddings.py start --seed 0 (and 1, 2) fills 09_start_ranks.csv.

``start`` trains LRURec with item embeddings that start from the vectors of notebook 09, tests it,
and puts the ranks of its test items in place of older ones. ``vectors`` makes 09_vectors.csv: the
ranks of the test items by nearness alone, for MiniLM and the hidden states of SmolLM2, on three
kinds of text, and for SmolLM2 after notebook 08's training; half an hour. One thread each.
"""

import argparse
from functools import partial
from itertools import product
from types import SimpleNamespace

import numpy as np
import pandas as pd
from experiment import begin, save

from research import content, embeddings, neural
from research.language_model import LanguageModel, load_adapter
from research.sequence_models import Config
from research.sequential import target_ranks

POWERS = (0.0, 0.3, 0.6)  # of the number of ratings
FULL = "title, genres, tags"  # without tags of held-out ratings


def start(notebook: SimpleNamespace, seed: int) -> None:
    config, protocol = Config.of("lrurec", seed=seed), notebook.protocol
    path = notebook.settings.cache_dir / "neural" / f"lrurec_from_text_seed{seed}.safetensors"
    how = {"command": f"python tools/experiments/09_embeddings.py start --seed {seed}"}
    how["start"] = neural.start_from(notebook.vectors, config.dim)
    trained = neural.train(protocol.seen, protocol.parts.validation, config, path, **how)
    print(f"Validation Recall@10 {trained.best:.4f}")
    facts = {"system": "LRURec, text start", "seed": seed, "epochs": trained.best_epoch}
    save(neural.ranks_on_test(trained.network, protocol).assign(**facts), "09_start_ranks", "seed")


def vectors(notebook: SimpleNamespace) -> None:
    settings, protocol, parts = notebook.settings, notebook.protocol, notebook.parts
    items, rows = notebook.in_core, []
    kinds = {"title": items.title, "title, genres": content.item_texts(items), FULL: notebook.texts}
    base = LanguageModel.load(settings)
    tuned = base.clone().with_lora(seed=0)
    load_adapter(tuned, settings.data_dir / "weights" / "llamarec_seed0.safetensors")
    models = {
        "MiniLM": partial(embeddings.embed, settings=settings),
        "SmolLM2": partial(embeddings.hidden_states, base),
        "SmolLM2, after LoRA": partial(embeddings.hidden_states, tuned),
    }
    for model, kind in [*product(("MiniLM", "SmolLM2"), kinds), ("SmolLM2, after LoRA", FULL)]:
        made = models[model](kinds[kind].tolist())
        near = embeddings.similar(made, made)
        np.fill_diagonal(near, 0)

        def ranks(seen, target, power, near=near) -> np.ndarray:
            scores = content.near_scores(near, seen, content.Near(popularity=power))
            return target_ranks(scores, seen, target)

        found = {p: (1 / ranks(protocol.seen, parts.validation, p)).mean() for p in POWERS}
        for power in sorted({0.0, max(found, key=found.get)}):
            test = ranks(protocol.known, parts.test, power).astype(int)
            facts = {"model": model, "text": kind, "popularity": power, "rank": test}
            rows.append(parts.test[["userId"]].assign(**facts))
            print(model, kind, power, f"MRR {np.mean(1 / test):.4f}", flush=True)
    save(pd.concat(rows), "09_vectors")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["start", "vectors"])
    parser.add_argument("--seed", type=int, default=0)
    options, notebook = parser.parse_args(), begin("09", "near = {}")
    start(notebook, options.seed) if options.command == "start" else vectors(notebook)
