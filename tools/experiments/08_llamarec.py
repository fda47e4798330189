"""python tools/experiments/08_llamarec.py choose|train|test|represent|time makes 08's tables.

``choose`` compares ways to train and to show the candidates on validation
(``08_validation.csv``), ``train --seed S`` keeps an adapter of the chosen one in ``data/weights``,
``test`` ranks the test users' candidates (``08_ranks.csv``), ``represent`` writes the movies in
other ways and shows shorter and longer histories (``08_representation.csv``), ``time`` measures one
pass beside a written list (``08_efficiency.csv``). Each can be stopped and goes on where it was. On
one CPU thread a question takes three seconds to train on and 1.4 to rank; a GPU is used where there
is one.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from helpers import data, metrics
from helpers.settings import Settings
from research import llamarec, neural, training
from research import verbalizer_torch as vt
from research.language_model import load_adapter, save_adapter
from research.llamarec import Requests
from research.protocol import Protocol, Stage
from research.verbalizer_torch import LetterQuestion, Verbalizer, title_map

STEPS = 20  # targets per user, from the end of the training history
WAYS = {  # questions, order of the candidates shown
    "own lists, retriever's order": ("own", None),
    "own lists, mixed": ("own", 0),
    "random movies, mixed": ("random", 0),
}
CHOSEN = "own lists, retriever's order"
COUNTS = "transition counts"
STRETCHES = 1000  # pieces of 24 titles
WEIGHTS = tuple(round(0.1 * tenth, 1) for tenth in range(11))  # of the LLM in the blend


@dataclass(frozen=True)
class Experiment:
    """The data, the retriever and the questions that all commands share."""

    settings: Settings
    dataset: data.Dataset

    @property
    def folder(self) -> Path:
        """Where unfinished work is kept."""
        return self.settings.cache_dir / "llamarec"

    @cached_property
    def protocol(self) -> Protocol:
        return Protocol.of(data.load_pandas(self.dataset, "ratings"))

    @cached_property
    def titles(self) -> dict[int, str]:
        return title_map(data.load_pandas(self.dataset, "movies"))

    @cached_property
    def network(self) -> neural.Network:
        path = self.settings.data_dir / "weights" / "lrurec_seed0.safetensors"
        return neural.load(path, self.protocol.items, "lrurec")

    @cached_property
    def forms(self) -> dict[str, dict[int, str]]:
        """What may stand for a movie."""
        movies, tags = (data.load_pandas(self.dataset, name) for name in ("movies", "tags"))
        held_out = pd.concat([self.protocol.parts.validation, self.protocol.parts.test])
        return llamarec.forms(movies, tags, held_out)

    def training(self, way: str, what: str = "title") -> list[LetterQuestion]:
        """Return the training questions as a way shows them, always in the same random order."""
        kind, mixed = WAYS[way]
        rows, items = self.protocol.parts.train, self.protocol.items
        path = self.settings.data_dir / "weights" / "lrurec_early.safetensors"
        early, form = llamarec.early_retriever(rows, items, STEPS, path), self.forms[what]
        questions = llamarec.training_questions(early, rows, items, form, STEPS, what)
        random = np.random.default_rng(0)
        names = [self.titles[int(item)] for item in items]
        asked = [questions[i] for i in random.permutation(len(questions))]
        if kind == "random":
            return [llamarec.with_random_negatives(each, names, random) for each in asked]
        if mixed is None:
            return asked
        return [each.permuted(random.permutation(len(each.candidates)).tolist()) for each in asked]

    def weights(self, seed: int) -> Path:
        """Return where the adapter of a seed is kept."""
        return self.settings.data_dir / "weights" / f"llamarec_seed{seed}.safetensors"

    def stage(self, name: str) -> Stage:
        """Return LRURec's lists and what came next, for ``validation`` or ``test``."""
        seen = {"validation": self.protocol.seen, "test": self.protocol.known}[name]
        target = {"validation": self.protocol.parts.validation, "test": self.protocol.parts.test}[
            name
        ]
        return Stage(seen, llamarec.retriever_lists(self.network, seen), target)

    def ranker(self, lora: int | None = None) -> Verbalizer:
        """Return the base model, with fresh LoRA matrices of a seed or without."""
        base = Verbalizer.load(self.settings, four_bit=True)
        return base if lora is None else base.with_lora(seed=lora)


