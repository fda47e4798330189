"""Candidates: nothing seen is recommended, and dead ends are named."""

import numpy as np
import pandas as pd
import pytest

from helpers.als import Factors
from helpers.candidates import NoCandidatesError, Recommender, disliked, history, liked, viewer


@pytest.fixture
def world():
    random = np.random.default_rng(0)
    users, movies = np.array([1, 5, 9]), np.arange(10, 30)
    matrices = (random.normal(size=(n, 4)).astype("float32") for n in (3, 20))
    factors = Factors(users, movies, *matrices)
    pairs = [(u, m) for u in users for m in random.choice(movies, 8, replace=False)]
    train = pd.DataFrame(pairs, columns=["userId", "movieId"])
    return factors, train.assign(rating=random.integers(1, 6, len(train)).astype(float))


def test_the_list_is_the_best_unseen_movies_for_one_user_as_in_bulk(world):
    factors, train = world
    recommender = Recommender(factors, train, train)
    got = recommender.recommend(n=5)
    for place, user in enumerate(factors.users):
        seen = set(train.movieId[train.userId == user])
        scores = factors.movie_factors @ factors.user_factors[place]
        wanted = [m for m in factors.movies[np.argsort(-scores)] if m not in seen][:5]
        mine = got[got.userId == user]
        assert mine.movieId.tolist() == wanted and mine["rank"].tolist() == [1, 2, 3, 4, 5]
        pd.testing.assert_frame_equal(recommender.recommend([user], 5), mine.reset_index(drop=True))
    assert recommender.recommend([9, 1], n=1).userId.tolist() == [9, 1]


def test_ties_go_to_the_lower_id():
    factors = Factors(np.array([1]), np.arange(5), np.ones((1, 1)), np.ones((5, 1)))
    train = pd.DataFrame({"userId": [1], "movieId": [0], "rating": [3.0]})
    assert Recommender(factors, train, train).recommend(n=2).movieId.tolist() == [1, 2]


def test_dead_ends_are_one_sentence(world):
    factors, train = world
    recommender = Recommender(factors, train, train)
    with pytest.raises(NoCandidatesError, match="User 2 is not in the model"):
        recommender.recommend([2])
    everything = pd.DataFrame({"userId": 5, "movieId": factors.movies})
    with pytest.raises(NoCandidatesError, match="rated already: choose another user"):
        Recommender(factors, train, everything).recommend([5])


def test_history_likes_and_dislikes():
    movies = pd.DataFrame({"movieId": [1, 2, 3, 4], "title": list("abcd"), "genres": "Drama"})
    ratings = pd.DataFrame(
        {"userId": 1, "movieId": [1, 2, 3, 4], "rating": [5, 4, 4, 1.0], "timestamp": [1, 2, 3, 4]}
    )
    table = history(ratings, movies, 1)
    assert table.movieId.tolist() == [1, 3, 2, 4]
    assert table.deviation.tolist() == [1.5, 0.5, 0.5, -2.5]
    assert history(ratings, movies.iloc[1:], 1).movieId.tolist() == [3, 2, 4]
    assert liked(table).movieId.tolist() == [1, 3, 2] and disliked(table).movieId.tolist() == [4]
    with pytest.raises(NoCandidatesError, match="no rating"):
        history(ratings, movies, 2)
    low = history(ratings.assign(rating=[1, 1, 2, 2.5]), movies, 1)
    with pytest.raises(NoCandidatesError, match="liked none of 4"):
        liked(low)


def test_a_viewer_liked_a_movie():
    ratings = pd.DataFrame({"userId": [1, 1, 2, 2], "rating": [2, 1, 3, 5]})
    assert viewer(2, ratings) == (2, "")
    for wanted in (1, 9):
        sentence = f"User {wanted} liked no movie here: user 2 is shown instead."
        assert viewer(wanted, ratings) == (2, sentence)
    assert viewer(1, ratings.assign(rating=2.5)) == (1, "")  # :func:`liked` says that nobody did
