"""Ways to adapt a language model to recommendation, on one small model: the lesson of notebook 09.

Prompting, prompt tuning (Lester et al. 2021), fine-tuning with the loss of one task (whole, or by
LoRA, Hu et al. 2021) and instruction tuning on several tasks at once (P5, Geng et al. 2022; POD, Li
et al. 2023). The small model is *pretrained here* on documents made of the training histories.
``python tools/experiments/09_adapting.py`` does all of it and saves the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from helpers import data, prompts, ranking
from helpers.settings import Settings
from research import questions, training
from research.language_model import LanguageModel, dropped_out, inner, small_llama
from research.protocol import CANDIDATES
from research.questions import Course, Form, Prompt, Question
from research.training import NO_CLIP, ModelError, Training, fit, padded

QUESTIONS = 3000
"""Training questions of a task in a :func:`mixture`, at most."""
PER_EPOCH = 1500
"""Questions of a task that instruction tuning draws for an epoch."""
EPOCHS = 15
"""Passes of the base model over the documents."""
SOFT, LORA, FULL, TUNING = 3e-2, 3e-3, 5e-4, 1e-3
"""Learning rates, each the better of two on validation: the first two by the loss of the ranking
task, FULL by its NDCG@10 (its loss was lower at 2e-3), TUNING by the metrics of all four tasks.
For the task like none was searched: SOFT, LORA and FULL are those of the ranking task. All are the
small model's; a named model needs its own."""

WAYS_ON = ("rank", "like")
"""The tasks on which all ways are compared."""

Model = LanguageModel


def tokenizer_of(course: Course) -> Any:
    """Return a tokenizer with one token per title and per word of the prompts (P5's item ids)."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    sentences = [questions.LETTERS, questions.WATCHED, questions.RATED, "Movie : yes no and ."]
    text = " ".join([*questions.WORDS.values(), *sentences])
    genres = sorted({genre for names in course.genres.values() for genre in names})
    letters = ranking.letters(CANDIDATES)
    words = [*text.split(), *questions.STARS, *letters, *(f"({letter})" for letter in letters)]
    words += [*genres, *(f"{decade}s" for decade in range(1880, 2040, 10))]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["<pad>", "<unk>", *words]))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_tokens([AddedToken(title, normalized=False) for title in course.catalogue])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", unk_token="<unk>")


def small(
    course: Course, *, hidden: int = 64, layers: int = 2, heads: int = 2, seed: int = 0
) -> Model:
    """Return the untrained small model of the Llama architecture."""
    tokenizer = tokenizer_of(course)
    torch.manual_seed(seed)
    model = small_llama(
        len(tokenizer),
        hidden,
        layers,
        heads,
        max_position_embeddings=1024,
        initializer_range=0.05,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Model(model, tokenizer, "the small model")


def documents(course: Course, seed: int, window: int = 64) -> list[str]:
    """Return one epoch of what the base model reads.

    Windows of early histories, half with ratings, and a line per movie with decade and genres.
    """
    random = np.random.default_rng(seed)
    texts = []
    for _, rows in course.early.groupby("userId", sort=True):
        names = [questions.wrap(course.titles[int(item)]) for item in rows["movieId"]]
        stars = [f"{max(rating, 0.5):.1f}" for rating in rows["rating"]]
        for start in range(-int(random.integers(window)), len(names), window):
            part = slice(max(start, 0), start + window)
            if len(names[part]) < 2:
                continue
            if random.random() < 0.5:
                texts.append(" ".join([questions.WATCHED, *names[part]]))
            else:
                pairs = (f"{a} {b}" for a, b in zip(names[part], stars[part], strict=True))
                texts.append(" ".join([questions.RATED, *pairs]))
    for item, title in course.titles.items():
        year = prompts.year_of(title.split(" [")[0])
        decade = [f"{year // 10 * 10}s"] if year else []
        texts.append(" ".join(["Movie :", questions.wrap(title), *decade, *course.genres[item]]))
    return texts


def pretrain(model: Model, course: Course, epochs: int, *, seed: int = 0) -> list[float]:
    """Train on documents: predict every next token. Returns the mean loss of each epoch."""
    how = Training(3e-3, epochs, weight_decay=0.1, stretch=1.05, seed=seed)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)

    def losses(epoch: int) -> Iterator[Tensor]:
        rows = model.tokenizer(documents(course, seed + epoch))["input_ids"]
        # Rows of like length share a batch; batches come in random order.
        order = np.lexsort((random.random(len(rows)), np.array([len(row) for row in rows])))
        parts = [order[i : i + how.batch] for i in range(0, len(order), how.batch)]
        for i in random.permutation(len(parts)):
            ids, mask = padded([rows[j] for j in parts[i]])
            labels = ids.masked_fill(mask == 0, -100)[:, 1:].flatten().to(model.device)
            logits = model.model(input_ids=ids.to(model.device), use_cache=False).logits
            yield cross_entropy(logits[:, :-1].flatten(0, 1), labels)

    n_batches = -(-len(documents(course, seed)) // how.batch)
    with dropped_out(model.model, 0.2):
        return list(fit(model.model, losses, how, n_batches, "reading"))


def weights_path(settings: Settings, dataset: data.Dataset) -> Path:
    """Return where a data set's pretrained small model is kept: committed if verified."""
    if dataset.verified:
        return settings.data_dir / "weights" / "adapting_base.safetensors"
    return settings.cache_dir / "adapting" / f"{dataset.name}.safetensors"


