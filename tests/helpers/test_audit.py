"""The audit can say no."""

from __future__ import annotations

import pandas as pd
import pytest

from helpers import prompts
from helpers.audit import audit_profile, genres_named, taste_table, year_of, years_named
from helpers.prompts import Claim, Profile

CASES = [
    ("genres", Claim(name="Comedy and Romance", movie_ids=[1, 2]), "confirmed"),
    ("genres", Claim(name="Horror", movie_ids=[1, 2]), "flagged"),
    ("genres", Claim(name="nice films", movie_ids=[1, 2]), "flagged"),
    ("eras", Claim(name="1990s", movie_ids=[1, 2]), "confirmed"),
    ("eras", Claim(name="1970s", movie_ids=[1, 2]), "flagged"),
    ("eras", Claim(name="long ago", movie_ids=[1]), "flagged"),
    ("themes", Claim(name="matchmaking", movie_ids=[1, 2]), "cited"),
    ("themes", Claim(name="space", movie_ids=[3]), "flagged"),
    ("themes", Claim(name="matchmaking", movie_ids=[]), "flagged"),
    ("dislikes", Claim(name="horror", movie_ids=[3]), "confirmed"),
    ("dislikes", Claim(name="romance", movie_ids=[1]), "flagged"),
]


@pytest.mark.parametrize(("field", "claim", "verdict"), CASES)
def test_each_claim_gets_its_verdict(rated, field, claim, verdict):
    parts = {"genres": [], "eras": [], "themes": [], "dislikes": []} | {field: [claim]}
    profile = Profile(summary="Romantic comedies.", **parts)
    audit = audit_profile(profile, rated.head(2), rated.tail(1))
    assert audit.verdict.tolist() == ["cited", verdict]
    text = prompts.profile_as_text(profile, audit)
    assert (claim.name in text) == (verdict != "flagged")


def test_words_about_the_person_are_flagged_but_titles_are_not(rated):
    def verdict(summary):
        profile = Profile(summary=summary, genres=[], eras=[], themes=[], dislikes=[])
        return audit_profile(profile, rated, rated).verdict[0]

    assert verdict("She is a teacher.") == "flagged"
    assert verdict("A woman who likes dramas.") == "flagged"
    assert verdict("Rates Children of Men high.") == "cited"


def test_the_taste_table_is_arithmetic(rated):
    table = taste_table(rated, at_least=1).set_index("name")
    assert table.loc["Romance", "mean_deviation"] == 1.0 and table.loc["1970s", "movies"] == 1


def test_years():
    assert years_named("1980s and 1990s") == (1980, 1999)
    assert year_of("Emma (1996)") == 1996 and year_of("Emma") is None
    assert year_of("Land of Time (1995) (V)") == 1995
    assert year_of("1984 (Nineteen)") is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("kids and dark science fiction", {"Children", "Sci-Fi"}),
        ("unknown", set()),
        ("Western dramas", {"Western", "Drama"}),
        ("warm, full of warmth", set()),
        ("wartime", {"War"}),
    ],
)
def test_genres_are_words_with_any_ending(text, named):
    assert genres_named(text) == named


def test_in_a_dislike_other_words_than_genres_are_left_to_the_llm():
    rated = pd.DataFrame({"movieId": [1], "title": ["A (1999)"], "genres": ["Drama"]})
    claims = [
        Claim(name="dramas with unknown actors", movie_ids=[1]),
        Claim(name="puns", movie_ids=[1]),
    ]
    profile = Profile(summary="", genres=[], eras=[], themes=[], dislikes=claims)
    audit = audit_profile(profile, rated.head(0), rated)
    assert audit.why[1] == "1 of 1 cited movies are listed as Drama"
    assert audit.verdict.tolist() == ["cited", "confirmed", "cited"]
