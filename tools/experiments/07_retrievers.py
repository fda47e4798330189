"""python tools/experiments/07_retrievers.py --model lrurec --seed 0 fills 07_retrievers.csv.

Trains one of the four sequence models on one CPU thread (hours), tests it, and puts its rows into
``07_retrievers.csv`` and ``07_ranks.csv`` in place of older ones. With ``--trial length=200`` and
such it judges other settings on validation and puts them into ``07_tuning.csv``.
"""

import argparse
import json
from dataclasses import asdict

import pandas as pd
from experiment import begin, save

from helpers import metrics
from research import neural
from research.sequence_models import MODELS, Config

SETTINGS = ["seed", "learning_rate", "dropout", "length"]


def metrics_of(ranks: pd.DataFrame) -> pd.DataFrame:
    """Return the means over users as ``metric, value, users``."""
    lists = ranks.assign(movieId=0)  # the one relevant item, wherever it stands
    means = metrics.score_table(lists, lists, (5, 10, 20)).mean()
    return pd.DataFrame({"metric": means.index, "value": means.to_numpy(), "users": len(ranks)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="lrurec")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trial", nargs="*", metavar="NAME=VALUE", help=", ".join(SETTINGS[1:]))
    model, seed, trial = vars(parser.parse_args()).values()
    notebook = begin("07", "def scan_by_doubling")
    seen, validation = notebook.seen, notebook.parts.validation
    folder = notebook.settings.cache_dir / "neural"
    if trial is not None:
        changes = {name: json.loads(value) for name, value in (each.split("=") for each in trial)}
        rows = []
        for average in (0.995, 0.0):
            config = Config.of(model, seed=seed, patience=5, **changes | {"average": average})
            name = " ".join([model, *trial, f"seed{seed}", f"{average}"])
            trained = neural.train(seen, validation, config, folder / f"{name}.safetensors")
            row = {"system": model} | {key: asdict(config)[key] for key in (*SETTINGS, "average")}
            row |= {"epochs": len(trained.history), "best_epoch": trained.best_epoch}
            row["metric"] = "Validation Recall@10"
            rows.append(row | {"value": trained.best, "users": len(validation)})
        save(pd.DataFrame(rows), "07_tuning", "system", *SETTINGS)
    else:
        path = folder / f"{model}_seed{seed}.safetensors"
        command = f"python tools/experiments/07_retrievers.py --model {model} --seed {seed}"
        trained = neural.train(seen, validation, Config.of(model, seed=seed), path, command=command)
        ranks = neural.ranks_on_test(trained.network, notebook.protocol)
        means = metrics_of(ranks)
        means.loc[len(means)] = "Validation Recall@10", trained.best, len(validation)
        means.loc[len(means)] = "Epochs to the best", trained.best_epoch, len(validation)
        print(means.round(4).to_string(index=False))
        for name, rows in (("07_ranks", ranks), ("07_retrievers", means)):
            rows.insert(0, "system", model)
            rows.insert(1, "seed", seed)
            save(rows, name, "system", "seed")
