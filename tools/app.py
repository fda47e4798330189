"""The pipeline as one small app: a user's likes, profile, and the ranked list, with thumbs.

:class:`Pipeline` makes the tables, :class:`App` shows them by ``make app``. Only
stored replies are used; where one is missing, the app says so and keeps the retriever's order.
"""

from __future__ import annotations

import functools
import html
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import ipywidgets
import numpy as np
import pandas as pd

from helpers import als, answers, candidates, data, llm, prompts, ranking
from helpers.audit import audit_profile, taste_table
from helpers.settings import Settings
from helpers.spark import close_spark, get_spark

TOP_K, SEED = 10, 0  # as in notebook 05: only then is a stored reply the answer
THUMB_STARS = 5.0


@dataclass(frozen=True)
class Retriever:
    """Implicit ALS of notebook 03; ``train`` are the rows it was fitted on, with stars."""

    factors: als.Factors
    train: pd.DataFrame
    reg: float
    alpha: float


def load_retriever(dataset: data.Dataset, settings: Settings) -> Retriever:
    """Fit the retriever of notebook 05 in Spark; notebook 03 must have run on this data."""
    tuned = data.read_result("03_implicit", dataset, settings).iloc[0]
    rank, reg, alpha = int(tuned["rank"]), float(tuned["reg"]), float(tuned["alpha"])
    session = get_spark(settings)
    train = data.split(data.load(session, dataset).ratings, seed=SEED)[0].cache()
    model = als.make_als(rank, reg, seed=SEED, implicit=True, alpha=alpha).fit(train)
    rows = train.select("userId", "movieId", "rating").toPandas()
    retriever = Retriever(als.factors(model), rows, reg, alpha)
    close_spark(session)
    return retriever


def fold_in(
    movie_factors: np.ndarray, rows: np.ndarray, stars: np.ndarray, *, reg: float, alpha: float
) -> np.ndarray:
    """Return the factor of a user with these ratings, shape (rank,), movie factors held fixed.

    One half step of implicit ALS (Hu, Koren and Volinsky 2008) as Spark takes it: the preference is
    1 for ``stars`` above 0, else 0; the confidence is ``1 + alpha * |stars|``; the regularisation
    is ``reg`` times the number of ratings above 0. ``rows`` are the rated movies' positions.
    """
    factors, stars = np.asarray(movie_factors, dtype=float), np.asarray(stars, dtype=float)
    rated, weight = factors[rows], alpha * np.abs(stars)
    left = factors.T @ factors + (rated * weight[:, None]).T @ rated
    left += reg * (stars > 0).sum() * np.eye(factors.shape[1])
    right = ((1 + weight) * (stars > 0)) @ rated
    return np.linalg.solve(left, right)


@dataclass(frozen=True)
class Person:
    """A user's likes, profile (plain text), and the candidates as the LLM ranked them.

    ``llm_order`` holds movieIds, ``None`` without a usable reply; ``notice`` says what came whence.
    """

    liked: pd.DataFrame
    profile: str
    notice: str
    llm_order: list[int] | None = None
    reasons: dict[int, str] = field(default_factory=dict)


