"""Matrix factorisation with Spark ALS: one maker, one grid search, the two factor matrices.

Notebook 02 writes the search, the bias baseline and ALS on its residuals out. References: Zhou et
al. 2008 (ALS with weighted regularisation, which Spark follows), Koren, Bell and Volinsky 2009
(biases), Hu, Koren and Volinsky 2008 (implicit feedback).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812
from pyspark.util import inheritable_thread_target
from tqdm.auto import tqdm


def make_als(rank: int, reg: float, *, max_iter: int = 10, seed: int = 0, **options: Any) -> ALS:
    """Return an unfitted Spark ALS with one block of users and one of items.

    The number of blocks decides the order of sums and, with the seed, the starting factors.
    ``options`` are ``implicit``, ``alpha`` and ``blocks``.
    """
    als = ALS(rank=rank, regParam=reg, maxIter=max_iter, seed=seed)
    als.setImplicitPrefs(options.get("implicit", False)).setAlpha(options.get("alpha", 1.0))
    als.setUserCol("userId").setItemCol("movieId").setColdStartStrategy("drop")
    return als.setNumBlocks(options.get("blocks", 1))


def rmse(predictions: DataFrame) -> float:
    """Return the root mean squared error of ``prediction`` against ``rating``, in stars.

    Raises:
        ValueError: there is no row, or a prediction is NaN (a cold user or item).
    """
    (row,) = predictions.agg(F.avg(F.pow(F.col("rating") - F.col("prediction"), 2))).collect()
    if row[0] is None or np.isnan(row[0]):
        raise ValueError("Predictions are missing: drop them with coldStartStrategy='drop'.")
    return float(row[0] ** 0.5)


@dataclass(frozen=True)
class Factors:
    """The two factor matrices of an ALS model; a score is the dot product of two rows.

    ``users`` and ``movies`` are sorted ids, shapes (n_users,) and (n_movies,); the factors are
    float32 of shape (n_users, rank) and (n_movies, rank).
    """

    users: np.ndarray
    movies: np.ndarray
    user_factors: np.ndarray
    movie_factors: np.ndarray

    def rmse(self, ratings: pd.DataFrame) -> float:
        """Return the RMSE in stars over the rows whose user and movie both have factors."""
        user = np.searchsorted(self.users, ratings["userId"]).clip(max=len(self.users) - 1)
        movie = np.searchsorted(self.movies, ratings["movieId"]).clip(max=len(self.movies) - 1)
        warm = (self.users[user] == ratings["userId"]) & (self.movies[movie] == ratings["movieId"])
        dots = np.einsum("ij,ij->i", self.user_factors[user[warm]], self.movie_factors[movie[warm]])
        return float(np.sqrt(np.mean((dots.astype(float) - ratings["rating"][warm]) ** 2)))


def factors(model: ALSModel) -> Factors:
    """Collect the factors of a fitted model; 610 users, 9,000 movies and rank 12 take 0.5 MB."""
    parts = [table.toPandas().sort_values("id") for table in (model.userFactors, model.itemFactors)]
    matrices = [np.stack(part["features"].to_list()).astype(np.float32) for part in parts]
    return Factors(*(part["id"].to_numpy() for part in parts), *matrices)


@dataclass(frozen=True)
class GridResult:
    """The table of a grid search (``rank, reg, train_rmse, validation_rmse``) and its best model.

    ``rmse`` holds the best model's errors in stars on the tables that were given.
    """

    table: pd.DataFrame
    model: ALSModel
    rank: int
    reg: float
    rmse: dict[str, float]


def grid_search(
    train: DataFrame,
    validation: DataFrame,
    test: DataFrame | None = None,
    *,
    ranks: Sequence[int] = (6, 8, 10, 12),
    regs: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8),
    **options: int,
) -> GridResult:
    """Fit ALS for every rank and regularisation and keep the lowest validation RMSE.

    ``options`` go to :func:`make_als`. Up to 4 fits run at a time; errors are computed from the
    factors, which is faster than a Spark job for each. A tie goes to the smaller rank, then to the
    larger regularisation.
    """
    parts = {"train": train, "validation": validation, "test": test}
    parts = {name: table.cache() for name, table in parts.items() if table is not None}
    rows = [parts[name].toPandas() for name in ("train", "validation")]

    def fit(rank: int, reg: float) -> tuple[tuple[float, ...], ALSModel]:
        model = make_als(rank, reg, **options).fit(train)
        model_factors = factors(model)
        return (rank, reg, *map(model_factors.rmse, rows)), model

    grid = list(product(ranks, regs))
    in_session = inheritable_thread_target(train.sparkSession)(fit)  # which Spark Connect asks for
    with ThreadPoolExecutor(min(4, 1 + (os.cpu_count() or 1))) as pool:
        fits = pool.map(in_session, *zip(*grid, strict=True))
        try:
            fitted = list(tqdm(fits, total=len(grid), desc="ALS fits"))
        finally:  # after Ctrl-C nobody waits for the rest of the grid
            pool.shutdown(wait=False, cancel_futures=True)
    names = ["rank", "reg", "train_rmse", "validation_rmse"]
    table = pd.DataFrame([scores for scores, _ in fitted], columns=pd.Index(names))
    (rank, reg, *_), model = min(fitted, key=lambda pair: (pair[0][3], pair[0][0], -pair[0][1]))
    errors = {name: rmse(model.transform(part)) for name, part in parts.items()}
    table = table.sort_values(["rank", "reg"], ignore_index=True)
    return GridResult(table, model, int(rank), float(reg), errors)
