"""python tools/experiments/09_adapting.py makes 09_adapting.csv, 09_ranks.csv and 09_tasks.csv.

Pretrains the small model unless its weights are there (``--anew``: even then), adapts it in every
way, tests each, tunes it on all tasks, on all but one and on one alone; half an hour on one CPU
thread. With ``LLAMAREC_BASE_MODEL`` the ways of one task are compared on that model, with letters
for answers, as ``09_adapting_named.csv``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch

from helpers import data, metrics
from helpers.settings import Settings
from research import adapting, sequential, task_metrics
from research.adapting import FULL, LORA, SOFT, WAYS_ON, Model, Tuning
from research.protocol import RETRIEVER, shuffled_lists
from research.questions import LIKED, TASKS, Course, Prompt, Question, forms, with_examples
from research.task_metrics import Score, auc, interval, ndcg, rank_of, rmse, task_scores


@dataclass
class Record:
    """Collects a row per way to adapt, and each test user's rank of the right candidate."""

    course: Course
    rows: list[dict[str, Any]] = field(default_factory=list)
    ranks: list[pd.DataFrame] = field(default_factory=list)

    def add(
        self,
        task: str,
        way: tuple[str, str],
        model: Model,
        ask: Callable[[int, Question], Prompt],
        **training: float,
    ) -> None:
        """Answer the test users' questions of one task; ``way`` is its name and the prompt's.

        ``training``: ``seconds``, the ``epoch`` kept, ``questions`` (as often as each was read).
        """
        prompts = [ask(user, question) for user, question in self.course.test[task].items()]
        answers = model.scores(prompts)
        value, low, high = task_metrics.task_score(task, prompts, answers, self.course)
        checked = [ask(user, q) for user, q in self.course.validation[task].items()]
        trainable, parameters = model.parameters()
        row = {"task": task, "way": way[0], "prompt": way[1], "value": value, "low": low,
               "high": high, "users": len(self.course.protocol.test.target),
               "validation_loss": model.answer_loss(checked),
               "trainable": trainable if training else 0, "parameters": parameters,
               "seconds": 0.0, "epoch": 0, "questions": 0, **training}  # fmt: skip
        self.rows.append(row)
        print(f"{task:6}{way[0]:24}{way[1]:13}{value:.4f} [{low:.4f}, {high:.4f}]")
        if task == "rank":
            users = list(self.course.test[task])
            table = pd.DataFrame({"userId": users, "rank": rank_of(prompts, answers)})
            self.ranks.append(table.assign(way=way[0], prompt=way[1]))


def measure_ways(
    record: Record, base: Model, task: str = "rank", letters: bool = False, seed: int = 0
) -> None:
    """Adapt ``base`` to one task in every way that trains on this task alone, and test each.

    With ``letters`` candidates are answered by letter, and the document form is left out.
    """
    course = record.course
    ask, plain = forms(course, letters)
    if not letters:
        record.add(task, ("prompting", "document"), base, lambda _, q: plain(q))
    for shots in (0, 1, 4):

        def shot(user: int, question: Question, shots: int = shots) -> Prompt:
            examples = adapting.examples_for(course, task, user, shots, seed)
            return with_examples(question, examples, letters=letters)

        record.add(task, (f"prompting, {shots} shots", "instruction"), base, shot)
    examples = adapting.mixture(course, (task,), each=len(course.train["rank"]), seed=seed)
    runs = [
        ("prompt tuning", lambda: base.with_soft_prompt(seed=seed), Tuning(SOFT, seed=seed), ask),
        ("LoRA", lambda: base.clone().with_lora(dropout=0.0, seed=seed),
         Tuning(LORA, seed=seed), ask),
        ("full fine-tuning", base.clone, Tuning(FULL, dropout=0.2, seed=seed), ask),
    ]  # fmt: skip
    if task == "rank" and not letters:
        how = Tuning(2e-3, 4, dropout=0.1, seed=seed)
        runs.append(("full fine-tuning", base.clone, how, forms(course, letters=True)[0]))
    for name, make, how, form in runs:
        model, start = make(), time.perf_counter()
        validation = [form(question) for question in course.validation[task].values()]
        log = adapting.train(model, examples, form, how, validation)
        facts = {"seconds": time.perf_counter() - start, "epoch": int(log["validation"].argmin())}
        way = (name, "instruction" if form is ask else "letters")
        questions = how.epochs * len(examples)
        record.add(task, way, model, lambda _, q, form=form: form(q), **facts, questions=questions)


