"""Colab and Binder: the stamped address, and the set-up cell on a machine without the course."""

import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlparse

import colab
import lessons
import nbformat
import publish
import pytest

from conftest import ROOT, copy_working_tree

NOTEBOOKS = lessons.paths()
ADDRESS = "https://github.com/someone/a-course"
unix = pytest.mark.skipif(sys.platform == "win32", reason="Colab and Binder run Linux")


@pytest.fixture
def copy(tmp_path, settings):
    """The files that are stamped, in a folder of their own."""
    for name in ("notebooks", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return replace(settings, root=tmp_path)


def texts(folder: Path) -> dict[str, str]:
    files = [*folder.glob("*.md"), *folder.glob("*/*.ipynb")]
    return {file.name: file.read_text(encoding="utf-8") for file in files}


@pytest.fixture
def ci(monkeypatch):
    """Set what CI says of the address; at first it says nothing."""

    def say(address: str | None) -> None:
        server, _, name = (address or "").partition("github.com/")
        monkeypatch.setenv("GITHUB_SERVER_URL", f"{server}github.com" if address else "")
        monkeypatch.setenv("GITHUB_REPOSITORY", name)

    say(None)
    return say


def test_the_repository_is_stamped_as_it_stands(copy, ci):
    before = texts(copy.root)
    known = re.search(r"github/([\w.-]+/[\w.-]+)/blob", before["README.md"])
    ci(f"https://github.com/{known[1]}" if known else None)
    publish.stamp(copy)
    assert texts(copy.root) == before


@pytest.mark.parametrize(
    ("origin", "found"),
    [
        (ADDRESS, ADDRESS), (f"{ADDRESS}.git", ADDRESS), ("git@github.com:a/b.c.git", "a/b.c"),
        ("ssh://git@github.com/a/b", "a/b"), ("https://me@github.com/a/b.git", "a/b"),
        ("https://github.com/a", None), ("https://notgithub.com/a/b", None), ("/some/folder", None),
    ],
)  # fmt: skip
def test_the_address_is_asked_of_git_unless_ci_or_the_project_says_it(copy, ci, origin, found):
    subprocess.run(["git", "init", "-q"], cwd=copy.root, check=True)
    assert publish.repository(copy.root) is None
    subprocess.run(["git", "remote", "add", "origin", origin], cwd=copy.root, check=True)
    expected = found and f"https://github.com/{found.removeprefix('https://github.com/')}"
    assert publish.repository(copy.root) == expected
    ci("https://github.com/ci/said")
    assert publish.repository(copy.root) == "https://github.com/ci/said"
    with (copy.root / "pyproject.toml").open("a") as file:
        file.write('\n[project.urls]\nRepository = "https://github.com/an/author"\n')
    assert publish.repository(copy.root) == "https://github.com/an/author"


def test_an_address_reaches_every_place_and_leaves_again(copy, ci, capsys):
    publish.stamp(copy)
    before = texts(copy.root)
    ci(ADDRESS)
    publish.stamp(copy)
    assert ADDRESS in capsys.readouterr().out
    once = texts(copy.root)
    publish.stamp(copy)
    assert texts(copy.root) == once
    for index, path in enumerate(NOTEBOOKS):
        original = nbformat.read(path, as_version=4)
        stamped = nbformat.reads(once[path.name], as_version=4)
        (cell,) = lessons.cells(copy.root / "notebooks" / path.name, "setup")
        assert f"curl -sfL {ADDRESS}/raw/main/tools/colab.py" in cell.source
        opening = stamped.cells[0].source
        for link in publish.launch_links(ADDRESS, f"notebooks/{path.name}").values():
            assert f"]({link})" in opening
        for neighbour in NOTEBOOKS[max(index - 1, 0) : index + 2]:
            assert neighbour == path or f"({neighbour.name})" in opening
        for cell, kept in zip(stamped.cells, original.cells, strict=True):
            assert cell.id == kept.id and cell.get("outputs") == kept.get("outputs")
            assert cell.get("execution_count") == kept.get("execution_count")
    ci(None)
    publish.stamp(copy)
    assert texts(copy.root) == before  # and no link to nowhere is left


def test_binder_starts_an_image_and_pulls_the_course_into_it():
    link = urlparse(publish.launch_links(ADDRESS, "notebooks/x.ipynb")["Binder"])
    assert link.path == "/v2/gh/someone/a-course/binder"
    inner = urlparse(parse_qs(link.query)["urlpath"][0])
    assert inner.path == "git-pull"
    assert {key: value for key, (value,) in parse_qs(inner.query).items()} == {
        "repo": ADDRESS, "branch": "main", "targetpath": "course",
        "urlpath": "lab/tree/course/notebooks/x.ipynb",
    }  # fmt: skip


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A git repository with the working tree as it is now."""
    folder = tmp_path_factory.mktemp("origin") / "course"
    copy_working_tree(folder, without=("tests/", "shared/"))
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*who, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Path:
    """A fresh virtual environment that sees the installed packages, but not the course.

    ``pip`` in it works offline. Its ``google.colab`` makes it look like Colab's.
    """
    folder = tmp_path_factory.mktemp("machine") / "venv"
    if find_spec("setuptools") is None or find_spec("pip") is None:
        pytest.skip("needs pip and setuptools here: nothing is fetched")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    # Packages of a folder that a .pth file names are seen; editable installs in it are not.
    (site / "installed.pth").write_text(sysconfig.get_path("purelib"))
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "_shell.py").write_text(
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "class Shell(InteractiveShell): pass\n"
    )
    return folder


RUN_CELLS = """
import sys
from google.colab._shell import Shell
shell = Shell.instance()
for cell in sys.argv[1:]:
    result = shell.run_cell(cell)
    if not result.success:
        sys.exit(f"FAILED {result.error_in_exec!r}")
"""


@pytest.fixture
def run_cells(machine, clone, tmp_path, httpserver):
    """Run cells as a new user of the machine whom the network gives GitHub and the session only.

    There is no Java until ``apt-get`` is asked for the right package.
    """
    home, tools = tmp_path / "content", tmp_path / "bin"
    home.mkdir(), tools.mkdir()
    for tool in ("git", "sh", "bash", "uname", "cat", "cp", "rm", "grep", "xargs"):
        (tools / tool).symlink_to(shutil.which(tool))
    scripts = {
        "apt-get": f'echo "$@" >> {tmp_path}/asked\n'
        f'case "$*" in *openjdk-17-jre-headless*) cp {tmp_path}/java {tools}/java;; esac',
        "../java": "echo 'openjdk version \"17.0.1\"' >&2",
        "curl": f'case "$*" in *:9000/api/sessions) cat {tmp_path}/session;; *"-sfL {ADDRESS}/"*) '
        f'cat {clone}/tools/colab.py;; esac',
    }  # fmt: skip
    for name, script in scripts.items():
        (tools / name).write_text(f"#!{shutil.which('sh')}\n{script}\n")
        (tools / name).chmod(0o755)

    def run(*cells: str, path: str, origin: Path = clone):
        answer = f'[{{"path":"fileId={path}","name":"x.ipynb","type":"notebook"}}]'
        (tmp_path / "session").write_text(answer)
        httpserver.expect_request("/api/sessions").respond_with_data(answer)
        environment = {
            "PATH": f"{machine / 'bin'}:{tools}", "HOME": str(home), "MOVIELENS_DOWNLOAD": "0",
            "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as: no isolation
            "COLAB_JUPYTER_IP": httpserver.host, "KMP_TARGET_PORT": str(httpserver.port),
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{origin}.insteadOf",
            "GIT_CONFIG_VALUE_0": ADDRESS,
        }  # fmt: skip
        return subprocess.run(
            [str(machine / "bin" / "python"), "-c", RUN_CELLS, *cells],
            cwd=home, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


ON_GITHUB = f"{ADDRESS}/blob/main/notebooks/01_data_loading.ipynb".replace(":", "%3A", 1)


@unix
def test_the_set_up_cell_turns_an_empty_colab_machine_into_the_course(run_cells, tmp_path, machine):
    """The cell of notebook 01 as it is here, run twice: course, Java by apt-get, helpers."""
    after = (
        "import helpers, os\nfrom helpers import data\nprint('FROM', helpers.__file__)\n"
        "print('ROWS', data.check(data.locate()).ratings)"
    )
    set_up = publish.set_up(None) + 'print(versions("PySpark"))'
    done = run_cells(set_up, after, path=ON_GITHUB)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"1 of 3: fetching the course from {ADDRESS}." in done.stdout
    assert f"FROM {machine}" in done.stdout
    assert int(re.findall(r"ROWS (\d+)", done.stdout)[0]) > 1000
    assert "PySpark" in done.stdout  # the cell goes on with its versions
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["update -qq", "install -y -qq openjdk-17-jre-headless"]
    again = run_cells(set_up, path=ON_GITHUB)
    assert again.returncode == 0 and "1 of 3" not in again.stdout, again.stdout + again.stderr
    assert (tmp_path / "asked").read_text().splitlines() == asked


@unix
@pytest.mark.parametrize(
    ("address", "path", "sentence"),
    [
        (None, "1a2b", "No course here: git clone it"),  # a copy in Drive, never stamped
        (ADDRESS, "1a2b", "Colab does not say where this notebook comes from"),
        (ADDRESS, ON_GITHUB, f"{ADDRESS} could not be fetched"),
    ],
)
def test_what_cannot_be_fetched_is_one_sentence_and_no_traceback(
    run_cells, tmp_path, address, path, sentence
):
    done = run_cells(publish.set_up(address), path=path, origin=tmp_path / "nothing")
    assert done.returncode == 1 and sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_copy_in_drive_still_knows_where_it_comes_from(monkeypatch, tmp_path):
    """Its session has no address any more, but its text has the stamped one."""
    cells = [{"source": [publish.set_up(ADDRESS)]}]
    message = SimpleNamespace(blocking_request=lambda kind, **_: {"ipynb": {"cells": cells}})
    monkeypatch.setattr(colab.importlib, "import_module", lambda name: message)
    monkeypatch.setattr(colab, "ROOT", tmp_path)
    commands = []
    monkeypatch.setattr(colab, "_run", lambda *command: commands.append(command) or 1)
    with pytest.raises(SystemExit, match="could not be fetched"):
        colab.fetch(colab.session())
    assert commands == [("git", "clone", "--quiet", "--depth", "1", ADDRESS, str(tmp_path))]


@pytest.mark.parametrize(
    ("name", "torch"), [("08_llamarec", True), ("Copy of 01_data_loading", False), ("mine", False)]
)
def test_the_extras_are_those_of_the_notebooks_opening_and_colabs_own_packages_stay(name, torch):
    wanted = colab.requirements(f'[{{"path":"fileId=1a2b","name":"{name}.ipynb"}}]')
    names = {re.split(r"[^\w.-]", line)[0] for line in wanted}
    assert "pandas" in names and ("torch" in names) == torch and not names & colab.COLABS_OWN


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_set_up_cell_has_five_lines_and_is_collapsed(path):
    (cell,) = lessons.cells(path, "setup")
    lines = [line for line in cell.source.splitlines() if line]
    assert len(lines) == 5 and lines[-1].startswith("print(versions(")
    assert 'missing? Say "make lab"' in lines[3]  # IPython shows the failing line with its remark
    assert cell.metadata["jupyter"]["source_hidden"]


@pytest.mark.parametrize(
    ("failing", "message"),
    [("pip", "pip could not"), (colab.JAVA[-1], "Java 17 could")],
)
def test_what_cannot_be_installed_is_one_sentence(failing, message, monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", str(ROOT))
    monkeypatch.setenv("JAVA_HOME", "")  # restored afterwards
    monkeypatch.setattr(colab, "_run", lambda *command: int(failing in command))
    with pytest.raises(SystemExit, match=message):
        colab.install("")
