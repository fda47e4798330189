"""Metrics of ranked lists, which are tables of ``userId, rank, movieId``."""

import numpy as np
import pandas as pd


def score_table(
    lists: pd.DataFrame, relevant: pd.DataFrame, ks: tuple[int, ...] = (5, 10, 20)
) -> pd.DataFrame:
    """Return ``MRR@k``, ``NDCG@k`` and ``Recall@k``, 0 to 1, a row for each user in ``relevant``.

    A user without a list scores 0; recall divides by min(k, number of relevant movies). Raises
    ValueError: a list holds a movie twice. NDCG: Järvelin and Kekäläinen 2002, binary gain.
    """
    if lists.duplicated(["userId", "movieId"]).any():
        raise ValueError("A user's list holds the same movie twice.")
    wanted = relevant[["userId", "movieId"]].drop_duplicates()
    counts, columns = wanted.groupby("userId").size(), {}
    found = lists.merge(wanted, on=["userId", "movieId"])
    found["gain"] = 1 / np.log2(found["rank"] + 1)
    for k in ks:
        hits, possible = found.loc[found["rank"] <= k].groupby("userId"), counts.clip(upper=k)
        best = np.cumsum(1 / np.log2(np.arange(2, k + 2)))[possible - 1]
        columns[f"MRR@{k}"] = 1 / hits["rank"].min()
        columns[f"NDCG@{k}"] = hits["gain"].sum().reindex(counts.index) / best
        columns[f"Recall@{k}"] = hits.size() / possible
    return pd.DataFrame(columns, index=counts.index).fillna(0.0)
