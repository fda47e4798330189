"""The verbalizer with a model on this machine: one forward pass ranks.

The model that ``LLAMAREC_BASE_MODEL`` names, or a small one of the Llama architecture, not
pretrained on text, where there is none. :mod:`research.llamarec` trains it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from helpers import prompts, ranking
from research import verbalizer
from research.language_model import LanguageModel, Prompt, small_llama
from research.protocol import CANDIDATES


@dataclass(frozen=True)
class LetterQuestion:
    """What one user's prompt is made of: titles, oldest first, and candidates in the order shown.

    ``label`` is the position of the candidate that came next, where it is known; ``what`` says what
    stands for a movie, if not its title.
    """

    history: tuple[str, ...]
    candidates: tuple[str, ...]
    label: int | None = None
    what: str = "title"

    def text(self) -> str:
        """Return the prompt; the next token is the letter."""
        asked = verbalizer.letter_prompt(self.history, self.candidates, self.what)
        return verbalizer.as_text(asked)

    def prompt(self) -> Prompt:
        """Return the prompt with its letters as answers."""
        return Prompt(self.text(), tuple(ranking.letters(len(self.candidates))), self.label)

    def permuted(self, order: Sequence[int]) -> LetterQuestion:
        """Show the candidates in another order; the label follows its movie."""
        label = None if self.label is None else list(order).index(self.label)
        return replace(self, candidates=tuple(self.candidates[i] for i in order), label=label)


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
    fixed = [verbalizer.SYSTEM + "\n\n" + verbalizer.HISTORY_HEAD]
    fixed += [verbalizer.CANDIDATES_HEAD.format(what="title")]
    fixed += [verbalizer.CANDIDATES_END + verbalizer.ONE_LETTER + verbalizer.CUE]
    # A title or "(A)" takes the white space before it along.
    lines = [f"({letter})" for letter in ranking.letters(letters)]
    lines += sorted({prompts.quote(title) for title in titles})
    whole = [AddedToken(text, normalized=False) for text in fixed]
    whole += [AddedToken(text, normalized=False, lstrip=True) for text in lines]
    core.add_tokens(whole)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")


def small_ranker(
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


def efficiency(
    ranker: Verbalizer,
    title_lengths: Sequence[int],
    *,
    candidates: int = CANDIDATES,
    history: int = verbalizer.MAX_HISTORY,
    repeats: int = 5,
) -> pd.DataFrame:
    """Time one forward pass beside generating the ranked list, both for one user.

    Titles are random tokens of each of the lengths. The list holds every candidate's title and a
    line break, generated greedily with cached keys and values. Each is timed without and with
    (``cached_``) a prefix cache, which keeps what stands before the candidates from an earlier
    prompt. Lengths take turns for ``repeats`` rounds, and medians count. On a CPU with one thread
    the clock is the processor time of this process, which other programs do not lengthen. Returns a
    row per length; ``ratio`` is list over pass, ``ratio_low`` and ``ratio_high`` are the smallest
    and largest of a round.
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
            before = width - candidates * (length + 3)
            times = [
                _seconds(ranker.model, ids, n, clock, kept)
                for kept in (0, before)
                for n in (1, output)
            ]
            if turn:  # the first calls are slower
                rows.append((length, width, output, *times, times[1] / times[0]))
    names = ["title_tokens", "prompt_tokens", "output_tokens", "one_pass_s", "list_s"]
    names += ["cached_one_pass_s", "cached_list_s", "ratio"]
    rounds = pd.DataFrame(rows, columns=pd.Index(names)).groupby(names[:3])
    table = rounds.median().assign(
        ratio=lambda t: t["list_s"] / t["one_pass_s"],
        cached_ratio=lambda t: t["cached_list_s"] / t["cached_one_pass_s"],
        ratio_low=rounds["ratio"].min(),
        ratio_high=rounds["ratio"].max(),
    )
    return table.reset_index()


def _seconds(model: Any, ids: Tensor, tokens: int, clock: Callable[[], float], kept: int) -> float:
    """Return the time of writing ``tokens`` tokens after ``ids``, on a model in evaluation mode.

    The keys and values of the first ``kept`` tokens are there before the clock starts.
    """
    model.eval()
    with torch.inference_mode():
        past = model(ids[:, :kept], use_cache=True).cache if kept else None
        start = clock()
        model.generate(
            ids, attention_mask=torch.ones_like(ids), cache=past, max_new_tokens=tokens,
            min_new_tokens=tokens, do_sample=False,
        ).cpu()  # waits for the GPU  # fmt: skip
        return clock() - start
