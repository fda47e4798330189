# What notebook 14 claims beyond its saved outputs; run in its kernel after the last cell.

assert complete and len(again) == 3 * len(AGAIN)
assert opened == 1
assert same > 0.999
assert cost.loc["batch, half price"].sum() * 2 == cost.loc["one by one"].sum()
assert cost.loc["prompt cache, 90 % off"].sum() > 0.9 * cost.loc["one by one"].sum()
assert (grid_s["Spark"] > grid_s["implicit"]).all()
if server:
    assert len(sources) == len(some) and int(asked_twice.sum()) == 0
    assert sum(sources == "store") >= len(first)
