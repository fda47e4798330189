"""Colours by libraries: told apart by colour-blind eyes (colorspacious), read on their ground."""

import itertools
import re

import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import page
import pandas as pd
import pytest

from helpers import plots

colorspacious = pytest.importorskip("colorspacious", reason="needs pip install -e '.[tools]'")
wcag = pytest.importorskip("wcag_contrast_ratio", reason="needs pip install -e '.[tools]'")

KINDS = ["none", "deuteranomaly", "protanomaly", "tritanomaly"]
# A difference of 1 in CAM02-UCS is about the least that is seen side by side.
APART, FAR_APART = 10, 15
LINE, TEXT = 3.0, 4.5  # WCAG 2.2, 1.4.11 and 1.4.3 (AA)


def seen(colour: str, kind: str) -> np.ndarray:
    """Return sRGB as an eye sees it, anomaly complete (severity 100)."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    if kind == "none":
        return rgb
    space = {"name": "sRGB1+CVD", "cvd_type": kind, "severity": 100}
    return np.clip(colorspacious.cspace_convert(rgb, space, "sRGB1"), 0, 1)


def least_difference(colours, kind: str) -> float:
    return min(
        float(colorspacious.deltaE(seen(a, kind), seen(b, kind), input_space="sRGB1"))
        for a, b in itertools.combinations(colours, 2)
    )


def contrast(colour: str, ground: str = "#FFFFFF") -> float:
    return wcag.rgb(matplotlib.colors.to_rgb(colour), matplotlib.colors.to_rgb(ground))


@pytest.mark.parametrize("kind", KINDS)
def test_the_palette_is_told_apart(kind):
    assert least_difference(plots.PALETTE, kind) >= APART
    assert least_difference((plots.BLUE, plots.RED, plots.GREY), kind) >= FAR_APART  # slope chart


def test_a_bad_palette_is_seen():
    assert least_difference(("#D55E00", "#73A000"), "none") > FAR_APART
    assert least_difference(("#D55E00", "#8C8C00"), "deuteranomaly") < APART
    assert contrast("#E69F00") < LINE < contrast(plots.GREY) < TEXT < contrast(plots.BLUE)


def test_marks_stand_out_from_white_and_do_not_rest_on_colour_alone():
    """Orange and sky blue are too pale for white: their marks have an edge, and a shape each."""
    table = pd.DataFrame(np.eye(6), columns=list("abcdef"))
    figure = plots.lines(table, xlabel="x", ylabel="y")
    drawn = figure.axes[0].lines
    assert len({line.get_marker() for line in drawn}) == len(drawn) == 6
    for line in drawn:
        assert contrast(matplotlib.colors.to_hex(line.get_markeredgecolor())) >= LINE
    for colour in (plots.BLUE, plots.GREEN, plots.RED, plots.PURPLE, plots.GREY, plots.BLACK):
        assert contrast(colour) >= LINE  # what is used without an edge
    plt.close("all")


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_the_page_is_read_on_its_ground(scheme):
    css = (page.SOURCES / "page.css").read_text(encoding="utf-8")
    root = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[scheme]
    colour = dict(re.findall(r"--([\w-]+): (#\w{6})", root))
    on_card = [(ink, "card", LINE) for ink in ("up", "down", "flat", "accent")]
    texts = itertools.product(("ink", "soft"), ("ground", "card", "tint"), [TEXT])
    for ink, ground, least in [
        *texts,
        *on_card,
        ("accent", "card", TEXT),
        ("on-accent", "accent", TEXT),
    ]:
        assert contrast(colour[ink], colour[ground]) >= least, (ink, ground)
