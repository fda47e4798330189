"""LlamaRec's second stage (Yue et al. 2023, arXiv 2311.02089): a pretrained LLM ranks by letter.

LRURec proposes 20 candidates, the prompt holds their titles, and LoRA teaches a causal LM that the
next token is the letter of the movie that came next. ``tools/experiments/08_llamarec.py`` trains
the adapters and makes the tables of notebook 08.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from helpers import metrics, prompts
from research import content, evaluation, neural, sequential
from research.language_model import Prompt, Schedule, teach
from research.protocol import CANDIDATES
from research.sequence_models import Config, Network
from research.sequential import Interactions
from research.verbalizer import MAX_HISTORY
from research.verbalizer_torch import LetterQuestion, Verbalizer

Requests = dict[int, tuple[list[int], LetterQuestion]]
"""For each user the movieIds in the order shown, and the prompt."""


def retriever_lists(network: Network, seen: Interactions, n: int = CANDIDATES) -> pd.DataFrame:
    """Return the ``n`` best unseen items of each user (``userId, rank, movieId, score``)."""
    scores = sequential.unseen(neural.score_matrix(network, seen), seen)
    return sequential.top_lists(scores, seen, n)


def early_retriever(train: pd.DataFrame, items: np.ndarray, steps: int, path: Path) -> Network:
    """Return LRURec trained without each user's last ``steps`` items of ``train``.

    Its lists for those items are then as good as lists for the future are, no better. The last item
    it knows serves as its validation.
    """
    seen, target = sequential.steps_back(train, items, steps + 1)[-1]
    return neural.train(seen, target, Config.of("lrurec", seed=0), path).network


def training_questions(
    network: Network,
    train: pd.DataFrame,
    items: np.ndarray,
    titles: Mapping[int, str],
    steps: int,
    what: str = "title",
) -> list[LetterQuestion]:
    """Return questions on each user's last ``steps`` items, candidates in the retriever's order.

    Only those whose item is among the retriever's candidates, which know only what came before.
    """
    questions = []
    for seen, target in sequential.steps_back(train, items, steps):
        known = network.trained.cpu().numpy()[seen.column]
        whole = np.bincount(seen.row[~known], minlength=len(seen.users)) == 0
        rows = pd.DataFrame({"userId": seen.users[seen.row], "movieId": seen.items[seen.column]})
        seen = Interactions.of(rows[np.isin(seen.row, np.flatnonzero(whole))], items)
        lists = retriever_lists(network, seen)
        requests = requests_for(lists, seen, titles, target, what=what)
        questions += [question for _, question in requests.values()]
    return questions


def requests_for(
    lists: pd.DataFrame,
    seen: Interactions,
    titles: Mapping[int, str],
    target: pd.DataFrame | None = None,
    shuffle: int | None = None,
    last: int = MAX_HISTORY,
    what: str = "title",
) -> Requests:
    """Return each user's candidates in the order of ``lists`` and the prompt that shows them.

    ``titles`` holds ``what`` stands for a movie; the ``last`` ones are shown. ``shuffle`` is a seed
    that mixes the candidates. With a ``target`` (``userId, movieId``) the prompt knows its label,
    and users whose target is no candidate are left out.
    """
    wanted = {} if target is None else dict(zip(target["userId"], target["movieId"], strict=True))
    histories = dict(zip(seen.users.tolist(), seen.histories(), strict=True))
    requests: Requests = {}
    groups = lists.groupby("userId")["movieId"].agg(list)
    for user, shown in zip(groups.index.tolist(), groups, strict=True):
        if shuffle is not None:
            shown = prompts.shuffled(shown, shuffle + user)
        if target is not None and wanted.get(user) not in shown:
            continue
        watched = seen.items[histories[user][-last:]].tolist()
        old, new = (tuple(titles[item] for item in items) for items in (watched, shown))
        label = shown.index(wanted[user]) if user in wanted else None
        requests[user] = shown, LetterQuestion(old, new, label, what)
    return requests


def forms(
    movies: pd.DataFrame, tags: pd.DataFrame, held_out: pd.DataFrame, limit: int = 100
) -> dict[str, dict[int, str]]:
    """Return by name four ways to write a movie, each a text by movieId, cut at ``limit``.

    Tags that users gave to their own movies of ``held_out`` are left out.
    """

    def short(text: str) -> str:  # a list of words loses its last parts
        return text if len(text) <= limit else text[:limit].rpartition(", ")[0] or text[:limit]

    ids, genres = movies["movieId"], content.item_texts(movies)
    texts = {
        "number": pd.Series([f"movie {item}" for item in ids], ids),
        "title": movies.set_index("movieId")["title"],
        "title, genres": genres.map(short),
        "title, genres, tags": content.item_texts(movies, tags, held_out).map(short),
    }
    return {what: {int(i): str(text) for i, text in each.items()} for what, each in texts.items()}


def with_random_negatives(
    question: LetterQuestion, titles: Sequence[str], random: np.random.Generator
) -> LetterQuestion:
    """Return the question with all other candidates replaced by random movies, mixed.

    The authors train like this: 19 random movies beside the one that came next.
    """
    assert question.label is not None
    own = question.candidates[question.label]
    drawn = [titles[int(i)] for i in random.permutation(len(titles))[:60]]
    others = [title for title in drawn if title not in {own, *question.history}]
    names = (own, *others[: len(question.candidates) - 1])
    mixed = replace(question, candidates=names, label=0)
    return mixed.permuted(random.permutation(len(names)).tolist())


def train(
    ranker: Verbalizer, questions: Sequence[LetterQuestion], how: Schedule | None = None, **options
) -> Iterator[tuple[int, float]]:
    """Train what is trainable on the letters; see :func:`research.language_model.teach`.

    The loss is that of the label's token over the whole vocabulary; no other token counts.
    """
    return teach(ranker, [question.prompt() for question in questions], how, **options)


def letter_logs(ranker: Verbalizer, requests: Requests) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each user and the log-probabilities of the candidates among themselves, as shown."""
    for user, (_, question) in requests.items():
        with ranker.autocast():
            (row,) = ranker.scores([question.prompt()])
        yield user, row


