"""Figures carry labels and alt text; a widget shows what its static table shows, or a sentence."""

from __future__ import annotations

import ipywidgets
import matplotlib.pyplot as plt
import pandas as pd
import pytest

from helpers import plots
from helpers.candidates import NoCandidatesError


def render(user: int, remedy: str) -> pd.DataFrame:
    if user != 12:
        raise NoCandidatesError(f"User {user} is not in the model, try <12>.")
    return pd.DataFrame({"title": [f"{remedy} & <b>bold</b>"]})


def explore():
    user = ipywidgets.IntText(12)
    remedy = ipywidgets.Dropdown(options=["plain", "support"])
    box = plots.explorer(render, user=user, remedy=remedy)
    return user, remedy, box.children[1]


def test_the_table_follows_the_controls():
    _, remedy, shown = explore()
    assert "plain" in shown.value
    remedy.value = "support"
    assert "support" in shown.value and "plain" not in shown.value


def test_an_unknown_user_gets_the_sentence_and_a_known_one_the_table_again():
    user, _, shown = explore()
    user.value = 999
    assert "User 999 is not in the model" in shown.value and "<table" not in shown.value
    assert "&lt;12&gt;" in shown.value
    user.value = 12
    assert "<table" in shown.value


def test_titles_are_text_not_markup():
    assert "<b>" not in explore()[2].value and "&lt;b&gt;bold" in explore()[2].value


def test_other_faults_are_not_hidden():
    def broken(weight: float) -> pd.DataFrame:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        plots.explorer(broken, weight=ipywidgets.FloatSlider(0.5))


def test_a_figure_is_shown_with_its_alt_text_and_closed(monkeypatch):
    displayed = []
    monkeypatch.setattr(plots, "display", lambda figure, metadata: displayed.append(metadata))
    good = plots.bars(pd.Series({"a": 1}), xlabel="kind", ylabel="movies (count)")
    alt = "Bar chart with one bar of height one."
    plots.show(good, alt)
    assert displayed == [{"image/png": {"alt": alt}}]
    assert good.number not in plt.get_fignums()
    plt.close("all")


def test_a_slope_chart_puts_each_movie_at_its_two_ranks():
    figure = plots.slope_chart(list("abcd"), list("dabc"), left="ALS", right="LLM")
    (axes,) = figure.axes
    ends = {tuple(line.get_ydata()): line.get_color() for line in axes.lines}
    assert ends == {
        (1, 2): plots.GREY, (2, 3): plots.GREY, (3, 4): plots.GREY, (4, 1): plots.BLUE
    }  # fmt: skip
    assert {text.get_text() for text in axes.texts} >= {"4. d", "1. d"}
    plt.close("all")


def test_the_heatmap_frames_its_lowest_cell():
    grid = pd.DataFrame([[0.9, 0.8], [1.0, 0.7]], index=[6, 8], columns=[0.1, 0.2])
    figure = plots.heatmap(grid, xlabel="regularisation", ylabel="rank", value="RMSE (stars)")
    (frame,) = figure.axes[0].patches
    assert frame.get_xy() == (0.5, 0.5)
    assert [text.get_text() for text in figure.axes[0].texts] == [
        "0.900",
        "0.800",
        "1.000",
        "0.700",
    ]
    plt.close("all")


def test_more_lines_than_colours_are_refused():
    many = pd.DataFrame({f"s{i}": [1, 2] for i in range(8)})
    with pytest.raises(ValueError, match="8 lines"):
        plots.lines(many, xlabel="x", ylabel="y")
