"""python tools/experiments/07_retrievers.py --model lrurec --seed 0 fills 07_llamarec.csv.

Trains one of the four sequence models, tests it, and puts its rows into ``07_llamarec.csv`` and
``07_llamarec_ranks.csv`` in place of older ones. Run again after an interruption it goes on after
the last whole epoch. The recorded runs had one thread.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from helpers import data, metrics
from helpers.settings import Settings
from research import neural
from research.protocol import Protocol
from research.sequence_models import MODELS, Config
from research.training import ModelError


def metrics_of(ranks: pd.DataFrame) -> pd.DataFrame:
    """Return the means over users as ``metric, value, users``."""
    lists = ranks.assign(movieId=0)  # the one relevant item, wherever it stands
    means = metrics.score_table(lists, lists, (5, 10, 20)).mean()
    return pd.DataFrame({"metric": means.index, "value": means.to_numpy(), "users": len(ranks)})


def record(
    done: neural.Trained, protocol: Protocol, dataset: data.Dataset, settings: Settings
) -> pd.DataFrame:
    """Test a network, put its rows into both tables, and return its means."""
    config, ranks = done.network.config, neural.ranks_on_test(done.network, protocol)
    means = metrics_of(ranks)
    chosen = {"Validation Recall@10": done.best, "Epochs to the best": float(done.best_epoch)}
    validation = pd.DataFrame({"metric": list(chosen), "value": list(chosen.values())})
    validation["users"] = len(protocol.parts.validation)
    for name, rows in (
        ("07_llamarec_ranks", ranks),
        ("07_llamarec", pd.concat([means, validation], ignore_index=True)),
    ):
        rows.insert(0, "system", config.model)
        rows.insert(1, "seed", config.seed)
        path = data.result_path(name, dataset, settings)
        if path.is_file():
            old = pd.read_csv(path)
            same = (old["system"] == config.model) & (old["seed"] == config.seed)
            rows = pd.concat([old.loc[~same], rows], ignore_index=True)
        rows = rows.sort_values(["system", "seed"], kind="stable")
        data.save_result(rows, name, dataset, settings)
    return means


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one model, test it, and record the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", choices=MODELS, default="lrurec")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; fixes the numbers")
    parser.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--to", type=Path, help="checkpoint (default: in data/cache/neural)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    settings = Settings.from_env()
    config = Config.of(options.model, seed=options.seed)
    name = f"{config.model}_seed{config.seed}.safetensors"
    try:
        dataset = data.locate(settings)
        print(dataset.describe())
        protocol = Protocol.of(data.load_pandas(dataset, "ratings"))
        done = neural.train(
            protocol.seen,
            protocol.parts.validation,
            config,
            options.to or settings.cache_dir / "neural" / name,
            device=options.device,
            command=f"python tools/experiments/07_retrievers.py --model {config.model} "
            f"--seed {config.seed}",
        )
        means = record(done, protocol, dataset, settings)
    except (ModelError, data.DataError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Validation Recall@10 {done.best:.4f}, epoch {done.best_epoch}")
    for row in means.itertuples():
        print(f"Test {row.metric:9} {row.value:.4f}, {row.users} users")
    return 0


if __name__ == "__main__":
    sys.exit(main())
