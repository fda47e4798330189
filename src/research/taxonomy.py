"""Pictures of 09 to 12: the survey's map (Wu et al. 2024) and how one system works."""

from __future__ import annotations

import html
from collections.abc import Sequence

from IPython.display import SVG, display

ROWS = {
    "what the LLM gives": (
        ("vectors", "embeddings + recommender", "UniSRec", "09"),
        ("words", "tokens + recommender", "GPT4Rec, PALR", "09 10"),
        ("the recommendation", "LLM as recommender", "LlamaRec, P5, RecMind", "09 10"),
    ),
    "how it is adapted": (
        ("prompting", "no number of it changes", "RecMind", "10 11"),
        ("prompt tuning", "a few vectors train", "POD", "10 11"),
        ("fine-tuning", "weights train, one task", "GPT4Rec, PALR, LlamaRec", "10 11"),
        ("instruction tuning", "weights train, many tasks", "P5, InstructRec", "10 11"),
    ),
    "how it answers": (
        ("discriminative", "it scores what it is shown", "U-BERT, LlamaRec's letters", "11"),
        ("generative", "it writes the answer", "GPT4Rec, P5", "11"),
    ),
    "what it may add": (
        ("cold start", "zero- and few-shot", "Chat-Rec", "12"),
        ("reasons", "it says why", "P5, Chat-Rec", "12"),
    ),
}
WIDTH, HEIGHT, LEFT = 176, 66, 130
INK = {"lit": ("#0072B2", "#fff"), "plain": ("#eef2f5", "#222")}


def draw(notebook: str) -> None:
    """Display the map as SVG, with the boxes of ``notebook`` ("09" to "12") in colour."""
    parts, told = [], []
    for line, (heading, boxes) in enumerate(ROWS.items()):
        y = 6 + line * (HEIGHT + 10)
        at = f'x="{LEFT - 10}" y="{y + HEIGHT / 2 + 4}" text-anchor="end" font-size="11.5"'
        parts.append(f'<text {at} fill="#222">{heading}</text>')
        for place, (*lines, lessons) in enumerate(boxes):
            lit = notebook in lessons.split()
            told += lines[:1] if lit else []
            parts.append(_box(LEFT + place * (WIDTH + 8), y, lines, "lit" if lit else "plain"))
    title = f"A map of language models in recommenders; this lesson is about {', '.join(told)}"
    _show(title, parts, LEFT + 4 * (WIDTH + 8), 6 + len(ROWS) * (HEIGHT + 10))


def flow(title: str, steps: Sequence[tuple[str, str, str]]) -> None:
    """Display up to four steps (name, two lines about it) with arrows; an LLM is in colour."""
    parts = []
    for place, lines in enumerate(steps):
        x = place * (WIDTH + 30)
        parts.append(_box(x, 4, lines, "lit" if "LLM" in lines[0] else "plain"))
        if place:
            arrow = f"M{x - 26} {4 + HEIGHT / 2} h14 v-5 l8 5 l-8 5 v-5"
            parts.append(f'<path d="{arrow}" fill="#555" stroke="#555"/>')
    told = " then ".join(step[0] for step in steps)
    _show(f"{title}: {told}", parts, len(steps) * (WIDTH + 30) - 30, HEIGHT + 8)


def _box(x: float, y: float, lines: Sequence[str], style: str) -> str:
    fill, ink = INK[style]
    styles = ('font-weight="bold" font-size="13.5"', "", 'font-style="italic"')
    texts = "".join(
        f'<text x="{x + WIDTH / 2}" y="{y + 21 + 18 * row}" {look}>{html.escape(text)}</text>'
        for row, (text, look) in enumerate(zip(lines, styles, strict=True))
    )
    rect = f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="8" fill="{fill}"/>'
    return f'{rect}<g fill="{ink}" text-anchor="middle" font-size="11.5">{texts}</g>'


def _show(title: str, parts: Sequence[str], width: float, height: float) -> None:
    size = f'viewBox="0 0 {width} {height}" width="100%" style="max-width: {width}px"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" font-family="sans-serif">'
    head += f'<title>{html.escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>'
    display(SVG(f"{head}{''.join(parts)}</svg>"))
