"""Neural next-item retrievers in one training loop: LRURec, SASRec, NARM and BERT4Rec.

They need PyTorch (``pip install -e '.[llamarec]'``); nothing else of the package imports this
module. Each network turns histories into scores for every item, and :func:`score_matrix` gives
the (n_users, n_items) matrix that :func:`research.sequential.top_lists` takes, so that they are
judged by the protocol of notebook 06.

References: Yue et al. 2023, "Linear recurrent units for sequential recommendation" (LRURec);
Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences" (the unit itself);
Kang and McAuley 2018 (SASRec); Li et al. 2017 (NARM); Sun et al. 2019 (BERT4Rec). All four are
trained with the full softmax, which the first SASRec was not (Klenitskiy and Vasilev 2023 show
that it gains by it).

``python -m research.neural --model lrurec --seed 0`` trains, tests and records one of them. It
chooses the number of CPU threads by measurement; the recorded runs had ``--threads 1``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm.auto import tqdm

from helpers import data, metrics
from helpers.faults import command
from helpers.settings import Settings
from research import sequential, splits
from research.sequential import Interactions

MODELS = ("lrurec", "sasrec", "narm", "bert4rec")


class NeuralError(ValueError):
    """A checkpoint, a history or a device cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a trained model, apart from the data.

    ``length`` is the longest history read, in items; ``heads`` is for the two Transformers and
    ``mask_share`` for BERT4Rec. What is judged and kept is a running mean of the weights, to which
    a step adds 1 - ``average`` (Polyak and Juditsky 1992; 0 keeps the last weights alone). Training
    stops when validation Recall@10 has not risen for ``patience`` epochs. Build it with :meth:`of`
    to get the values chosen for each model.
    """

    model: str = "lrurec"
    seed: int = 0
    dim: int = 64
    blocks: int = 2
    heads: int = 2
    length: int = 200
    dropout: float = 0.5
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    batch: int = 16
    epochs: int = 200
    patience: int = 10
    average: float = 0.995
    mask_share: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what no network can be built from."""
        if self.model not in MODELS:
            raise NeuralError(f"There is no model {self.model!r}; choose {', '.join(MODELS)}.")
        if min(self.dim, self.blocks, self.heads, self.batch, self.epochs, self.patience) < 1:
            raise NeuralError("dim, blocks, heads, batch, epochs and patience must be at least 1.")
        if self.length < 2 or self.dim % self.heads or not 0 <= self.dropout < 0.99:
            raise NeuralError(
                "length must be at least 2, heads must divide dim, dropout must lie in [0, 0.99)."
            )

    @classmethod
    def of(cls, model: str, **changes: Any) -> Config:
        """Return the settings chosen for ``model`` on validation, with ``changes``."""
        return replace(cls(model=model, **CHOSEN.get(model, {})), **changes)


# How these were chosen, on validation Recall@10 of ml-latest-small, seed 0. LRURec: learning rate
# 1e-3 or 2e-3 with a running mean, dropout 0.5 from the authors' tuned run (one run with other
# settings had been tested before). The others: learning rate 1e-3 or 2e-3, dropout 0.2 or 0.5,
# length 50 or 200, running mean 0 or 0.995, not all combined, patience 5, and none tested before;
# data/results/07_tuning.csv has every finished trial. One layer is NARM's own, and was not tuned.
CHOSEN: dict[str, dict[str, Any]] = {
    "lrurec": {"learning_rate": 2e-3},
    "sasrec": {"learning_rate": 2e-3, "dropout": 0.2, "length": 50, "average": 0.0},
    "narm": {"blocks": 1, "learning_rate": 2e-3, "dropout": 0.2, "length": 50, "average": 0.0},
    "bert4rec": {"learning_rate": 2e-3, "length": 50},
}


# --- the linear recurrence ----------------------------------------------------------------------


def sequential_scan(decay: Tensor, x: Tensor) -> Tensor:
    """Return h with h_t = decay * h_(t-1) + x_t, one position after the other.

    The definition, for tests and the benchmark. ``decay`` has shape (width,), ``x`` and the result
    (batch, length, width); all complex.
    """
    state, states = torch.zeros_like(x[:, 0]), []
    for now in x.unbind(1):
        state = decay * state + now
        states.append(state)
    return torch.stack(states, 1)


