"""Matrix factorisation with Spark ALS: grid search, a bias baseline, and ALS on its residuals.

Notebook 02 writes the grid search, the baseline and ALS on residuals out; what is here does the
same fits, the grid in parallel threads over one cached split. References: Zhou et al. 2008,
"Large-scale parallel collaborative filtering for the Netflix prize" (ALS with weighted
regularisation, which Spark follows); Koren, Bell and Volinsky 2009, "Matrix factorization
techniques for recommender systems" (biases); Hu, Koren and Volinsky 2008 (implicit feedback).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812
from pyspark.util import inheritable_thread_target
from tqdm.auto import tqdm

RATING_RANGE = (0.5, 5.0)
"""MovieLens ratings are half stars from 0.5 to 5."""

COLLECT_ROWS = 2_000_000
"""Tables up to this size are collected to the driver (about 24 bytes a row in pandas)."""


def make_als(
    rank: int,
    reg: float,
    *,
    max_iter: int = 10,
    seed: int = 0,
    blocks: int = 1,
    implicit: bool = False,
    alpha: float = 1.0,
) -> ALS:
    """Return an unfitted Spark ALS with its blocks pinned.

    The number of blocks decides the order of sums and, with the seed, the starting factors: leave
    it at the partition count of the session (``SPARK_PARTITIONS``) and results repeat anywhere.
    """
    als = ALS(rank=rank, regParam=reg, maxIter=max_iter, seed=seed, implicitPrefs=implicit)
    als.setUserCol("userId").setItemCol("movieId").setColdStartStrategy("drop")
    return als.setNumBlocks(blocks).setAlpha(alpha)


def rmse(predictions: DataFrame) -> float:
    """Return the root mean squared error of ``prediction`` against ``rating``, in stars.

    Raises:
        ValueError: there is no row to average, or a prediction is missing (a cold user or item).
    """
    row = predictions.select(
        F.count(F.lit(1)).alias("rows"),
        F.sum((F.isnan("prediction") | F.col("prediction").isNull()).cast("int")).alias("missing"),
        F.avg(F.pow(F.col("rating") - F.col("prediction"), 2)).alias("mse"),
    ).first()
    if not row["rows"]:
        raise ValueError("RMSE needs at least one prediction; the table is empty.")
    if row["missing"]:
        raise ValueError(
            f"{row['missing']} of {row['rows']} predictions are missing: the user or the movie has "
            "no training rating; drop such rows (coldStartStrategy='drop') or fill them in."
        )
    return float(row["mse"] ** 0.5)


@dataclass(frozen=True)
class GridResult:
    """The table of a grid search and its best model.

    ``table`` has one row per combination: ``rank``, ``reg``, ``train_rmse``, ``validation_rmse``.
    ``rmse`` holds the best model's error in stars on ``train``, ``validation`` and, when it was
    given, ``test``.
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

    ``options`` go to :func:`make_als`. The tables are cached once; as many fits run at a time as
    there are cores and one more, at most 4, which bounds the driver's memory. Errors of tables up
    to ``COLLECT_ROWS`` rows are computed on the driver from the factors: a Spark job per error
    takes longer than its sum. A tie goes to the smaller rank, then to the larger regularisation.

    Raises:
        ValueError: ``ranks`` or ``regs`` is empty.
    """
    grid = list(product(ranks, regs))
    if not grid:
        raise ValueError("The grid is empty: give at least one rank and one regularisation.")
    parts = {"train": train, "validation": validation, "test": test}
    parts = {name: table.cache() for name, table in parts.items() if table is not None}
    small = all(table.count() <= COLLECT_ROWS for table in parts.values())  # this fills the cache
    rows = {name: parts[name].toPandas() for name in ("train", "validation") if small}

    def fit(rank: int, reg: float) -> tuple[dict[str, float], ALSModel]:
        model = make_als(rank, reg, **options).fit(train)
        if small:
            both = factors(model)
            errors = [_rmse_of(both, table) for table in rows.values()]
        else:
            errors = [rmse(model.transform(table)) for table in (train, validation)]
        scores = {"rank": rank, "reg": reg, "train_rmse": errors[0], "validation_rmse": errors[1]}
        return scores, model

    table: list[dict[str, float]] = []
    best: tuple[tuple[float, ...], ALSModel] = ((np.inf,), None)
    with ThreadPoolExecutor(min(4, 1 + (os.cpu_count() or 1))) as pool:
        # A Spark Connect model asks for the session of its thread.
        fit_there = inheritable_thread_target(train.sparkSession)(fit)
        jobs = [pool.submit(fit_there, rank, reg) for rank, reg in grid]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="ALS fits"):
                scores, model = job.result()
                table.append(scores)
                key = (scores["validation_rmse"], scores["rank"], -scores["reg"])
                best = min(best, (key, model), key=lambda pair: pair[0])
        finally:
            # After Ctrl-C or a failed fit nobody waits for the rest of the grid.
            pool.shutdown(wait=False, cancel_futures=True)
    (_, rank, minus_reg), model = best
    errors = {name: rmse(model.transform(part)) for name, part in parts.items()}
    ordered = pd.DataFrame(table).sort_values(["rank", "reg"], ignore_index=True)
    return GridResult(ordered, model, int(rank), float(-minus_reg), errors)


def warm_rows(rows: DataFrame, train: DataFrame) -> DataFrame:
    """Return the rows whose user and movie both have a training rating.

    These are the rows that ``coldStartStrategy="drop"`` keeps.
    """
    users = train.select("userId").distinct()
    movies = train.select("movieId").distinct()
    return rows.join(users, "userId", "left_semi").join(movies, "movieId", "left_semi")


@dataclass(frozen=True)
class BiasBaseline:
    """Damped means: the rating that a user gives a movie when taste plays no part.

    ``prediction = mean + movie bias + user bias``; a user or movie without training ratings gets
    bias 0. ``movies`` holds ``movieId, movie_bias`` and ``users`` holds ``userId, user_bias``.
    """

    mean: float
    movies: DataFrame
    users: DataFrame

    def transform(self, rows: DataFrame, column: str = "prediction") -> DataFrame:
        """Add ``column``, in stars; never missing and not clipped."""
        joined = rows.join(F.broadcast(self.movies), "movieId", "left").join(
            F.broadcast(self.users), "userId", "left"
        )
        filled = (
            F.lit(self.mean)
            + F.coalesce("movie_bias", F.lit(0.0))
            + F.coalesce("user_bias", F.lit(0.0))
        )
        return joined.withColumn(column, filled).drop("movie_bias", "user_bias")


def fit_bias_baseline(
    train: DataFrame, *, movie_damping: float = 5.0, user_damping: float = 5.0
) -> BiasBaseline:
    """Fit the damped means of Funk 2006 and Koren 2009, movies first and users on what is left.

    ``bias = sum of deviations / (count + damping)``: a damping of 5 acts like five ratings with
    deviation zero, so that a movie rated once stays near the mean.
    """
    mean = float(train.agg(F.avg(F.col("rating").cast("double"))).first()[0])
    deviation = F.col("rating").cast("double") - F.lit(mean)
    movies = train.groupBy("movieId").agg(
        (F.sum(deviation) / (F.count(F.lit(1)) + movie_damping)).alias("movie_bias")
    )
    left = train.join(F.broadcast(movies), "movieId").withColumn(
        "left", deviation - F.col("movie_bias")
    )
    users = left.groupBy("userId").agg(
        (F.sum("left") / (F.count(F.lit(1)) + user_damping)).alias("user_bias")
    )
    return BiasBaseline(mean, movies.cache(), users.cache())


@dataclass(frozen=True)
class ResidualALS:
    """ALS that learns only what the bias baseline leaves over; notebook 02 writes it out.

    ``prediction = baseline + ALS`` clipped to 0.5-5 stars; where ALS knows the user or the movie
    not, the baseline stands alone. So no row is ever dropped.
    """

    baseline: BiasBaseline
    model: ALSModel

    def transform(self, rows: DataFrame) -> DataFrame:
        """Add ``prediction``, in stars, to every row."""
        low, high = RATING_RANGE
        scored = self.model.transform(self.baseline.transform(rows, "baseline"))
        raw = F.col("baseline") + F.nanvl(F.col("prediction").cast("double"), F.lit(0.0))
        clipped = F.greatest(F.lit(low), F.least(F.lit(high), raw))
        return scored.withColumn("prediction", clipped).drop("baseline")


def fit_residual_als(
    train: DataFrame, baseline: BiasBaseline, *, rank: int = 10, reg: float = 0.2, **options: int
) -> ResidualALS:
    """Fit ALS on ``rating - baseline``; ``options`` go to :func:`make_als`."""
    residual = (F.col("rating") - F.col("baseline")).cast("float")
    rest = baseline.transform(train, "baseline").select("userId", "movieId", residual.alias("rest"))
    # A join may reorder rows, and ALS sums in row order.
    rest = rest.coalesce(1).sortWithinPartitions("userId", "movieId")
    als = make_als(rank, reg, **options).setRatingCol("rest").setColdStartStrategy("nan")
    return ResidualALS(baseline, als.fit(rest))


@dataclass(frozen=True)
class Factors:
    """The two factor matrices of an ALS model, in memory.

    ``users`` and ``movies`` are sorted ids of shape (n_users,) and (n_movies,); ``user_factors``
    and ``movie_factors`` are float32 of shape (n_users, rank) and (n_movies, rank). A score is the
    dot product of two rows.
    """

    users: np.ndarray
    movies: np.ndarray
    user_factors: np.ndarray
    movie_factors: np.ndarray


def factors(model: ALSModel) -> Factors:
    """Collect the factors of a fitted model; 610 users, 9,000 movies and rank 12 take 0.5 MB."""
    users, user_factors = _matrix(model.userFactors)
    movies, movie_factors = _matrix(model.itemFactors)
    return Factors(users, movies, user_factors, movie_factors)


def _rmse_of(both: Factors, ratings: pd.DataFrame) -> float:
    """Return the RMSE in stars over the rows whose user and movie have factors.

    Raises:
        ValueError: there is no such row.
    """
    user = np.searchsorted(both.users, ratings["userId"]).clip(max=len(both.users) - 1)
    movie = np.searchsorted(both.movies, ratings["movieId"]).clip(max=len(both.movies) - 1)
    warm = (both.users[user] == ratings["userId"]) & (both.movies[movie] == ratings["movieId"])
    if not warm.any():
        raise ValueError("RMSE needs at least one prediction; no user and movie were trained on.")
    dots = np.einsum("ij,ij->i", both.user_factors[user[warm]], both.movie_factors[movie[warm]])
    return float(np.sqrt(np.mean((dots.astype(float) - ratings["rating"][warm]) ** 2)))


def _matrix(table: DataFrame) -> tuple[np.ndarray, np.ndarray]:
    frame = table.toPandas().sort_values("id")
    return frame["id"].to_numpy(), np.stack(frame["features"].to_list()).astype(np.float32)
