"""What contributors meet: workflows, commit hooks, the template, the form, the link check."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import metadata
from pathlib import Path

import course
import nbformat
import publish
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packaging.version import Version
from test_environment import PROJECT
from test_hygiene import faults

from conftest import ROOT, copy_working_tree
from helpers import doctor

WORKFLOWS = ROOT / ".github" / "workflows"
TEMPLATE = ROOT / "docs" / "template.ipynb"


def workflow(name: str) -> dict:
    return yaml.safe_load((WORKFLOWS / name).read_text(encoding="utf-8"))


def steps(name: str) -> list[dict]:
    return [step for job in workflow(name)["jobs"].values() for step in job["steps"]]


# --- GitHub -------------------------------------------------------------------------------------


def test_ci_runs_on_three_systems_with_the_lowest_and_the_newest_python():
    jobs = workflow("ci.yml")["jobs"]
    systems = {system for job in jobs.values() for system in job.get("strategy", {}).get(
        "matrix", {}).get("os", [job["runs-on"]])}  # fmt: skip
    assert systems == {"ubuntu-latest", "macos-latest", "windows-latest"}
    named = metadata("pyspark").get_all("Classifier")
    known = {found[1] for text in named if (found := re.search(r"Python :: (3\.\d+)$", text))}
    newest = max(known, key=Version)
    lowest = PROJECT["requires-python"].removeprefix(">=")
    for name in ("test", "windows"):
        assert jobs[name]["strategy"]["matrix"]["python"] == [lowest, newest]
    assert jobs["test"]["steps"][-2]["run"] == "bash .ci/run"


def test_the_weekly_run_takes_the_newest_packages_and_no_lock():
    weekly = workflow("weekly.yml")
    assert weekly[True]["schedule"][0]["cron"].split()[-1].isdigit()  # YAML reads "on" as true
    newest = weekly["jobs"]["newest"]
    (install,) = (step["run"] for step in newest["steps"] if "pip install" in step.get("run", ""))
    extras = re.search(r"\.\[([\w,]+)\]", install)[1].split(",")
    assert sorted(extras) == sorted(PROJECT["optional-dependencies"])
    assert "--upgrade" in install and "lock" not in str(newest)
    assert any("pytest" in step.get("run", "") for step in newest["steps"])
    assert any(".ci/links.py" in step.get("run", "") for step in weekly["jobs"]["links"]["steps"])


@pytest.mark.parametrize("name", ["ci.yml", "weekly.yml"])
def test_the_files_that_a_workflow_names_exist(name):
    runs = " ".join(step.get("run", "") for step in steps(name))
    named = re.findall(r"(?:tests|notebooks|\.ci)/[\w./]+|requirements[\w.-]*\.lock", runs)
    assert named and all((ROOT / file).is_file() for file in named)
    assert all("uses" in step or "run" in step for step in steps(name))
    assert all(
        re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]) for step in steps(name) if "uses" in step
    )


def test_the_form_for_bugs_asks_for_the_doctors_output():
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text())
    assert {"name", "description", "body"} <= set(form)
    fields = {field["id"]: field for field in form["body"] if field["type"] != "markdown"}
    assert len(fields) == len([f for f in form["body"] if f["type"] != "markdown"])
    asked = fields["doctor"]
    assert asked["type"] == "textarea" and asked["validations"]["required"] is True
    assert f"python -m {doctor.__name__}" in asked["attributes"]["description"]
    for line in asked["attributes"]["placeholder"].splitlines():
        assert re.match(r"(OK|FAIL)  +(\w+): ", line)[2] in doctor.CHECKS


# --- hooks --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A git repository with the working tree as it is now: hooks may change files."""
    pytest.importorskip("pre_commit", reason="needs the tools extra: pip install -e '.[tools]'")
    folder = tmp_path_factory.mktemp("checkout")
    copy_working_tree(folder, without=("shared/",))
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


def hooks(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run pre-commit offline, with the tools of this Python."""
    found = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = dict(os.environ, PATH=found, PRE_COMMIT_HOME=str(folder / ".git" / "hooks-home"))
    environment["HELPERS_HOME"] = str(folder)
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_the_whole_repository_passes_the_hooks(checkout):
    """Lint, format, spelling, secrets, noise, imports: what CI's job *checks* runs."""
    done = hooks(checkout, "--all-files", "--show-diff-on-failure")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    assert done.stdout.count("Passed") == 6


def noisy() -> str:
    output = new_output("stream", name="stdout", text="42\n")
    noise = new_output("stream", name="stderr", text="a warning\n")
    cell = new_code_cell("print(42)", execution_count=3, outputs=[output, noise])
    cell.metadata = nbformat.from_dict(
        {"tags": ["solution"], "execution": {"iopub.status.busy": "now"}, "scrolled": True,
         "slideshow": {"slide_type": "slide"}, "jupyter": {"source_hidden": True}}
    )  # fmt: skip
    notebook = new_notebook(cells=[new_markdown_cell("# T"), cell])
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "mine", "display_name": "My env", "language": "python"},
         "language_info": {"name": "python", "version": "3.12.1"}, "widgets": {"x": 1}}
    )  # fmt: skip
    return nbformat.writes(notebook)


