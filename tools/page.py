"""The page to play with: ``make page`` writes ``build/page/index.html``, one file, no server.

It needs no Spark: factors, split and lists are in ``data/weights``, where ``python tools/page.py``
puts them (once notebook 03 has run). What the LLM wrote is found by its prompts.
"""

import base64
import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Template

from helpers import als, audit, candidates, data, llm, prompts, ranking, replies
from helpers.settings import Settings
from helpers.spark import get_spark
from research.evaluation import HIDDEN_RULES, LetterRanking, history_prompt

SEED, TOP_K, USERS, N_CANDIDATES, HISTORY = 0, 10, 240, 20, 20  # as in notebooks 05 and 06
POOL, LIKES = 120, 6  # well-known movies to rate, favourites shown
SOURCES = Path(__file__).with_name("page")


def weights(dataset: data.Dataset, settings: Settings) -> Path:
    return settings.data_dir / "weights" / f"implicit_als{'_sample' * dataset.simulated}.npz"


def answer(store: replies.Store, messages: prompts.Messages, schema: type) -> str | None:
    """Return the text of the recorded reply to a prompt, or ``None``."""
    body = {"messages": messages, "response_format": llm.response_format(schema)}
    reply = store.get(replies.request_key(body))
    return reply and reply.response["choices"][0]["message"]["content"]


def profile(store: replies.Store, rated: pd.DataFrame) -> prompts.Profile | None:
    """Return the recorded profile of a user with this history, if there is one."""
    try:
        prompt = prompts.profile_prompt(rated, candidates.liked(rated), candidates.disliked(rated))
        return prompts.Profile.model_validate_json(answer(store, prompt, prompts.Profile) or "")
    except (candidates.NoCandidatesError, ValueError):
        return None


def fit(dataset: data.Dataset, settings: Settings, setting: list[float]) -> dict:
    """Fit the retriever of notebooks 05 and 06; ``setting``: rank, regularisation, alpha."""
    (rank, reg, alpha), session = setting, get_spark(settings)
    parts = data.split(data.load(session, dataset).ratings, seed=SEED)
    model = als.make_als(int(rank), reg, seed=SEED, implicit=True, alpha=alpha)
    learned = als.factors(model.fit(parts[0].cache()))
    train, validation, test = tables = [part.toPandas() for part in parts]
    ratings, movies = (data.load_pandas(dataset, name) for name in ("ratings", "movies"))
    part = pd.concat(tables, keys=range(3), names=["part", None]).reset_index("part")
    store, users = replies.Store(settings.replies_dir), learned.users.tolist()
    able = np.intersect1d(test.loc[test["rating"] >= 4, "userId"], users)
    saved = {
        "setting": np.array(setting, dtype=float),
        "movieIds": learned.movies,
        "factors": learned.movie_factors.astype(np.float16),
        "part": ratings.merge(part, "left", ["userId", "movieId"])["part"].to_numpy(np.uint8),
        "core": [u for u in users if profile(store, candidates.history(ratings, movies, u))],
        "second": np.random.default_rng(SEED).choice(able, min(USERS, len(able)), replace=False),
    }
    known = pd.concat([train, validation])
    for name, seen, n in (("core", ratings, TOP_K), ("second", known, N_CANDIDATES)):
        lists = candidates.Recommender(learned, train, seen).recommend(saved[name], n)
        saved[f"{name}_lists"] = lists["movieId"].to_numpy(np.int32).reshape(-1, n)
    return saved


