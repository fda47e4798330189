"""The page to play with: ``make page`` writes ``build/page/index.html``, one file, no server.

It needs no Spark: the retriever's factors, the split and the lists of the people shown are in
``data/weights``, where ``python tools/page.py`` puts them (once notebook 03 has run). What the
LLM wrote is found by its prompts, those of notebook 05 and of notebook 06's first question.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from helpers import als, audit, candidates, data, llm, prompts, ranking, replies
from helpers.settings import Settings
from helpers.spark import get_spark
from research.evaluation import HIDDEN_RULES, history_prompt

SEED, TOP_K, USERS, N_CANDIDATES, HISTORY = 0, 10, 240, 20, 20  # as in notebooks 05 and 06
POOL, LIKES = 120, 6  # well-known movies to rate, favourites shown
SOURCES, Store = Path(__file__).with_name("page"), replies.CommittedStore


def weights(dataset: data.Dataset, settings: Settings) -> Path:
    return settings.data_dir / "weights" / f"implicit_als{'_sample' * dataset.simulated}.npz"


def answer(store: Store, messages: prompts.Messages, schema: type) -> str | None:
    """Return the text of the recorded reply to a prompt, or ``None``."""
    body = {"messages": messages, "response_format": llm.response_format(schema)}
    reply = store.get(replies.request_key(body))
    return reply and reply.response["choices"][0]["message"]["content"]


def profile(store: Store, rated: pd.DataFrame) -> tuple[prompts.Profile | None, pd.DataFrame]:
    """Return the recorded profile of a user with this history, if there is one, and its audit."""
    try:
        liked, disliked = candidates.liked(rated), candidates.disliked(rated)
        said = answer(store, prompts.profile_prompt(rated, liked, disliked), prompts.Profile)
        found = prompts.Profile.model_validate_json(said or "")
    except (candidates.NoCandidatesError, ValueError):
        return None, pd.DataFrame(columns=["field", "claim", "movie_ids", "verdict", "why"])
    return found, audit.audit_profile(found, liked, disliked)


def fit(dataset: data.Dataset, settings: Settings, setting: Sequence[float]) -> dict[str, Any]:
    """Fit the retriever of notebooks 05 and 06; ``setting``: rank, regularisation, alpha."""
    (rank, reg, alpha), session = setting, get_spark(settings)
    parts = data.split(data.load(session, dataset).ratings, seed=SEED)
    model = als.make_als(int(rank), reg, seed=SEED, implicit=True, alpha=alpha)
    learned = als.factors(model.fit(parts[0].cache()))
    train, validation, test = tables = [part.toPandas() for part in parts]
    ratings, movies = (data.load_pandas(dataset, name) for name in ("ratings", "movies"))
    part = pd.concat(tables, keys=range(3), names=["part", None]).reset_index("part")
    part = ratings.merge(part, "left", ["userId", "movieId"])["part"]
    store, users = replies.CommittedStore(settings.replies_dir), learned.users.tolist()
    core = [u for u in users if profile(store, candidates.history(ratings, movies, u))[0]]
    able = np.intersect1d(test.loc[test["rating"] >= 4, "userId"], users)
    second = np.random.default_rng(SEED).choice(able, min(USERS, len(able)), replace=False)

    def lists(shown: Sequence[int], seen: pd.DataFrame, n: int) -> np.ndarray:
        table = candidates.Recommender(learned, train, seen).recommend(shown, n)
        return table["movieId"].to_numpy(np.int32).reshape(-1, n)

    return {
        "setting": np.array(setting, dtype=float),
        "movieIds": learned.movies,
        "factors": learned.movie_factors.astype(np.float16),
        "part": part.to_numpy(np.uint8),
        "core": core,
        "core_lists": lists(core, ratings, TOP_K),
        "second": second,
        "second_lists": lists(second, pd.concat([train, validation]), N_CANDIDATES),
    }


class Course:
    """The data, the committed factors and the recorded replies, as the page shows them."""

    def __init__(self, dataset: data.Dataset, settings: Settings) -> None:
        with np.load(weights(dataset, settings)) as file:
            self.saved, self.dataset, self.settings = dict(file), dataset, settings
        self.store = replies.CommittedStore(settings.replies_dir)
        self.ratings = data.load_pandas(dataset, "ratings").assign(part=self.saved["part"])
        movies = data.load_pandas(dataset, "movies").set_index("movieId", drop=False)
        cold = movies.index.difference(self.saved["movieIds"])
        self.movies = movies.loc[[*self.saved["movieIds"], *cold]].reset_index(drop=True)
        self.row = {movie: row for row, movie in enumerate(self.movies["movieId"])}

    def content(self) -> dict[str, Any]:
        """Return all that is shown; a movie is a row of ``titles``."""
        saved, train = self.saved, self.ratings[self.ratings["part"] == 0]
        famous = np.argsort(-np.bincount(self.rows(train["movieId"])), kind="stable").tolist()
        told = pd.read_csv(self.settings.results_dir / "06_second_question.csv")
        people = [
            self.person(int(user), listed.tolist(), kind == "core")
            for kind in ("core", "second")
            for user, listed in zip(saved[kind], saved[f"{kind}_lists"], strict=True)
        ]
        return {
            "simulated": self.dataset.simulated,
            "setting": saved["setting"].tolist(),
            "measured": dict(zip(told["ranker"], told["value"], strict=True)),
            "factors": base64.b64encode(saved["factors"].tobytes()).decode(),
            "titles": self.movies["title"].tolist(),
            "genres": self.movies["genres"].tolist(),
            "famous": famous[:POOL],
            "people": [person for person in people if person["orders"]],
        }

    def person(self, user: int, listed: list[int], core: bool) -> dict[str, Any]:
        """Return one recorded person; ``core``: one of notebook 05, who has no hidden ratings."""
        mine = self.ratings[self.ratings["userId"] == user]
        train, hidden = mine[mine["part"] == 0], mine[(mine["part"] == 2) & (not core)]
        rated = candidates.history(mine if core else train, self.movies, user)
        written, claims = profile(self.store, rated)
        text = prompts.profile_as_text(written, claims) if written else ""
        claims = claims[claims["field"] != "summary"]
        if written:
            named = claims[claims["verdict"] != "flagged"].set_index("field")["claim"]
        else:  # by counting: what is often rated, and above this person's own mean
            table = audit.taste_table(rated, at_least=max(3, len(rated) // 12))
            table = table[table["mean_deviation"] > 0]
            named = table["name"].set_axis(table["kind"].map({"genre": "genres", "decade": "eras"}))
        why = claims["why"].where(claims["verdict"] == "flagged", "")
        cited = claims["movie_ids"].map(self.rows)
        return {
            "id": user,
            "core": core,
            "count": len(rated),
            "likes": self.rows(rated["movieId"].head(LIKES)),
            "genres": named[named.index == "genres"].head(3).tolist(),
            "eras": named[named.index == "eras"].head(2).tolist(),
            "summary": written.summary if written else "",
            "claims": list(zip(claims["field"], claims["claim"], why, cited, strict=True)),
            "listed": self.rows(listed),
            "orders": self.orders(user, listed, text, train),
            "known": self.rated(train),
            "seen": self.rows(mine["movieId"].drop(train.index).drop(hidden.index)),
            "hidden": self.rated(hidden),
        }

    def orders(self, user: int, listed: list[int], text: str, train: pd.DataFrame) -> list[Any]:
        """Return the recorded orders of a list, by what the LLM had read (``text``: a profile)."""
        shown = prompts.shuffled(listed, seed=user)
        table, letters = self.movies.iloc[self.rows(shown)], ranking.letters(len(shown))
        last = train.sort_values(["timestamp", "movieId"]).tail(HISTORY).merge(self.movies)
        second = partial(history_prompt, last, letters, table, rules=HIDDEN_RULES)
        found, back = [], [shown.index(movie) for movie in listed]
        for by, messages, schema in [
            ("profile", prompts.ranking_prompt(text, letters, table), ranking.RankingReply),
            ("history", second(), ranking.LetterRanking),
            ("profile", second(profile_text=text), ranking.LetterRanking),
        ]:
            said = answer(self.store, messages, schema)
            read = ranking.read_ranking(said, len(shown), back, table["title"].tolist())
            if not read.failed:
                order = self.rows(shown[place] for place in read.order)
                reasons = [read.reasons.get(place, "") for place in read.order]
                found.append({"by": by, "order": order, "reasons": reasons})
        return found

    def rows(self, movies: Iterable[int]) -> list[int]:
        return [self.row[movie] for movie in movies if movie in self.row]

    def rated(self, ratings: pd.DataFrame) -> list[tuple[int, float]]:
        return list(zip(self.rows(ratings["movieId"]), ratings["rating"].tolist(), strict=True))


def write(folder: Path, settings: Settings) -> Path:
    """Write ``index.html`` for the release, or for the sample where the data are something else."""
    dataset = data.locate(settings)
    if not (dataset.verified or dataset.simulated):
        dataset = data.locate(replace(settings, movielens_dir=settings.sample_dir))
    content = json.dumps(Course(dataset, settings).content(), separators=(",", ":"))
    files = {"STYLE": "page.css", "SCRIPT": "page.js", "PAGE": "template.html"}
    parts = {name: (SOURCES / file).read_text("utf-8") for name, file in files.items()}
    hashes = {k: hashlib.sha256(v.encode()).digest() for k, v in parts.items()}
    parts |= {f"{k}_HASH": "sha256-" + base64.b64encode(v).decode() for k, v in hashes.items()}
    parts["DATA"] = content.replace("<", "\\u003c")  # no title ends the script
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], parts["PAGE"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "index.html").write_text(page, encoding="utf-8", newline="\n")
    return folder / "index.html"


if __name__ == "__main__":
    settings = Settings.from_env()
    dataset = data.locate(settings)
    tuned = data.read_result("03_implicit", dataset, settings)[["rank", "reg", "alpha"]]
    np.savez_compressed(weights(dataset, settings), **fit(dataset, settings, tuned.iloc[0]))
