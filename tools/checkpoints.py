"""What lets anyone start at any notebook: the tables and models of the notebooks before it.

On the verified release the tables are in git and only models are fitted. On other data (the sample
among them) notebook 02's grid and notebook 03's choice for implicit ALS are made here, with the
parameters that those notebooks write out, and saved where they save them. Notebooks that are not
named here start from the data, from committed tables and from recorded replies alone.
"""

from __future__ import annotations

from itertools import product

import pandas as pd
from pyspark.sql import DataFrame
from tqdm.auto import tqdm

from helpers import als, candidates, data, metrics
from helpers.settings import Settings
from helpers.spark import get_spark

NEEDS = {
    "01": (), "02": (), "03": ("als_explicit",), "04": (), "05": ("als_explicit", "als_implicit"),
    "06": (), "07": (), "08": (), "09": (), "10": (), "11": (),
}  # fmt: skip
"""The saved models that each notebook starts from."""

SEED = 0
IMPLICIT_RANKS = (8, 16, 32)
ALPHAS = (0.5, 1.0, 5.0)
REG = 0.2
"""Seed and grid of notebook 03's section on implicit ALS."""


def prepare(notebook: str, settings: Settings | None = None) -> list[str]:
    """Make what ``notebook`` (its number, such as ``"05"``) starts from; return a line for each.

    What is there already is kept: a second call takes seconds.

    Raises:
        KeyError: there is no such notebook.
        DataError, JavaError: the data or Java are not usable.
    """
    settings = settings or Settings.from_env()
    dataset = data.locate(settings)
    told = [dataset.describe()]
    if NEEDS[notebook]:
        session = get_spark(settings)
        ratings = data.load(session, dataset).ratings
        train, validation, _ = (part.cache() for part in data.split(ratings, seed=SEED))
        made = {"als_explicit": _explicit, "als_implicit": _implicit}
        told += [made[name](train, validation, dataset, settings) for name in NEEDS[notebook]]
        session.stop()
    return [*told, f"Notebook {notebook} can start."]


def _explicit(
    train: DataFrame, validation: DataFrame, dataset: data.Dataset, settings: Settings
) -> str:
    try:
        grid = data.read_result("02_grid", dataset, settings)
    except data.DataError:
        grid = als.grid_search(train, validation, seed=SEED).table
        data.save_result(grid, "02_grid", dataset, settings)
    best = grid.loc[grid["validation_rmse"].idxmin()]
    return _saved(train, "als_explicit", int(best["rank"]), float(best["reg"]), dataset, settings)


def _implicit(
    train: DataFrame, validation: DataFrame, dataset: data.Dataset, settings: Settings
) -> str:
    try:
        tuned = data.read_result("03_implicit", dataset, settings).iloc[0]
    except data.DataError:
        table = pd.DataFrame([tune_implicit(train, validation)])
        data.save_result(table, "03_implicit", dataset, settings)
        tuned = table.iloc[0]
    rank, reg, alpha = int(tuned["rank"]), float(tuned["reg"]), float(tuned["alpha"])
    options = {"implicit": True, "alpha": alpha}
    return _saved(train, "als_implicit", rank, reg, dataset, settings, **options)


def tune_implicit(train: DataFrame, validation: DataFrame, k: int = 10) -> dict[str, float]:
    """Return ``rank``, ``alpha``, ``reg`` of the implicit ALS with the best validation NDCG@k.

    Relevant are validation movies with 4 stars or more; the first of two equals wins. Notebook 03
    writes the same search out.
    """
    train_rows, later = train.toPandas(), validation.toPandas()
    relevant = later.loc[later["rating"] >= 4, ["userId", "movieId"]]
    scores = {}
    grid = list(product(IMPLICIT_RANKS, ALPHAS))
    for rank, alpha in tqdm(grid, desc="implicit ALS"):
        model = als.make_als(rank, REG, seed=SEED, implicit=True, alpha=alpha).fit(train)
        listed = candidates.Recommender(als.factors(model), train_rows, train_rows).recommend(n=k)
        scores[rank, alpha] = metrics.per_user(listed, relevant, k)["ndcg"].mean()
    rank, alpha = max(scores, key=scores.get)
    return {"rank": rank, "alpha": alpha, "reg": REG}


def _saved(
    train: DataFrame,
    name: str,
    rank: int,
    reg: float,
    dataset: data.Dataset,
    settings: Settings,
    **options: object,
) -> str:
    """Load the model that the notebooks look for, or fit and save it; return what was done."""
    mark = als.fingerprint(train, rank=rank, reg=reg, max_iter=10, seed=SEED, **options)
    _, notice = als.load_or_fit(
        settings.cache_dir / "models" / dataset.name / name,
        mark,
        lambda: als.make_als(rank, reg, seed=SEED, **options).fit(train),
    )
    return notice