@pytest.mark.parametrize(
    ("hook", "file", "text"),
    [
        ("ruff-check", "src/helpers/x.py", '"""X."""\nimport os\n'),
        ("ruff-format", "src/helpers/x.py", '"""X."""\n\nx  =  1\n'),
        ("codespell", "docs/x.md", "The wrong spel" + "ing of rec" + "ieved words.\n"),
        ("detect-secrets", "docs/x.md", "key = AKIA" + "Q3EGRBKJ2ZX7YT5P\n"),
        ("tidy", "notebooks/99_x.ipynb", noisy()),
    ],
)
def test_each_hook_can_fail(checkout, hook, file, text):
    place = checkout / file
    place.write_text(text)
    try:
        subprocess.run(["git", "add", file], cwd=checkout, check=True)
        done = hooks(checkout, hook, "--files", file)
        assert done.returncode == 1 and "Failed" in done.stdout, done.stdout + done.stderr
    finally:
        subprocess.run(["git", "rm", "-q", "-f", "--cached", file], cwd=checkout, check=True)
        place.unlink()


def test_tidy_keeps_outputs_and_strips_noise(tmp_path, settings, capsys):
    path = tmp_path / "x.ipynb"
    path.write_text(noisy())
    assert (
        course.tidy(settings, [path]) == 1 and "x.ipynb: noise removed." in capsys.readouterr().out
    )
    notebook = nbformat.read(path, as_version=4)
    cell = notebook.cells[1]
    assert [output.text for output in cell.outputs] == ["42\n"] and cell.execution_count == 3
    assert set(cell.metadata) == {"tags", "slideshow", "jupyter"}
    assert notebook.metadata.kernelspec.display_name == "Python 3"
    assert "widgets" not in notebook.metadata and "version" not in notebook.metadata.language_info
    before = path.read_text()
    assert course.tidy(settings, [path]) == 0 and path.read_text() == before


# --- the template -------------------------------------------------------------------------------


def test_the_template_keeps_the_conventions_of_the_notebooks():
    notebook = nbformat.read(TEMPLATE, as_version=4)
    assert faults(notebook, TEMPLATE.read_text(encoding="utf-8")) == set()
    address = publish.repository(ROOT)
    (setup,) = (c for c in notebook.cells if "setup" in c.metadata.get("tags", []))
    assert setup.source.startswith(publish.bootstrap(address))


def test_the_template_runs():
    notebook = course.execute(TEMPLATE, progress=False)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


# --- links to other sites -----------------------------------------------------------------------


def links_module():
    spec = importlib.util.spec_from_file_location("course_links", ROOT / ".ci" / "links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server():
    """A site of which some pages are gone, busy, moved, or shy."""
    asked = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked[self.path] += 1
            status = {"/gone": 404, "/shy": 403, "/moved": 301, "/dead": 503}.get(self.path, 200)
            if self.path == "/busy" and asked[self.path] == 1:
                status = 503
            self.send_response(status)
            if status == 301:
                self.send_header("Location", "/fine")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{site.server_port}", asked
    site.shutdown()
    site.server_close()


def test_dead_links_are_found_and_a_busy_server_is_asked_again(tmp_path, server, monkeypatch):
    address, asked = server
    links = links_module()
    monkeypatch.setattr(links, "EXAMPLES", re.compile("OWNER/REPO"))
    names = ("fine", "gone", "busy", "moved", "shy", "dead")
    (tmp_path / "README.md").write_text("\n".join(f"[x]({address}/{name}#part)" for name in names))
    (tmp_path / "notebooks").mkdir()
    link = new_markdown_cell(f'<a href="{address}/gone2">x</a> [y](http://127.0.0.1:9/closed)')
    nbformat.write(new_notebook(cells=[link]), tmp_path / "notebooks" / "01_a.ipynb")
    dead = links.check(tmp_path, pause_s=0.01)
    assert dead == [
        f"README.md: {address}/gone: 404",
        f"README.md: {address}/dead: 503",
        "01_a.ipynb: http://127.0.0.1:9/closed: ConnectError",
    ]
    assert asked["/busy"] == 2 and asked["/dead"] == 3 and asked["/gone"] == 1


def test_links_of_the_repository_are_found_and_examples_left_out():
    found = links_module().links(ROOT)
    assert "https://grouplens.org/datasets/movielens/" in found
    assert not [link for link in found if "localhost" in link or "OWNER" in link]
