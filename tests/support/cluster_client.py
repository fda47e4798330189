"""One job for one process: data, Parquet, split, ALS, candidates for all users; prints JSON.

``python cluster_client.py FOLDER [--announce]``. Where it runs is up to SPARK_MASTER or
SPARK_REMOTE. With ``--announce`` it prints RUNNING in the middle of ALS, while tasks run.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path

from helpers import als, candidates, data
from helpers.settings import Settings
from helpers.spark import get_spark
from research import parquet, spark_lists, splits

BUCKETS = 2
STAGES = 8


def where(frames):
    """Give what the executor's Python was started with."""
    for frame in frames:
        yield frame.assign(mark=os.environ.get("COURSE_MARK", ""))


def announce(spark) -> None:
    status, seen = spark.sparkContext.statusTracker(), set()
    while len(seen) < STAGES:
        busy = [stage for stage in status.getActiveStageIds() if _tasks(status, stage)]
        seen |= set(busy)
        time.sleep(0.01)
    while not any(_tasks(status, stage) for stage in status.getActiveStageIds()):
        time.sleep(0.001)
    print("RUNNING", flush=True)


def _tasks(status, stage: int) -> int:
    info = status.getStageInfo(stage)
    return info.numActiveTasks if info else 0


def main(folder: Path, watched: bool) -> None:
    started = time.perf_counter()
    settings = Settings.from_env()
    spark = get_spark(settings)
    up = time.perf_counter() - started
    parquet.save_tables(data.load(spark, data.locate()), folder / "movielens", buckets=BUCKETS)
    tables = parquet.load_tables(spark, folder / "movielens", buckets=BUCKETS)
    by_hash = splits.split_by_hash(tables.ratings)
    train, validation, test = data.split(tables.ratings)
    if watched:
        threading.Thread(target=announce, args=(spark,), daemon=True).start()
    grid = als.grid_search(
        train, validation, test, ranks=(6,), regs=(0.1, 0.3), max_iter=6, blocks=2
    )
    # Its training rows come from several files: what reaches a block first is added first.
    spread = als.make_als(6, 0.1, max_iter=3, blocks=2).fit(by_hash[0])
    remedy = candidates.Remedy("both", min_support=5, shrinkage=10.0)
    lists = spark_lists.recommend_all(
        grid.model, train, tables.ratings, 20, remedy, buckets=BUCKETS
    )
    version = spark_lists.save_lists(lists, folder / "lists", buckets=BUCKETS)
    saved = spark_lists.read_lists(spark, folder / "lists").toPandas()
    saved.sort_values(["userId", "rank"]).to_csv(folder / "lists.csv", index=False)
    mark = spark.range(1).mapInPandas(where, "id long, mark string").first()["mark"]
    found = {
        "split": [table.count() for table in (train, validation, test)],
        "by_hash": [table.count() for table in by_hash],
        "grid": grid.table.to_dict("list"),
        "rmse": grid.rmse | {"by_hash": als.rmse(spread.transform(by_hash[1]))},
        "rows": version.rows["candidates"],
        "mark": mark,
        "remote": type(spark).__module__.startswith("pyspark.sql.connect"),
        "seconds": [round(up, 1), round(time.perf_counter() - started, 1)],
    }
    if not found["remote"]:
        found["master"] = spark.sparkContext.master
        executors = spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()
        found["executors"] = len(executors) - 1  # the driver is one of them
    print(json.dumps(found), flush=True)
    spark.stop()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(240, exit=True)  # rather than hang a test run
    main(Path(sys.argv[1]), "--announce" in sys.argv)
