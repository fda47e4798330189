"""What a lesson shows: tables, an LLM's words, the picture of the pipeline, one user's story."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping, Sequence
from typing import Any

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
WIDTH, HEIGHT = 140, 56  # of a box
ARTICLE_TEN = (
    "Strictly Sexual (2008)", "On the Beach (1959)", "Man from Snowy River, The (1982)",
    "Thief (1981)", "Glory Road (2006)", "Adam's Rib (1949)", "Frozen River (2008)",
    "Saving Face (2004)", "Mr. Skeffington (1944)", "12 Angry Men (1997)",
)  # fmt: skip
"""What the source article prints as its ten recommendations for user 12, best first."""
GREY, SMALL = "opacity: .6; font-size: 85%", "font-size: 85%; line-height: 1.35"


def table(
    frame: pd.DataFrame | pd.Series,
    caption: str = "",
    *,
    digits: int | Mapping[Any, str] = 3,
    index: bool = True,
) -> None:
    """Display a table: cells wrap, all text is escaped, floats have ``digits`` decimals.

    ``digits`` may also map columns to format strings. Without ``index`` the row labels are left
    out. The plain text beside it is what a terminal shows.
    """
    frame = frame.to_frame() if isinstance(frame, pd.Series) else frame
    if index and frame.index.name:  # as a heading like the others, not on a line of its own
        frame, index = frame.reset_index(), False
    uuid = hashlib.sha256(repr((caption, *frame.columns)).encode()).hexdigest()[:8]
    look = frame.style.set_uuid(uuid).set_caption(html.escape(caption))
    # The class keeps MathJax from reading prices as formulas.
    look = look.set_table_attributes('class="dataframe tex2jax_ignore"')
    look = look.set_table_styles(
        [
            {"selector": "td, th", "props": "text-align: left; white-space: normal"},
            {"selector": "caption", "props": "text-align: left; font-weight: bold"},
        ]
    )
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
    parts = []
    for start, end in ARROWS:
        (x1, y1, *_), (x2, y2, *_) = BOXES[start], BOXES[end]
        begin, stop = f"{x1 + WIDTH} {y1 + HEIGHT / 2}", f"{x2 - 4} {y2 + HEIGHT / 2}"
        parts.append(f'<path d="M {begin} L {stop}" stroke="#555" marker-end="url(#tip)"/>')
    for number, (x, y, name, about) in BOXES.items():
        fill, ink = ("#0072B2", "#fff") if number == lit else ("#eef2f5", "#222")
        parts.append(
            f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{fill}"/>'
            f'<g fill="{ink}" text-anchor="middle"><text x="{x + WIDTH / 2}" y="{y + 24}" '
            f'font-weight="bold">{number:02d} {name}</text>'
            f'<text x="{x + WIDTH / 2}" y="{y + 43}" font-size="12">{about}</text></g>'
        )
    steps = ", ".join(f"{number:02d} {name}" for number, (*_, name, _) in BOXES.items())
    here = f"; this is {lit:02d}" if lit else ""
    display(
        SVG(
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="-2 0 784 166" width="100%" '
            'role="img" font-family="sans-serif" font-size="14" '
            'style="max-width: 784px">'
            f"<title>The pipeline: {steps}{here}</title><rect x='-2' width='784' height='166' "
            'fill="#fff"/><defs><marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" '
            'markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" '
            f'fill="#555"/></marker></defs>{"".join(parts)}</svg>'
        )
    )


def card(columns: Mapping[str, str], plain: str = "") -> None:
    """Display parts of HTML side by side under their headings; on a narrow page they stack.

    A part whose HTML holds a grid takes three shares of the width. ``plain`` is what a terminal
    shows.
    """
    boxes = "".join(
        f'<div style="flex: {3 if "grid" in body else 1} 1 {300 if "grid" in body else 190}px; '
        f'min-width: 0"><h4 style="margin-top: 0">{html.escape(name)}</h4>{body}</div>'
        for name, body in columns.items()
    )
    style = "display: flex; flex-wrap: wrap; gap: 24px; align-items: flex-start"
    both = {"text/html": f'<div class="tex2jax_ignore" style="{style}">{boxes}</div>'}
    display(both | {"text/plain": plain or "; ".join(columns)}, raw=True)


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

    A part that is missing is named as missing.

    Raises:
        ValueError: ``retriever`` does not hold the movies of ``ranked``.
    """
    best = "".join(
        f"<div>{html.escape(title)} <span style='opacity: .6'>{stars:g}</span></div>"
        for title, stars in rated[["title", "rating"]].head(12).itertuples(index=False)
    )
    more = f"<div style='{GREY}'>and {len(rated) - 12} more</div>" if len(rated) > 12 else ""
    titles = dict(zip(rated["movieId"], rated["title"], strict=True))
    printed = "; ".join(
        f"{html.escape(title)}, <b>{n} rating{'s' * (n != 1)}</b>"
        for title, n in (support or {}).items()
    )
    above = (
        f"<div style='{GREY}; margin-bottom: 12px'>The article's own ten: {printed}</div>"
        if printed
        else ""
    )
    card(
        {
            f"{who}: {len(rated)} ratings, best first": f"<div style='{SMALL}'>{best}{more}</div>",
            "A: the profile that an LLM wrote": _profile(claims, titles),
            "C: the candidates (B), ranked by the LLM": above + _slope(ranked, list(retriever)),
        },
        "; ".join(rated["title"].head(12)),
    )


