"""The course's ways beside plain ones: each bench returns (name, ours, baseline) of bench.csv."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import torch
from pyspark.ml.recommendation import ALS
from pyspark.sql import functions as F  # noqa: N812
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from helpers import als, candidates, data
from helpers.replies import LocalStore
from helpers.settings import Settings
from helpers.spark import close_spark, get_spark
from research import neural, scale
from research import verbalizer_torch as vt
from research.protocol import Protocol
from research.sequence_models import Config, Network
from research.standin import standin

Comparison = tuple[str, float, float]
RANKS, REGS = (6, 8, 10, 12), (0.05, 0.1, 0.2, 0.4, 0.8)
USERS_IN_SPARK = 12
AT_ONCE, ONE_BY_ONE = 480, 16  # users
TITLE_TOKENS = 7  # the median MovieLens title, in tokens of the packaged embedding model


def seconds(way: Callable[..., object], *arguments: object) -> float:
    """Return how long a way takes."""
    start = perf_counter()
    way(*arguments)
    return perf_counter() - start


def article_loop(session, dataset: data.Dataset, ranks=RANKS) -> None:
    """Search as the article does: Spark's defaults, ten blocks, no cache, one fit at a time."""
    for name, value in (("shuffle.partitions", "200"), ("adaptive.enabled", "true")):
        session.conf.set(f"spark.sql.{name}", value)
    text = session.read.csv(str(dataset.path / "ratings.csv"), header=True)
    columns = {"userId": "int", "movieId": "int", "rating": "float"}
    ratings = text.select(*(F.col(name).cast(kind) for name, kind in columns.items()))
    train, validation, _ = ratings.randomSplit([0.6, 0.2, 0.2], seed=0)
    error = F.col("rating") - F.col("prediction")
    for rank in ranks:
        for reg in REGS:
            model = ALS(
                rank=rank, maxIter=10, seed=0, regParam=reg, userCol="userId", itemCol="movieId",
                ratingCol="rating", coldStartStrategy="drop",
            ).fit(train)  # fmt: skip
            model.transform(validation).agg(F.avg(error * error)).first()


def bench_grid(dataset: data.Dataset) -> list[Comparison]:
    """Twenty fits on one cached split, side by side, beside the article's loop."""
    session = get_spark()

    def ours(ranks=RANKS) -> None:
        train, validation, test = data.split(data.load(session, dataset).ratings)
        als.grid_search(train, validation, test, ranks=ranks, regs=REGS)
        for table in (train, validation, test):
            table.unpersist()

    ours(RANKS[:1])  # warms the JVM
    mine = seconds(ours)  # before the article's loop, which changes the session's settings
    theirs = seconds(article_loop, session, dataset)
    close_spark(session)
    return [("grid search, beside the article's loop", mine, theirs)]


def bench_candidates(dataset: data.Dataset) -> list[Comparison]:
    """The best ten for all users at once, beside one user after another.

    In Spark it is what notebook 03 writes out: the model scores what a user has not rated.
    """
    session = get_spark()
    tables = data.load(session, dataset)
    ratings, movies = tables.ratings.cache(), tables.movies.select("movieId").cache()
    train = data.split(ratings)[0].cache()
    model = als.make_als(10, 0.2).fit(train)
    recommender = candidates.Recommender(als.factors(model), train.toPandas(), ratings.toPandas())
    users = sorted(row.userId for row in train.select("userId").distinct().collect())

    def in_spark(some: list[int]) -> None:
        for user in some:
            rated = ratings.where(F.col("userId") == user).select("movieId")
            unseen = movies.join(rated, "movieId", "left_anti").withColumn("userId", F.lit(user))
            model.transform(unseen).orderBy(F.desc("prediction"), "movieId").limit(10).collect()

    def in_arrays() -> None:
        for user in users:
            recommender.recommend([user], 10)

    in_spark(users[:1])  # warms the JVM
    spark = seconds(in_spark, users[:USERS_IN_SPARK]) * 1000 / USERS_IN_SPARK
    arrays = seconds(in_arrays) * 1000 / len(users)
    ours = seconds(recommender.recommend, None, 10) * 1000 / len(users)
    close_spark(session)
    return [
        ("candidates, beside Spark user by user", ours, spark),
        ("candidates, beside the same arrays user by user", ours, arrays),
    ]


