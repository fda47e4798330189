"""python tools/experiments/11_adapting.py makes 11_adapting.csv and 11_users.csv for notebook 11.

Adapts one pretrained model (SmolLM2-135M-Instruct, or what ``LLAMAREC_BASE_MODEL`` names) to two
tasks in every way, with the same questions, three times. Rates are chosen on validation. It can be
stopped and goes on where it was; an hour on one CPU thread. ``--base``: pretrain the small model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch

from helpers import data
from helpers.settings import Settings
from research import adapting, questions
from research.adapting import CrossEncoder, Model, scores_after
from research.language_model import Prompt, Schedule, save_adapter, teach
from research.questions import LIKED, Course, Question, about_genre, beside, short, worded
from research.training import kept_rows

STEPS = 3  # the last items of each training history, which training questions ask about
QUESTIONS = 96  # that each training reads, once
SHOTS = (1, 4, 8)
SEEDS = (0, 1, 2)
TESTED = {"rank": None, "like": 150}  # test users, drawn at random; None: all that have a question
CHECKED = 60  # validation users
RATES = {"soft": (1e-2, 5e-2), "lora": (1e-3, 3e-3), "cross": (5e-5, 2e-4)}
MIXED = ("rank", "like", "rate", "genre")


@dataclass(frozen=True)
class Way:
    """A way to train: its rates, the loss, and the tasks that its questions are about."""

    kind: str
    among: str
    tasks: tuple[str, ...]

    def form(self, question: Question) -> Prompt:
        """Return the prompt of a question."""
        return beside(question) if self.kind == "cross" else worded(question)


def ways(task: str) -> dict[str, Way]:
    """Return the trainings that are tested on a task."""
    found = {"prompt tuning": Way("soft", "answers", (task,))}
    if task == "rank":
        found["LoRA, language model's loss"] = Way("lora", "all", (task,))
    found["LoRA, task loss"] = Way("lora", "answers", (task,))
    for out in TESTED:
        others = tuple(each for each in MIXED if each != out)
        found[f"instruction tuning, {out} held out"] = Way("lora", "all", others)
    return found | {"cross-encoder": Way("cross", "answers", (task,))}


@dataclass(frozen=True)
class Work:
    """The data, the base model and the questions that all ways share."""

    settings: Settings
    dataset: data.Dataset

    @cached_property
    def course(self) -> Course:
        return Course.of(self.dataset, STEPS)

    @cached_property
    def base(self) -> Model:
        return Model.load(self.settings)

    def training(self, tasks: Sequence[str], seed: int) -> list[Question]:
        """Return ``QUESTIONS`` questions, the same number of each task, in a random order."""
        random = np.random.default_rng(seed)
        asked = []
        for place, task in enumerate(tasks):
            pool = self.course.train["like" if task == "genre" else task]
            count = len(range(place, QUESTIONS, len(tasks)))
            for i in random.permutation(len(pool))[:count]:
                one = short(pool[i], random)
                asked.append(about_genre(one, self.course, random) if task == "genre" else one)
        return [asked[i] for i in random.permutation(len(asked))]

    def asked(self, stage: str, task: str) -> dict[int, Question]:
        """Return the questions of ``validation`` or ``test`` by user, always the same."""
        pool: dict[int, Question] = getattr(self.course, stage)[task]
        random = np.random.default_rng(0)
        n = CHECKED if stage == "validation" else TESTED[task] or len(pool)
        users = sorted(random.permutation(sorted(pool))[:n].tolist())
        return {user: short(pool[user], random) for user in users}

    def kept(self, name: str, asked: dict[int, Question], answer: Callable) -> pd.DataFrame:
        """Return a row per user from the answers of ``answer()``, or of the cache if it has them.

        ``answer`` returns how many numbers were trained, and the log-probabilities of each prompt.
        """

        def compute() -> dict[str, np.ndarray]:
            trained, rows = answer()
            return {"rows": np.array(rows), "trained": np.array(trained)}

        found = kept_rows(self.settings.cache_dir / "adapting" / f"{name}.npz", compute)
        table = placed(asked, found["rows"]).assign(trained=int(found["trained"]))
        print(f"{name}: place {table['place'].mean():.2f}, loss {table['loss'].mean():.3f}, "
              f"{time.process_time() / 60:.0f} minutes", flush=True)  # fmt: skip
        return table

    def trained(self, way: Way, rate: float, seed: int) -> Model:
        """Return the trained model; its state is kept."""
        make = {"cross": lambda: CrossEncoder.packaged(seed),
                "soft": lambda: self.base.with_soft_prompt(seed=seed),
                "lora": lambda: self.base.clone().with_lora(seed=seed)}  # fmt: skip
        model = make[way.kind]()
        prompts = [way.form(question) for question in self.training(way.tasks, seed)]
        how = Schedule(rate, 4, 5, seed, 4, way.among)
        name = f"{way.kind}, {way.among}, {' '.join(way.tasks)}, {rate}, seed {seed}"
        path = self.settings.cache_dir / "adapting" / f"{name}.pt"
        for done, loss in teach(model, prompts, how, path=path):
            if done % 32 == 0:
                print(f"  {name}: {done} questions, loss {loss:.3f}", flush=True)
        return model

    def answers(self, model: Model, prompts: Sequence[Prompt]) -> tuple[int, list[np.ndarray]]:
        """Return how many numbers of the model were trained, and its answers."""
        with torch.autocast(model.device.type, torch.bfloat16):
            rows = model.scores(prompts, 8)
        return 0 if model is self.base else model.parameters()[0], rows

    def measured(self, way: Way, rate: float, seed: int, stage: str, task: str) -> pd.DataFrame:
        """Train, unless it is done, and answer the questions of a stage."""
        asked = self.asked(stage, task)
        prompts = [way.form(question) for question in asked.values()]
        name = f"{stage} {task}, {way.kind}, {way.among}, {' '.join(way.tasks)}, {rate}, {seed}"
        return self.kept(
            name, asked, lambda: self.answers(self.trained(way, rate, seed), prompts)
        ).assign(rate=rate)

    @cached_property
    def rates(self) -> dict[str, float]:
        """Return each kind's rate with the lowest validation loss in ranking, with seed 0."""
        chosen = {}
        for kind, rates in RATES.items():
            way = next(each for each in ways("rank").values() if each.kind == kind)
            loss = [self.measured(way, r, 0, "validation", "rank")["loss"].mean() for r in rates]
            chosen[kind] = rates[int(np.argmin(loss))]
        return chosen


