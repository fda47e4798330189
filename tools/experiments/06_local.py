"""python tools/experiments/06_local.py asks the small local LLM notebook 06's first question.

It sees what the notebook sends for each of its 240 users, is asked for one letter, and its
probabilities for the letters are the order. Some seconds a user; answers are stored as they come,
so a run that was stopped goes on. The table is ``data/results/06_local.csv``.
"""

import dataclasses

import pandas as pd
from experiment import begin, save
from tqdm import tqdm

from helpers import llm
from research import verbalizer

ONE_LETTER = """\
Some of this viewer's ratings are hidden; a candidate may or may not be among them. Which of the {n}
candidates is the likeliest to be among the hidden ratings with at least 4 of 5 stars? Answer with
its letter, one letter and nothing else."""


if __name__ == "__main__":
    notebook = begin("06", "client = llm.connect")
    client = llm.connect(dataclasses.replace(notebook.settings, llm_mode="local"), local=True)
    rows, options = [], {"max_completion_tokens": 1}  # else the local server writes on
    for user, mine in tqdm(notebook.offered["liked"].items(), desc="users"):
        shown, messages = notebook.request(user, notebook.by_time, mine, rules=ONE_LETTER)
        answer = verbalizer.letter_distribution(client, messages, len(shown), **options)
        rows.append((user, " ".join(str(shown[place]) for place in answer.order)))
    save(pd.DataFrame(rows, columns=["userId", "order"]), "06_local")