def bench_llm(_dataset: data.Dataset) -> list[Comparison]:
    """Sixteen requests at a time beside one by one; a stand-in answers after 200 ms."""

    def users(count: int) -> Iterator[scale.ToRank]:
        for user in range(count):
            prompt = f"user {user}\n<candidates>\nA | one\nB | two\nC | three"
            yield scale.ToRank(user, [10, 20, 30], [{"role": "user", "content": prompt}])

    def rank(count: int, concurrency: int) -> None:
        with LocalStore(Path(folder) / f"replies_{concurrency}") as store:
            options = {"store": store, "concurrency": concurrency, "progress": False}
            jobs = scale.rank_users(users(count), settings, **options)
            assert all(user.source == "live" for user in jobs)

    with standin(0.2) as server, tempfile.TemporaryDirectory() as folder:
        limits = {"LLM_MODEL": "served", "LLM_MAX_TOKENS": "100000000"}
        settings = Settings.from_env({"OPENAI_BASE_URL": server.url, **limits})
        theirs = seconds(rank, ONE_BY_ONE, 1) * 1000 / ONE_BY_ONE
        ours = seconds(rank, AT_ONCE, 16) * 1000 / AT_ONCE
    return [("LLM requests, 16 at a time beside one by one", ours, theirs)]


def bench_one_token(dataset: data.Dataset) -> list[Comparison]:
    """A ranking read from one token, beside the list of titles that the same model would write."""
    torch.set_num_threads(1)  # then the clock is the processor time of this process
    ranker = vt.small_ranker(sorted(set(data.load_pandas(dataset, "movies")["title"])))
    (row,) = vt.efficiency(ranker, (TITLE_TOKENS,), repeats=9).to_dict("records")
    return [
        ("one token, beside a generated list", row["one_pass_s"], row["list_s"]),
        ("one token, output tokens beside the list's", 1, row["output_tokens"]),
    ]


def step_by_step_loss(network: Network, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return LRURec's loss from a cell that reads one item of each window at a time.

    h = decay * h + x, as recurrent networks are written first; padding is read, but not scored.
    """
    missing = network.config.length - inputs.shape[1]
    inputs, targets = pad(inputs, (0, missing)), pad(targets, (0, missing))
    states, total = [torch.zeros(())] * len(network.blocks), torch.zeros(())
    for item, following in zip(inputs.unbind(1), targets.unbind(1), strict=True):
        x = network.drop(network.first_norm(network.embed(item)))
        for place, block in enumerate(network.blocks):
            unit = block.unit
            enters = unit.into(x) * torch.exp(unit.gamma_log).repeat_interleave(2)
            enters = torch.view_as_complex(enters.unflatten(1, (-1, 2)))
            states[place] = unit.decay() * states[place] + enters
            leaves = unit.out(torch.view_as_real(states[place]).flatten(1))
            x = block.norms[0](x + block.drop(leaves))
            x = block.norms[1](x + block.feed_forward(x))
        logits = network.scores(x)
        total = total + cross_entropy(logits, following - 1, ignore_index=-1, reduction="sum")
    return total / (targets > 0).sum()


def bench_lru(dataset: data.Dataset) -> list[Comparison]:
    """An epoch of LRURec beside the step-by-step recurrence, by turns."""
    seen, config = Protocol.of(data.load_pandas(dataset, "ratings")).seen, Config.of("lrurec")
    histories = neural.histories(seen)
    parts = [part for history in histories for part in neural.windows(history, config.length)]
    batches, ways = list(neural.batches(parts, config, 0, 0)), (neural.loss_of, step_by_step_loss)
    network = Network(config, seen.items).eval()  # without dropout both are the same mathematics
    torch.testing.assert_close(*(loss_of(network, *batches[0]) for loss_of in ways))
    optimizer = torch.optim.AdamW(network.train().parameters(), fused=True)

    def step(loss_of: Callable[..., Tensor], batch: tuple[Tensor, Tensor]) -> None:
        optimizer.zero_grad()
        loss_of(network, *batch).backward()
        optimizer.step()

    step(ways[0], batches[0])  # the first step is slower
    times = [[seconds(step, loss_of, batch) for loss_of in ways] for batch in batches]
    ours, theirs = map(sum, zip(*times, strict=True))
    return [("LRURec epoch, beside item by item", ours, theirs)]
