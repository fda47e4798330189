"""The prompts of 04 and 05, in ``templates`` (the system's, ``---``, the user's words)."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, Field

Messages = list[dict[str, str]]
MAX_TITLE = 150  # characters
FIELDS = ("genres", "eras", "themes", "dislikes")  # of a profile, with claims


def quote(text: str) -> str:
    """Return untrusted text as one quoted line; brackets that could end a block are replaced."""
    line = "".join(char if char.isprintable() else " " for char in str(text))
    line = " ".join(line.split()).replace("<", "‹").replace(">", "›")
    short = line if len(line) <= MAX_TITLE else line[: MAX_TITLE - 1] + "…"
    return json.dumps(short, ensure_ascii=False)


class Claim(BaseModel, extra="forbid"):
    """One statement about the taste, with the movies that support it."""

    name: str = Field(description="the claim in a few words")
    movie_ids: list[int] = Field(description="movieIds from the lists that support the claim")


class Profile(BaseModel, extra="forbid"):
    """An interest profile: what the ratings show, and nothing about the person."""

    summary: str
    genres: list[Claim]
    eras: list[Claim]
    themes: list[Claim]
    dislikes: list[Claim]


def _messages(name: str, **values: Any) -> Messages:
    text = Path(__file__).with_name("templates").joinpath(f"{name}.txt").read_text("utf-8")
    system, user = text.strip().split("\n---\n")
    user = user.format(**values)
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def movie_line(key: str | int, title: str, genres: str, deviation: float | None = None) -> str:
    """Return a line of a prompt: letter or id, title, genres, and stars relative to the mean."""
    line = f"{key} | {quote(title)} | {quote(genres.replace('|', ', '))[1:-1]}"
    return line if deviation is None else f"{line} | {deviation:+.1f}"


def profile_prompt(rated: pd.DataFrame, liked: pd.DataFrame, disliked: pd.DataFrame) -> Messages:
    """Return the improved profile prompt from all that a user rated, 40 likes and 15 dislikes."""
    columns = ["movieId", "title", "genres", "deviation"]
    likes, dislikes = (
        [movie_line(*row) for row in movies[columns].itertuples(index=False, name=None)]
        for movies in (liked.head(40), disliked.head(15))
    )
    return _messages(
        "profile", rated=len(rated), mean=rated["rating"].mean(),
        n_liked=len(liked), likes_shown=len(likes), likes="\n".join(likes),
        n_disliked=len(disliked), dislikes_shown=len(dislikes), dislikes="\n".join(dislikes),
    )  # fmt: skip


def ranking_prompt(profile_text: str, letters: Sequence[str], movies: pd.DataFrame) -> Messages:
    """Return the improved ranking prompt: profile (A) and candidates (B), a letter for each."""
    rows = zip(letters, movies["title"], movies["genres"], strict=True)
    lines = "\n".join(movie_line(*row) for row in rows)
    profile = profile_text.replace("<", "‹").replace(">", "›")
    return _messages("ranking", profile=profile, candidates=lines, n=len(movies))


def shuffled(movie_ids: Sequence[int], seed: int) -> list[int]:
    """Return the ids in an order that depends on their set and ``seed``, not on the retriever."""
    ids = sorted(int(movie_id) for movie_id in movie_ids)
    random.Random(seed).shuffle(ids)
    return ids


def profile_as_text(profile: Profile, audit: pd.DataFrame | None = None) -> str:
    """Return the summary and a line per field, without the claims that the ``audit`` flagged."""
    flagged = set()
    if audit is not None:
        bad = audit.loc[audit["verdict"] == "flagged"]
        flagged = set(zip(bad["field"], bad["claim"], strict=True))
    lines = [] if ("summary", profile.summary) in flagged else [profile.summary]
    for name in FIELDS:
        claims = [c.name for c in getattr(profile, name) if (name, c.name) not in flagged]
        lines.append(f"{name}: {'; '.join(claims) or 'nothing stands out'}")
    return "\n".join(lines)
