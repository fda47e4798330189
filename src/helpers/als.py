"""Matrix factorisation with Spark ALS (Zhou et al. 2008; implicit feedback: Hu et al. 2008)."""

from collections import namedtuple
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import DataFrame
from pyspark.util import inheritable_thread_target
from tqdm.contrib.concurrent import thread_map


def make_als(
    rank: int, reg: float, *, max_iter: int = 10, seed: int = 0, implicit: bool = False,
    alpha: float = 1.0, blocks: int = 1,
) -> ALS:  # fmt: skip
    """Return an unfitted Spark ALS; ``blocks`` and ``seed`` decide the starting factors."""
    als = ALS(rank=rank, regParam=reg, maxIter=max_iter, seed=seed)
    als.setImplicitPrefs(implicit).setAlpha(alpha).setNumBlocks(blocks)
    return als.setUserCol("userId").setItemCol("movieId").setColdStartStrategy("drop")


class Factors(NamedTuple):
    """The factors of an ALS model, float32 rows by sorted id; a score is a dot product of two."""

    users: np.ndarray
    movies: np.ndarray
    user_factors: np.ndarray
    movie_factors: np.ndarray

    def rmse(self, ratings: pd.DataFrame) -> float:
        """Return the RMSE in stars over the rows whose user and movie both have factors."""
        user = pd.Index(self.users).get_indexer(pd.Index(ratings["userId"]))
        movie = pd.Index(self.movies).get_indexer(pd.Index(ratings["movieId"]))
        warm = (user >= 0) & (movie >= 0)
        dots = np.einsum("ij,ij->i", self.user_factors[user[warm]], self.movie_factors[movie[warm]])
        return float(np.sqrt(np.mean((dots.astype(float) - ratings["rating"][warm]) ** 2)))


def factors(model: ALSModel) -> Factors:
    """Collect the factors of a fitted model; 610 users, 9,000 movies and rank 12 take 0.5 MB."""
    parts = [table.toPandas().sort_values("id") for table in (model.userFactors, model.itemFactors)]
    matrices = [np.stack(part["features"].to_list()).astype(np.float32) for part in parts]
    return Factors(*(part["id"].to_numpy() for part in parts), *matrices)


GridResult = namedtuple("GridResult", "table model rank reg")


def grid_search(
    train: DataFrame, validation: DataFrame, ranks: Sequence[int] = (6, 8, 10, 12),
    regs: Sequence[float] = (0.05, 0.1, 0.2, 0.4, 0.8), **options: Any,
) -> GridResult:  # fmt: skip
    """Fit ALS for all ranks and regularisations; a ``table`` of RMSEs in stars, the best model."""
    rows = [part.cache().toPandas() for part in (train, validation)]

    def fit(setting: tuple[int, float]) -> tuple[Any, ...]:
        model = make_als(*setting, **options).fit(train)
        return model, *map(factors(model).rmse, rows)  # faster than a Spark job for each error

    grid = sorted(product(ranks, regs))
    in_session = inheritable_thread_target(train.sparkSession)(fit)  # which Spark Connect asks for
    fits = thread_map(in_session, grid, max_workers=4, desc="ALS fits")
    models, *errors = zip(*fits, strict=True)
    table = pd.DataFrame(grid, columns=pd.Index(["rank", "reg"]))
    table["train_rmse"], table["validation_rmse"] = errors
    best = int(table["validation_rmse"].argmin())
    return GridResult(table, models[best], *grid[best])
