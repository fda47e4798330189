"""Notebooks with controls in JupyterLab: Run All on the sample, every control by keyboard."""

from __future__ import annotations

import platform
import re
import time

import nbformat
import pytest
from browsers import shoot
from peak_memory import PeakMemory

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CALL = "plots.explorer("
MEMORY_LIMIT_MB = 1700  # what runs on Binder, which has 2 GB and JupyterLab in it
RUN_LIMIT_S = 900
SHUT_DOWN = "() => jupyterapp.shell.currentWidget.sessionContext.shutdown()"
DIRTY = "() => jupyterapp.shell.currentWidget.context.model.dirty"
CELLS = """() => jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
    .filter(cell => cell.cell_type === 'code')
    .map(cell => ({count: cell.execution_count, errors: cell.outputs
        .filter(out => out.output_type === 'error').map(out => out.ename + ': ' + out.evalue)}))"""
READY = """() => window.jupyterapp && jupyterapp.shell.currentWidget?.sessionContext?.session
    ?.kernel?.status === 'idle'"""
BOXES = ".widget-vbox:has(> .widget-hbox):has(> .widget-html):not(.course-app)"
CONTROLS = ".widget-text input, .widget-dropdown select, .noUi-handle"


def notebooks_with_controls():
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        calls = sum(cell.source.count(CALL) for cell in cells if cell.cell_type == "code")
        if calls:
            yield pytest.param(path, calls, id=path.stem)


def run_all(page, lab, path) -> None:
    """Open a notebook, choose Run > Run All Cells, and wait for the last cell."""
    page.goto(lab.at(f"lab/tree/notebooks/{path.name}?reset"), timeout=60_000)
    page.wait_for_function(READY, timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    deadline = time.monotonic() + RUN_LIMIT_S
    while not all(cell["count"] for cell in page.evaluate(CELLS)):
        assert not any(cell["errors"] for cell in page.evaluate(CELLS)), page.evaluate(CELLS)
        assert time.monotonic() < deadline, "the notebook takes too long"
        page.wait_for_timeout(500)
    assert not any(cell["errors"] for cell in page.evaluate(CELLS))


def move(page, control) -> None:
    """Move a control by one step with the keyboard alone; it has the focus already."""
    kind = control.evaluate("box => box.tagName")
    # JupyterLab takes the arrow keys of a closed list for itself; an open one has its own.
    keys = {"INPUT": ("ArrowUp", "Enter"), "SELECT": ("Space", "ArrowDown", "Enter")}
    for key in keys.get(kind, ("ArrowRight",)):
        page.keyboard.press(key)


@pytest.mark.browser
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_that_is_opened_and_saved_stays_as_it_is(path, lab, page):
    page.goto(lab.at(f"lab/tree/notebooks/{path.name}?reset"), timeout=60_000)
    page.wait_for_function(READY, timeout=60_000)
    page.wait_for_timeout(1_000)  # what the kernel says of itself is written into the notebook
    # Python's version is that of the kernel: on another one, autosave writes it.
    here = f'"version": "{platform.python_version()}"'
    expected = re.sub('"version": "3[.0-9]+"', here, path.read_text(encoding="utf-8"))
    if expected == path.read_text(encoding="utf-8"):
        assert not page.evaluate(DIRTY)
    page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
    assert page.request.get(lab.at(f"files/notebooks/{path.name}")).text() == expected
    page.evaluate(SHUT_DOWN)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("path", "calls"), [*notebooks_with_controls()])
def test_run_all_and_every_control(path, calls, lab, page, sample_results):
    memory = PeakMemory(lab.process.pid)
    memory.start()
    run_all(page, lab, path)
    boxes = page.query_selector_all(BOXES)
    assert len(boxes) == calls
    for box in boxes:
        shown = box.query_selector(".widget-html-content")
        for place, control in enumerate(box.query_selector_all(CONTROLS)):
            control.scroll_into_view_if_needed()
            if place:
                page.keyboard.press("Tab")  # from the control before
            else:
                control.focus()
            assert page.evaluate("box => box === document.activeElement", control)
            before = shown.inner_text()
            move(page, control)
            page.wait_for_function("([box, text]) => box.innerText !== text", arg=[shown, before])
            assert len(shown.inner_text()) > 20
    shoot(page, path.stem)
    page.evaluate(SHUT_DOWN)
    memory.stop()
    assert 100 < memory.peak_mb < MEMORY_LIMIT_MB
