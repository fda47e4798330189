"""python tools/experiments/08_llamarec.py choose|train|test|represent|time makes 08's tables.

``choose`` compares ways to train and to show the candidates on validation, ``train --seed S`` keeps
an adapter of the chosen one in ``data/weights``, ``test`` ranks the test users' candidates,
``represent`` tries other texts and histories, ``time`` measures one pass beside a written list.
Each goes on where it was stopped, on a GPU if there is one; one CPU thread trains on a question in
three seconds and ranks in 1.4.
"""

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from experiment import begin, cells_of, run, save
from tqdm import tqdm

from helpers import data
from research import llamarec, stats
from research.language_model import Prompt, Schedule, load_adapter, save_adapter, teach
from research.llamarec import Requests, TitleModel, inside, letter_logs, own_order
from research.training import kept_rows
from research.verbalizer_torch import Verbalizer, efficiency

CHOSEN, MIXED, RANDOM = "own lists, retriever's order", "own lists, mixed", "random movies, mixed"
COUNTS = "transition counts"
TITLES, STRETCHES = "titles watched, likelihood of titles", 480  # pieces of 24 titles
LIKELIHOOD = "likelihood of titles"
WEIGHTS = tuple(round(0.1 * tenth, 1) for tenth in range(11))  # of the LLM in the blend
Logs = dict[int, np.ndarray]


class Experiment:
    """Notebook 08's data, its retriever and questions, and models that train on them."""

    def __init__(self) -> None:
        self.notebook = begin("08", "everyone = ")
        self.folder = self.notebook.settings.cache_dir / "llamarec"  # of unfinished work
        self.base = partial(Verbalizer.load, self.notebook.settings, four_bit=True)

    def requests(self, stage: str, retriever: str = "LRURec", form=None, **how) -> Requests:
        """Return what is asked about the users whose next movie the retriever lists."""
        seen, lists, target = getattr(self.notebook.protocol, stage)
        if retriever == "LRURec":
            lists = llamarec.retriever_lists(self.notebook.retriever, seen)
        return llamarec.requests_for(lists, seen, form or self.notebook.titles, target, **how)

    def prompts(self, way: str = CHOSEN, form=None, what: str = "title") -> list[Prompt]:
        """Return the notebook's training questions as a way shows them, movies in a ``form``."""
        _, cell, _ = cells_of("08", "STEPS = 20", "def lora_parameters")
        names = form or self.notebook.titles
        run(cell, space := vars(self.notebook) | {"titles": names})
        asked = [replace(each, what=what) for each in space["questions"]]
        random = np.random.default_rng(0)
        random.permutation(len(asked))  # the notebook's order comes first
        if way == RANDOM:
            titles = [names[int(item)] for item in self.notebook.protocol.items]
            asked = [llamarec.with_random_negatives(each, titles, random) for each in asked]
        elif way == MIXED:
            asked = [q.permuted(random.permutation(len(q.candidates)).tolist()) for q in asked]
        return [each.prompt() for each in asked]

    def taught(self, name: str, model: Verbalizer, prompts: list, until: int, seed: int = 0):
        """Return a model with LoRA after ``until`` prompts; its state is kept under the name."""
        path, how = self.folder / f"{name}.pt", Schedule(seed=seed)
        bar = tqdm(teach(model, prompts, how, path=path, until=until), name, mininterval=30)
        for done, loss in bar:
            bar.set_postfix(prompts=f"{done} of {until}", loss=f"{loss:.3f}")
        return model

    def adapted(self, name: str, until: int, seed: int = 0, **shown) -> Verbalizer:
        """Return the base model after ``until`` questions; ``shown`` as in ``prompts``."""
        model = self.base().with_lora(seed=seed)
        return self.taught(name, model, self.prompts(**shown), until, seed)

    def title_model(self) -> Verbalizer:
        """Return the base model after ``STRETCHES`` pieces of the titles that users watched."""
        base = TitleModel.load(self.notebook.settings, four_bit=True).with_lora(rank=16)
        pieces = llamarec.stretches(self.notebook.protocol.seen, self.notebook.titles)
        np.random.default_rng(0).shuffle(pieces)
        return self.taught(f"{TITLES} seed 0", base, pieces, STRETCHES)

    def weights(self, seed: int) -> Path:
        """Return where the adapter of a seed is kept."""
        return self.notebook.settings.data_dir / "weights" / f"llamarec_seed{seed}.safetensors"

    def loaded(self, seed: int) -> Verbalizer:
        """Return the base model with the adapter of a seed."""
        load_adapter(ranker := self.base().with_lora(seed=seed), self.weights(seed))
        return ranker

    def ranked(self, name: str, requests: Requests, model: Callable, by=letter_logs) -> Logs:
        """Return each user's log-probabilities, kept under the name; ``by`` computes them."""

        def compute() -> dict[str, np.ndarray]:
            rows = tqdm(by(model(), requests), name, total=len(requests), mininterval=30)
            return {str(user): row for user, row in rows}

        kept = kept_rows(self.folder / f"{name}.npz", compute)
        return {int(user): row for user, row in kept.items()}


