"""Items as text: what is written about a movie, a search engine over it, and titles found again.

Needs the ``llamarec`` extra; notebook 09 introduces it. Titles and tags are untrusted text: they
are cleaned, cut, and never decide anything but a score.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import bm25s
import numpy as np
import pandas as pd
from rapidfuzz import fuzz, process

from helpers.audit import year_of
from helpers.prompts import MAX_TITLE
from research.sequential import Interactions

MAX_TAGS = 15
ARTICLES = "the|a|an|la|le|les|l'|el|los|las|il|lo|i|gli|das|der|die|den|det|un|une|una|uno|o|os|as"


def clean(text: object, limit: int = MAX_TITLE) -> str:
    """Return untrusted text on one line, without control characters, cut at ``limit``."""
    line = "".join(char if char.isprintable() else " " for char in str(text))
    return " ".join(line.split())[:limit].rstrip()


def item_texts(
    movies: pd.DataFrame, tags: pd.DataFrame | None = None, held_out: pd.DataFrame | None = None
) -> pd.Series:
    """Return one line of text per movie, indexed by ``movieId``: title, genres, and viewers' tags.

    Of ``tags`` (``userId, movieId, tag``) the 15 most frequent of a movie are kept. Those of the
    pairs in ``held_out`` (``userId, movieId``) are left out: a user's own words about a test item
    must not help to find it.
    """
    words = {}
    if tags is not None and len(tags):
        kept = tags.dropna(subset=["tag"])
        if held_out is not None:
            pairs = pd.MultiIndex.from_frame(held_out[["userId", "movieId"]])
            kept = kept.loc[~pd.MultiIndex.from_frame(kept[["userId", "movieId"]]).isin(pairs)]
        kept = kept.assign(tag=kept["tag"].map(lambda tag: clean(tag, 60).lower()))
        counts = kept.loc[kept["tag"] != ""].value_counts(["movieId", "tag"]).reset_index()
        counts = counts.sort_values(["movieId", "count", "tag"], ascending=[True, False, True])
        first = counts.groupby("movieId").head(MAX_TAGS)
        words = first.groupby("movieId")["tag"].agg(", ".join).to_dict()
    lines = {}
    for movie_id, title, genres in movies[["movieId", "title", "genres"]].itertuples(index=False):
        listed = "" if genres == "(no genres listed)" else str(genres).replace("|", ", ")
        parts = [clean(title), clean(listed), words.get(movie_id, "")]
        lines[movie_id] = ". ".join(part for part in parts if part)
    return pd.Series(lines, name="text", dtype=object).rename_axis("movieId")


@dataclass(frozen=True)
class Near:
    """How movies near a user's last ones score: see :func:`near_scores`."""

    neighbours: int = 100
    last: int = 10
    decay: float = 0.8
    popularity: float = 0.3


def near_scores(similarity: np.ndarray, seen: Interactions, how: Near) -> np.ndarray:
    """Score items by their similarity to each user's last items, shape (n_users, n_items).

    Of ``similarity``, shape (n_items, n_items) with zeros on the diagonal, only the nearest
    ``neighbours`` of each item count. The sum is multiplied by the number of ratings to the power
    ``popularity``.
    """
    neighbours = min(how.neighbours, len(similarity) - 1)
    edge = np.partition(similarity, -neighbours, axis=0)[-neighbours]
    near = np.where(similarity >= edge, similarity, 0).astype(np.float32)
    votes = seen.recent(how.decay, how.last) @ near
    return np.round(votes, 5) * np.maximum(seen.counts, 1) ** how.popularity


class Search:
    """BM25 (Robertson and Zaragoza 2009) over the texts of items, by ``bm25s`` (Lù 2024)."""

    def __init__(self, texts: pd.Series) -> None:
        """Index ``texts``, strings indexed by ``movieId``."""
        self.movie_ids = texts.index.to_numpy()
        self._index = bm25s.BM25()
        self._index.index(self._tokens(texts.tolist()), show_progress=False)

    @staticmethod
    def _tokens(texts: list[str]) -> Any:
        pattern = r"(?u)\b\w+\b"  # numbers of one digit and words of one letter too: "Toy Story 2"
        return bm25s.tokenize(texts, token_pattern=pattern, return_ids=False, show_progress=False)

    def top(self, query: str, n: int = 20) -> list[int]:
        """Return the best ``n`` items that match at all, as movieIds, ties to the lower one."""
        tokens = self._tokens([query])[0]
        if not tokens:
            return []
        scores = np.round(self._index.get_scores(tokens).astype(float), 4)
        order = np.lexsort((self.movie_ids, -scores))[:n]
        return [int(self.movie_ids[place]) for place in order if scores[place] > 0]