def placed(asked: dict[int, Question], rows: Sequence[np.ndarray]) -> pd.DataFrame:
    """Return ``userId``, the right answer's ``label``, place (ties stand before it) and loss.

    ``yes`` is the probability of the first answer.
    """
    labels = [worded(question).label or 0 for question in asked.values()]
    table = pd.DataFrame({"userId": list(asked), "label": labels})
    pairs = list(zip(rows, labels, strict=True))
    table["place"] = [int((row >= row[label]).sum()) for row, label in pairs]
    return table.assign(loss=[-row[label] for row, label in pairs],
                        yes=[np.exp(row[0]) for row, _ in pairs])  # fmt: skip


def untrained(work: Work, task: str) -> dict[str, pd.DataFrame]:
    """Return the answers of the base model to three wordings, and after 1, 4 and 8 examples.

    Each user sees one of three sets of examples, the first that holds no question of their own.
    """
    asked, found = work.asked("test", task), {}
    for wording in questions.WORDINGS:
        prompts = [worded(question, wording) for question in asked.values()]
        found[f"zero-shot, {wording}"] = work.kept(
            f"test {task}, zero-shot {wording}", asked, lambda p=prompts: work.answers(work.base, p)
        )
    random = np.random.default_rng(0)
    pool, owners = work.course.train[task], work.course.train_users[task]
    sets = random.permutation(len(pool))[: 3 * max(SHOTS)].reshape(3, -1)
    of = [next(s for s in np.roll(range(3), -(i % 3)) if u not in {owners[j] for j in sets[s]})
          for i, u in enumerate(asked)]  # fmt: skip

    def after(count: int) -> tuple[int, list[np.ndarray]]:
        rows: dict[int, np.ndarray] = {}
        for each, places in enumerate(sets):
            examples = [short(pool[i], np.random.default_rng(0)) for i in places[:count]]
            mine = [user for user, own in zip(asked, of, strict=True) if own == each]
            prompts = [worded(asked[user]) for user in mine]
            with torch.autocast(work.base.device.type, torch.bfloat16):
                shown = questions.shown(examples)
                rows |= zip(mine, scores_after(work.base, shown, prompts), strict=True)
        return 0, [rows[user] for user in asked]

    for count in SHOTS:
        found[f"{count} examples in context"] = work.kept(
            f"test {task}, {count} examples", asked, lambda n=count: after(n)
        )
    return found


