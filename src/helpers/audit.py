"""The audit of notebook 04, and the table that stands in where there is no profile."""

import re

import pandas as pd

from helpers.prompts import FIELDS, Claim, Profile

# Beginnings of words that stand for a genre of the MovieLens catalogue.
GENRE_WORDS = {
    "action": "Action", "adventure": "Adventure", "animat": "Animation", "child": "Children",
    "kids": "Children", "comed": "Comedy", "crime": "Crime", "documentar": "Documentary",
    "drama": "Drama", "fantas": "Fantasy", "noir": "Film-Noir", "horror": "Horror", "imax": "IMAX",
    "musical": "Musical", "myster": "Mystery", "romance": "Romance", "romantic": "Romance",
    "rom-com": "Romance", "sci-fi": "Sci-Fi", "science fiction": "Sci-Fi", "thriller": "Thriller",
    "war(?!m)": "War", "western": "Western",
}  # fmt: skip
# Words about the person, not the taste; in lower case, for Children of Men may be cited.
PERSON = re.compile(
    r"\b(?:wom[ae]n|m[ae]n|female|male|girl|boy|lady|mother|father|parent|husband|wife|married|"
    r"gender|aged?|teenager|years? old|born|lives? in|grew up|occupation|profession(?:al)?|job|"
    r"personality|ethnic\w*|nationality|[Hh]is|[Hh]er|[Hh]e|[Ss]he)\b"
)


def genres_named(text: str) -> set[str]:
    """Return the genres that ``text`` names, with any ending."""
    return {name for word, name in GENRE_WORDS.items() if re.search(rf"\b{word}", text.lower())}


def years_named(text: str) -> tuple[int, int] | None:
    """Return the first and last year that ``text`` names ("1990s" is 1990 to 1999), or ``None``."""
    found = re.findall(r"\b((?:19|20)\d\d)(s?)\b", text)
    years = [int(year) + 9 * (end and bool(s)) for year, s in found for end in (0, 1)]
    return (min(years), max(years)) if years else None


def year_of(title: str) -> int | None:
    """Return the year at the end of a MovieLens title, ``(V)`` and such after it, or ``None``."""
    match = re.search(r"\((\d{4})(?:[-–]\d{0,4})?\)(?:\s*\(\w+\))?\s*$", title)
    return int(match[1]) if match else None


def audit_profile(profile: Profile, liked: pd.DataFrame, disliked: pd.DataFrame) -> pd.DataFrame:
    """Check every claim: a row each, the summary first: ``field, claim, movie_ids, verdict, why``.

    Flagged: no movie cited, one outside its list, genres or years that fewer than half of them
    have, words about the person. Else ``confirmed`` by genres or years, or merely ``cited``.
    """
    person = _person(profile.summary)
    rows = [("summary", profile.summary, [], "flagged" if person else "cited", person)]
    for field in FIELDS:
        allowed = (disliked if field == "dislikes" else liked).set_index("movieId")
        for claim in getattr(profile, field):
            rows.append((field, claim.name, claim.movie_ids, *_judged(field, claim, allowed)))
    return pd.DataFrame(rows, columns=["field", "claim", "movie_ids", "verdict", "why"])


def _person(text: str) -> str:
    match = PERSON.search(text)
    return f"speaks of the person ({match[0]!r})" if match else ""


def _judged(field: str, claim: Claim, allowed: pd.DataFrame) -> tuple[str, str]:
    """Return the verdict on a claim, and why."""
    dislikes, genres = field == "dislikes", genres_named(claim.name)
    if not claim.movie_ids:
        return "flagged", "cites no movie"
    if outside := [movie_id for movie_id in claim.movie_ids if movie_id not in allowed.index]:
        return "flagged", f"cites movies outside the {field if dislikes else 'likes'}: {outside}"
    if field in ("genres", "eras") and (person := _person(claim.name)):
        return "flagged", person
    if field == "genres" and not genres:
        return "flagged", "names no genre of the catalogue"
    cited = allowed.loc[claim.movie_ids]
    if field == "eras":
        span = years_named(claim.name) or (0, 0)
        holds, what = cited["title"].map(year_of).between(*span), "from these years"
    elif field == "themes" or not genres:
        return "cited", ""
    else:
        has = cited["genres"].str.split("|").map(genres.intersection).map(len)
        holds = has >= (1 if dislikes else len(genres))  # what is disliked may be one of several
        what = f"listed as {(' or ' if dislikes else ' and ').join(sorted(genres))}"
    verdict = "confirmed" if holds.mean() >= 0.5 else "flagged"
    return verdict, f"{int(holds.sum())} of {len(holds)} cited movies are {what}"


def taste_table(rated: pd.DataFrame, at_least: int = 3) -> pd.DataFrame:
    """Return ``kind`` (genre or decade), ``name``, ``movies``, ``mean_deviation`` in stars."""
    genres = rated.assign(kind="genre", name=rated["genres"].str.split("|")).explode("name")
    genres = genres.loc[~genres["name"].isin(["(no genres listed)", "unknown"])]
    years = rated["title"].map(year_of).astype(float)
    decades = rated.assign(kind="decade", name=(years // 10 * 10).map("{:.0f}s".format))
    groups = pd.concat([genres, decades[years.notna()]]).groupby(["kind", "name"], as_index=False)
    table = groups.agg(movies=("movieId", "size"), mean_deviation=("deviation", "mean"))
    return table.loc[table["movies"] >= at_least].sort_values(
        ["kind", "mean_deviation", "name"], ascending=[False, False, True], ignore_index=True
    )
