"""Adapting a language model: what trains, what stays as it was, and what a prompt may know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from conftest import ROOT
from helpers.settings import Settings
from research import adapting as ad
from research.verbalizer_torch import VerbalizerError


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
    blind = replace(course, test={**course.test, "rank": {**course.test["rank"], user: other}})
    assert ad.examples_for(blind, "rank", user, 4) == examples
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


def test_weights_with_a_tensor_too_few_or_too_many_are_refused(course, tmp_path):
    from safetensors.torch import save_file

    model, path = ad.small(course, seed=3), tmp_path / "base.safetensors"
    every = {name: p.detach().contiguous() for name, p in model.model.named_parameters()}
    facts = {"vocabulary": ad._vocabulary(model)}
    lost = "model.layers.1.self_attn.q_proj.weight"
    for changed in (
        {name: p for name, p in every.items() if name != lost},
        {**every, "model.layers.2.extra": torch.zeros(2)},
    ):
        save_file(changed, path, facts)
        with pytest.raises(ad.AdaptingError, match="not this model's weights"):
            ad.load_base(course, path)
    save_file(every, path, facts)
    assert torch.equal(dict(ad.load_base(course, path).model.named_parameters())[lost], every[lost])


def test_the_base_is_pretrained_once_and_then_read(course, sample, settings, tmp_path, capsys):
    short = replace(course, early=course.early.groupby("userId").head(3))
    where = replace(settings, root=tmp_path)
    first = ad.base_of(short, sample, where, epochs=1)
    assert "loss" in capsys.readouterr().out
    again = ad.base_of(short, sample, where, epochs=1)
    assert "base: from" in capsys.readouterr().out
    for one, two in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_model_that_is_not_built_like_llama_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(ad.AdaptingError, match="GPT2LMHeadModel has no embed_tokens"):
        ad.drop(model, 0.1)


def test_a_prompt_longer_than_the_context_is_refused(course, base):
    prompt = ad.instruction(course.train["rank"][0])
    n = len(base.tokenizer(prompt.text)["input_ids"])
    for limit, tokens in ((n, 0), (n + 5, 5)):
        model = base.clone()
        model.model.config.max_position_embeddings = limit
        if tokens:
            model = ad.soft_prompt(model, tokens)
        model.scores([prompt])
        ad.vt._bare(model.model).config.max_position_embeddings = limit - 1
        with pytest.raises(ad.AdaptingError, match=f"has {limit} tokens .* reads {limit - 1}"):
            model.scores([prompt])


def test_a_bad_base_model_is_one_clear_sentence(tmp_path):
    for name in (str(tmp_path), "no/such/model"):
        settings = Settings.from_env({"HELPERS_HOME": str(ROOT), "LLAMAREC_BASE_MODEL": name})
        with pytest.raises(VerbalizerError) as error:
            ad.load(settings)
        assert "LLAMAREC_BASE_MODEL" in str(error.value) and "\n" not in str(error.value)


def test_a_named_model_is_loaded_and_answers_by_letter(course, base, tmp_path):
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    named = ad.load(
        Settings.from_env(
            {
                "HELPERS_HOME": str(ROOT),
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
    asked = [ad.instruction(one, course.catalogue) for one in questions.values()]
    answers = drawn(asked)
    known = course.protocol.split.known.groupby("userId")["movieId"].agg(set)
    ranks = []
    for (user, question), one, row in zip(questions.items(), asked, answers, strict=True):
        seen = {ad.wrap(course.titles[item]) for item in known[user]}
        left = {name: value for name, value in zip(one.answers, row, strict=True)
                if name not in seen}  # fmt: skip
        ranks.append(sum(value >= left[ad.wrap(question.truth)] for value in left.values()))
    expected = ndcg_by_hand(ranks, len(questions))
    assert expected > 0
    assert ad.task_score("next", asked, answers, course)[0] == pytest.approx(expected)
    turned = [row[::-1] for row in answers]  # the catalogue in another order
    assert ad.task_score("next", asked, turned, course)[0] != pytest.approx(expected)


def test_the_score_of_rank_counts_users_without_a_question(course):
    questions = course.test["rank"].values()
    asked = [ad.instruction(one) for one in questions]
    answers = drawn(asked)
    ranks = []
    for question, one, row in zip(questions, asked, answers, strict=True):
        own = row[one.answers.index(ad.wrap(question.truth))]
        ranks.append(1 + sum(value > own for value in row))
    users = len(course.protocol.test[2])
    assert users > len(ranks)
    found = ad.task_score("rank", asked, answers, course)
    assert found[0] == pytest.approx(ndcg_by_hand(ranks, users)) and found[1] < found[0] < found[2]


@pytest.mark.parametrize("form", [ad.instruction, ad.document])
def test_the_scores_of_rate_and_like_by_hand(course, form):
    asked = [form(one) for one in course.test["rate"].values()]
    answers = drawn(asked)
    errors = [
        (sum(p * float(stars) for p, stars in zip(np.exp(row), ad.STARS, strict=True))
         - float(question.truth)) ** 2
        for question, row in zip(course.test["rate"].values(), answers, strict=True)
    ]  # fmt: skip
    found = ad.task_score("rate", asked, answers, course)[0]
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
    assert ad.task_score("like", asked, answers, course)[0] == pytest.approx(wins)


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


def test_popularity_and_mean_ratings_by_hand(course):
    found = ad.trivial_tasks(course)
    _, lists, target = course.protocol.test
    known = course.protocol.split.known
    count = dict.fromkeys((int(item) for item in course.protocol.items), 0)
    watched: dict[int, set[int]] = {}
    for row in known.itertuples():
        count[row.movieId] += 1
        watched.setdefault(row.userId, set()).add(row.movieId)
    pools = lists.groupby("userId")["movieId"].agg(list)
    in_lists, in_all = [], []
    for row in target.itertuples():
        for ranks, pool in ((in_lists, pools[row.userId]), (in_all, count)):
            left = [item for item in pool if item not in watched[row.userId]]
            left.sort(key=lambda item: (-count[item], item))
            if row.movieId in left:
                ranks.append(left.index(row.movieId) + 1)
    users = len(target)
    assert found["popularity"]["rank"][0] == pytest.approx(ndcg_by_hand(in_lists, users))
    assert found["popularity"]["next"][0] == pytest.approx(ndcg_by_hand(in_all, users))

    mean = sum(known["rating"]) / len(known)
    of_user, of_item = {}, {}
    for user, rows in known.groupby("userId"):
        of_user[user] = sum(rows["rating"] - mean) / (len(rows) + 5)
    for item, rows in known.groupby("movieId"):
        left = [r.rating - mean - of_user[r.userId] for r in rows.itertuples()]
        of_item[item] = sum(left) / (len(left) + 5)
    errors, flat = [], []
    for row in target.itertuples():
        guess = mean + of_user[row.userId] + of_item.get(row.movieId, 0.0)
        errors.append((guess - row.rating) ** 2)
        flat.append((mean - row.rating) ** 2)
    assert found["user and movie means"]["rate"][0] == pytest.approx(np.mean(errors) ** 0.5)
    assert found["overall mean"]["rate"][0] == pytest.approx(np.mean(flat) ** 0.5)


# --- the measurement, in small --------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(course) -> ad.Course:
    """All test questions, 20 training questions a task, short documents."""
    train = {task: course.train[task][:20] for task in ad.TASKS}
    users = {task: course.train_users[task][:20] for task in ad.TASKS}
    early = course.early.groupby("userId").head(6)
    return replace(course, train=train, train_users=users, early=early)


@pytest.fixture(scope="module")
def reader(toy, base) -> tuple:
    """An encoder after two epochs, with the losses."""
    bert = ad.encoder(base)
    return bert, ad.pretrain_encoder(bert, base.tokenizer, toy, 2)


def test_an_encoder_learns_to_fill_gaps_and_answers_the_same_in_any_batch(toy, base, reader):
    bert, losses = reader
    assert losses[1] < losses[0]
    asked = [ad.document(one, toy.catalogue) for one in list(toy.test["next"].values())[:6]]
    asked[0] = replace(asked[0], text=" ".join([ad.WATCHED, toy.catalogue[0]]))  # a short one
    together = ad.encoder_answers(bert, base.tokenizer, asked, base)
    for one, row in zip(asked, together, strict=True):
        alone = ad.encoder_answers(bert, base.tokenizer, [one], base)[0]
        np.testing.assert_allclose(alone, row, atol=1e-4)
        assert np.exp(row).sum() == pytest.approx(1) and len(row) == len(toy.catalogue)


def test_a_head_learns_which_answer_is_yes_and_leaves_the_encoder_alone(toy, base, reader):
    bert, _ = reader
    before = weights(bert)
    asked = [ad.instruction(one) for one in toy.train["like"][:8]]
    asked = [replace(one, label=i % 2) for i, one in enumerate(asked)]
    found = ad.like_head(bert, base.tokenizer, asked, asked, epochs=60, rate=3e-3)
    assert found[::2].min() > 0.5 > found[1::2].max()  # label 0 is yes
    assert all(torch.equal(value, weights(bert)[name]) for name, value in before.items())


def test_title_vectors_are_one_per_title_and_of_length_one(toy, base, reader):
    for network in (reader[0], base.model):
        vectors = ad.title_vectors(network, base.tokenizer, toy)
        assert vectors.shape == (len(toy.catalogue), 32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)


@pytest.mark.parametrize("whole_word", [False, True])
def test_two_token_ranks_are_ranks_among_candidates(toy, whole_word):
    ranks, losses = ad.two_token_ranks(toy, whole_word, epochs=2)
    assert len(ranks) == len(toy.test["rank"]) and losses[1] < losses[0]
    assert ranks.min() >= 1 and ranks.max() <= 20 and len(set(ranks.tolist())) > 1


def test_the_measurements_name_each_way_once_and_hold_together(toy, base, monkeypatch):
    monkeypatch.setattr(ad, "ENCODER_EPOCHS", 1)
    record = ad.measure_ways(toy, base)
    table = pd.DataFrame(record.rows)
    assert len(table) == 8 and not table.duplicated(["way", "prompt"]).any()
    assert list(table.questions.tail(4)) == [60, 60, 60, 80]
    assert list(table.trainable.tail(4))[::3] == [20 * 32, base.parameters()[1]]
    for rows in record.ranks:
        name = (rows.way.iloc[0], rows.prompt.iloc[0])
        value = table.set_index(["way", "prompt"]).value[name]
        users = len(toy.protocol.test[2])
        assert value == pytest.approx(ndcg_by_hand(rows["rank"], users))
    named = pd.DataFrame(ad.measure_ways(toy, base, "like", letters=True).rows)
    assert "document" not in set(named.prompt) and len(named) == 6

    tasks, whole = ad.measure_tasks(toy, base)
    tuned = tasks.loc[tasks.prompt != "none"]
    assert len(tuned) == 10 * 2 * 4 and not tuned.duplicated(["tuned_on", "prompt", "task"]).any()
    asked = ad.task_scores(whole, toy, ad.forms(toy)[0], ("rate",))["rate"]
    parts = [ad.measure_pod(toy, whole), ad.measure_families(toy, base), ad.measure_p5(toy)]
    small = pd.concat(parts).set_index(["part", "name", "measure"]).sort_index()
    assert small.value["POD", "instruction", "rate"] == asked[0]
    fewer = small.value["POD", "instruction"] - small.value["POD", "3 vectors"]
    assert fewer["tokens rank"] == 13 - 3 and fewer["tokens rate"] == 13 - 3
    assert set(small.loc["families"].index.get_level_values(0)) == {"encoder", "decoder", "random"}
    for found in (tasks, small):
        assert np.isfinite(found[["value", "low", "high"]]).all(axis=None)
        assert ((found.low <= found.value) & (found.value <= found.high)).all()