def _scan_in_place(decay: Tensor, h: Tensor) -> Tensor:
    """Turn ``h`` from inputs into states in log2(length) steps (Sklansky 1960).

    After a step, blocks of ``2 * half`` positions are solved by themselves: the second half of a
    block adds the last state of the first half, decayed by as many powers as it lies ahead.
    """
    length, powers = h.shape[1], decay[None]  # powers: decay ** (1 .. half)
    half = 1
    while half < length:
        whole = length // (2 * half) * 2 * half
        blocks = h[:, :whole].unflatten(1, (-1, 2 * half))
        blocks[:, :, half:] += powers * blocks[:, :, half - 1 : half]
        rest = length - whole - half
        if rest > 0:
            h[:, whole + half :] += powers[:rest] * h[:, whole + half - 1 : whole + half]
        powers = torch.cat([powers, powers * powers[-1]])
        half *= 2
    return h


class _Scan(torch.autograd.Function):
    """The scan with its own gradient, which is the same scan run backwards."""

    @staticmethod
    def forward(context, decay: Tensor, x: Tensor) -> Tensor:
        states = _scan_in_place(decay, x.clone(memory_format=torch.contiguous_format))
        context.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(context, grad: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = context.saved_tensors
        grad_x = _scan_in_place(decay.conj().resolve_conj(), grad.flip(1)).flip(1)
        grad_decay = (grad_x[:, 1:] * states[:, :-1].conj()).sum((0, 1))
        return grad_decay, grad_x


def parallel_scan(decay: Tensor, x: Tensor) -> Tensor:
    """Return the same as :func:`sequential_scan` in log2(length) vectorised steps."""
    return _Scan.apply(decay, x)


# --- layers -------------------------------------------------------------------------------------


@dataclass
class Layout:
    """Where the real positions of a padded batch stand.

    Networks work on packed positions of shape (n_real, dim), so that padding costs nothing and
    changes nothing; :meth:`spread` gives the (n_sequences, width, dim) array that a recurrence or
    attention needs, every sequence beginning at place 0.
    """

    lengths: Tensor
    places: Tensor
    flat: Tensor
    width: int

    @classmethod
    def of(cls, real: Tensor) -> Layout:
        """Read the layout from a boolean array of shape (n_sequences, padded length)."""
        lengths = real.sum(1)
        width = int(lengths.max())
        row = torch.arange(len(real), device=real.device)[:, None].expand_as(real)[real]
        places = (real.cumsum(1) - 1)[real]
        return cls(lengths, places, row * width + places, width)

    def spread(self, packed: Tensor) -> Tensor:
        """Turn (n_real, dim) into (n_sequences, width, dim) with zeros behind each end."""
        empty = packed.new_zeros(len(self.lengths) * self.width, packed.shape[1])
        whole = empty.index_copy(0, self.flat, packed)
        return whole.view(len(self.lengths), self.width, packed.shape[1])

    def pack(self, whole: Tensor) -> Tensor:
        """Undo :meth:`spread`."""
        return whole.reshape(-1, whole.shape[2]).index_select(0, self.flat)

    @property
    def last(self) -> Tensor:
        """The packed position of each sequence's last item, shape (n_sequences,)."""
        return self.lengths.cumsum(0) - 1

    @property
    def real(self) -> Tensor:
        """Which of the (n_sequences, width) places are real."""
        return torch.arange(self.width, device=self.lengths.device) < self.lengths[:, None]


class Dropout(nn.Module):
    """Dropout with eight bits of chance per value: a fifth of the time of PyTorch's on a CPU.

    The probability is rounded to a multiple of 1/256, and what is kept is scaled to fit.
    """

    def __init__(self, probability: float) -> None:
        """Set the share of values to drop, from 0 to below 1."""
        super().__init__()
        self.level = round(256 * probability)

    def forward(self, x: Tensor) -> Tensor:
        """Drop values in training, else return ``x``."""
        if not self.training or self.level == 0:
            return x
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64, device=x.device)
        chance = words.random_(-(2**63), None).view(torch.uint8)[: x.numel()].view_as(x)
        return x * (chance >= self.level).to(x.dtype).mul_(256 / (256 - self.level))


