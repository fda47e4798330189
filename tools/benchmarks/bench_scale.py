"""`make bench-scale`: 100 thousand to 32 million ratings on this machine, and where Spark loses.

Each size is a process of its own, so that no run inherits another's warm JVM or memory. It makes
the data (not timed), then times three steps: `load` reads ratings.csv and writes Parquet by user,
`fit` is one ALS fit from that Parquet, `top 100` writes the hundred best unseen movies of every
user to Parquet. Start-up of Python and of the JVM is a row of its own. Memory is that of the
process and all its descendants (the JVM, Python workers), the proportional set size where the
system tells it.

The exponent is the slope of log(seconds) over log(ratings), by least squares, from 1 million
ratings on: 1 means that twice the ratings take twice the time.

`--rivals` compares Spark's ALS with the library implicit on the same small grid instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

SIZES = (100_000, 1_000_000, 10_000_000, 32_000_000)
RIVAL_SIZES = (100_000, 1_000_000, 10_000_000)
TARGET = 1.1
FIRST_OF_SLOPE = 1_000_000
RANK, REG, ITERATIONS, TOP = 10, 0.1, 10, 100
GRID = [(rank, reg) for rank in (8, 16) for reg in (0.05, 0.2)]
ALPHA = 10.0
HELD_OUT_USERS = 2000


def spark_settings(ratings: int) -> dict[str, str]:
    """Return the two settings that grow with the data: a partition for each 2 million ratings."""
    memory = 1 if ratings < 1_000_000 else 2 if ratings < 5_000_000 else 4
    memory = 8 if ratings > 20_000_000 else memory
    return {
        "SPARK_PARTITIONS": str(max(2, round(ratings / 2_000_000))),
        "SPARK_DRIVER_MEMORY": f"{memory}g",
        "SPARK_MASTER": f"local[{cores()}]",
    }


def cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Say what the numbers were measured on."""
    memory = psutil.virtual_memory().total / 2**30
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return f"{cores()} cores ({name}), {memory:.0f} GiB, {platform.system()}".replace(",", ";")


# --- one size, in its own process -----------------------------------------------------------------


def tree() -> list[psutil.Process]:
    """Return this process and its descendants."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def memory_now() -> float:
    """Return the MiB that this process and its descendants hold."""
    total = 0.0
    for one in tree():
        try:
            if one.name() == "java" and one.parent() and one.cmdline() == one.parent().cmdline():
                continue  # forked and not yet another program: it borrows its parent's memory
            memory = one.memory_full_info()
            total += getattr(memory, "pss", memory.rss) / 2**20
        except (psutil.Error, AttributeError):
            continue
    return total


def cpu_now() -> float:
    """Return the processor seconds that this process and its descendants have used."""
    total = 0.0
    for one in tree():
        try:
            used = one.cpu_times()
            total += used.user + used.system
        except psutil.Error:
            continue
    return total


class Clock:
    """Measures named steps: wall seconds, processor seconds, and the peak of memory in MiB."""

    def __init__(self) -> None:
        """Start the thread that samples memory four times a second."""
        self.rows: list[dict[str, float | str]] = []
        self._peak, self._end = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._end.wait(0.25):
            self._peak = max(self._peak, memory_now())

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what is inside."""
        self._peak = memory_now()
        wall, cpu = time.perf_counter(), cpu_now()
        yield
        row = {"seconds": time.perf_counter() - wall, "cpu_s": cpu_now() - cpu}
        self.rows.append({"step": name, **row, "peak_mb": max(self._peak, memory_now())})

    def close(self) -> list[dict[str, float | str]]:
        """End the thread and return the rows."""
        self._end.set()
        self._thread.join()
        return self.rows


