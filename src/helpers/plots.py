"""Figures of the series, and controls.

The palette is that of Okabe and Ito 2008, which colour-blind readers can tell apart. Two of its
colours are pale on white: where several are drawn, each also has a marker with a dark edge.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, BLACK = "#CC79A7", "#56B4E9", "#8C8C8C", "#000000"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY)
MARKERS = "osD^vP"


def show(figure: Figure, alt: str) -> None:
    """Display ``figure`` with ``alt``, a sentence that says what it shows, then close it."""
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)


def new_axes(
    width: float = 7.0, height: float = 3.6, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its ``columns`` axes with the series' look."""
    size = {"figsize": (width, height), "layout": "constrained"}
    figure, axes = plt.subplots(1, columns, squeeze=False, **size)
    for panel in axes[0]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def bars(table: pd.Series, *, xlabel: str, ylabel: str, horizontal: bool = False) -> Figure:
    """Return a bar chart of ``table``, one bar per index entry; labels are for the two axes."""
    figure, (axes,) = new_axes(height=max(3.2, 0.26 * len(table)) if horizontal else 3.6)
    labels = [str(label) for label in table.index]
    if horizontal:
        axes.barh(labels[::-1], table.to_numpy()[::-1], color=BLUE)
    else:
        axes.bar(labels, table.to_numpy(), color=BLUE)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def lines(
    table: pd.DataFrame, *, xlabel: str, ylabel: str, level: Mapping[str, float] | None = None
) -> Figure:
    """Return one line per column over the index, and a dashed line for each ``level``."""
    figure, (axes,) = new_axes()
    colours, markers = (*PALETTE, BLACK), MARKERS + "X"
    if len(table.columns) > len(colours):
        raise ValueError(f"{len(table.columns)} lines; at most {len(colours)} can be told apart.")
    edge = {"markeredgecolor": BLACK, "markeredgewidth": 0.5}
    for colour, marker, (name, values) in zip(colours, markers, table.items(), strict=False):
        axes.plot(table.index, values, marker=marker, color=colour, label=name, **edge)
    for style, (name, value) in zip(("--", ":", "-."), (level or {}).items(), strict=False):
        axes.axhline(value, color=BLACK, linestyle=style, linewidth=1, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(frameon=False)
    return figure


def heatmap(grid: pd.DataFrame, *, xlabel: str, ylabel: str, value: str) -> Figure:
    """Return ``grid`` as coloured cells with their numbers; the lowest has a frame."""
    figure, (axes,) = new_axes(height=0.7 + 0.6 * len(grid))
    numbers = grid.to_numpy(dtype=float)
    image = axes.imshow(numbers, cmap="cividis_r", aspect="auto")
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_xticks(range(grid.shape[1]), [str(name) for name in grid.columns])
    axes.set_yticks(range(grid.shape[0]), [str(name) for name in grid.index])
    middle = (numbers.min() + numbers.max()) / 2
    for (row, column), number in np.ndenumerate(numbers):
        colour = "white" if number > middle else "black"
        axes.text(column, row, f"{number:.3f}", ha="center", va="center", color=colour)
    row, column = np.unravel_index(numbers.argmin(), numbers.shape)
    axes.add_patch(
        Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=RED, linewidth=3)
    )
    figure.colorbar(image, label=value)
    return figure


def slope_chart(before: Sequence[str], after: Sequence[str], *, left: str, right: str) -> Figure:
    """Return two ranked lists of the same items joined by lines; rank 1 is at the top.

    Items that climb by three ranks or more are blue, those that fall as far are red.
    """
    figure, (axes,) = new_axes(width=8.0, height=0.6 + 0.36 * len(before))
    axes.spines[["left", "bottom"]].set_visible(False)
    for start, item in enumerate(before, 1):
        end = after.index(item) + 1
        climb = start - end
        colour = BLUE if climb >= 3 else RED if climb <= -3 else GREY
        axes.plot([0, 1], [start, end], marker="o", color=colour)
        axes.text(-0.04, start, f"{start}. {_short(item)}", ha="right", va="center", fontsize=9)
        axes.text(1.04, end, f"{end}. {_short(item)}", ha="left", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(-1.3, 2.3), ylabel="rank (1 is best)")
    axes.set_xticks([0, 1], [left, right])
    axes.set_yticks([])
    axes.tick_params(bottom=False)
    return figure


def intervals(table: pd.DataFrame, *, xlabel: str) -> Figure:
    """Return one row per index entry: a dot at ``mean`` and a bar from ``low`` to ``high``."""
    figure, (axes,) = new_axes(height=0.8 + 0.34 * len(table))
    place = np.arange(len(table))[::-1]
    spread = [table["mean"] - table["low"], table["high"] - table["mean"]]
    axes.errorbar(table["mean"], place, xerr=spread, fmt="o", color=BLUE, capsize=3)
    axes.set_yticks(place, [str(name) for name in table.index])
    axes.set(xlabel=xlabel, xlim=(0, None))
    return figure


def scatter(table: pd.DataFrame, *, xlabel: str, ylabel: str, labels: bool = True) -> Figure:
    """Return points (``x, y, group``), a colour and marker per group, index entries as labels."""
    figure, (axes,) = new_axes(height=4.2)
    styles = zip(PALETTE, MARKERS, strict=True)
    for (name, points), (colour, marker) in zip(table.groupby("group"), styles, strict=False):
        style = {"color": colour, "marker": marker, "edgecolors": BLACK, "linewidths": 0.5}
        axes.scatter(points["x"], points["y"], label=name, **style)
    if labels:
        for name, x, y in zip(table.index, table["x"], table["y"], strict=True):
            axes.annotate(str(name), (x, y), xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if table["group"].nunique() > 1:
        axes.legend(frameon=False)
    return figure


def _short(text: str, limit: int = 38) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def explorer(
    render: Callable[..., pd.DataFrame], **controls: ipywidgets.ValueWidget
) -> ipywidgets.VBox:
    """Return controls above a table that follows them; all text in the table is escaped.

    ``render`` is called with the control values by name and returns the table. A ``LookupError`` or
    ``ValueError`` from it (an unknown user, say) is shown as its message, not as a traceback.
    """
    output = ipywidgets.HTML()

    def update(_change: object = None) -> None:
        try:
            table = render(**{name: control.value for name, control in controls.items()})
            output.value = table.to_html(index=False, border=0, justify="left")
        except (LookupError, ValueError) as error:
            message = error.args[0] if error.args else error
            output.value = f"<p><b>{html.escape(str(message))}</b></p>"

    for control in controls.values():
        control.observe(update, names="value")
    update()
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), output])
