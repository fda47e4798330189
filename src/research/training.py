"""What every training of a small model shares: the loop, the files of weights, the errors.

Needs PyTorch (``pip install -e ".[llamarec]"``), as do all modules that import this one.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from helpers import data


class ModelError(ValueError):
    """A model, its weights or a setting cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Training:
    """Settings of :func:`fit`: AdamW, a linear warm-up, then a cosine decay of the learning rate.

    ``warm_up`` is a share of all steps; 0 keeps the rate as it is. With ``stretch`` above 1 the
    decay would end that much later, so that the last steps still move. ``clip`` bounds the norm of
    the gradient. LlamaRec has the learning rate 1e-4, for LoRA.
    """

    learning_rate: float = 1e-4
    epochs: int = 3
    batch: int = 16
    weight_decay: float = 0.01
    warm_up: float = 0.05
    stretch: float = 1.0
    second_beta: float = 0.98
    clip: float = 1.0
    seed: int = 0

    def rate(self, done: float) -> float:
        """Return the factor of the learning rate after the share ``done`` of all steps."""
        done = done / self.stretch
        if self.warm_up == 0:
            return 1.0
        if done < self.warm_up:
            return done / self.warm_up
        return 0.5 * (1 + np.cos(np.pi * (done - self.warm_up) / (1 - self.warm_up)))


def kept_rows(path: Path, compute: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return named arrays from the file ``path`` (npz), computed and written where it is missing.

    Long jobs keep each finished part so, and go on after the last one when they are stopped.
    """
    if not path.is_file():
        rows: dict[str, Any] = dict(compute())
        with data.replacing(path) as fresh, fresh.open("wb") as file:
            np.savez(file, **rows)
    with np.load(path) as file:
        return dict(file)


def trainable(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that training may change."""
    return [weight for weight in network.parameters() if weight.requires_grad]


def run_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    losses: Iterable[Tensor],
    clip: float,
    after_step: Callable[[], object],
) -> float:
    """Take a step for each of ``losses``, which are computed as they are needed; return the mean.

    ``clip`` bounds the norm of the gradient; ``after_step`` is called after each step.
    """
    network.train()
    values = []
    for loss in losses:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trainable(network), clip)
        optimizer.step()
        after_step()
        values.append(loss.item())
    return float(np.mean(values))


def fit(
    network: nn.Module,
    losses_of: Callable[[int], Iterable[Tensor]],
    how: Training,
    n_batches: int,
    label: str,
) -> Iterator[float]:
    """Train what is trainable, and yield the mean loss of each epoch.

    ``losses_of(epoch)`` yields the loss of each of ``n_batches`` batches; ``label`` names the bar.

    Raises:
        ModelError: there is no batch.
    """
    if n_batches == 0:
        raise ModelError("There is nothing to train on: take a larger data set or more steps.")
    optimizer = torch.optim.AdamW(
        trainable(network),
        lr=how.learning_rate,
        weight_decay=how.weight_decay,
        betas=(0.9, how.second_beta),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: how.rate(step / (how.epochs * n_batches))
    )
    for epoch in tqdm(range(how.epochs), desc=label, unit="epoch"):
        yield run_epoch(network, optimizer, losses_of(epoch), how.clip, schedule.step)
    network.eval()


def padded(
    rows: Sequence[Sequence[int] | np.ndarray], side: str = "right"
) -> tuple[Tensor, Tensor]:
    """Return rows of numbers as one array filled up with 0, and where they stand.

    Both have shape (n_rows, length of the longest); the second holds 1 for what is real, else 0.
    """
    parts = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    real = [torch.ones_like(part) for part in parts]
    return pad_sequence(parts, True, 0, side), pad_sequence(real, True, 0, side)


def fingerprint(*parts: np.ndarray | str) -> str:
    """Return a SHA-256 over arrays of ids or texts, in hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode())
        else:
            digest.update(np.ascontiguousarray(part, dtype="<i8").tobytes() + b"|")
    return digest.hexdigest()


def save_weights(weights: Mapping[str, Tensor], path: Path, facts: dict[str, str]) -> None:
    """Write weights as safetensors, with what they say of themselves, or nothing."""
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with data.replacing(path) as fresh:
        save_file(weights, fresh, facts)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the weights of a file and its facts.

    Raises:
        ModelError: the file is missing, or is no safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path.name} is missing or damaged ({error}): train the model first."
        ) from None


def give_back_memory() -> None:
    """Return free memory to the system: with batches of all sizes glibc would keep a gigabyte."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