def _profile(claims: pd.DataFrame | None, titles: Mapping[int, str]) -> str:
    """Return the claims as HTML, each above three of the titles it cites; flagged ones struck."""
    if claims is None:
        return "<em>No profile of this user is recorded: notebook 04 asks for one.</em>"
    parts = []
    for field, rows in claims.loc[claims["field"] != "summary"].groupby("field", sort=False):
        parts.append(f"<div style='opacity: .6; margin-top: 6px'>{html.escape(str(field))}</div>")
        for _, claim in rows.iterrows():
            cited = [html.escape(titles.get(i, f"movie {i}")) for i in claim["movie_ids"]]
            tail = f" and {len(cited) - 3} more" if len(cited) > 3 else ""
            name = html.escape(claim["claim"])
            name = f"<s>{name}</s>" if claim["verdict"] == "flagged" else f"<b>{name}</b>"
            parts.append(
                f"<div>{name}<div style='opacity: .75'>{', '.join(cited[:3])}{tail}</div></div>"
            )
    return f"<div style='{SMALL}'>{''.join(parts)}</div>"


def _slope(ranked: pd.DataFrame | None, retriever: list[int]) -> str:
    """Return a table of retriever's order, slope and LLM's order; its rows are equally high.

    Where a page drops the styles, a plain table with the changes of rank in words is left.
    """
    if ranked is None or ranked.empty:
        return "<em>No ranked list of this user is recorded: notebook 05 makes one.</em>"
    ids = ranked["movieId"].tolist()
    before = retriever or ids
    if sorted(before) != sorted(ids):
        raise ValueError("A slope needs the same movies in the retriever's and the LLM's order.")
    titles = ranked.set_index("movieId")["title"].map(html.escape)
    rows, lines, n, whole = [], [], len(ids), "left: 0; top: 0; width: 100%; height: 100%"
    for place, (left, right) in enumerate(zip(before, ids, strict=True)):
        climb = before.index(right) - place
        ink = "#0072B2" if climb > 2 else "#D55E00" if climb < -2 else "#8C8C8C"
        moved = f"up {climb}" if climb > 0 else f"down {-climb}" if climb else "same place"
        lines.append(
            f'<path d="M0 {100 * before.index(right) + 50} L100 {100 * place + 50}" stroke="{ink}" '
            'stroke-width="2" fill="none" vector-effect="non-scaling-stroke"/>'
        )
        reason = html.escape(str(ranked["reason"].iloc[place]))
        cell = f"grid-row: {place + 1}; align-self: center; padding: 3px 6px"
        was = f"grid-column: 1; {cell}; text-align: right"
        now = f"grid-column: 3; {cell}; text-align: left"
        rows.append(
            [
                f"<td style='{was}'>{place + 1}. {titles[left]}</td>",
                f"<td style='{now}'><b>{place + 1}. {titles[right]}</b> <span style='color: {ink}'>"
                f"{moved}</span><div style='opacity: .75'>{reason}</div></td>",
            ]
        )
    middle = (
        f"<td rowspan='{n}' style='grid-column: 2; grid-row: 1 / span {n}; position: relative; "
        f"padding: 0'><svg viewBox='0 0 100 {100 * n}' preserveAspectRatio='none' role='img' "
        f"style='position: absolute; {whole}'><title>Lines from the retriever's order to the "
        f"LLM's</title>{''.join(lines)}</svg></td>"
    )
    rows[0].insert(1, middle)
    look = "display: contents; background: none"
    body = "".join(f"<tr style='{look}'>{''.join(row)}</tr>" for row in rows)
    grid = (
        "display: grid; grid-template-columns: 5fr 44px 10fr; grid-auto-rows: 1fr; width: 100%; "
        f"border: 0; margin: 0; {SMALL}"
    )
    return f"<table style='{grid}'><tbody style='display: contents'>{body}</tbody></table>"