def choose(work: Experiment, examples: int, further: list[int]) -> pd.DataFrame:
    """Train every way on the same questions, then the chosen one on more; judge on validation."""
    rows, shown, mixed = [], work.requests("validation"), work.requests("validation", shuffle=0)

    def judge(way: str, count: int, requests: Requests, model: Callable | None, **how) -> None:
        name = f"validation {way} {count}"
        logs = work.ranked(name, requests, model, **how) if model else own_order(requests)
        loss, values = inside(requests, logs)[["loss", "NDCG@10"]].to_numpy().T
        at = stats.bootstrap_interval(values)
        rows.append((way, count, loss.mean() if model else np.nan, *at))
        print(*rows[-1], flush=True)

    judge("own order", 0, shown, None)
    plan = [(way, examples) for way in (CHOSEN, MIXED, RANDOM)]
    for way, count in plan + [(CHOSEN, count) for count in further]:
        model = partial(work.adapted, f"{way} seed 0", count, way=way)
        judge(way, count, shown if way == CHOSEN else mixed, model)
    judge("zero-shot, retriever's order", 0, shown, work.base)
    judge("zero-shot, mixed", 0, mixed, work.base)
    judge("zero-shot, likelihood of titles", 0, shown, work.base, by=llamarec.title_logs)
    judge(TITLES, STRETCHES, shown, work.title_model, by=llamarec.title_logs)
    return pd.DataFrame(rows, columns=["way", "questions", "loss", "value", "low", "high", "users"])


def blends(requests: Requests, ways: dict, ranker: str, weight: float) -> dict[int, pd.DataFrame]:
    """Mix the ranks of LRURec and of each seed of a ranker."""
    logs = {seed: rows for (way, seed), rows in ways.items() if way == ranker}
    return {seed: inside(requests, llamarec.blended(logs[seed], weight)) for seed in logs}


def test(work: Experiment) -> pd.DataFrame:
    """Return where each way puts the test item of each user whose list holds it, 1 the first."""
    tables, found = [], {}
    for stage, retriever in (("validation", "LRURec"), ("test", "LRURec"), ("test", COUNTS)):
        requests = work.requests(stage, retriever)
        ways = {("own order", -1): own_order(requests)}
        found[stage, retriever] = requests, ways
        if (stage, retriever) == ("test", "LRURec"):
            ways["zero-shot", -1] = work.ranked("test zero-shot", requests, work.base)
        for seed in range(3):
            weights = hashlib.sha256(work.weights(seed).read_bytes()).hexdigest()[:8]
            name = f"{stage} {retriever} LoRA {seed} {weights}"
            ways["LoRA", seed] = work.ranked(name, requests, partial(work.loaded, seed))
        if retriever == "LRURec":
            name, how = f"{stage} {TITLES} {STRETCHES}", {"by": llamarec.title_logs}
            ways[LIKELIHOOD, 0] = work.ranked(name, requests, work.title_model, **how)
        for (ranker, seed), logs in ways.items():
            facts = {"stage": stage, "retriever": retriever, "ranker": ranker, "seed": seed}
            tables.append(inside(requests, logs).assign(**facts))
    for name, ranker in {"blend": "LoRA", "blend with titles": LIKELIHOOD}.items():
        chosen, tested = ((*found[stage, "LRURec"], ranker) for stage in ("validation", "test"))
        tried = {w: pd.concat(blends(*chosen, w))["NDCG@10"].mean() for w in WEIGHTS}
        best = max(tried, key=tried.__getitem__)
        facts = {"stage": "test", "retriever": "LRURec", "ranker": f"{name}, weight {best}"}
        tables += [each.assign(**facts, seed=s) for s, each in blends(*tested, best).items()]
    table = pd.concat(tables)
    asked = ["zero-shot", "LoRA", LIKELIHOOD]  # the others have no probabilities
    table["loss"] = table["loss"].where(table["ranker"].isin(asked))
    return table[["stage", "retriever", "ranker", "seed", "userId", "rank", "loss"]]


def represent(work: Experiment, examples: int) -> pd.DataFrame:
    """Return where the test item stands when movies are written in other ways.

    Numbers and titles have an adapter each; that of the titles also reads longer forms, which begin
    with the title, and other histories.
    """
    parts, tables = work.notebook.protocol.parts, []
    movies, tags = (data.load_pandas(work.notebook.dataset, name) for name in ("movies", "tags"))
    forms = llamarec.forms(movies, tags, pd.concat([parts.validation, parts.test]))
    for what, form in forms.items():
        if what in ("number", "title"):
            ranker = work.adapted(f"as {what}", examples, form=form, what=what)
        for last in [20, 5, 10, 50] if what == "title" else [20]:
            requests = work.requests("test", form=form, last=last, what=what)
            logs = work.ranked(f"test {what} {last} {examples}", requests, lambda m=ranker: m)
            tables.append(inside(requests, logs).assign(what=what, history=last))
    return pd.concat(tables)[["what", "history", "userId", "rank", "loss"]]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["choose", "train", "test", "represent", "time"])
    parser.add_argument("--examples", type=int, default=320, help="questions for every way")
    parser.add_argument("--further", type=int, nargs="+", default=[640], help="and for the chosen")
    parser.add_argument("--seed", type=int, default=0)
    options, work = parser.parse_args(), Experiment()
    if options.command == "choose":
        save(choose(work, options.examples, options.further), "08_validation")
    elif options.command == "train":
        seed, count = options.seed, options.further[-1]
        command = f"python tools/experiments/08_llamarec.py train --seed {seed} --further {count}"
        adapter = work.adapted(f"{CHOSEN} seed {seed}", count, seed)
        save_adapter(adapter, work.weights(seed), command)
    elif options.command == "test":
        save(test(work), "08_ranks")
    elif options.command == "represent":
        save(represent(work, options.examples), "08_representation")
    else:
        save(efficiency(work.base(), (5, 10, 20, 32), repeats=1), "08_efficiency")
