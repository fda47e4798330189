"""The end of the course at its beginning: one user's card, made of recorded things alone."""

from __future__ import annotations

import pandas as pd

from helpers import candidates, data, llm, prompts, replies, show
from helpers.audit import audit_profile
from helpers.settings import Settings


def recorded(
    user_id: int, dataset: data.Dataset, settings: Settings | None = None
) -> tuple[int, str]:
    """Display :func:`helpers.show.story` with what is recorded and what notebook 05 saved.

    Return the user shown, and a sentence where it is another one than was asked for, or "".
    """
    settings = settings or Settings.from_env()
    ratings, movies = (data.load_pandas(dataset, name) for name in ("ratings", "movies"))
    user_id, notice = candidates.viewer(user_id, ratings)
    rated = candidates.history(ratings, movies, user_id)
    ranked, retriever = _ranked(user_id, dataset, settings)
    support = None
    if user_id == 12:
        titles = ratings.merge(movies, on="movieId")["title"].value_counts()
        known = [title for title in show.ARTICLE_TEN if title in set(movies["title"])]
        support = {title: int(titles.get(title, 0)) for title in known}
    who = f"User {user_id}"
    show.story(
        rated, _claims(rated, settings), ranked, retriever=retriever, support=support, who=who
    )
    return user_id, notice


def _claims(rated: pd.DataFrame, settings: Settings) -> pd.DataFrame | None:
    try:
        liked, disliked = candidates.liked(rated), candidates.disliked(rated)
    except candidates.NoCandidatesError:
        return None
    asked = {
        "messages": prompts.profile_prompt(rated, liked, disliked),
        "response_format": llm.response_format(prompts.Profile),
    }
    reply = replies.CommittedStore(settings.replies_dir).get(replies.request_key(asked))
    if reply is None:
        return None
    text = reply.response["choices"][0]["message"]["content"]
    return audit_profile(prompts.Profile.model_validate_json(text), liked, disliked)


def _ranked(
    user_id: int, dataset: data.Dataset, settings: Settings
) -> tuple[pd.DataFrame | None, list[int]]:
    """Return the saved list and the retriever's order of its movies, where both are there."""
    try:
        ranked = data.read_result(f"05_ranked_list_user_{user_id}", dataset, settings)
        saved = data.read_result("03_candidates", dataset, settings)
    except data.DataError:
        return None, []
    mine = saved.loc[(saved["userId"] == user_id) & saved["movieId"].isin(ranked["movieId"])]
    order = mine.loc[mine["list"] == "implicit ALS", "movieId"].tolist()
    return ranked, order if sorted(order) == sorted(ranked["movieId"]) else []