def kept(path: Path, label: str, requests: Requests, logs: Callable[[], Iterator]) -> dict:
    """Return each user's log-probabilities from ``path``, computed first where it is missing."""

    def compute() -> dict[str, np.ndarray]:
        rows = tqdm(logs(), desc=label, total=len(requests), mininterval=30)
        return {str(user): row for user, row in rows}

    return {int(user): row for user, row in training.kept_rows(path, compute).items()}


def row_of(table: pd.DataFrame, **facts: object) -> dict[str, object]:
    """Return one row of 08_validation.csv."""
    at = metrics.bootstrap_interval(table["NDCG@10"])
    loss = table["loss"].mean() if facts["questions"] or "zero" in str(facts["way"]) else np.nan
    return {**facts, "loss": loss, "value": at.mean, "low": at.low,
            "high": at.high, "users": at.users}  # fmt: skip


def own_order(requests: Requests) -> dict[int, np.ndarray]:
    """Return log-probabilities that keep the candidates in the order shown."""
    return {user: -np.arange(len(shown) * 1.0) for user, (shown, _) in requests.items()}


def choose(work: Experiment, examples: int, further: int) -> pd.DataFrame:
    """Train every way on the same questions, then the chosen one on more; judge on validation."""
    seen, lists, target = work.stage("validation")
    in_order = llamarec.requests_for(lists, seen, work.titles, target)
    mixed = llamarec.requests_for(lists, seen, work.titles, target, shuffle=0)
    rows = [row_of(llamarec.inside(in_order, own_order(in_order)), way="own order", questions=0)]

    def judge(way: str, count: int, requests: Requests, make: Callable, logs=llamarec.letter_logs):
        name = f"validation {way} {count}"
        values = kept(work.folder / f"{name}.npz", name, requests, lambda: logs(make(), requests))
        rows.append(row_of(llamarec.inside(requests, values), way=way, questions=count))
        print(pd.DataFrame(rows[-1:]).round(4).to_string(index=False, header=False), flush=True)

    plan = [(way, examples) for way in WAYS] + [(CHOSEN, count) for count in ladder(further)]
    for way, count in dict.fromkeys(plan):

        def trained(way: str = way, count: int = count) -> Verbalizer:
            ranker, state = work.ranker(lora=0), work.folder / f"{way} seed 0.pt"
            steps = llamarec.train(ranker, work.training(way), path=state, until=count)
            log_steps(steps, way, count)
            return ranker

        judge(way, count, in_order if WAYS[way][1] is None else mixed, trained)
    for name, requests in {"retriever's order": in_order, "mixed": mixed}.items():
        judge(f"zero-shot, {name}", 0, requests, work.ranker)
    judge("zero-shot, likelihood of titles", 0, in_order, work.ranker, llamarec.title_logs)

    def taught() -> Verbalizer:
        base = llamarec.TitleModel.load(work.settings, four_bit=True).with_lora(rank=16, seed=0)
        pieces = llamarec.stretches(seen, work.titles)
        pieces = [pieces[i] for i in np.random.default_rng(0).permutation(len(pieces))]
        state = work.folder / "titles seed 0.pt"
        log_steps(llamarec.teach(base, pieces, path=state, until=STRETCHES), "titles", STRETCHES)
        return base

    judge("likelihood of titles", STRETCHES, in_order, taught, llamarec.title_logs)
    return pd.DataFrame(rows)


def ladder(most: int, start: int = 640) -> list[int]:
    """Return how many questions the chosen way is judged after."""
    counts = itertools.takewhile(lambda n: n < most, (start * 2**i for i in range(20)))
    return [*counts, most]


def log_steps(steps: Iterator[tuple[int, float]], name: str, total: int) -> None:
    """Run a training and show its loss."""
    losses = []
    with tqdm(desc=name, total=total, unit="question", mininterval=30) as bar:
        for done, loss in steps:
            losses.append(loss)
            bar.update(done - bar.n)
            bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")


def train(work: Experiment, seed: int, count: int) -> None:
    """Train the chosen way with one seed and keep its adapter in ``data/weights``."""
    ranker, state = work.ranker(lora=seed), work.folder / f"{CHOSEN} seed {seed}.pt"
    steps = llamarec.train(
        ranker, work.training(CHOSEN), llamarec.Schedule(seed=seed), path=state, until=count
    )
    log_steps(steps, f"seed {seed}", count)
    command = f"python tools/experiments/08_llamarec.py train --seed {seed} --further {count}"
    save_adapter(ranker, work.weights(seed), command)


STAGES = (("validation", "LRURec"), ("test", "LRURec"), ("test", COUNTS))


