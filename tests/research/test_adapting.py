"""Adapting a language model: what trains, what stays as it was, and what a prompt may know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.settings import Settings
from research import adapting as ad
from research import questions as qs
from research import task_metrics as tm
from research.language_model import dropped_out, inner
from research.training import ModelError


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


def test_letters_follow_their_movie(course):
    question = course.train["rank"][0]
    prompt = qs.instruction(question, letters=True)
    letter = prompt.answers[prompt.label]
    assert f"({letter}) {qs.wrap(question.truth)} " in prompt.text
    mixed = ad.shuffled(question, np.random.default_rng(5))
    again = qs.instruction(mixed, letters=True)
    assert f"({again.answers[again.label]}) {qs.wrap(question.truth)} " in again.text
    assert mixed.candidates != question.candidates


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


# --- examples in the prompt -----------------------------------------------------------------------


def test_examples_come_from_other_users_and_training_only(course):
    by_question = dict(zip(map(id, course.train["rank"]), course.train_users["rank"], strict=True))
    for user in list(course.test["rank"])[:30]:
        examples = ad.examples_for(course, "rank", user, 4)
        assert len(examples) == 4 and all(by_question[id(one)] != user for one in examples)


def test_the_prompt_with_examples_does_not_depend_on_the_answer(course):
    user, question = next(iter(course.test["rank"].items()))
    examples = ad.examples_for(course, "rank", user, 4)
    other = replace(question, truth=question.candidates[question.truth == question.candidates[0]])
    assert other.truth != question.truth
    blind = replace(course, test={**course.test, "rank": {**course.test["rank"], user: other}})
    assert ad.examples_for(blind, "rank", user, 4) == examples
    one, two = (qs.with_examples(q, examples) for q in (question, other))
    assert one.text == two.text and one.label != two.label
    assert one.text.count("Answer with a title :") == 5
    assert one.text.endswith("Answer with a title :")


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
    ask = qs.forms(course)[0]
    ad.train(model, course.train["rank"][:32], ask, ad.Tuning(0.05, 2))
    after = weights(inner(model.model))
    assert all(torch.equal(inside[name], after[name]) for name in inside)
    assert all(torch.equal(value, weights(base.model)[name]) for name, value in before.items())
    fresh = make(base)
    moved = [
        not torch.equal(a, b)
        for (_, a), (_, b) in zip(
            model.model.named_parameters(), fresh.model.named_parameters(), strict=True
        )
        if a.requires_grad
    ]
    assert moved and all(moved)


def test_training_can_be_refused_by_validation(course, base):
    """With a rate that wrecks the model the epoch kept is the one before training."""
    ask = qs.forms(course)[0]
    model = base.clone()
    checked = [ask(one) for one in course.validation["rank"].values()]
    before = weights(model.model)
    log = ad.train(model, course.train["rank"][:32], ask, ad.Tuning(10.0, 1), checked)
    assert log.validation.argmin() == 0
    assert all(torch.equal(value, weights(model.model)[name]) for name, value in before.items())


def test_dropout_acts_in_training_only_and_can_be_taken_away(base):
    model, ids = base.clone().model, torch.tensor([[5, 6, 7]])
    plain = model.eval()(ids).logits
    with dropped_out(model, 0.5):
        assert torch.equal(model(ids).logits, plain)
        model.train()
        assert not torch.allclose(model(ids).logits, plain)
    assert torch.allclose(model(ids).logits, plain)


def test_a_held_out_task_is_never_trained_on(course, base, monkeypatch):
    trained = []
    monkeypatch.setattr(
        ad, "train", lambda model, examples, *_, **__: trained.extend(one.task for one in examples)
    )
    ask = qs.forms(course)[0]
    for out in qs.TASKS:
        trained.clear()
        ad.tune_on_instructions(course, base, [t for t in qs.TASKS if t != out], ask)
        assert set(trained) == set(qs.TASKS) - {out}


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


def test_a_named_model_is_loaded_and_answers_by_letter(course, base, tmp_path):
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    settings = Settings(root=tmp_path, llamarec_base_model=str(tmp_path))
    named = ad.Model.load(settings)
    prompts = [qs.instruction(question, letters=True) for question in course.train["rank"][:4]]
    for row, own in zip(named.scores(prompts), base.scores(prompts), strict=True):
        np.testing.assert_allclose(row, own, atol=1e-4)
        assert len(row) == 20


# --- evaluation -----------------------------------------------------------------------------------


def test_ranks_count_ties_against_the_model():
    prompt = qs.Prompt("", ("a", "b", "c"), 1)
    rows = [np.array([0.2, 0.5, 0.3]), np.array([0.5, 0.2, 0.3]), np.array([1.0, 1.0, 1.0])]
    assert tm.rank_of([prompt] * 3, rows).tolist() == [1, 3, 3]
    np.testing.assert_allclose(tm.ndcg(np.array([1, 3, 11]), 5), [1, 0.5, 0, 0, 0])


def test_rating_and_liking_metrics():
    sure = np.log(np.where(np.arange(10) == 7, 1 - 9e-9, 1e-9))
    assert tm.stars_of([sure])[0] == pytest.approx(4.0)
    assert tm.rmse([3.0, 5.0], [4.0, 4.0])[0] == 1
    value, low, high = tm.auc([0.9, 0.8, 0.2, 0.1], [True, False, True, False])
    assert value == 0.75 and low <= value <= high


def ndcg_by_hand(ranks, users) -> float:
    return sum(1 / np.log2(rank + 1) for rank in ranks if rank <= 10) / users


def drawn(asked, seed=0) -> list[np.ndarray]:
    """Log-probabilities of the answers that depend on the user and on the answer's name only."""
    names = sorted({answer for one in asked for answer in one.answers})
    score = np.random.default_rng(seed).normal(size=(len(asked), len(names)))
    place = {name: i for i, name in enumerate(names)}
    found = []
    for row, one in zip(score, asked, strict=True):
        raw = row[[place[answer] for answer in one.answers]]
        found.append(raw - np.log(np.exp(raw).sum()))
    return found