class Pipeline:
    """Notebook 05 for any user, from stored replies only."""

    def __init__(
        self, retriever: Retriever, ratings: pd.DataFrame, movies: pd.DataFrame, settings: Settings
    ) -> None:
        """Keep the tables; ``ratings`` are all known ones, which are never recommended."""
        self.retriever, self._ratings, self._movies = retriever, ratings, movies
        self._stores = llm.Stores(settings)
        self.person = functools.lru_cache(maxsize=64)(self._person)

    def recorded_users(self) -> list[int]:
        """Return the users for whom a usable reply to the profile prompt is stored."""
        replies = [*self._stores.committed.all(), *self._stores.local.all()]
        chats = [reply.request["messages"] for reply in replies if reply.request.get("messages")]
        openings = {str(messages[-1]["content"]).split("\n", 1)[0] for messages in chats}
        known = self._ratings.loc[self._ratings["userId"].isin(self.retriever.factors.users)]
        facts = known.groupby("userId")["rating"].agg(["size", "mean"])
        likely = [  # the first line tells most users apart; a whole prompt is made for the others
            user
            for user, count, mean in facts.itertuples()
            if f"A viewer has rated {count} movies; the mean is {mean:.2f} of 5 stars." in openings
        ]
        prompted = {user: prompts.profile_prompt(*self._taste(user)) for user in likely}
        return [u for u, prompt in prompted.items() if self._stored(prompt, prompts.Profile).value]

    def _taste(self, user: int) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        rated = candidates.history(self._ratings, self._movies, user)
        return rated, candidates.liked(rated), candidates.disliked(rated)

    def _stored(self, messages: prompts.Messages, schema: type) -> llm.Outcome:
        """Return the stored answer to a prompt; nothing is sent, whatever server is configured."""
        body = {"messages": messages, "response_format": llm.response_format(schema)}
        reply = self._stores.find(body)
        if reply is None:
            return llm.Outcome(None, "no_reply", "no reply is stored for this user")
        outcome = llm.outcome_of(body, reply.response, reply.origin)
        answer = answers.read(outcome.text, schema)
        kind = "unreadable" if outcome.kind == "ok" and answer.value is None else outcome.kind
        return replace(outcome, kind=kind, value=answer.value, why=outcome.why or answer.why)

    def _person(self, user: int) -> Person:
        """Return a user's profile and LLM ranking, as notebooks 04 and 05 make them."""
        rated, liked, disliked = self._taste(user)
        reply = self._stored(prompts.profile_prompt(rated, liked, disliked), prompts.Profile)
        notice, kept = f"Profile: {reply.describe()}", "the retriever's order is kept."
        if reply.value is None:
            table = taste_table(rated).round(2).to_string(index=False)
            return Person(liked, table, f"{notice}; a plain table stands in, and {kept}")
        audit = audit_profile(reply.value, liked, disliked)
        profile = prompts.profile_as_text(reply.value, audit)
        order = self.candidates(user)["movieId"].tolist()
        shown = prompts.shuffled(order, seed=user)
        table = self._movies.set_index("movieId").loc[shown].reset_index()
        messages = prompts.ranking_prompt(profile, ranking.letters(len(shown)), table)
        reply = self._stored(messages, ranking.RankingReply)
        back = [shown.index(movie) for movie in order]
        result = ranking.read_ranking(reply.text, len(shown), back, table["title"].tolist())
        flagged = int((audit["verdict"] == "flagged").sum())
        notice += f", {flagged} of its claims left out. Ranking: {reply.describe()}"
        if result.failed:
            return Person(liked, profile, f"{notice}; {kept}")
        reasons = {shown[position]: why for position, why in result.reasons.items()}
        llm_order = [shown[position] for position in result.order]
        notice += f", repairs: {result.repairs.total}."
        return Person(liked, profile, notice, llm_order, reasons)

    def candidates(self, user: int) -> pd.DataFrame:
        """Return the retriever's ten movies (``rank, movieId, score, title``), or raise if none."""
        retriever = self.retriever
        recommender = candidates.Recommender(retriever.factors, retriever.train, self._ratings)
        return recommender.recommend([user], TOP_K).merge(self._movies, on="movieId")

    def factor(self, user: int, up: Collection[int] = (), down: Collection[int] = ()) -> np.ndarray:
        """Return the user's factor with thumbs as new ratings of 5 (up) and -5 (down)."""
        retriever, train = self.retriever, self.retriever.train
        rated = train.loc[train["userId"] == user]
        stars = [*rated["rating"], *[THUMB_STARS] * len(up), *[-THUMB_STARS] * len(down)]
        rows = np.searchsorted(retriever.factors.movies, [*rated["movieId"], *up, *down])
        movies = retriever.factors.movie_factors
        return fold_in(movies, rows, np.array(stars), reg=retriever.reg, alpha=retriever.alpha)

    def ranked(
        self,
        user: int,
        *,
        weight: float = 0.5,
        up: Collection[int] = (),
        down: Collection[int] = (),
    ) -> pd.DataFrame:
        """Return the final list: the two orders blended by ``weight``, with their ranks from 1.

        With thumbs (movieIds among the candidates) the retriever scores its ten movies again with
        the user's new factor; the LLM's order stays. Movies with a thumb up then go first and those
        with a thumb down last, whatever the models say. Without an LLM ranking ``llm`` is missing.
        """
        person, titles = self.person(user), self.candidates(user).set_index("movieId")["title"]
        order = titles.index.tolist()
        if up or down:
            rows = np.searchsorted(self.retriever.factors.movies, order)
            scores = self.retriever.factors.movie_factors[rows] @ self.factor(user, up, down)
            score = dict(zip(order, np.round(scores, 5), strict=True))
            order.sort(key=lambda movie: (-score[movie], movie))
        llm_order = person.llm_order or []
        blended = ranking.blend(order, llm_order or order, weight)
        first, last = ([m for m in blended if m in thumbs] for thumbs in (up, down))
        final = [*first, *(m for m in blended if m not in (*first, *last)), *last]
        thumb = dict.fromkeys(first, "up") | dict.fromkeys(last, "down")
        place = {movie: rank for rank, movie in enumerate(llm_order, 1)}
        table = pd.DataFrame({"rank": range(1, len(final) + 1), "movieId": final})
        table["title"] = titles[final].tolist()
        table["retriever"] = [order.index(movie) + 1 for movie in final]
        table["llm"] = pd.array([place.get(movie) for movie in final], dtype="Int64")
        table["reason"] = [person.reasons.get(movie, "") for movie in final]
        table["thumb"] = [thumb.get(movie, "") for movie in final]
        return table


