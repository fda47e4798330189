"""The verbalizer with a model on this machine: one forward pass ranks, and training teaches it to.

The model that ``LLAMAREC_BASE_MODEL`` names, tuned with LoRA as LlamaRec does (Yue et al. 2023,
arXiv 2311.02089), or a small one of the Llama architecture, not pretrained on text, which shows the
mechanism. ``python tools/experiments/07_verbalizer.py`` trains it and records what it learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
from research.language_model import ADVICE, LanguageModel, small_llama
from research.protocol import CANDIDATES, candidate_lists
from research.sequential import Interactions
from research.training import ModelError, Training, fit, memory_explained, padded


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

    def permuted(self, order: Sequence[int]) -> LetterQuestion:
        """Show the candidates in another order; the label follows its movie."""
        label = None if self.label is None else list(order).index(self.label)
        return LetterQuestion(self.history, tuple(self.candidates[i] for i in order), label)


class Verbalizer(LanguageModel):
    """A causal LM whose next token, one of the letters, says which candidate came next."""

    cue, gap = LetterQuestion(("x",), ("y",)).text(), ""

    def __init__(self, model: Any, tokenizer: Any, name: str, letters: int = CANDIDATES) -> None:
        """Find the token of each letter.

        Raises:
            ModelError: a letter is more than one token, or two letters are the same.
        """
        super().__init__(model, tokenizer, name)
        self.letter_ids = self.answer_ids(tuple(ranking.letters(letters)))

    def encode(self, question: LetterQuestion) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            ModelError: they are more than the model reads.
        """
        return self.fitting(self.tokenizer(question.text())["input_ids"])

    def next_token(self, batch: Sequence[LetterQuestion]) -> Tensor:
        """Return the logits of the token after each prompt, shape (batch, vocabulary).

        Rows are filled up at the left, so that every prompt ends in the last column; a position
        counts from the first real token.

        Raises:
            ModelError: a prompt has more candidates than letters, or memory runs out.
        """
        most = max((len(question.candidates) for question in batch), default=0)
        if most > len(self.letter_ids):
            raise ModelError(
                f"A prompt has {most} candidates, and {len(self.letter_ids)} letters are set up."
            )
        token = self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0
        ids, mask = padded([self.encode(question) for question in batch], token, "left")
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with memory_explained(ADVICE):
            return self.model(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                position_ids=positions.to(self.device),
                logits_to_keep=1,
            ).logits[:, -1].float()  # fmt: skip

    def probabilities(self, batch: Sequence[LetterQuestion], size: int = 32) -> list[np.ndarray]:
        """Return each prompt's distribution over its candidates, in the order shown; sums are 1.

        The logits of the candidates' letters under a softmax: the same as the model's probabilities
        of the letters, scaled to sum 1. ``size`` prompts share a forward pass.
        """
        self.model.eval()
        rows = []
        with torch.inference_mode():
            for start in range(0, len(batch), size):
                part = batch[start : start + size]
                logits = self.next_token(part)[:, self.letter_ids.to(self.device)].cpu().double()
                for question, row in zip(part, logits, strict=True):
                    rows.append(torch.softmax(row[: len(question.candidates)], 0).numpy())
        return rows

    def loss(self, batch: Sequence[LetterQuestion]) -> Tensor:
        """Return the mean cross-entropy of the label's token, over the whole vocabulary.

        No other token counts: neither the titles nor the instruction are to be learned by heart.

        Raises:
            ModelError: a prompt has no label or too many candidates, or memory runs out.
        """
        if any(question.label is None for question in batch):
            raise ModelError("A prompt has no label: training needs the movie that came next.")
        wanted = self.letter_ids[[question.label for question in batch]].to(self.device)
        return cross_entropy(self.next_token(batch), wanted)


# --- a small model of one's own -------------------------------------------------------------------


