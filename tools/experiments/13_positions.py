"""python tools/experiments/13_positions.py asks the small LLM notebook 13's question in three ways.

SmolLM2-135M-Instruct reads notebook 08's prompt for each user whose test item is among the 20
candidates of the transition counts: in the retriever's order, mixed as in notebook 06, and mixed
with the sentence that the order means nothing. Its probabilities for the letters are the order. The
table is ``data/results/13_positions.csv``; some ten minutes on one thread.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from helpers import data
from helpers.settings import Settings
from research import llamarec
from research.language_model import Prompt
from research.protocol import Protocol
from research.verbalizer import CUE
from research.verbalizer_torch import LetterQuestion, Verbalizer, title_map

SENTENCE = " The order of the candidates is random and means nothing."


def prompt(question: LetterQuestion, sentence: str) -> Prompt:
    """Return the question's prompt with a sentence before its end."""
    plain = question.prompt()
    return Prompt(plain.text.removesuffix(CUE) + sentence + CUE, plain.answers, plain.label)


def ranked(
    ranker: Verbalizer, requests: llamarec.Requests, way: str, sentence: str = ""
) -> Iterator[dict]:
    """Yield a row for each user: where the test item stood and came out, and the order of slots."""
    for user, (_, question) in tqdm(requests.items(), desc=way, mininterval=30):
        (logs,) = ranker.scores([prompt(question, sentence)])
        order = np.argsort(-logs, kind="stable").tolist()
        assert question.label is not None
        rank, slots = order.index(question.label) + 1, " ".join(map(str, order))
        row = {"userId": user, "shown": way, "slot": question.label, "rank": rank}
        yield row | {"order": slots}


def main() -> None:
    """Ask for every user in every way and save the orders that come back."""
    torch.set_num_threads(1)  # the number of threads decides the last bits
    settings = Settings.from_env()
    dataset = data.locate(settings)
    print(dataset.describe())
    protocol = Protocol.of(data.load_pandas(dataset, "ratings"))
    titles, stage = title_map(data.load_pandas(dataset, "movies")), protocol.test
    ask = [stage.lists, stage.seen, titles, stage.target]
    plain, mixed = (llamarec.requests_for(*ask, shuffle=seed) for seed in (None, 0))
    ways = {
        "retriever's order": (plain, ""),
        "mixed": (mixed, ""),
        "mixed, with the sentence": (mixed, SENTENCE),
    }
    ranker, rows = Verbalizer.load(settings), []
    for way, (requests, sentence) in ways.items():
        rows += ranked(ranker, requests, way, sentence)
    table = pd.DataFrame(rows)
    print(table.groupby("shown")["rank"].describe())
    print(data.save_result(table, "13_positions", dataset, settings))


if __name__ == "__main__":
    main()
