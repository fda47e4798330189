"""python tools/experiments/11_scale.py makes 11_scale.csv, with --rivals 11_spark_loses.csv.

11_scale: for up to 32 million simulated ratings, `load` reads ratings.csv and writes Parquet, `fit`
is one ALS fit, `top 100` writes the best unseen movies of every user; `start` is imports and JVM.
11_spark_loses: four implicit ALS fits by Spark and by the library implicit (extra `scale`), with
exact solves and with conjugate gradients. Each run is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from helpers.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests" / "support"), str(ROOT / "tools" / "benchmarks")]
from peak_memory import PeakMemory  # noqa: E402
from rows import save  # noqa: E402

SIZES = (100_000, 1_000_000, 10_000_000, 32_000_000)
GRID = [(rank, reg) for rank in (8, 16) for reg in (0.05, 0.2)]
ALPHA, HELD_OUT_USERS = 10.0, 2000
CORES = psutil.cpu_count() or 1


def processor_seconds() -> float:
    """Return what this process and those that it started have used."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(used.user + used.system for used in times)


class Clock:
    """Measures named steps: seconds, processor seconds, and the peak of memory (MiB)."""

    def __init__(self) -> None:
        """Start to sample memory, five times a second."""
        self.memory = PeakMemory(os.getpid(), itself=True)
        self.memory.start()
        self.rows: list[dict] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        self.memory.peak_mb, wall, used = 0.0, time.perf_counter(), processor_seconds()
        yield
        row = {"step": name, "seconds": time.perf_counter() - wall}
        row["cpu_s"] = processor_seconds() - used
        time.sleep(0.5)  # until memory is sampled once more
        self.rows.append(row | {"peak_mb": self.memory.peak_mb})


def start_spark(clock: Clock):
    """Return a session; its imports and JVM are the step `start`."""
    with clock.step("start"):
        from helpers.spark import get_spark

        return get_spark()


def scale(folder: Path, ratings: int) -> list[dict]:
    """Load, fit and rank one size."""
    from research import synthetic

    shape = synthetic.write(folder / "data", ratings, formats=("csv",))
    clock, blocks = Clock(), int(os.environ["SPARK_PARTITIONS"])
    spark = start_spark(clock)
    from helpers import als, data
    from research import parquet, spark_lists

    dataset = data.Dataset(folder / "data", "synthetic", "bench", True, False)
    with clock.step("load"):
        tables = {"ratings": data.load(spark, dataset).ratings}
        parquet.save(tables, folder / "stored", buckets=blocks)
    with clock.step("fit"):
        stored = parquet.load(spark, folder / "stored", "ratings", data.SCHEMAS["ratings"])
        table = stored.select("userId", "movieId", "rating")
        model = als.make_als(10, 0.1, max_iter=10, blocks=blocks).fit(table)
        users, movies = model.userFactors.count(), model.itemFactors.count()
    with clock.step("top 100"):
        lists = spark_lists.recommend_all(model, table, table, 100, buckets=blocks)
        listed = spark_lists.save_lists(lists, folder / "lists", buckets=blocks).rows["candidates"]
    size = {"ratings": shape.ratings, "users": users, "movies": movies, "listed": listed}
    size |= {"partitions": blocks, "driver_memory": os.environ["SPARK_DRIVER_MEMORY"]}
    return [size | row | {"us_per_rating": 1e6 * row["seconds"] / ratings} for row in clock.rows]


def hold_out(folder: Path, ratings: int) -> dict:
    """Make ratings; set the last one of the first users apart as test.parquet."""
    from research import synthetic

    shape = synthetic.write(folder / "data", ratings, formats=("parquet",))
    table = pd.read_parquet(folder / "data" / "ratings.parquet")
    last = table.groupby("userId")["timestamp"].idxmax().head(HELD_OUT_USERS)
    for name, part in (("train", table.drop(last)), ("test", table.loc[last])):
        part[["userId", "movieId", "rating"]].to_parquet(folder / f"{name}.parquet", index=False)
    size = {"ratings": shape.ratings, "users": shape.users, "movies": shape.movies}
    return size | {"tested": len(last)}