class Course:
    """The data, the committed factors and the recorded replies, as the page shows them."""

    def __init__(self, dataset: data.Dataset, settings: Settings) -> None:
        with np.load(weights(dataset, settings)) as file:
            self.saved, self.dataset, self.settings = dict(file), dataset, settings
        self.store = replies.Store(settings.replies_dir)
        self.ratings = data.load_pandas(dataset, "ratings").assign(part=self.saved["part"])
        movies = data.load_pandas(dataset, "movies").set_index("movieId", drop=False)
        cold = movies.index.difference(self.saved["movieIds"])
        self.movies = movies.loc[[*self.saved["movieIds"], *cold]].reset_index(drop=True)
        self.row = {movie: row for row, movie in enumerate(self.movies["movieId"])}

    def content(self) -> dict:
        """Return all that is shown; a movie is a row of ``titles``."""
        saved, people = self.saved, []
        for kind in ("core", "second"):
            for user, listed in zip(saved[kind], saved[f"{kind}_lists"], strict=True):
                people.append(self.person(int(user), listed.tolist(), kind == "core"))
        told = pd.read_csv(self.settings.results_dir / "06_second_question.csv")
        trained = self.rows(self.ratings.loc[self.ratings["part"] == 0, "movieId"])
        famous = np.argsort(-np.bincount(trained), kind="stable")[:POOL]
        return {
            "simulated": self.dataset.simulated,
            "setting": saved["setting"].tolist(),
            "measured": dict(zip(told["ranker"], told["value"], strict=True)),
            "factors": base64.b64encode(saved["factors"].tobytes()).decode(),
            "titles": self.movies["title"].tolist(),
            "genres": self.movies["genres"].tolist(),
            "famous": famous.tolist(),
            "people": [person for person in people if person["orders"]],
        }

    def person(self, user: int, listed: list[int], core: bool) -> dict:
        """Return one recorded person; ``core``: one of notebook 05, who has no hidden ratings."""
        mine = self.ratings[self.ratings["userId"] == user]
        train, hidden = mine[mine["part"] == 0], mine[(mine["part"] == 2) & (not core)]
        rated = candidates.history(mine if core else train, self.movies, user)
        text, claims = "", []
        if written := profile(self.store, rated):
            tastes = candidates.liked(rated), candidates.disliked(rated)
            table = audit.audit_profile(written, *tastes)
            text = prompts.profile_as_text(written, table)
            table = table[table["field"] != "summary"]
            why = table["why"].where(table["verdict"] == "flagged", "")
            cited = table["movie_ids"].map(self.rows)
            claims = list(zip(table["field"], table["claim"], why, cited, strict=True))
            named = [claim[:2] for claim in claims if not claim[2]]
        else:  # by counting: what is often rated, and above this person's own mean
            table = audit.taste_table(rated, at_least=max(3, len(rated) // 12))
            table = table[table["mean_deviation"] > 0]
            kinds = table["kind"].map({"genre": "genres", "decade": "eras"})
            named = list(zip(kinds, table["name"], strict=True))
        return {
            "id": user,
            "core": core,
            "count": len(rated),
            "likes": self.rows(rated["movieId"].head(LIKES)),
            "genres": [name for kind, name in named if kind == "genres"][:3],
            "eras": [name for kind, name in named if kind == "eras"][:2],
            "summary": written.summary if written else "",
            "claims": claims,
            "listed": self.rows(listed),
            "orders": self.orders(user, listed, text, train),
            "known": self.rated(train),
            "seen": self.rows(mine["movieId"].drop(train.index).drop(hidden.index)),
            "hidden": self.rated(hidden),
        }

    def orders(self, user: int, listed: list[int], text: str, train: pd.DataFrame) -> list[dict]:
        """Return the recorded orders of a list, by what the LLM had read (``text``: a profile)."""
        shown = prompts.shuffled(listed, seed=user)
        table, letters = self.movies.iloc[self.rows(shown)], ranking.letters(len(shown))
        last = train.sort_values(["timestamp", "movieId"]).tail(HISTORY).merge(self.movies)
        second = partial(history_prompt, last, letters, table, rules=HIDDEN_RULES)
        found, back = [], [shown.index(movie) for movie in listed]
        for by, messages, schema in [
            ("profile", prompts.ranking_prompt(text, letters, table), ranking.RankingReply),
            ("history", second(), LetterRanking),
            ("profile", second(profile_text=text), LetterRanking),
        ]:
            said = answer(self.store, messages, schema)
            read = ranking.read_ranking(said, len(shown), back)
            if not read.failed:
                order = self.rows([shown[place] for place in read.order])
                reasons = [read.reasons.get(place, "") for place in read.order]
                found.append({"by": by, "order": order, "reasons": reasons})
        return found

    def rows(self, movies: pd.Series | list[int]) -> list[int]:
        return [self.row[movie] for movie in movies if movie in self.row]

    def rated(self, ratings: pd.DataFrame) -> list[tuple[int, float]]:
        return list(zip(self.rows(ratings["movieId"]), ratings["rating"].tolist(), strict=True))


def write(folder: Path, settings: Settings) -> None:
    """Write ``index.html`` for the release, or for the sample where the data are something else."""
    dataset = data.locate(settings)
    if not (dataset.verified or dataset.simulated):
        dataset = data.locate(replace(settings, movielens_dir=settings.sample_dir))
    content = json.dumps(Course(dataset, settings).content(), separators=(",", ":"))
    parts = {"DATA": content.replace("<", "\\u003c")}  # no title ends the script
    for name, file in {"STYLE": "page.css", "SCRIPT": "page.js"}.items():
        parts[name] = (SOURCES / file).read_text("utf-8")
        digest = base64.b64encode(hashlib.sha256(parts[name].encode()).digest()).decode()
        parts[f"{name}_HASH"] = f"sha256-{digest}"
    template = Template((SOURCES / "template.html").read_text("utf-8"), keep_trailing_newline=True)
    folder.mkdir(exist_ok=True)
    (folder / "index.html").write_text(template.render(parts), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    settings = Settings.from_env()
    dataset = data.locate(settings)
    tuned = data.read_result("03_implicit", dataset, settings)[["rank", "reg", "alpha"]]
    np.savez_compressed(weights(dataset, settings), **fit(dataset, settings, tuned.iloc[0]))
