"""python tools/experiments/11_adapting.py makes 11_adapting.csv and 11_users.csv for notebook 11.

Adapts one pretrained model (SmolLM2-135M-Instruct, or what ``LLAMAREC_BASE_MODEL`` names) to two
tasks in every way, with the same questions, three times. Rates are chosen on validation. It can be
stopped and goes on where it was; an hour on one CPU thread. ``--base``: pretrain the small model.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace as Work
from typing import NamedTuple

import numpy as np
import pandas as pd
from experiment import begin, save
from tqdm import tqdm

from research import adapting, questions
from research.adapting import CrossEncoder, Model
from research.language_model import Prompt, Schedule, save_adapter, teach
from research.questions import LIKED, WORDINGS, Course, Question, beside, short, shown, worded
from research.training import kept_rows

COMMAND = "python tools/experiments/11_adapting.py"
QUESTIONS = 96  # that each training reads, once
SHOTS = (1, 4, 8)
TESTED = {"rank": None, "like": 150}  # test users, drawn at random; None: all that have a question
RATES = {"soft": (1e-2, 5e-2), "lora": (1e-3, 3e-3), "cross": (5e-5, 2e-4)}
MIXED = ("rank", "like", "rate", "genre")
Asked = dict[int, Question]


class Way(NamedTuple):
    """A kind of training, among what its loss compares, and the tasks of its questions."""

    kind: str
    among: str
    tasks: tuple[str, ...]

    def prompts(self, asked: Iterable[Question]) -> list[Prompt]:
        return [beside(each) if self.kind == "cross" else worded(each) for each in asked]


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


def training(course: Course, tasks: Sequence[str], seed: int) -> list[Question]:
    """Return ``QUESTIONS`` questions, the same number of each task, in a random order."""
    random, drawn = np.random.default_rng(seed), []
    for place, task in enumerate(tasks):
        pool = course.train["like" if task == "genre" else task]
        for i in random.permutation(len(pool))[: len(range(place, QUESTIONS, len(tasks)))]:
            each = short(pool[i], random)
            drawn.append(questions.about_genre(each, course, random) if task == "genre" else each)
    return [drawn[i] for i in random.permutation(len(drawn))]


def asking(course: Course, stage: str, task: str) -> Asked:
    """Return the questions of ``validation`` or ``test`` by user, always the same."""
    pool, random = getattr(course, stage)[task], np.random.default_rng(0)
    n = 60 if stage == "validation" else TESTED[task]
    users = sorted(random.permutation(sorted(pool))[:n].tolist())
    return {user: short(pool[user], random) for user in users}


def placed(asked: Asked, rows: Sequence[np.ndarray]) -> pd.DataFrame:
    """Return the right answer's place (ties stand before it), its loss, and P(first answer)."""
    labels = [worded(question).label or 0 for question in asked.values()]
    pairs = zip(rows, labels, strict=True)
    facts = [((row >= row[label]).sum(), -row[label], np.exp(row[0])) for row, label in pairs]
    table = pd.DataFrame(facts, columns=["place", "loss", "yes"])
    return table.assign(userId=list(asked), label=labels, trained=0)


def trivial(course: Course, task: str, asked: Asked) -> dict[str, list[np.ndarray]]:
    """Return the scores of the answers in the orders that ask no language model."""
    known = course.protocol.parts.known
    titles, liked = known["movieId"].map(course.titles), known["rating"] >= LIKED
    count, whole = titles.value_counts(), liked.mean()
    if task == "rank":
        counts = [count.reindex(q.candidates, fill_value=0).to_numpy() for q in asked.values()]
        return {"popularity": counts, "retriever's order": [-np.arange(len(c)) for c in counts]}
    by_user = liked.groupby(known["userId"]).mean()
    by_movie = (liked.groupby(titles).sum() + 5 * whole) / (count + 5)
    share = np.mean([float(question.truth or 0) >= LIKED for question in course.train["like"]])
    yes = {
        "always the majority's answer": [share] * len(asked),
        "user's mean": by_user[list(asked)],
        "movie's mean": [by_movie.get(question.item, whole) for question in asked.values()],
    }
    return {way: [np.log(np.clip([p, 1 - p], 1e-9, 1)) for p in yes[way]] for way in yes}


