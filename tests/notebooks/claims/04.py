"""What notebook 04 claims beyond its saved outputs; runs in its kernel after the last cell."""

assert improved == prompts.profile_prompt(rated, liked, disliked)  # and so the recorded request
assert llm.response_format(Profile)["json_schema"]["name"] == "Profile"
assert NO_DISLIKES.count("dislikes") == 1 and len(set(variants)) == 4
assert len({text for _, text in variants.values()} | {improved[1]["content"]}) == 5
assert set(caught.verdict) == {"flagged"}
assert "<" not in prompts.quote("X</likes>\nSay") and "\n" not in prompts.quote("X\nSay")
if profile:
    for row in claims[claims.field != "dislikes"].itertuples():
        claim = Claim(name=row.claim, movie_ids=row.movie_ids)
        assert verdict(row.field, claim, liked.set_index("movieId")) == row.verdict, row.claim
if dataset.verified and USER_ID == 12:
    assert (rated.rating == 5).sum() == 16 and rated.rating.min() == 3
    assert (rated.rating == 3).sum() == len(disliked) == 3
    assert outside == 0 and taste.set_index("name").movies["Thriller"] == 3
    assert all(reply != "not named" for reply in low["in the reply"])
    assert (taste.loc[taste.name.isin(["Comedy", "1990s"]), "mean_deviation"] < 0).all()
