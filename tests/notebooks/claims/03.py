"""What the text of notebook 03 says beyond its outputs, on any data and on the real release."""

from research import stats

# One user: what Spark says is what the matrices say, and nothing seen is recommended.
user = np.searchsorted(factors.users, USER_ID)
mine = scores[user, np.searchsorted(factors.movies, top.movieId)]
assert np.allclose(mine, top.prediction, atol=1e-3)
assert top.prediction.is_monotonic_decreasing
assert n_left == len(catalogue) - (known.userId == USER_ID).sum()
assert everyone.merge(known, on=["userId", "movieId"]).empty
for found in finals.values():
    assert found.merge(known, on=["userId", "movieId"]).empty
checked = dataset.verified or dataset.simulated
assert same == len(top) or not checked  # elsewhere, scores may tie
# The metric written out is the one of the helpers, and so is the interval.
wanted = relevant_in(validation_rows).groupby("userId").movieId.apply(set)
ranked = lists["most rated"].groupby("userId").movieId.apply(list)
by_hand = np.array([ndcg(ranked.get(one, []), movies_) for one, movies_ in wanted.items()])
assert np.allclose(by_hand, ndcgs["most rated"])
boot = stats.bootstrap_interval(by_hand)
assert np.allclose([boot.mean, boot.low, boot.high], list(interval(by_hand).values()))
if checked:
    assert error < spread, "ALS is no better than the mean"
    assert table.loc["plain ALS", "mean"] < table.loc[list(supporting)[1], "mean"]
    assert table.loc["plain ALS", "mean"] < table.loc["implicit ALS", "mean"]
    assert covered < 0.5 and np.median(cosines) > 0.99
if dataset.verified and SEED == 0:
    assert abs(error - best.validation_rmse) < 1e-4
    assert one_by_one / in_bulk > 50
    assert chosen == (32, 0.5) == (IMPLICIT_RANKS[-1], ALPHAS[0])
    assert table["mean"].idxmax() == "implicit ALS"
    assert table.loc["implicit ALS", "low"] > table.loc["most rated", "high"]
    assert table.loc["most rated", "mean"] > 10 * table.loc["plain ALS", "mean"]
    assert table.coverage.drop("random").idxmax() == "implicit ALS"
    assert all(rivals[f"rank {n}, alpha 0.5"]["high"] < 0 for n in (8, 16))
    wider = [row for name, row in rivals.items() if name.startswith("rank 64")]
    assert wider and all(row["low"] < 0 < row["high"] for row in wider)
    assert all(abs(row["mean"]) < row["could show"] for row in wider)
    assert lead["implicit ALS"]["low"] > 0 > lead["support >= 50"]["high"]
if dataset.simulated and parameters == (10, 0, [8, 16, 32], [0.5, 1.0, 5.0]):
    assert chosen == (8, 0.5)  # as in tests/conftest.py
