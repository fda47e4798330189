# What notebook 02 says of its models; run in its kernel after the last cell.
assert len(grid.table) == len(RANKS) * len(REGS) and np.isfinite(grid.table.validation_rmse).all()
assert abs(best_als["validation"] - grid.table.validation_rmse.min()) < 1e-4
assert 0 <= n_kept <= n_all == sizes[1]
kept_errors = result["warm_rows"]
if dataset.verified or dataset.simulated:
    assert best_als["validation"] < mean_rmse, "ALS is no better than the mean"
    assert best_als["train"] < best_als["validation"]
    assert abs(best_als["validation"] - best_als["test"]) < 0.05
    assert kept_errors["plain ALS"] < kept_errors["global mean"]
    assert kept_errors["bias baseline"] < kept_errors["global mean"]
    assert result.all_rows[best] < result.all_rows["bias baseline"]
if dataset.verified and as_published:
    curve_now = curve["validation_rmse"]
    assert by_rank < 0.003 < 0.25 < by_reg and grid.reg == 0.2
    assert ends.validation[0.8] > mean_rmse > ends.validation[0.4]
    assert curve_now[5] - curve_now.min() < 0.01 < curve_now[2] - curve_now[5]
    assert 0.05 < (n_all - n_kept) / n_all < 0.06 and 0.98 < hard < 1.0
    assert round(removed["bias baseline"], 2) == 0.30 and round(removed["plain ALS"], 2) == 0.25
    assert kept_errors[best] < kept_errors["bias baseline"] < kept_errors["plain ALS"]
    assert result.test_all_rows[best] < result.test_all_rows["bias baseline"]
    assert (paired["mean difference"] < 0).all()
    ahead = paired["mean difference"].abs() > paired["would have shown"]
    assert ahead.tolist() == [True, False]  # the second is at the edge of what can be shown
    assert damped[5] < min(damped[0], damped[50]) and np.ptp(by_seed) > 0.001
if dataset.simulated and as_published:
    assert (grid.rank, grid.reg) == (6, 0.2)  # as in tests/conftest.py
