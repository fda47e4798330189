"""The verbalizer with a model on this machine: one forward pass ranks, and training teaches it to.

Any Hugging Face causal LM, or a local folder with one, named by ``LLAMAREC_BASE_MODEL`` and tuned
with LoRA as LlamaRec does (Yue et al. 2023, arXiv 2311.02089); without a name, a small model of the
Llama architecture, not pretrained on text. The small one shows the mechanism. In the command below
its title vectors start from counts of what was watched nearby (:func:`start_from_counts`), which
leave out the steps that it is trained on; all else starts at random and sees only the prompts.
Eight minutes on one CPU thread teach it to answer with a letter (its loss falls to that of guessing
among 20, ln 20 = 3.0), but not which: its order of the test users' candidates is no better than a
random one.

``python -m research.verbalizer_torch`` trains the small model on the training sequences of the
leave-one-out protocol (``MOVIELENS_DIR`` names the data; 15 minutes at most), and saves
``07_verbalizer.csv`` and ``07_efficiency.csv``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from helpers import data, metrics, prompts, ranking
from helpers.faults import command
from helpers.settings import Settings
from research import sequential, splits, verbalizer
from research.sequential import Interactions, Transitions

CANDIDATES = 20
RETRIEVER = Transitions(30, 0.95, 0.5, 0.5, 10, 0.7)
"""The transition counts that notebook 06 found best on validation."""


class VerbalizerError(ValueError):
    """A model cannot be loaded, or cannot be used as a verbalizer; the message says what to do."""


@dataclass(frozen=True)
class Prompt:
    """What one user's prompt is made of: titles, oldest first, and candidates in the order shown.

    ``label`` is the position of the candidate that came next, where it is known.
    """

    history: tuple[str, ...]
    candidates: tuple[str, ...]
    label: int | None = None

    def text(self) -> str:
        """Return the prompt; the next token is the letter."""
        return verbalizer.as_text(verbalizer.letter_prompt(self.history, self.candidates))

    def permuted(self, order: Sequence[int]) -> Prompt:
        """Show the candidates in another order; the label follows its movie."""
        label = None if self.label is None else list(order).index(self.label)
        return Prompt(self.history, tuple(self.candidates[i] for i in order), label)


class Verbalizer:
    """A causal LM whose next token, one of the letters, says which candidate came next."""

    def __init__(self, model: Any, tokenizer: Any, name: str, letters: int = CANDIDATES) -> None:
        """Find the token of each letter.

        Raises:
            VerbalizerError: a letter is more than one token, or two letters are the same.
        """
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.letter_ids = torch.tensor(_letter_ids(tokenizer, letters, name))
        self._accepts = set(inspect.signature(_bare(model).forward).parameters)
        self.limit = getattr(_bare(model).config, "max_position_embeddings", None) or 2**31

    @classmethod
    def load(cls, settings: Settings | None = None, *, four_bit: bool = False) -> Verbalizer:
        """Load the model that ``LLAMAREC_BASE_MODEL`` names, onto the GPU where there is one.

        ``four_bit`` takes effect with CUDA and bitsandbytes only.

        Raises:
            VerbalizerError: no model is named, or it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        name = (settings or Settings.from_env()).llamarec_base_model
        if not name:
            raise VerbalizerError("LLAMAREC_BASE_MODEL is not set: name a model, or use small().")
        folder = Path(name).expanduser()
        if folder.is_dir() and not (folder / "config.json").is_file():
            raise VerbalizerError(
                f"The folder {name} holds no config.json: set LLAMAREC_BASE_MODEL to a folder with "
                "a Hugging Face model, or to a model's name."
            )
        place = str(folder) if folder.is_dir() else name
        options: dict[str, Any] = {"dtype": _dtype()}
        if four_bit and four_bit_available():
            options["quantization_config"] = _four_bits()
        try:
            tokenizer = AutoTokenizer.from_pretrained(place)
            with _memory():
                model = AutoModelForCausalLM.from_pretrained(place, **options)
                model = model if "quantization_config" in options else model.to(_device())
        except VerbalizerError:
            raise
        except Exception as error:  # transformers raises many kinds, some from other libraries
            why = " ".join(str(error).split())[:200].rstrip(".")
            raise VerbalizerError(
                f"LLAMAREC_BASE_MODEL is {name!r}, which cannot be loaded ({why}): name a folder "
                "with a Hugging Face model, or a model that this machine can download."
            ) from error
        return cls(model, tokenizer, name)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer; ``LLAMAREC_BASE_MODEL`` can name the folder afterwards."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the tokens of a prompt; where they are too many, the oldest titles are left out.

        Raises:
            VerbalizerError: the candidates alone are too long for the model.
        """
        history = prompt.history[-verbalizer.MAX_HISTORY :]
        while True:
            ids = self.tokenizer(replace(prompt, history=history).text())["input_ids"]
            if len(ids) <= self.limit:
                return ids
            if len(history) == 1:
                raise VerbalizerError(
                    f"The prompt has {len(ids)} tokens and {self.name} reads {self.limit}: show "
                    "fewer candidates or choose a model with a longer context."
                )
            history = history[1:]

    def next_token(self, batch: Sequence[Prompt]) -> torch.Tensor:
        """Return the logits of the token after each prompt, shape (batch, vocabulary)."""
        ids, mask = _left_padded([self.encode(prompt) for prompt in batch], self._padding())
        with _memory(len(batch)):
            return self._forward(ids.to(self.device), mask.to(self.device))

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # A position counts from the first real token, whatever the padding.
        extra = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0), "logits_to_keep": 1}
        extra = {key: value for key, value in extra.items() if key in self._accepts}
        return self.model(input_ids=ids, attention_mask=mask, **extra).logits[:, -1].float()

    def _padding(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in known if token is not None), 0)

    def probabilities(self, batch: Sequence[Prompt], size: int = 32) -> list[np.ndarray]:
        """Return each prompt's distribution over its candidates, in the order shown; sums are 1.

        The logits of the candidates' letters under a softmax: the same as the model's probabilities
        of the letters, scaled to sum 1. ``size`` prompts share a forward pass.

        Raises:
            VerbalizerError: a prompt has more candidates than letters, or memory runs out.
        """
        self._check(batch)
        self.model.eval()
        found = []
        with torch.inference_mode():
            for start in range(0, len(batch), size):
                part = batch[start : start + size]
                logits = self.next_token(part)[:, self.letter_ids.to(self.device)].cpu().double()
                for prompt, row in zip(part, logits, strict=True):
                    found.append(torch.softmax(row[: len(prompt.candidates)], 0).numpy())
        return found

    def loss(self, batch: Sequence[Prompt]) -> torch.Tensor:
        """Return the mean cross-entropy of the label's token, over the whole vocabulary.

        No other token counts: neither the titles nor the instruction are to be learned by heart.

        Raises:
            VerbalizerError: a prompt has no label or too many candidates, or memory runs out.
        """
        self._check(batch)
        if any(prompt.label is None for prompt in batch):
            raise VerbalizerError("A prompt has no label: training needs the movie that came next.")
        wanted = self.letter_ids[[prompt.label for prompt in batch]].to(self.device)
        return cross_entropy(self.next_token(batch), wanted)

    def _check(self, batch: Sequence[Prompt]) -> None:
        most = max((len(prompt.candidates) for prompt in batch), default=0)
        if most > len(self.letter_ids):
            raise VerbalizerError(
                f"A prompt has {most} candidates, and {len(self.letter_ids)} letters are set up."
            )


def _bare(model: Any) -> Any:
    """Return the model inside an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _letter_ids(tokenizer: Any, n: int, name: str) -> list[int]:
    """Return the token of each letter where a prompt ends; elsewhere it may be another."""
    text = Prompt(("x",), ("y",)).text()
    before = tokenizer(text)["input_ids"]
    ids: list[int] = []
    for letter in ranking.letters(n):
        after = tokenizer(text + letter)["input_ids"]
        if after[: len(before)] != before or len(after) != len(before) + 1:
            raise VerbalizerError(
                f"The letter {letter} is not one token for {name}: choose a base model "
                f"whose tokenizer has one for each letter from A to {ranking.letters(n)[-1]}."
            )
        if after[-1] in ids:
            raise VerbalizerError(
                f"The letters {ranking.letters(n)[ids.index(after[-1])]} and {letter} are the same "
                f"token for {name}: choose a base model whose tokenizer tells them apart."
            )
        ids.append(after[-1])
    return ids


