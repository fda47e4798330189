"""python tools/experiments/07_retrievers.py --model lrurec --seed 0 fills 07_retrievers.csv.

Trains one of the four sequence models on one CPU thread (hours), tests it, and puts its rows into
``07_retrievers.csv`` and ``07_ranks.csv`` in place of older ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd
import torch

from helpers import data, metrics
from helpers.settings import Settings
from research import neural
from research.protocol import Protocol
from research.sequence_models import MODELS, Config


def metrics_of(ranks: pd.DataFrame) -> pd.DataFrame:
    """Return the means over users as ``metric, value, users``."""
    lists = ranks.assign(movieId=0)  # the one relevant item, wherever it stands
    means = metrics.score_table(lists, lists, (5, 10, 20)).mean()
    return pd.DataFrame({"metric": means.index, "value": means.to_numpy(), "users": len(ranks)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Train one model, test it, and record the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="lrurec")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the number of threads decides the last bits
    settings = Settings.from_env()
    dataset = data.locate(settings)
    print(dataset.describe())
    protocol = Protocol.of(data.load_pandas(dataset, "ratings"))
    config, validation = Config.of(options.model, seed=options.seed), protocol.parts.validation
    path = settings.cache_dir / "neural" / f"{options.model}_seed{options.seed}.safetensors"
    command = f"python tools/experiments/07_retrievers.py --model {config.model}"
    command += f" --seed {config.seed}"
    trained = neural.train(protocol.seen, validation, config, path, command=command)
    ranks = neural.ranks_on_test(trained.network, protocol)
    chosen = {"Validation Recall@10": trained.best, "Epochs to the best": trained.best_epoch}
    means = pd.DataFrame(chosen.items(), columns=pd.Index(["metric", "value"]))
    means = pd.concat([metrics_of(ranks), means.assign(users=len(validation))])
    print(means.round(4).to_string(index=False))
    for name, rows in (("07_ranks", ranks), ("07_retrievers", means)):
        rows.insert(0, "system", options.model)
        rows.insert(1, "seed", options.seed)
        file = data.result_path(name, dataset, settings)
        if file.is_file():
            old = pd.read_csv(file)
            same = (old["system"] == options.model) & (old["seed"] == options.seed)
            rows = pd.concat([old.loc[~same], rows])
        rows = rows.sort_values(["system", "seed"], kind="stable")
        data.save_result(rows, name, dataset, settings)


if __name__ == "__main__":
    main()