def _vocabulary(model: Model) -> str:
    return training.fingerprint(repr(sorted(model.tokenizer.get_vocab().items())))


def save_base(model: Model, path: Path, command: str) -> None:
    """Write the small model's weights with the fingerprint of its vocabulary."""
    facts = {"vocabulary": _vocabulary(model), "command": command}
    training.save_weights(dict(model.model.named_parameters()), path, facts)


def load_base(course: Course, path: Path) -> Model:
    """Return the small model with the weights in ``path``.

    Raises:
        ModelError: the file is missing or damaged, or belongs to another catalogue.
    """
    model = small(course)
    weights, facts = training.read_weights(path)
    if facts.get("vocabulary") != _vocabulary(model):
        raise ModelError(f"{path.name} was trained on another catalogue: train the model again.")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]  # the same matrix
    model.model.load_state_dict(weights)
    model.model.eval()
    return model


@dataclass(frozen=True)
class Tuning(Training):
    """Settings of :func:`train`: ``among`` as in :meth:`Model.loss`, ``dropout`` while training.

    ``per_epoch`` questions are drawn for an epoch (default: all).
    """

    batch: int = 32
    warm_up: float = 0.1
    stretch: float = 1.02
    among: str = "answers"
    dropout: float = 0.0
    per_epoch: int | None = None


def shuffled(question: Question, random: np.random.Generator) -> Question:
    """Return the question with its candidates in another order."""
    order = random.permutation(len(question.candidates))
    return replace(question, candidates=tuple(question.candidates[i] for i in order))


