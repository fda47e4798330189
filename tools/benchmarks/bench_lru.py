"""An epoch of LRURec as we train it, beside a plain sequential recurrence.

The plain one is a cell, as recurrent networks are written first: it reads one item of each window
at a time, updates h = decay * h + x, and scores what comes next; padding is read too and left out
of the loss. Ours: a parallel scan, real positions only, and a softmax whose gradient is found while
its probabilities are at hand. Two rows between them show what each part is worth: padding and
scoring in one piece but the recurrence in a loop, and ours with the recurrence in a loop. All four
give the same loss and gradients, which is checked first.

They take turns batch by batch, so that what else the machine does meets all of them alike. Times
are noisy; the ratio is what counts.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="the row of LRURec needs PyTorch: pip install -e '.[llamarec]'"
)
import torch.nn.functional as F  # noqa: E402, N812

from helpers import data  # noqa: E402
from research import neural, sequence_models  # noqa: E402
from research.sequence_models import Config, Layout, Network  # noqa: E402


def padded_loss(network: Network, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy with every position of a padded batch run and scored."""
    length = network.config.length
    inputs, targets = (F.pad(part, (0, length - part.shape[1])) for part in (inputs, targets))
    layout = Layout.of(torch.ones_like(inputs, dtype=torch.bool))
    x = network.drop(network.first_norm(network.embed(inputs.flatten())))
    for block in network.blocks:
        x = block(x, layout)
    return F.cross_entropy(network.scores(x), targets.flatten() - 1, ignore_index=-1)


def step_loss(network: Network, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the same loss from a cell that reads one item of each window at a time."""
    length = network.config.length
    inputs, targets = (F.pad(part, (0, length - part.shape[1])) for part in (inputs, targets))
    units = [block.unit for block in network.blocks]
    decays = [unit.decay() for unit in units]
    gains = [torch.exp(unit.gamma_log).repeat_interleave(2) for unit in units]
    states, total = [0.0] * len(units), 0.0
    for now, wanted in zip(inputs.unbind(1), targets.unbind(1), strict=True):
        x = network.drop(network.first_norm(network.embed(now)))
        for place, block in enumerate(network.blocks):
            enters = (units[place].into(x) * gains[place]).unflatten(1, (-1, 2))
            states[place] = decays[place] * states[place] + torch.view_as_complex(enters)
            leaves = units[place].out(torch.view_as_real(states[place]).flatten(1))
            x = block.norms[0](x + block.drop(leaves))
            x = block.norms[1](x + block.feed_forward(x))
        total = total + F.cross_entropy(
            network.scores(x), wanted - 1, ignore_index=-1, reduction="sum"
        )
    return total / (targets > 0).sum()


def build(items: np.ndarray, config: Config, loop: bool) -> Network:
    """Return a network with the seed's weights, its recurrence a loop or a scan."""
    torch.manual_seed(config.seed)
    network = Network(config, items)
    for block in network.blocks if loop else ():
        block.unit.scan = sequence_models.sequential_scan
    return network


WAYS = {
    "ours": (False, neural.loss_of),
    "ours, recurrence in a loop": (True, neural.loss_of),
    "padded, recurrence in a loop": (True, padded_loss),
    "item by item": (True, step_loss),
}


def check_same_maths(items: np.ndarray, parts: list[np.ndarray]) -> None:
    """Compare loss and gradients of one batch without dropout."""
    config = Config.of("lrurec", dropout=0.0)
    inputs, targets = next(neural.batches(parts, config, 0, 0))
    found = []
    for loop, loss_of in WAYS.values():
        network = build(items, config, loop)
        loss = loss_of(network, inputs, targets)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in network.parameters())])
    for other in found[1:]:
        for first, second in zip(found[0], other, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def bench_lru(versus, benchmark):
    protocol = neural.Protocol.of(data.load_pandas(data.locate(), "ratings"))
    config, items = Config.of("lrurec"), protocol.seen.items
    rows = neural.histories(protocol.seen)
    parts = [part for row in rows for part in neural.windows(row, config.length)]
    check_same_maths(items, parts)
    networks = {name: build(items, config, loop) for name, (loop, _) in WAYS.items()}
    optimizers = {
        name: torch.optim.AdamW(network.parameters(), lr=config.learning_rate, fused=True)
        for name, network in networks.items()
    }
    times = {name: [] for name in WAYS if name != "ours"}
    epoch = list(neural.batches(parts, config, 0, 0))
    turns = iter([epoch[0], *epoch])  # the first batch warms up

    def step(name, inputs, targets):
        optimizers[name].zero_grad()
        WAYS[name][1](networks[name], inputs, targets).backward()
        optimizers[name].step()

    def others():
        batch = next(turns)
        for name, spent in times.items():
            start = perf_counter()
            step(name, *batch)
            spent.append(perf_counter() - start)
        return ("ours", *batch), {}

    benchmark.pedantic(step, setup=others, rounds=len(epoch), warmup_rounds=1)
    seconds = {name: sum(spent[1:]) for name, spent in times.items()}
    ours = sum(benchmark.stats.stats.data)
    versus.note(f"{len(epoch)} batches of {config.batch}, {torch.get_num_threads()} thread(s)")
    for name, spent in seconds.items():
        versus.note(f"  {name:28} {spent:6.1f} s an epoch, {spent / ours:5.1f} times ours")
    versus.add("LRURec epoch, beside item by item", ours, seconds["item by item"])
