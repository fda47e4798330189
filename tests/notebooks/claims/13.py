# What notebook 13 claims beyond its saved outputs; run in its kernel after the last cell.

# Section 2: every candidate stands in every place once, and dice are even.
square = np.array(rotated(list(range(20)), 20))
assert all(len(set(line)) == 20 for line in (*square, *square.T))
assert evenness(np.full(20, 6))[1] == 1 and evenness(np.eye(20, dtype=int)[0] * 126)[1] < 0.001
assert borda([[1, 2, 3], [1, 3, 2]])[0] == 1

# Section 3: the slow Gini is the fast one.
exposed = bias.exposure(lists["EASE"], items)
assert abs(gini(exposed[:500]) - bias.gini(exposed[:500])) < 1e-9

# Section 5: forty different sentences of each kind.
assert all(len(set(lines)) == SENTENCES for lines in KINDS.values())
assert overlap(frozenset("abc"), frozenset("bcd")) == 2 / NAMED

if dataset.verified and recorded:
    best = popular.loc[["blend", "transitions"]]
    rest = popular.drop(["random", "blend", "transitions"])
    assert best["NDCG@10"].min() > rest["NDCG@10"].max() and best.Gini.max() < rest.Gini.min()
    assert (costs.verdict == "worse").tolist() == [False, False, True]
    assert (fame.verdict == "better").all()
    assert worse.index[worse.verdict == "worse"].tolist() == ["ratings: transitions"]
    # A was first for 118 and 126 of the users; no two ways of asking the larger LLM are told apart.
    assert firsts["SmolLM2, mixed"][0] == 118
    assert firsts["SmolLM2, mixed, with the sentence"][0] == 126
    large = positions[positions.index.str.startswith("recorded LLM")]
    assert len(large) == 5 and large.verdict.str.startswith("not shown").all()
    assert (sentence_family.verdict == "better").all() and len(differences) == 160
    assert with_history.verdict.str.startswith("not shown").all() and len(beside) == 40
    assert with_history["mean"].iloc[0] < own.mean() / 10
