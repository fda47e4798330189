"""python tools/experiments/14_scale.py makes 14_scale.csv, with --rivals 14_spark_loses.csv.

14_scale: for up to 32 million simulated ratings, `load` reads ratings.csv and writes Parquet, `fit`
is one ALS fit, `top 100` writes the best unseen movies of every user; `start` is imports and JVM.
14_spark_loses: four implicit ALS fits by Spark and by the library implicit (extra `scale`), with
exact solves and with conjugate gradients. Each run is a process of its own.
"""

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

SIZES = {100_000: "1g", 1_000_000: "2g", 10_000_000: "4g", 32_000_000: "8g"}
"""Ratings, and the heap of Spark's driver."""
GRID = [(rank, reg) for rank in (8, 16) for reg in (0.05, 0.2)]
COLUMNS = ["userId", "movieId", "rating"]
ALPHA = 10.0
CORES = psutil.cpu_count() or 1


class Clock(PeakMemory):
    """Measures steps of this process and those it starts; the peak of memory is in MiB."""

    def __init__(self) -> None:
        super().__init__(os.getpid(), itself=True)
        self.rows: list[dict] = []
        self.start()

    def processor_seconds(self) -> float:
        family = [self.process, *self.process.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in family)  # user and system

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        self.peak_mb, wall, used = 0.0, time.perf_counter(), self.processor_seconds()
        yield
        row = {"step": name, "seconds": time.perf_counter() - wall}
        row["cpu_s"] = self.processor_seconds() - used
        time.sleep(0.5)  # until memory is sampled once more
        self.rows.append(row | {"peak_mb": self.peak_mb})

    def spark(self):
        """Return a session; its imports and JVM are the step `start`."""
        with self.step("start"):
            from helpers.spark import get_spark

            return get_spark()


def scale(folder: Path, ratings: int, blocks: int) -> list[dict]:
    """Load, fit and rank one size."""
    from research import synthetic

    shape, clock = synthetic.write(folder / "data", ratings, formats=("csv",)), Clock()
    spark = clock.spark()
    from helpers import als, data
    from research import parquet, spark_lists

    dataset = data.Dataset(folder / "data", "synthetic", "bench", True, False)
    with clock.step("load"):
        tables = {"ratings": data.load(spark, dataset).ratings}
        parquet.write_folder(tables, folder / "stored", buckets=blocks)
    with clock.step("fit"):
        stored = parquet.read_table(spark, folder / "stored", "ratings", data.SCHEMAS["ratings"])
        table = stored.select(*COLUMNS)
        model = als.make_als(10, 0.1, max_iter=10, blocks=blocks).fit(table)
        users, movies = model.userFactors.count(), model.itemFactors.count()
    with clock.step("top 100"):
        lists = spark_lists.recommend_all(model, table, table, 100, buckets=blocks)
        listed = spark_lists.save_lists(lists, folder / "lists", buckets=blocks).rows["candidates"]
    size = {"ratings": shape.ratings, "users": users, "movies": movies, "listed": listed}
    size |= {"partitions": blocks, "driver_memory": os.environ["SPARK_DRIVER_MEMORY"]}
    return [size | row | {"us_per_rating": 1e6 * row["seconds"] / ratings} for row in clock.rows]


def rival(path: Path, library: str, blocks: int) -> list[dict]:
    """Fit the grid with one library, confidence 1 + alpha * rating; Spark's fits run together."""
    clock = Clock()
    if library == "Spark":
        spark = clock.spark()
        from helpers import als

        how = {"max_iter": 10, "blocks": blocks, "implicit": True, "alpha": ALPHA}
        models = [als.make_als(*cell, **how) for cell in GRID]
        with clock.step("grid"), ThreadPoolExecutor(CORES) as pool:
            table = spark.read.parquet(str(path)).select(*COLUMNS).cache()
            table.count()
            list(pool.map(lambda model: model.fit(table).userFactors.count(), models))
        return clock.rows
    with clock.step("start"):
        from implicit.als import AlternatingLeastSquares
        from scipy import sparse
    how = {"iterations": 10, "num_threads": CORES, "random_state": 0, "alpha": 1.0}
    with clock.step("grid"):
        table = pd.read_parquet(path, columns=COLUMNS)
        column = np.unique(table["movieId"], return_inverse=True)[1]
        weights = (1 + ALPHA * table["rating"].to_numpy()).astype(np.float32)
        matrix = sparse.csr_matrix((weights, (table["userId"] - 1, column)))
        for cell in GRID:
            model = AlternatingLeastSquares(*cell, use_cg=library != "implicit", **how)
            model.fit(matrix, show_progress=False)
    return clock.rows


def rivals(folder: Path, ratings: int, blocks: int) -> list[dict]:
    """Fit the grid with each library."""
    from research import synthetic

    shape = synthetic.write(folder / "data", ratings, formats=("parquet",))
    rows, size = [], {"ratings": shape.ratings} | vars(shape)
    for library in ("Spark", "implicit", "implicit (conjugate gradients)"):
        run = alone(rival, folder / "data" / "ratings.parquet", library, blocks)
        rows += [size | row | {"library": library} for row in run]
    return rows


def alone(function: Callable, *arguments: object) -> list[dict]:
    """Return a function's rows from a fresh process, with the environment as it is now."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rivals", action="store_true", help="Spark beside implicit")
    options = parser.parse_args()
    file = "14_spark_loses.csv" if options.rivals else "14_scale.csv"
    os.environ |= {"SPARK_MASTER": f"local[{CORES}]", "OPENBLAS_NUM_THREADS": "1"}
    for ratings, memory in SIZES.items():
        blocks = max(2, round(ratings / 2e6))
        os.environ |= {"SPARK_PARTITIONS": str(blocks), "SPARK_DRIVER_MEMORY": memory}
        with tempfile.TemporaryDirectory() as folder:
            job = (Path(folder), ratings, blocks)
            table = pd.DataFrame(rivals(*job) if options.rivals else alone(scale, *job)).round(4)
        print(table.to_string(index=False), flush=True)
        save(table.to_dict("records"), Settings.from_env().results_dir / file, "ratings")
