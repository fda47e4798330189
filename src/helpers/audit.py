"""The audit of what a profile claims, and the table that stands in where there is no profile.

Notebook 04 writes the core of the audit out in a cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from helpers.prompts import Claim, Profile

GENRE_WORDS = {
    "action": "Action", "adventure": "Adventure", "animat": "Animation", "child": "Children",
    "kids": "Children", "comed": "Comedy", "crime": "Crime", "documentar": "Documentary",
    "drama": "Drama", "fantas": "Fantasy", "film-noir": "Film-Noir", "noir": "Film-Noir",
    "horror": "Horror", "imax": "IMAX", "musical": "Musical", "myster": "Mystery",
    "romance": "Romance", "romantic": "Romance", "rom-com": "Romance", "sci-fi": "Sci-Fi",
    "science fiction": "Sci-Fi", "thriller": "Thriller", "war": "War", "western": "Western",
}  # fmt: skip
"""Beginnings of words that stand for a genre of the MovieLens catalogue."""

NO_GENRE = frozenset({"(no genres listed)", "unknown"})
"""What the releases write where a movie has no genre."""

PERSON = re.compile(
    r"\b(?:wom[ae]n|m[ae]n|female|male|girl|boy|lady|mother|father|parent|husband|wife|married|"
    r"gender|aged?|teenager|years? old|born|lives? in|grew up|occupation|profession(?:al)?|job|"
    r"personality|ethnic\w*|nationality|[Hh]is|[Hh]er|[Hh]e|[Ss]he)\b"
)
"""Words by which a sentence about taste turns into one about the person.

Lower case only: a title such as Children of Men may be cited.
"""


def genres_named(text: str, catalogue: Iterable[str] = ()) -> set[str]:
    """Return the genres that ``text`` names: :data:`GENRE_WORDS` with any ending, or as listed.

    A genre of ``catalogue`` counts when it stands in the text as it is.
    """
    lower = text.lower()
    listed = {g for g in catalogue if re.search(rf"(?<!\w){re.escape(g.lower())}(?!\w)", lower)}
    words = {genre for word, genre in GENRE_WORDS.items() if re.search(rf"\b{word}", lower)}
    return listed | words


def years_named(text: str) -> tuple[int, int] | None:
    """Return the first and last year that ``text`` names, or ``None``.

    ``"1990s"`` is 1990 to 1999, ``"1980s and 1990s"`` is 1980 to 1999, ``"1994"`` is itself.
    """
    spans = re.findall(r"\b((?:19|20)\d\d)(s?)\b", text)
    years = [int(year) + 9 * (end and bool(s)) for year, s in spans for end in (0, 1)]
    return (min(years), max(years)) if years else None


def year_of(title: str) -> int | None:
    """Return the year at the end of a MovieLens title, ``(V)`` and such after it, or ``None``."""
    match = re.search(r"\((\d{4})(?:[-–]\d{0,4})?\)(?:\s*\(\w+\))?\s*$", title)
    return int(match[1]) if match else None


def audit_profile(profile: Profile, liked: pd.DataFrame, disliked: pd.DataFrame) -> pd.DataFrame:
    """Check every claim against the ratings and the catalogue.

    A claim is flagged when it cites no movie, cites one outside the list it may cite from, names
    genres or years that fewer than half of its cited movies have, or speaks of the person.
    What passes is ``confirmed`` where the catalogue could confirm it (genres, years), else
    ``cited``: the movies are real, the reading of them is the LLM's.

    Returns:
        One row per claim, the summary first: ``field, claim, movie_ids, verdict, why``.
    """
    catalogue: set[str] = set("|".join([*liked["genres"], *disliked["genres"]]).split("|"))
    fault = _person(profile.summary)
    rows = [("summary", profile.summary, [], "flagged" if fault else "cited", fault)]
    for field in ("genres", "eras", "themes", "dislikes"):
        allowed = (disliked if field == "dislikes" else liked).set_index("movieId")
        for claim in getattr(profile, field):
            verdict, why = _judged(field, claim, allowed, catalogue)
            rows.append((field, claim.name, claim.movie_ids, verdict, why))
    return pd.DataFrame(rows, columns=["field", "claim", "movie_ids", "verdict", "why"])


def _person(text: str) -> str:
    match = PERSON.search(text)
    return f"speaks of the person ({match[0]!r})" if match else ""


def _judged(
    field: str, claim: Claim, allowed: pd.DataFrame, catalogue: set[str]
) -> tuple[str, str]:
    """Return the verdict on a claim, and why."""
    if not claim.movie_ids:
        return "flagged", "cites no movie"
    if outside := [movie_id for movie_id in claim.movie_ids if movie_id not in allowed.index]:
        lists = "dislikes" if field == "dislikes" else "likes"
        return "flagged", f"cites movies outside the {lists}: {outside}"
    if field in {"genres", "eras"} and (fault := _person(claim.name)):
        return "flagged", fault
    if field == "themes":
        return "cited", ""
    cited = allowed.loc[claim.movie_ids]
    if field == "eras":
        if (span := years_named(claim.name)) is None:
            return "flagged", "names no year"
        holds, what = cited["title"].map(year_of).between(*span), "from these years"
    else:
        # In free text "unknown" is a word like any other, and of several genres one is enough.
        free = field == "dislikes"
        genres = genres_named(claim.name, catalogue - NO_GENRE if free else catalogue)
        if not genres:
            return ("cited", "") if free else ("flagged", "names no genre of the catalogue")
        has = cited["genres"].str.split("|").map(genres.intersection).map(len)
        holds = has >= (1 if free else len(genres))
        what = f"listed as {(' or ' if free else ' and ').join(sorted(genres))}"
    verdict = "confirmed" if holds.mean() >= 0.5 else "flagged"
    return verdict, f"{int(holds.sum())} of {len(holds)} cited movies are {what}"


def taste_table(rated: pd.DataFrame, at_least: int = 3) -> pd.DataFrame:
    """Return genres and decades with their count and mean deviation, a profile without an LLM.

    Columns: ``kind`` (genre or decade), ``name``, ``movies``, ``mean_deviation`` (stars relative to
    the user's mean); groups under ``at_least`` movies are left out; best first within a kind.
    """
    genres = rated.assign(name=rated["genres"].str.split("|")).explode("name")
    genres = genres.loc[~genres["name"].isin(NO_GENRE)].assign(kind="genre")
    years = rated["title"].map(year_of)
    decades = rated.loc[years.notna()].assign(
        name=(years.dropna() // 10 * 10).astype(int).astype(str) + "s", kind="decade"
    )
    both = pd.concat([genres, decades])
    table = both.groupby(["kind", "name"], as_index=False).agg(
        movies=("movieId", "size"), mean_deviation=("deviation", "mean")
    )
    table = table.loc[table["movies"] >= at_least]
    return table.sort_values(
        ["kind", "mean_deviation", "name"], ascending=[False, False, True], ignore_index=True
    )
