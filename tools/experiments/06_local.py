"""python tools/experiments/06_local.py asks the small local LLM notebook 06's first question.

SmolLM2-135M-Instruct (:mod:`helpers.local_model`) sees the history and the candidates that the
notebook sends for each of its 240 users, is asked for one letter, and its probabilities for the
letters are the order (:mod:`research.verbalizer`). Answers are stored as they come, so a run that
was stopped goes on; the table is ``data/results/06_local.csv``. Some seconds a user.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from tqdm import tqdm

from helpers import als, candidates, data, llm, prompts, ranking
from helpers.settings import Settings
from helpers.spark import close_spark, get_spark
from research import verbalizer
from research.evaluation import history_prompt

SEED, USERS, N_CANDIDATES, HISTORY = 0, 240, 20, 20  # as in the notebook
LIKED_FROM = 4.0
ONE_LETTER = """\
Some of this viewer's ratings are hidden; a candidate may or may not be among them. Which of the {n}
candidates is the likeliest to be among the hidden ratings with at least 4 of 5 stars? Answer with
its letter, one letter and nothing else."""


def questions(dataset: data.Dataset, settings: Settings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return training ratings by time, and the users' candidates (``userId, rank, movieId``)."""
    spark = get_spark(settings)
    parts = data.split(data.load(spark, dataset).ratings, seed=SEED)
    train, validation, test = (part.toPandas() for part in parts)
    fitted = als.make_als(32, 0.2, seed=SEED, implicit=True, alpha=0.5).fit(parts[0].cache())
    recommender = candidates.Recommender(
        als.factors(fitted), train, seen=pd.concat([train, validation])
    )
    users = np.unique(test.loc[test["rating"] >= LIKED_FROM, "userId"])
    drawn = np.random.default_rng(SEED).choice(users, min(USERS, len(users)), replace=False)
    lists = recommender.recommend(sorted(drawn.tolist()), N_CANDIDATES)
    close_spark(spark)
    return train.sort_values(["userId", "timestamp", "movieId"]), lists


def main() -> None:
    """Ask for every user and save the orders."""
    settings = dataclasses.replace(Settings.from_env(), llm_mode="local")
    dataset = data.locate(settings)
    movies = data.load_pandas(dataset, "movies").set_index("movieId")
    train, lists = questions(dataset, settings)
    client, rows = llm.connect(settings, local=True), []
    for user, mine in tqdm(lists.groupby("userId")["movieId"], desc="users"):
        history = train.loc[train["userId"] == user].tail(HISTORY).join(movies, on="movieId")
        shown = prompts.shuffled(mine, seed=user)
        letters = ranking.letters(len(shown))
        messages = history_prompt(history, letters, movies.loc[shown], rules=ONE_LETTER)
        # Without this limit the local server writes on after the letter.
        answer = verbalizer.letter_distribution(
            client, messages, len(shown), max_completion_tokens=1
        )
        order = " ".join(str(shown[place]) for place in answer.order)
        rows.append((user, answer.path, answer.covered, answer.mass, order))
    table = pd.DataFrame(rows, columns=pd.Index(["userId", "path", "covered", "mass", "order"]))
    print(table["path"].value_counts().to_string())
    print(data.save_result(table, "06_local", dataset, settings))


if __name__ == "__main__":
    main()
