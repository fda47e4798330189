"""The pipeline as one small app: a user's likes, profile, candidates, and the ranked list.

:class:`Pipeline` turns a choice (user, blend, support, thumbs) into tables without any widget;
:func:`build` puts them on screen, in notebook 05 and on the page of ``make app``. Only replies that
are stored are used, nothing is sent; where one is missing, the app says so and keeps the
retriever's order. A thumb asks no LLM either: it is folded into the user's factor
(:func:`fold_in`).
"""

from __future__ import annotations

import functools
import hashlib
import html
import json
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, replace

import ipywidgets
import numpy as np
import pandas as pd
from pyspark.sql import SparkSession

from helpers import als, answers, candidates, data, llm, prompts, ranking
from helpers.replies import request_key
from helpers.settings import Settings
from helpers.spark import close_spark, get_spark

TOP_K, SEED = 10, 0  # as in notebook 05: only then is a stored reply the answer
THUMB_STARS = 5.0
MAX_SUPPORT = 50
CACHE_COLUMNS = ("users", "movies", "user_factors", "movie_factors")


# --- the retriever --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retriever:
    """Implicit ALS of notebook 03: its factors, its training rows and how it was fitted.

    ``train`` holds ``userId, movieId, rating``; ``reg`` and ``alpha`` are Spark's ``regParam`` and
    ``alpha``.
    """

    factors: als.Factors
    train: pd.DataFrame
    reg: float
    alpha: float


def fold_in(
    movie_factors: np.ndarray, rows: np.ndarray, stars: np.ndarray, *, reg: float, alpha: float
) -> np.ndarray:
    """Return the factor of a user with these ratings, shape (rank,), movie factors held fixed.

    One half step of implicit ALS (Hu, Koren and Volinsky 2008) as Spark takes it: the preference is
    1 for ``stars`` above 0 and 0 for those below, its confidence ``1 + alpha * |stars|``, and the
    regularisation is ``reg`` times the number of ratings above 0. Spark ends with this step for
    every user, so the training ratings give back the model's own factor.

    Args:
        movie_factors: all of the model's, shape (n_movies, rank).
        rows: positions of the rated movies in it.
        stars: one rating per position, negative for a movie that the user does not want.
        reg: Spark's ``regParam``.
        alpha: Spark's ``alpha``.

    Raises:
        ValueError: no rating is above 0; the regularisation would be 0.
    """
    factors = np.asarray(movie_factors, dtype=float)
    stars = np.asarray(stars, dtype=float)
    if not (stars > 0).any():
        raise ValueError("A user's factor needs at least one rating above 0.")
    mine, weight = factors[rows], alpha * np.abs(stars)
    left = factors.T @ factors + (mine * weight[:, None]).T @ mine
    left += reg * (stars > 0).sum() * np.eye(factors.shape[1])
    right = ((1 + weight) * (stars > 0)) @ mine
    return np.linalg.solve(left, right)


def load_retriever(dataset: data.Dataset, settings: Settings) -> Retriever:
    """Return the retriever of notebook 05 for this data, from a file of the app's own if it is new.

    The first time Spark fits the model and is closed again; after that the app needs
    neither Spark nor Java.

    Raises:
        DataError: notebook 03 has not run on this data.
        JavaError: there is no file yet, and no suitable Java either.
    """
    tuned = data.read_result("03_implicit", dataset, settings).iloc[0]
    rank, reg, alpha = int(tuned["rank"]), float(tuned.reg), float(tuned.alpha)
    facts = [data.sha256(dataset.path / "ratings.csv"), rank, reg, alpha, SEED]
    facts.append(settings.spark_partitions)
    mark = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    path = settings.cache_dir / "app" / f"{dataset.name}.npz"
    if found := _read_cache(path, mark):
        return Retriever(*found, reg, alpha)
    running = SparkSession.getActiveSession() is not None
    session = get_spark(settings)
    try:
        train = data.split(data.load(session, dataset).ratings, seed=SEED)[0].cache()
        model = als.make_als(rank, reg, seed=SEED, implicit=True, alpha=alpha).fit(train)
        factors, rows = als.factors(model), train.toPandas()[["userId", "movieId", "rating"]]
    finally:
        if not running:
            close_spark(session)
    with data.replacing(path) as fresh, fresh.open("wb") as file:
        columns = {name: getattr(factors, name) for name in CACHE_COLUMNS}
        np.savez(file, mark=mark, train=rows.to_numpy(), **columns)
    return Retriever(factors, rows, reg, alpha)


