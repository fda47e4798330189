"""Colab and Binder: the stamped address, and the set-up cell on a machine without the course."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import colab
import course
import nbformat
import publish
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from conftest import ROOT, copy_working_tree
from helpers.settings import versions

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
ADDRESS = "https://github.com/someone/a-course"
unix = pytest.mark.skipif(sys.platform == "win32", reason="Colab and Binder run Linux")


def set_up_cell(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = (cell for cell in cells if "setup" in cell.metadata.get("tags", []))
    return cell.source


# --- one address --------------------------------------------------------------------------------


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


def give_address(folder: Path, address: str) -> None:
    """Write the address where an author would."""
    file = folder / "pyproject.toml"
    text = re.sub(r"^(# )?(\[project\.urls\]|Repository = ).*\n", "", file.read_text(), flags=re.M)
    file.write_text(f'{text}\n[project.urls]\nRepository = "{address}"\n')


def test_the_repository_is_stamped_as_it_stands(copy):
    before = texts(copy.root)
    publish.stamp(copy)
    assert texts(copy.root) == before


def test_an_address_reaches_every_place_and_leaves_again(copy):
    before = texts(copy.root)
    give_address(copy.root, ADDRESS)
    assert publish.stamp(copy) == ADDRESS
    once = texts(copy.root)
    publish.stamp(copy)
    assert texts(copy.root) == once
    for index, path in enumerate(NOTEBOOKS):
        original = nbformat.read(path, as_version=4)
        stamped = nbformat.reads(once[path.name], as_version=4)
        assert f'"{ADDRESS}" course' in set_up_cell(copy.root / "notebooks" / path.name)
        opening = stamped.cells[0].source
        for link in publish.launch_links(ADDRESS, f"notebooks/{path.name}").values():
            assert f"]({link})" in opening
        for neighbour in NOTEBOOKS[max(index - 1, 0) : index + 2]:
            assert neighbour == path or f"({neighbour.name})" in opening
        for cell, kept in zip(stamped.cells, original.cells, strict=True):
            assert cell.id == kept.id and cell.get("outputs") == kept.get("outputs")
            assert cell.get("execution_count") == kept.get("execution_count")
    give_address(copy.root, "")
    publish.stamp(copy)
    assert texts(copy.root) == before  # and no link to nowhere is left


@pytest.mark.parametrize("address", ["https://example.org/a/b", "https://github.com/a"])
def test_a_wrong_address_is_one_sentence(copy, address, monkeypatch, capsys):
    give_address(copy.root, address)
    monkeypatch.setattr(course.Settings, "from_env", lambda: copy)
    assert course.main(["stamp"]) == 1
    printed = capsys.readouterr().err
    assert "https://github.com/OWNER/REPO" in printed and printed.count("\n") == 1


# --- a machine like Colab's ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A git repository with the working tree as it is now, stamped with ``ADDRESS``."""
    folder = tmp_path_factory.mktemp("origin") / "course"
    copy_working_tree(folder, without=("tests/", "shared/"))
    give_address(folder, ADDRESS)
    stamped = dict(os.environ, HELPERS_HOME=str(folder))
    command = [sys.executable, str(folder / "tools" / "course.py"), "stamp"]
    subprocess.run(command, env=stamped, check=True, capture_output=True)
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


