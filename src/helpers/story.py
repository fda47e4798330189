"""The end of the course at its beginning: one user's card, made of recorded things alone."""

import contextlib

from helpers import candidates, data, llm, prompts, replies, show
from helpers.audit import audit_profile
from helpers.settings import Settings


def recorded(user: int, dataset: data.Dataset, settings: Settings | None = None) -> tuple[int, str]:
    """Display the story of what is recorded; return the user shown, and why another one, or ""."""
    settings = settings or Settings.from_env()
    ratings, movies = (data.load_pandas(dataset, name) for name in ("ratings", "movies"))
    user, notice = candidates.viewer(user, ratings)
    rated = candidates.history(ratings, movies, user)
    counts = ratings.merge(movies, on="movieId")["title"].value_counts()
    support = {t: counts[t] for t in show.ARTICLE_TEN if user == 12 and t in counts}
    claims, ranked, retriever, who = None, None, [], f"User {user}"
    with contextlib.suppress(candidates.NoCandidatesError):
        liked, disliked = candidates.liked(rated), candidates.disliked(rated)
        messages = prompts.profile_prompt(rated, liked, disliked)
        asked = {"messages": messages, "response_format": llm.response_format(prompts.Profile)}
        if found := replies.Store(settings.replies_dir).get(replies.request_key(asked)):
            text = found.response["choices"][0]["message"]["content"]
            claims = audit_profile(prompts.Profile.model_validate_json(text), liked, disliked)
    with contextlib.suppress(data.DataError):
        ranked = data.read_result(f"05_ranked_list_user_{user}", dataset, settings).fillna("")
        for place in (dataset, dataset._replace(verified=False)):  # published, or a learner's own
            saved = data.read_result("03_candidates", place, settings)
            mine = saved[(saved["userId"] == user) & (saved["list"] == "implicit ALS")]
            retriever = retriever or mine.merge(ranked["movieId"])["movieId"].tolist()
    show.story(rated, claims, ranked, retriever=retriever, support=support, who=who)
    return user, notice