def trivial(work: Work, task: str) -> dict[str, list[np.ndarray]]:
    """Return each user's scores of the answers in the orders that ask no language model."""
    asked, known = work.asked("test", task), work.course.protocol.parts.known
    titles, liked = known["movieId"].map(work.course.titles), known["rating"] >= LIKED
    count, whole = titles.value_counts(), liked.mean()
    if task == "rank":
        pools = [question.candidates for question in asked.values()]
        return {
            "popularity": [np.array([float(count.get(t, 0)) for t in pool]) for pool in pools],
            "retriever's order": [-np.arange(len(pool) * 1.0) for pool in pools],
        }
    by_user = liked.groupby(known["userId"]).mean()
    by_movie = (liked.groupby(titles).sum() + 5 * whole) / (count + 5)
    share = np.mean([float(q.truth or 0) >= LIKED for q in work.course.train["like"]])
    yes = {
        "always the majority's answer": [share] * len(asked),
        "user's mean": [by_user[user] for user in asked],
        "movie's mean": [by_movie.get(q.item, whole) for q in asked.values()],
    }
    return {name: [np.log([max(p, 1e-9), max(1 - p, 1e-9)]) for p in each]
            for name, each in yes.items()}  # fmt: skip


def main() -> None:
    """Ask, adapt and test in every way, seed after seed, and save what there is after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", action="store_true", help="pretrain the small model, no more")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads decides the last bits
    settings = Settings.from_env()
    work = Work(settings, data.locate(settings))
    print(work.dataset.describe(), flush=True)
    if options.base:
        course = Course.of(work.dataset)
        small = adapting.small(course)
        adapting.pretrain(small, course, adapting.EPOCHS)
        command = "python tools/experiments/11_adapting.py --base"
        folder = settings.data_dir if work.dataset.verified else settings.cache_dir
        adapting.save_base(small, folder / "weights" / "adapting_base.safetensors", command)
        return
    tables = []
    for task in TESTED:
        found = {way: placed(work.asked("test", task), rows).assign(trained=0, loss=np.nan)
                 for way, rows in trivial(work, task).items()} | untrained(work, task)  # fmt: skip
        tables += [rows.assign(task=task, way=way, seed=-1) for way, rows in found.items()]
    plan = [(seed, task, *each) for seed in SEEDS for task in TESTED for each in ways(task).items()]
    plan.sort(key=lambda each: (each[0] > 0 and len(each[3].tasks) > 1, each[0]))
    for seed, task, name, way in plan:  # further seeds of instruction tuning come last
        rows = work.measured(way, work.rates[way.kind], seed, "test", task)
        tables.append(rows.assign(task=task, way=name, seed=seed))
        table = pd.concat(tables)
        table["yes"] = table["yes"].where(table["task"] == "like")
        users = ["task", "way", "seed", "userId", "label", "place", "yes"]
        data.save_result(table[users].round(4), "11_users", work.dataset, settings)
        facts = table.groupby(["task", "way", "seed"], sort=False).agg(
            trained=("trained", "first"), rate=("rate", "first"), users=("userId", "size"),
            place=("place", "mean"), loss=("loss", "mean"),
        )  # fmt: skip
        data.save_result(facts.reset_index(), "11_adapting", work.dataset, settings)
        if (seed, task, name) == (0, "rank", "LoRA, task loss"):  # for the notebook
            command = "python tools/experiments/11_adapting.py"
            path = settings.data_dir / "weights" / "adapting_lora.safetensors"
            save_adapter(work.trained(way, work.rates["lora"], 0), path, command)


if __name__ == "__main__":
    main()
