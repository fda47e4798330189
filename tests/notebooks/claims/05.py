"""What notebook 05 claims beyond its saved outputs; runs in its kernel after the last cell."""

# Are the models sound? Ten titles look plausible whatever a model has learned, so look at ratings
# that neither was fitted on.
fitted_on = pd.MultiIndex.from_frame(seen[["userId", "movieId"]])
unseen = ratings[~pd.MultiIndex.from_frame(ratings[["userId", "movieId"]]).isin(fitted_on)]


def scores_of_unseen(factors, in_percent=False):
    scores = pd.DataFrame(
        factors.user_factors @ factors.movie_factors.T, factors.users, factors.movies
    )
    scores = 100 * scores.rank(axis=1, pct=True) if in_percent else scores
    rows = unseen[unseen.userId.isin(scores.index) & unseen.movieId.isin(scores.columns)]
    place = scores.index.get_indexer(rows.userId), scores.columns.get_indexer(rows.movieId)
    return rows.assign(score=scores.to_numpy()[place])


known = scores_of_unseen(stars)
low, high = (known.score[rows].mean() for rows in (known.rating <= 2.5, known.rating >= 4))
assert high > low + 0.5, "explicit ALS predicts no more stars where users gave more"
above = scores_of_unseen(interest, in_percent=True).score.mean()
assert above > 60, "implicit ALS does not place what a user rated above the rest (50 is chance)"

# The prompts are those that were recorded, and what is read is a permutation.
for profile_shown, listed, messages in (
    (profile_text, table, improved),
    (profile_text, ten, with_profile),
    ("USER_INTEREST_PROFILE", ten, with_name),
):
    labels = ranking.letters(len(listed))
    assert messages == prompts.ranking_prompt(profile_shown, labels, listed)
assert len({v[1]["content"] for v in variants.values()} | {improved[1]["content"]}) == 5
assert sorted(result.order) == list(range(len(table)))
assert repair([2], 3, fallback=[0, 1, 2])[0] == [0, 1, 2]
assert (
    repair([None, 1, 1, 0], 3, [0, 1, 2])[0]
    == ranking.read_ranking(bad["unknown and repeated"], 3).order
)
assert positions["weight 0.0"].tolist() == before and positions["weight 1.0"].tolist() == after
assert final.movieId.is_unique and not set(final.movieId) & set(rated.movieId)
assert set(final.movieId) == set(second.movieId)
assert moved == 0 or not result.failed

if dataset.verified and (USER_ID, TOP_K, SEED) == (12, 10, 0):
    saved = data.read_result("03_candidates", dataset).groupby("list").movieId.apply(list)
    assert first.movieId.tolist() == saved["plain ALS"], "not the candidates of notebook 03"
    assert second.movieId.tolist() == saved["implicit ALS"], "not the candidates of notebook 03"
    assert (first.ratings == 1).sum() == 5 and first.ratings.max() == 8
    assert second.ratings.min() >= 24
if as_saved:
    far = climbs[climbs.abs() >= 3]
    assert far.to_dict() == {
        "Beauty and the Beast (1991)": -5,
        "Aladdin (1992)": -3,
        "Sixteen Candles (1984)": 5,
    }
    assert len(decades) == sum(decades) == 10
