"""Ask what notebooks 04 and 05 ask, for several users: the requests behind the recorded replies.

Run ``python data/replies/collect.py`` after notebooks 02 and 03. With a server it records live
replies; without one, a request that has no reply is noted as pending, for
``python tools/course.py batch export``. The improved ranking holds the profile, so it can be asked
only when the profile has been answered: export, import, and run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from helpers import als, answers, candidates, data, llm, prompts, ranking
from helpers.settings import Settings
from helpers.spark import get_spark

SEED, TOP_K = 0, 10  # as in the notebooks

REAL_USERS = (12, 9, 30, 55, 285, 343, 430, 450, 460, 519, 546)
"""User 12 and ten more with 25 to 90 ratings, fixed before any reply was seen."""

SAMPLE_USERS = (12, 3, 41, 77, 98, 140)
"""User 12 and five more of the simulated sample."""


@dataclass(frozen=True)
class Asked:
    """One request and what came of it."""

    user: int
    what: str
    outcome: llm.Outcome


def recommenders(
    dataset: data.Dataset, settings: Settings, ratings: pd.DataFrame
) -> tuple[candidates.Recommender, candidates.Recommender]:
    """Return the explicit and the implicit ALS of notebook 05.

    Raises:
        DataError: notebook 02 or 03 has not run on this data.
    """
    grid = data.read_result("02_grid", dataset, settings)
    best = grid.loc[grid.validation_rmse.idxmin()]
    tuned = data.read_result("03_implicit", dataset, settings).iloc[0]
    train = data.split(data.load(get_spark(settings), dataset).ratings, seed=SEED)[0].cache()
    rows = train.toPandas()
    found = []
    implicit = {"implicit": True, "alpha": float(tuned.alpha)}
    for row, options in ((best, {}), (tuned, implicit)):
        model = als.make_als(int(row["rank"]), float(row.reg), seed=SEED, **options).fit(train)
        found.append(candidates.Recommender(als.factors(model), rows, seen=ratings))
    return found[0], found[1]


def ask_user(
    client, user: int, ratings: pd.DataFrame, movies: pd.DataFrame, explicit, implicit
) -> Iterator[Asked]:
    """Ask the article's two prompts and the two improved ones for one user."""
    rated = candidates.history(ratings, movies, user)
    liked, disliked = candidates.liked(rated), candidates.disliked(rated)
    plain = prompts.article_profile_prompt(rated.title.tolist())
    yield Asked(user, "plain profile", llm.ask(client, plain))
    titles = explicit.recommend([user], TOP_K).merge(movies, on="movieId").title.tolist()
    plain = prompts.article_ranking_prompt(titles)
    yield Asked(user, "plain ranking", llm.ask(client, plain))
    improved = prompts.profile_prompt(rated, liked, disliked)
    answer = llm.ask(client, improved, schema=prompts.Profile)
    yield Asked(user, "profile", answer)
    profile = answers.read(answer.text, prompts.Profile).value
    if profile is None:
        return
    text = prompts.profile_as_text(profile, prompts.audit_profile(profile, liked, disliked))
    shown = prompts.shuffled(implicit.recommend([user], TOP_K).movieId, seed=user)
    table = movies.set_index("movieId").loc[shown].reset_index()
    improved = prompts.ranking_prompt(text, ranking.letters(len(table)), table)
    yield Asked(user, "ranking", llm.ask(client, improved, schema=ranking.RankingReply))


def collect(dataset: data.Dataset, settings: Settings) -> list[Asked]:
    """Ask everything for the users of this data and return what came of each request."""
    ratings, movies = (data.load_pandas(dataset, name) for name in ("ratings", "movies"))
    explicit, implicit = recommenders(dataset, settings, ratings)
    client = llm.connect(settings)
    users = SAMPLE_USERS if dataset.simulated else REAL_USERS
    return [
        asked
        for user in users
        for asked in ask_user(client, user, ratings, movies, explicit, implicit)
    ]


if __name__ == "__main__":
    environment = Settings.from_env()
    found = data.locate(environment)
    print(found.describe())
    table = pd.DataFrame(
        [(one.user, one.what, one.outcome.kind) for one in collect(found, environment)],
        columns=["user", "what", "outcome"],
    )
    print(table.pivot(index="user", columns="what", values="outcome").to_string())
