"""Notebooks with controls in JupyterLab: Run All on the sample, every control by keyboard."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import course
import nbformat
import pytest
from browsers import offline_environment, serving, shoot
from peak_memory import PeakMemory

from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CALL = "ipywidgets.interactive_output("
MEMORY_LIMIT_MB = 1700  # what runs on Binder, which has 2 GB and JupyterLab in it
RUN_LIMIT_S = 900
SHUT_DOWN = "() => jupyterapp.shell.currentWidget.sessionContext.shutdown()"
DIRTY = "() => jupyterapp.shell.currentWidget.context.model.dirty"
KERNEL = "() => jupyterapp.shell.currentWidget.sessionContext.session.kernel.info"
VERSION = """version => jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON()
    .metadata.language_info?.version === version"""
CHANGED = "([box, text]) => box.innerText !== text && box.innerText.length > 20"
CELLS = """() => jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells
    .filter(cell => cell.cell_type === 'code')
    .map(cell => ({count: cell.execution_count, errors: cell.outputs
        .filter(out => out.output_type === 'error').map(out => out.ename + ': ' + out.evalue)}))"""
READY = """() => window.jupyterapp && jupyterapp.shell.currentWidget?.sessionContext?.session
    ?.kernel?.status === 'idle'"""
BOXES = ".widget-vbox:has(> .widget-output)"
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
    # What the kernel says of itself is written into the notebook: on another Python, its version.
    version = page.evaluate(KERNEL)["language_info"]["version"]
    page.wait_for_function(VERSION, arg=version)
    here = f'"version": "{version}"'
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
    with PeakMemory(lab.process.pid) as memory:
        run_all(page, lab, path)
        boxes = page.query_selector_all(BOXES)
        assert len(boxes) == calls
        for box in boxes:
            shown = box.query_selector(".widget-output")
            for place, control in enumerate(box.query_selector_all(CONTROLS)):
                control.scroll_into_view_if_needed()
                if place:
                    page.keyboard.press("Tab")  # from the control before
                else:
                    control.focus()
                assert page.evaluate("box => box === document.activeElement", control)
                before = shown.inner_text()
                move(page, control)
                page.wait_for_function(CHANGED, arg=[shown, before])
        shoot(page, path.stem)
        page.evaluate(SHUT_DOWN)
    assert 100 < memory.peak_mb < MEMORY_LIMIT_MB


@pytest.fixture
def course_lab(browser, tmp_path, settings, monkeypatch):
    """JupyterLab as `make lab` opens it, on copies of its own."""
    for name in ("notebooks", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "trusted"))
    environment, token = offline_environment(tmp_path), "0123456789abcdef"
    server = ["ip=127.0.0.1", "port={port}", "port_retries=0", "allow_root=True"]
    options = [f"--ServerApp.{option}" for option in server]
    options += ["--no-browser", f"--IdentityProvider.token={token}"]
    options += ["--LabApp.expose_app_in_browser=True"]
    options += course.lab_options(replace(settings, root=tmp_path))
    command = [sys.executable, "-m", "jupyterlab", *options]
    with serving(command, "api", tmp_path, environment, token) as server:
        yield server


@pytest.mark.browser
def test_make_lab_shows_a_trusted_copy_its_contents_and_no_news(course_lab, page, browser):
    page.goto(course_lab.at("lab/tree/work/01_data_loading.ipynb"), timeout=60_000)
    page.wait_for_function(READY, timeout=60_000)
    page.get_by_text("The long tail").first.wait_for()  # in the table of contents
    assert page.locator(".jp-TableOfContents").first.is_visible()
    set_up = page.locator(".jp-CodeCell").first
    assert set_up.locator(".jp-InputPlaceholder").is_visible()  # its source is hidden
    assert page.locator(".jp-OutputArea svg").first.is_visible()  # trusted
    assert not page.locator(".jp-toast, .Toastify__toast").count() and not browser.refused
    shoot(page, "make_lab")


def test_links_and_pictures_lead_from_a_copy_where_they_lead_from_the_course():
    for path in (ROOT / "notebooks").rglob("[0-9][0-9]_*.ipynb"):
        place = ROOT / "work" / path.relative_to(ROOT / "notebooks")
        for link in re.findall(
            r"\]\((?!http)([\w./]+\.(?:md|png|ipynb|py|svg))", path.read_text(encoding="utf-8")
        ):
            target = os.path.normpath(place.parent / link)
            assert Path(target.replace(str(ROOT / "work"), str(ROOT / "notebooks"))).exists(), link
