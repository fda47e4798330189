"""Four ways to adapt a language model to recommendation, on one small model.

Prompting (with examples in the prompt or without), prompt tuning (Lester et al. 2021), fine-tuning
with the loss of one task (whole, or by LoRA, Hu et al. 2021) and instruction tuning on several
tasks at once (P5, Geng et al. 2022; POD, Li et al. 2023). The model is any causal LM that
``LLAMAREC_BASE_MODEL`` names; without a name a small one of the Llama architecture, *pretrained
here* on documents made of the training histories: unlike the small model of
:mod:`research.verbalizer_torch` it has read which movie follows which before anybody asks it.

``python -m research.adapting`` does all of it on the leave-one-out protocol (``MOVIELENS_DIR``
names the data), and saves ``09_adapting.csv``, ``09_tasks.csv``, ``09_small.csv`` and the weights.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import nn
from torch.nn.functional import cross_entropy, dropout, kl_div, log_softmax
from tqdm.auto import tqdm

from helpers import data, metrics, prompts, ranking
from helpers.faults import command
from helpers.settings import Settings
from research import sequential
from research import verbalizer_torch as vt
from research.sequential import Interactions

TASKS = ("rank", "next", "rate", "like")
HISTORY = 20
"""Movies of the history in a prompt, as in notebook 07."""
LIKED = 4.0
"""Stars from which on a movie counts as liked."""
STARS = tuple(f"{half / 2:.1f}" for half in range(1, 11))
STEPS = 20
"""The last items of each training history that the base model never reads: adaptation data."""
QUESTIONS = 3000
"""Training questions of a task in a :func:`mixture`, at most."""
PER_EPOCH = 1500
"""Questions of a task that instruction tuning draws for an epoch."""


class AdaptingError(ValueError):
    """A model or a setting does not fit; the message says what to do."""


# --- questions ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One question about one user: what a prompt is made of, and the answer where it is known.

    ``history`` holds titles, oldest first, and ``stars`` the ratings of the same movies. ``item``
    is the movie asked about (``rate``, ``like``), ``candidates`` are the titles to choose from
    (``rank``). ``truth`` is a title (``rank``, ``next``) or the stars (``rate``, ``like``).
    """

    task: str
    history: tuple[str, ...]
    stars: tuple[str, ...]
    truth: str | None = None
    item: str | None = None
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prompt:
    """A text, the answers to compare, each one token after it, and the place of the right one."""

    text: str
    answers: tuple[str, ...]
    label: int | None = None


WORDS = {
    "rank": "Which one of these movies came next ? {candidates} Answer with a title :",
    "next": "Which movie came next ? Answer with a title :",
    "rate": "How many stars does this viewer give {item} ? Answer with a number :",
    "like": "Does this viewer like {item} ? Answer yes or no :",
}
LETTERS = "Which one of these movies came next ? {candidates} Answer with a letter :"
WATCHED, RATED = "Watched :", "Watched and rated :"


def wrap(title: str) -> str:
    """Return a title as it stands in a prompt; nothing in it can end the quotation."""
    return prompts.quote(title)


def _history(question: Question) -> str:
    titles = [wrap(title) for title in question.history]
    if question.task in ("rank", "next"):
        return " ".join([WATCHED, *titles])
    pairs = (f"{a} {b}" for a, b in zip(titles, question.stars, strict=True))
    return " ".join([RATED, *pairs])


def instruction(question: Question, titles: Sequence[str] = (), *, letters: bool = False) -> Prompt:
    """Return the prompt with an instruction.

    ``titles`` is the whole catalogue, the answers of ``next``. With ``letters`` candidates are
    answered by letter (notebook 07), for models to which a title is many tokens.

    Raises:
        ValueError: the task is unknown.
    """
    if question.task not in TASKS:
        raise ValueError(f"The task is {question.task!r}; choose one of {', '.join(TASKS)}.")
    shown = [wrap(title) for title in question.candidates]
    answers: tuple[str, ...] = tuple(shown)
    words = WORDS[question.task]
    truth: str | None = None if question.truth is None else wrap(question.truth)
    if question.task == "rank" and letters:
        names = ranking.letters(len(shown))
        shown = [f"({a}) {b}" for a, b in zip(names, shown, strict=True)]
        truth = names[answers.index(truth)] if truth in answers else None
        answers, words = tuple(names), LETTERS
    elif question.task == "next":
        answers = tuple(titles)
    elif question.task == "rate":
        answers, truth = STARS, question.truth
    elif question.task == "like":
        answers = ("yes", "no")
        truth = None if question.truth is None else answers[float(question.truth) < LIKED]
    item = "" if question.item is None else wrap(question.item)
    text = words.replace("{candidates}", " ".join(shown)).replace("{item}", item)
    label = answers.index(truth) if truth in answers else None
    return Prompt(f"{_history(question)} {text}", answers, label)


def document(question: Question, titles: Sequence[str] = ()) -> Prompt:
    """Return the prompt without an instruction: a document of the kind the base model has read.

    The document breaks off where the answer would stand. Candidates are not shown, only compared.
    ``like`` has no answer of its own in a document: compare the stars instead (``rate``).
    """
    answers = tuple(wrap(title) for title in question.candidates)
    truth = None if question.truth is None else wrap(question.truth)
    text = _history(question)
    if question.task == "next":
        answers = tuple(titles)
    elif question.task in ("rate", "like"):
        answers, truth = STARS, question.truth
        text += " " + wrap(question.item or "")
    return Prompt(text, answers, answers.index(truth) if truth in answers else None)


def with_examples(question: Question, examples: Sequence[Question], **options: Any) -> Prompt:
    """Return the instruction prompt with answered ``examples`` before it (in-context learning).

    Raises:
        ValueError: an example has no answer.
    """
    parts = []
    for example in examples:
        shown = instruction(example, **options)
        if shown.label is None:
            raise ValueError("An example has no answer; take it from training data.")
        parts.append(f"{shown.text} {shown.answers[shown.label]}")
    asked = instruction(question, **options)
    return replace(asked, text=" ".join([*parts, asked.text]))


