"""The verbalizer with a model on this machine: one forward pass ranks, and training teaches it to.

The model that ``LLAMAREC_BASE_MODEL`` names, tuned with LoRA as LlamaRec does (Yue et al. 2023,
arXiv 2311.02089), or a small one of the Llama architecture, not pretrained on text, which shows the
mechanism. ``python tools/experiments/07_verbalizer.py`` trains it and records what it learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from helpers import prompts, ranking
from research import sequential, verbalizer
from research.language_model import LanguageModel, Prompt, small_llama
from research.protocol import CANDIDATES, candidate_lists
from research.sequential import Interactions
from research.training import Training, fit

TITLE_LENGTHS = (5, 10, 15, 20, 25, 30, 35, 40)
"""Tokens of a title in :func:`efficiency`."""


@dataclass(frozen=True)
class LetterQuestion:
    """What one user's prompt is made of: titles, oldest first, and candidates in the order shown.

    ``label`` is the position of the candidate that came next, where it is known.
    """

    history: tuple[str, ...]
    candidates: tuple[str, ...]
    label: int | None = None

    def text(self) -> str:
        """Return the prompt; the next token is the letter."""
        return verbalizer.as_text(verbalizer.letter_prompt(self.history, self.candidates))

    def prompt(self) -> Prompt:
        """Return the prompt with its letters as answers."""
        return Prompt(self.text(), tuple(ranking.letters(len(self.candidates))), self.label)

    def permuted(self, order: Sequence[int]) -> LetterQuestion:
        """Show the candidates in another order; the label follows its movie."""
        label = None if self.label is None else list(order).index(self.label)
        return LetterQuestion(self.history, tuple(self.candidates[i] for i in order), label)


class Verbalizer(LanguageModel):
    """A causal LM whose next token, one of the letters, says which candidate came next."""

    cue, gap, side = LetterQuestion(("x",), ("y",)).text(), "", "left"

    def __init__(self, model: Any, tokenizer: Any, name: str, letters: int = CANDIDATES) -> None:
        """Find the token of each letter; see :meth:`answer_ids` for the errors."""
        super().__init__(model, tokenizer, name)
        self.letter_ids = self.answer_ids(tuple(ranking.letters(letters)))

    def encode(self, question: LetterQuestion) -> list[int]:
        """Return the tokens of a prompt."""
        return self.tokens(question.text())

    def probabilities(self, batch: Sequence[LetterQuestion], size: int = 32) -> list[np.ndarray]:
        """Return each prompt's distribution over its candidates, in the order shown.

        The model's probabilities of the letters, scaled to sum 1. ``size`` prompts share a pass.
        """
        return [np.exp(row) for row in self.scores([each.prompt() for each in batch], size)]


def small_tokenizer(titles: Sequence[str], letters: int = CANDIDATES) -> Any:
    """Return a tokenizer trained from ``titles``, made for short prompts.

    Each title, each fixed sentence of the prompt and each letter is one token; other text falls
    apart into pieces of bytes (BPE). A real LLM's tokenizer knows no whole titles.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        show_progress=False,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(titles, trainer)
    fixed = [verbalizer.SYSTEM + "\n\n" + verbalizer.HISTORY_HEAD, verbalizer.CANDIDATES_HEAD]
    fixed += [verbalizer.CANDIDATES_END + verbalizer.ONE_LETTER + verbalizer.CUE]
    # A title or "(A)" takes the white space before it along.
    lines = [f"({letter})" for letter in ranking.letters(letters)]
    lines += sorted({prompts.quote(title) for title in titles})
    whole = [AddedToken(text, normalized=False) for text in fixed]
    whole += [AddedToken(text, normalized=False, lstrip=True) for text in lines]
    core.add_tokens(whole)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