class LinearRecurrentUnit(nn.Module):
    """A linear recurrence with a complex diagonal (Orvieto et al. 2023, equations 5 to 7).

    ``decay`` starts on a ring of the complex plane, with modulus between ``inner`` and ``outer``;
    its logarithm is learned so that the modulus stays below 1. ``gamma`` begins at
    sqrt(1 - |decay|^2), which keeps the states' size independent of the modulus. The complex
    matrices before and after are written as real ones of twice the width; only the real part goes
    out.
    """

    def __init__(self, dim: int, inner: float = 0.8, outer: float = 0.99) -> None:
        """Set up ``2 * dim`` states, as LRURec does."""
        super().__init__()
        states = 2 * dim
        squared = torch.rand(states) * (outer**2 - inner**2) + inner**2
        self.nu_log = nn.Parameter(torch.log(-0.5 * torch.log(squared)))
        self.theta_log = nn.Parameter(torch.log(2 * math.pi * torch.rand(states)))
        self.gamma_log = nn.Parameter(0.5 * torch.log(1 - squared))
        self.into = nn.Linear(dim, 2 * states)
        self.out = nn.Linear(2 * states, dim)
        self.scan: Callable[[Tensor, Tensor], Tensor] = parallel_scan

    def decay(self) -> Tensor:
        """Return the complex diagonal, shape (2 * dim,)."""
        return torch.polar(torch.exp(-torch.exp(self.nu_log)), torch.exp(self.theta_log))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Map packed (n_real, dim) to the same shape."""
        gain = torch.exp(self.gamma_log).repeat_interleave(2)
        inputs = torch.view_as_complex(
            layout.spread(self.into(x) * gain).unflatten(2, (-1, 2)).contiguous()
        )
        states = self.scan(self.decay(), inputs)
        return self.out(layout.pack(torch.view_as_real(states).flatten(2)))


class FeedForward(nn.Sequential):
    """The position-wise network of both Transformers and LRURec: four times as wide inside."""

    def __init__(self, dim: int, dropout: float) -> None:
        """Set up two linear layers with a GELU between them."""
        drop = Dropout(dropout)
        super().__init__(nn.Linear(dim, 4 * dim), nn.GELU(), drop, nn.Linear(4 * dim, dim), drop)


class RecurrentBlock(nn.Module):
    """LRURec's block: recurrence and feed-forward, each added to its input, then normalised."""

    def __init__(self, config: Config) -> None:
        """Set up both parts."""
        super().__init__()
        self.unit = LinearRecurrentUnit(config.dim)
        self.feed_forward = FeedForward(config.dim, config.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(2))
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Map packed (n_real, dim) to the same shape."""
        x = self.norms[0](x + self.drop(self.unit(x, layout)))
        return self.norms[1](x + self.feed_forward(x))


class AttentionBlock(nn.Module):
    """A Transformer block, causal for SASRec and looking both ways for BERT4Rec.

    Normalised before each part, as in SASRec (Kang and McAuley 2018, section 3.3). Unlike the
    originals it drops nothing from the attention weights; BERT4Rec's own blocks also normalise
    after each part, and it projects once more before the scores (Sun et al. 2019, 3.3 to 3.5).
    """

    def __init__(self, config: Config) -> None:
        """Set up both parts."""
        super().__init__()
        self.causal, self.heads = config.model == "sasrec", config.heads
        self.project = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.feed_forward = FeedForward(config.dim, config.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim) for _ in range(2))
        self.drop = Dropout(config.dropout)

    def attend(self, x: Tensor, layout: Layout) -> Tensor:
        """Mix packed (n_real, dim) by attention within each sequence."""
        parts = layout.spread(self.project(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        allowed = layout.real[:, None, None, :]
        if self.causal:  # a padded place sees at least the first item: no row is empty
            allowed = allowed & allowed.new_ones(layout.width, layout.width).tril()
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        return self.out(layout.pack(mixed.transpose(1, 2).flatten(2)))

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Map packed (n_real, dim) to the same shape."""
        x = x + self.drop(self.attend(self.norms[0](x), layout))
        return x + self.feed_forward(self.norms[1](x))


class NarmBlock(nn.Module):
    """NARM: a GRU, and attention of each state over the ones before it (Li et al. 2017, 3.4).

    Both are joined and brought back to ``dim`` by the matrix of the bilinear decoder. The original
    reads one prefix at a time; this reads all prefixes of a sequence at once.
    """

    def __init__(self, config: Config) -> None:
        """Set up recurrence, attention and decoder."""
        super().__init__()
        dim = config.dim
        self.recurrence = nn.GRU(dim, dim, config.blocks, batch_first=True)
        self.now = nn.Linear(dim, dim, bias=False)
        self.before = nn.Linear(dim, dim, bias=False)
        self.weigh = nn.Parameter(torch.randn(dim) * 0.02)
        self.decode = nn.Linear(2 * dim, dim, bias=False)
        self.drop = Dropout(config.dropout)

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Map packed (n_real, dim) to the same shape."""
        states = layout.pack(self.recurrence(layout.spread(x))[0])
        sizes = layout.lengths.tolist()
        local = [
            self._attend(now, before, own)
            for now, before, own in zip(
                self.now(states).split(sizes),
                self.before(states).split(sizes),
                states.split(sizes),
                strict=True,
            )
        ]
        return self.decode(self.drop(torch.cat([states, torch.cat(local)], 1)))

    def _attend(self, now: Tensor, before: Tensor, states: Tensor) -> Tensor:
        """Weigh one sequence's states, shape (length, dim), for each of its positions."""
        weights = torch.sigmoid(now[:, None] + before[None]) @ self.weigh
        return weights.tril() @ states


