"""One job for one process: data, Parquet, split, ALS, candidates for all users; prints JSON.

``python cluster_client.py FOLDER [--announce]``. Where it runs is up to SPARK_MASTER or
SPARK_REMOTE. With ``--announce`` it prints RUNNING in the middle of ALS, while tasks run.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import threading
import time
from pathlib import Path

from pyspark.ml.evaluation import RegressionEvaluator

from helpers import als, data
from helpers.spark import get_spark
from research import parquet, spark_lists

BUCKETS = 2
STAGES = 8


def executors(spark) -> int:
    found = spark.sparkContext._jsc.sc().statusTracker().getExecutorInfos()
    return len(found) - 1  # the driver is one of them


def announce(spark) -> None:
    status, seen = spark.sparkContext.statusTracker(), set()
    while len(seen) < STAGES:
        for stage in status.getActiveStageIds():
            info = status.getStageInfo(stage)
            if info and info.numActiveTasks:
                seen.add(stage)
        time.sleep(0.005)
    print("RUNNING on", executors(spark), flush=True)


def main(folder: Path, watched: bool) -> None:
    spark = get_spark()
    parquet.save_tables(data.load(spark, data.locate()), folder / "movielens", buckets=BUCKETS)
    ratings = parquet.load_tables(spark, folder / "movielens", buckets=BUCKETS).ratings
    parts = data.split(ratings)
    if watched:
        threading.Thread(target=announce, args=(spark,), daemon=True).start()
    model = als.make_als(6, 0.1, max_iter=6, blocks=2).fit(parts[0])
    evaluator = RegressionEvaluator(labelCol="rating")
    lists = spark_lists.recommend_all(model, parts[0], ratings, 20, buckets=BUCKETS)
    saved = spark_lists.save_lists(lists, folder / "lists", buckets=BUCKETS)
    stored = parquet.read_table(
        spark, folder / "lists", "candidates", spark_lists.LISTS_SCHEMA, buckets=BUCKETS
    )
    table = stored.toPandas()
    table.sort_values(["userId", "rank"]).to_csv(folder / "lists.csv", index=False)
    found = {
        "split": [part.count() for part in parts],
        "rmse": evaluator.evaluate(model.transform(parts[1]).dropna()),
        "rows": saved.rows["candidates"],
        "remote": type(spark).__module__.startswith("pyspark.sql.connect"),
    }
    if not found["remote"]:
        found["master"] = spark.sparkContext.master
        found["executors"] = executors(spark)
    print(json.dumps(found), flush=True)
    spark.stop()


if __name__ == "__main__":
    faulthandler.dump_traceback_later(440, exit=True)  # rather than hang a test run
    main(Path(sys.argv[1]), "--announce" in sys.argv)
