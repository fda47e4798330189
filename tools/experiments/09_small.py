"""python tools/experiments/09_small.py makes 09_small.csv: P5, POD and an encoder in miniature.

Needs the weights of ``09_adapting.py``. POD: each task asked by instruction, without words, and by
three vectors. Families: an encoder beside the decoder. P5: item ids of two tokens, with the
whole-word embedding and without.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from helpers import data
from helpers.settings import Settings
from research import adapting, sequential
from research.adapting import Model
from research.language_model import dropped_out, small_llama
from research.questions import HISTORY, LIKED, TASKS, WATCHED, Course, Prompt, bare, forms, wrap
from research.task_metrics import auc, interval, ndcg, task_scores
from research.training import NO_CLIP, Training, fit, padded

ENCODER_EPOCHS = 6  # over the documents: what an encoder can do, not how well
Row = tuple[str, str, str, float, float, float]
COLUMNS = ["part", "name", "measure", "value", "low", "high"]


class TwoTokens(nn.Module):
    """A small Llama over item ids of two tokens, with P5's whole-word embedding or without.

    P5 (Geng et al. 2022) writes an item as several tokens, which get the same extra vector, so that
    the model sees what belongs together. Item i of n is the pair (i // b, b + i % b), b² >= n.
    """

    def __init__(self, n_items: int, whole_word: bool, hidden: int = 64) -> None:
        super().__init__()
        self.base = int(np.ceil(np.sqrt(n_items)))
        options = {"max_position_embeddings": 256, "initializer_range": 0.05, "pad_token_id": None}
        self.model = small_llama(2 * self.base, hidden, 2, 2, **options)
        self.whole = nn.Embedding(64, hidden) if whole_word else None
        if self.whole is not None:
            nn.init.normal_(self.whole.weight, std=0.05)

    def tokens(self, columns: np.ndarray) -> Tensor:
        """Return the tokens of items, shape (..., 2 n) for (..., n)."""
        pairs = np.stack([columns // self.base, self.base + columns % self.base], -1)
        return torch.from_numpy(pairs.reshape(*columns.shape[:-1], -1))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of the next tokens, shape (batch, length, vocabulary)."""
        vectors = self.model.get_input_embeddings()(ids)
        if self.whole is not None:
            vectors = vectors + self.whole(torch.arange(ids.shape[1], device=ids.device) // 2)
        return self.model(inputs_embeds=vectors, use_cache=False).logits


def two_token_ranks(
    course: Course, whole_word: bool, epochs: int = 4, seed: int = 0
) -> tuple[np.ndarray, list[float]]:
    """Return the test ranks among candidates after a training, and the loss of each epoch."""
    items = course.protocol.items
    torch.manual_seed(seed)
    network = TwoTokens(len(items), whole_word)
    histories = [np.searchsorted(items, g["movieId"]) for _, g in course.early.groupby("userId")]
    random, window = np.random.default_rng(seed), HISTORY + 1

    def losses(_epoch: int) -> Iterator[Tensor]:
        parts = [
            part
            for history in histories
            for start in range(-int(random.integers(window)), len(history), window)
            if len(part := history[max(start, 0) : start + window]) > 1
        ]
        parts = sorted((parts[i] for i in random.permutation(len(parts))), key=len)
        batches = [parts[i : i + 32] for i in range(0, len(parts), 32)]
        for i in random.permutation(len(batches)):
            width = min(map(len, batches[i]))
            ids = network.tokens(np.stack([part[-width:] for part in batches[i]]))
            yield cross_entropy(network(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    how = Training(3e-3, epochs, weight_decay=0.1, warm_up=0)
    with dropped_out(network.model, 0.1):
        means = list(fit(network, losses, how, 1, "item ids of two tokens"))
    column = {wrap(course.titles[int(item)]): i for i, item in enumerate(items)}
    ranks = []
    with torch.no_grad():
        for question in course.test["rank"].values():
            past = np.array([column[wrap(title)] for title in question.history])
            pool = np.array([column[wrap(title)] for title in question.candidates])
            ids = network.tokens(np.column_stack([np.tile(past, (len(pool), 1)), pool]))
            logs = log_softmax(network(ids[:, :-1]).double(), -1)
            first, second = (logs[range(len(pool)), at, ids[:, at + 1]] for at in (-2, -1))
            score = first + second
            own = score[question.candidates.index(str(question.truth))]
            ranks.append(int((score >= own).sum()))
    return np.array(ranks), means


def measure_p5(course: Course, seed: int = 0) -> Iterator[Row]:
    """Rank with item ids of two tokens, with the whole-word embedding and without."""
    for whole_word in (False, True):
        ranks, losses = two_token_ranks(course, whole_word, seed=seed)
        name = "with whole-word embedding" if whole_word else "without"
        yield "P5", name, "rank", *interval(ndcg(ranks, len(course.protocol.test.target)))
        yield "P5", name, "loss", losses[-1], losses[-1], losses[-1]


def measure_pod(course: Course, whole: Model, seed: int = 0) -> Iterator[Row]:
    """Ask each task of ``whole`` by instruction, without words, and by three vectors."""
    ask, titles = forms(course)[0], course.catalogue
    for task in TASKS:
        examples = adapting.mixture(course, (task,), each=1000, seed=seed)
        student = adapting.distil(whole, examples, titles, epochs=2, seed=seed)
        for name, model, form in (
            ("instruction", whole, ask),
            ("no words", whole, lambda q: bare(q, titles)),
            ("3 vectors", student, lambda q: bare(q, titles)),
        ):
            yield "POD", name, task, *task_scores(model, course, form, (task,))[task]
            texts = [form(question).text for question in course.test[task].values()]
            n = float(np.mean([len(ids) for ids in whole.tokenizer(texts)["input_ids"]]))
            n += 3.0 * (model is student)
            yield "POD", name, f"tokens {task}", n, n, n


def pretrain_encoder(
    bert: Any, tokenizer: Any, course: Course, epochs: int, seed: int = 0
) -> list[float]:
    """Train to fill in masked tokens of the decoder's documents (a fifth of all, and each last).

    The mask is ``<unk>``, which no document has. Returns the loss of each epoch.
    """
    how = Training(3e-3, epochs, weight_decay=0.1, stretch=1.05)
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)

    def losses(epoch: int) -> Iterator[Tensor]:
        rows = sorted(tokenizer(adapting.documents(course, seed + epoch))["input_ids"], key=len)
        parts = [rows[i : i + how.batch] for i in range(0, len(rows), how.batch)]
        for i in random.permutation(len(parts)):
            ids, real = padded(parts[i])
            hidden = (torch.rand(ids.shape) < 0.2) & (real > 0)
            hidden[torch.arange(len(ids)), real.sum(1) - 1] = True
            out = bert(ids.masked_fill(hidden, tokenizer.unk_token_id), attention_mask=real)
            yield cross_entropy(out.logits[hidden], ids[hidden])

    n_batches = -(-len(adapting.documents(course, seed)) // how.batch)
    return list(fit(bert, losses, how, n_batches, "filling in"))


def encoder_answers(bert: Any, model: Model, prompts: Sequence[Prompt]) -> list[np.ndarray]:
    """Return the log-probabilities of the answers at a mask after each text."""
    answers, mask = [], model.tokenizer.unk_token_id
    with torch.no_grad():
        for start in range(0, len(prompts), 64):
            part = prompts[start : start + 64]
            ids, real = padded([[*model.tokenizer(p.text)["input_ids"], mask] for p in part])
            logits = bert(ids, attention_mask=real).logits[torch.arange(len(ids)), real.sum(1) - 1]
            for prompt, row in zip(part, logits.double(), strict=True):
                answers.append(log_softmax(row[model.answer_ids(prompt.answers)], 0).numpy())
    return answers


def like_head(
    bert: Any, tokenizer: Any, examples: Sequence[Prompt], prompts: Sequence[Prompt], how: Training
) -> np.ndarray:
    """Train an encoder with a classification head; return the probability of yes, one a prompt."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(how.seed)
    network = BertForSequenceClassification(bert.config)
    network.bert.load_state_dict(bert.bert.state_dict(), strict=False)  # a new pooler, rest kept
    random, n_batches = np.random.default_rng(how.seed), -(-len(examples) // how.batch)

    def logits(batch: Sequence[Prompt]) -> Tensor:
        ids, real = padded([tokenizer(prompt.text)["input_ids"] for prompt in batch])
        return network(ids, attention_mask=real).logits

    def losses(_epoch: int) -> Iterator[Tensor]:
        for part in np.array_split(random.permutation(len(examples)), n_batches):
            labels = torch.tensor([examples[i].label for i in part])
            yield cross_entropy(logits([examples[i] for i in part]), labels)

    list(fit(network, losses, how, n_batches, "a head on the encoder"))
    with torch.no_grad():
        parts = [logits(prompts[start : start + 64]) for start in range(0, len(prompts), 64)]
    return torch.softmax(torch.cat(parts), -1)[:, 0].numpy()


def title_vectors(network: Any, tokenizer: Any, course: Course) -> np.ndarray:
    """Return the last hidden state of each title, shape (n_items, hidden), length 1."""
    texts = [f"{WATCHED} {title}" for title in course.catalogue]
    ids = torch.tensor(tokenizer(texts)["input_ids"])
    with torch.no_grad():
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
    pairs = [[(sets[i], sets[j]) for j in row] for i, row in enumerate(nearest)]
    return np.array([np.mean([len(a & b) / max(len(a | b), 1) for a, b in row]) for row in pairs])


def measure_families(course: Course, base: Model, seed: int = 0) -> Iterator[Row]:
    """Put an encoder beside the decoder ``base``: next title, like, genres nearby."""
    ask, plain = forms(course)
    tokenizer, bert = base.tokenizer, adapting.encoder(base, seed=seed)
    pretrain_encoder(bert, tokenizer, course, ENCODER_EPOCHS, seed)
    seen, _, target = course.protocol.test
    prompts = [plain(question) for question in course.test["next"].values()]
    answers = np.array(encoder_answers(bert, base, prompts))
    ranks = sequential.target_ranks(sequential.unseen(answers, seen), seen, target)
    examples = [ask(question) for question in adapting.mixture(course, ("like",), seed=seed)]
    prompts = [ask(question) for question in course.test["like"].values()]
    how = Training(1e-3, 3, 32, warm_up=0, second_beta=0.999, clip=NO_CLIP, seed=seed)
    yes = like_head(bert, tokenizer, examples, prompts, how)
    liked = [float(question.truth or "nan") >= LIKED for question in course.test["like"].values()]
    tuned = adapting.tune_on_instructions(course, base, ("like",), ask, seed)
    noise = np.random.default_rng(seed).normal(size=(len(course.catalogue), 8))
    vectors = {
        "encoder": title_vectors(bert, tokenizer, course),
        "decoder": title_vectors(base.model, tokenizer, course),
        "random": noise / np.linalg.norm(noise, axis=1, keepdims=True),
    }
    yield "families", "encoder", "next", *interval(ndcg(ranks, len(target)))
    yield "families", "decoder", "next", *task_scores(base, course, plain, ("next",))["next"]
    yield "families", "encoder", "like", *auc(yes, liked)
    yield "families", "decoder", "like", *task_scores(tuned, course, ask, ("like",))["like"]
    for name, rows in vectors.items():
        yield "families", name, "genres", *interval(shared_genres(rows, course))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure all three on the pretrained small model, and save the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args(arguments).seed
    torch.set_num_threads(1)  # the number of threads decides the last bits
    settings = Settings.from_env()
    dataset = data.locate(settings)
    print(dataset.describe())
    course = Course.of(dataset)
    base = adapting.load_base(course, adapting.weights_path(settings, dataset))
    whole = adapting.tune_on_instructions(course, base, TASKS, forms(course)[0], seed)
    rows = [
        *measure_pod(course, whole, seed),
        *measure_families(course, base, seed),
        *measure_p5(course, seed),
    ]
    table = pd.DataFrame(rows, columns=pd.Index(COLUMNS))
    print(table.round(3).to_string(index=False))
    data.save_result(table, "09_small", dataset, settings)


if __name__ == "__main__":
    main()