def trivial_tasks(course: Course) -> dict[str, dict[str, Score]]:
    """Return what needs no language model, per task: popularity, transition counts, mean ratings.

    The mean row predicts the overall mean plus the user's and the movie's shrunken deviations.
    """
    seen, lists, target = course.protocol.test
    users, known = len(target), course.protocol.parts.known
    counts = sequential.unseen(sequential.transitions(seen, RETRIEVER), seen)
    popular = sequential.unseen(sequential.popularity(seen).astype(float), seen)
    popularity = pd.Series(seen.counts, seen.items)
    by_count = lists.assign(score=-lists["movieId"].map(popularity))
    by_count = by_count.sort_values(["userId", "score", "movieId"])
    by_count["rank"] = by_count.groupby("userId").cumcount() + 1
    mean = known["rating"].mean()
    by_user = (known["rating"] - mean).groupby(known["userId"])
    of_user = by_user.sum() / (by_user.size() + 5)
    by_item = (known["rating"] - mean - known["userId"].map(of_user)).groupby(known["movieId"])
    of_item = by_item.sum() / (by_item.size() + 5)
    guess = mean + target["userId"].map(of_user) + target["movieId"].map(of_item).fillna(0)

    def within(ordered: pd.DataFrame):
        return metrics.score_table(ordered, target)["NDCG@10"].to_numpy()

    def among_all(scores) -> Score:
        return interval(ndcg(sequential.target_ranks(scores, seen, target), users))

    mixed = sum(within(shuffled_lists(lists, draw)) for draw in range(100)) / 100
    liked = target["rating"] >= LIKED
    return {
        "random": {"rank": interval(mixed), "like": (0.5, 0.5, 0.5)},
        "overall mean": {"rate": rmse([mean] * users, target["rating"])},
        "popularity": {"rank": interval(within(by_count)), "next": among_all(popular)},
        "transition counts": {"rank": interval(within(lists)), "next": among_all(counts)},
        "user and movie means": {"rate": rmse(guess, target["rating"]), "like": auc(guess, liked)},
    }


def measure_tasks(record: Record, base: Model, seed: int = 0) -> pd.DataFrame:
    """Tune on all tasks, on all but one and on one alone; test every task."""
    course = record.course
    ask, plain = forms(course)
    scores = [(name, "none", by_task) for name, by_task in trivial_tasks(course).items()]
    scores.append(("nothing", "document", task_scores(base, course, plain)))
    scores.append(("nothing", "instruction", task_scores(base, course, ask)))
    all_but_one = [tuple(task for task in TASKS if task != out) for out in TASKS]
    for tasks in (TASKS, *all_but_one, *((task,) for task in TASKS)):
        start = time.perf_counter()
        model = adapting.tune_on_instructions(course, base, tasks, ask, seed)
        facts = {"seconds": time.perf_counter() - start, "epoch": 3}
        scores.append((" ".join(tasks), "instruction", task_scores(model, course, ask)))
        scores.append((" ".join(tasks), "document", task_scores(model, course, plain)))
        if tasks == TASKS:
            way, questions = (
                ("instruction tuning", "instruction"),
                3 * adapting.PER_EPOCH * len(TASKS),
            )
            for task in WAYS_ON:
                record.add(task, way, model, lambda _, q: ask(q), **facts, questions=questions)
    rows = [(*by, task, *at) for *by, by_task in scores for task, at in by_task.items()]
    names = ["tuned_on", "prompt", "task", "value", "low", "high"]
    return pd.DataFrame(rows, columns=pd.Index(names))


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain the small model or load the named one, adapt it in every way, save the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--anew", action="store_true", help="pretrain, even if weights are there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the number of threads decides the last bits
    settings, seed = Settings.from_env(), options.seed
    dataset = data.locate(settings)
    print(dataset.describe())
    course = Course.of(dataset)
    record, named = Record(course), bool(settings.llamarec_base_model)
    path = adapting.weights_path(settings, dataset)
    if named:
        base = Model.load(settings)
    elif path.is_file() and not options.anew:
        base = adapting.load_base(course, path)
    else:
        base = adapting.small(course, seed=seed)
        adapting.pretrain(base, course, adapting.EPOCHS, seed=seed)
        command = f"python tools/experiments/09_adapting.py --anew --seed {seed}"
        adapting.save_base(base, path, command)
    for task in WAYS_ON:
        measure_ways(record, base, task, letters=named, seed=seed)
    if named:
        data.save_result(pd.DataFrame(record.rows), "09_adapting_named", dataset, settings)
        return
    table = measure_tasks(record, base, seed)
    data.save_result(pd.DataFrame(record.rows), "09_adapting", dataset, settings)
    ranks = pd.concat(record.ranks)[["way", "prompt", "userId", "rank"]]
    data.save_result(ranks, "09_ranks", dataset, settings)
    data.save_result(table, "09_tasks", dataset, settings)


if __name__ == "__main__":
    main()