WATCHED = "Movies that a viewer watched, oldest first:\n"


class TitleModel(Verbalizer):
    """A model that learns to write the titles that viewers watched, one a line, in order."""

    def loss(self, batch: Sequence[Prompt], among: str = "all") -> Tensor:
        """Return the mean cross-entropy of all tokens of each prompt but the first."""
        rows = [torch.tensor([self.tokens(prompt.text)]).to(self.device) for prompt in batch]
        pairs = ((self.model(row).logits[0, :-1].float(), row[0, 1:]) for row in rows)
        return torch.stack([cross_entropy(*pair) for pair in pairs]).mean()


def stretches(seen: Interactions, titles: Mapping[int, str], length: int = 24) -> list[Prompt]:
    """Return each user's history in pieces of ``length`` titles; a shorter rest is left out."""
    pieces = []
    for watched in seen.histories():
        names = [titles[item] for item in seen.items[watched].tolist()]
        pieces += [names[i : i + length] for i in range(0, len(names) - length + 1, length)]
    return [Prompt(WATCHED + "".join(f"{name}\n" for name in piece), ()) for piece in pieces]


def title_logs(ranker: Verbalizer, requests: Requests) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each user and each candidate's mean log-likelihood a token, after the history.

    No letters: titles stand one a line, and each candidate's follows those of the history.
    """
    ranker.model.eval()
    for user, (_, question) in requests.items():
        start = WATCHED + "\n".join(question.history) + "\n"
        prefix = ranker.tokens(start)
        ends = [ranker.tokens(start + title + "\n")[len(prefix) :] for title in question.candidates]
        values = []
        with torch.inference_mode(), ranker.autocast():
            core = ranker.model(torch.tensor([prefix]).to(ranker.device), use_cache=True)
            past, first = core.cache, core.logits[0, -1]
            for end in ends:
                ids = torch.tensor([end]).to(ranker.device)
                logits = ranker.model(ids, cache=past, use_cache=True).logits[0]
                past.crop(-len(end))
                rows = torch.log_softmax(torch.cat([first[None], logits[:-1]]).double(), 1)
                values.append(float(rows[torch.arange(len(end)), ids[0]].mean()))
        yield user, np.array(values)


def own_order(requests: Requests) -> dict[int, np.ndarray]:
    """Return log-probabilities that keep each user's candidates in the order shown."""
    return {user: -np.arange(len(shown) * 1.0) for user, (shown, _) in requests.items()}


def blended(logs: Mapping[int, np.ndarray], weight: float) -> dict[int, np.ndarray]:
    """Return scores that mix the order shown and the model's order of each user by mean rank.

    ``weight`` is that of the model, from 0 to 1; see ``research.evaluation.blend``.
    """
    mixed = {}
    for user, values in logs.items():
        shown = list(range(len(values)))
        order = evaluation.blend(shown, np.argsort(-values, kind="stable").tolist(), weight)
        mixed[user] = -np.argsort(order).astype(float)
    return mixed


def inside(requests: Requests, logs: Mapping[int, np.ndarray]) -> pd.DataFrame:
    """Return for each user whose label is known the rank of the right candidate and its ``loss``.

    Ties go to the candidate that is shown first. The columns are ``userId, rank, loss``, NDCG@10
    and Recall@10.
    """
    rows = []
    for user, values in logs.items():
        label = requests[user][1].label
        if label is None:
            continue
        order = np.argsort(-values, kind="stable").tolist()
        rows.append((user, order.index(label) + 1, -float(values[label])))
    table = pd.DataFrame(rows, columns=pd.Index(["userId", "rank", "loss"]))
    lists = table.assign(movieId=0)
    scores = metrics.score_table(lists, lists, (10,)).reindex(table["userId"])
    return table.assign(**{str(name): scores[name].to_numpy() for name in scores})
