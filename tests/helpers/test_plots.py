"""Figures are shown with alt text, keep the data's order, and tell moves and lines apart."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from helpers import plots


def test_a_figure_is_shown_with_its_alt_text_and_closed(monkeypatch):
    displayed = []
    monkeypatch.setattr(plots, "display", lambda figure, metadata: displayed.append(metadata))
    figure, panels = plots.new_axes(columns=2)
    plots.show(figure, "Two empty panels.")
    assert displayed == [{"image/png": {"alt": "Two empty panels."}}]
    assert len(panels) == 2 and figure.number not in plt.get_fignums()


def test_a_slope_chart_puts_each_movie_at_its_two_ranks():
    figure = plots.slope_chart(list("abcd"), list("dabc"), left="ALS", right="LLM")
    (axes,) = figure.axes
    ends = {tuple(line.get_ydata()): line.get_color() for line in axes.lines}
    down = dict.fromkeys([(1, 2), (2, 3), (3, 4)], plots.GREY)
    assert ends == down | {(4, 1): plots.BLUE} and axes.yaxis_inverted()
    assert {text.get_text() for text in axes.texts} >= {"4. d", "1. d"}
    plt.close(figure)


def test_lines_and_intervals_stand_at_their_values():
    table = pd.DataFrame({"mean": [0.2, 0.1], "low": [0.1, 0.0], "high": [0.4, 0.2]}, index=[5, 9])
    figure = plots.lines(table, xlabel="x", ylabel="y", level={"random": 0.3})
    *drawn, level = figure.axes[0].lines
    assert [line.get_label() for line in drawn] == ["mean", "low", "high"]
    assert list(drawn[2].get_xydata().ravel()) == [5, 0.4, 9, 0.2] and level.get_ydata()[0] == 0.3
    with pytest.raises(ValueError, match="8 lines; at most seven"):
        plots.lines(pd.DataFrame([range(8)]), xlabel="x", ylabel="y")
    dots = plots.intervals(table, xlabel="NDCG").axes[0]
    assert list(dots.lines[0].get_xydata().ravel()) == [0.2, 1, 0.1, 0]  # the first row on top
    assert [label.get_text() for label in dots.get_yticklabels()] == ["5", "9"]
    plt.close("all")