def _read_cache(path, mark: str) -> tuple[als.Factors, pd.DataFrame] | None:
    try:
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["mark"]) != mark:
                return None
            factors = als.Factors(*(kept[name] for name in CACHE_COLUMNS))
            rows = pd.DataFrame(kept["train"], columns=["userId", "movieId", "rating"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # none yet, or a damaged one: it is made anew
    return factors, rows.astype({"userId": int, "movieId": int})


# --- from a choice to tables ----------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """What does not depend on sliders or thumbs.

    ``llm_order`` holds the movieIds of the ten candidates as the LLM ranked them, ``None`` without
    a usable reply; ``notice`` says where the profile and the ranking come from. ``profile`` is
    plain text: the LLM's, or a table of genres and decades.
    """

    user: int
    rated: pd.DataFrame
    liked: pd.DataFrame
    profile: str
    llm_order: list[int] | None
    reasons: dict[int, str]
    notice: str


class Pipeline:
    """Notebook 05 for any user, from stored replies only."""

    def __init__(
        self, retriever: Retriever, ratings: pd.DataFrame, movies: pd.DataFrame, settings: Settings
    ) -> None:
        """Keep the tables; ``ratings`` are all known ones, which are never recommended."""
        self.retriever, self._ratings, self._movies = retriever, ratings, movies
        # Stores alone: whatever server is configured, a look at a user sends and notes nothing.
        self._stores = llm.Stores(settings)
        self._named = movies.set_index("movieId")
        self.person = functools.lru_cache(maxsize=64)(self._person)
        self._candidates = functools.lru_cache(maxsize=256)(self._recommend)

    def users(self) -> list[int]:
        """Return all users of the model; those with a stored profile come first."""
        everyone = [int(user) for user in self.retriever.factors.users]
        stored = self.recorded_users()
        return stored + [user for user in everyone if user not in set(stored)]

    @functools.cached_property
    def _stored_texts(self) -> set[str]:
        return {
            reply.request["messages"][-1]["content"]
            for store in (self._stores.committed, self._stores.local)
            for reply in store.all()
            if reply.request.get("messages") and self._stores.settings.llm_mode != "none"
        }

    def _stored(self, messages: prompts.Messages, schema: type) -> llm.Outcome:
        body = {"messages": messages, "response_format": llm.response_format(schema)}
        reply = self._stores.find(body)
        if reply is None and self._stores.settings.llm_mode != "none":
            # One that is not usable says why.
            reply = self._stores.local.get(request_key(body))
        if reply is not None:
            outcome = llm.outcome_of(body, reply.response, reply.origin)
            if outcome.kind != "ok":
                return outcome
            answer = answers.read(outcome.text, schema)
            return replace(outcome, value=answer.value, why=answer.why)
        return llm.Outcome(None, "no_reply", "no reply is stored for this user")

    def recorded_users(self) -> list[int]:
        """Return the users for whom a reply to the profile prompt is stored."""
        first = {text.splitlines()[0] for text in self._stored_texts if text}
        facts = self._ratings.groupby("userId")["rating"].agg(["size", "mean"])
        known = set(self.retriever.factors.users.tolist())
        found = []
        for user, count, mean in facts.itertuples():
            line = f"A viewer has rated {count} movies; the mean is {mean:.2f} of 5 stars."
            if line in first and user in known:
                try:
                    messages = prompts.profile_prompt(*self._taste(user))
                except candidates.NoCandidatesError:
                    continue
                if messages[-1]["content"] in self._stored_texts:
                    found.append(int(user))
        return found

    def _taste(self, user: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        rated = candidates.history(self._ratings, self._movies, user)
        return rated, candidates.liked(rated), candidates.disliked(rated)

    def _person(self, user: int) -> Person:
        """Return a user's history, profile and LLM ranking, as notebooks 04 and 05 make them.

        Raises:
            NoCandidatesError: the user is unknown or liked nothing.
        """
        rated, liked, disliked = self._taste(user)
        outcome = self._stored(prompts.profile_prompt(rated, liked, disliked), prompts.Profile)
        if outcome.value is None:
            table = prompts.taste_table(rated).round(2).to_string(index=False)
            notice = (
                f"No LLM profile and no LLM ranking ({outcome.why}): a plain table stands in, and "
                "the retriever's order is kept."
            )
            return Person(user, rated, liked, table, None, {}, notice)
        audit = prompts.audit_profile(outcome.value, liked, disliked)
        text = prompts.profile_as_text(outcome.value, audit)
        first = self.candidates(user).movieId.tolist()
        shown = prompts.shuffled(first, seed=user)
        labels = ranking.letters(len(shown))
        messages = prompts.ranking_prompt(text, labels, self._named.loc[shown].reset_index())
        answer = self._stored(messages, ranking.RankingReply)
        back = [shown.index(movie) for movie in first]
        titles = self._named.title[shown].tolist()
        result = ranking.read_ranking(answer.text, len(shown), fallback=back, titles=titles)
        flagged = int((audit["verdict"] == "flagged").sum())
        by = f"an LLM reply, {outcome.source}, by {outcome.model}"
        notice = f"The profile is {by}; {flagged} of its claims were left out. "
        if result.failed:
            notice += f"No LLM ranking ({answer.why or result.why}): the retriever's order is kept."
            return Person(user, rated, liked, text, None, {}, notice)
        by = f"an LLM reply, {answer.source}, by {answer.model}"
        notice += f"The ranking is {by}; repairs to it: {result.repairs.total}."
        reasons = {shown[position]: why for position, why in result.reasons.items()}
        return Person(
            user,
            rated,
            liked,
            text,
            [shown[position] for position in result.order],
            reasons,
            notice,
        )

    def _recommend(self, user: int, support: int) -> pd.DataFrame:
        remedy = candidates.Remedy("support", min_support=support)
        found = self.retriever
        one = candidates.Recommender(found.factors, found.train, self._ratings, remedy)
        return one.recommend([user], TOP_K).merge(self._movies, on="movieId")

    def candidates(self, user: int, support: int = 0) -> pd.DataFrame:
        """Return the retriever's ten movies with at least ``support`` training ratings each.

        Columns: ``userId, rank, movieId, score, support, title, genres``.

        Raises:
            NoCandidatesError: the user is unknown, or no movie has so many ratings.
        """
        return self._candidates(user, support)

    def factor(self, user: int, up: Collection[int] = (), down: Collection[int] = ()) -> np.ndarray:
        """Return the user's factor with thumbs as new ratings of 5 (up) and -5 (down)."""
        found, mine = self.retriever, self.retriever.train
        mine = mine.loc[mine["userId"] == user]
        movies = [*mine["movieId"], *up, *down]
        stars = [*mine["rating"], *[THUMB_STARS] * len(up), *[-THUMB_STARS] * len(down)]
        rows = np.searchsorted(found.factors.movies, movies)
        return fold_in(
            found.factors.movie_factors, rows, np.array(stars), reg=found.reg, alpha=found.alpha
        )

    def ranked(
        self,
        user: int,
        *,
        weight: float = 0.5,
        support: int = 0,
        up: Collection[int] = (),
        down: Collection[int] = (),
    ) -> pd.DataFrame:
        """Return the final list.

        With thumbs the candidates are scored again with the user's new factor, which changes the
        retriever's order; the LLM's stays. The two are blended by ``weight``; movies with a thumb
        up then go first and those with a thumb down last, whatever the models say. A candidate that
        the LLM was not asked about follows its list in the retriever's order.

        Columns: ``rank, movieId, title, retriever, llm, support, reason, thumb``; ``retriever`` and
        ``llm`` are ranks from 1, ``llm`` is missing where the LLM was not asked.

        Raises:
            NoCandidatesError: see :meth:`candidates`.
        """
        person, table = self.person(user), self.candidates(user, support).set_index("movieId")
        order = table.index.tolist()
        up, down = ([m for m in order if m in set(thumbs)] for thumbs in (up, down))
        if up or down:
            rows = np.searchsorted(self.retriever.factors.movies, order)
            new = self.retriever.factors.movie_factors[rows] @ self.factor(user, up, down)
            scores = dict(zip(order, np.round(new, 5), strict=True))
            order.sort(key=lambda movie: (-scores[movie], movie))
        told = [movie for movie in person.llm_order or [] if movie in table.index]
        mixed = order
        if told:
            rest = [movie for movie in order if movie not in told]
            mixed = ranking.blend(order, told + rest, weight)
        free = [movie for movie in mixed if movie not in up and movie not in down]
        final = [m for m in mixed if m in up] + free + [m for m in mixed if m in down]
        place = {movie: rank for rank, movie in enumerate(told, 1)}
        return pd.DataFrame(
            {
                "rank": range(1, len(final) + 1),
                "movieId": final,
                "title": [table.title[movie] for movie in final],
                "retriever": [order.index(movie) + 1 for movie in final],
                "llm": pd.array([place.get(movie) for movie in final], dtype="Int64"),
                "support": [int(table.support[movie]) for movie in final],
                "reason": [person.reasons.get(movie, "") for movie in final],
                "thumb": [
                    "up" if movie in up else "down" if movie in down else "" for movie in final
                ],
            }
        )


# --- on screen ------------------------------------------------------------------------------------

STYLE = """<style>
.course-app { max-width: 1100px; color: #1f1f1f; }
.course-app table { border-collapse: collapse; }
.course-app th { text-align: left; border-bottom: 1px solid #767676; }
.course-app td, .course-app th { padding: 1px 10px 1px 0; vertical-align: top; }
.course-app pre { white-space: pre-wrap; margin: 0; line-height: 1.35; }
.course-app .notice { color: #8a3c00; font-weight: 600; margin: 4px 0; }
.course-app .reason { color: #555555; }
.course-app h3 { margin: 8px 0 2px; }
</style>"""


def table_html(table: pd.DataFrame) -> str:
    """Return a table as HTML, all text escaped."""
    return table.to_html(index=False, escape=True, border=0, na_rep="")


def row_html(row) -> str:
    """Return one line of the ranked list: rank, title, where it stood, and the LLM's reason."""
    llm_rank = "not asked" if pd.isna(row.llm) else row.llm
    thumb = f", your thumb: {row.thumb}" if row.thumb else ""
    return (
        f"<b>{row.rank}. {html.escape(row.title)}</b> (retriever {row.retriever}, LLM {llm_rank}, "
        f"{row.support} ratings{thumb})<br>"
        f"<span class='reason'>{html.escape(row.reason) or 'no reason given'}</span>"
    )


class App:
    """The controls and what they show; :attr:`box` is the widget to display."""

    def __init__(self, pipeline: Pipeline, user: int | None = None) -> None:
        """Build the controls and show ``user``, by default the first with stored replies."""
        self.pipeline = pipeline
        users, stored = pipeline.users(), set(pipeline.recorded_users())
        names = [(f"{u} (replies stored)" if u in stored else str(u), u) for u in users]
        self.user = ipywidgets.Dropdown(
            options=names, value=user if user in users else users[0], description="user"
        )
        self.weight = ipywidgets.FloatSlider(
            value=0.5, min=0, max=1, step=0.1, description="LLM weight", continuous_update=False
        )
        self.support = ipywidgets.IntSlider(
            value=0, max=MAX_SUPPORT, step=5, description="min. ratings", continuous_update=False
        )
        self.clear = ipywidgets.Button(description="Clear thumbs", icon="eraser")
        self.notice, self.likes, self.profile, self.retrieved = (
            ipywidgets.HTML() for _ in range(4)
        )
        self.rows = [ipywidgets.HTML(layout={"flex": "1 1 auto"}) for _ in range(TOP_K)]
        self.buttons = [(self._thumb(i, "up"), self._thumb(i, "down")) for i in range(TOP_K)]
        self._thumbs: dict[int, str] = {}
        self._shown: list[int] = []
        self.clear.on_click(lambda _: self._change({}))
        self.user.observe(lambda _: self._change({}), names="value")
        for slider in (self.weight, self.support):
            slider.observe(lambda _: self.show(), names="value")
        self.box = self._layout()
        self.show()

    def _thumb(self, place: int, way: str) -> ipywidgets.Button:
        button = ipywidgets.Button(
            description=way, icon=f"thumbs-{way}", layout={"width": "76px", "flex": "0 0 auto"}
        )
        button.on_click(lambda _: self.press(place, way))
        return button

    def _layout(self) -> ipywidgets.VBox:
        lines = [
            ipywidgets.HBox([*pair, row]) for pair, row in zip(self.buttons, self.rows, strict=True)
        ]
        about = ipywidgets.HTML(
            "<p>A thumb is added to your ratings as 5 stars (up) or as a clear no (down), and the "
            "retriever scores the same ten movies again; the LLM is not asked again. What you "
            "marked then goes first or last.</p>"
        )
        columns = ipywidgets.HBox(
            [ipywidgets.VBox([self.likes, self.profile]), self.retrieved],
            layout={"flex_flow": "row wrap"},
        )
        controls = [self.user, self.weight, self.support, self.clear]
        box = ipywidgets.VBox(
            [
                ipywidgets.HBox(controls, layout={"flex_flow": "row wrap"}),
                self.notice,
                ipywidgets.HTML("<h3>Ranked list</h3>"),
                *lines,
                about,
                columns,
                ipywidgets.HTML(STYLE),
            ]
        )
        box.add_class("course-app")
        return box

    def press(self, place: int, way: str) -> None:
        """Give the movie at ``place`` a thumb, or take it back if it has the same one already."""
        if place < len(self._shown):
            movie, thumbs = self._shown[place], dict(self._thumbs)
            if thumbs.pop(movie, None) != way:
                thumbs[movie] = way
            self._change(thumbs)

    def _change(self, thumbs: dict[int, str]) -> None:
        self._thumbs = thumbs
        self.show()

    def choice(self) -> dict:
        """Return what is chosen, as the arguments of :meth:`Pipeline.ranked`."""
        ways = {way: [m for m, w in self._thumbs.items() if w == way] for way in ("up", "down")}
        return {
            "user": self.user.value,
            "weight": self.weight.value,
            "support": self.support.value,
            **ways,
        }

    def show(self) -> None:
        """Fill the page for the present choice; what cannot be done is said in a sentence."""
        chosen = self.choice()
        user = chosen["user"]
        try:
            person, final = self.pipeline.person(user), self.pipeline.ranked(**chosen)
            found = self.pipeline.candidates(user, chosen["support"])
        except candidates.NoCandidatesError as error:
            self._fill(pd.DataFrame(), f"{error}")
            for part in (self.likes, self.profile, self.retrieved):
                part.value = ""
            return
        notice = person.notice
        fresh = int(final["llm"].isna().sum())
        if person.llm_order and fresh:
            notice += f" {fresh} of {len(final)} movies were not in the LLM's list."
        self._fill(final, notice)
        liked = person.liked[["title", "rating"]].head(8)
        self.likes.value = (
            f"<h3>Likes ({len(person.liked)} of {len(person.rated)} ratings)</h3>"
            + table_html(liked)
        )
        self.profile.value = f"<h3>Profile</h3><pre>{html.escape(person.profile)}</pre>"
        columns = found[["rank", "title", "genres", "support"]]
        self.retrieved.value = "<h3>Candidates of implicit ALS</h3>" + table_html(columns)

    def _fill(self, final: pd.DataFrame, notice: str) -> None:
        self.notice.value = f"<p class='notice' role='status'>{html.escape(notice)}</p>"
        self._shown = final["movieId"].tolist() if len(final) else []
        lines = [*final.itertuples(), *[None] * (TOP_K - len(final))]
        for here, row, pair in zip(lines, self.rows, self.buttons, strict=True):
            row.value = "" if here is None else row_html(here)
            for way, button in zip(("up", "down"), pair, strict=True):
                button.disabled = here is None
                button.tooltip = "" if here is None else f"{way}: {here.title}"
                button.button_style = ""
                if here is not None and here.thumb == way:
                    button.button_style = "primary"


def build(pipeline: Pipeline, user: int | None = None) -> ipywidgets.VBox:
    """Return the app as one widget."""
    return App(pipeline, user).box


def page(settings: Settings | None = None) -> ipywidgets.Widget:
    """Return the app on its own page, or the sentence that says what it needs first."""
    settings = settings or Settings.from_env()
    dataset = data.locate(settings)
    try:
        retriever = load_retriever(dataset, settings)
    except (data.DataError, RuntimeError) as error:
        return ipywidgets.HTML(f"<p role='status'>{html.escape(str(error))}</p>")
    ratings, movies = (data.load_pandas(dataset, name) for name in ("ratings", "movies"))
    told = (dataset.describe(), f"Recorded LLM replies: {llm.PROVENANCE}.")
    about = ipywidgets.HTML(f"<p>{'<br>'.join(html.escape(line) for line in told)}</p>")
    return ipywidgets.VBox([about, build(Pipeline(retriever, ratings, movies, settings))])
