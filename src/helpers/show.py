"""What a lesson shows: tables, an LLM's words, the picture of the pipeline, one user's story."""

from __future__ import annotations

import functools
import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from IPython.display import SVG, Markdown, display

BOXES = {  # notebook: place of the box, its two lines
    1: (0, 55, "Ratings", "clean, split"),
    2: (160, 10, "ALS", "learn factors"),
    3: (320, 10, "B: candidates", "unseen movies"),
    4: (320, 100, "A: profile", "an LLM writes it"),
    5: (480, 55, "C: ranking", "an LLM orders B by A"),
    6: (640, 55, "Does it help?", "held-out ratings"),
}
ARROWS = ((1, 2), (2, 3), (1, 4), (3, 5), (4, 5), (5, 6))
ARTICLE_TEN = (
    "Strictly Sexual (2008)", "On the Beach (1959)", "Man from Snowy River, The (1982)",
    "Thief (1981)", "Glory Road (2006)", "Adam's Rib (1949)", "Frozen River (2008)",
    "Saving Face (2004)", "Mr. Skeffington (1944)", "12 Angry Men (1997)",
)  # fmt: skip
"""What the source article prints as its ten recommendations for user 12, best first."""


@functools.cache
def _template(name: str) -> Any:
    """Return a file of ``templates``, its lines joined without their indentation."""
    environment = jinja2.Environment()
    environment.filters["e"] = lambda text: html.escape(str(text))
    text = (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
    return environment.from_string("".join(line.strip() for line in text.splitlines()))


def table(
    frame: pd.DataFrame | pd.Series,
    caption: str = "",
    *,
    digits: int | Mapping[Any, str] = 3,
    index: bool = True,
) -> None:
    """Display a table: cells wrap, all text is escaped, floats have ``digits`` decimals.

    ``digits`` may also map columns to format strings; without ``index`` row labels are left out.
    """
    frame = frame.to_frame() if isinstance(frame, pd.Series) else frame
    if index and frame.index.name:  # as a heading like the others, not on a line of its own
        frame, index = frame.reset_index(), False
    uuid = hashlib.sha256(repr((caption, *frame.columns)).encode()).hexdigest()[:8]
    look = frame.style.set_uuid(uuid).set_caption(html.escape(caption))
    # The class keeps MathJax from reading prices as formulas.
    look = look.set_table_attributes('class="dataframe tex2jax_ignore"')
    left = {"td, th": "text-align: left; white-space: normal"}
    left["caption"] = "text-align: left; font-weight: bold"
    look = look.set_table_styles([{"selector": s, "props": props} for s, props in left.items()])
    precision = digits if isinstance(digits, int) else 3
    formats: Any = None if isinstance(digits, int) else dict(digits)
    look = look.format(formats, precision=precision, na_rep="", escape="html")
    look = look.format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    plain = frame.to_string(index=index, float_format=lambda x: f"{x:.{precision}f}")
    if not index:
        look = look.hide(axis="index")
    display({"text/html": look.to_html(), "text/plain": plain}, raw=True)


def reply(text: str | None, label: str) -> None:
    """Display what an LLM wrote as rendered Markdown, set off under ``label``.

    HTML stays text, and a dollar sign begins no formula.
    """
    quoted = html.escape(text or "nothing", quote=False).replace("$", r"\$").replace("\n", "\n> ")
    display(Markdown(f"**{html.escape(label, quote=False)}**\n\n> {quoted}"))


def pipeline(lit: int | None = None) -> None:
    """Display the course's pipeline as SVG, the box of notebook ``lit`` in colour."""
    display(SVG(_template("pipeline.svg").render(boxes=BOXES, arrows=ARROWS, lit=lit)))


def card(columns: Mapping[str, str], plain: str = "") -> None:
    """Display parts of HTML side by side under their headings; on a narrow page they stack.

    ``plain`` is what a terminal shows.
    """
    page = _template("story.html").module.card(columns)
    display({"text/html": page, "text/plain": plain or "; ".join(columns)}, raw=True)


def story(
    rated: pd.DataFrame,
    claims: pd.DataFrame | None = None,
    ranked: pd.DataFrame | None = None,
    *,
    retriever: Sequence[int] = (),
    support: Mapping[str, int] | None = None,
    who: str = "The viewer",
) -> None:
    """Display the whole course for one user: favourites, profile (A), candidates (B) and ranking.

    Args:
        rated: what the user rated, best first (:func:`helpers.candidates.history`).
        claims: the audited profile (:func:`helpers.audit.audit_profile`), or ``None``.
        ranked: ``movieId, title, reason`` in the LLM's order, best first, or ``None``.
        retriever: the movieIds of ``ranked`` in the retriever's order; it draws the slope.
        support: number of ratings of each of :data:`ARTICLE_TEN`, shown in grey above the slope.
        who: how the user is called.

    Raises:
        ValueError: ``retriever`` does not hold the movies of ``ranked``.
    """
    parts, best = _template("story.html").module, rated[["title", "rating"]].head(12)
    profile = "<em>No profile of this user is recorded: notebook 04 asks for one.</em>"
    if claims is not None:
        fields = claims.loc[claims["field"] != "summary"].groupby("field", sort=False)
        by_field = {field: rows.to_dict("records") for field, rows in fields}
        profile = parts.profile(by_field, rated.set_index("movieId")["title"].to_dict())
    slope = "<em>No ranked list of this user is recorded: notebook 05 makes one.</em>"
    if ranked is not None and not ranked.empty:
        slope = parts.slope(_moves(ranked, list(retriever)))
    favourites = parts.favourites(best.itertuples(index=False), len(rated) - 12)
    columns = {
        f"{who}: {len(rated)} ratings, best first": favourites,
        "A: the profile that an LLM wrote": profile,
        "C: the candidates (B), ranked by the LLM": parts.printed(support or {}) + slope,
    }
    card(columns, "; ".join(best["title"]))


def _moves(ranked: pd.DataFrame, retriever: list[int]) -> list[dict[str, Any]]:
    """Return a row for each place: who stood there before, who does now, and how far that climbed.

    Climbs and falls of three ranks or more have colours.
    """
    ids = ranked["movieId"].tolist()
    before = retriever or ids
    if sorted(before) != sorted(ids):
        raise ValueError("A slope needs the same movies in the retriever's and the LLM's order.")
    titles, rows = dict(zip(ids, ranked["title"], strict=True)), []
    for place, (left, right) in enumerate(zip(before, ids, strict=True)):
        climb = before.index(right) - place
        ink = "#0072B2" if climb > 2 else "#D55E00" if climb < -2 else "#8C8C8C"
        moved = f"up {climb}" if climb > 0 else f"down {-climb}" if climb else "same place"
        row = {"was": titles[left], "now": titles[right], "before": before.index(right)}
        rows.append(row | {"ink": ink, "moved": moved, "reason": ranked["reason"].iloc[place]})
    return rows