def interleave(lists: Sequence[Sequence[int]]) -> list[int]:
    """Return the items of several lists, first all first places, then all second, each once."""
    places = itertools.zip_longest(*lists)
    return list(dict.fromkeys(item for items in places for item in items if item is not None))


def normal(name: str) -> str:
    """Return a title as it is compared: no accents, case, punctuation or leading article."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    plain = re.sub(r"[^a-z0-9]+", " ", plain.replace("&", " and ").replace("'", "")).strip()
    return re.sub(r"^(?:the|a|an) (?=.)", "", plain)


def names_of(title: str) -> list[str]:
    """Return the names by which a MovieLens title may be called, normalised.

    "City of Lost Children, The (Cité des enfants perdus, La) (1995)" gives both names, each with
    its article dropped or moved to the front.
    """
    bare = re.sub(r"\s*\(\d{4}[^)]*\)\s*$", "", title)
    inside = [re.sub(r"^a\.?k\.?a\.?\s*", "", part) for part in re.findall(r"\(([^()]*)\)", bare)]
    outside = re.sub(r"\s*\([^()]*\)", "", bare)
    # "Star Wars: Episode IV - A New Hope" is called by its first or its last part.
    episode = re.match(r"(.+): Episode [IVX]+ - (.+)$", outside)
    names = []
    for name in [outside, *inside, *(episode.groups() if episode else ())]:
        moved = re.match(rf"(.*), ({ARTICLES})$", name.strip(), re.IGNORECASE)
        names += [normal(f"{moved[2]} {moved[1]}"), normal(moved[1])] if moved else [normal(name)]
    return [name for name in dict.fromkeys(names) if name]


NUMERALS = {"ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6", "vii": "7", "viii": "8"}


def _numbers(name: str) -> set[str]:
    words = {NUMERALS.get(word, word) for word in name.split()}
    return {word for word in words if word.isdigit()}


@dataclass(frozen=True)
class Match:
    """What a named title was taken for; ``movie_id`` is None and ``how`` "unknown" if nothing."""

    movie_id: int | None
    how: str
    score: float


class Titles:
    """Finds the movie that somebody means by a title and a year."""

    def __init__(self, movies: pd.DataFrame, cutoff: float = 88.0) -> None:
        """Index ``movieId, title``; ``cutoff`` is the least ``rapidfuzz.fuzz.ratio``, 0 to 100."""
        self.cutoff = cutoff
        self._by_year: dict[int, list[tuple[str, int]]] = {}
        for movie_id, title in movies[["movieId", "title"]].itertuples(index=False):
            year = year_of(str(title)[:500]) or 0
            for name in names_of(str(title)[:500]):
                self._by_year.setdefault(year, []).append((name, int(movie_id)))

    def find(self, title: str, year: int) -> Match:
        """Return the movie of that title, released within a year of ``year``.

        The same name counts first (``exact``, the same year before the years beside it), then the
        most similar one (``similar``) if both hold the same numbers: a sequel is not its original.
        """
        wanted = names_of(clean(title, 300))
        for at in (year, year - 1, year + 1, 0):  # 0: the catalogue does not know the year
            known = self._by_year.get(at, [])
            for name in wanted:
                if hits := [movie_id for other, movie_id in known if other == name]:
                    return Match(min(hits), "exact", 100.0)
        near = [pair for offset in (0, -1, 1) for pair in self._by_year.get(year + offset, [])]
        best = Match(None, "unknown", 0.0)
        for name in wanted:
            allowed = [pair for pair in near if _numbers(pair[0]) == _numbers(name)]
            others = [other for other, _ in allowed]
            hit = process.extractOne(name, others, scorer=fuzz.ratio, score_cutoff=self.cutoff)
            if hit and hit[1] > best.score:
                best = Match(allowed[hit[2]][1], "similar", float(hit[1]))
        return best
