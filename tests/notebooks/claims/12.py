# What notebook 12 claims beyond its saved outputs; run in its kernel after the last cell.

# Section 2: folding in solves the least-squares problem that Spark solves.
assert agreement > 0.99
assert not set(newcomers) & set(others.userId)
for user in newcomers[:10]:
    shut = set(mine[user].movieId.head(10))
    assert all(not shut & set(order) for order in orders_of(user, 5).values())
    later_days = right[user]["later days"]
    assert not shut & set(later_days) and len(later_days) >= 5
    for shots in (1, 4):
        assert len(examples_for(user, shots)) <= shots
if dataset.verified:
    assert leads["later days"].verdict["near - popularity, dated"].startswith("not shown")
    worse = ["ALS, folded in - popularity, dated", "transition counts - popularity, dated"]
    assert (leads["later days"].verdict[worse] == "worse").all()
    shown = new_family.verdict == "better"
    assert shown.tolist() == [True, True, True, False]
    found_new = per_user.groupby(["system", "kept"]).mean().unstack("kept")
    assert found_new.loc["near, with popularity"].max() < 0.01 < found_new.loc["near"].min()
    # Section 2, the LLM: one example does harm, all else is not shown.
    assert shots_family.index[shots_family.verdict == "worse"].tolist() == [
        "LLM, 1 example, 5 known - LLM, 5 known"
    ]
    assert shots_family.verdict.str.startswith("not shown").sum() == 4
    # Section 4: the line cited matters more than a similar one, and than nothing.
    assert (
        len(complete) == 60
        and complete["the line cited"].mean() > 3 * complete.iloc[:, 1:].mean().max()
    )