# --- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """All questions on one data set. Each part maps a task to its questions.

    ``early`` is what the base model reads: training histories without their last ``STEPS`` items,
    about which ``train`` asks. ``validation`` and ``test`` ask about the two items set apart by
    leave-one-out, keyed by user. Only users whose item was retrieved have a ``rank`` question.
    """

    protocol: vt.Protocol
    titles: dict[int, str]
    genres: dict[int, tuple[str, ...]]
    early: pd.DataFrame
    train: dict[str, list[Question]]
    train_users: dict[str, list[int]]
    validation: dict[str, dict[int, Question]]
    test: dict[str, dict[int, Question]]

    @property
    def catalogue(self) -> tuple[str, ...]:
        """All titles as they stand in prompts, in the order of the protocol's items."""
        return tuple(wrap(self.titles[int(item)]) for item in self.protocol.items)

    @classmethod
    def of(cls, dataset: data.Dataset, steps: int = STEPS) -> Course:
        """Prepare a data set; titles that two movies share get their movieId."""
        protocol = vt.Protocol.of(dataset)
        movies = data.load_pandas(dataset, "movies").set_index("movieId").loc[protocol.items]
        twice = movies["title"].duplicated(keep=False)
        names = movies["title"].where(
            ~twice, movies["title"] + " [" + movies.index.astype(str) + "]"
        )
        titles = {int(item): str(name) for item, name in names.items()}
        genres = {
            int(item): () if text.startswith("(") else tuple(text.split("|"))
            for item, text in movies["genres"].items()
        }
        rows = protocol.split.train
        late = rows.groupby("userId").cumcount(ascending=False) < steps
        train: dict[str, list[Question]] = {task: [] for task in TASKS}
        train_users: dict[str, list[int]] = {task: [] for task in TASKS}
        pairs = sequential.steps_back(rows, protocol.items, steps)
        for step, (seen, target) in enumerate(pairs):
            lists = sequential.top_lists(
                sequential.unseen(sequential.transitions(seen, vt.RETRIEVER), seen),
                seen,
                vt.CANDIDATES,
            )
            made = _questions(seen, lists, target, rows, titles, seed=100_003 * (step + 1))
            for task in TASKS:
                train[task] += made[task].values()
                train_users[task] += made[task].keys()
        whole = pd.concat([protocol.split.known, protocol.split.test])
        parts = [
            _questions(seen, lists, target, whole, titles)
            for seen, lists, target in (protocol.validation, protocol.test)
        ]
        return cls(protocol, titles, genres, rows.loc[~late], train, train_users, *parts)


def _questions(
    seen: Interactions,
    lists: pd.DataFrame,
    target: pd.DataFrame,
    rows: pd.DataFrame,
    titles: Mapping[int, str],
    seed: int = 0,
) -> dict[str, dict[int, Question]]:
    """Return each task's questions by user; ``rows`` is where ratings are looked up."""
    stars = {(u, m): f"{max(r, 0.5):.1f}" for u, m, r in
             zip(rows["userId"], rows["movieId"], rows["rating"], strict=True)}  # fmt: skip
    places = np.arange(len(seen.users))
    starts, ends = (np.searchsorted(seen.row, places, side) for side in ("left", "right"))
    pools = {user: ids.tolist() for user, ids in lists.groupby("userId")["movieId"]}
    place = {int(user): i for i, user in enumerate(seen.users)}
    found: dict[str, dict[int, Question]] = {task: {} for task in TASKS}
    for user, movie in zip(target["userId"].tolist(), target["movieId"].tolist(), strict=True):
        start, end = starts[place[user]], ends[place[user]]
        own = seen.column[max(start, end - HISTORY) : end]
        last = [int(item) for item in seen.items[own]]
        base = Question(
            "next",
            tuple(titles[item] for item in last),
            tuple(stars[user, item] for item in last),
            titles[movie],
        )
        found["next"][user] = base
        for task in ("rate", "like"):
            found[task][user] = replace(
                base, task=task, item=titles[movie], truth=stars[user, movie]
            )
        pool = prompts.shuffled(pools.get(user, []), seed + user)
        if movie in pool:
            names = tuple(titles[int(item)] for item in pool)
            found["rank"][user] = replace(base, task="rank", candidates=names)
    return found


# --- the model ------------------------------------------------------------------------------------