def run_cells(machine: Path, folder: Path, path: str, *cells: str, **more: str):
    """Run cells as a new user of the machine who has no network and no checkout."""
    environment = {
        "PATH": f"{machine / 'bin'}:{path}", "HOME": str(folder), "MOVIELENS_DOWNLOAD": "0",
        "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as: no isolation
        **more,
    }  # fmt: skip
    return subprocess.run(
        [str(machine / "bin" / "python"), "-c", RUN_CELLS, *cells],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@unix
def test_the_set_up_cell_turns_an_empty_colab_machine_into_the_course(clone, machine, tmp_path):
    """The stamped cell of notebook 01, run twice: course, Java by apt-get, data, helpers."""
    home, tools = tmp_path / "content", tmp_path / "bin"
    home.mkdir(), tools.mkdir()
    for tool in ("git", "sh", "bash", "uname", "cat", "cp", "rm"):
        (tools / tool).symlink_to(shutil.which(tool))
    # No Java here until apt-get is asked for the right package.
    shell = f"#!{shutil.which('sh')}\n"
    (tools / "apt-get").write_text(
        f'{shell}echo "$@" >> {tmp_path}/asked\n'
        f'case "$*" in *openjdk-17-jre-headless*) cp {tmp_path}/java {tools}/java;; esac\n'
    )
    (tmp_path / "java").write_text(f"{shell}echo 'openjdk version \"17.0.1\"' >&2\n")
    for file in (tools / "apt-get", tmp_path / "java"):
        file.chmod(0o755)
    git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.file://{clone}.insteadOf",
           "GIT_CONFIG_VALUE_0": ADDRESS}  # fmt: skip
    set_up = set_up_cell(clone / "notebooks" / NOTEBOOKS[0].name)
    after = (
        "import helpers, os\nfrom helpers import data\nprint('FROM', helpers.__file__)\n"
        "print('ROWS', data.check(data.locate()).ratings)"
    )
    done = run_cells(machine, home, str(tools), set_up, after, **git)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"FROM {machine}" in done.stdout and "a SIMULATED sample" in done.stdout
    assert int(re.findall(r"ROWS (\d+)", done.stdout)[0]) > 1000
    assert "PySpark" in done.stdout  # the cell goes on with its versions
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["update -qq", "install -y -qq openjdk-17-jre-headless"]
    again = run_cells(machine, home, str(tools), set_up, **git)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "asked").read_text().splitlines() == asked


@unix
def test_a_cell_without_an_address_says_what_to_do(machine, tmp_path):
    done = run_cells(machine, tmp_path, os.environ["PATH"], publish.set_up(None))
    assert done.returncode != 0 and "COURSE_REPO: parameter" in done.stdout + done.stderr
    assert "%env COURSE_REPO=https://" in publish.set_up(None).splitlines()[0]
    assert not (tmp_path / "course").exists()


def test_a_kernel_without_the_course_says_so_where_it_fails():
    (line,) = (x for x in publish.set_up(None).splitlines() if x.startswith("from helpers"))
    assert 'missing? Say "make lab"' in line  # IPython shows the failing line with its remark


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_set_up_cell_has_five_lines_and_is_collapsed(path):
    (cell,) = (
        cell
        for cell in nbformat.read(path, as_version=4).cells
        if "setup" in cell.metadata.get("tags", [])
    )
    lines = [line for line in cell.source.splitlines() if line]
    assert len(lines) == 5 and max(map(len, lines)) <= 88
    assert cell.metadata["jupyter"]["source_hidden"]


def test_a_missing_package_is_one_sentence_that_names_the_kernels_python():
    with pytest.raises(ImportError, match=rf"^{re.escape(sys.executable)} lacks no-such-package: "):
        versions("pandas", "no-such-package")


def test_files_beside_a_notebook_hide_no_package(tmp_path):
    for name in ("random", "data", "openai", "pyspark", "pandas", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')")
    (tmp_path / "mine.py").write_text("answer = 42")
    cells = [set_up_cell(NOTEBOOKS[0]), "import json, random, openai, mine; print(mine.answer)"]
    path = tmp_path / "own.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    assert course.execute(path, progress=False).cells[1].outputs[0].text == "42\n"


def test_colab_keeps_its_own_kernel_and_widgets():
    names = {re.split(r"[^\w.-]", line)[0] for line in colab.requirements("llamarec,scale")}
    assert names >= {"pandas", "torch", "implicit"} and not names & colab.COLABS_OWN


@pytest.mark.parametrize(
    ("failing", "message"),
    [("pip", "pip could not"), (colab.JAVA, "Java 17 could"), (colab.DATA, "data are not")],
)
def test_what_cannot_be_installed_is_one_sentence(failing, message, monkeypatch):
    monkeypatch.setenv("HELPERS_HOME", str(ROOT))
    monkeypatch.setenv("JAVA_HOME", "")  # restored afterwards
    monkeypatch.setattr(colab, "_run", lambda *command: int(failing in command))
    with pytest.raises(colab.ColabError, match=message):
        colab.prepare()
