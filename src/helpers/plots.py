"""Figures in the palette of Okabe and Ito 2008, which colour-blind readers can tell apart."""

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, BLACK = "#CC79A7", "#56B4E9", "#8C8C8C", "#000000"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
MARKERS = "osD^vP"  # with a dark edge: two of the colours are pale on white


def show(figure: Figure, alt: str) -> None:
    """Display ``figure`` with ``alt``, a sentence that says what it shows, then close it."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def new_axes(width: float = 7.0, height: float = 3.6, columns: int = 1) -> tuple[Figure, list]:
    """Return a figure of so many inches and its ``columns`` axes with the series' look."""
    with plt.rc_context({"axes.spines.top": False, "axes.spines.right": False}):
        figure = plt.figure(figsize=(width, height), layout="constrained")
        return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def lines(
    table: pd.DataFrame, *, xlabel: str, ylabel: str, level: dict[str, float] | None = None
) -> Figure:
    """Return one line per column over the index, seven at most, and a dashed one per ``level``."""
    if len(table.columns) > len(PALETTE) + 1:
        raise ValueError(f"{len(table.columns)} lines; at most seven can be told apart.")
    figure, (axes,) = new_axes()
    axes.set_prop_cycle(color=[*PALETTE, BLACK], marker=list(MARKERS + "X"))
    for name, values in table.items():
        axes.plot(values, label=name, markeredgecolor=BLACK, markeredgewidth=0.5)
    for name, value in (level or {}).items():
        axes.axhline(value, color=BLACK, linestyle="--", linewidth=1, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(frameon=False)
    return figure


def slope_chart(before: list[str], after: list[str], *, left: str, right: str) -> Figure:
    """Return two rankings of the same items, joined by lines; from three ranks on in colour."""
    figure, (axes,) = new_axes(width=8.0, height=0.6 + 0.36 * len(before))
    for start, item in enumerate(before, 1):
        end, name = after.index(item) + 1, item if len(item) <= 38 else f"{item[:37]}…"
        colour = BLUE if start - end >= 3 else RED if end - start >= 3 else GREY
        axes.plot([0, 1], [start, end], marker="o", color=colour)
        for x, rank, side in ((-0.04, start, "right"), (1.04, end, "left")):
            axes.text(x, rank, f"{rank}. {name}", ha=side, va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(-1.3, 2.3), ylabel="rank (1 is best)")
    axes.set(xticks=[0, 1], xticklabels=[left, right], yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(bottom=False)
    return figure


def intervals(table: pd.DataFrame, *, xlabel: str) -> Figure:
    """Return one row per index entry: a dot at ``mean`` and a bar from ``low`` to ``high``."""
    figure, (axes,) = new_axes(height=0.8 + 0.34 * len(table))
    rows = range(len(table))[::-1]
    spread = [table["mean"] - table["low"], table["high"] - table["mean"]]
    axes.errorbar(table["mean"], rows, xerr=spread, fmt="o", color=BLUE, capsize=3)
    axes.set(xlabel=xlabel, xlim=(0, None), yticks=rows, yticklabels=table.index.map(str))
    return figure
