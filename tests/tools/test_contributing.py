"""What contributors meet: the template, the check of links, two processes for the tests."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import course
import nbformat
import publish
from nbformat.v4 import new_markdown_cell, new_notebook
from test_hygiene import faults

from conftest import ROOT

TEMPLATE = ROOT / "docs" / "template.ipynb"
GROUPS_TEST = """
import os, pathlib, time, pytest
@pytest.mark.parametrize("name", list("wxyz"))
def test_one(name):
    time.sleep(0.1)
    with (pathlib.Path(__file__).parent / "ran.txt").open("a") as log:
        print(pathlib.Path(__file__).stem, os.environ["PYTEST_XDIST_WORKER"], file=log)
"""


def load(path: Path) -> ModuleType:
    """Return a script that is on no import path as a module."""
    spec = importlib.util.spec_from_file_location(f"course_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_template_keeps_the_conventions_of_the_notebooks_and_runs():
    notebook = nbformat.read(TEMPLATE, as_version=4)
    assert faults(notebook, TEMPLATE.read_text(encoding="utf-8")) == set()
    (set_up,) = (c for c in notebook.cells if "setup" in c.metadata.get("tags", []))
    address = re.search(r"https://github\.com/[\w.-]+/[\w.-]+", set_up.source)
    assert set_up.source.startswith(publish.set_up(address and address[0]))
    executed = course.execute(TEMPLATE)
    outputs = [output for cell in executed.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_dead_links_are_found_and_a_busy_server_is_asked_again(tmp_path, httpserver, monkeypatch):
    links = load(ROOT / ".ci" / "links.py")
    monkeypatch.setattr(links, "EXAMPLES", re.compile("OWNER/REPO"))
    httpserver.expect_oneshot_request("/busy").respond_with_data(status=503)
    for name, status in {"busy": 200, "gone": 404, "shy": 403, "dead": 503}.items():
        httpserver.expect_request(f"/{name}").respond_with_data(status=status)
    names = ("gone", "busy", "shy", "dead")
    text = "\n".join(f"[x]({httpserver.url_for(f'/{name}')}#part)" for name in names)
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "notebooks").mkdir()
    link = new_markdown_cell("[y](http://127.0.0.1:9/closed)")
    nbformat.write(new_notebook(cells=[link]), tmp_path / "notebooks" / "01_a.ipynb")
    assert links.check(tmp_path, pause_s=0.01) == [
        f"README.md: {httpserver.url_for('/gone')}: 404",
        f"README.md: {httpserver.url_for('/dead')}: 503",
        "01_a.ipynb: http://127.0.0.1:9/closed: ConnectError",
    ]


def test_two_processes_share_no_file(tmp_path):
    group_of = load(ROOT / "conftest.py").group_of
    first = group_of("notebooks/01_data_loading.ipynb::Cell 0")
    assert first == group_of("notebooks/05_llm_ranking.ipynb::Cell 3")
    assert first != group_of("notebooks/06_does_it_help.ipynb::Cell 0")
    (tmp_path / "conftest.py").write_text((ROOT / "conftest.py").read_text(encoding="utf-8"))
    for name in "abcd":
        (tmp_path / f"test_{name}.py").write_text(GROUPS_TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    ran = (tmp_path / "ran.txt").read_text().splitlines()
    assert len(ran) == 16 and len(set(ran)) == 4  # each file in one process
    assert {line.split()[1] for line in ran} == {"gw0", "gw1"}