def hit_rate(users: pd.Series, items: pd.Series, train: pd.DataFrame, test: pd.DataFrame) -> float:
    """Return the share of held-out movies in the top ten of the unseen, from vectors by id."""
    vectors, place = np.stack(list(items)), pd.Series(range(len(items)), items.index)
    seen = train.loc[train["userId"].isin(test["userId"])].groupby("userId")["movieId"].agg(list)
    hits = 0
    for row in test.itertuples():
        scores = (vectors @ np.asarray(users[row.userId])).astype(float)
        scores[place[seen[row.userId]]] = -np.inf
        if row.movieId in place.index:
            hits += int((scores > scores[place[row.movieId]]).sum()) < 10
    return hits / len(test)


def spark_grid(folder: Path, clock: Clock) -> list[list[pd.Series]]:
    """Fit the grid side by side; return the vectors of users and of movies of each fit."""
    spark = start_spark(clock)
    from helpers import als

    options = {"max_iter": 10, "blocks": int(os.environ["SPARK_PARTITIONS"])}
    with clock.step("grid"):
        table = spark.read.parquet(str(folder / "train.parquet")).cache()
        table.count()

        def fit(cell: tuple[int, float]):
            model = als.make_als(*cell, **options, implicit=True, alpha=ALPHA).fit(table)
            model.userFactors.count()
            return model.userFactors, model.itemFactors

        with ThreadPoolExecutor(CORES) as pool:
            models = list(pool.map(fit, GRID))
    return [[part.toPandas().set_index("id")["features"] for part in model] for model in models]


def implicit_grid(folder: Path, clock: Clock, library: str) -> list[list[pd.Series]]:
    """Fit the same grid, confidence 1 + alpha * rating, with implicit; return the vectors."""
    with clock.step("start"):
        from implicit.als import AlternatingLeastSquares
        from scipy import sparse
    models = []
    with clock.step("grid"):
        table = pd.read_parquet(folder / "train.parquet")
        users, row = np.unique(table["userId"], return_inverse=True)
        movies, column = np.unique(table["movieId"], return_inverse=True)
        weights = (1 + ALPHA * table["rating"].to_numpy()).astype(np.float32)
        matrix = sparse.csr_matrix((weights, (row, column)))
        for rank, reg in GRID:
            model = AlternatingLeastSquares(
                factors=rank, regularization=reg, iterations=10,
                use_cg="gradients" in library, num_threads=CORES, random_state=0, alpha=1.0,
            )  # fmt: skip
            model.fit(matrix, show_progress=False)
            models.append(model)
    pairs = [((model.user_factors, users), (model.item_factors, movies)) for model in models]
    return [[pd.Series([*vectors], ids) for vectors, ids in pair] for pair in pairs]


def rival(folder: Path, library: str) -> list[dict]:
    """Fit the grid with one library; return its steps, with the best hit rate of the grid."""
    clock = Clock()
    fits = (
        spark_grid(folder, clock) if library == "Spark" else implicit_grid(folder, clock, library)
    )
    train, test = (pd.read_parquet(folder / f"{name}.parquet") for name in ("train", "test"))
    counts = train["movieId"].value_counts()
    alike = [pd.Series([[1.0]] * len(test), test["userId"]), counts.map(lambda n: [n])]
    facts = {"library": library, "popularity": hit_rate(*alike, train, test)}
    facts["hit_rate"] = max(hit_rate(*fit, train, test) for fit in fits)
    return [row | facts for row in clock.rows]


def in_process(function: Callable, *arguments: object):
    """Return a function's value from a fresh process, with the environment as it is now."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def measure(ratings: int, rivals: bool) -> list[dict]:
    """Return the rows of one size; partitions and heap grow with it."""
    memory = next(gb for most, gb in ((1e6, 1), (5e6, 2), (2e7, 4), (1e9, 8)) if ratings < most)
    os.environ |= {
        "SPARK_PARTITIONS": str(max(2, round(ratings / 2e6))), "SPARK_DRIVER_MEMORY": f"{memory}g",
        "SPARK_MASTER": f"local[{CORES}]", "OPENBLAS_NUM_THREADS": "1",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not rivals:
            return in_process(scale, folder, ratings)
        size = in_process(hold_out, folder, ratings)
        libraries = ("Spark", "implicit", "implicit (conjugate gradients)")
        return [size | row for library in libraries for row in in_process(rival, folder, library)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rivals", action="store_true", help="Spark beside implicit")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of ratings")
    options = parser.parse_args()
    name = "11_spark_loses" if options.rivals else "11_scale"
    results = Settings.from_env().results_dir
    for ratings in options.sizes:
        table = pd.DataFrame(measure(ratings, options.rivals)).round(4)
        print(table.to_string(index=False), flush=True)
        save(table.to_dict("records"), results / f"{name}.csv", "ratings")
