"""python tools/experiments/13_positions.py asks the small LLM notebook 13's question in three ways.

It reads notebook 08's prompt for each user whose test item is among the 20 candidates of the
transition counts; its probabilities for the letters are the order. The table is
``data/results/13_positions.csv``; some ten minutes on one thread.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from experiment import begin, save
from tqdm import tqdm

from research.llamarec import requests_for
from research.verbalizer import CUE
from research.verbalizer_torch import Verbalizer

WAYS = {  # the seed that mixes the candidates, and what stands before the prompt's end
    "retriever's order": (None, ""),
    "mixed": (0, ""),
    "mixed, with the sentence": (0, " The order of the candidates is random and means nothing."),
}


if __name__ == "__main__":
    notebook, rows = begin("08", "lrurec_seed0"), []
    seen, lists, target = notebook.protocol.test
    ranker = Verbalizer.load(notebook.settings)
    for way, (seed, sentence) in WAYS.items():
        requests = requests_for(lists, seen, notebook.titles, target, seed)
        for user, (_, question) in tqdm(requests.items(), desc=way, mininterval=30):
            prompt = question.prompt()
            prompt = replace(prompt, text=prompt.text.removesuffix(CUE) + sentence + CUE)
            order = np.argsort(-ranker.scores([prompt])[0], kind="stable").tolist()
            rows.append((user, way, " ".join(map(str, order))))
    save(pd.DataFrame(rows, columns=["userId", "shown", "order"]), "13_positions")