def test_the_score_of_next_is_a_rank_among_unseen_titles_by_name(course):
    questions = course.test["next"]
    asked = [qs.instruction(one, course.catalogue) for one in questions.values()]
    answers = drawn(asked)
    known = course.protocol.parts.known.groupby("userId")["movieId"].agg(set)
    ranks = []
    for (user, question), one, row in zip(questions.items(), asked, answers, strict=True):
        seen = {qs.wrap(course.titles[item]) for item in known[user]}
        left = {name: value for name, value in zip(one.answers, row, strict=True)
                if name not in seen}  # fmt: skip
        ranks.append(sum(value >= left[qs.wrap(question.truth)] for value in left.values()))
    expected = ndcg_by_hand(ranks, len(questions))
    assert expected > 0
    assert tm.task_score("next", asked, answers, course)[0] == pytest.approx(expected)
    turned = [row[::-1] for row in answers]  # the catalogue in another order
    assert tm.task_score("next", asked, turned, course)[0] != pytest.approx(expected)


def test_the_score_of_rank_counts_users_without_a_question(course):
    questions = course.test["rank"].values()
    asked = [qs.instruction(one) for one in questions]
    answers = drawn(asked)
    ranks = []
    for question, one, row in zip(questions, asked, answers, strict=True):
        own = row[one.answers.index(qs.wrap(question.truth))]
        ranks.append(1 + sum(value > own for value in row))
    users = len(course.protocol.test[2])
    assert users > len(ranks)
    found = tm.task_score("rank", asked, answers, course)
    assert found[0] == pytest.approx(ndcg_by_hand(ranks, users)) and found[1] < found[0] < found[2]


@pytest.mark.parametrize("form", [qs.instruction, qs.document])
def test_the_scores_of_rate_and_like_by_hand(course, form):
    asked = [form(one) for one in course.test["rate"].values()]
    answers = drawn(asked)
    errors = [
        (sum(p * float(stars) for p, stars in zip(np.exp(row), qs.STARS, strict=True))
         - float(question.truth)) ** 2
        for question, row in zip(course.test["rate"].values(), answers, strict=True)
    ]  # fmt: skip
    found = tm.task_score("rate", asked, answers, course)[0]
    assert found == pytest.approx(np.mean(errors) ** 0.5)

    questions = course.test["like"].values()
    asked = [form(one) for one in questions]
    answers = drawn(asked, 1)
    good = {"yes", "4.0", "4.5", "5.0"}
    says = [
        sum(np.exp(value) for name, value in zip(one.answers, row, strict=True) if name in good)
        for one, row in zip(asked, answers, strict=True)
    ]
    yes = [a for a, question in zip(says, questions, strict=True) if float(question.truth) >= 4]
    no = [a for a, question in zip(says, questions, strict=True) if float(question.truth) < 4]
    wins = np.mean([(a > b) + (a == b) / 2 for a in yes for b in no])
    assert tm.task_score("like", asked, answers, course)[0] == pytest.approx(wins)


# --- POD, encoder ---------------------------------------------------------------------------------


def test_prompts_without_words_differ_by_task_only_in_the_vectors(course):
    rate, like = (course.test[task][next(iter(course.test[task]))] for task in ("rate", "like"))
    assert qs.bare(rate).text == qs.bare(like).text
    assert qs.bare(rate).answers != qs.bare(like).answers
    assert qs.instruction(rate).text != qs.instruction(like).text


def test_distilled_vectors_come_closer_to_the_teacher(course, base):
    teacher, ask = base.clone(), qs.forms(course)[0]
    liked = [replace(q, truth="5.0") for q in course.train["like"][:32]]
    ad.train(teacher, liked, ask, ad.Tuning(3e-3, 5))
    before = weights(teacher.model)
    student = ad.distil(teacher, liked, course.catalogue, epochs=12)
    goal = teacher.scores([ask(one) for one in liked])
    bared = [qs.bare(one) for one in liked]

    def distance(model):
        return np.mean(
            [
                np.abs(np.exp(a) - np.exp(b)).sum()
                for a, b in zip(model.scores(bared), goal, strict=True)
            ]
        )

    untrained = teacher.with_soft_prompt(3)
    assert distance(student) < distance(untrained)
    assert student.parameters()[0] == 3 * 32
    assert all(torch.equal(value, weights(teacher.model)[name]) for name, value in before.items())


def test_an_encoder_sees_both_directions_and_a_decoder_only_the_past(base):
    bert = ad.encoder(base).eval()
    one, two = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[5, 6, 7, 9]])
    with torch.no_grad():
        for network, looks_ahead in ((base.model, False), (bert, True)):
            states = [network(x, output_hidden_states=True).hidden_states[-1] for x in (one, two)]
            assert torch.allclose(states[0][:, 0], states[1][:, 0], atol=1e-6) != looks_ahead
            assert not torch.allclose(states[0][:, 3], states[1][:, 3], atol=1e-6)
