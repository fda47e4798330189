"""python tools/experiments/05_replies.py asks what notebooks 04 and 05 ask, for several users.

Needs the tables of notebooks 02 and 03. With a server it records live replies; without one each
request without a reply is noted for ``python tools/course.py batch export``. The improved ranking
holds the profile: export, import, and run again. What the workshop and section 3 of notebook 05 ask
stands only in the notebooks, so their own cells are run for each user.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nbformat
import pandas as pd

from helpers import als, answers, candidates, data, llm, prompts, ranking
from helpers.audit import audit_profile
from helpers.settings import Settings
from helpers.spark import get_spark

SEED, TOP_K = 0, 10  # as in the notebooks
REAL_USERS = (12, 9, 30, 55, 285, 343, 430, 450, 460, 519, 546)
"""User 12 and ten more with 25 to 90 ratings, fixed before any reply was seen."""
SAMPLE_USERS = (12, 3, 41, 77, 98, 140)
VARIANTS = ("no dislikes", "terse", "reasons first", "wish")
ARTICLE = (  # the two prompts of the article, as it sends them
    "Generate a user profile based on the following liked movies: {}.",
    "Based on the USER_INTEREST_PROFILE, please rank the following recommended movies from "
    "most relevant to least relevant for the user: {}.",
)
FROM_HERE = {"04": "dataset = data.locate()", "05": "def best_of("}  # once for each user


@dataclass(frozen=True)
class Asked:
    """One request and what came of it."""

    user: int
    what: str
    outcome: llm.Outcome


def recommenders(
    dataset: data.Dataset, settings: Settings, ratings: pd.DataFrame
) -> Iterator[candidates.Recommender]:
    """Yield the explicit and the implicit ALS of notebook 05."""
    grid = data.read_result("02_grid", dataset, settings)
    best = grid.loc[grid.validation_rmse.idxmin()]
    tuned = data.read_result("03_implicit", dataset, settings).iloc[0]
    train = data.split(data.load(get_spark(settings), dataset).ratings, seed=SEED)[0].cache()
    implicit = {"implicit": True, "alpha": float(tuned.alpha)}
    for row, options in ((best, {}), (tuned, implicit)):
        model = als.make_als(int(row["rank"]), float(row.reg), seed=SEED, **options).fit(train)
        yield candidates.Recommender(als.factors(model), train.toPandas(), seen=ratings)


def collect(dataset: data.Dataset, settings: Settings) -> list[Asked]:
    """Ask the article's two prompts and the two improved ones for each user of this data."""
    ratings, movies = (data.load_pandas(dataset, name) for name in ("ratings", "movies"))
    explicit, implicit = recommenders(dataset, settings, ratings)
    client, asked = llm.connect(settings), []
    for user in SAMPLE_USERS if dataset.simulated else REAL_USERS:
        rated = candidates.history(ratings, movies, user)
        liked, disliked = candidates.liked(rated), candidates.disliked(rated)
        proposed = explicit.recommend([user], TOP_K).merge(movies, on="movieId")
        for what, text, table in zip(
            ("profile", "ranking"), ARTICLE, (rated, proposed), strict=True
        ):
            prompt = [{"role": "user", "content": text.format(", ".join(table.title))}]
            asked.append(Asked(user, f"plain {what}", llm.ask(client, prompt)))
        prompt = prompts.profile_prompt(rated, liked, disliked)
        outcome = llm.ask(client, prompt, schema=prompts.Profile)
        asked.append(Asked(user, "profile", outcome))
        profile = answers.read(outcome.text, prompts.Profile).value
        if profile is None:
            continue
        text = prompts.profile_as_text(profile, audit_profile(profile, liked, disliked))
        shown = prompts.shuffled(implicit.recommend([user], TOP_K).movieId, seed=user)
        table = movies.set_index("movieId").loc[shown].reset_index()
        prompt = prompts.ranking_prompt(text, ranking.letters(len(table)), table)
        outcome = llm.ask(client, prompt, schema=ranking.RankingReply)
        asked.append(Asked(user, "ranking", outcome))
    return asked


def run_notebook(
    number: str, users: Sequence[int], settings: Settings, variants: Sequence[str] = VARIANTS
) -> None:
    """Run the cells of notebook 04 or 05 for each user, its workshop for each variant.

    Models are fitted once; nothing is shown. What is asked is answered from the records, by a
    server, or noted.
    """
    (path,) = (settings.root / "notebooks").glob(f"{number}_*.ipynb")
    skipped = {"setup", "solution"}
    cells = [
        cell.source
        for cell in nbformat.read(path, as_version=4).cells
        if cell.cell_type == "code" and not skipped & set(cell.metadata.get("tags", ()))
    ]
    start, workshop = (
        next(i for i, cell in enumerate(cells) if words in cell)
        for words in (FROM_HERE[number], "variants = {")
    )
    space: dict = {}

    def run(sources: Sequence[str]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            for source in sources:
                exec(compile(source, path.name, "exec", dont_inherit=True), space)

    run(cells[:start])
    for user in users:
        space["USER_ID"] = user
        run(cells[start:workshop])
        for variant in variants:
            space["WORKSHOP"] = variant
            run(cells[workshop : workshop + 2])


if __name__ == "__main__":
    settings = Settings.from_env()
    dataset = data.locate(settings)
    print(dataset.describe())
    for request in collect(dataset, settings):
        print(request.user, request.what, request.outcome.kind)
    users = SAMPLE_USERS if dataset.simulated else REAL_USERS
    for number in FROM_HERE:
        run_notebook(number, users, settings, () if dataset.simulated else VARIANTS)
