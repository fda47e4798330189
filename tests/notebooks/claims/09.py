# What notebook 09 claims beyond its saved outputs; run in its kernel after the last cell.

# Section 5: a title is found in its other forms, and a sequel is not its original.
assert titles.find("The Matrix 4", 1999).movie_id is None
assert fuse([1, 2, 3], [3, 1])[0] == 1 and fuse([5], [], constant=0) == [5]
for listed, each in settled.values():
    assert len(listed) == len(set(listed)) and len(each) >= len(listed)

if dataset.verified and enough:
    assert (vector_family.verdict.str.startswith("not shown")).tolist() == [True, True, False, True]
    counts_of = fates.value_counts()
    assert counts_of["already rated"] > 10 * counts_of["not in the release"]
    assert list(family.index[family.verdict == "better"]) == ["LLM names movies - popularity"]
    again = ev.compare_all(at_10, [("LLM fused with counts", "counts, dated")], draws)
    assert again.verdict.str.contains("not shown").tolist() == [False, True]
    assert set(draws["first draw"]).isdisjoint(draws["second draw"]) and len(some) == 200
    late = sum(
        movie.year > last_year[row_of[user]] for user, one in named.items() for movie in one.movies
    )
    assert late == 0, "the LLM was told the month"
    assert table.index[0] == "oracle over the counts" or table.index[0].startswith("LLM")
