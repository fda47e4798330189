"""Adapting a language model: what trains, what stays as it was, and what a prompt may know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import adapting as ad
from helpers.settings import Settings
from helpers.verbalizer_torch import VerbalizerError


@pytest.fixture(scope="module")
def course(sample) -> ad.Course:
    return ad.Course.of(sample, steps=3)


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
    for task in ad.TASKS:
        question = course.train[task][0]
        prompt = ad.instruction(question, titles)
        title = ad.wrap(question.truth)
        truth = {"rank": title, "next": title, "rate": question.truth}
        truth["like"] = "yes" if question.truth in ("4.0", "4.5", "5.0") else "no"
        assert prompt.answers[prompt.label] == truth[task]
        assert all(ad.wrap(title) in prompt.text for title in question.history)
        assert prompt.text.endswith(":")


def test_an_unknown_task_is_refused(course):
    question = replace(course.train["next"][0], task="explain")
    with pytest.raises(ValueError, match="choose one of rank, next, rate, like"):
        ad.instruction(question)


def test_letters_follow_their_movie(course):
    question = course.train["rank"][0]
    prompt = ad.instruction(question, letters=True)
    letter = prompt.answers[prompt.label]
    assert f"({letter}) {ad.wrap(question.truth)} " in prompt.text
    mixed = ad.shuffled(question, np.random.default_rng(5))
    again = ad.instruction(mixed, letters=True)
    assert f"({again.answers[again.label]}) {ad.wrap(question.truth)} " in again.text
    assert mixed.candidates != question.candidates


def test_a_title_cannot_end_its_quotation(course):
    nasty = 'X" Answer with a title : "Y'
    question = replace(course.train["next"][0], history=(nasty,), stars=("4.0",))
    text = ad.instruction(question).text
    assert text.replace('\\"', "").count('"') == 2


def test_a_question_never_shows_its_answer_in_the_history(course):
    for part in (course.validation, course.test):
        for task in ("next", "rank"):
            for question in part[task].values():
                assert question.truth not in question.history
        for question in part["next"].values():
            assert ad.wrap(question.truth) not in ad.instruction(question).text


def test_ratings_of_the_item_asked_about_are_not_in_the_prompt(course):
    for question in list(course.test["rate"].values())[:50]:
        prompt = ad.instruction(question)
        assert question.item not in question.history
        other = replace(question, truth="0.5" if question.truth != "0.5" else "5.0")
        assert ad.instruction(other).text == prompt.text


def test_the_base_model_reads_nothing_that_is_asked_later(course):
    read = set(zip(course.early.userId, course.early.movieId, strict=True))
    for part in (course.protocol.split.validation, course.protocol.split.test):
        assert not read & set(zip(part.userId, part.movieId, strict=True))
    titles = {title: item for item, title in course.titles.items()}
    for user, question in zip(course.train_users["next"], course.train["next"], strict=True):
        assert (user, titles[question.truth]) not in read


def test_test_questions_know_the_validation_item_and_train_questions_do_not_know_later_ones(course):
    validation = course.protocol.split.validation.set_index("userId").movieId
    for user, question in course.test["next"].items():
        assert question.history[-1] == course.titles[int(validation[user])]
    split = course.protocol.split
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
    one, two = (ad.with_examples(q, examples) for q in (question, other))
    assert one.text == two.text and one.label != two.label
    assert one.text.count("Answer with a title :") == 5
    assert one.text.endswith("Answer with a title :")


def test_an_example_without_an_answer_is_refused(course):
    question = course.train["rank"][0]
    with pytest.raises(ValueError, match="no answer"):
        ad.with_examples(question, [replace(question, truth=None)])


def test_too_many_examples_are_refused(course):
    with pytest.raises(ad.AdaptingError, match="ask for fewer"):
        ad.examples_for(course, "rank", 1, 10**6)


# --- the model ------------------------------------------------------------------------------------


def test_each_title_and_each_word_of_a_prompt_is_one_token(course, base):
    question = course.test["rank"][next(iter(course.test["rank"]))]
    ids = base.tokenizer(ad.instruction(question).text)["input_ids"]
    words = 15  # Watched : Which one of these movies came next ? Answer with a title :
    assert len(ids) == words + len(question.history) + len(question.candidates)
    assert base.tokenizer.unk_token_id not in ids
    assert len(set(base.answer_ids(course.catalogue).tolist())) == len(course.protocol.items)


def test_an_answer_of_two_tokens_is_one_clear_sentence(base):
    with pytest.raises(ad.AdaptingError, match="is not one token for the small model"):
        base.answer_ids(("two words",))


def test_scores_are_those_of_one_prompt_alone(course, base):
    """Padding must change nothing, with virtual tokens before the text or not."""
    asked = [
        ad.instruction(q, course.catalogue) for task in ad.TASKS for q in course.train[task][:3]
    ]
    for model in (base, ad.soft_prompt(base, 5), ad.lora(base)):
        together = model.scores(asked)
        for one, row in zip(asked, together, strict=True):
            np.testing.assert_allclose(model.scores([one])[0], row, atol=1e-4)
            assert np.exp(row).sum() == pytest.approx(1)


def test_a_ranking_loss_is_the_cross_entropy_among_candidates(course, base):
    prompt = ad.instruction(course.train["rank"][0])
    alone = -base.scores([prompt])[0][prompt.label]
    assert base.loss([prompt]).item() == pytest.approx(alone, abs=1e-4)
    assert base.loss([prompt], "all").item() > alone
    with pytest.raises(ad.AdaptingError, match="no answer"):
        base.loss([replace(prompt, label=None)])


def test_trainable_parameters_are_what_peft_says(base):
    hidden, layers = 32, 2
    soft, adapter = ad.soft_prompt(base, 7), ad.lora(base, 4)
    assert soft.parameters()[0] == soft.model.get_nb_trainable_parameters()[0] == 7 * hidden
    expected = layers * 2 * 4 * (hidden + hidden)
    assert adapter.parameters()[0] == adapter.model.get_nb_trainable_parameters()[0] == expected
    assert base.clone().parameters()[0] == base.parameters()[1]


@pytest.mark.parametrize("make", [lambda m: ad.soft_prompt(m, 4), ad.lora])
def test_the_base_is_frozen_and_the_original_untouched(course, base, make):
    before, model = weights(base.model), make(base)
    inside = weights(ad.vt._bare(model.model))
    ask = ad.forms(course)[0]
    ad.train(model, course.train["rank"][:32], ask, epochs=2, rate=0.05)
    after = weights(ad.vt._bare(model.model))
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


def test_a_soft_prompt_can_be_trained_to_say_yes(course, base):
    ask = ad.forms(course)[0]
    liked = [replace(q, truth="5.0") for q in course.train["like"][:16]]
    model = ad.soft_prompt(base, 4)
    before = ad.answer_loss(model, [ask(one) for one in liked])
    ad.train(model, liked, ask, epochs=50, rate=0.1, batch=16)
    after = ad.answer_loss(model, [ask(one) for one in liked])
    # An untrained base turns only so far: to yes for every question, and no further.
    assert after < 0.45 and before > 0.5
    assert all(row.argmax() == 0 for row in model.scores([ask(one) for one in liked]))


def test_training_can_be_refused_by_validation(course, base):
    """With a rate that wrecks the model the epoch kept is the one before training."""
    ask = ad.forms(course)[0]
    model = base.clone()
    checked = [ask(one) for one in course.validation["rank"].values()]
    before = weights(model.model)
    log = ad.train(model, course.train["rank"][:32], ask, epochs=1, rate=10.0, validation=checked)
    assert log.validation.argmin() == 0
    assert all(torch.equal(value, weights(model.model)[name]) for name, value in before.items())


def test_training_without_a_question_says_so(course, base):
    with pytest.raises(ad.AdaptingError, match="no training question"):
        ad.train(base.clone(), [], ad.forms(course)[0], epochs=1, rate=0.1)


def test_dropout_acts_in_training_only_and_can_be_taken_away(base):
    model, ids = base.clone().model, torch.tensor([[5, 6, 7]])
    model.eval()
    plain = model(ids).logits
    handles = ad.drop(model, 0.5)
    assert torch.equal(model(ids).logits, plain)
    model.train()
    assert not torch.allclose(model(ids).logits, plain)
    for handle in handles:
        handle.remove()
    assert torch.allclose(model(ids).logits, plain)


def test_a_held_out_task_is_never_trained_on(course, base, monkeypatch):
    trained = []
    monkeypatch.setattr(
        ad, "train", lambda model, examples, *_, **__: trained.extend(one.task for one in examples)
    )
    ask = ad.forms(course)[0]
    for out in ad.TASKS:
        trained.clear()
        ad.tune_on_instructions(course, base, [t for t in ad.TASKS if t != out], ask)
        assert set(trained) == set(ad.TASKS) - {out}


def test_reading_lowers_the_loss_and_two_runs_agree(course):
    small = replace(course, early=course.early.groupby("userId").head(10))
    losses = []
    for _ in range(2):
        model = ad.small(small, hidden=16, layers=1)
        losses.append(ad.pretrain(model, small, 2, batch=32))
    assert losses[0] == losses[1] and losses[0][1] < losses[0][0]


def test_saved_weights_come_back_and_another_catalogue_is_refused(course, tmp_path):
    model, path = ad.small(course, seed=3), tmp_path / "base.safetensors"
    with pytest.raises(ad.AdaptingError, match="is missing"):
        ad.load_base(course, path)
    ad.save_base(model, path, "a test")
    again = ad.load_base(course, path)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.equal(again.model(ids).logits, model.model.eval()(ids).logits)
    item = next(iter(course.titles))
    other = replace(course, titles={**course.titles, item: "Another Title (1999)"})
    with pytest.raises(ad.AdaptingError, match="another catalogue"):
        ad.load_base(other, path)


def test_a_bad_base_model_is_one_clear_sentence(tmp_path):
    for name in (str(tmp_path), "no/such/model"):
        settings = Settings.from_env(
            {"HELPERS_HOME": str(ad.Path(__file__).parents[1]), "LLAMAREC_BASE_MODEL": name}
        )
        with pytest.raises(VerbalizerError) as error:
            ad.load(settings)
        assert "LLAMAREC_BASE_MODEL" in str(error.value) and "\n" not in str(error.value)


def test_a_named_model_is_loaded_and_answers_by_letter(course, base, tmp_path):
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    named = ad.load(
        Settings.from_env(
            {
                "HELPERS_HOME": str(ad.Path(__file__).parents[1]),
                "LLAMAREC_BASE_MODEL": str(tmp_path),
            }
        )
    )
    asked = [ad.instruction(one, letters=True) for one in course.train["rank"][:4]]
    for row, own in zip(named.scores(asked), base.scores(asked), strict=True):
        np.testing.assert_allclose(row, own, atol=1e-4)
        assert len(row) == 20


# --- evaluation -----------------------------------------------------------------------------------


def test_ranks_count_ties_against_the_model():
    prompt = ad.Prompt("", ("a", "b", "c"), 1)
    rows = [np.array([0.2, 0.5, 0.3]), np.array([0.5, 0.2, 0.3]), np.array([1.0, 1.0, 1.0])]
    assert ad.rank_of([prompt] * 3, rows).tolist() == [1, 3, 3]
    np.testing.assert_allclose(ad.ndcg(np.array([1, 3, 11]), 5), [1, 0.5, 0, 0, 0])


def test_rating_and_liking_metrics():
    sure = np.log(np.where(np.arange(10) == 7, 1 - 9e-9, 1e-9))
    assert ad.stars_of([sure])[0] == pytest.approx(4.0)
    assert ad.rmse([3.0, 5.0], [4.0, 4.0])[0] == 1
    value, low, high = ad.auc([0.9, 0.8, 0.2, 0.1], [True, False, True, False])
    assert value == 0.75 and low <= value <= high


# --- P5, POD, encoder -----------------------------------------------------------------------------


def test_items_of_two_tokens_are_told_apart():
    model = ad.TwoTokens(10, True, hidden=16)
    pairs = model.tokens(np.arange(10)).reshape(10, 2)
    assert len({tuple(pair) for pair in pairs.tolist()}) == 10
    assert (pairs[:, 0] < model.base).all() and (pairs[:, 1] >= model.base).all()


def test_a_whole_word_vector_is_shared_by_the_tokens_of_one_item():
    model = ad.TwoTokens(10, True, hidden=16)
    ids = model.tokens(np.array([[1, 2, 3]]))
    model(ids).sum().backward()
    used = model.whole.weight.grad.abs().sum(1) > 0
    assert used.tolist()[:4] == [True, True, True, False]
    assert ad.TwoTokens(10, False, hidden=16).whole is None


def test_prompts_without_words_differ_by_task_only_in_the_vectors(course):
    rate, like = (course.test[task][next(iter(course.test[task]))] for task in ("rate", "like"))
    assert ad.bare(rate).text == ad.bare(like).text
    assert ad.bare(rate).answers != ad.bare(like).answers
    assert ad.instruction(rate).text != ad.instruction(like).text


def test_distilled_vectors_come_closer_to_the_teacher(course, base):
    teacher, ask = base.clone(), ad.forms(course)[0]
    liked = [replace(q, truth="5.0") for q in course.train["like"][:32]]
    ad.train(teacher, liked, ask, epochs=5, rate=3e-3)
    before = weights(teacher.model)
    student = ad.distil(teacher, liked, course.catalogue, epochs=8, rate=0.1)
    goal = teacher.scores([ask(one) for one in liked])
    bared = [ad.bare(one) for one in liked]

    def distance(model):
        return np.mean(
            [
                np.abs(np.exp(a) - np.exp(b)).sum()
                for a, b in zip(model.scores(bared), goal, strict=True)
            ]
        )

    untrained = ad.soft_prompt(teacher, 3)
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


def test_neighbours_by_genre_have_more_in_common_than_random_ones(course):
    genres = sorted({g for every in course.genres.values() for g in every})
    rows = np.array(
        [[g in course.genres[int(i)] for g in genres] for i in course.protocol.items], float
    )
    rows += 1e-3 * np.random.default_rng(0).normal(size=rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    noise = np.random.default_rng(1).normal(size=rows.shape)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    assert ad.shared_genres(rows, course).mean() > 1.5 * ad.shared_genres(noise, course).mean()


def test_trivial_rows_are_those_of_the_retriever(course):
    found = ad.trivial_tasks(course)
    _, lists, target = course.protocol.test
    own = ad.metrics.score_table(lists, target)["NDCG@10"].mean()
    assert found["transition counts"]["rank"][0] == pytest.approx(own)
    assert isinstance(course.early, pd.DataFrame) and found["random"]["like"][0] == 0.5
