"""A causal language model on this machine, as notebooks 07 and 09 ask, adapt and train it.

Any Hugging Face causal LM, or a local folder with one, that ``LLAMAREC_BASE_MODEL`` names; or a
small one of the Llama architecture made by :func:`small_llama`.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from helpers.settings import Settings
from research.training import ModelError, memory_explained, padded

ADVICE = (
    "use a smaller batch, four_bit=True or a smaller LLAMAREC_BASE_MODEL, or hide the GPU with "
    "CUDA_VISIBLE_DEVICES=-1"
)
LIKE_LLAMA = "choose a model of the Llama, Mistral, Qwen or Gemma families"


class LanguageModel:
    """A causal LM that answers by the probabilities of single tokens; ``name`` is for messages.

    A prompt ends with ``cue``, and ``gap`` stands between it and the answer.
    """

    cue, gap = "Answer :", " "

    def __init__(self, model: Any, tokenizer: Any, name: str) -> None:
        """Keep the three."""
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._token_of: dict[str, int] = {}
        self._ids_of: dict[tuple[str, ...], Tensor] = {}

    @classmethod
    def load(cls, settings: Settings | None = None, *, four_bit: bool = False) -> Self:
        """Load the model that ``LLAMAREC_BASE_MODEL`` names, onto the GPU where there is one.

        ``four_bit`` takes effect with CUDA and bitsandbytes only.

        Raises:
            ModelError: no model is named, or it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        name = (settings or Settings.from_env()).llamarec_base_model
        if not name:
            raise ModelError("LLAMAREC_BASE_MODEL is not set: name a model, or use a small one.")
        folder = Path(name).expanduser()
        place = str(folder) if folder.is_dir() else name
        options: dict[str, Any] = {"dtype": torch.float32}
        if torch.cuda.is_available():
            half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
            options["dtype"] = half
            if four_bit and importlib.util.find_spec("bitsandbytes"):
                options["quantization_config"] = BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=half,
                )
        try:
            tokenizer = AutoTokenizer.from_pretrained(place)
            model: Any = AutoModelForCausalLM.from_pretrained(place, **options)
            if torch.cuda.is_available() and "quantization_config" not in options:
                model = model.to("cuda")
        except Exception as error:  # transformers raises many kinds, some from other libraries
            why = " ".join(str(error).split())[:200].rstrip(".")
            raise ModelError(
                f"LLAMAREC_BASE_MODEL is {name!r}, which cannot be loaded ({why}): name a folder "
                "with a Hugging Face model and its config.json, or a model that this machine can "
                "download."
            ) from error
        return cls(model, tokenizer, name)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def limit(self) -> int:
        """The most tokens that a prompt may have; virtual tokens before it take places too."""
        whole = getattr(inner(self.model).config, "max_position_embeddings", None) or 2**31
        adapters = getattr(self.model, "peft_config", {}).values()
        return whole - sum(getattr(how, "num_virtual_tokens", None) or 0 for how in adapters)

    def parameters(self) -> tuple[int, int]:
        """Return how many numbers train, and how many there are."""
        sizes = [(weight.numel(), weight.requires_grad) for weight in self.model.parameters()]
        return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)

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

        Raises:
            ModelError: the model has no layers called q_proj and v_proj.
        """
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        names = {name.rsplit(".", 1)[-1] for name, _ in self.model.named_modules()}
        if not {"q_proj", "v_proj"} <= names:
            raise ModelError(f"{self.name} has no layers q_proj and v_proj for LoRA: {LIKE_LLAMA}.")
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
        if answers not in self._ids_of:
            for answer in answers:
                if answer not in self._token_of:
                    self._token_of[answer] = self._single_token(answer)
            ids = [self._token_of[answer] for answer in answers]
            if len(set(ids)) < len(ids):
                twice = [a for a, token in zip(answers, ids, strict=True) if ids.count(token) > 1]
                raise ModelError(
                    f"The answers {twice[0]} and {twice[1]} are the same token for {self.name}: "
                    "choose a base model whose tokenizer tells them apart."
                )
            self._ids_of[answers] = torch.tensor(ids)
        return self._ids_of[answers]

    def _single_token(self, answer: str) -> int:
        before = self.tokenizer(self.cue)["input_ids"]
        after = self.tokenizer(self.cue + self.gap + answer)["input_ids"]
        if after[: len(before)] != before or len(after) != len(before) + 1:
            raise ModelError(
                f"The answer {answer} is not one token for {self.name}: choose another base "
                "model, or leave this task out."
            )
        return after[-1]

    def fitting(self, ids: list[int]) -> list[int]:
        """Return the tokens of a prompt as they are.

        Raises:
            ModelError: they are more than the model reads.
        """
        if len(ids) > self.limit:
            raise ModelError(
                f"A prompt has {len(ids)} tokens and {self.name} reads {self.limit}: ask with a "
                "shorter history or fewer examples, or choose a base model with a longer context."
            )
        return ids

    def logits_of(self, rows: Sequence[list[int]]) -> Tensor:
        """Return the logits of the token after each row of tokens, shape (batch, vocabulary).

        Rows are filled up at the right, where a causal model never looks, so that a position counts
        from the first token, with virtual tokens before it or not.

        Raises:
            ModelError: a row is longer than the model can read, or memory runs out.
        """
        lengths = torch.tensor([len(self.fitting(row)) for row in rows])
        width = int(lengths.max())
        ids, mask = padded(rows)
        kept = width - int(lengths.min()) + 1
        with memory_explained(ADVICE):
            logits = self.model(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                logits_to_keep=kept,
            ).logits
        last = (lengths - 1 - (width - kept)).to(self.device)
        return logits[torch.arange(len(rows), device=self.device), last].float()


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

    Raises:
        ModelError: the model is not built like Llama.
    """

    def hook(module: nn.Module, _: Any, out: Any) -> Any:
        if isinstance(out, tuple):
            return (dropout(out[0], share, module.training), *out[1:])
        return dropout(out, share, module.training)

    try:
        core = inner(model).model
        parts = [core.embed_tokens]
        parts += [part for block in core.layers for part in (block.self_attn, block.mlp)]
    except AttributeError:
        raise ModelError(
            f"{type(inner(model)).__name__} has no embed_tokens, self_attn and mlp to add dropout "
            f"to: {LIKE_LLAMA}."
        ) from None
    handles = [part.register_forward_hook(hook) for part in parts] if share else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
