"""Small controls for the notebooks. Each stands beside a static table with the same content."""

from __future__ import annotations

import html
from collections.abc import Callable

import ipywidgets
import pandas as pd


def explorer(
    render: Callable[..., pd.DataFrame], **controls: ipywidgets.ValueWidget
) -> ipywidgets.VBox:
    """Return controls above a table that follows them.

    ``render`` is called with the control values by name and returns the table. A ``LookupError`` or
    ``ValueError`` from it (an unknown user, say) is shown as its message, not as a traceback.
    """
    output = ipywidgets.HTML()

    def update(_change: object = None) -> None:
        values = {name: control.value for name, control in controls.items()}
        output.value = as_html(render, **values)

    for control in controls.values():
        control.observe(update, names="value")
    update()
    return ipywidgets.VBox([ipywidgets.HBox(list(controls.values())), output])


def as_html(render: Callable[..., pd.DataFrame], **values: object) -> str:
    """Return what :func:`explorer` shows for ``values``; all text in the table is escaped."""
    try:
        return render(**values).to_html(index=False, escape=True, border=0)
    except (LookupError, ValueError) as error:
        message = error.args[0] if error.args else error
        return f"<p><b>{html.escape(str(message))}</b></p>"


def user_box(value: int) -> ipywidgets.BoundedIntText:
    """Return a box for a user id; any number may be typed, also one that does not exist."""
    return ipywidgets.BoundedIntText(value=value, min=0, max=10**9, description="user")


def choice(label: str, options: list[str]) -> ipywidgets.Dropdown:
    """Return a drop-down list whose first option is chosen."""
    return ipywidgets.Dropdown(options=options, description=label)


def weight_slider(value: float = 0.5) -> ipywidgets.FloatSlider:
    """Return a slider from 0 (retriever only) to 1 (LLM only)."""
    return ipywidgets.FloatSlider(
        value=value, min=0, max=1, step=0.1, description="LLM weight", continuous_update=False
    )