class Network(nn.Module):
    """Items in, scores for the next item out.

    A batch is an integer array of shape (n_sequences, padded length): 0 is padding, on either side,
    and 1 to n_items are the items of ``items`` in order; BERT4Rec also knows n_items + 1, the mask.
    Item embeddings are tied: the same matrix reads and scores, with one bias per item.
    """

    def __init__(self, config: Config, items: np.ndarray) -> None:
        """Set up the network for the catalogue ``items``, sorted ids of shape (n_items,)."""
        super().__init__()
        self.config, self.items = config, np.asarray(items)
        size = len(self.items)
        self.embed = nn.Embedding(size + 2, config.dim)
        self.bias = nn.Parameter(torch.zeros(size))
        self.drop = Dropout(config.dropout)
        self.first_norm = nn.LayerNorm(config.dim)
        attention = config.model in ("sasrec", "bert4rec")
        self.position = nn.Embedding(config.length, config.dim) if attention else None
        self.last_norm = nn.LayerNorm(config.dim) if attention else nn.Identity()
        kinds = {"lrurec": RecurrentBlock, "narm": NarmBlock}
        count = 1 if config.model == "narm" else config.blocks
        self.blocks = nn.ModuleList(
            kinds.get(config.model, AttentionBlock)(config) for _ in range(count)
        )
        self.register_buffer("trained", torch.ones(size, dtype=torch.bool))
        self.apply(_initialise)

    @property
    def mask_id(self) -> int:
        """The number that stands for a hidden item."""
        return len(self.items) + 1

    def forward(self, batch: Tensor) -> tuple[Tensor, Layout]:
        """Return packed states of shape (n_real, dim), and the layout they have."""
        real = batch != 0
        layout = Layout.of(real)
        x = self.embed(batch[real])
        if self.position is not None:
            x = x + self.position(layout.places)
        x = self.drop(self.first_norm(x))
        for block in self.blocks:
            x = block(x, layout)
        return self.last_norm(x), layout

    @property
    def item_vectors(self) -> Tensor:
        """The embeddings of the items, shape (n_items, dim), without padding and mask."""
        return self.embed.weight[1 : len(self.items) + 1]

    def scores(self, states: Tensor) -> Tensor:
        """Return scores of shape (n, n_items) for states of shape (n, dim)."""
        return F.linear(states, self.item_vectors, self.bias)


def _initialise(module: nn.Module) -> None:
    """Draw weights as the authors of LRURec do: normal with deviation 0.02, cut at two of them."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


class _SoftmaxLoss(torch.autograd.Function):
    """Mean cross-entropy over all items, in blocks of rows small enough for the cache.

    The gradient is computed on the way forward, while a block's probabilities are at hand; the
    (n, n_items) matrix never exists as a whole.
    """

    ROWS = 256

    @staticmethod
    def forward(context, states: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        n, total = len(states), states.new_zeros(())
        grads = torch.empty_like(states), torch.zeros_like(vectors), torch.zeros_like(bias)
        for start in range(0, n, _SoftmaxLoss.ROWS):
            rows = slice(start, start + _SoftmaxLoss.ROWS)
            block, wanted = states[rows], targets[rows, None]
            scores = torch.addmm(bias, block, vectors.T)
            scores -= scores.amax(1, keepdim=True)
            own = scores.gather(1, wanted)
            total += (scores.exp_().sum(1, keepdim=True).log() - own).sum()
            scores /= scores.sum(1, keepdim=True) * n
            scores.scatter_add_(1, wanted, torch.full_like(own, -1 / n))
            torch.mm(scores, vectors, out=grads[0][rows])
            grads[1].addmm_(scores.T, block)
            grads[2].add_(scores.sum(0))
        context.save_for_backward(*grads)
        return total / n

    @staticmethod
    def backward(context, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * part for part in context.saved_tensors), None


def softmax_loss(states: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of ``targets``, shape (n,), under a softmax over all items.

    The same number as ``F.cross_entropy(states @ vectors.T + bias, targets)``, in less time and
    memory.
    """
    return _SoftmaxLoss.apply(states, vectors, bias, targets)


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