def run_one(ratings: int, folder: Path) -> list[dict]:
    """Make the data and time the steps; the settings come from the environment."""
    from research import synthetic

    shape = synthetic.write(folder / "data", ratings, formats=("csv",))
    clock = Clock()
    with clock.step("start"):
        from helpers import als, data
        from helpers.spark import get_spark
        from research import parquet, spark_lists

        spark = get_spark()
        blocks = int(spark.conf.get("spark.sql.shuffle.partitions"))
    dataset = data.Dataset(folder / "data", "synthetic", "bench", True, False)
    stored, lists = folder / "stored", folder / "lists"
    with clock.step("load"):
        parquet.save({"ratings": data.load(spark, dataset).ratings}, stored, buckets=blocks)
    with clock.step("fit"):
        table = parquet.load(spark, stored, "ratings", data.SCHEMAS["ratings"]).select(
            "userId", "movieId", "rating"
        )
        model = als.make_als(RANK, REG, max_iter=ITERATIONS, blocks=blocks).fit(table)
        users, movies = model.userFactors.count(), model.itemFactors.count()
    with clock.step("top 100"):
        found = spark_lists.recommend_all(model, table, table, TOP, buckets=blocks)
        listed = spark_lists.save_lists(found, lists, buckets=blocks).rows["candidates"]
    rows = clock.close()
    spark.stop()
    size = {"ratings": shape.ratings, "users": users, "movies": movies, "listed": listed}
    return [size | {"partitions": blocks} | row for row in rows]


# --- all sizes ------------------------------------------------------------------------------------


