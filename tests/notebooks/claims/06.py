# What notebook 06 claims beyond its saved outputs; run in its kernel after the last cell.

from research import stats

# Section 2: what the reader works out by hand is what the helpers compute.
listed = pd.DataFrame({"userId": 1, "rank": [1, 2, 3], "movieId": [7, 8, 9]})
two_of_three = pd.DataFrame({"userId": 1, "movieId": [7, 9]})
assert abs(metrics.score_table(listed, two_of_three, (3,))["NDCG@3"].iloc[0] - three[1]) < 1e-12
by_hand = stats.paired(pd.Series(d), pd.Series(np.zeros(3)))
assert (round(by_hand.p_value, 2), round(by_hand.shows, 3)) == (round(p, 2), round(shows, 3))

# Section 3: the prompt shows the candidates, all of them, and none that the user has rated.
rated = pd.concat([train, validation])[["userId", "movieId"]]
rated = set(rated.itertuples(index=False, name=None))
for user, (shown, _) in asking.items():
    assert sorted(shown) == sorted(offered["liked"][user])
    assert not any((user, movie) in rated for movie in shown)
assert question["oracle"].mean() >= max(scores.mean() for scores in question.values())
assert all(question["oracle"] + 1e-9 >= question["its own order"])

# Sections 4 and 5: no ranker passes the ceiling, and none changes what is among the twenty.
ratings_of = parts.known.groupby("userId").movieId.agg(set)
for name in RANKED:
    assert results[name, "its own order"].equals(retrieved[name])
    reached = results[name, "oracle"]["NDCG@10"].mean()
    assert abs(reached - len(able[name]) / len(truth)) < 1e-12
    for label in labels:
        if (name, label) in results:
            table = results[name, label]
            assert (table["Recall@20"] - retrieved[name]["Recall@20"]).abs().max() < 1e-9
            assert (table["NDCG@10"] <= results[name, "oracle"]["NDCG@10"] + 1e-9).all()
    for user, (shown, _) in requests[name, "LLM, history"].items():
        assert sorted(shown) == sorted(offered[name][user]) and truth[user] in shown
        assert truth[user] not in ratings_of[user]
assert results["transitions", "counts"].equals(retrieved["transitions"])

# Section 7: with all of time known the counts are those of section 4.
forever = np.full(len(met.users), np.inf)
assert np.allclose(sq.transitions_so_far(met, times, forever, chosen.transitions), counted)

if dataset.verified:
    assert (len(truth), len(items), len(interactions)) == (610, 3650, 90274)
    assert len(drawn) == 240 and set(drawn) <= set(asking)
    assert all(not got.failures for got in asked.values())
    assert {name: len(able[name]) for name in RANKED} == {
        "transitions": 126, "implicit ALS": 86, "explicit ALS": 8}  # fmt: skip
    mean = {row: round(scores.mean(), 3) for row, scores in at_10.items()}
    assert (mean[strong], mean[strong_llm]) == (0.085, 0.094)
    assert (mean[weak], mean[weak_llm]) == (0.037, 0.059)
    assert (mean["implicit ALS: counts"], mean[past]) == (0.062, 0.070)
    assert round(halvings["transitions"].mean(), 3) == 0.091
    assert at_10[weak_llm][groups["later"]].mean() > at_10[strong][groups["later"]].mean()
    page = ev.compare_all(at_10, [(strong, weak_llm)], groups)
    assert page.verdict.str.startswith("better").tolist() == [True, False]
    assert retrieved["explicit ALS"]["NDCG@10"].mean() < retrieved["popularity"]["NDCG@10"].mean()
    assert (gap == 0).sum() == 91 and [len(users) for users in groups.values()] == [442, 168]
    assert round(price.loc["LLM, profile", "million out"], 2) == 0.37
