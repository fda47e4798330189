"""What a lesson shows: tables, an LLM's words, the picture of the pipeline, one user's story."""

import hashlib
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jinja2
import pandas as pd
from IPython.display import SVG, Markdown, display
from pandas.io.formats.style import Styler

ARTICLE_TEN = (
    "Strictly Sexual (2008)", "On the Beach (1959)", "Man from Snowy River, The (1982)",
    "Thief (1981)", "Glory Road (2006)", "Adam's Rib (1949)", "Frozen River (2008)",
    "Saving Face (2004)", "Mr. Skeffington (1944)", "12 Angry Men (1997)",
)  # fmt: skip
"""What the source article prints as its ten recommendations for user 12, best first."""
Frame = pd.DataFrame | pd.Series
LOOK: Any = [
    {"selector": "td, th", "props": [("text-align", "left"), ("white-space", "normal")]},
    {"selector": "caption", "props": [("text-align", "left"), ("font-weight", "bold")]},
]


def _template(name: str) -> Any:
    """Return a file of ``templates``, its lines joined without their indentation."""
    text = (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
    environment = jinja2.Environment()
    environment.filters["e"] = lambda text: html.escape(str(text))
    return environment.from_string("".join(map(str.strip, text.splitlines())))


def table(
    frame: Frame, caption: str = "", *, digits: int | Mapping[Any, str] = 3, index: bool = True
) -> None:
    """Display a table, its text escaped; ``digits`` of floats, or a format for each column."""
    frame = pd.DataFrame(frame)
    if index and frame.index.name:  # as a heading like the others, not on a line of its own
        frame, index = frame.reset_index(), False
    precision, formats = (digits, None) if isinstance(digits, int) else (3, digits)
    uuid = hashlib.sha256(repr((caption, *frame.columns)).encode()).hexdigest()[:8]
    unread = 'class="dataframe tex2jax_ignore"'  # by MathJax: prices are no formulas
    look = Styler(frame, None, LOOK, uuid, html.escape(caption), unread)
    look.format(cast(Any, formats), precision=precision, na_rep="", escape="html")
    look.format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    plain = frame.to_string(index=index, float_format=lambda x: f"{x:.{precision}f}")
    look = look if index else look.hide(axis="index")
    display({"text/html": look.to_html(), "text/plain": plain}, raw=True)


def reply(text: str | None, label: str) -> None:
    """Display what an LLM wrote as rendered Markdown; HTML and dollar signs stay text."""
    quoted = html.escape(text or "nothing", quote=False).replace("$", r"\$").replace("\n", "\n> ")
    display(Markdown(f"**{html.escape(label, quote=False)}**\n\n> {quoted}"))


def pipeline(lit: int | None = None) -> None:
    """Display the course's pipeline as SVG, the box of notebook ``lit`` in colour."""
    display(SVG(_template("pipeline.svg").render(lit=lit)))


def card(columns: Mapping[str, str]) -> None:
    """Display parts of HTML side by side under their headings; on a narrow page they stack."""
    page = _template("story.html").module.card(columns)
    display({"text/html": page, "text/plain": "; ".join(columns)}, raw=True)


def story(
    rated: pd.DataFrame,
    claims: pd.DataFrame | None = None,
    ranked: pd.DataFrame | None = None,
    *,
    retriever: Sequence[int] = (),
    support: Mapping[str, int] | None = None,
    who: str = "The viewer",
) -> str:
    """Display, and return as HTML, one user's favourites, profile (A), candidates (B) and ranking.

    ``rated``: a history; ``claims``: an audited profile; ``ranked``: ``movieId, title, reason``;
    ``retriever``: its order of these movieIds; ``support``: ratings of :data:`ARTICLE_TEN`.
    """
    macros = _template("story.html").module
    page = macros.story(rated, claims, ranked, list(retriever), support or {}, who)
    display({"text/html": page, "text/plain": "; ".join(rated["title"].head(12))}, raw=True)
    return page
