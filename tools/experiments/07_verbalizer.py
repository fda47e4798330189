"""python tools/experiments/07_verbalizer.py makes 07_verbalizer.csv and 07_efficiency.csv.

Trains the small verbalizer, or LoRA on the model that ``LLAMAREC_BASE_MODEL`` names, compares its
order of the test users' candidates with the retriever's and a random one, and times one pass
beside a written list (``--only-time``: that alone). 15 minutes on one CPU thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse.linalg import svds

from helpers import data, metrics, prompts
from helpers.settings import Settings
from research import sequential
from research import verbalizer_torch as vt
from research.evaluation import reorder
from research.protocol import Protocol, shuffled_lists
from research.sequential import Interactions, Transitions
from research.training import Training

SEED, EPOCHS, STEPS = 0, 5, 40  # targets per user, from the end of the training history


def start_from_counts(ranker: vt.Verbalizer, seen: Interactions, titles: Mapping[int, str]) -> None:
    """Set the small model's title vectors from who-watched-what-nearby counts of ``seen``.

    Singular vectors of the positive pointwise mutual information, which is what word2vec factorises
    (Levy and Goldberg 2014). It stands in for what a pretrained LLM brings along, and must know
    nothing of the items that the prompts ask for.
    """
    weights = ranker.model.get_input_embeddings().weight
    size = min(weights.shape[1], len(seen.items) - 1)
    how = Transitions(window=10, gap_decay=0.9, backward=1.0, popularity=0.0)
    counts = sequential.transition_counts(seen, how).tocoo()
    total = np.asarray(counts.sum(axis=1)).ravel()
    context = total**0.75 / (total**0.75).sum()
    ratio = counts.data / (total[counts.row] * context[counts.col])
    counts.data = np.maximum(np.log(ratio), 0)
    left, values, _ = svds(counts.tocsr(), k=size, random_state=0)
    vectors = left * np.sqrt(values)
    vectors *= float(weights.detach().std()) / vectors.std()
    ids = [ranker.tokenizer(prompts.quote(titles[item]))["input_ids"] for item in seen.items]
    with torch.no_grad():
        for vector, own in zip(vectors, ids, strict=True):
            if len(own) == 1:
                weights[own[0], :size] = torch.tensor(vector, dtype=weights.dtype)


def compare_orders(
    ranker: vt.Verbalizer,
    protocol: Protocol,
    titles: Mapping[int, str],
    name: str,
    draws: int = 100,
) -> pd.DataFrame:
    """Return the test metrics of three orders of the same candidates, as 06_evaluation.csv does.

    The retriever's own order, a random one (each user's mean over ``draws`` shuffles) and the
    verbalizer's. Users whose item is no candidate score zero in all three.
    """
    seen, lists, target = protocol.test
    requests = vt.prompts_for(lists, seen, titles)
    reordered = reorder(lists, vt.orders(vt.scores(ranker, requests)))
    mixed = [metrics.score_table(shuffled_lists(lists, seed), target) for seed in range(draws)]
    tables = {
        "its own order": metrics.score_table(lists, target),
        "random": sum(mixed) / draws,
        name: metrics.score_table(reordered, target),
    }
    rows = []
    for order, table in tables.items():
        for metric, values in table.items():
            at = metrics.bootstrap_interval(values)
            rows.append(("transitions", order, metric, at.mean, at.low, at.high, at.users))
    names = ["retriever", "ranker", "metric", "value", "low", "high", "users"]
    return pd.DataFrame(rows, columns=pd.Index(names))


def main() -> None:
    """Train the verbalizer, rank the test users, time it, save both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only-time", action="store_true", help="save 07_efficiency.csv alone")
    only_time = parser.parse_args().only_time
    torch.set_num_threads(1)  # the number of threads decides the last bits
    settings = Settings.from_env()
    dataset = data.locate(settings)
    print(dataset.describe())
    protocol = Protocol.of(data.load_pandas(dataset, "ratings"))
    titles = vt.title_map(data.load_pandas(dataset, "movies"))
    rows, items = protocol.parts.train, protocol.items
    if settings.llamarec_base_model:
        ranker = vt.Verbalizer.load(settings, four_bit=True).with_lora(seed=SEED)
        name, rate = f"verbalizer, {Path(ranker.name).name}", 1e-4
    else:
        ranker = vt.small([titles[int(item)] for item in items], seed=SEED)
        early = rows.loc[rows.groupby("userId").cumcount(ascending=False) >= STEPS]
        start_from_counts(ranker, Interactions.of(early, items), titles)
        name, rate = "verbalizer, small model", 1e-3
    if not only_time:
        examples = vt.training_prompts(rows, items, titles, steps=STEPS, seed=SEED)
        print(vt.train(ranker, examples, Training(rate, EPOCHS, seed=SEED)))
        table = compare_orders(ranker, protocol, titles, name)
        print(table.round(4).to_string(index=False))
        data.save_result(table, "07_verbalizer", dataset, settings)
    table = vt.efficiency(ranker)
    print(table.round(3).to_string(index=False))
    data.save_result(table, "07_efficiency", dataset, settings)


if __name__ == "__main__":
    main()
