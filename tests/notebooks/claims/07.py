# What notebook 07 claims beyond its saved outputs; run in its kernel after the last cell.

# Section 2: rounds and steps are the same recurrence, with the same gradient.
one, two = (x[:2, :30].clone().requires_grad_() for _ in range(2))
scan_by_doubling(decay, one).abs().sum().backward()
sequence_models.sequential_scan(decay, two).abs().sum().backward()
assert (one.grad - two.grad).abs().max() < 1e-3

# Section 3: no decay can leave the circle, and padding on the right changes nothing before it.
assert all((block.nu.exp().neg().exp() < 1).all() for block in network.blocks)
with torch.inference_mode():
    short = network(torch.tensor([[3, 5, 2]]))
    longer = network(torch.tensor([[3, 5, 2, 0, 0]]))
assert torch.allclose(short, longer[:, :3], atol=1e-4)
assert len(curve) > 0 and np.mean(curve[-10:]) < curve[0]

if dataset.verified:
    assert (users, len(known.items)) == (610, 3650)
    # Section 6: the committed weights give the recorded ranks of seed 0.
    again = neural.ranks_on_test(lrurec, protocol)
    first = recorded[(recorded.system == "lrurec") & (recorded.seed == 0)]
    both = again.merge(first, on="userId")
    assert ((both.rank_x - both.rank_y).abs() <= 1).mean() > 0.99
    assert recorded.groupby("system").seed.nunique().eq(3).all()
    family = stats.family(pairs)
    assert set(family.index[family.verdict == "better"]) == {
        f"LRURec - {name}" for name in ("SASRec", "NARM", "BERT4Rec")
    }
    outside = {name for name in PUBLISHED if "no" in table.loc[name].iloc[[2, 5]].tolist()}
    assert outside == {"NARM", "BERT4Rec"}
    assert seeds.loc["LRURec"].idxmax() == "seed 2"
