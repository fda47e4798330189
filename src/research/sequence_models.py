"""The networks of notebook 07 that guess the next item: LRURec, SASRec, NARM and BERT4Rec.

Each turns histories into scores for every item; :mod:`research.neural` trains them, all with the
full softmax as loss, by which SASRec gains (Klenitskiy and Vasilev 2023).

References: Yue et al. 2023, "Linear recurrent units for sequential recommendation" (LRURec);
Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences" (the unit itself);
Kang and McAuley 2018 (SASRec); Li et al. 2017 (NARM); Sun et al. 2019 (BERT4Rec).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from research.training import ModelError

MODELS = ("lrurec", "sasrec", "narm", "bert4rec")


@dataclass(frozen=True)
class Config:
    """Everything that decides a trained model, apart from the data; :meth:`of` builds it.

    ``length`` is the longest history read, in items. What is judged and kept is a running mean of
    the weights, to which a step adds 1 - ``average`` (Polyak and Juditsky 1992). Training stops
    when validation Recall@10 has not risen for ``patience`` epochs.
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
        """Refuse an unknown model."""
        if self.model not in MODELS:
            raise ModelError(f"There is no model {self.model!r}; choose {', '.join(MODELS)}.")

    @classmethod
    def of(cls, model: str, **changes: Any) -> Config:
        """Return the settings chosen for ``model`` on validation, with ``changes``."""
        return replace(cls(model=model, **CHOSEN.get(model, {})), **changes)


# Chosen on validation Recall@10 of ml-latest-small, seed 0; data/results/07_tuning.csv has every
# finished trial. LRURec: learning rate 1e-3 or 2e-3, dropout 0.5 from the authors' tuned run. The
# others: learning rate 1e-3 or 2e-3, dropout 0.2 or 0.5, length 50 or 200, running mean 0 or 0.995.
# One layer is NARM's own, and was not tuned.
CHOSEN: dict[str, dict[str, Any]] = {
    "lrurec": {"learning_rate": 2e-3},
    "sasrec": {"learning_rate": 2e-3, "dropout": 0.2, "length": 50, "average": 0.0},
    "narm": {"blocks": 1, "learning_rate": 2e-3, "dropout": 0.2, "length": 50, "average": 0.0},
    "bert4rec": {"learning_rate": 2e-3, "length": 50},
}


def sequential_scan(decay: Tensor, x: Tensor) -> Tensor:
    """Return h with h_t = decay * h_(t-1) + x_t, one position after the other: the definition.

    ``decay`` has shape (width,), ``x`` and the result (batch, length, width); all complex.
    """
    state, states = torch.zeros_like(x[:, 0]), []
    for now in x.unbind(1):
        state = decay * state + now
        states.append(state)
    return torch.stack(states, 1)


def _scan_in_place(decay: Tensor, h: Tensor) -> Tensor:
    """Turn ``h`` from inputs into states in log2(length) steps (Sklansky 1960)."""
    # After a step, blocks of 2 * half positions are solved by themselves: the second half of a
    # block adds the last state of the first half, decayed by as many powers as it lies ahead.
    length, powers = h.shape[1], decay[None]  # powers: decay ** (1 .. half)
    half = 1
    while half < length:
        whole = length // (2 * half) * 2 * half
        blocks = h[:, :whole].unflatten(1, (-1, 2 * half))
        blocks[:, :, half:] += powers * blocks[:, :, half - 1 : half]
        left = length - whole - half
        if left > 0:
            h[:, whole + half :] += powers[:left] * h[:, whole + half - 1 : whole + half]
        powers = torch.cat([powers, powers * powers[-1]])
        half *= 2
    return h


class _Scan(torch.autograd.Function):
    """The scan with its own gradient, which is the same scan run backwards."""

    @staticmethod
    def forward(ctx: Any, decay: Tensor, x: Tensor) -> Tensor:
        states = _scan_in_place(decay, x.clone(memory_format=torch.contiguous_format))
        ctx.save_for_backward(decay, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        decay, states = ctx.saved_tensors
        grad_x = _scan_in_place(decay.conj().resolve_conj(), grads[0].flip(1)).flip(1)
        grad_decay = (grad_x[:, 1:] * states[:, :-1].conj()).sum((0, 1))
        return grad_decay, grad_x


def parallel_scan(decay: Tensor, x: Tensor) -> Tensor:
    """Return the same as :func:`sequential_scan` in log2(length) vectorised steps."""
    return _Scan.apply(decay, x)


@dataclass
class Layout:
    """Where the real positions of a padded batch stand.

    Networks work on packed positions of shape (n_real, dim), so that padding costs and changes
    nothing; :meth:`spread` gives the array that a recurrence or attention needs.
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
    matrices before and after are real ones of twice the width.
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

    Normalised before each part (Kang and McAuley 2018, section 3.3); BERT4Rec's own blocks
    normalise after each part. Unlike the originals it drops no attention weights.
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

    Both are joined and brought back to ``dim`` by the matrix of the bilinear decoder. All prefixes
    of a sequence are read at once.
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
        parts = (self.now(states), self.before(states), states)
        sequences = zip(*(part.split(layout.lengths.tolist()) for part in parts), strict=True)
        local = [self._attend(*sequence) for sequence in sequences]
        return self.decode(self.drop(torch.cat([states, torch.cat(local)], 1)))

    def _attend(self, now: Tensor, before: Tensor, states: Tensor) -> Tensor:
        """Weigh one sequence's states, shape (length, dim), for each of its positions."""
        weights = torch.sigmoid(now[:, None] + before[None]) @ self.weigh
        return weights.tril() @ states


class Network(nn.Module):
    """Items in, scores for the next item out; the same embeddings read and score.

    A batch has shape (n_sequences, padded length): 0 is padding, on either side, 1 to n_items are
    the items in order, n_items + 1 is BERT4Rec's mask. ``trained``: items with an interaction.
    """

    trained: Tensor

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
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class SoftmaxLoss(torch.autograd.Function):
    """The mean of ``F.cross_entropy(states @ vectors.T + bias, targets)``, in blocks of 256 rows.

    The gradient is found on the way forward; the (n, n_items) matrix, half a gigabyte, never exists
    as a whole.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """Return the loss, and keep its gradients."""
        n, total = len(states), states.new_zeros(())
        grads = torch.empty_like(states), torch.zeros_like(vectors), torch.zeros_like(bias)
        for start in range(0, n, 256):
            rows = slice(start, start + 256)
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
        ctx.save_for_backward(*grads)
        return total / n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients kept."""
        return *(grads[0] * part for part in ctx.saved_tensors), None
