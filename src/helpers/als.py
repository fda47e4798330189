"""Matrix factorisation with Spark ALS: grid search, a bias baseline, and ALS on its residuals.

Notebook 02 writes the grid search out once as a plain loop; what is here does the same fits in
parallel threads over one cached split. References: Zhou et al. 2008, "Large-scale parallel
collaborative filtering for the Netflix prize" (ALS with weighted regularisation, which Spark
follows); Koren, Bell and Volinsky 2009, "Matrix factorization techniques for recommender systems"
(biases); Hu, Koren and Volinsky 2008 (implicit feedback).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # noqa: N812
from pyspark.util import inheritable_thread_target
from tqdm.auto import tqdm

from helpers.faults import storing

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
    cold_start: str = "drop",
    implicit: bool = False,
    alpha: float = 1.0,
    target: str = "rating",
) -> ALS:
    """Return an unfitted Spark ALS with its blocks pinned.

    The number of blocks decides the order of sums and, with the seed, the starting factors: leave
    it at the partition count of the session (``SPARK_PARTITIONS``) and results repeat anywhere.
    """
    return ALS(
        rank=rank,
        regParam=reg,
        maxIter=max_iter,
        seed=seed,
        numUserBlocks=blocks,
        numItemBlocks=blocks,
        userCol="userId",
        itemCol="movieId",
        ratingCol=target,
        coldStartStrategy=cold_start,
        implicitPrefs=implicit,
        alpha=alpha,
    )


def rmse(predictions: DataFrame, target: str = "rating", prediction: str = "prediction") -> float:
    """Return the root mean squared error of ``prediction`` against ``target``, in stars.

    Raises:
        ValueError: there is no row to average, or a prediction is missing (a cold user or item).
    """
    row = predictions.select(
        F.count(F.lit(1)).alias("rows"),
        F.sum((F.isnan(prediction) | F.col(prediction).isNull()).cast("int")).alias("missing"),
        F.avg(F.pow(F.col(target) - F.col(prediction), 2)).alias("mse"),
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
    """What a grid search found.

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
    max_iter: int = 10,
    seed: int = 0,
    blocks: int = 1,
    threads: int | None = None,
    progress: bool = True,
) -> GridResult:
    """Fit ALS for every rank and regularisation and keep the lowest validation RMSE.

    The tables are cached once and read by all fits; ``threads`` fits run at a time (default: one
    more than cores, at most 4, which bounds the driver's memory). The result does not depend on
    it. Errors of tables up to ``COLLECT_ROWS`` rows are computed on the driver from the model's
    factors: a Spark job per error takes longer than its sum. A tie goes to the smaller rank, then
    to the larger regularisation.

    Raises:
        ValueError: ``ranks`` or ``regs`` is empty.
    """
    grid = list(product(ranks, regs))
    if not grid:
        raise ValueError("The grid is empty: give at least one rank and one regularisation.")
    tables = [table.cache() for table in (train, validation, test) if table is not None]
    small = all(table.count() <= COLLECT_ROWS for table in tables)  # counting also fills the cache
    rows_of = {id(table): table.toPandas() for table in tables[:2]} if small else {}

    def error(model: ALSModel, found: Factors | None, table: DataFrame) -> float:
        return (
            rmse(model.transform(table)) if found is None else _rmse_of(found, rows_of[id(table)])
        )

    def fit_one(rank: int, reg: float) -> tuple[dict[str, float], ALSModel]:
        model = make_als(rank, reg, max_iter=max_iter, seed=seed, blocks=blocks).fit(train)
        found = factors(model) if small else None
        scores = {
            "rank": rank,
            "reg": reg,
            "train_rmse": error(model, found, train),
            "validation_rmse": error(model, found, validation),
        }
        return scores, model

    rows: list[dict[str, float]] = []
    best: tuple[tuple[float, int, float], ALSModel] | None = None
    with ThreadPoolExecutor(threads or min(4, 1 + (os.cpu_count() or 1))) as pool:
        # A Spark Connect model asks for the session of its thread.
        fit_there = inheritable_thread_target(train.sparkSession)(fit_one)
        jobs = [pool.submit(fit_there, rank, reg) for rank, reg in grid]
        try:
            done = tqdm(as_completed(jobs), total=len(jobs), desc="ALS fits", disable=not progress)
            for job in done:
                scores, model = job.result()
                rows.append(scores)
                key = (scores["validation_rmse"], scores["rank"], -scores["reg"])
                if best is None or key < best[0]:
                    best = (key, model)
        finally:
            # After Ctrl-C or a failed fit nobody waits for the rest of the grid.
            pool.shutdown(wait=False, cancel_futures=True)
    table = pd.DataFrame(rows).sort_values(["rank", "reg"], ignore_index=True)
    (_, rank, minus_reg), model = best
    errors = {
        "train": rmse(model.transform(train)),
        "validation": rmse(model.transform(validation)),
    }
    if test is not None:
        errors["test"] = rmse(model.transform(test))
    return GridResult(table, model, int(rank), float(-minus_reg), errors)


