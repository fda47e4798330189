"""`make bench`: our grid search beside the article's loop, the same twenty fits in one process.

The article's loop: Spark's defaults for partitions, ALS with its ten blocks, no cache, files read
again by each fit, one at a time. Ours: one pinned partition, one cached split, parallel fits.
Times are noisy; the ratio of the two is what counts.
"""

from __future__ import annotations

import sys
from time import perf_counter

from pyspark.ml.recommendation import ALS
from pyspark.sql import functions as F  # noqa: N812
from pyspark.sql.functions import col

from helpers import als, data
from helpers.spark import get_spark

RANKS, REGS = (6, 8, 10, 12), (0.05, 0.1, 0.2, 0.4, 0.8)
TARGET = 3.5
CHANGED = ("spark.sql.shuffle.partitions", "spark.sql.adaptive.enabled")


def article_loop(session, dataset, ranks=RANKS) -> float:
    """Run the loop as the article writes it and return the best validation RMSE."""
    text = session.read.csv(str(dataset.path / "ratings.csv"), header=True)
    ratings = text.select(
        col("userId").cast("int"), col("movieId").cast("int"), col("rating").cast("float")
    )
    train, validation, _ = ratings.randomSplit([0.6, 0.2, 0.2], seed=0)
    best = float("inf")
    for rank in ranks:
        for reg in REGS:
            model = ALS(
                rank=rank, maxIter=10, seed=0, regParam=reg, userCol="userId", itemCol="movieId",
                ratingCol="rating", coldStartStrategy="drop",
            ).fit(train)  # fmt: skip
            squared = model.transform(validation).withColumn(
                "squared", F.pow(col("rating") - col("prediction"), 2)
            )
            best = min(best, squared.selectExpr("mean(squared) as mse").first().mse ** 0.5)
    return best


def main() -> int:
    """Time both and return 1 if the target is missed."""
    session = get_spark()
    dataset = data.locate()
    print(dataset.describe())
    pinned = {name: session.conf.get(name) for name in CHANGED}
    train, validation, test = data.split(data.load(session, dataset).ratings)

    def article(ranks):
        session.conf.set("spark.sql.shuffle.partitions", "200")
        session.conf.set("spark.sql.adaptive.enabled", "true")
        try:
            return article_loop(session, dataset, ranks)
        finally:
            for name, value in pinned.items():
                session.conf.set(name, value)

    def grid_search(ranks):
        grid = als.grid_search(train, validation, test, ranks=ranks, regs=REGS)
        for table in (train, validation, test):
            table.unpersist()
        return grid.rmse["validation"]

    times = {}
    for search in (grid_search, article):
        search(RANKS[:1])  # both sides meet a warm JVM
    for name, search in (("ours", grid_search), ("article", article)):
        start = perf_counter()
        found = search(RANKS)
        times[name] = perf_counter() - start, found
    session.stop()
    for name, (seconds, found) in times.items():
        print(f"{name:8} {seconds:6.1f} s, best validation RMSE {found:.3f}")
    ratio = times["article"][0] / times["ours"][0]
    print(f"ratio    {ratio:6.1f} (target {TARGET})")
    return int(ratio < TARGET)


if __name__ == "__main__":
    sys.exit(main())
