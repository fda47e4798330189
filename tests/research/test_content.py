"""Items as text, search, and titles found again: notebook 09's plumbing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("bm25s")

from research import content
from research.sequential import Interactions

MOVIES = pd.DataFrame(
    [
        (1, "Matrix, The (1999)", "Action|Sci-Fi"),
        (2, "Seven (a.k.a. Se7en) (1995)", "Mystery|Thriller"),
        (3, "City of Lost Children, The (Cité des enfants perdus, La) (1995)", "Fantasy"),
        (4, "Kill Bill: Vol. 2 (2004)", "Action"),
        (5, "Star Wars: Episode V - The Empire Strikes Back (1980)", "Sci-Fi"),
        (6, "Amelie (Fabuleux destin d'Amélie Poulain, Le) (2001)", "Romance"),
        (7, "Old Boy (2003)", "Thriller"),
        (8, "Emma (1996)", "Romance"),
        (9, "Emma (1996)", "Drama"),
        (10, "Babylon 5", "Sci-Fi"),
        (11, "Cape Fear (1962)", "Thriller"),
    ],
    columns=["movieId", "title", "genres"],
)


@pytest.mark.parametrize(
    ("title", "year", "movie_id"),
    [
        ("The Matrix", 1999, 1),
        ("Matrix, The", 2000, 1),  # a year beside
        ("Se7en", 1995, 2),
        ("Seven", 1995, 2),
        ("La Cité des enfants perdus", 1995, 3),
        ("The City of Lost Children", 1995, 3),
        ("The Empire Strikes Back", 1980, 5),
        ("AMÉLIE", 2001, 6),
        ("Le Fabuleux Destin d'Amélie Poulain", 2001, 6),
        ("Oldboy", 2003, 7),
        ("Emma", 1996, 8),  # two movies of that name and year: the lower id
        ("Babylon 5", 1994, 10),  # no year in the catalogue
    ],
)
def test_a_title_is_found_however_it_is_written(title, year, movie_id):
    assert content.Titles(MOVIES).find(title, year).movie_id == movie_id


@pytest.mark.parametrize(
    ("title", "year"),
    [
        ("Kill Bill: Vol. 1", 2003),  # its sequel is not it
        ("Cape Fear", 1991),  # nor is the first film its remake
        ("The Matrix", 2003),
        ("", 1999),
        ("!?", 1999),
        ("x" * 5000, 1999),
        ("Матрица", 1999),
    ],
)
def test_another_movie_is_not_taken_for_it(title, year):
    assert content.Titles(MOVIES).find(title, year) == content.Match(None, "unknown", 0.0)


def test_exact_and_similar_are_told_apart():
    titles = content.Titles(MOVIES)
    assert titles.find("The Matrix", 1999).how == "exact"
    found = titles.find("Oldboy", 2003)
    assert found.how == "similar" and 88 <= found.score < 100


TAGS = pd.DataFrame(
    [
        (1, 1, "Cyberpunk"),
        (2, 1, "cyberpunk "),
        (3, 1, "secret\nline"),
        (3, 2, ""),
        (3, 3, None),
        (4, 3, "мечта"),
        (4, 4, "z" * 300),
    ],
    columns=["userId", "movieId", "tag"],
)


def test_a_text_holds_title_genres_and_the_most_frequent_tags_first():
    texts = content.item_texts(MOVIES, TAGS)
    assert texts[1] == "Matrix, The (1999). Action, Sci-Fi. cyberpunk, secret line"
    assert texts.index.tolist() == MOVIES.movieId.tolist()


def test_empty_missing_foreign_and_endless_tags_do_no_harm():
    texts = content.item_texts(MOVIES, TAGS)
    assert texts[2] == "Seven (a.k.a. Se7en) (1995). Mystery, Thriller"
    assert texts[3].endswith("мечта")
    assert texts[4].endswith(". " + "z" * 60)


def test_the_users_own_words_about_a_held_out_movie_are_left_out():
    held = pd.DataFrame({"userId": [3], "movieId": [1]})
    assert "secret" not in content.item_texts(MOVIES, TAGS, held)[1]
    assert "cyberpunk" in content.item_texts(MOVIES, TAGS, held)[1]


def test_a_title_of_300_characters_is_cut():
    long = MOVIES.head(1).assign(title="A" * 300 + " (1999)")
    assert len(content.item_texts(long)[1]) < 200
    assert content.Titles(long).find("A" * 300, 1999).movie_id == 1


def test_search_ranks_rare_words_first_and_ties_by_id():
    search = content.Search(content.item_texts(MOVIES, TAGS))
    assert search.top("cyberpunk action", 3)[0] == 1
    assert set(search.top("emma")) == {8, 9}
    assert search.top("nothingmatchesthis") == [] and search.top("") == []
    tie = content.Search(pd.Series({5: "same words", 3: "same words", 9: "other"}))
    assert tie.top("same") == [3, 5]


def test_interleaving_takes_turns_and_drops_repeats():
    assert content.interleave([[1, 2, 3], [2, 4], []]) == [1, 2, 4, 3]
    assert content.interleave([]) == []


def test_near_movies_score_by_the_last_ones_and_far_ones_not_at_all():
    rows = pd.DataFrame({"userId": [1, 1, 2], "movieId": [10, 20, 20], "timestamp": [1, 2, 1]})
    seen = Interactions.of(rows, np.array([10, 20, 30, 40]))
    near = np.array([[0, 0.1, 0.9, 0], [0.1, 0, 0.4, 0.2], [0.9, 0.4, 0, 0], [0, 0.2, 0, 0]])
    plain = content.near_scores(near, seen, content.Near(neighbours=1, popularity=0.0))
    # Movie 30 is nearest to 10 (weight 0.8, one step back); 40 to 20 (weight 1).
    assert plain.shape == (2, 4) and plain[0, 2] == pytest.approx(0.72)
    assert plain[0, 3] == pytest.approx(0.2) and plain[1, 2] == 0
    popular = content.near_scores(near, seen, content.Near(neighbours=1, popularity=1.0))
    assert popular[0, 0] == plain[0, 0] and popular[0, 1] == pytest.approx(2 * plain[0, 1])
    wide = content.near_scores(near, seen, content.Near(neighbours=99, popularity=0.0))
    assert wide[1, 2] == pytest.approx(0.4)  # more neighbours than there are movies
