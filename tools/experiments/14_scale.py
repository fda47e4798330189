"""python tools/experiments/14_scale.py makes 14_scale.csv, with --rivals 14_spark_loses.csv.

14_scale: for up to 32 million simulated ratings, `load` reads ratings.csv and writes Parquet, `fit`
is one ALS fit, `top 100` writes the best unseen movies of every user; `start` is imports and JVM.
14_spark_loses: four implicit ALS fits by Spark and by the library implicit (extra `scale`), with
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
sys.path += [str(ROOT / "tests" / "support"), str(ROOT / "tools")]
from benchmarks import save  # noqa: E402
from peak_memory import PeakMemory  # noqa: E402

SIZES = (100_000, 1_000_000, 10_000_000, 32_000_000)
GRID = [(rank, reg) for rank in (8, 16) for reg in (0.05, 0.2)]
ALPHA = 10.0
CORES = psutil.cpu_count() or 1


def processor_seconds() -> float:
    """Return what this process and those that it started have used."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(used.user + used.system for used in times)


class Clock:
    """Measures named steps: seconds, processor seconds, and the peak of memory (MiB)."""

    def __init__(self) -> None:
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
        parquet.write_folder(tables, folder / "stored", buckets=blocks)
    with clock.step("fit"):
        stored = parquet.read_table(spark, folder / "stored", "ratings", data.SCHEMAS["ratings"])
        table = stored.select("userId", "movieId", "rating")
        model = als.make_als(10, 0.1, max_iter=10, blocks=blocks).fit(table)
        users, movies = model.userFactors.count(), model.itemFactors.count()
    with clock.step("top 100"):
        lists = spark_lists.recommend_all(model, table, table, 100, buckets=blocks)
        listed = spark_lists.save_lists(lists, folder / "lists", buckets=blocks).rows["candidates"]
    size = {"ratings": shape.ratings, "users": users, "movies": movies, "listed": listed}
    size |= {"partitions": blocks, "driver_memory": os.environ["SPARK_DRIVER_MEMORY"]}
    return [size | row | {"us_per_rating": 1e6 * row["seconds"] / ratings} for row in clock.rows]


def made(folder: Path, ratings: int) -> dict:
    """Make ratings as train.parquet; return how many there are."""
    from research import synthetic

    shape = synthetic.write(folder / "data", ratings, formats=("parquet",))
    table = pd.read_parquet(folder / "data" / "ratings.parquet")
    table[["userId", "movieId", "rating"]].to_parquet(folder / "train.parquet", index=False)
    return {"ratings": shape.ratings, "users": shape.users, "movies": shape.movies}


def spark_grid(folder: Path, clock: Clock) -> None:
    """Fit the grid side by side."""
    spark = start_spark(clock)
    from helpers import als

    options = {"max_iter": 10, "blocks": int(os.environ["SPARK_PARTITIONS"])}
    with clock.step("grid"):
        table = spark.read.parquet(str(folder / "train.parquet")).cache()
        table.count()

        def fit(cell: tuple[int, float]) -> None:
            model = als.make_als(*cell, **options, implicit=True, alpha=ALPHA).fit(table)
            model.userFactors.count()

        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(fit, GRID))


def implicit_grid(folder: Path, clock: Clock, exact: bool) -> None:
    """Fit the same grid, confidence 1 + alpha * rating, with implicit."""
    with clock.step("start"):
        from implicit.als import AlternatingLeastSquares
        from scipy import sparse
    with clock.step("grid"):
        table = pd.read_parquet(folder / "train.parquet")
        column = np.unique(table["movieId"], return_inverse=True)[1]
        weights = (1 + ALPHA * table["rating"].to_numpy()).astype(np.float32)
        matrix = sparse.csr_matrix((weights, (table["userId"] - 1, column)))
        options = {"iterations": 10, "num_threads": CORES, "random_state": 0, "use_cg": not exact}
        for rank, reg in GRID:
            model = AlternatingLeastSquares(rank, reg, alpha=1.0, **options)
            model.fit(matrix, show_progress=False)


def rival(folder: Path, library: str) -> list[dict]:
    """Fit the grid with one library; return its steps."""
    clock = Clock()
    if library == "Spark":
        spark_grid(folder, clock)
    else:
        implicit_grid(folder, clock, exact=library == "implicit")
    return [row | {"library": library} for row in clock.rows]


def in_process(function: Callable, *arguments: object):
    """Return a function's value from a fresh process, with the environment as it is now."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rivals", action="store_true", help="Spark beside implicit")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of ratings")
    options = parser.parse_args()
    name = "14_spark_loses" if options.rivals else "14_scale"
    os.environ |= {"SPARK_MASTER": f"local[{CORES}]", "OPENBLAS_NUM_THREADS": "1"}
    for ratings in options.sizes:  # partitions and heap grow with them
        os.environ["SPARK_PARTITIONS"] = str(max(2, round(ratings / 2e6)))
        memory = 1 if ratings < 1e6 else 2 if ratings < 5e6 else 4 if ratings < 2e7 else 8
        os.environ["SPARK_DRIVER_MEMORY"] = f"{memory}g"
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if options.rivals:
                size = in_process(made, folder, ratings)
                rows = [
                    size | row
                    for library in ("Spark", "implicit", "implicit (conjugate gradients)")
                    for row in in_process(rival, folder, library)
                ]
            else:
                rows = in_process(scale, folder, ratings)
        table = pd.DataFrame(rows).round(4)
        print(table.to_string(index=False), flush=True)
        path = Settings.from_env().results_dir / f"{name}.csv"
        save(table.to_dict("records"), path, "ratings")