def test(work: Experiment, seeds: Sequence[int], stages: Sequence = STAGES) -> pd.DataFrame:
    """Return where each way puts the test item of each user whose list holds it, 1 the first.

    The blend mixes the ranks of LRURec and of the adapted model; its weight is the one that is best
    on validation, over all seeds.
    """

    def adapted(seed: int) -> Verbalizer:
        ranker = work.ranker(lora=seed)
        load_adapter(ranker, work.weights(seed))
        return ranker

    tables, blends = [], {}
    for stage, retriever in stages:
        seen, lists, target = work.stage(stage) if retriever == "LRURec" else work.protocol.test
        requests = llamarec.requests_for(lists, seen, work.titles, target)
        ways = {("own order", -1): own_order(requests)}
        if (stage, retriever) == ("test", "LRURec"):
            ways["zero-shot", -1] = kept(
                work.folder / "test zero-shot.npz", "test zero-shot", requests,
                lambda r=requests: llamarec.letter_logs(work.ranker(), r),
            )  # fmt: skip
        for seed in seeds:
            weights = hashlib.sha256(work.weights(seed).read_bytes()).hexdigest()[:8]
            name = f"{stage} {retriever} LoRA {seed} {weights}"
            ways["LoRA", seed] = kept(
                work.folder / f"{name}.npz", name, requests,
                lambda r=requests, s=seed: llamarec.letter_logs(adapted(s), r),
            )  # fmt: skip
            if retriever == "LRURec":
                for weight in WEIGHTS:
                    blends[stage, seed, weight] = llamarec.inside(
                        requests, llamarec.blended(ways["LoRA", seed], weight)
                    )
        for (ranker, seed), logs in ways.items():
            tables.append(
                llamarec.inside(requests, logs).assign(
                    stage=stage, retriever=retriever, ranker=ranker, seed=seed
                )
            )
    best = max(
        WEIGHTS, key=lambda w: sum(blends["validation", s, w]["NDCG@10"].mean() for s in seeds)
    )
    print(f"weight of the LLM in the blend, chosen on validation: {best}")
    for seed in seeds:
        tables.append(
            blends["test", seed, best].assign(
                stage="test", retriever="LRURec", ranker=f"blend, weight {best}", seed=seed
            )
        )
    table = pd.concat(tables)
    asked = table["ranker"].isin(["zero-shot", "LoRA"])  # the others have no probabilities
    table["loss"] = table["loss"].where(asked)
    return table[["stage", "retriever", "ranker", "seed", "userId", "rank", "loss"]]


def represent(work: Experiment, examples: int) -> pd.DataFrame:
    """Return where the test item stands when movies are written in other ways.

    Each form has an adapter of its own, trained on ``examples`` questions; that of the titles also
    ranks with shorter and longer histories.
    """
    seen, lists, target = work.stage("test")
    tables = []
    for what, form in work.forms.items():
        ranker, shown = work.ranker(lora=0), [20, 5, 10, 50] if what == "title" else [20]
        questions = work.training(CHOSEN, what)
        steps = llamarec.train(
            ranker, questions, path=work.folder / f"as {what}.pt", until=examples
        )
        log_steps(steps, what, examples)
        for last in shown:
            requests = llamarec.requests_for(lists, seen, form, target, last=last, what=what)
            name = f"test {what} {last} {examples}"
            logs = kept(
                work.folder / f"{name}.npz", name, requests,
                lambda r=requests, m=ranker: llamarec.letter_logs(m, r),
            )  # fmt: skip
            tables.append(llamarec.inside(requests, logs).assign(what=what, history=last))
    return pd.concat(tables)[["what", "history", "userId", "rank", "loss"]]


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["choose", "train", "test", "represent", "time"])
    parser.add_argument("--examples", type=int, default=320, help="questions for every way")
    parser.add_argument("--further", type=int, default=2560, help="questions for the chosen way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads decides the last bits
    settings = Settings.from_env()
    work = Experiment(settings, data.locate(settings))
    print(work.dataset.describe(), flush=True)
    if options.command == "train":
        train(work, options.seed, options.further)
        return
    name, table = {
        "choose": lambda: ("08_validation", choose(work, options.examples, options.further)),
        "test": lambda: ("08_ranks", test(work, options.seeds)),
        "represent": lambda: ("08_representation", represent(work, options.examples)),
        "time": lambda: ("08_efficiency", vt.efficiency(work.ranker(), (5, 10, 20, 32), repeats=1)),
    }[options.command]()
    data.save_result(table, name, work.dataset, settings)


if __name__ == "__main__":
    main()