class Model:
    """A causal LM that answers by comparing the probabilities of single tokens."""

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        """Keep the three; ``name`` is for messages."""
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._ids: dict[str, int] = {}
        self._groups: dict[tuple[str, ...], torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def answer_ids(self, answers: tuple[str, ...]) -> torch.Tensor:
        """Return the token of each answer after a prompt.

        Raises:
            AdaptingError: an answer is more than one token, or two answers share one.
        """
        if answers not in self._groups:
            before = self.tokenizer("Answer :")["input_ids"]
            for answer in answers:
                if answer in self._ids:
                    continue
                after = self.tokenizer(f"Answer : {answer}")["input_ids"]
                if after[: len(before)] != before or len(after) != len(before) + 1:
                    raise AdaptingError(
                        f"The answer {answer} is not one token for {self.name}: leave this task "
                        "out, or choose another base model."
                    )
                self._ids[answer] = after[-1]
            ids = [self._ids[answer] for answer in answers]
            if len(set(ids)) < len(ids):
                raise AdaptingError(f"Two answers are the same token for {self.name}.")
            self._groups[answers] = torch.tensor(ids)
        return self._groups[answers]

    def logits(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the logits of the token after each text, shape (batch, vocabulary)."""
        rows = [self.tokenizer(text)["input_ids"] for text in texts]
        return self.logits_of(rows)

    def logits_of(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """Return the logits after each row of tokens.

        Rows are filled up at the right, where a causal model never looks, so that a position counts
        from the first token, with virtual tokens before it or not.

        Raises:
            AdaptingError: a row is longer than the model can read.
        """
        lengths = torch.tensor([len(row) for row in rows])
        width = int(lengths.max())
        limit = getattr(vt._bare(self.model).config, "max_position_embeddings", None)
        before = max(
            (
                getattr(how, "num_virtual_tokens", 0) or 0
                for how in getattr(self.model, "peft_config", {}).values()
            ),
            default=0,
        )
        if limit is not None and width + before > limit:
            raise AdaptingError(
                f"A prompt has {width + before} tokens and {self.name} reads {limit}: ask with a "
                "shorter history or fewer examples, or choose a base model with a longer context."
            )
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        mask = (torch.arange(width) < lengths[:, None]).long()
        kept = width - int(lengths.min()) + 1
        out = self.model(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            logits_to_keep=kept,
        ).logits
        last = (lengths - 1 - (width - kept)).to(self.device)
        return out[torch.arange(len(rows), device=self.device), last].float()

    def scores(self, asked: Sequence[Prompt], size: int = 64) -> list[np.ndarray]:
        """Return the log-probabilities of each prompt's answers among themselves."""
        self.model.eval()
        order = sorted(range(len(asked)), key=lambda i: len(asked[i].text))
        found: list[np.ndarray] = [np.empty(0)] * len(asked)
        with torch.no_grad():
            for start in range(0, len(order), size):
                part = order[start : start + size]
                logits = self.logits([asked[i].text for i in part]).cpu().double()
                for i, row in zip(part, logits, strict=True):
                    found[i] = log_softmax(row[self.answer_ids(asked[i].answers)], 0).numpy()
        return found

    def loss(self, asked: Sequence[Prompt], among: str = "answers") -> torch.Tensor:
        """Return the mean cross-entropy of the right answers.

        ``among`` the ``answers`` of the prompt (a ranking loss where they are candidates), or
        ``all`` tokens, as for a text-to-text model.
        """
        logits = self.logits([one.text for one in asked])
        losses = []
        for one, row in zip(asked, logits, strict=True):
            if one.label is None:
                raise AdaptingError("A prompt has no answer: training needs one.")
            ids = self.answer_ids(one.answers).to(row.device)
            if among == "answers":
                losses.append(-log_softmax(row[ids], 0)[one.label])
            else:
                losses.append(-log_softmax(row, 0)[ids[one.label]])
        return torch.stack(losses).mean()

    def parameters(self) -> tuple[int, int]:
        """Return how many numbers train, and how many there are."""
        every = [(one.numel(), one.requires_grad) for one in self.model.parameters()]
        return sum(n for n, trains in every if trains), sum(n for n, _ in every)

    def clone(self) -> Model:
        """Return a copy that can be trained without touching this one."""
        return Model(copy.deepcopy(self.model), self.tokenizer, self.name)


def tokenizer_of(course: Course) -> Any:
    """Return a tokenizer with one token per title and per word of the prompts (P5's item ids)."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = " ".join([*WORDS.values(), LETTERS, WATCHED, RATED, "Movie : yes no and ."])
    genres = sorted({genre for every in course.genres.values() for genre in every})
    letters = ranking.letters(vt.CANDIDATES)
    words = dict.fromkeys([*text.split(), *STARS, *letters, *(f"({a})" for a in letters), *genres])
    words.update(dict.fromkeys(f"{decade}s" for decade in range(1880, 2040, 10)))
    core = Tokenizer(
        models.WordLevel(
            {w: i for i, w in enumerate(["<pad>", "<unk>", *words])}, unk_token="<unk>"
        )
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_tokens([AddedToken(title, normalized=False) for title in course.catalogue])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")


def small(
    course: Course, *, hidden: int = 64, layers: int = 2, heads: int = 2, seed: int = 0
) -> Model:
    """Return the untrained small model of the Llama architecture."""
    from transformers import LlamaForCausalLM

    tokenizer = tokenizer_of(course)
    torch.manual_seed(seed)
    config = vt.small_config(
        len(tokenizer),
        hidden,
        layers,
        heads,
        max_position_embeddings=1024,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Model(LlamaForCausalLM(config), tokenizer, "the small model")


def drop(model: Any, share: float) -> list[Any]:
    """Add dropout after the embedding and each block's two parts, which Llama has not.

    Returns handles; ``remove()`` takes each away. It acts in training mode only.

    Raises:
        AdaptingError: the model is not built like Llama.
    """

    def hook(module: Any, _: Any, out: Any) -> Any:
        first = out[0] if isinstance(out, tuple) else out
        first = dropout(first, share, module.training)
        return (first, *out[1:]) if isinstance(out, tuple) else first

    try:
        bare = vt._bare(model).model
        parts = [bare.embed_tokens, *(p for one in bare.layers for p in (one.self_attn, one.mlp))]
    except AttributeError:
        raise AdaptingError(
            f"{type(vt._bare(model)).__name__} has no embed_tokens, self_attn and mlp to add "
            "dropout to: choose a model of the Llama, Mistral, Qwen or Gemma families."
        ) from None
    return [part.register_forward_hook(hook) for part in parts]


def documents(course: Course, seed: int, window: int = 64) -> list[str]:
    """Return one epoch of what the base model reads.

    The early histories in windows, half of them with ratings, and a line per movie with its decade
    and genres. Windows begin elsewhere in each epoch (``seed``).
    """
    random = np.random.default_rng(seed)
    texts = []
    for _, rows in course.early.groupby("userId", sort=True):
        names = [wrap(course.titles[int(item)]) for item in rows["movieId"]]
        stars = [f"{max(r, 0.5):.1f}" for r in rows["rating"]]
        start = -int(random.integers(window))
        while start < len(names):
            part = slice(max(start, 0), start + window)
            start += window
            if len(names[part]) < 2:
                continue
            if random.random() < 0.5:
                texts.append(" ".join([WATCHED, *names[part]]))
            else:
                pairs = (f"{a} {b}" for a, b in zip(names[part], stars[part], strict=True))
                texts.append(" ".join([RATED, *pairs]))
    for item, title in course.titles.items():
        year = prompts.year_of(title.split(" [")[0])
        decade = [f"{year // 10 * 10}s"] if year else []
        texts.append(" ".join(["Movie :", wrap(title), *decade, *course.genres[item]]))
    return texts


def pretrain(
    model: Model,
    course: Course,
    epochs: int,
    *,
    rate: float = 3e-3,
    share: float = 0.2,
    batch: int = 16,
    seed: int = 0,
    check: Callable[[int], None] | None = None,
) -> list[float]:
    """Train on documents: predict every next token. Returns the mean loss of each epoch."""
    torch.manual_seed(seed)
    handles = drop(model.model, share)
    optimizer = torch.optim.AdamW(
        model.model.parameters(), lr=rate, weight_decay=0.1, betas=(0.9, 0.98)
    )
    random, losses = np.random.default_rng(seed), []
    steps = epochs * -(-len(documents(course, seed)) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: vt._rate(s / steps / 1.05, 0.05)
    )
    for epoch in tqdm(range(epochs), desc="reading", unit="epoch"):
        texts = documents(course, seed + epoch)
        rows = model.tokenizer(texts)["input_ids"]
        # Rows of like length share a batch; batches come in random order.
        order = np.lexsort((random.random(len(rows)), [len(row) for row in rows]))
        parts = [order[i : i + batch] for i in range(0, len(order), batch)]
        model.model.train()
        total = []
        for i in random.permutation(len(parts)):
            chosen = [rows[j] for j in parts[i]]
            width = max(map(len, chosen))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in chosen])
            labels = torch.tensor([row + [-100] * (width - len(row)) for row in chosen])
            out = model.model(input_ids=ids.to(model.device), use_cache=False).logits
            loss = cross_entropy(
                out[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(model.device)
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total.append(loss.item())
        losses.append(float(np.mean(total)))
        if check:
            check(epoch)
    for handle in handles:
        handle.remove()
    model.model.eval()
    return losses


# --- adapting -------------------------------------------------------------------------------------


def soft_prompt(model: Model, tokens: int = 20, seed: int = 0) -> Model:
    """Return a copy with ``tokens`` trainable vectors before every prompt; nothing else trains.

    Prompt tuning (Lester et al. 2021). The vectors start as those of tokens drawn at random.
    """
    from peft import PromptTuningConfig, TaskType, get_peft_model

    torch.manual_seed(seed)
    how = PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, num_virtual_tokens=tokens, prompt_tuning_init="SAMPLE_VOCAB"
    )
    return Model(get_peft_model(copy.deepcopy(model.model), how), model.tokenizer, model.name)


def lora(model: Model, rank: int = 8, seed: int = 0) -> Model:
    """Return a copy with LoRA (Hu et al. 2021) on q and v; nothing else trains.

    Raises:
        AdaptingError: the model has no layers called q_proj and v_proj.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    names = {name.rsplit(".", 1)[-1] for name, _ in model.model.named_modules()}
    if not {"q_proj", "v_proj"} <= names:
        raise AdaptingError(
            f"{model.name} has no layers q_proj and v_proj for LoRA: choose a model of the Llama, "
            "Mistral, Qwen or Gemma families."
        )
    torch.manual_seed(seed)
    how = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=4 * rank,
        target_modules=["q_proj", "v_proj"],
    )
    return Model(get_peft_model(copy.deepcopy(model.model), how), model.tokenizer, model.name)


def shuffled(question: Question, random: np.random.Generator) -> Question:
    """Return the question with its candidates in another order."""
    order = random.permutation(len(question.candidates))
    return replace(question, candidates=tuple(question.candidates[i] for i in order))


def train(
    model: Model,
    examples: Sequence[Question],
    ask: Callable[[Question], Prompt],
    *,
    epochs: int,
    rate: float,
    validation: Sequence[Prompt] = (),
    among: str = "answers",
    share: float = 0.0,
    batch: int = 32,
    per_epoch: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Train what is trainable, and keep the epoch with the lowest loss on ``validation``.

    Epoch 0 is the model as it came, so that training can be refused. Candidates stand in a new
    order in each epoch. ``per_epoch`` questions are drawn for an epoch (default: all). ``share`` is
    the dropout added while training (:func:`drop`), ``among`` as in :meth:`Model.loss`.

    Returns:
        A row per epoch: ``epoch, loss, validation``, both losses per answer.

    Raises:
        AdaptingError: there is no example.
    """
    if not examples:
        raise AdaptingError("There is no training question: take a larger data set or more steps.")
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    trainable = {name: p for name, p in model.model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    n = min(per_epoch or len(examples), len(examples))
    steps = epochs * -(-n // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: vt._rate(s / steps / 1.02, 0.1)
    )
    handles = drop(model.model, share) if share else []

    def state() -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in trainable.items()}

    rows = [{"epoch": 0, "loss": np.nan, "validation": answer_loss(model, validation)}]
    best = state()
    for epoch in tqdm(range(1, epochs + 1), desc="adapting", unit="epoch"):
        model.model.train()
        chosen = random.permutation(len(examples))[:n]
        made = [ask(shuffled(examples[i], random)) for i in chosen]
        losses = []
        for start in range(0, n, batch):
            loss = model.loss(made[start : start + batch], among)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trainable.values(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        found = answer_loss(model, validation)
        if not validation or found < min(row["validation"] for row in rows):
            best = state()
        rows.append({"epoch": epoch, "loss": float(np.mean(losses)), "validation": found})
    with torch.no_grad():
        for name, p in trainable.items():
            p.copy_(best[name])
    for handle in handles:
        handle.remove()
    model.model.eval()
    return pd.DataFrame(rows)


def answer_loss(model: Model, asked: Sequence[Prompt]) -> float:
    """Return the mean loss of the right answers among the answers; NaN for no prompt."""
    if not asked:
        return float("nan")
    found = model.scores(asked)
    return float(np.mean([-row[one.label] for row, one in zip(found, asked, strict=True)]))


def examples_for(course: Course, task: str, user: int, k: int, seed: int = 0) -> list[Question]:
    """Return ``k`` answered training questions of other users, the same whatever the right answer.

    Nothing about the user asked for, or about anybody's validation and test items, is in them.
    """
    random = np.random.default_rng((seed, user))
    others = np.flatnonzero(np.array(course.train_users[task]) != user)
    if len(others) < k:
        raise AdaptingError(f"There are {len(others)} examples of other users; ask for fewer.")
    return [course.train[task][i] for i in random.choice(others, size=k, replace=False)]


def mixture(
    course: Course, tasks: Sequence[str], each: int = QUESTIONS, seed: int = 0
) -> list[Question]:
    """Return at most ``each`` training questions of every task, for tuning on instructions."""
    random = np.random.default_rng(seed)
    return [
        course.train[task][i]
        for task in tasks
        for i in random.permutation(len(course.train[task]))[:each]
    ]


# --- evaluation -----------------------------------------------------------------------------------

Form = Callable[[Question], Prompt]


def forms(course: Course, letters: bool = False) -> tuple[Form, Form]:
    """Return the two ways to ask: with an instruction, and as a document."""
    titles = course.catalogue
    return lambda q: instruction(q, titles, letters=letters), lambda q: document(q, titles)


def rank_of(asked: Sequence[Prompt], found: Sequence[np.ndarray]) -> np.ndarray:
    """Return the rank, from 1, of each right answer; what ties with it stands before it."""
    pairs = zip(found, asked, strict=True)
    return np.array([int((row >= row[one.label]).sum()) for row, one in pairs])


def ndcg(ranks: np.ndarray, users: int, k: int = 10) -> np.ndarray:
    """Return NDCG@k per user, with zeros for the users who have no rank."""
    gains = np.where(ranks <= k, 1 / np.log2(ranks + 1), 0.0)
    return np.concatenate([gains, np.zeros(users - len(gains))])


def task_scores(
    model: Model, course: Course, ask: Form, tasks: Sequence[str] = TASKS, part: str = "test"
) -> dict[str, tuple[float, float, float]]:
    """Return each task's metric on all users with its bootstrap interval: value, low, high.

    ``rank`` and ``next``: NDCG@10 over all users. ``rate``: root mean squared error in stars, of
    the expected number of stars. ``like``: area under the ROC curve.
    """
    found = {}
    for task in tasks:
        asked = [ask(question) for question in getattr(course, part)[task].values()]
        found[task] = task_score(task, asked, model.scores(asked), course, part)
    return found


def task_score(
    task: str,
    asked: Sequence[Prompt],
    answers: Sequence[np.ndarray],
    course: Course,
    part: str = "test",
) -> tuple[float, ...]:
    """Return the metric of one task, low and high; see :func:`task_scores`."""
    seen, _, target = getattr(course.protocol, part)
    truth = [question.truth for question in getattr(course, part)[task].values()]
    if task == "rank":
        return interval(ndcg(rank_of(asked, answers), len(target)))
    if task == "next":
        table = sequential.unseen(np.array(answers), seen)
        return interval(ndcg(sequential.target_ranks(table, seen, target), len(target)))
    if task == "rate":
        return rmse(stars_of(answers), [float(stars) for stars in truth])
    if asked[0].answers == STARS:  # a document: the stars stand for yes and no
        yes = [np.exp(row[STARS.index(f"{LIKED:.1f}") :]).sum() for row in answers]
    else:
        yes = [np.exp(row[0]) for row in answers]
    return auc(yes, [float(stars) >= LIKED for stars in truth])


def stars_of(answers: Sequence[np.ndarray]) -> np.ndarray:
    """Return the expected number of stars."""
    return np.exp(np.array(answers)) @ np.array([float(one) for one in STARS])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return a mean over users with its 95 % bootstrap interval."""
    at = metrics.bootstrap_interval(values)
    return at.mean, at.low, at.high


def rmse(guess: Sequence[float], truth: Sequence[float]) -> tuple[float, float, float]:
    """Return the root mean squared error with its interval."""
    value, low, high = np.sqrt(interval((np.array(guess) - np.array(truth)) ** 2))
    return float(value), float(low), float(high)


def auc(score: Sequence[float], right: Sequence[bool], draws: int = 1000) -> tuple[float, ...]:
    """Return the area under the ROC curve with its bootstrap interval over users."""
    score, right = np.array(score), np.array(right)

    def area(at: np.ndarray) -> float:  # the Mann-Whitney statistic, scaled
        ranks, yes = rankdata(score[at]), right[at]
        n = int(yes.sum())
        if n in (0, len(yes)):
            return float("nan")
        return float((ranks[yes].sum() - n * (n + 1) / 2) / (n * (len(yes) - n)))

    every = np.arange(len(score))
    picks = np.random.default_rng(0).integers(0, len(score), size=(draws, len(score)))
    low, high = np.nanquantile([area(one) for one in picks], [0.025, 0.975])
    return area(every), float(low), float(high)


def trivial_tasks(course: Course) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return what needs no language model, per task: popularity, transition counts, mean ratings.

    The mean row predicts the overall mean plus the user's and the movie's shrunken deviations.
    """
    seen, lists, target = course.protocol.test
    users, known = len(target), course.protocol.split.known
    counts = sequential.unseen(sequential.transitions(seen, vt.RETRIEVER), seen)
    popular = sequential.unseen(sequential.popularity(seen).astype(float), seen)
    place = {int(item): i for i, item in enumerate(seen.items)}
    tried = lists.assign(score=-seen.counts[[place[i] for i in lists["movieId"]]])
    tried = tried.sort_values(["userId", "score", "movieId"])
    tried = tried.assign(rank=tried.groupby("userId").cumcount() + 1)
    mean = known["rating"].mean()
    by_user = (known["rating"] - mean).groupby(known["userId"])
    of_user = by_user.sum() / (by_user.size() + 5)
    left = known["rating"] - mean - known["userId"].map(of_user)
    of_item = left.groupby(known["movieId"]).sum() / (left.groupby(known["movieId"]).size() + 5)
    guess = mean + target["userId"].map(of_user) + target["movieId"].map(of_item).fillna(0)
    own, pop = (metrics.score_table(t, target)["NDCG@10"].to_numpy() for t in (lists, tried))
    draws = [metrics.score_table(vt._shuffled(lists, i), target)["NDCG@10"] for i in range(100)]
    half = (0.5, 0.5, 0.5)
    flat = rmse([mean] * users, target["rating"])
    return {
        "random": {"rank": interval(sum(draws) / len(draws)), "like": half},
        "overall mean": {"rate": flat},
        "popularity": {
            "rank": interval(pop),
            "next": interval(ndcg(sequential.target_ranks(popular, seen, target), users)),
        },
        "transition counts": {
            "rank": interval(own),
            "next": interval(ndcg(sequential.target_ranks(counts, seen, target), users)),
        },
        "user and movie means": {
            "rate": rmse(guess, target["rating"]),
            "like": auc(guess, target["rating"] >= LIKED),
        },
    }


# --- P5 and POD in miniature ----------------------------------------------------------------------


def bare(question: Question, titles: Sequence[str] = ()) -> Prompt:
    """Return the instruction prompt without its words: history, then candidates or the movie.

    What POD (Li et al. 2023) leaves of a prompt. ``rate`` and ``like`` have the same text.
    """
    whole = instruction(question, titles)
    shown = [wrap(title) for title in question.candidates]
    shown += [wrap(question.item)] if question.item else []
    return replace(whole, text=" ".join([_history(question), *shown]))


def distil(
    teacher: Model,
    examples: Sequence[Question],
    titles: Sequence[str],
    *,
    tokens: int = 3,
    epochs: int = 3,
    rate: float = 3e-2,
    batch: int = 32,
    seed: int = 0,
) -> Model:
    """Return the teacher with ``tokens`` vectors in place of one task's instruction.

    The vectors learn to give, before the :func:`bare` prompt, the distribution over the answers
    that the teacher gives to the instruction (Kullback-Leibler divergence); the teacher is frozen.
    POD tunes the whole model beside the vectors, with the words still there.
    """
    student = soft_prompt(teacher, tokens, seed)
    trainable = [one for one in student.model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=rate, weight_decay=0.0)
    random = np.random.default_rng(seed)
    asked = [instruction(one, titles) for one in examples]
    wanted = teacher.scores(asked)
    for _ in tqdm(range(epochs), desc="distilling", unit="epoch"):
        student.model.train()
        order = random.permutation(len(examples))
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            logits = student.logits([bare(examples[i], titles).text for i in part])
            losses = []
            for i, row in zip(part, logits, strict=True):
                own = log_softmax(row[student.answer_ids(asked[i].answers).to(row.device)], 0)
                goal = torch.tensor(wanted[i], dtype=own.dtype, device=own.device)
                losses.append(kl_div(own, goal, reduction="sum", log_target=True))
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
    student.model.eval()
    return student


class TwoTokens(nn.Module):
    """A small Llama over item ids of two tokens, with P5's whole-word embedding or without.

    P5 (Geng et al. 2022) writes an item as an id that falls apart into several tokens. All tokens
    of one word of the prompt, here of one item, get the same extra vector, so that the model sees
    what belongs together. Item i of n is the pair (i // b, b + i % b) with b = ceil(sqrt(n)).
    """

    def __init__(
        self, n_items: int, whole_word: bool, *, hidden: int = 64, words: int = 64
    ) -> None:
        """Draw the weights; ``words`` is the number of items that a text may hold."""
        from transformers import LlamaForCausalLM

        super().__init__()
        self.base = int(np.ceil(np.sqrt(n_items)))
        config = vt.small_config(
            2 * self.base,
            hidden,
            layers=2,
            heads=2,
            max_position_embeddings=256,
            initializer_range=0.05,
            pad_token_id=None,
        )
        self.model = LlamaForCausalLM(config)
        self.whole = nn.Embedding(words, hidden) if whole_word else None
        if self.whole is not None:
            nn.init.normal_(self.whole.weight, std=0.05)

    def tokens(self, columns: np.ndarray) -> torch.Tensor:
        """Return the tokens of items, shape (..., 2 n) for (..., n)."""
        pairs = np.stack([columns // self.base, self.base + columns % self.base], -1)
        return torch.from_numpy(pairs.reshape(*columns.shape[:-1], -1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next tokens, shape (batch, length, vocabulary)."""
        vectors = self.model.get_input_embeddings()(ids)
        if self.whole is not None:
            vectors = vectors + self.whole(torch.arange(ids.shape[1], device=ids.device) // 2)
        return self.model(inputs_embeds=vectors, use_cache=False).logits


def two_token_ranks(
    course: Course, whole_word: bool, *, epochs: int = 4, rate: float = 3e-3, seed: int = 0
) -> tuple[np.ndarray, list[float]]:
    """Train :class:`TwoTokens` on the early histories, return the test ranks among candidates.

    Only users whose item was retrieved have a rank. Also returns the loss of each epoch.
    """
    items = course.protocol.items
    torch.manual_seed(seed)
    model = TwoTokens(len(items), whole_word)
    handles = drop(model.model, 0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, betas=(0.9, 0.98))
    histories = [np.searchsorted(items, g["movieId"]) for _, g in course.early.groupby("userId")]
    random, window, losses = np.random.default_rng(seed), HISTORY + 1, []
    for _ in tqdm(range(epochs), desc="item ids of two tokens", unit="epoch"):
        model.train()
        parts = [
            part
            for one in histories
            for start in range(-int(random.integers(window)), len(one), window)
            if len(part := one[max(start, 0) : start + window]) > 1
        ]
        parts = sorted((parts[i] for i in random.permutation(len(parts))), key=len)
        total = []
        batches = [parts[i : i + 32] for i in range(0, len(parts), 32)]
        for i in random.permutation(len(batches)):
            width = min(map(len, batches[i]))
            ids = model.tokens(np.stack([part[-width:] for part in batches[i]]))
            loss = cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total.append(loss.item())
        losses.append(float(np.mean(total)))
    for handle in handles:
        handle.remove()
    model.eval()
    column = {wrap(course.titles[int(item)]): i for i, item in enumerate(items)}
    ranks = []
    with torch.no_grad():
        for question in course.test["rank"].values():
            past = np.array([column[wrap(title)] for title in question.history])
            pool = np.array([column[wrap(title)] for title in question.candidates])
            rows = np.column_stack([np.tile(past, (len(pool), 1)), pool])
            ids = model.tokens(rows)
            logs = log_softmax(model(ids[:, :-1]).double(), -1)
            first, second = (logs[range(len(pool)), at, ids[:, at + 1]] for at in (-2, -1))
            score = first + second
            own = score[question.candidates.index(str(question.truth))]
            ranks.append(int((score >= own).sum()))
    return np.array(ranks), losses


# --- an encoder beside the decoder ----------------------------------------------------------------


def encoder(model: Model, *, seed: int = 0) -> Any:
    """Return an untrained BERT with the tokenizer and size of the small decoder."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    like = vt._bare(model.model).config
    config = BertConfig(
        vocab_size=like.vocab_size,
        hidden_size=like.hidden_size,
        intermediate_size=like.intermediate_size,
        num_hidden_layers=like.num_hidden_layers,
        num_attention_heads=like.num_attention_heads,
        max_position_embeddings=256,
        initializer_range=0.05,
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.1,
        pad_token_id=0,
    )
    return BertForMaskedLM(config)


def _filled(rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, (ids > 0).long()


def pretrain_encoder(
    bert: Any, tokenizer: Any, course: Course, epochs: int, *, rate: float = 3e-3, seed: int = 0
) -> list[float]:
    """Train on the decoder's documents to fill in masked tokens (a fifth of all, and each last).

    The token ``<unk>``, which no document has, is the mask. Returns the loss of each epoch.
    """
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(bert.parameters(), lr=rate, weight_decay=0.1, betas=(0.9, 0.98))
    random, losses = np.random.default_rng(seed), []
    steps = epochs * -(-len(documents(course, seed)) // 16)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: vt._rate(s / steps / 1.05, 0.05)
    )
    for epoch in tqdm(range(epochs), desc="filling in", unit="epoch"):
        rows = sorted(tokenizer(documents(course, seed + epoch))["input_ids"], key=len)
        bert.train()
        total = []
        parts = [rows[i : i + 16] for i in range(0, len(rows), 16)]
        for i in random.permutation(len(parts)):
            ids, real = _filled(parts[i])
            hidden = (torch.rand(ids.shape) < 0.2) & (real > 0)
            hidden[torch.arange(len(ids)), real.sum(1) - 1] = True
            out = bert(ids.masked_fill(hidden, tokenizer.unk_token_id), attention_mask=real)
            loss = cross_entropy(out.logits[hidden], ids[hidden])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(bert.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total.append(loss.item())
        losses.append(float(np.mean(total)))
    bert.eval()
    return losses


def encoder_answers(
    bert: Any, tokenizer: Any, asked: Sequence[Prompt], model: Model
) -> list[np.ndarray]:
    """Return the log-probabilities of the answers at a mask after each text.

    ``model``, the decoder with the same tokenizer, knows the answers' tokens.
    """
    found = []
    with torch.no_grad():
        for start in range(0, len(asked), 64):
            part = asked[start : start + 64]
            rows = [[*tokenizer(one.text)["input_ids"], tokenizer.unk_token_id] for one in part]
            ids, real = _filled(rows)
            logits = bert(ids, attention_mask=real).logits[torch.arange(len(ids)), real.sum(1) - 1]
            for one, row in zip(part, logits.double(), strict=True):
                found.append(log_softmax(row[model.answer_ids(one.answers)], 0).numpy())
    return found


def like_head(
    bert: Any,
    tokenizer: Any,
    examples: Sequence[Prompt],
    asked: Sequence[Prompt],
    *,
    epochs: int = 3,
    rate: float = 1e-3,
    seed: int = 0,
) -> np.ndarray:
    """Put a classification head on an encoder, train both, return the probability of yes.

    One pass gives one number from the whole text, read in both directions; no answer is written.
    """
    from transformers import BertForSequenceClassification

    torch.manual_seed(seed)
    network = BertForSequenceClassification(bert.config)
    network.bert.load_state_dict(
        bert.bert.state_dict(), strict=False
    )  # a new pooler, the rest kept
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    random = np.random.default_rng(seed)
    for _ in tqdm(range(epochs), desc="a head on the encoder", unit="epoch"):
        network.train()
        for part in np.array_split(random.permutation(len(examples)), -(-len(examples) // 32)):
            ids, real = _filled([tokenizer(examples[i].text)["input_ids"] for i in part])
            labels = torch.tensor([examples[i].label for i in part])
            loss = cross_entropy(network(ids, attention_mask=real).logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(asked), 64):
            ids, real = _filled([tokenizer(o.text)["input_ids"] for o in asked[start : start + 64]])
            found.append(torch.softmax(network(ids, attention_mask=real).logits, -1)[:, 0].numpy())
    return np.concatenate(found)


def title_vectors(network: Any, tokenizer: Any, course: Course) -> np.ndarray:
    """Return the last hidden state of each title, read alone, shape (n_items, hidden), length 1."""
    rows = tokenizer([f"{WATCHED} {title}" for title in course.catalogue])["input_ids"]
    with torch.no_grad():
        ids = torch.tensor(rows)
        states = network(input_ids=ids, output_hidden_states=True).hidden_states[-1][:, -1]
    vectors = states.double().numpy()
    vectors = vectors - vectors.mean(0)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def shared_genres(vectors: np.ndarray, course: Course, k: int = 10) -> np.ndarray:
    """Return each movie's mean share of genres in common (Jaccard) with its ``k`` nearest."""
    near = vectors @ vectors.T
    np.fill_diagonal(near, -np.inf)
    nearest = np.argsort(-near, axis=1)[:, :k]
    sets = [set(course.genres[int(item)]) for item in course.protocol.items]

    def overlap(a: set[str], b: set[str]) -> float:
        return len(a & b) / len(a | b) if a | b else 0.0

    return np.array(
        [np.mean([overlap(sets[i], sets[j]) for j in row]) for i, row in enumerate(nearest)]
    )


# --- the measurement ------------------------------------------------------------------------------

WAYS_ON = ("rank", "like")
"""The tasks on which all ways are compared."""
EPOCHS = 15
"""Passes of the base model over the documents."""
ENCODER_EPOCHS = 6
"""Passes of the encoder over the documents: it shows what an encoder can do, not how well."""
SOFT, LORA, FULL, TUNING = 3e-2, 3e-3, 5e-4, 1e-3
"""Learning rates, each the better of two on validation: the first two by the loss of the ranking
task, FULL by its NDCG@10 (its loss was lower at 2e-3), TUNING by the metrics of all four tasks.
For the task like none was searched: SOFT, LORA and FULL are those of the ranking task. All are the
small model's; a named model needs its own."""


def load(settings: Settings) -> Model:
    """Return the model that ``LLAMAREC_BASE_MODEL`` names; titles are then answered by letter.

    Raises:
        VerbalizerError: no model is named, or it cannot be loaded; see ``Verbalizer.load``.
    """
    named = vt.Verbalizer.load(settings)
    return Model(named.model, named.tokenizer, named.name)


def weights_path(settings: Settings) -> Path:
    """Return where the pretrained small model of the verified release is kept."""
    return settings.data_dir / "weights" / "adapting_base.safetensors"


def save_base(model: Model, path: Path, command: str) -> None:
    """Write the small model's weights with the fingerprint of its vocabulary."""
    from safetensors.torch import save_file

    weights = {name: p.detach().contiguous() for name, p in model.model.named_parameters()}
    facts = {"vocabulary": _vocabulary(model), "command": command}
    with data.replacing(path) as fresh:
        save_file(weights, fresh, facts)


def _vocabulary(model: Model) -> str:
    import hashlib

    words = sorted(model.tokenizer.get_vocab().items())
    return hashlib.sha256(repr(words).encode()).hexdigest()


def load_base(course: Course, path: Path) -> Model:
    """Return the small model with the weights in ``path``.

    Raises:
        AdaptingError: the file is missing or incomplete, or belongs to another catalogue.
    """
    from safetensors import safe_open

    model = small(course)
    if not path.is_file():
        raise AdaptingError(f"{path.name} is missing: run python -m research.adapting first.")
    with safe_open(path, "pt") as file:
        if (file.metadata() or {}).get("vocabulary") != _vocabulary(model):
            raise AdaptingError(
                f"{path.name} was trained on another catalogue: run python -m research.adapting."
            )
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    missing, unexpected = model.model.load_state_dict(weights, strict=False)
    if unexpected or not set(missing) <= {"lm_head.weight"}:  # the output layer is the embedding
        raise AdaptingError(
            f"{path.name} is not this model's weights: run python -m research.adapting --anew."
        )
    model.model.eval()
    return model


def base_of(
    course: Course,
    dataset: data.Dataset,
    settings: Settings,
    *,
    epochs: int = EPOCHS,
    anew: bool = False,
    seed: int = 0,
) -> Model:
    """Return the pretrained small model from its file, or pretrain it and keep it there.

    ``anew`` pretrains even if the file is there.
    """
    path = weights_path(settings)
    if not dataset.verified:
        path = settings.cache_dir / "adapting" / f"{dataset.name}.safetensors"
    if path.is_file() and not anew:
        print(f"base: from {path.name}")
        return load_base(course, path)
    base, start = small(course, seed=seed), time.perf_counter()
    losses = pretrain(base, course, epochs, seed=seed)
    spent = time.perf_counter() - start
    print(f"base: loss {losses[0]:.2f} to {losses[-1]:.2f}, {spent:.0f} s")
    save_base(base, path, f"python -m research.adapting --anew --seed {seed}")
    return base


@dataclass
class Record:
    """Collects a row per way to adapt, and each test user's rank of the right candidate."""

    course: Course
    rows: list[dict[str, Any]]
    ranks: list[pd.DataFrame]

    def add(
        self,
        task: str,
        way: str,
        prompt: str,
        model: Model,
        ask: Callable[[int, Question], Prompt],
        trainable: int = 0,
        seconds: float = 0.0,
        epoch: int = 0,
        questions: int = 0,
    ) -> None:
        """Answer the test users' questions of one task and note the result.

        ``questions`` is how many were read in training, each as often as it was read, and ``epoch``
        the one kept.
        """
        users = list(self.course.test[task])
        asked = [ask(user, question) for user, question in self.course.test[task].items()]
        answers = model.scores(asked)
        value, low, high = task_score(task, asked, answers, self.course)
        checked = [ask(u, q) for u, q in self.course.validation[task].items()]
        self.rows.append(
            {
                "task": task,
                "way": way,
                "prompt": prompt,
                "value": value,
                "low": low,
                "high": high,
                "users": len(self.course.protocol.test[2]),
                "validation_loss": answer_loss(model, checked),
                "trainable": trainable,
                "parameters": model.parameters()[1],
                "seconds": seconds,
                "epoch": epoch,
                "questions": questions,
            }
        )
        print(f"{task:6}{way:24}{prompt:13}{value:.4f} [{low:.4f}, {high:.4f}], {seconds:.0f} s")
        if task == "rank":
            table = pd.DataFrame({"userId": users, "rank": rank_of(asked, answers)})
            self.ranks.append(table.assign(way=way, prompt=prompt))


def measure_ways(
    course: Course, base: Model, task: str = "rank", letters: bool = False, seed: int = 0
) -> Record:
    """Adapt ``base`` to one task in every way that trains on this task alone, and test each.

    With ``letters`` candidates are answered by letter, and the document form is left out.
    """
    record = Record(course, [], [])
    ask, plain = forms(course, letters)
    if not letters:
        record.add(task, "prompting", "document", base, lambda _, q: plain(q))
    for shots in (0, 1, 4):

        def shot(user: int, question: Question, shots: int = shots) -> Prompt:
            examples = examples_for(course, task, user, shots, seed)
            return with_examples(question, examples, letters=letters)

        record.add(task, f"prompting, {shots} shots", "instruction", base, shot)
    examples = mixture(course, (task,), each=len(course.train["rank"]), seed=seed)
    runs: list[tuple[str, Callable[[], Model], float, float, int, Form]] = [
        ("prompt tuning", lambda: soft_prompt(base, seed=seed), SOFT, 0.0, 3, ask),
        ("LoRA", lambda: lora(base, seed=seed), LORA, 0.0, 3, ask),
        ("full fine-tuning", base.clone, FULL, 0.2, 3, ask),
    ]
    if task == "rank" and not letters:
        lettered, _ = forms(course, letters=True)
        runs.append(("full fine-tuning", base.clone, 2e-3, 0.1, 4, lettered))
    for way, make, rate, share, epochs, form in runs:
        model, start = make(), time.perf_counter()
        log = train(
            model,
            examples,
            form,
            epochs=epochs,
            rate=rate,
            share=share,
            validation=[form(one) for one in course.validation[task].values()],
            seed=seed,
        )
        seconds, best = time.perf_counter() - start, int(log["validation"].argmin())
        prompt = "instruction" if form is ask else "letters"
        n = model.parameters()[0]
        read = epochs * len(examples)
        record.add(task, way, prompt, model, lambda _, q, f=form: f(q), n, seconds, best, read)
    return record


def tune_on_instructions(
    course: Course, base: Model, tasks: Sequence[str], ask: Form, *, epochs: int = 3, seed: int = 0
) -> Model:
    """Return a copy tuned on the instructions of ``tasks``, as a text-to-text model.

    The loss is over the whole vocabulary; ``PER_EPOCH`` questions of each task in an epoch. No
    choice between epochs: the held-out task must not have a say.
    """
    model = base.clone()
    train(
        model, mixture(course, tasks, seed=seed), ask, epochs=epochs, rate=TUNING, share=0.2,
        among="all", per_epoch=PER_EPOCH * len(tasks), seed=seed,
    )  # fmt: skip
    return model


def measure_tasks(
    course: Course, base: Model, record: Record | None = None, seed: int = 0
) -> tuple[pd.DataFrame, Model]:
    """Tune on all tasks, on all but one and on one alone; test every task. Returns table, model."""
    ask, plain = forms(course)
    rows: list[dict[str, Any]] = []

    def note(name: str, prompt: str, scores: Mapping[str, tuple[float, ...]]) -> None:
        for task, (value, low, high) in scores.items():
            rows.append({"tuned_on": name, "prompt": prompt, "task": task, "value": value,
                         "low": low, "high": high})  # fmt: skip
        print(f"{name:28}{prompt:14}", {task: round(at[0], 3) for task, at in scores.items()})

    for name, scores in trivial_tasks(course).items():
        note(name, "none", scores)
    note("nothing", "document", task_scores(base, course, plain))
    note("nothing", "instruction", task_scores(base, course, ask))
    sets = [TASKS, *(tuple(t for t in TASKS if t != out) for out in TASKS), *((t,) for t in TASKS)]
    for tasks in sets:
        start = time.perf_counter()
        model = tune_on_instructions(course, base, tasks, ask, seed=seed)
        seconds = time.perf_counter() - start
        note(" ".join(tasks), "instruction", task_scores(model, course, ask))
        note(" ".join(tasks), "document", task_scores(model, course, plain))
        if tasks == TASKS:
            whole = model
            if record:
                n, read = model.parameters()[0], 3 * PER_EPOCH * len(tasks)
                for task in WAYS_ON:
                    record.add(task, "instruction tuning", "instruction", model,
                               lambda _, q: ask(q), n, seconds, 3, read)  # fmt: skip
    return pd.DataFrame(rows), whole


COLUMNS = ["part", "name", "measure", "value", "low", "high"]


def measure_p5(course: Course, seed: int = 0) -> pd.DataFrame:
    """Return ranking with item ids of two tokens, with P5's whole-word embedding and without."""
    rows: list[tuple[Any, ...]] = []
    for whole_word in (False, True):
        ranks, losses = two_token_ranks(course, whole_word, seed=seed)
        name = "with whole-word embedding" if whole_word else "without"
        rows.append(("P5", name, "rank", *interval(ndcg(ranks, len(course.protocol.test[2])))))
        rows.append(("P5", name, "loss", *[losses[-1]] * 3))
        print(*rows[-2:], sep="\n")
    return pd.DataFrame(rows, columns=COLUMNS)


def measure_pod(course: Course, whole: Model, seed: int = 0) -> pd.DataFrame:
    """Return each task asked of ``whole`` by instruction, without words, and by three vectors."""
    rows: list[tuple[Any, ...]] = []
    ask, titles = forms(course)[0], course.catalogue
    for task in TASKS:
        examples = mixture(course, (task,), each=1000, seed=seed)
        student = distil(whole, examples, titles, epochs=2, seed=seed)
        for name, model, form in (
            ("instruction", whole, ask),
            ("no words", whole, lambda q: bare(q, titles)),
            ("3 vectors", student, lambda q: bare(q, titles)),
        ):
            rows.append(("POD", name, task, *task_scores(model, course, form, (task,))[task]))
            print(*rows[-1])
            asked = [form(question).text for question in course.test[task].values()]
            n = float(np.mean([len(ids) for ids in whole.tokenizer(asked)["input_ids"]]))
            n += 3.0 * (model is student)
            rows.append(("POD", name, f"tokens {task}", n, n, n))
    return pd.DataFrame(rows, columns=COLUMNS)


def measure_families(course: Course, base: Model, seed: int = 0) -> pd.DataFrame:
    """Return an encoder beside the decoder ``base``: next title, like, genres nearby."""
    ask, plain = forms(course)
    bert, start = encoder(base, seed=seed), time.perf_counter()
    pretrain_encoder(bert, base.tokenizer, course, ENCODER_EPOCHS, seed=seed)
    print(f"encoder pretrained, {time.perf_counter() - start:.0f} s")
    seen, _, target = course.protocol.test
    asked = [plain(question) for question in course.test["next"].values()]
    answers = encoder_answers(bert, base.tokenizer, asked, base)
    ranks = sequential.target_ranks(sequential.unseen(np.array(answers), seen), seen, target)
    examples = [ask(question) for question in mixture(course, ("like",), seed=seed)]
    asked = [ask(question) for question in course.test["like"].values()]
    yes = like_head(bert, base.tokenizer, examples, asked, seed=seed)
    right = [float(question.truth) >= LIKED for question in course.test["like"].values()]
    tuned = tune_on_instructions(course, base, ("like",), ask, seed=seed)
    noise = np.random.default_rng(seed).normal(size=(len(course.catalogue), 8))
    vectors = {
        "encoder": title_vectors(bert, base.tokenizer, course),
        "decoder": title_vectors(base.model, base.tokenizer, course),
        "random": noise / np.linalg.norm(noise, axis=1, keepdims=True),
    }
    found = [
        ("encoder", "next", interval(ndcg(ranks, len(target)))),
        ("decoder", "next", task_scores(base, course, plain, ("next",))["next"]),
        ("encoder", "like", auc(yes, right)),
        ("decoder", "like", task_scores(tuned, course, ask, ("like",))["like"]),
        *((name, "genres", interval(shared_genres(v, course))) for name, v in vectors.items()),
    ]
    rows = [("families", name, measure, *values) for name, measure, values in found]
    print(*rows, sep="\n")
    return pd.DataFrame(rows, columns=COLUMNS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain the small model or load the named one, adapt it in every way, save the tables."""
    parser = argparse.ArgumentParser(prog="python -m research.adapting", description=main.__doc__)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of the small model's reading")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--anew", action="store_true", help="pretrain, even if weights are there")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; fixes the numbers")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    settings = Settings.from_env()
    dataset = data.locate(settings)
    print(dataset.describe())
    course = Course.of(dataset)
    named = settings.llamarec_base_model

    def save(table: pd.DataFrame, name: str) -> None:
        name = f"{name}_named" if named else name
        print(data.save_result(table, name, dataset, settings).name, "saved")

    if named:
        base = load(settings)
        record = measure_ways(course, base, letters=True, seed=asked.seed)
        record.rows += measure_ways(course, base, "like", True, asked.seed).rows
        save(pd.DataFrame(record.rows), "09_adapting")
        return
    base = base_of(course, dataset, settings, epochs=asked.epochs, anew=asked.anew, seed=asked.seed)
    record = measure_ways(course, base, seed=asked.seed)
    record.rows += measure_ways(course, base, "like", seed=asked.seed).rows
    save(pd.DataFrame(record.rows), "09_adapting")
    table, whole = measure_tasks(course, base, record, seed=asked.seed)
    save(pd.DataFrame(record.rows), "09_adapting")
    save(pd.concat(record.ranks)[["way", "prompt", "userId", "rank"]], "09_ranks")
    save(table, "09_tasks")
    parts = [
        measure_pod(course, whole, asked.seed),
        measure_families(course, base, asked.seed),
        measure_p5(course, asked.seed),
    ]
    save(pd.concat(parts), "09_small")


if __name__ == "__main__":
    sys.exit(command(main))
