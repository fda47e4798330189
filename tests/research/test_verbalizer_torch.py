"""The verbalizer with a model: what its distribution follows, and what training may touch."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("peft")

from helpers import local_model, prompts, ranking  # noqa: E402
from helpers.settings import Settings  # noqa: E402
from research import llamarec  # noqa: E402
from research import verbalizer_torch as vt  # noqa: E402
from research.training import ModelError, Training, fit, padded  # noqa: E402

TITLES = [f"Movie {i} ({1950 + i})" for i in range(40)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def tiny():
    return vt.small_ranker(TITLES, hidden=32, layers=2, heads=2, letters=6)


def example(seed, n=6, history=5):
    random = np.random.default_rng(seed)
    names = [TITLES[i] for i in random.permutation(len(TITLES))]
    return vt.LetterQuestion(tuple(names[:history]), tuple(names[history : history + n]), seed % n)


class OneTitle(torch.nn.Module):
    """A stand-in for an LLM that likes each title as much as ``taste`` says, wherever it stands."""

    def __init__(self, tokenizer, taste, letters):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.config, self.tokenizer = type("C", (), {}), tokenizer
        self.taste = {tokenizer(prompts.quote(t))["input_ids"][0]: w for t, w in taste.items()}
        pairs = [(f"({a})", a) for a in ranking.letters(letters)]
        as_id = tokenizer.convert_tokens_to_ids
        self.letters = {as_id(shown): as_id(answer) for shown, answer in pairs}

    def forward(self, input_ids, **_):
        logits = torch.zeros(len(input_ids), 1, len(self.tokenizer))
        for row, ids in enumerate(input_ids.tolist()):
            for before, token in itertools.pairwise(ids):
                if before in self.letters:
                    logits[row, -1, self.letters[before]] = self.taste[token]
        return type("Out", (), {"logits": logits})


# --- the distribution -----------------------------------------------------------------------------


def test_they_are_the_models_own_next_token_probabilities_scaled(tiny):
    prompt = example(3)
    ids = torch.tensor([tiny.tokenizer(prompt.text())["input_ids"]])
    with torch.inference_mode():
        whole = torch.softmax(tiny.model.eval()(input_ids=ids).logits[0, -1], 0)
    letters = whole[[tiny.tokenizer.convert_tokens_to_ids(a) for a in "ABCDEF"]].numpy()
    (found,) = tiny.probabilities([prompt])
    np.testing.assert_allclose(found, letters / letters.sum(), rtol=1e-4)


def test_they_follow_a_permutation_of_the_candidates():
    """The model looks only at the title beside a letter, so its order must not matter."""
    tokenizer = vt.small_tokenizer(TITLES, 6)
    prompt = example(4)
    taste = {title: float(i) for i, title in enumerate(prompt.candidates)}
    ranker = vt.Verbalizer(OneTitle(tokenizer, taste, 6), tokenizer, "a stand-in", 6)
    (before,) = ranker.probabilities([prompt])
    assert before.argmax() == 5 and before[5] == pytest.approx(np.exp(5) / np.exp(range(6)).sum())
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(6)
        moved = prompt.permuted(order)
        assert moved.candidates[moved.label] == prompt.candidates[prompt.label]
        (after,) = ranker.probabilities([moved])
        np.testing.assert_allclose(after, before[order], rtol=1e-6)


def test_padding_does_not_change_the_distribution(tiny):
    short, long = example(5, n=2, history=1), example(6, n=6, history=12)
    (alone,) = tiny.probabilities([short])
    together = tiny.probabilities([long, short])[1]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    ids, mask = padded([[5, 6], [7, 8, 9]], side="left")
    assert ids.tolist() == [[0, 5, 6], [7, 8, 9]] and mask.tolist() == [[0, 1, 1], [1, 1, 1]]


# --- tokenizers and loading ---------------------------------------------------------------------


def plain_tokenizer(alphabet, drop=""):
    """Return a tokenizer of single characters, without those in ``drop``."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {c: i for i, c in enumerate(dict.fromkeys(c for c in alphabet if c not in drop))}
    core = Tokenizer(models.WordLevel({**vocabulary, "?": len(vocabulary)}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


def test_in_the_small_tokenizer_titles_and_letters_are_one_token_each():
    tokenizer = vt.small_tokenizer(TITLES, 6)
    prompt = example(8)
    ids = tokenizer(prompt.text())["input_ids"]
    assert len(ids) == 3 + 5 + 2 * 6
    unknown = vt.LetterQuestion(("Amélie ☕ (2001)",), prompt.candidates)
    assert len(tokenizer(unknown.text())["input_ids"]) > 3 + 1 + 12
    assert tokenizer.decode(tokenizer("Amélie ☕")["input_ids"]) == "Amélie ☕"


def test_letters_need_one_token_each(tiny):
    class Doubling:
        def __call__(self, text):
            ids = tiny.tokenizer(text)["input_ids"]
            return {"input_ids": [*ids, ids[-1]] if text.endswith("\nC") else ids}

    with pytest.raises(ModelError, match="answer C is not one token of its own for a model"):
        vt.Verbalizer(tiny.model, Doubling(), "a model", 6)
    text = vt.LetterQuestion(("x",), ("y",)).text()
    vt.Verbalizer(tiny.model, plain_tokenizer(text + "ABCDEF"), "a model", 6)
    with pytest.raises(ModelError, match="answer F is not one token of its own"):
        vt.Verbalizer(tiny.model, plain_tokenizer(text + "ABCD", drop="EF"), "a model", 6)


def named(tmp_path, name):
    return Settings(root=tmp_path, llamarec_base_model=str(name))


def test_a_bad_base_model_is_one_clear_sentence(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    for name in ("empty", "broken", "no/such/folder"):
        with pytest.raises(ModelError, match=r"cannot be loaded.*config\.json") as error:
            vt.Verbalizer.load(named(tmp_path, tmp_path / name))
        text = str(error.value)
        assert text.endswith(".") and "\n" not in text and len(text) < 500
    monkeypatch.setattr(local_model, "weights", lambda: None)
    with pytest.raises(ModelError, match=r"^There is no base model: .*LLAMAREC_BASE_MODEL\.$"):
        vt.Verbalizer.load(Settings(root=tmp_path))


def test_a_saved_model_is_a_base_model_like_any_other(tiny, tmp_path):
    letters = vt.small_ranker(TITLES, hidden=32, layers=1, heads=2)
    letters.model.save_pretrained(tmp_path / "mine")
    letters.tokenizer.save_pretrained(tmp_path / "mine")
    assert Settings.from_env({"LLAMAREC_BASE_MODEL": " x "}).llamarec_base_model == "x"
    again = vt.Verbalizer.load(named(tmp_path, tmp_path / "mine"), four_bit=True)
    for before, after in zip(
        letters.probabilities([example(9)]), again.probabilities([example(9)]), strict=True
    ):
        np.testing.assert_allclose(after, before, atol=1e-5)


# --- training -------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_label_and_nothing_else(tiny):
    batch = [example(1), example(2, n=3, history=9)]
    tiny.model.eval()
    wanted = []
    for prompt in batch:
        ids = [*tiny.encode(prompt), int(tiny.letter_ids[prompt.label])]
        labels = [-100] * (len(ids) - 1) + ids[-1:]
        out = tiny.model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
        wanted.append(out.loss.item())
    loss = tiny.loss([question.prompt() for question in batch], "all").item()
    assert loss == pytest.approx(np.mean(wanted), abs=1e-5)


def test_a_small_model_learns_a_handful_of_prompts_by_heart(tiny):
    examples = [example(seed) for seed in range(6)]
    how = Training(5e-3, epochs=60)
    asked = [question.prompt() for question in examples]
    losses = list(fit(tiny.model, lambda _: [tiny.loss(asked, "all")], how, 1, "by heart"))
    assert losses[-1] < 0.5 < 1.2 < losses[0]
    rows = tiny.probabilities(examples)
    assert [int(row.argmax()) for row in rows] == [question.label for question in examples]


def test_lora_trains_q_and_v_only(tiny):
    ranker = tiny.with_lora()
    before = {name: value.clone() for name, value in ranker.model.named_parameters()}
    free = {name for name, value in ranker.model.named_parameters() if value.requires_grad}
    assert free and all(".lora_" in name for name in free)
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in free} == {"q_proj", "v_proj"}
    how = ranker.model.peft_config["default"]
    assert (how.r, how.lora_alpha, how.lora_dropout) == (8, 32, 0.05)
    list(llamarec.train(ranker, [example(0), example(1)], until=6))
    moved = {
        name for name, value in ranker.model.named_parameters()
        if not torch.equal(value, before[name])
    }  # fmt: skip
    assert moved and moved <= free
    assert ranker.probabilities([example(0)])[0].sum() == pytest.approx(1)


def test_one_pass_takes_one_token_and_less_time_than_the_list(tiny):
    table = vt.efficiency(tiny, (2, 4), candidates=5, history=5, repeats=1)
    assert table["output_tokens"].tolist() == [15, 25]
    assert table["prompt_tokens"].diff().iloc[1] == 2 * 10
    assert (table["ratio"] > 2).all() and (table["cached_ratio"] > 2).all()
