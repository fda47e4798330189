"""python tools/experiments/14_scale.py makes 14_scale.csv, with --rivals 14_spark_loses.csv.

14_scale: for up to 32 million simulated ratings, `load` reads ratings.csv and writes Parquet, `fit`
is one ALS fit, `top 100` writes the best unseen movies of every user; each with its peak in MiB.
14_spark_loses: `grid` is four implicit ALS fits by Spark and by the library implicit (extra
`scale`), with exact solves and with conjugate gradients. Each run is a process of its own.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from scipy import sparse

from helpers import als, data
from helpers.settings import Settings
from helpers.spark import get_spark
from research import parquet, spark_lists, synthetic

sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks import PeakMemory, save

SIZES = {100_000: "1g", 1_000_000: "2g", 10_000_000: "4g", 32_000_000: "8g"}  # with Spark's heap
GRID = [(rank, reg) for rank in (8, 16) for reg in (0.05, 0.2)]
COLUMNS = ["userId", "movieId", "rating"]
ALPHA = 10.0
CORES = psutil.cpu_count() or 1


def scale(folder: Path, ratings: int, blocks: int) -> list[dict]:
    shape, me = synthetic.write(folder / "data", ratings, formats=("csv",)), os.getpid()
    spark, dataset = get_spark(), data.Dataset(folder / "data", "synthetic", "bench", True, False)
    with PeakMemory(me, itself=True) as load:  # and what it starts, the JVM
        tables = {"ratings": data.load(spark, dataset).ratings}
        parquet.write_folder(tables, folder / "stored", buckets=blocks)
    with PeakMemory(me, itself=True) as fit:
        stored = parquet.read_table(spark, folder / "stored", "ratings", data.SCHEMAS["ratings"])
        table = stored.select(*COLUMNS)
        model = als.make_als(10, 0.1, max_iter=10, blocks=blocks).fit(table)
        users, movies = model.userFactors.count(), model.itemFactors.count()
    with PeakMemory(me, itself=True) as top:
        lists = spark_lists.recommend_all(model, table, table, 100, buckets=blocks)
        spark_lists.save_lists(lists, folder / "lists", buckets=blocks)
    facts = {"ratings": shape.ratings, "users": users, "movies": movies}
    steps = {"load": load, "fit": fit, "top 100": top}.items()
    return [facts | {"step": s, "seconds": m.seconds, "peak_mb": m.peak_mb} for s, m in steps]


def grid(library: str, path: Path, blocks: int) -> float:
    """Return the seconds of four fits, confidence 1 + alpha * rating; Spark's run together."""
    if library == "Spark":
        spark, how = get_spark(), {"blocks": blocks, "implicit": True, "alpha": ALPHA}
        models = [als.make_als(*cell, max_iter=10, **how) for cell in GRID]
        start = time.perf_counter()
        with ThreadPoolExecutor(CORES) as pool:
            table = spark.read.parquet(str(path)).select(*COLUMNS).cache()
            table.count()
            list(pool.map(lambda model: model.fit(table).userFactors.count(), models))
        return time.perf_counter() - start
    from implicit.als import AlternatingLeastSquares

    how = {"iterations": 10, "num_threads": CORES, "random_state": 0, "alpha": 1.0}
    start = time.perf_counter()
    table = pd.read_parquet(path, columns=COLUMNS)
    column = np.unique(table["movieId"], return_inverse=True)[1]
    weights = (1 + ALPHA * table["rating"].to_numpy()).astype(np.float32)
    matrix = sparse.csr_matrix((weights, (table["userId"] - 1, column)))
    for cell in GRID:
        model = AlternatingLeastSquares(*cell, use_cg=library != "implicit", **how)
        model.fit(matrix, show_progress=False)
    return time.perf_counter() - start


def rivals(folder: Path, ratings: int, blocks: int) -> list[dict]:
    shape = synthetic.write(folder / "data", ratings, formats=("parquet",))
    facts, path = {"ratings": shape.ratings, "step": "grid"}, folder / "data" / "ratings.parquet"
    libraries = ("Spark", "implicit", "implicit (conjugate gradients)")
    return [facts | {"seconds": alone(grid, n, path, blocks), "library": n} for n in libraries]


def alone(function: Callable, *arguments: object) -> list[dict] | float:
    """Return what a function returns in a fresh process, with the environment as it is now."""
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
