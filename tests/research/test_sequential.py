"""The leave-one-out protocol, the counting retrievers, and paired comparisons."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from helpers import data, metrics
from helpers.als import Factors
from research import sequential, splits, stats
from research.sequential import Interactions, Transitions


def ratings(text: str) -> pd.DataFrame:
    """``"1:10@5 ..."`` is user 1, movie 10, time 5."""
    rows = [part.replace(":", " ").replace("@", " ").split() for part in text.split()]
    table = pd.DataFrame(rows, columns=["userId", "movieId", "timestamp"]).astype(int)
    return table.assign(rating=3.0)


def random_ratings(users=30, movies=25, each=12, seed=0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    rows = [
        (user, movie, place // 2, 4.0)
        for user in range(1, users + 1)
        for place, movie in enumerate(random.choice(movies, each, replace=False) * 3 + 1)
    ]
    return pd.DataFrame(rows, columns=["userId", "movieId", "timestamp", "rating"])


# --- protocol ---------------------------------------------------------------------------------


def test_the_core_is_iterative():
    # Movie 9 falls for want of users, then user 3 for want of movies, then movie 1 has two left.
    table = ratings("1:1@1 1:2@2 2:1@1 2:2@2 3:1@1 3:9@2")
    kept = splits.core(table, 2)
    assert set(kept.userId) == {1, 2} and set(kept.movieId) == {1, 2}
    with pytest.raises(data.DataError, match="smaller k"):
        splits.core(table, 3)


def test_leave_one_out_orders_by_time_then_movie():
    table = ratings("1:30@5 1:20@5 1:40@1 1:10@2 2:1@1 2:2@2")
    parts = splits.leave_one_out(table)
    assert parts.test.movieId.tolist() == [30] and parts.validation.movieId.tolist() == [20]
    assert parts.train.loc[parts.train.userId == 1, "movieId"].tolist() == [40, 10]
    assert parts.train.loc[parts.train.userId == 2, "movieId"].tolist() == [1, 2]  # too few: kept
    assert parts.known.movieId.tolist() == [40, 10, 20, 1, 2]
    with pytest.raises(data.DataError, match="three"):
        splits.leave_one_out(table.loc[table.userId == 2])
    with pytest.raises(ValueError, match="ties"):
        splits.leave_one_out(table, ties="file")


def test_random_ties_move_only_rows_of_equal_time():
    table = random_ratings()
    fixed = splits.leave_one_out(table)
    drawn = [splits.leave_one_out(table, ties="random", seed=s).test for s in range(4)]
    assert all((d.timestamp.to_numpy() == fixed.test.timestamp.to_numpy()).all() for d in drawn)
    assert len({tuple(d.movieId) for d in drawn}) == 4
    again = splits.leave_one_out(table.sample(frac=1, random_state=1), ties="random", seed=0).test
    pd.testing.assert_frame_equal(again, drawn[0])  # the order of the file does not matter


# --- retrievers -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen() -> Interactions:
    return Interactions.of(random_ratings())


def test_interactions_keep_order_and_refuse_unknown_items():
    table = ratings("2:5@1 1:7@1 2:6@2 1:5@2 2:7@3")
    got = Interactions.of(table)
    assert got.items[got.column].tolist() == [7, 5, 5, 6, 7]
    assert got.users[got.row].tolist() == [1, 1, 2, 2, 2] and got.age.tolist() == [1, 0, 2, 1, 0]
    assert got.recent(0.5, last=2).toarray()[1].tolist() == [0, 0.5, 1]
    with pytest.raises(ValueError, match="catalogue"):
        Interactions.of(table, np.array([5, 6]))
    with pytest.raises(ValueError, match="no interaction"):
        Interactions.of(table.iloc[:0])


def test_transition_counts_match_a_plain_loop(seen):
    how = Transitions(window=3, gap_decay=0.7, backward=0.4, popularity=0.5, last=4, age_decay=0.6)
    size = len(seen.items)
    wanted = np.zeros((size, size))
    for user in range(len(seen.users)):
        history = seen.column[seen.row == user]
        for a, source in enumerate(history):
            for gap in range(1, how.window + 1):
                if a + gap < len(history):
                    target = history[a + gap]
                    wanted[source, target] += how.gap_decay ** (gap - 1)
                    wanted[target, source] += how.backward * how.gap_decay ** (gap - 1)
    wanted /= seen.counts**how.popularity
    np.testing.assert_allclose(sequential.transition_counts(seen, how).toarray(), wanted)
    first = seen.column[seen.row == 0]
    scores = sum(how.age_decay**age * wanted[first[-1 - age]] for age in range(how.last))
    np.testing.assert_allclose(sequential.transitions(seen, how)[0], scores)


def test_ease_solves_its_regression(seen):
    reg = 7.0
    weights = sequential.ease_weights(seen, reg)
    x = seen.matrix().toarray()
    assert (np.diag(weights) == 0).all()
    for item in range(len(seen.items)):  # ridge regression of one column on all others
        rest = np.delete(np.arange(len(seen.items)), item)
        solution = np.linalg.solve(
            x[:, rest].T @ x[:, rest] + reg * np.eye(len(rest)), x[:, rest].T @ x[:, item]
        )
        np.testing.assert_allclose(weights[rest, item], solution, atol=1e-10)
    np.testing.assert_allclose(sequential.ease(seen, reg=reg), x @ weights)


def test_ease_is_the_same_with_fewer_users_than_items(seen):
    few = Interactions.of(
        pd.DataFrame({"userId": seen.users[seen.row], "movieId": seen.items[seen.column]}).loc[
            lambda t: t.userId <= seen.users[4]
        ],
        seen.items,
    )
    assert len(few.users) < len(few.items) <= len(seen.users)
    x = few.matrix().toarray()
    inverse = np.linalg.inv(x.T @ x + 3 * np.eye(len(few.items)))
    wanted = inverse / -np.diag(inverse)
    np.fill_diagonal(wanted, 0)
    np.testing.assert_allclose(sequential.ease_weights(few, 3.0), wanted, atol=1e-12)


def test_item_knn_is_a_damped_cosine(seen):
    x = seen.matrix().toarray()
    both = x.T @ x
    cosine = both / (np.sqrt(np.outer(both.diagonal(), both.diagonal())) + 3)
    np.fill_diagonal(cosine, 0)
    everything = sequential.item_knn(seen, neighbours=10**6, shrinkage=3)
    np.testing.assert_allclose(everything, x @ cosine)
    few = sequential.item_knn(seen, neighbours=2, shrinkage=3)
    assert ((few <= everything + 1e-12).all()) and few.sum() < everything.sum()


def test_a_blend_does_not_depend_on_the_size_of_scores(seen):
    a, b = sequential.popularity(seen), sequential.ease(seen)
    one = sequential.blend_scores([(1, a), (0.5, b)])
    np.testing.assert_allclose(one, sequential.blend_scores([(1, 1000 * a), (0.5, b / 7)]))
    # An empty row changes no order.
    empty = sequential.blend_scores([(1, np.zeros_like(a)), (1, b)])
    np.testing.assert_allclose(empty - np.log(0.01), sequential.blend_scores([(1, b)]))
    order = sequential.top_lists(b, seen, 3)
    same = sequential.top_lists(sequential.blend_scores([(2, b)]), seen, 3)
    assert order.movieId.tolist() == same.movieId.tolist()
    assert np.isfinite(sequential.blend_scores([(1, np.full_like(a, -np.inf)), (1, b)])).all()


def test_a_blend_is_a_geometric_mean():
    a, b = np.array([[4.0, 2.0, 0.0]]), np.array([[1.0, 10.0, -np.inf]])
    got = np.exp(sequential.blend_scores([(1, a), (2, b)], floor=0.5))
    np.testing.assert_allclose(got, [[1.5 * 0.6**2, 1.0 * 1.5**2, 0.5**3]])


def test_target_ranks_are_those_of_the_lists(seen):
    scores = np.round(np.random.default_rng(3).normal(size=(len(seen.users), len(seen.items))))
    lists = sequential.top_lists(scores, seen, len(seen.items))
    np.testing.assert_array_equal(sequential.target_ranks(scores, seen, lists), lists["rank"])
    known = pd.DataFrame({"userId": seen.users[seen.row], "movieId": seen.items[seen.column]})
    assert np.isinf(sequential.target_ranks(scores, seen, known)).all()
    with pytest.raises(ValueError, match="not among"):
        sequential.target_ranks(scores, seen, lists.assign(movieId=10**9))


def test_factor_scores_leave_out_what_the_model_does_not_know(seen):
    random = np.random.default_rng(0)
    users, movies = seen.users[1:], seen.items[:-1]
    factors = Factors(
        users, movies, *(random.normal(size=(len(ids), 2)) for ids in (users, movies))
    )
    scores = sequential.factor_scores(factors, seen)
    assert np.isneginf(scores[0]).all() and np.isneginf(scores[:, -1]).all()
    np.testing.assert_allclose(scores[1:, :-1], factors.user_factors @ factors.movie_factors.T)
    rare = sequential.factor_scores(factors, seen, min_support=14)
    assert (np.isneginf(rare[1]) >= (seen.counts < 14)).all()


def test_steps_back_are_what_was_seen_before_each_item():
    table = ratings("1:1@1 1:2@2 1:3@3 1:4@4 2:1@1 2:3@2")
    (one, first), (two, second) = sequential.steps_back(table, np.array([1, 2, 3, 4]), steps=2)
    assert first.movieId.tolist() == [4, 3] and second.movieId.tolist() == [3]
    assert one.items[one.column].tolist() == [1, 2, 3, 1]
    assert two.items[two.column].tolist() == [1, 2] and two.users.tolist() == [1]


def test_coordinate_search_climbs_and_keeps_a_record():
    def score(how):
        return -abs(how.window - 4) - abs(how.backward - 0.5)

    best, tried = sequential.coordinate_search(
        score, Transitions(window=1, backward=0.1), {"window": (2, 4), "backward": (0.5, 0.9)}
    )
    assert (best.window, best.backward) == (4, 0.5)
    assert tried.score.max() == score(best) == 0 and len(tried) == 1 + 2 + 2 + 1


# --- lists ------------------------------------------------------------------------------------


def test_top_lists_hide_what_was_seen_and_break_ties_by_movie(seen):
    lists = sequential.top_lists(np.zeros((len(seen.users), len(seen.items))), seen, 5)
    assert (lists.groupby("userId").size() == 5).all()
    known = set(zip(seen.users[seen.row], seen.items[seen.column], strict=True))
    assert not known & set(zip(lists.userId, lists.movieId, strict=True))
    assert lists.groupby("userId").movieId.apply(lambda m: m.is_monotonic_increasing).all()
    noise = np.random.default_rng(0).normal(size=(len(seen.users), len(seen.items))) * 1e-13
    pd.testing.assert_frame_equal(
        lists.drop(columns="score"),
        sequential.top_lists(1 + noise, seen, 5).drop(columns="score"),
    )


def test_top_lists_are_short_when_little_is_left(seen):
    scores = np.full((len(seen.users), len(seen.items)), -np.inf)
    scores[:, :15] = 1.0
    lists = sequential.top_lists(scores, seen, 20)
    assert lists.groupby("userId").size().max() < 15 and np.isfinite(lists.score).all()
    everything = sequential.top_lists(np.ones_like(scores), seen, 10**6)
    assert (everything.groupby("userId").size() == len(seen.items) - 12).all()


# --- comparisons ------------------------------------------------------------------------------


def test_a_paired_interval_is_narrower_than_two_separate_ones():
    random = np.random.default_rng(0)
    base = pd.Series(random.random(300))
    better = base + 0.02 + random.normal(0, 0.01, 300)
    paired = stats.paired(better, base)
    apart = stats.bootstrap_interval(base)
    assert paired.low > 0 and paired.high - paired.low < (apart.high - apart.low) / 5


def test_metrics_agree_with_spark(spark):
    """NDCG, recall and MRR at k against pyspark's RankingEvaluator.

    With one relevant item average precision is the reciprocal rank.
    """
    from pyspark.ml.evaluation import RankingEvaluator

    parts = splits.leave_one_out(random_ratings())
    seen = Interactions.of(parts.known)
    lists = sequential.top_lists(sequential.ease(seen, reg=5.0), seen, 10)
    rows = lists.groupby("userId").movieId.apply(lambda m: [float(x) for x in m])
    truth = parts.test.set_index("userId").movieId
    table = spark.createDataFrame(
        [(rows[user], [float(truth[user])]) for user in truth.index], ["prediction", "label"]
    )
    for k in (5, 10, 50):
        ours = metrics.score_table(lists, parts.test, (k,)).mean()
        for name, column in (
            ("ndcgAtK", "NDCG"),
            ("recallAtK", "Recall"),
            ("meanAveragePrecisionAtK", "MRR"),
        ):
            theirs = RankingEvaluator(metricName=name, k=k).evaluate(table)
            assert ours[f"{column}@{k}"] == pytest.approx(theirs), (name, k)


def test_counts_of_the_past_are_those_of_the_ratings_before_a_users_moment(seen):
    how = Transitions(window=2, gap_decay=0.7, backward=0.4, popularity=0.5, last=3, age_decay=0.6)
    times = np.random.default_rng(0).permutation(len(seen.row)).astype(float)
    times = times[np.lexsort((times, seen.row))]  # each user's in order
    after = np.full(len(seen.users), np.inf)
    all_of_it = sequential.transitions_so_far(seen, times, after, how)
    np.testing.assert_allclose(all_of_it, sequential.transitions(seen, how))
    moment = float(np.median(times))
    past = times < moment
    table = pd.DataFrame({"userId": seen.users[seen.row], "movieId": seen.items[seen.column]})
    before = sequential.Interactions.of(table[past], seen.items)
    wanted = seen.recent(how.age_decay, how.last) @ sequential.transition_counts(before, how)
    found = sequential.transitions_so_far(seen, times, np.full_like(after, moment), how)
    np.testing.assert_allclose(found, wanted.toarray())