def _left_padded(rows: Sequence[list[int]], token: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask, padded at the left so that every prompt ends in the last column."""
    width = max(map(len, rows))
    ids = torch.tensor([[token] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype() -> torch.dtype:
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def four_bit_available() -> bool:
    """Whether weights can be held in 4 bits: CUDA and bitsandbytes are there."""
    return torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None


def _four_bits() -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_dtype(),
    )


@contextlib.contextmanager
def _memory(batch: int | None = None) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        what = "the model" if batch is None else f"a batch of {batch} prompts"
        raise VerbalizerError(
            f"The GPU has too little memory for {what}: use a smaller batch, four_bit=True or a "
            "smaller LLAMAREC_BASE_MODEL, or hide the GPU with CUDA_VISIBLE_DEVICES=-1."
        ) from None


def add_lora(ranker: Verbalizer) -> Verbalizer:
    """Return the verbalizer with LoRA (Hu et al. 2021) on q and v, as in the paper; nothing else
    trains.

    Rank 8, alpha 32, dropout 0.05; train with a learning rate of 1e-4.

    Raises:
        VerbalizerError: the model has no layers called q_proj and v_proj.
    """
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    names = {name.rsplit(".", 1)[-1] for name, _ in ranker.model.named_modules()}
    if not {"q_proj", "v_proj"} <= names:
        raise VerbalizerError(
            f"{ranker.name} has no layers q_proj and v_proj for LoRA: choose a model of the Llama, "
            "Mistral, Qwen or Gemma families."
        )
    model = ranker.model
    if getattr(model, "is_loaded_in_4bit", False):
        model = prepare_model_for_kbit_training(model)
    how = LoraConfig(
        r=8,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    return Verbalizer(
        get_peft_model(model, how), ranker.tokenizer, ranker.name, len(ranker.letter_ids)
    )


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


def small_config(vocabulary: int, hidden: int, layers: int, heads: int, **options: Any) -> Any:
    """Return the configuration of a small Llama with tied embeddings and no marks of begin and end.

    ``options`` are those of ``transformers.LlamaConfig``.
    """
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        **options,
    )


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
    from transformers import LlamaForCausalLM

    tokenizer = small_tokenizer(titles, letters)
    torch.manual_seed(seed)
    config = small_config(
        len(tokenizer),
        hidden,
        layers,
        heads,
        max_position_embeddings=4096,
        initializer_range=hidden**-0.5 / 2,
        attention_dropout=0.1,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).to(_device())
    return Verbalizer(model, tokenizer, "the small model", letters)


def start_from_counts(ranker: Verbalizer, seen: Interactions, titles: Mapping[int, str]) -> None:
    """Set the small model's title vectors from who-watched-what-nearby counts of ``seen``.

    Singular vectors of the positive pointwise mutual information, which is what word2vec factorises
    (Levy and Goldberg 2014). It stands in for what a pretrained LLM brings along, and must know
    nothing of the items that the prompts ask for.
    """
    from scipy.sparse.linalg import svds

    weights = ranker.model.get_input_embeddings().weight
    size = min(weights.shape[1], len(seen.items) - 1)
    how = Transitions(window=10, gap_decay=0.9, backward=1.0, popularity=0.0)
    counts = sequential.transition_counts(seen, how).tocoo()
    total = np.asarray(counts.sum(axis=1)).ravel()
    context = total**0.75 / (total**0.75).sum()
    ratio = counts.data / (total[counts.row] * context[counts.col])
    counts.data = np.maximum(np.log(ratio), 0)
    left, values, _ = svds(counts.tocsr(), k=size, random_state=0)
    vectors = left * np.sqrt(values)
    vectors *= float(weights.detach().std()) / vectors.std()
    ids = [ranker.tokenizer(prompts.quote(titles[item]))["input_ids"] for item in seen.items]
    with torch.no_grad():
        for vector, own in zip(vectors, ids, strict=True):
            if len(own) == 1:
                weights[own[0], :size] = torch.tensor(vector, dtype=weights.dtype)


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
    keep: str = "retrieved",
    seed: int = 0,
) -> dict[int, tuple[list[int], Prompt]]:
    """Return for each user the movieIds in the order shown, and the prompt.

    Args:
        lists: the retriever's candidates (``userId, rank, movieId``), from ``seen`` alone.
        seen: what each user watched before; the last 20 titles are the history.
        titles: see :func:`title_map`.
        targets: what came next (``userId, movieId``), or ``None`` where it is unknown.
        keep: with targets: ``retrieved`` drops users whose target is no candidate; ``forced`` puts
            it in place of the last candidate.
        seed: candidates are shuffled, so that no place says what the retriever thinks.

    Raises:
        ValueError: ``keep`` is neither, or a candidate or an item of the history has no title.
    """
    if keep not in ("retrieved", "forced"):
        raise ValueError(f"keep is {keep!r}; choose 'retrieved' or 'forced'.")
    wanted = (
        {} if targets is None else dict(zip(targets["userId"], targets["movieId"], strict=True))
    )
    last = {user: seen.items[seen.column[seen.row == i]][-verbalizer.MAX_HISTORY :]
            for i, user in enumerate(seen.users)}  # fmt: skip
    found = {}
    for user, movie_ids in lists.groupby("userId")["movieId"]:
        shown, target = [int(item) for item in movie_ids], wanted.get(user)
        if targets is not None and target not in shown:
            if keep == "retrieved" or target is None:
                continue
            shown[-1] = int(target)
        shown = prompts.shuffled(shown, seed + int(user))
        try:
            history = tuple(titles[int(item)] for item in last[user])
            names = tuple(titles[item] for item in shown)
        except KeyError as error:
            raise ValueError(f"movieId {error} has no title: load movies.csv beside it.") from None
        label = None if target is None else shown.index(int(target))
        found[int(user)] = shown, Prompt(history, names, label)
    return found


def training_prompts(
    train: pd.DataFrame,
    items: np.ndarray,
    titles: Mapping[int, str],
    *,
    steps: int = 30,
    how: Transitions = RETRIEVER,
    n: int = CANDIDATES,
    keep: str = "retrieved",
    seed: int = 0,
) -> list[Prompt]:
    """Return prompts whose target is one of each user's last ``steps`` items of ``train``.

    For a target the history and the retriever know only what every user did earlier
    (``sequential.steps_back``), as at the time of a recommendation. See :func:`prompts_for`.
    """
    found = []
    pairs = sequential.steps_back(train, items, steps)
    for step, (seen, target) in enumerate(tqdm(pairs, desc="training prompts", unit="step")):
        scores = sequential.unseen(sequential.transitions(seen, how), seen)
        lists = sequential.top_lists(scores, seen, n)
        made = prompts_for(lists, seen, titles, target, keep=keep, seed=seed + 100_003 * step)
        found += [prompt for _, prompt in made.values()]
    return found


@dataclass(frozen=True)
class Training:
    """Settings of :func:`train`. The paper's learning rate, for LoRA, is 1e-4.

    ``shuffle`` shows the candidates of a prompt in a new order in each epoch.
    """

    learning_rate: float = 1e-4
    batch: int = 16
    epochs: int = 3
    warm_up: float = 0.05
    weight_decay: float = 0.01
    shuffle: bool = True
    seed: int = 0


def train(
    ranker: Verbalizer,
    examples: Sequence[Prompt],
    how: Training | None = None,
    validation: Sequence[Prompt] = (),
) -> pd.DataFrame:
    """Train what is trainable on the labels.

    AdamW, linear warm-up and cosine decay. Returns a row per epoch: ``epoch``, the mean ``loss``,
    and of the ``validation`` prompts ``accuracy`` (the label first) and ``ndcg@10``.

    Raises:
        VerbalizerError: there is no example, or memory runs out.
    """
    how = how or Training()
    if not examples:
        raise VerbalizerError("There is no training prompt: take more steps or a larger data set.")
    torch.manual_seed(how.seed)
    random = np.random.default_rng(how.seed)
    parameters = [one for one in ranker.model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=how.learning_rate, weight_decay=how.weight_decay, betas=(0.9, 0.98)
    )
    total = how.epochs * -(-len(examples) // how.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step / total, how.warm_up)
    )
    rows = []
    with tqdm(total=total, desc="training", unit="batch") as bar:
        for epoch in range(1, how.epochs + 1):
            ranker.model.train()
            order, losses = random.permutation(len(examples)), []
            for start in range(0, len(order), how.batch):
                batch = [examples[i] for i in order[start : start + how.batch]]
                if how.shuffle:
                    batch = [one.permuted(random.permutation(len(one.candidates))) for one in batch]
                loss = ranker.loss(batch)
                optimizer.zero_grad()
                with _memory(len(batch)):
                    loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                losses.append(loss.item())
                bar.update()
                bar.set_postfix(loss=f"{np.mean(losses[-50:]):.3f}")
            rows.append(
                {"epoch": epoch, "loss": np.mean(losses), **label_scores(ranker, validation)}
            )
    ranker.model.eval()
    return pd.DataFrame(rows)


def _rate(done: float, warm_up: float) -> float:
    if done < warm_up:
        return done / warm_up
    return 0.5 * (1 + np.cos(np.pi * (done - warm_up) / (1 - warm_up)))


def label_scores(ranker: Verbalizer, examples: Sequence[Prompt]) -> dict[str, float]:
    """Return ``accuracy`` and ``ndcg@10`` over prompts with a label; nothing for no prompt."""
    if not examples:
        return {}
    found = ranker.probabilities(examples)
    ranks = [
        1 + int((row > row[one.label]).sum()) for row, one in zip(found, examples, strict=True)
    ]
    gains = [1 / np.log2(rank + 1) if rank <= 10 else 0.0 for rank in ranks]
    return {"accuracy": float(np.mean([rank == 1 for rank in ranks])), "ndcg@10": np.mean(gains)}


def scores(
    ranker: Verbalizer, requests: Mapping[int, tuple[list[int], Prompt]], size: int = 32
) -> pd.DataFrame:
    """Return each user's probabilities (``userId, movieId, probability``), one pass per user."""
    found = ranker.probabilities([prompt for _, prompt in requests.values()], size)
    tables = [
        pd.DataFrame({"userId": user, "movieId": shown, "probability": row})
        for (user, (shown, _)), row in zip(requests.items(), found, strict=True)
    ]
    return pd.concat(tables, ignore_index=True)


def orders(table: pd.DataFrame) -> dict[int, list[int]]:
    """Return each user's movieIds by falling probability, as ``ranking.reorder`` takes them.

    Ties go to the lower movieId.
    """
    best = table.sort_values(["userId", "probability", "movieId"], ascending=[True, False, True])
    return {int(user): ids.tolist() for user, ids in best.groupby("userId")["movieId"]}


# --- the cost of generating -----------------------------------------------------------------------


def efficiency(
    ranker: Verbalizer,
    title_lengths: Sequence[int] = (5, 10, 15, 20, 25, 30, 35, 40),
    *,
    candidates: int = CANDIDATES,
    history: int = verbalizer.MAX_HISTORY,
    repeats: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Time one forward pass beside generating the ranked list, both for one user.

    The same model and the same prompt; titles are random tokens, so that they have exactly the
    length asked for. The list holds every candidate's title and a line break, generated greedily,
    token by token with cached keys and values. Lengths, passes and lists take turns for ``repeats``
    rounds (a pass before and after each list), and medians count. On a CPU with one thread the
    clock is the processor time of this process, which other programs do not lengthen by taking
    turns on the core (they can still slow it, by filling caches); else it is the time that passes.

    Returns:
        One row per length: ``title_tokens, prompt_tokens, output_tokens, one_pass_s, list_s``,
        ``ratio``, list over pass, and ``ratio_low`` and ``ratio_high``, the smallest and largest
        ratio of a round.

    Raises:
        VerbalizerError: prompt and list together are too long for the model, or memory runs out.
    """
    random = torch.Generator().manual_seed(seed)
    frame = len(ranker.encode(Prompt(("",), ("",)))) + 3 * candidates + history
    size = ranker.model.get_input_embeddings().weight.shape[0]
    asked = {}
    for length in title_lengths:
        width = frame + length * (candidates + history)
        output = candidates * (length + 1)
        if width + output > ranker.limit:
            raise VerbalizerError(
                f"Titles of {length} tokens need {width + output} tokens in all and {ranker.name} "
                f"holds {ranker.limit}: leave the longer titles out."
            )
        asked[length] = torch.randint(size, (1, width), generator=random).to(ranker.device), output
    ranker.model.eval()
    alone = ranker.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    times: dict[int, list[tuple[float, float]]] = {length: [] for length in asked}
    with (
        _memory(1),
        torch.inference_mode(),
        tqdm(total=repeats * len(asked), desc="efficiency", unit="list") as bar,
    ):
        _seconds(ranker.model, next(iter(asked.values()))[0], 2, clock)  # the first call is slower
        for _ in range(repeats):
            for length, (ids, output) in asked.items():
                before, every, after = (
                    _seconds(ranker.model, ids, tokens, clock) for tokens in (1, output, 1)
                )
                times[length].append(((before + after) / 2, every))
                bar.update()
    rows = []
    for length, pairs in times.items():
        one, every = np.median(pairs, axis=0)
        each = [listed / single for single, listed in pairs]
        ids, output = asked[length]
        rows.append((length, ids.shape[1], output, one, every, every / one, min(each), max(each)))
    names = ["title_tokens", "prompt_tokens", "output_tokens", "one_pass_s", "list_s", "ratio"]
    return pd.DataFrame(rows, columns=[*names, "ratio_low", "ratio_high"])


def _seconds(model: Any, ids: torch.Tensor, tokens: int, clock: Callable[[], float]) -> float:
    start = clock()
    _generate(model, ids, tokens).cpu()  # waits for the GPU
    return clock() - start


def _generate(model: Any, ids: torch.Tensor, tokens: int) -> torch.Tensor:
    """Return the next ``tokens`` tokens, greedily; for one there is no cache to fill."""
    names = inspect.signature(_bare(model).forward).parameters
    last = {"logits_to_keep": 1} if "logits_to_keep" in names else {}
    cache = "cache" if "cache" in names else "past_key_values"  # renamed in transformers 5
    past, found = None, []
    for _ in range(tokens):
        out = model(input_ids=ids, use_cache=tokens > 1, **{cache: past}, **last)
        past, ids = getattr(out, cache, None), out.logits[:, -1:].argmax(-1)
        found.append(ids)
    return torch.cat(found, dim=1)


# --- the measurement ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """The 5-core of a data set, split by leave-one-out, with titles and the retriever's lists.

    ``validation`` and ``test`` are each (seen, lists, target): what is known, the candidates from
    it, and what came next.
    """

    split: splits.LeaveOneOut
    items: np.ndarray
    titles: dict[int, str]
    validation: tuple[Interactions, pd.DataFrame, pd.DataFrame]
    test: tuple[Interactions, pd.DataFrame, pd.DataFrame]

    @classmethod
    def of(cls, dataset: data.Dataset, how: Transitions = RETRIEVER) -> Protocol:
        """Prepare a data set; see ``data.core`` and ``splits.leave_one_out``."""
        rated = data.core(data.load_pandas(dataset, "ratings"))
        split, items = splits.leave_one_out(rated), np.unique(rated["movieId"])

        def stage(known: pd.DataFrame, target: pd.DataFrame):
            seen = Interactions.of(known, items)
            found = sequential.unseen(sequential.transitions(seen, how), seen)
            return seen, sequential.top_lists(found, seen, CANDIDATES), target

        return cls(
            split,
            items,
            title_map(data.load_pandas(dataset, "movies")),
            stage(split.train, split.validation),
            stage(split.known, split.test),
        )


def compare_orders(
    ranker: Verbalizer, protocol: Protocol, name: str, draws: int = 100
) -> pd.DataFrame:
    """Return the test metrics of three orders of the same candidates, with bootstrap intervals.

    The retriever's own order, a random one (each user's mean over ``draws`` shuffles) and the
    verbalizer's. Users whose item is no candidate score zero in all three. Columns as in
    ``06_evaluation.csv``: ``retriever, ranker, metric, value, low, high, users``.
    """
    seen, lists, target = protocol.test
    asked = prompts_for(lists, seen, protocol.titles)
    reordered = ranking.reorder(lists, orders(scores(ranker, asked)))
    tables = {
        "its own order": metrics.score_table(lists, target),
        "random": sum(
            metrics.score_table(_shuffled(lists, seed), target) for seed in range(draws)
        ) / draws,
        name: metrics.score_table(reordered, target),
    }  # fmt: skip
    rows = [
        ("transitions", which, metric, at.mean, at.low, at.high, at.users)
        for which, table in tables.items()
        for metric, values in table.items()
        for at in [metrics.bootstrap_interval(values)]
    ]
    names = ["retriever", "ranker", "metric", "value", "low", "high", "users"]
    return pd.DataFrame(rows, columns=names)


def _shuffled(lists: pd.DataFrame, seed: int) -> pd.DataFrame:
    mixed = lists.sample(frac=1, random_state=seed).sort_values("userId", kind="stable")
    return mixed.assign(rank=mixed.groupby("userId").cumcount() + 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the small model, or LoRA on ``LLAMAREC_BASE_MODEL``, and save both tables."""
    parser = argparse.ArgumentParser(
        prog="python -m research.verbalizer_torch",
        description="Train the verbalizer, rank the test users, time it, save the 07 tables.",
    )
    parser.add_argument("--epochs", type=int, default=5, help="passes over the training prompts")
    parser.add_argument("--steps", type=int, default=40, help="targets per user, from the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; fixes the numbers")
    parser.add_argument("--only-time", action="store_true", help="save 07_efficiency.csv alone")
    parser.add_argument("--save", type=Path, help="folder for the trained model")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    settings = Settings.from_env()
    dataset = data.locate(settings)
    print(dataset.describe())
    protocol = Protocol.of(dataset)
    ranker, name, rate = prepare(protocol, settings, asked.steps, asked.seed)
    print(f"Model: {ranker.name}, on {ranker.device.type}")
    if not asked.only_time:
        _train_and_test(ranker, name, rate, protocol, asked, dataset, settings)
    table = efficiency(ranker)
    print(table.round(3).to_string(index=False))
    print(data.save_result(table, "07_efficiency", dataset, settings).name, "saved")


def _train_and_test(
    ranker: Verbalizer,
    name: str,
    rate: float,
    protocol: Protocol,
    asked: argparse.Namespace,
    dataset: data.Dataset,
    settings: Settings,
) -> None:
    """Train the verbalizer and save ``07_verbalizer.csv``."""
    examples = training_prompts(
        protocol.split.train, protocol.items, protocol.titles, steps=asked.steps, seed=asked.seed
    )
    seen, lists, target = protocol.validation
    held_out = [prompt for _, prompt in prompts_for(lists, seen, protocol.titles, target).values()]
    how = Training(rate, batch=16, epochs=asked.epochs, seed=asked.seed)
    start = time.perf_counter()
    print(train(ranker, examples, how, held_out).round(3).to_string(index=False))
    print(f"{len(examples)} training prompts, {time.perf_counter() - start:.0f} s")
    if asked.save:
        ranker.save(asked.save)
    table = compare_orders(ranker, protocol, name)
    print(table.loc[table["metric"].str.endswith("@10")].round(4).to_string(index=False))
    print(data.save_result(table, "07_verbalizer", dataset, settings).name, "saved")


def prepare(
    protocol: Protocol, settings: Settings, steps: int = 40, seed: int = 0
) -> tuple[Verbalizer, str, float]:
    """Return the verbalizer to train, its name in tables and its learning rate.

    LoRA on the model that ``LLAMAREC_BASE_MODEL`` names, else the small model, whose title vectors
    start from counts that leave out the last ``steps`` items of each user's training sequence.
    """
    if settings.llamarec_base_model:
        torch.manual_seed(seed)
        ranker = add_lora(Verbalizer.load(settings, four_bit=True))
        return ranker, f"verbalizer, {Path(ranker.name).name}", 1e-4
    ranker = small([protocol.titles[int(item)] for item in protocol.items], seed=seed)
    train_rows = protocol.split.train
    early = train_rows.loc[train_rows.groupby("userId").cumcount(ascending=False) >= steps]
    start_from_counts(ranker, Interactions.of(early, protocol.items), protocol.titles)
    return ranker, "verbalizer, small model", 1e-3


if __name__ == "__main__":
    sys.exit(command(main))