def small_tokenizer(titles: Sequence[str], letters: int = CANDIDATES) -> Any:
    """Return a tokenizer trained from ``titles``, made for short prompts.

    Each title of the catalogue, each fixed sentence of the prompt and each letter is one token;
    any other text falls apart into pieces of bytes, learned from the titles (BPE). A real LLM's
    tokenizer knows no whole titles.
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
    labels = ranking.letters(letters)
    fixed = [verbalizer.SYSTEM + "\n\n" + verbalizer.HISTORY_HEAD, verbalizer.CANDIDATES_HEAD]
    fixed += [verbalizer.CANDIDATES_END + verbalizer.ONE_LETTER + verbalizer.CUE]
    # A title or "(A)" takes the white space before it along.
    lines = [f"({letter})" for letter in labels] + sorted({prompts.quote(t) for t in titles})
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


# --- training -------------------------------------------------------------------------------------


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

    ``lists`` are the retriever's candidates (``userId, rank, movieId``) from ``seen``, whose last
    20 titles are the history. ``targets`` is what came next (``userId, movieId``), where it is
    known; users whose target is no candidate are left out. Candidates are shuffled by ``seed``, so
    that no place says what the retriever thinks.

    Raises:
        ValueError: a candidate or an item of the history has no title.
    """
    wanted = (
        {} if targets is None else dict(zip(targets["userId"], targets["movieId"], strict=True))
    )
    last = {user: seen.items[seen.column[seen.row == i]][-verbalizer.MAX_HISTORY :]
            for i, user in enumerate(seen.users)}  # fmt: skip
    requests, groups = {}, lists.groupby("userId")["movieId"].agg(list)
    for user, movie_ids in zip(groups.index.tolist(), groups, strict=True):
        shown, target = [int(item) for item in movie_ids], wanted.get(user)
        if targets is not None and target not in shown:
            continue
        shown = prompts.shuffled(shown, seed + int(user))
        try:
            history = tuple(titles[int(item)] for item in last[user])
            names = tuple(titles[item] for item in shown)
        except KeyError as error:
            raise ValueError(f"movieId {error} has no title: load movies.csv beside it.") from None
        label = None if target is None else shown.index(int(target))
        requests[int(user)] = shown, LetterQuestion(history, names, label)
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

    Returns a row per epoch: ``epoch`` and the mean ``loss``.

    Raises:
        ModelError: there is no example, or memory runs out.
    """
    how = how or Training()
    if not examples:
        raise ModelError("There is no training prompt: take more steps or a larger data set.")
    torch.manual_seed(how.seed)
    random = np.random.default_rng(how.seed)

    def losses(_epoch: int):
        order = random.permutation(len(examples))
        for start in range(0, len(order), how.batch):
            batch = [examples[i] for i in order[start : start + how.batch]]
            yield ranker.loss([q.permuted(random.permutation(len(q.candidates))) for q in batch])

    n_batches = -(-len(examples) // how.batch)
    with memory_explained(ADVICE):
        means = list(fit(ranker.model, losses, how, n_batches, "training"))
    return pd.DataFrame({"epoch": range(1, how.epochs + 1), "loss": means})


def scores(
    ranker: Verbalizer, requests: Mapping[int, tuple[list[int], LetterQuestion]], size: int = 32
) -> pd.DataFrame:
    """Return each user's probabilities (``userId, movieId, probability``), one pass per user."""
    rows = ranker.probabilities([prompt for _, prompt in requests.values()], size)
    tables = [
        pd.DataFrame({"userId": user, "movieId": shown, "probability": row})
        for (user, (shown, _)), row in zip(requests.items(), rows, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def orders(table: pd.DataFrame) -> dict[int, list[int]]:
    """Return each user's movieIds by falling probability, as ``evaluation.reorder`` takes them.

    Ties go to the lower movieId.
    """
    best = table.sort_values(["userId", "probability", "movieId"], ascending=[True, False, True])
    groups = best.groupby("userId")["movieId"].agg(list)
    return dict(zip(groups.index.tolist(), groups, strict=True))


# --- the cost of generating -----------------------------------------------------------------------


def efficiency(
    ranker: Verbalizer,
    title_lengths: Sequence[int] = (5, 10, 15, 20, 25, 30, 35, 40),
    *,
    candidates: int = CANDIDATES,
    history: int = verbalizer.MAX_HISTORY,
    repeats: int = 5,
) -> pd.DataFrame:
    """Time one forward pass beside generating the ranked list, both for one user.

    The same model and the same prompt; titles are random tokens of the length asked for. The list
    holds every candidate's title and a line break, generated greedily with cached keys and values.
    Lengths, passes and lists take turns for ``repeats`` rounds (a pass before and after each list),
    and medians count. On a CPU with one thread the clock is the processor time of this process,
    which other programs do not lengthen; else it is the time that passes.

    Returns:
        One row per length: ``title_tokens, prompt_tokens, output_tokens, one_pass_s, list_s``,
        ``ratio``, list over pass, and ``ratio_low`` and ``ratio_high``, the smallest and largest
        ratio of a round.
    """
    random = torch.Generator().manual_seed(0)
    frame = len(ranker.encode(LetterQuestion(("",), ("",)))) + 3 * candidates + history
    size = ranker.model.get_input_embeddings().weight.shape[0]
    texts = {}
    for length in title_lengths:
        width, output = frame + length * (candidates + history), candidates * (length + 1)
        texts[length] = torch.randint(size, (1, width), generator=random).to(ranker.device), output
    ranker.model.eval()
    alone = ranker.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    rounds = []
    with memory_explained(ADVICE), torch.inference_mode():
        _seconds(ranker.model, texts[title_lengths[0]][0], 2, clock)  # the first call is slower
        for _ in tqdm(range(repeats), desc="efficiency", unit="round"):
            for length, (ids, output) in texts.items():
                before, whole, after = (
                    _seconds(ranker.model, ids, tokens, clock) for tokens in (1, output, 1)
                )
                one_pass = (before + after) / 2
                rounds.append((length, ids.shape[1], output, one_pass, whole, whole / one_pass))
    names = ["title_tokens", "prompt_tokens", "output_tokens", "one_pass_s", "list_s", "ratio"]
    by_length = pd.DataFrame(rounds, columns=pd.Index(names)).groupby(names[:3])
    table = by_length.median().reset_index()
    table["ratio"] = table["list_s"] / table["one_pass_s"]
    ratios = by_length["ratio"]
    return table.assign(ratio_low=ratios.min().to_numpy(), ratio_high=ratios.max().to_numpy())


def _seconds(model: Any, ids: Tensor, tokens: int, clock: Callable[[], float]) -> float:
    start = clock()
    mask = torch.ones_like(ids)
    model.generate(
        ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    ).cpu()  # waits for the GPU
    return clock() - start
