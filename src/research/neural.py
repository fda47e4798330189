"""Training, scoring and keeping the sequence models of notebook 07, all four in the same way.

:func:`score_matrix` gives the (n_users, n_items) matrix that :func:`research.sequential.top_lists`
takes, so that the networks are judged by the protocol of notebook 06.
``python tools/experiments/07_retrievers.py`` trains, tests and records one of them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from helpers import data
from research import sequential, training
from research.protocol import Protocol
from research.sequence_models import Config, Network, SoftmaxLoss
from research.sequential import Interactions
from research.training import ModelError, fingerprint, padded, read_weights, run_epoch


def histories(seen: Interactions) -> list[np.ndarray]:
    """Return each user's items in order of time, numbered from 1 as in :class:`Network`."""
    return [history + 1 for history in seen.histories()]


def windows(history: np.ndarray, length: int) -> list[np.ndarray]:
    """Cut a history from its end into parts of ``length`` steps, each step in exactly one part.

    A step leads from an item to the next, so neighbouring parts share one item.
    """
    starts = range(len(history) - 1, 0, -length)
    return [history[max(end - length, 0) : end + 1] for end in starts]


def inputs_and_targets(
    part: np.ndarray, config: Config, mask_id: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and targets of equal length; a target of 0 is not scored."""
    if config.model != "bert4rec":
        return part[:-1], part[1:]
    part = part[-config.length :]
    hidden = random.random(len(part)) < config.mask_share
    if random.random() < 0.5 or not hidden.any():
        hidden[-1] = True  # the place that a recommendation is asked for
    return np.where(hidden, mask_id, part), np.where(hidden, part, 0)


def batches(
    parts: Sequence[np.ndarray], config: Config, mask_id: int, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield an epoch's inputs and targets; seed and epoch alone decide their order and masks."""
    random = np.random.default_rng([config.seed, epoch])
    order = random.permutation(len(parts))
    for start in range(0, len(order), config.batch):
        chosen = order[start : start + config.batch]
        pairs = [inputs_and_targets(parts[i], config, mask_id, random) for i in chosen]
        inputs, targets = zip(*pairs, strict=True)
        yield padded(inputs)[0], padded(targets)[0]


def loss_of(network: Network, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over the positions that have a target."""
    device = network.bias.device
    inputs, targets = inputs.to(device), targets.to(device)
    states, _ = network(inputs)
    wanted = targets[inputs != 0]
    if network.config.model == "bert4rec":
        states, wanted = states[wanted > 0], wanted[wanted > 0]
    return SoftmaxLoss.apply(states, network.item_vectors, network.bias, wanted - 1)


def next_scores(network: Network, rows: Sequence[np.ndarray], batch: int = 64) -> Tensor:
    """Return scores of shape (n_rows, n_items) for the item after each history of numbers."""
    length = network.config.length
    if network.config.model == "bert4rec":
        rows = [np.append(row[-(length - 1) :], network.mask_id) for row in rows]
    rows = [row[-length:] for row in rows]
    result = torch.empty(len(rows), len(network.items))
    order = np.argsort([len(row) for row in rows], kind="stable")  # like lengths: less padding
    mode = network.training
    network.eval()
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            ids, _ = padded([rows[i] for i in chosen])
            states, layout = network(ids.to(network.bias.device))
            result[torch.from_numpy(chosen)] = network.scores(states[layout.last]).cpu()
    network.train(mode)
    return result


def score_matrix(network: Network, known: Interactions) -> np.ndarray:
    """Return scores of shape (n_users, n_items) for what follows each user's ``known`` items.

    Raises:
        ModelError: ``known`` has another catalogue, or holds an item that was not in training.
    """
    if not np.array_equal(known.items, network.items):
        raise ModelError("The network was trained on another catalogue: pass network.items.")
    untrained = ~network.trained.cpu().numpy()[known.column]
    if untrained.any():
        movie = network.items[known.column[untrained.argmax()]]
        raise ModelError(f"No training history holds movieId {movie}: leave it out.")
    return next_scores(network, histories(known)).numpy().astype(float)


def ranks_on_test(network: Network, protocol: Protocol) -> pd.DataFrame:
    """Return ``userId, rank``: where each user's test item stands among all unseen items."""
    scores = score_matrix(network, protocol.known)
    ranks = sequential.target_ranks(scores, protocol.known, protocol.parts.test)
    return pd.DataFrame({"userId": protocol.parts.test["userId"], "rank": ranks.astype(int)})


def save(network: Network, path: Path, **metadata: str) -> None:
    """Write the weights as safetensors with settings and catalogue fingerprint, or nothing."""
    config = json.dumps(asdict(network.config))
    facts = {"config": config, "catalogue": fingerprint(network.items), **metadata}
    training.save_weights(network.state_dict(), path, facts)


def metadata_of(path: Path) -> dict[str, str]:
    """Return what a file of weights says of itself."""
    return read_weights(path)[1]


def load(path: Path, items: np.ndarray, model: str | None = None) -> Network:
    """Return the network saved in ``path`` for the catalogue ``items``.

    Raises:
        ModelError: the file is missing or damaged, or belongs to another catalogue or model.
    """
    weights, facts = read_weights(path)
    config = Config(**json.loads(facts.get("config", "{}")))
    if facts.get("catalogue") != fingerprint(items) or model not in (None, config.model):
        raise ModelError(f"{path.name} is of another catalogue or model: train the model again.")
    with torch.random.fork_rng():  # the first weights are drawn, then overwritten
        network = Network(config, items)
    network.load_state_dict(weights)
    return network.eval()


@dataclass
class Trained:
    """A trained network, and validation Recall@10 after each epoch."""

    network: Network
    history: list[float]

    @property
    def best(self) -> float:
        """Validation Recall@10 of the epoch whose weights were kept."""
        return max(self.history)

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights were kept, from 1."""
        return 1 + int(np.argmax(self.history))


def train(
    seen: Interactions,
    validation: pd.DataFrame,
    config: Config,
    path: Path,
    *,
    device: str | None = None,
    command: str = "",
    start: np.ndarray | None = None,
) -> Trained:
    """Train on ``seen``, keep the epoch with the best Recall@10 on ``validation`` in ``path``.

    ``validation`` holds ``userId, movieId``, one row per user. After each epoch the state goes to
    ``path`` with the suffix ``.state``; an interrupted training goes on there and ends with the
    same weights, and a finished one is loaded. ``start``, of shape (n_items, dim), are item
    embeddings to begin with (:func:`start_from`).

    Raises:
        ModelError: ``path`` belongs to another training, or no history has two items.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trained_on = fingerprint(seen.items, seen.users, seen.row, seen.column)
    if start is not None:
        trained_on += " from " + fingerprint(np.rint(start * 1e4))
    facts = {"config": json.dumps(asdict(config)), "training": trained_on}
    state_path = path.with_suffix(".state")
    if path.is_file():
        finished = metadata_of(path)
        _check_same(path, finished, facts)
        return Trained(load(path, seen.items), json.loads(finished["history"]))
    parts = [part for row in histories(seen) for part in windows(row, config.length)]
    if not parts:
        raise ModelError("No history has two items, so there is nothing to learn from.")
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        network = Network(config, seen.items)
        network.trained[:] = torch.from_numpy(seen.counts > 0)
        if start is not None:
            network.embed.weight.data[1 : len(seen.items) + 1] = torch.from_numpy(start).float()
        network.to(where)
        optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(config.average))
        judged: Any = average.module
        best = copy.deepcopy(network)
        live = {"network": network, "average": average, "optimizer": optimizer, "best": best}
        history = []
        if state_path.is_file():  # of an interrupted training
            state = torch.load(state_path, map_location=where, weights_only=True)
            _check_same(state_path, state, facts)
            for name, part in live.items():
                part.load_state_dict(state[name])
            history = state["history"]
        with tqdm(desc=config.model, unit="epoch", initial=len(history)) as bar:
            while not _over(history, config):
                losses = epoch_losses(network, parts, len(history))
                loss = run_epoch(
                    network, optimizer, losses, 5.0, lambda: average.update_parameters(network)
                )
                ranks = sequential.target_ranks(score_matrix(judged, seen), seen, validation)
                history.append(float((ranks <= 10).mean()))
                if history[-1] > max(history[:-1], default=-1.0):
                    best.load_state_dict(judged.state_dict())
                state = {name: part.state_dict() for name, part in live.items()}
                with data.replacing(state_path) as fresh:
                    torch.save({**state, **facts, "history": history}, fresh)
                training.give_back_memory()
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", recall=f"{history[-1]:.4f}")
    save(best, path, command=command, training=trained_on, history=json.dumps(history))
    state_path.unlink()
    return Trained(load(path, seen.items), history)


def epoch_losses(network: Network, parts: Sequence[np.ndarray], epoch: int) -> Iterator[Tensor]:
    """Yield the loss of each batch of an epoch, which does not depend on the epochs before."""
    torch.manual_seed(network.config.seed * 100_003 + epoch + 1)
    for inputs, targets in batches(parts, network.config, network.mask_id, epoch):
        yield loss_of(network, inputs, targets)


def _over(history: Sequence[float], config: Config) -> bool:
    since = len(history) - 1 - int(np.argmax(history)) if history else 0
    return len(history) >= config.epochs or since >= config.patience


def _check_same(path: Path, kept: Mapping[str, Any], facts: dict[str, str]) -> None:
    if any(kept.get(name) != value for name, value in facts.items()):
        raise ModelError(
            f"{path.name} belongs to a training with other settings or data; delete it or give "
            "another path."
        )


def start_from(vectors: np.ndarray, dim: int, spread: float = 0.02) -> np.ndarray:
    """Return item vectors as embeddings to start from, shape (n_items, dim).

    The first ``dim`` principal components of ``vectors``, scaled so that the standard deviation
    over all entries is ``spread``, that of the random start.
    """
    components = PCA(dim, svd_solver="full").fit_transform(np.asarray(vectors, dtype=float))
    return components / components.std() * spread
