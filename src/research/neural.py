"""Training, scoring and keeping the sequence models of notebook 07, all four in the same way.

:func:`score_matrix` gives the (n_users, n_items) matrix that :func:`research.sequential.top_lists`
takes, so that the networks are judged by the protocol of notebook 06.
``python tools/experiments/07_retrievers.py`` trains, tests and records one of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from helpers import data
from research import sequential
from research.protocol import Protocol
from research.sequence_models import Config, Network, softmax_loss
from research.sequential import Interactions
from research.training import (
    ModelError,
    fingerprint,
    padded,
    read_weights,
    run_epoch,
    save_weights,
)

# --- batches ------------------------------------------------------------------------------------


def histories(seen: Interactions) -> list[np.ndarray]:
    """Return each user's items in order of time, numbered from 1 as in :class:`Network`."""
    ends = np.bincount(seen.row, minlength=len(seen.users)).cumsum()[:-1]
    return np.split(seen.column + 1, ends)


def windows(history: np.ndarray, length: int) -> list[np.ndarray]:
    """Cut a history from its end into parts of ``length`` steps, each step in exactly one part.

    A step leads from an item to the next, so neighbouring parts share one item; a part has at most
    ``length`` + 1 items.
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
    return softmax_loss(states, network.item_vectors, network.bias, wanted - 1)


# --- scoring ------------------------------------------------------------------------------------


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
        ModelError: ``known`` has another catalogue than the network, or holds an item that was
            not in training.
    """
    if not np.array_equal(known.items, network.items):
        raise ModelError(
            "These interactions have another catalogue than the network; index them with "
            "Interactions.of(table, network.items)."
        )
    untrained = ~network.trained.cpu().numpy()[known.column]
    if untrained.any():
        movie = network.items[known.column[untrained.argmax()]]
        raise ModelError(
            f"movieId {movie} is in the catalogue, but no training history holds it, so the "
            "network knows nothing of it; leave it out of the history."
        )
    return next_scores(network, histories(known)).numpy().astype(float)


def ranks_on_test(network: Network, protocol: Protocol) -> pd.DataFrame:
    """Return ``userId, rank``: where each user's test item stands among all unseen items."""
    scores = score_matrix(network, protocol.known)
    ranks = sequential.target_ranks(scores, protocol.known, protocol.parts.test)
    return pd.DataFrame({"userId": protocol.parts.test["userId"], "rank": ranks.astype(int)})


# --- checkpoints --------------------------------------------------------------------------------


def save(network: Network, path: Path, **metadata: str) -> None:
    """Write the weights as safetensors with settings and catalogue fingerprint, or nothing."""
    facts = {
        "config": json.dumps(asdict(network.config)),
        "catalogue": fingerprint(network.items),
        "catalogue_size": str(len(network.items)),
        **metadata,
    }
    save_weights(network.state_dict(), path, facts)


def metadata_of(path: Path) -> dict[str, str]:
    """Return what a checkpoint says of itself.

    Raises:
        ModelError: the file is missing or is no checkpoint of this module.
    """
    _, facts = read_weights(path)
    if not {"config", "catalogue"} <= set(facts):
        raise ModelError(f"{path.name} was not written by research.neural: train the model again.")
    return facts


def load(path: Path, items: np.ndarray, model: str | None = None) -> Network:
    """Return the network saved in ``path`` for the catalogue ``items``.

    Raises:
        ModelError: the file is missing or damaged, or belongs to another catalogue or model.
    """
    facts = metadata_of(path)
    config = Config(**json.loads(facts["config"]))
    if model not in (None, config.model):
        raise ModelError(
            f"{path.name} holds a {config.model} model, not {model}; name another file."
        )
    if facts["catalogue"] != fingerprint(items):
        raise ModelError(
            f"{path.name} was trained on another catalogue ({facts.get('catalogue_size')} movies; "
            f"here there are {len(items)}); train the model again on these data."
        )
    with torch.random.fork_rng():  # the first weights are drawn, then overwritten
        network = Network(config, items)
    network.load_state_dict(read_weights(path)[0])
    return network.eval()


