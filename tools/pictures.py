"""The README's picture and the figure of ``docs/results.md``, drawn from the committed tables.

``python tools/pictures.py`` writes both. Text stays text, and each is on white, for dark pages too.
"""

from __future__ import annotations

import html
import textwrap
from pathlib import Path

import pandas as pd

from helpers.plots import BLACK, BLUE, RED

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
QUIET = "#6b6b6b"


def text(x: float, y: float, words: str, look: str = "", *, anchor: str = "start") -> str:
    """Return a line of text; what is in it is escaped."""
    return f'<text x="{x:g}" y="{y}" text-anchor="{anchor}" {look}>{html.escape(words)}</text>'


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """Return a picture of ``parts`` on white."""
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    look = f'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="{BLACK}"'
    ground = (
        f'<title>{html.escape(title)}</title>\n<path fill="#fff" d="M0 0H{width}V{height}H0z"/>'
    )
    start = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {look}>{ground}'
    return "\n".join([start, *parts, "</svg>", ""])


def ranked_list(user: int = 12) -> str:
    """Return the retriever's ten movies beside the LLM's order of them, with its reasons."""
    ranked = pd.read_csv(RESULTS / f"05_ranked_list_user_{user}.csv")
    saved = pd.read_csv(RESULTS / "03_candidates.csv")
    mine = saved.query("userId == @user and list == 'implicit ALS'").sort_values("rank")
    before = mine.loc[mine["movieId"].isin(ranked["movieId"]), "movieId"].tolist()
    titles = ranked.set_index("movieId")["title"]
    head = f'font-weight="bold" fill="{QUIET}"'
    parts = [
        text(238, 24, "A recommender proposes (ALS)", head, anchor="end"),
        text(308, 24, "A large language model ranks, and says why", head),
    ]
    for place, (left, row) in enumerate(zip(before, ranked.to_dict("records"), strict=True)):
        y, start = 58 + 48 * place, before.index(row["movieId"])
        climb = start - place
        ink = BLUE if climb > 2 else RED if climb < -2 else QUIET
        moved = f"up {climb}" if climb > 0 else f"down {-climb}" if climb else "same place"
        parts += [
            text(238, y + 8, f"{place + 1}. {titles[left]}", anchor="end"),
            f'<path d="M246 {62 + 48 * start} L300 {y + 4}" stroke="{ink}" stroke-width="2"/>',
            text(308, y, f"{place + 1}. {row['title']}", 'font-size="13" font-weight="bold"'),
            text(748, y, moved, f'fill="{ink}"', anchor="end"),
        ]
        for line, words in enumerate(textwrap.wrap(row["reason"], 66)):
            parts.append(text(308, y + 15 + 13 * line, words, f'font-size="11" fill="{QUIET}"'))
    title = f"Ten movies for user {user}: the recommender's order, and the LLM's with its reasons"
    return svg(760, 50 + 48 * len(ranked), title, parts)


def evaluation() -> str:
    """Return NDCG@10 of all retrievers and rankers of notebook 06's second question."""
    table = pd.read_csv(RESULTS / "06_evaluation.csv").query("metric == 'NDCG@10'")
    groups = {"Retrievers by themselves": table[table["ranker"] == "its own order"]}
    for name in ("transitions", "implicit ALS", "explicit ALS"):
        groups[f"Rankers over {name}"] = table[table["retriever"] == name]
    groups["As published"] = table[table["ranker"] == "as published"]
    parts, y = [], 10
    for name, rows in groups.items():
        y += 26
        parts.append(text(12, y, name, 'font-weight="bold"'))
        for row in rows.sort_values("value", ascending=False).to_dict("records"):
            y += 18
            label = row["ranker" if name.startswith("Rankers") else "retriever"]
            ink = BLUE if "LLM" in label or "Llama" in label else QUIET
            values = [row["value"], row["low"], row["high"]]
            x, low, high = (round(200 + 1400 * value, 1) for value in values)
            numbers = f"{values[0]:.4f}"
            if not pd.isna(high):  # what a paper prints has no interval
                numbers = "{:.3f} [{:.3f}, {:.3f}]".format(*values)
                parts.append(f'<path d="M{low} {y - 4}H{high}" stroke="{ink}" stroke-width="2"/>')
            parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{ink}"/>')
            parts.append(text(190, y, label, f'fill="{ink}"', anchor="end"))
            parts.append(text(708, y, numbers, 'font-size="11"', anchor="end"))
    parts.append(f'<path d="M200 14V{y + 8}H550" stroke="{BLACK}" fill="none"/>')
    for tick in (0.0, 0.05, 0.1, 0.15, 0.2, 0.25):
        parts.append(text(200 + 1400 * tick, y + 24, f"{tick:g}", anchor="middle"))
    parts.append(text(375, y + 42, "NDCG@10, with 95 % intervals over 610 users", anchor="middle"))
    title = "NDCG@10 of nine retrievers alone and of six rankers over three of them"
    return svg(720, y + 56, title, parts)


PICTURES = {"ranked_list.svg": ranked_list, "evaluation.svg": evaluation}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (ROOT / "docs" / name).write_text(draw(), encoding="utf-8", newline="\n")