def padded(rows: Sequence[np.ndarray]) -> Tensor:
    """Return the rows as one integer array, with zeros behind each end."""
    whole = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for place, row in enumerate(rows):
        whole[place, : len(row)] = row
    return torch.from_numpy(whole)


def _examples(
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
        pairs = [_examples(parts[i], config, mask_id, random) for i in chosen]
        inputs, targets = zip(*pairs, strict=True)
        yield padded(inputs), padded(targets)


def loss_of(network: Network, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over the positions that have a target."""
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
    device = network.bias.device
    result = torch.empty(len(rows), len(network.items))
    order = np.argsort([len(row) for row in rows], kind="stable")  # like lengths: less padding
    mode = network.training
    network.eval()
    with torch.inference_mode(), memory_explained(device):
        for start in range(0, len(rows), batch):
            chosen = order[start : start + batch]
            states, layout = network(padded([rows[i] for i in chosen]).to(device))
            result[torch.from_numpy(chosen)] = network.scores(states[layout.last]).cpu()
    network.train(mode)
    return result


def score_matrix(network: Network, known: Interactions) -> np.ndarray:
    """Return scores of shape (n_users, n_items) for what follows each user's ``known`` items.

    Raises:
        NeuralError: ``known`` has another catalogue than the network, or holds an item that was
            not in training.
    """
    if not np.array_equal(known.items, network.items):
        raise NeuralError(
            "These interactions have another catalogue than the network; index them with "
            "Interactions.of(table, network.items)."
        )
    rows = histories(known)
    _check_trained(network, known.column)
    return next_scores(network, rows).numpy().astype(float)


def score_history(network: Network, movies: Sequence[int]) -> np.ndarray:
    """Return scores of shape (n_items,) for what follows ``movies``, ids in order of time.

    Raises:
        NeuralError: the history is empty, or holds an id that was not in training.
    """
    ids = np.asarray(movies)
    if ids.size == 0:
        raise NeuralError("The history is empty; give at least one movieId the user has rated.")
    column = np.searchsorted(network.items, ids).clip(max=len(network.items) - 1)
    strange = ids[network.items[column] != ids]
    if strange.size:
        raise NeuralError(
            f"movieId {strange[0]} is not in the catalogue of {len(network.items)} movies that the "
            "network was trained on; leave it out of the history."
        )
    _check_trained(network, column)
    return next_scores(network, [column + 1])[0].numpy().astype(float)


def _check_trained(network: Network, column: np.ndarray) -> None:
    untrained = ~network.trained.cpu().numpy()[column]
    if untrained.any():
        movie = network.items[column[untrained.argmax()]]
        raise NeuralError(
            f"movieId {movie} is in the catalogue, but no training history holds it, so the "
            "network knows nothing of it; leave it out of the history."
        )


# --- checkpoints --------------------------------------------------------------------------------


def fingerprint(*arrays: np.ndarray) -> str:
    """Return a SHA-256 over arrays of ids, in hexadecimal digits."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes() + b"|")
    return digest.hexdigest()


def save(network: Network, path: Path, **metadata: str) -> None:
    """Write the weights as safetensors with settings and catalogue fingerprint, or nothing."""
    weights = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    facts = {
        "config": json.dumps(asdict(network.config)),
        "catalogue": fingerprint(network.items),
        "catalogue_size": str(len(network.items)),
        **metadata,
    }
    with data.replacing(path) as fresh:
        save_file(weights, fresh, facts)


def metadata_of(path: Path) -> dict[str, str]:
    """Return what a checkpoint says of itself.

    Raises:
        NeuralError: the file is missing or is no checkpoint of this module.
    """
    if not path.is_file():
        raise NeuralError(f"{path.name} is missing; train the model first.")
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise NeuralError(
            f"{path.name} is damaged or no safetensors file ({error}); train the model again."
        ) from None
    if not {"config", "catalogue"} <= set(facts):
        raise NeuralError(f"{path.name} was not written by research.neural; train the model again.")
    return facts


def load(path: Path, items: np.ndarray, model: str | None = None) -> Network:
    """Return the network saved in ``path`` for the catalogue ``items``.

    Raises:
        NeuralError: the file is missing or damaged, or belongs to another catalogue or model.
    """
    facts = metadata_of(path)
    try:
        config = Config(**json.loads(facts["config"]))
    except (TypeError, ValueError) as error:
        raise NeuralError(
            f"{path.name} has settings this version does not know ({error}); train it again."
        ) from None
    if model not in (None, config.model):
        raise NeuralError(
            f"{path.name} holds a {config.model} model, not {model}; name another file or model."
        )
    if facts["catalogue"] != fingerprint(items):
        raise NeuralError(
            f"{path.name} was trained on another catalogue ({facts.get('catalogue_size')} movies; "
            f"here there are {len(items)}); train the model again on these data."
        )
    with torch.random.fork_rng():  # the first weights are drawn, then overwritten
        network = Network(config, items)
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        network.load_state_dict(weights)
    except RuntimeError:
        raise NeuralError(
            f"{path.name} holds weights of another shape than its settings say; train it again."
        ) from None
    return network.eval()


@contextlib.contextmanager
def memory_explained(device: torch.device) -> Iterator[None]:
    """Turn the memory error of a device into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)):
            raise  # the second is what PyTorch says of a CPU
        raise NeuralError(
            f"The memory of {device} is full; take a smaller batch or length, close what else "
            "uses it, or set device='cpu'."
        ) from None


# --- training -----------------------------------------------------------------------------------


@dataclass
class Trained:
    """A trained network, and validation Recall@10 after each epoch."""

    network: Network
    path: Path
    history: list[float] = field(default_factory=list)

    @property
    def best(self) -> float:
        """Validation Recall@10 of the epoch whose weights were kept."""
        return max(self.history)


@dataclass
class _Progress:
    """What a training needs to go on: everything else follows from the settings."""

    epoch: int = 0
    history: list[float] = field(default_factory=list)

    def over(self, config: Config) -> bool:
        if not self.history:
            return False
        since = len(self.history) - 1 - int(np.argmax(self.history))
        return self.epoch >= config.epochs or since >= config.patience


def train(
    seen: Interactions,
    validation: pd.DataFrame,
    config: Config,
    path: Path,
    *,
    device: str | None = None,
    progress: bool = True,
    command: str = "",
    start: np.ndarray | None = None,
) -> Trained:
    """Train on ``seen``, keep the epoch with the best Recall@10 on ``validation`` in ``path``.

    ``validation`` holds ``userId, movieId``, one row per user: the item after the user's last in
    ``seen``. After each epoch the state goes to ``path`` with the suffix ``.state``; called again
    after an interruption, training goes on there and ends with the same weights. A finished
    training of the same settings and data is loaded, not repeated. The same numbers come out on
    the same machine with the same number of threads. ``start``, of shape (n_items, dim), are item
    embeddings to begin with in place of random ones; see :func:`start_from`.

    Raises:
        NeuralError: ``path`` belongs to another training, ``start`` has another shape, no history
            has two items, or the device's memory is full.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    facts = {
        "command": command,
        "training": fingerprint(seen.items, seen.users, seen.row, seen.column),
    }
    if start is not None:
        if np.shape(start) != (len(seen.items), config.dim):
            raise NeuralError(
                f"start has shape {np.shape(start)}; it needs one row per item of the catalogue "
                f"and {config.dim} columns, ({len(seen.items)}, {config.dim})."
            )
        facts["training"] += " from " + fingerprint(np.rint(start * 1e4))
    state_path = path.with_suffix(".state")
    if path.is_file() and not state_path.is_file():
        found = metadata_of(path)
        _check_same(path, found, config, facts)
        if "finished" in found:  # else it was killed in its first epoch
            return Trained(load(path, seen.items), path, json.loads(found["history"]))
    rows = histories(seen)
    parts = [part for row in rows for part in windows(row, config.length)]
    if not parts:
        raise NeuralError("No history has two items, so there is nothing to learn from.")
    with torch.random.fork_rng(), memory_explained(where):
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
        live = {"network": network, "average": average, "optimizer": optimizer}
        done = _resume(state_path, live, config, facts)
        with tqdm(desc=config.model, unit="epoch", initial=done.epoch, disable=not progress) as bar:
            while not done.over(config):
                loss = _epoch(network, optimizer, parts, done.epoch, average)
                scores = score_matrix(average.module, seen)
                ranks = sequential.target_ranks(scores, seen, validation)
                done.history.append(float((ranks <= 10).mean()))
                done.epoch += 1
                if int(np.argmax(done.history)) == done.epoch - 1:
                    save(average.module, path, **facts, history=json.dumps(done.history))
                _save_state(state_path, live, done, config, facts)
                _give_back_memory()
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}", recall=f"{done.history[-1]:.4f}")
    best = load(path, seen.items)
    save(best, path, **facts, history=json.dumps(done.history), finished="yes")
    state_path.unlink()
    return Trained(best, path, done.history)