# --- training -----------------------------------------------------------------------------------


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

    ``validation`` holds ``userId, movieId``, one row per user: the item after the user's last in
    ``seen``. After each epoch the state goes to ``path`` with the suffix ``.state``; called again
    after an interruption, training goes on there and ends with the same weights. A finished
    training of the same settings and data is loaded, not repeated. The number of threads decides
    the last bits. ``start``, of shape (n_items, dim), are item embeddings to begin with
    (:func:`start_from`).

    Raises:
        ModelError: ``path`` belongs to another training, or no history has two items.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    training = fingerprint(seen.items, seen.users, seen.row, seen.column)
    if start is not None:
        training += " from " + fingerprint(np.rint(start * 1e4))
    facts = {"command": command, "training": training}
    state_path = path.with_suffix(".state")
    if path.is_file() and not state_path.is_file():
        kept = metadata_of(path)
        _check_same(path, kept, config, training)
        if "finished" in kept:  # else it was killed in its first epoch
            return Trained(load(path, seen.items), json.loads(kept["history"]))
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
        live = {"network": network, "average": average, "optimizer": optimizer}
        history = _resume(state_path, live, config, training)
        with tqdm(desc=config.model, unit="epoch", initial=len(history)) as bar:
            while not _over(history, config):
                losses = epoch_losses(network, parts, len(history))
                loss = run_epoch(
                    network, optimizer, losses, 5.0, lambda: average.update_parameters(network)
                )
                scores = score_matrix(judged, seen)
                ranks = sequential.target_ranks(scores, seen, validation)
                history.append(float((ranks <= 10).mean()))
                if history[-1] > max(history[:-1], default=-1.0):
                    save(judged, path, **facts, history=json.dumps(history))
                _save_state(state_path, live, config, training, history)
                _give_back_memory()
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", recall=f"{history[-1]:.4f}")
    best = load(path, seen.items)
    save(best, path, **facts, history=json.dumps(history), finished="yes")
    state_path.unlink()
    return Trained(best, history)


def epoch_losses(network: Network, parts: Sequence[np.ndarray], epoch: int) -> Iterator[Tensor]:
    """Yield the loss of each batch of an epoch, which does not depend on the epochs before."""
    torch.manual_seed(network.config.seed * 100_003 + epoch + 1)
    for inputs, targets in batches(parts, network.config, network.mask_id, epoch):
        yield loss_of(network, inputs, targets)


def _over(history: Sequence[float], config: Config) -> bool:
    if not history:
        return False
    since = len(history) - 1 - int(np.argmax(history))
    return len(history) >= config.epochs or since >= config.patience


def _check_same(path: Path, kept: dict[str, Any], config: Config, training: str) -> None:
    if json.loads(kept["config"]) != asdict(config) or kept.get("training") != training:
        raise ModelError(
            f"{path.name} belongs to a training with other settings or data; delete it or give "
            "another path."
        )


def _give_back_memory() -> None:
    """Return free memory to the system: with batches of all sizes glibc would keep a gigabyte."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _save_state(
    path: Path, live: dict[str, Any], config: Config, training: str, history: list[float]
) -> None:
    state = {name: part.state_dict() for name, part in live.items()}
    state |= {"config": json.dumps(asdict(config)), "training": training, "history": history}
    with data.replacing(path) as fresh:
        torch.save(state, fresh)


def _resume(path: Path, live: dict[str, Any], config: Config, training: str) -> list[float]:
    """Load the state of an interrupted training, if there is one, and return its history."""
    if not path.is_file():
        return []
    state = torch.load(path, map_location=live["network"].bias.device, weights_only=True)
    _check_same(path, state, config, training)
    for name, part in live.items():
        part.load_state_dict(state[name])
    return state["history"]


def start_from(vectors: np.ndarray, dim: int, spread: float = 0.02) -> np.ndarray:
    """Return item vectors as embeddings to start from, shape (n_items, dim).

    The first ``dim`` principal components of ``vectors``, scaled so that the standard deviation
    over all entries is ``spread``, that of the random start.

    Raises:
        ModelError: ``vectors`` has fewer than ``dim`` columns or rows.
    """
    centred = np.asarray(vectors, dtype=float) - np.mean(vectors, axis=0)
    if min(centred.shape) < dim:
        raise ModelError(f"{centred.shape} vectors do not have {dim} principal components.")
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    components = (left * values * signs)[:, :dim]
    return components / components.std() * spread