def small(
    titles: Sequence[str],
    *,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    letters: int = CANDIDATES,
    seed: int = 0,
) -> Verbalizer:
    """Return an untrained model of the Llama architecture with a tokenizer from ``titles``."""
    tokenizer = small_tokenizer(titles, letters)
    torch.manual_seed(seed)
    model = small_llama(
        len(tokenizer),
        hidden,
        layers,
        heads,
        max_position_embeddings=4096,
        initializer_range=hidden**-0.5 / 2,
        attention_dropout=0.1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    return Verbalizer(model, tokenizer, "the small model", letters)


def title_map(movies: pd.DataFrame) -> dict[int, str]:
    """Return titles by movieId."""
    return dict(zip(movies["movieId"].tolist(), movies["title"].tolist(), strict=True))


def prompts_for(
    lists: pd.DataFrame,
    seen: Interactions,
    titles: Mapping[int, str],
    targets: pd.DataFrame | None = None,
    *,
    seed: int = 0,
) -> dict[int, tuple[list[int], LetterQuestion]]:
    """Return for each user the movieIds in the order shown, and the prompt.

    ``lists`` are the candidates (``userId, rank, movieId``) from ``seen``, shuffled by ``seed`` so
    that no place says what the retriever thinks. ``targets`` is what came next (``userId,
    movieId``), where it is known; users whose target is no candidate are left out.
    """
    wanted = {}
    if targets is not None:
        wanted = dict(zip(targets["userId"].tolist(), targets["movieId"].tolist(), strict=True))
    histories = dict(zip(seen.users.tolist(), seen.histories(), strict=True))
    requests, groups = {}, lists.groupby("userId")["movieId"].agg(list)
    for user, movie_ids in zip(groups.index.tolist(), groups, strict=True):
        target, shown = wanted.get(user), prompts.shuffled(movie_ids, seed + user)
        if targets is not None and target not in shown:
            continue
        last = seen.items[histories[user][-verbalizer.MAX_HISTORY :]].tolist()
        watched, names = (tuple(titles[item] for item in items) for items in (last, shown))
        label = None if target is None else shown.index(target)
        requests[user] = shown, LetterQuestion(watched, names, label)
    return requests


def training_prompts(
    train: pd.DataFrame,
    items: np.ndarray,
    titles: Mapping[int, str],
    *,
    steps: int = 30,
    n: int = CANDIDATES,
    seed: int = 0,
) -> list[LetterQuestion]:
    """Return prompts whose target is one of each user's last ``steps`` items of ``train``.

    For a target the history and the retriever know only what every user did earlier
    (``sequential.steps_back``), as at the time of a recommendation. See :func:`prompts_for`.
    """
    examples = []
    pairs = sequential.steps_back(train, items, steps)
    for step, (seen, target) in enumerate(tqdm(pairs, desc="training prompts", unit="step")):
        lists = candidate_lists(seen, n)
        requests = prompts_for(lists, seen, titles, target, seed=seed + 100_003 * step)
        examples += [question for _, question in requests.values()]
    return examples


def train(
    ranker: Verbalizer, examples: Sequence[LetterQuestion], how: Training | None = None
) -> pd.DataFrame:
    """Train what is trainable on the labels; candidates stand in a new order in each epoch.

    The loss is that of the label's token over the whole vocabulary; no other token counts. Returns
    a row per epoch: ``epoch`` and the mean ``loss``.
    """
    how = how or Training()
    torch.manual_seed(how.seed)
    random = np.random.default_rng(how.seed)

    def losses(_epoch: int) -> Iterator[Tensor]:
        order = random.permutation(len(examples))
        for start in range(0, len(order), how.batch):
            batch = [examples[i] for i in order[start : start + how.batch]]
            mixed = [each.permuted(random.permutation(len(each.candidates))) for each in batch]
            wanted = ranker.letter_ids[[each.label for each in mixed]].to(ranker.device)
            yield cross_entropy(ranker.logits([each.text() for each in mixed]), wanted)

    means = list(fit(ranker.model, losses, how, -(-len(examples) // how.batch), "training"))
    return pd.DataFrame({"epoch": range(1, how.epochs + 1), "loss": means})


def scores(
    ranker: Verbalizer, requests: Mapping[int, tuple[list[int], LetterQuestion]], size: int = 32
) -> pd.DataFrame:
    """Return each user's probabilities (``userId, movieId, probability``), one pass per user."""
    rows = ranker.probabilities([question for _, question in requests.values()], size)
    columns = {
        "userId": np.repeat(list(requests), [len(row) for row in rows]),
        "movieId": np.concatenate([shown for shown, _ in requests.values()]),
        "probability": np.concatenate(rows),
    }
    return pd.DataFrame(columns)


def orders(table: pd.DataFrame) -> dict[int, list[int]]:
    """Return each user's movieIds by falling probability, as ``evaluation.reorder`` takes them.

    Ties go to the lower movieId.
    """
    best = table.sort_values(["userId", "probability", "movieId"], ascending=[True, False, True])
    groups = best.groupby("userId")["movieId"].agg(list)
    return dict(zip(groups.index.tolist(), groups, strict=True))


def efficiency(
    ranker: Verbalizer,
    title_lengths: Sequence[int] = TITLE_LENGTHS,
    *,
    candidates: int = CANDIDATES,
    history: int = verbalizer.MAX_HISTORY,
    repeats: int = 5,
) -> pd.DataFrame:
    """Time one forward pass beside generating the ranked list, both for one user.

    Titles are random tokens of the length asked for. The list holds every candidate's title and a
    line break, generated greedily with cached keys and values. Lengths take turns for ``repeats``
    rounds, and medians count. On a CPU with one thread the clock is the processor time of this
    process, which other programs do not lengthen. Returns a row per length; ``ratio`` is list over
    pass, ``ratio_low`` and ``ratio_high`` are the smallest and largest of a round.
    """
    random = torch.Generator().manual_seed(0)
    frame = len(ranker.encode(LetterQuestion(("",), ("",)))) + 3 * candidates + history
    size = ranker.model.get_input_embeddings().weight.shape[0]
    alone = ranker.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    rows = []
    for turn in tqdm(range(repeats + 1), desc="efficiency", unit="round"):
        for length in title_lengths:
            width, output = frame + length * (candidates + history), candidates * (length + 1)
            ids = torch.randint(size, (1, width), generator=random).to(ranker.device)
            one_pass, whole = (_seconds(ranker.model, ids, n, clock) for n in (1, output))
            if turn:  # the first calls are slower
                rows.append((length, width, output, one_pass, whole, whole / one_pass))
    names = ["title_tokens", "prompt_tokens", "output_tokens", "one_pass_s", "list_s", "ratio"]
    rounds = pd.DataFrame(rows, columns=pd.Index(names)).groupby(names[:3])
    table = rounds.median().assign(
        ratio=lambda t: t["list_s"] / t["one_pass_s"],
        ratio_low=rounds["ratio"].min(),
        ratio_high=rounds["ratio"].max(),
    )
    return table.reset_index()


def _seconds(model: Any, ids: Tensor, tokens: int, clock: Callable[[], float]) -> float:
    """Return the time of writing ``tokens`` tokens after ``ids``, on a model in evaluation mode."""
    model.eval()
    start = clock()
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
        ).cpu()  # waits for the GPU
    return clock() - start