STYLE = """<style>
.course-app { max-width: 1100px; color: #1f1f1f; }
.course-app td, .course-app th { text-align: left; padding-right: 10px; }
.course-app pre { white-space: pre-wrap; }
.course-app .notice { color: #8a3c00; font-weight: 600; }
.course-app .reason { color: #555555; }
</style>"""


def row_html(row: Any) -> str:
    """Return one line of the ranked list: rank, title, where it stood, and the LLM's reason."""
    llm_rank = "not asked" if row.llm is pd.NA else row.llm
    thumb = f", your thumb: {row.thumb}" if row.thumb else ""
    return (
        f"<b>{row.rank}. {html.escape(row.title)}</b> (retriever {row.retriever}, LLM {llm_rank}"
        f"{thumb})<br><span class='reason'>{html.escape(row.reason) or 'no reason given'}</span>"
    )


class App:
    """The controls and what they show; :attr:`box` is the widget to display."""

    def __init__(self, pipeline: Pipeline, user: int | None = None) -> None:
        """Show ``user``, by default the first with stored replies."""
        self.pipeline, self.thumbs = pipeline, {}
        recorded = pipeline.recorded_users()
        others = sorted({int(u) for u in pipeline.retriever.factors.users} - {*recorded})
        names = [(f"{u} (replies stored)", u) for u in recorded] + [(str(u), u) for u in others]
        user = user or names[0][1]
        self.user = ipywidgets.Dropdown(options=names, value=user, description="user")
        self.weight = ipywidgets.FloatSlider(
            value=0.5, min=0, max=1, step=0.1, description="LLM weight", continuous_update=False
        )
        self.notice, self.about = ipywidgets.HTML(), ipywidgets.HTML()
        self.ranked = ipywidgets.VBox()
        self.user.observe(self._forget_thumbs, names="value")
        self.weight.observe(self.show, names="value")
        controls = ipywidgets.HBox([self.user, self.weight])
        self.box = ipywidgets.VBox([controls, self.notice, self.ranked, self.about])
        self.box.add_class("course-app")
        self.show()

    def _forget_thumbs(self, _: object) -> None:
        self.thumbs = {}
        self.show()

    def rate(self, movie: int, thumb: str) -> None:
        """Give a movie a thumb ``up`` or ``down``, or take it back (an empty one)."""
        self.thumbs[movie] = thumb
        self.show()

    def choice(self) -> dict[str, Any]:
        """Return what is chosen, as the arguments of :meth:`Pipeline.ranked`."""
        thumbs = {w: [m for m, way in self.thumbs.items() if way == w] for w in ("up", "down")}
        return {"user": self.user.value, "weight": self.weight.value, **thumbs}

    def show(self, _: object = None) -> None:
        """Fill the page for the present choice; what cannot be done is said in a sentence."""
        lines, about, chosen = [], "", self.choice()
        try:
            person, table = self.pipeline.person(chosen["user"]), self.pipeline.ranked(**chosen)
        except candidates.NoCandidatesError as error:
            notice = str(error)
        else:
            notice, lines = person.notice, [self._line(row) for row in table.itertuples()]
            liked = person.liked[["title", "rating"]].head(8).to_html(index=False, border=0)
            profile = f"<pre>{html.escape(person.profile)}</pre>"
            about = (
                f"<h3>Likes (first 8 of {len(person.liked)})</h3>{liked}<h3>Profile</h3>{profile}"
            )
        self.notice.value = f"{STYLE}<p class='notice' role='status'>{html.escape(notice)}</p>"
        self.ranked.children, self.about.value = lines, about

    def _line(self, row: Any) -> ipywidgets.HBox:
        """Return one movie of the list with its thumbs."""
        options = [("up", "up"), ("none", ""), ("down", "down")]
        style = {"button_width": "52px"}
        thumbs = ipywidgets.ToggleButtons(options=options, value=row.thumb, style=style)
        thumbs.layout.flex = "0 0 auto"
        thumbs.observe(lambda change: self.rate(row.movieId, change["new"]), names="value")
        return ipywidgets.HBox([thumbs, ipywidgets.HTML(row_html(row))])


def build(pipeline: Pipeline, user: int | None = None) -> ipywidgets.VBox:
    """Return the app as one widget."""
    return App(pipeline, user).box