def in_process(action: str, ratings: int, settings: dict[str, str]) -> list[dict]:
    """Run one size in a fresh process and return its rows."""
    folder = Path(tempfile.mkdtemp(prefix="bench-scale-"))
    command = [sys.executable, __file__, "--one", action, str(ratings), str(folder)]
    environment = os.environ | settings | {"SPARK_LOCAL_DIRS": str(folder / "spark")}
    environment.pop("SPARK_REMOTE", None)
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f"{action} with {ratings:,} ratings ended with {done.returncode}.")
        return json.loads(done.stdout.splitlines()[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def exponent(table: pd.DataFrame, column: str = "seconds") -> float:
    """Return the slope of log(column) over log(ratings), summed over the steps of each size."""
    steps = table.loc[(table["step"] != "start") & (table["ratings"] >= FIRST_OF_SLOPE)]
    total = steps.groupby("ratings")[column].sum()
    return float(np.polyfit(np.log(total.index.to_numpy(float)), np.log(total.to_numpy()), 1)[0])


def scale(sizes: list[int]) -> pd.DataFrame:
    """Run the sizes and return the table."""
    rows = []
    for ratings in sizes:
        settings = spark_settings(ratings)
        memory = settings["SPARK_DRIVER_MEMORY"]
        found = in_process("scale", ratings, settings)
        rows += [row | {"driver_memory": memory} for row in found]
        for row in found:
            print(
                f"{ratings:>11,} ratings  {row['step']:8} {row['seconds']:7.1f} s  "
                f"{row['cpu_s']:7.1f} s of processor  {row['peak_mb']:6.0f} MiB",
                flush=True,
            )
    table = pd.DataFrame(rows)
    table["us_per_rating"] = 1e6 * table["seconds"] / table["ratings"]
    return table


def missed(table: pd.DataFrame) -> int:
    """Print the exponents and return 1 if that of the seconds is above the target."""
    if (table["ratings"].unique() >= FIRST_OF_SLOPE).sum() < 2:
        return 0
    slope = exponent(table)
    print(f"exponent from 1 million ratings on: {slope:.2f} (target {TARGET} or less)")
    print(f"exponent of processor seconds: {exponent(table, 'cpu_s'):.2f}")
    return int(slope > TARGET)


# --- the same grid in another library -------------------------------------------------------------


def hold_out(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return all but the last rating of the first users (by number), and those last ratings."""
    last = table.groupby("userId", sort=True)["timestamp"].idxmax().head(HELD_OUT_USERS)
    return table.drop(last), table.loc[last]


def hit_rate(user_vectors: Callable, movie_vectors: np.ndarray, movies, train, test) -> float:
    """Return the share of held-out movies in the top ten of the unseen."""
    users = test["userId"].to_numpy()
    place = {movie: index for index, movie in enumerate(movies.tolist())}
    seen = train.loc[train["userId"].isin(users)].groupby("userId")["movieId"].agg(list)
    scores = (user_vectors(users) @ movie_vectors.T).astype(float)
    hits = 0
    for row, (user, wanted) in enumerate(zip(users, test["movieId"].to_numpy(), strict=True)):
        mine = scores[row]
        mine[[place[movie] for movie in seen[user]]] = -np.inf
        if wanted in place:
            hits += int((mine > mine[place[wanted]]).sum() < 10)
    return hits / len(users)


def popular_hit_rate(train: pd.DataFrame, test: pd.DataFrame) -> float:
    """Return the hit rate of the most rated unseen movies, the row that needs no model."""
    movies, counts = np.unique(train["movieId"].to_numpy(), return_counts=True)
    return hit_rate(lambda ids: np.ones((len(ids), 1)), counts[:, None], movies, train, test)


def run_spark_grid(folder: Path, ratings: int) -> list[dict]:
    """Fit the grid with Spark's implicit ALS."""
    clock = Clock()
    with clock.step("start"):
        from helpers import als
        from helpers.spark import get_spark

        spark = get_spark()
        blocks = int(spark.conf.get("spark.sql.shuffle.partitions"))
    with clock.step("grid"):
        path = str(folder / "train.parquet")
        table = spark.read.parquet(path).select("userId", "movieId", "rating").cache()
        table.count()

        def fit(rank: int, reg: float):
            # Weights of c = 1 + alpha * rating for all that was rated, as given to implicit.
            model = als.make_als(
                rank, reg, max_iter=ITERATIONS, blocks=blocks, implicit=True, alpha=ALPHA
            ).fit(table)
            model.userFactors.count()
            return model

        # Fits side by side, as in our own grid search: one alone leaves processors waiting.
        with ThreadPoolExecutor(cores()) as pool:
            models = list(pool.map(fit, *zip(*GRID, strict=True)))
    rows = clock.close()
    train, test = (pd.read_parquet(folder / f"{name}.parquet") for name in ("train", "test"))
    found = []
    for model in models:
        items = model.itemFactors.toPandas().sort_values("id")
        wanted = model.userFactors.where(model.userFactors.id.isin(test["userId"].tolist()))
        people = wanted.toPandas().set_index("id")["features"]
        found.append(
            hit_rate(
                lambda ids, people=people: np.vstack([people[one] for one in ids]),
                np.vstack(items["features"]), items["id"].to_numpy(), train, test,
            )
        )  # fmt: skip
    spark.stop()
    return [row | {"library": "Spark", "hit_rate": max(found)} for row in rows]


def run_implicit_grid(folder: Path, ratings: int, exact: bool) -> list[dict]:
    """Fit the grid with the library implicit, by the same exact solves or by its default."""
    clock = Clock()
    with clock.step("start"):
        from implicit.als import AlternatingLeastSquares
        from scipy import sparse
    models = []
    with clock.step("grid"):
        table = pd.read_parquet(folder / "train.parquet", columns=["userId", "movieId", "rating"])
        movies, column = np.unique(table["movieId"].to_numpy(), return_inverse=True)
        weight = (1 + ALPHA * table["rating"].to_numpy()).astype(np.float32)
        rows = table["userId"].to_numpy() - 1
        matrix = sparse.csr_matrix((weight, (rows, column)), shape=(rows.max() + 1, len(movies)))
        for rank, reg in GRID:
            model = AlternatingLeastSquares(
                factors=rank, regularization=reg, iterations=ITERATIONS, use_cg=not exact,
                num_threads=cores(), random_state=0, alpha=1.0,
            )  # fmt: skip
            model.fit(matrix, show_progress=False)
            models.append(model)
    measured = clock.close()
    train, test = (pd.read_parquet(folder / f"{name}.parquet") for name in ("train", "test"))
    best = max(
        hit_rate(
            lambda ids, model=model: model.user_factors[ids - 1],
            model.item_factors, movies, train, test,
        )
        for model in models
    )  # fmt: skip
    name = "implicit" if exact else "implicit (conjugate gradients)"
    return [row | {"library": name, "hit_rate": best} for row in measured]


def rivals(sizes: list[int]) -> pd.DataFrame:
    """Run the grid at each size in each library, every run in a process of its own."""
    from research import synthetic

    rows = []
    for ratings in sizes:
        folder = Path(tempfile.mkdtemp(prefix="bench-rivals-"))
        try:
            shape = synthetic.write(folder / "data", ratings, formats=("parquet",))
            train, test = hold_out(pd.read_parquet(folder / "data" / "ratings.parquet"))
            popularity = popular_hit_rate(train, test)
            train.to_parquet(folder / "train.parquet", index=False)
            test.to_parquet(folder / "test.parquet", index=False)
            tested = len(test)
            del train, test
            for action in ("spark", "exact", "gradients"):
                settings = spark_settings(ratings) | {
                    "BENCH_FOLDER": str(folder),
                    # implicit asks for this where OpenBLAS runs threads of its own.
                    "OPENBLAS_NUM_THREADS": "1",
                }
                found = in_process(action, ratings, settings)
                size = {"ratings": shape.ratings, "users": shape.users, "movies": shape.movies}
                size |= {"tested": tested, "popularity": popularity}
                rows += [size | row for row in found]
                for row in found:
                    print(
                        f"{ratings:>11,} ratings  {row['library']:30} {row['step']:6} "
                        f"{row['seconds']:7.1f} s  {row['cpu_s']:7.1f} s of processor  "
                        f"{row['peak_mb']:6.0f} MiB  hit rate {row['hit_rate']:.3f}",
                        flush=True,
                    )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return pd.DataFrame(rows)


def save(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write the table with machine and date, sizes measured before stay; return what is stored."""
    table = table.assign(machine=machine(), date=date.today().isoformat())
    if path.exists():
        old = pd.read_csv(path)
        table = pd.concat([old[~old["ratings"].isin(table["ratings"])], table])
    table = table.sort_values("ratings", kind="stable", ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.4f", lineterminator="\n")
    print(f"written: {path.name}")
    return table


def one(action: str, ratings: int, folder: Path) -> list[dict]:
    """Run what a process of its own was started for."""
    if action == "scale":
        return run_one(ratings, folder)
    shared = Path(os.environ["BENCH_FOLDER"])
    if action == "spark":
        return run_spark_grid(shared, ratings)
    return run_implicit_grid(shared, ratings, exact=action == "exact")


def main() -> int:
    """Run, save, and return 1 if the exponent is above the target."""
    from helpers.settings import Settings

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--rivals", action="store_true", help="compare with the library implicit")
    parser.add_argument("--sizes", type=int, nargs="+", help="only these numbers of ratings")
    parser.add_argument("--dry", action="store_true", help="save nothing")
    asked = parser.parse_args()
    if asked.one:
        rows = one(asked.one[0], int(asked.one[1]), Path(asked.one[2]))
        print(json.dumps(rows))
        return 0
    results = Settings.from_env().results_dir
    if asked.rivals:
        table, name = rivals(asked.sizes or list(RIVAL_SIZES)), "11_spark_loses.csv"
    else:
        table, name = scale(asked.sizes or list(SIZES)), "11_scale.csv"
    if not asked.dry:
        table = save(table, results / name)
    return 0 if asked.rivals else missed(table)


if __name__ == "__main__":
    sys.exit(main())