def train(
    model: Model,
    examples: Sequence[Question],
    ask: Form,
    how: Tuning,
    validation: Sequence[Prompt] = (),
) -> pd.DataFrame:
    """Train what is trainable, and keep the epoch with the lowest loss on ``validation``.

    Epoch 0 is the model as it came, so that training can be refused. Candidates stand in a new
    order in each epoch. Returns a row per epoch: ``epoch, loss, validation``, losses per answer.
    """
    torch.manual_seed(how.seed)
    random = np.random.default_rng(how.seed)
    weights = training.trainable(model.model)
    n = min(how.per_epoch or len(examples), len(examples))

    def losses(_epoch: int) -> Iterator[Tensor]:
        chosen = random.permutation(len(examples))[:n]
        batch = [ask(shuffled(examples[i], random)) for i in chosen]
        for start in range(0, n, how.batch):
            yield model.loss(batch[start : start + how.batch], how.among)

    rows = [{"epoch": 0, "loss": np.nan, "validation": model.answer_loss(validation)}]
    best = [weight.detach().clone() for weight in weights]
    with dropped_out(model.model, how.dropout):
        for loss in fit(model.model, losses, how, -(-n // how.batch), "adapting"):
            checked = model.answer_loss(validation)
            if not validation or checked < min(row["validation"] for row in rows):
                best = [weight.detach().clone() for weight in weights]
            rows.append({"epoch": len(rows), "loss": loss, "validation": checked})
    with torch.no_grad():
        for weight, kept in zip(weights, best, strict=True):
            weight.copy_(kept)
    return pd.DataFrame(rows)


def examples_for(course: Course, task: str, user: int, k: int, seed: int = 0) -> list[Question]:
    """Return ``k`` answered training questions of other users, the same whatever the right answer.

    Nothing about the user asked for, or about anybody's validation and test items, is in them.
    """
    random = np.random.default_rng((seed, user))
    others = np.flatnonzero(np.array(course.train_users[task]) != user)
    return [course.train[task][i] for i in random.choice(others, size=k, replace=False)]


def mixture(
    course: Course, tasks: Sequence[str], each: int = QUESTIONS, seed: int = 0
) -> list[Question]:
    """Return at most ``each`` training questions of every task, for tuning on instructions."""
    random = np.random.default_rng(seed)
    drawn = {task: random.permutation(len(course.train[task]))[:each] for task in tasks}
    return [course.train[task][i] for task in tasks for i in drawn[task]]


def tune_on_instructions(
    course: Course, base: Model, tasks: Sequence[str], ask: Form, seed: int = 0
) -> Model:
    """Return a copy tuned on the instructions of ``tasks``, with the loss over the vocabulary.

    No choice between epochs: the held-out task must not have a say.
    """
    model, per_epoch = base.clone(), PER_EPOCH * len(tasks)
    how = Tuning(TUNING, among="all", dropout=0.2, per_epoch=per_epoch, seed=seed)
    train(model, mixture(course, tasks, seed=seed), ask, how)
    return model


def distil(
    teacher: Model, examples: Sequence[Question], titles: Sequence[str], epochs: int, seed: int = 0
) -> Model:
    """Return the teacher with three vectors in place of one task's instruction.

    Before the :func:`research.questions.bare` prompt they learn to give the distribution that the
    frozen teacher gives to the instruction. POD tunes the whole model beside the vectors.
    """
    student = teacher.with_soft_prompt(3, seed)
    how = Training(SOFT, epochs, 32, 0.0, warm_up=0, second_beta=0.999, clip=NO_CLIP)
    random = np.random.default_rng(seed)
    goals = teacher.scores([questions.instruction(question, titles) for question in examples])
    short = [questions.bare(question, titles) for question in examples]

    def losses(_epoch: int) -> Iterator[Tensor]:
        order = random.permutation(len(examples))
        for start in range(0, len(order), how.batch):
            part = order[start : start + how.batch]
            divergences = []
            for i, row in zip(part, student.logits([short[i].text for i in part]), strict=True):
                own = log_softmax(row[student.answer_ids(short[i].answers).to(row.device)], 0)
                goal = torch.tensor(goals[i], dtype=own.dtype, device=own.device)
                divergences.append(kl_div(own, goal, reduction="sum", log_target=True))
            yield torch.stack(divergences).mean()

    list(fit(student.model, losses, how, -(-len(examples) // how.batch), "distilling"))
    return student


def encoder(model: Model, *, seed: int = 0) -> Any:
    """Return an untrained BERT with the tokenizer and size of the small decoder."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    like = inner(model.model).config
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
