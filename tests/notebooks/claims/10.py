# What notebook 10 claims beyond its saved outputs; run in its kernel after the last cell.

# Section 4: a call that cannot be run is answered, and no title can end the loop.
broken = type("Call", (), {"function": type("F", (), {"name": "nothing", "arguments": "{}"})})
assert "cannot be run" in run(broken, toolbox(some[0]))
for user in some[:5]:
    rated = set(history[user].movieId)
    found = toolbox(user)["search_movies"]("love war")
    assert not rated & {int(row.split(" | ")[0]) for row in found.splitlines() if " | " in row}

if dataset.verified and queries and chosen:
    assert gpt4rec.verdict["queries - popularity"] == "better"
    assert palr.verdict["ranked by profile - ranked by history"] == "worse"
    assert palr.verdict["ranked by history - their own order"].startswith("not shown")
    assert all(movie in movies.index for movie in chosen) and len(set(chosen)) == 10
    assert sum(movie in places for movie in chosen) == 3 and round(sent / single) == 19