def start_from(vectors: np.ndarray, dim: int, spread: float = 0.02) -> np.ndarray:
    """Return item vectors as embeddings to start from, shape (n_items, dim).

    The first ``dim`` principal components of ``vectors``, scaled so that the standard deviation
    over all entries is ``spread``, that of the random start.

    Raises:
        NeuralError: ``vectors`` has fewer than ``dim`` columns or rows.
    """
    centred = np.asarray(vectors, dtype=float) - np.mean(vectors, axis=0)
    if min(centred.shape) < dim:
        raise NeuralError(f"{centred.shape} vectors do not have {dim} principal components.")
    left, values, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(axis=1)])
    found = (left * values * signs)[:, :dim]
    return found / found.std() * spread


def _epoch(
    network: Network,
    optimizer: torch.optim.Optimizer,
    parts: Sequence[np.ndarray],
    epoch: int,
    average: AveragedModel | None = None,
) -> float:
    """Train on every part once and return the mean loss of a batch."""
    config, device, losses = network.config, network.bias.device, []
    torch.manual_seed(config.seed * 100_003 + epoch + 1)  # an epoch does not depend on the last
    network.train()
    for inputs, targets in batches(parts, config, network.mask_id, epoch):
        optimizer.zero_grad()
        loss = loss_of(network, inputs.to(device), targets.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        if average is not None:
            average.update_parameters(network)
        losses.append(loss.detach())
    return float(torch.stack(losses).mean())


def _check_same(path: Path, found: dict[str, Any], config: Config, facts: dict[str, str]) -> None:
    if json.loads(found["config"]) != asdict(config) or found.get("training") != facts["training"]:
        raise NeuralError(
            f"{path.name} belongs to a training with other settings or data; delete it or give "
            "another path."
        )


def _give_back_memory() -> None:
    """Return free memory to the system: with batches of all sizes glibc would keep a gigabyte."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _save_state(
    path: Path, live: dict[str, Any], done: _Progress, config: Config, facts: dict[str, str]
) -> None:
    state = {
        "config": json.dumps(asdict(config)),
        "training": facts["training"],
        **{name: part.state_dict() for name, part in live.items()},
        **asdict(done),
    }
    with data.replacing(path) as fresh:
        torch.save(state, fresh)


def _resume(path: Path, live: dict[str, Any], config: Config, facts: dict[str, str]) -> _Progress:
    """Load the state of an interrupted training, if there is one."""
    if not path.is_file():
        return _Progress()
    try:
        state = torch.load(path, map_location=live["network"].bias.device, weights_only=True)
    except Exception:
        raise NeuralError(f"{path.name} is damaged; delete it to begin anew.") from None
    _check_same(path, state, config, facts)
    for name, part in live.items():
        part.load_state_dict(state[name])
    return _Progress(state["epoch"], state["history"])


# --- threads ------------------------------------------------------------------------------------


def fastest_threads(
    step: Callable[[], object],
    most: int | None = None,
    *,
    rounds: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> int:
    """Return the number of CPU threads with which ``step`` takes the least time.

    1, 2, 4, ... and ``most`` (default: the cores this process may use) take turns for ``rounds``
    rounds, and the shortest time of each counts: other programs can only lengthen a time. Small
    networks are often fastest with one thread, since each operation waits for all threads to meet.
    PyTorch's setting is left as it was.
    """
    most = most or usable_cores()
    choices = sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)})
    if len(choices) == 1:
        return most
    before, best = torch.get_num_threads(), dict.fromkeys(choices, math.inf)
    try:
        step()  # the first call of all is slower
        for _ in range(rounds):
            for threads in choices:
                torch.set_num_threads(threads)
                start = clock()
                step()
                best[threads] = min(best[threads], clock() - start)
    finally:
        torch.set_num_threads(before)
    return min(choices, key=best.__getitem__)


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; a container may give fewer than there are
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def training_step(seen: Interactions, config: Config, batches_each: int = 2) -> Callable[[], None]:
    """Return what trains a throw-away network on the first batches of an epoch, for timing."""
    rows = histories(seen)
    parts = [part for row in rows for part in windows(row, config.length)]
    with torch.random.fork_rng():
        network = Network(config, seen.items).train()
        pairs = list(itertools.islice(batches(parts, config, network.mask_id, 0), batches_each))

    def step() -> None:
        with torch.random.fork_rng():
            for inputs, targets in pairs:
                network.zero_grad()
                loss_of(network, inputs, targets).backward()

    return step


# --- the command --------------------------------------------------------------------------------

KS = (5, 10, 20)
RESULTS, RANKS = "07_llamarec", "07_llamarec_ranks"


@dataclass(frozen=True)
class Protocol:
    """The leave-one-out protocol of notebook 06 on one catalogue."""

    parts: splits.LeaveOneOut
    seen: Interactions
    known: Interactions

    @classmethod
    def of(cls, ratings: pd.DataFrame, k: int = 5) -> Protocol:
        """Take the ``k``-core of ``ratings`` and set each user's last two items apart."""
        rows = data.core(ratings, k)
        parts, items = splits.leave_one_out(rows), np.unique(rows["movieId"])
        return cls(parts, Interactions.of(parts.train, items), Interactions.of(parts.known, items))


def ranks_on_test(network: Network, protocol: Protocol) -> pd.DataFrame:
    """Return ``userId, rank``: where each user's test item stands among all unseen items."""
    scores = score_matrix(network, protocol.known)
    ranks = sequential.target_ranks(scores, protocol.known, protocol.parts.test)
    return pd.DataFrame({"userId": protocol.parts.test["userId"], "rank": ranks.astype(int)})


def metrics_of(ranks: pd.DataFrame) -> pd.DataFrame:
    """Return the means over users as ``metric, value, users``."""
    lists = ranks.assign(movieId=0)  # the one relevant item, wherever it stands
    table = metrics.score_table(lists, lists, KS).mean()
    return pd.DataFrame({"metric": table.index, "value": table.to_numpy(), "users": len(ranks)})


def record(done: Trained, protocol: Protocol, dataset: data.Dataset, settings: Settings) -> Path:
    """Test a network and put its rows into the tables of notebook 07, in place of older ones."""
    config = done.network.config
    ranks = ranks_on_test(done.network, protocol)
    users = len(protocol.parts.validation)
    validation = pd.DataFrame(
        {
            "metric": ["Validation Recall@10", "Epochs to the best"],
            "value": [done.best, 1.0 + int(np.argmax(done.history))],
            "users": users,
        }
    )
    for name, rows in (
        (RANKS, ranks),
        (RESULTS, pd.concat([metrics_of(ranks), validation], ignore_index=True)),
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
    return path


def checkpoint_path(config: Config, settings: Settings) -> Path:
    """Return where the command keeps a model that it trains."""
    return settings.cache_dir / "neural" / f"{config.model}_seed{config.seed}.safetensors"


def _threads(text: str) -> int | str:
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError("give 'auto' or a number of at least 1")
    return text if text == "auto" else int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train one model, test it, and record the result."""
    parser = argparse.ArgumentParser(prog="python -m research.neural", description=main.__doc__)
    parser.add_argument("--model", choices=MODELS, default="lrurec")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads",
        type=_threads,
        default="auto",
        help="CPU threads; 'auto' times a few batches and takes the fastest number, a fixed one "
        "gives the same numbers again (default: auto)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    parser.add_argument("--to", type=Path, help="checkpoint (default: in data/cache/neural)")
    options = parser.parse_args(arguments)
    settings = Settings.from_env()
    try:
        dataset = data.locate(settings)
        print(dataset.describe())
        protocol = Protocol.of(data.load_pandas(dataset, "ratings"))
        config = Config.of(options.model, seed=options.seed)
        threads = options.threads
        if threads == "auto":
            threads = fastest_threads(training_step(protocol.seen, config))
            print(f"CPU threads: {threads}, the fastest here (the recorded runs had --threads 1)")
        torch.set_num_threads(threads)
        done = train(
            protocol.seen,
            protocol.parts.validation,
            config,
            options.to or checkpoint_path(config, settings),
            device=options.device,
            command=f"python -m research.neural --model {config.model} --seed {config.seed}",
        )
        path = record(done, protocol, dataset, settings)
    except (NeuralError, data.DataError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Validation Recall@10 {done.best:.4f}, epoch {int(np.argmax(done.history)) + 1}")
    for row in metrics_of(ranks_on_test(done.network, protocol)).itertuples():
        print(f"Test {row.metric:9} {row.value:.4f}, {row.users} users")
    print(f"Recorded in {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(command(main, "The same command goes on after the last whole epoch"))