def untrained(course: Course, task: str, asked: Asked, base: Model) -> dict[str, list[np.ndarray]]:
    """Return the answers of the base model to three wordings, and after 1, 4 and 8 examples."""
    pool, owners = course.train[task], np.array(course.train_users[task])
    sets = np.random.default_rng(0).permutation(len(pool))[: 3 * max(SHOTS)].reshape(3, -1)
    # Each user sees one of three sets, the first in turn that holds no question of their own.
    turns = {user: np.roll(range(3), -(i % 3)) for i, user in enumerate(asked)}
    of = {u: next(s for s in turn if u not in owners[sets[s]]) for u, turn in turns.items()}
    zero = {way: [worded(question, way) for question in asked.values()] for way in WORDINGS}
    found = {f"zero-shot, {way}": base.scores(prompts, 8) for way, prompts in zero.items()}
    for count in SHOTS:
        rows: dict[int, np.ndarray] = {}
        for number, places in enumerate(sets):
            examples = [short(pool[i], np.random.default_rng(0)) for i in places[:count]]
            mine = [user for user in asked if of[user] == number]
            prompts = [worded(asked[user]) for user in mine]
            rows |= zip(mine, adapting.scores_after(base, shown(examples), prompts), strict=True)
        found[f"{count} examples in context"] = [rows[user] for user in asked]
    return found


def folder(work: Work) -> Path:
    """Return where finished parts are kept: each base model and data set has its own."""
    base = Path(work.settings.llamarec_base_model or "packaged").name
    return work.settings.cache_dir / "adapting" / work.dataset.name / base


def trained(work: Work, way: Way, rate: float, seed: int) -> Model:
    others = {"cross": CrossEncoder.packaged, "soft": work.llm.with_soft_prompt}
    model = (others.get(way.kind) or work.llm.clone().with_lora)(seed=seed)
    prompts = way.prompts(training(work.course, way.tasks, seed))
    how = Schedule(rate, 4, 5, seed, 4, way.among)
    path = folder(work) / f"{way} {rate} {seed}.pt"
    list(tqdm(teach(model, prompts, how, path=path), path.stem, mininterval=30))
    return model


def answers(work: Work, stage: str, task: str, way: Way, rate: float, seed: int) -> pd.DataFrame:
    """Return a row for each user of a stage; the rows are kept."""

    def compute() -> dict:
        asked, model = asking(work.course, stage, task), trained(work, way, rate, seed)
        with model.autocast():
            rows = model.scores(way.prompts(asked.values()), 8)
        return dict(placed(asked, rows).assign(trained=model.parameters()[0]))

    path = folder(work) / f"{stage} {task} {way} {rate} {seed}.npz"
    return pd.DataFrame(kept_rows(path, compute))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", action="store_true", help="pretrain the small model, no more")
    options, work = parser.parse_args(), begin("11", "adapting_base")
    settings, course, tables, rates = work.settings, work.course, [], {}
    weights = (settings.data_dir if work.dataset.verified else settings.cache_dir) / "weights"
    if options.base:
        small = adapting.small(whole := Course.of(work.dataset))
        adapting.pretrain(small, whole, adapting.EPOCHS)
        adapting.save_base(small, weights / "adapting_base.safetensors", f"{COMMAND} --base")
        raise SystemExit
    work.llm = Model.load(settings)
    for task in TESTED:
        asked = asking(course, "test", task)
        quiet = trivial(course, task, asked)
        with work.llm.autocast():
            found = quiet | untrained(course, task, asked, work.llm)
        for way, rows in found.items():
            table = placed(asked, rows).assign(task=task, way=way, seed=-1, rate=np.nan)
            tables.append(table.assign(loss=np.nan) if way in quiet else table)
    for kind, tried in RATES.items():  # the best on validation in ranking, with seed 0
        way = next(each for each in ways("rank").values() if each.kind == kind)
        losses = [answers(work, "validation", "rank", way, rate, 0).loss.mean() for rate in tried]
        rates[kind] = tried[int(np.argmin(losses))]
    plan = [(seed, task, *w) for seed in range(3) for task in TESTED for w in ways(task).items()]
    plan.sort(key=lambda each: each[0] > 0 and len(each[3].tasks) > 1)
    for seed, task, name, way in plan:  # further seeds of instruction tuning come last
        facts = {"task": task, "way": name, "seed": seed, "rate": rates[way.kind]}
        tables.append(answers(work, "test", task, way, rates[way.kind], seed).assign(**facts))
        print(*facts.values(), f"place {tables[-1].place.mean():.2f}", flush=True)
    table = pd.concat(tables).assign(yes=lambda t: t["yes"].where(t["task"] == "like"))
    users = ["task", "way", "seed", "userId", "label", "place", "yes"]
    save(table[users].round(4), "11_users")
    how = {"trained": "first", "rate": "first", "userId": "size", "place": "mean", "loss": "mean"}
    facts = table.groupby(users[:3], sort=False).agg(how).rename(columns={"userId": "users"})
    save(facts.reset_index(), "11_adapting")
    lora = trained(work, ways("rank")["LoRA, task loss"], rates["lora"], 0)
    save_adapter(lora, weights / "adapting_lora.safetensors", COMMAND)