def learning_curve(
    train: DataFrame,
    validation: DataFrame,
    *,
    rank: int,
    reg: float,
    iterations: Sequence[int] = (1, 2, 3, 5, 7, 10, 15),
    seed: int = 0,
    blocks: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Return train and validation RMSE (stars) after each number of ALS iterations.

    Spark keeps no intermediate factors, so every row is its own fit from the same start.
    """
    rows = []
    for count in tqdm(iterations, desc="Learning curve", disable=not progress):
        model = make_als(rank, reg, max_iter=count, seed=seed, blocks=blocks).fit(train)
        rows.append(
            {
                "iterations": count,
                "train_rmse": rmse(model.transform(train)),
                "validation_rmse": rmse(model.transform(validation)),
            }
        )
    return pd.DataFrame(rows)


def warm_rows(rows: DataFrame, train: DataFrame) -> DataFrame:
    """Return the rows whose user and movie both have a training rating.

    These are the rows that ``coldStartStrategy="drop"`` keeps; an error over them is comparable
    with plain ALS only, an error over all rows is what a reader expects.
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
    """ALS that learns only what the bias baseline leaves over.

    ``prediction = baseline + ALS`` clipped to 0.5-5 stars; where ALS knows the user or the movie
    not, the baseline stands alone. So no row is ever dropped.
    """

    baseline: BiasBaseline
    model: ALSModel

    def transform(self, rows: DataFrame) -> DataFrame:
        """Add ``prediction``, in stars, to every row."""
        low, high = RATING_RANGE
        with_base = self.baseline.transform(rows, "baseline")
        scored = self.model.transform(with_base)
        raw = F.col("baseline") + F.nanvl(F.col("prediction").cast("double"), F.lit(0.0))
        clipped = F.greatest(F.lit(low), F.least(F.lit(high), raw))
        return scored.withColumn("prediction", clipped).drop("baseline")


def fit_residual_als(
    train: DataFrame,
    *,
    rank: int = 10,
    reg: float = 0.2,
    max_iter: int = 10,
    seed: int = 0,
    blocks: int = 1,
    baseline: BiasBaseline | None = None,
) -> ResidualALS:
    """Fit the baseline (unless given) and ALS on ``rating - baseline``."""
    baseline = baseline or fit_bias_baseline(train)
    rest = baseline.transform(train, "baseline").withColumn(
        "residual", (F.col("rating") - F.col("baseline")).cast("float")
    )
    # A join may reorder rows, and ALS sums in row order.
    rest = rest.select("userId", "movieId", "residual").coalesce(1)
    rest = rest.sortWithinPartitions("userId", "movieId")
    als = make_als(
        rank,
        reg,
        max_iter=max_iter,
        seed=seed,
        blocks=blocks,
        cold_start="nan",
        target="residual",
    )
    return ResidualALS(baseline, als.fit(rest))


def fingerprint(train: DataFrame, **parameters: object) -> str:
    """Return a SHA-256 over the training rows and the parameters that a model was fitted with.

    The order of the rows does not count.
    """
    columns = [F.col(name) for name in sorted(train.columns)]
    digest = F.xxhash64(*columns).cast("decimal(38,0)")
    row = train.agg(F.count(F.lit(1)).alias("rows"), F.sum(digest).alias("sum")).first()
    facts = {"rows": row["rows"], "sum": str(row["sum"]), **parameters}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


MANIFEST = "manifest.json"


def save_model(model: ALSModel, folder: Path, mark: str) -> None:
    """Save ``model`` with a manifest of file hashes and ``mark`` (see :func:`fingerprint`).

    It is written beside ``folder`` and renamed, so that a crash leaves the old model or none. On a
    cluster, or with Spark Connect, every machine must see ``folder``.

    Raises:
        StorageError: the disk is full, or the folder read-only.
    """
    folder = Path(folder).resolve()
    with storing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            model.write().overwrite().save(_hadoop(fresh / "model"))
            manifest = {"fingerprint": mark, "files": _hashes(fresh / "model")}
            (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                fresh.rename(folder)
            except OSError:
                if not (folder / MANIFEST).exists():  # else another process saved in between
                    raise
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


class SavedModelError(RuntimeError):
    """A saved model is missing, damaged, or was fitted on something else."""


def load_model(folder: Path, mark: str) -> ALSModel:
    """Load a model that :func:`save_model` wrote.

    Raises:
        SavedModelError: there is none, a file differs from the manifest, or ``mark`` differs.
    """
    folder = Path(folder).resolve()
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files, saved_mark = manifest["files"], manifest["fingerprint"]
    except FileNotFoundError:
        raise SavedModelError("no saved model was found") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise SavedModelError("the saved model's manifest is damaged") from None
    if saved_mark != mark:
        raise SavedModelError("the saved model was fitted on other data or parameters")
    if files != _hashes(folder / "model"):
        raise SavedModelError("a file of the saved model is damaged or missing")
    try:
        return ALSModel.load(_hadoop(folder / "model"))
    except Exception as error:
        raise SavedModelError(f"Spark could not read the saved model ({error})") from None


def load_or_fit(folder: Path, mark: str, fit: Callable[[], ALSModel]) -> tuple[ALSModel, str]:
    """Return the saved model if it is whole and fits ``mark``; else fit, save and say so.

    The second value is a sentence for the reader.
    """
    try:
        return load_model(folder, mark), f"Loaded the saved model {Path(folder).name}."
    except SavedModelError as error:
        reason = str(error)
    model = fit()
    save_model(model, folder, mark)
    return model, f"Fitted the model {Path(folder).name} anew: {reason}."


def _hadoop(path: Path) -> str:
    """Return a local path as Hadoop reads it: a scheme, and spaces as they are."""
    text = path.as_posix()
    return f"file://{text}" if text.startswith("/") else f"file:///{text}"


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


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


def _rmse_of(found: Factors, ratings: pd.DataFrame) -> float:
    """Return the RMSE in stars over the rows whose user and movie have factors.

    Raises:
        ValueError: there is no such row.
    """
    user = np.searchsorted(found.users, ratings["userId"]).clip(max=len(found.users) - 1)
    movie = np.searchsorted(found.movies, ratings["movieId"]).clip(max=len(found.movies) - 1)
    warm = (found.users[user] == ratings["userId"]) & (found.movies[movie] == ratings["movieId"])
    if not warm.any():
        raise ValueError("RMSE needs at least one prediction; no user and movie were trained on.")
    dots = np.einsum("ij,ij->i", found.user_factors[user[warm]], found.movie_factors[movie[warm]])
    return float(np.sqrt(np.mean((dots.astype(float) - ratings["rating"][warm]) ** 2)))


def _matrix(table: DataFrame) -> tuple[np.ndarray, np.ndarray]:
    frame = table.toPandas().sort_values("id")
    return frame["id"].to_numpy(), np.stack(frame["features"].to_list()).astype(np.float32)
