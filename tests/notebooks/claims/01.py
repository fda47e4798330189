# What notebook 01 says of its data, run in its kernel after the last cell.
assert n_ratings == counts.ratings == sum(sizes) == int(per_movie.sum())
assert n_rated == counts.rated_movies <= n_movies == counts.movies
assert differing == 0 and len(types.columns) == 3 and set(types["text"]) == {"string"}
assert types["schema"].to_dict() == {
    "userId": "int", "movieId": "int", "rating": "float", "timestamp": "bigint"
}  # fmt: skip
assert stars.index.min() >= 0.5 and stars.index.max() <= 5 and stars.sum() == n_ratings
assert so_far[half_at - 1] >= 0.5 > so_far[max(half_at - 2, 0)] or half_at == 1
assert mine["rating"].is_monotonic_decreasing and abs(mine["deviation"].mean()) < 1e-6
assert by_genre.sum() >= n_movies and by_genre.index.is_unique
if dataset.verified or dataset.simulated:
    assert common < 0.9 * min(sizes[0], n_ratings)  # another partitioning, another split
    assert (users["ratings"] >= 20).all() and one_day > 0
    assert years.isna().sum() < 0.01 * n_movies and by_year.index.min() >= 1900
    assert ranked["ratings"].iloc[0] < enough <= often["ratings"].min()
if dataset.verified:
    assert (n_ratings, n_users, n_movies, n_rated) == (100_836, 610, 9_742, 9_724)
    assert (once, half_at, n_shared, one_day) == (3_446, 659, 5, 334)
    assert sizes == [60_435, 20_052, 20_349] and stars.idxmax() == 4.0
    assert 0.79 < stars[stars.index >= 3].sum() / stars.sum() < 0.83 and spread > 1.04
    assert top == ["Drama", "Comedy"] and ranked["ratings"].head(2).tolist() == [2, 2]
    article = [
        data.load_pandas(dataset, "movies").set_index("title").movieId[t] for t in show.ARTICLE_TEN
    ]
    support = data.load_pandas(dataset, "ratings").groupby("movieId").size()[article]
    assert (support == 1).sum() == 6 and support.max() == 4
    if USER_ID == 12:
        assert (len(mine), int((mine["rating"] == 5).sum())) == (32, 16)
        assert (mine["rating"].tail(3) == 3).all() and mine["rating"].iloc[-4] > 3
