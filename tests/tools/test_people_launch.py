"""Colab and Binder, imitated: the stamped address, the set-up cell, postBuild."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import course
import nbformat
import publish
import pyspark
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from conftest import ROOT, copy_working_tree
from helpers.data import locate
from helpers.settings import versions

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
ADDRESS = "https://github.com/someone/a-course"
unix = pytest.mark.skipif(sys.platform == "win32", reason="Colab and Binder run Linux")


def code(path: Path, tag: str) -> str:
    cells = nbformat.read(path, as_version=4).cells
    (cell,) = (cell for cell in cells if tag in cell.metadata.get("tags", []))
    return cell.source


# --- one address --------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path, settings):
    """The files that are stamped, in a folder of their own."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=lambda _, names: [
        name for name in names if not name.endswith(".ipynb")
    ])  # fmt: skip
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return replace(settings, root=tmp_path)


def texts(folder: Path) -> dict[str, str]:
    files = [*folder.glob("*.md"), *(folder / "notebooks").glob("*.ipynb")]
    return {file.name: file.read_text(encoding="utf-8") for file in files}


def give_address(folder: Path, address: str) -> None:
    """Write the address where an author would."""
    file = folder / "pyproject.toml"
    text = re.sub(
        r"^(# )?\[project\.urls\]\n(# )?Repository = .*$", "", file.read_text(), flags=re.M
    )
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
    for path in NOTEBOOKS:
        stamped = nbformat.reads(once[path.name], as_version=4)
        original = nbformat.read(path, as_version=4)
        setup = code(copy.root / "notebooks" / path.name, "setup")
        assert f'REPOSITORY = "{ADDRESS}"' in setup
        opening = stamped.cells[0].source
        name = f"notebooks/{path.name}"
        assert (
            f"](https://mybinder.org/v2/gh/someone/a-course/main?urlpath=lab/tree/{name})"
            in opening
        )
        colab = f"https://colab.research.google.com/github/someone/a-course/blob/main/{name}"
        assert f"]({colab})" in opening
        assert [c.get("outputs") for c in stamped.cells] == [
            c.get("outputs") for c in original.cells
        ]
        counts = [[c.get("execution_count") for c in n.cells] for n in (stamped, original)]
        assert counts[0] == counts[1]
        assert [c.id for c in stamped.cells] == [c.id for c in original.cells]
    assert once["README.md"].count("someone/a-course") == 2
    give_address(copy.root, "")
    publish.stamp(copy)
    assert texts(copy.root) == before


def test_without_an_address_there_is_no_link_to_nowhere(copy):
    give_address(copy.root, "")
    publish.stamp(copy)
    for name, text in texts(copy.root).items():
        assert "mybinder.org/v2" not in text and "research.google.com/github" not in text, name
    assert publish.NO_ADDRESS in (copy.root / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "address", ["https://example.org/a/b", "github.com/a/b", "https://github.com/a"]
)
def test_a_wrong_address_is_one_sentence(copy, address, monkeypatch, capsys):
    give_address(copy.root, address)
    monkeypatch.setenv("HELPERS_HOME", str(ROOT))
    monkeypatch.setattr(course.Settings, "from_env", lambda: copy)
    for command in ("stamp", "nav"):
        assert course.main([command]) == 1
        told = capsys.readouterr().err
        assert "https://github.com/OWNER/REPO" in told and told.count("\n") == 1


@pytest.mark.parametrize("spelling", [f"{ADDRESS}/", f"{ADDRESS}.git", f" {ADDRESS} "])
def test_spellings_of_an_address_are_one(copy, spelling):
    give_address(copy.root, spelling)
    assert publish.repository(copy.root) == ADDRESS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_set_up_cell_installs_what_the_opening_asks_for(path):
    opening = nbformat.read(path, as_version=4).cells[0].source
    extra = re.search(r"\.\[([\w,]+)\]", opening)
    wanted = f'"{extra[1]}"' if extra else ""
    assert f'["prepare"]({wanted})' in code(path, "setup")


# --- a machine like Colab's and Binder's --------------------------------------------------------


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
    (site / "google" / "colab" / "__init__.py").write_text("")
    return folder


def surroundings(machine: Path, home: Path, **more: str) -> dict[str, str]:
    """Return the environment of a new user who has no network and no checkout."""
    kept = {key: os.environ[key] for key in ("PATH", "JAVA_HOME", "LANG") if key in os.environ}
    return {
        **kept,
        "PATH": f"{machine / 'bin'}:{kept['PATH']}",
        "HOME": str(home),
        "MOVIELENS_DOWNLOAD": "0",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads this as: no isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        **more,
    }


RUN_CELLS = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in sys.argv[1:]:
    result = shell.run_cell(cell)
    if not result.success:
        sys.exit(f"FAILED {result.error_in_exec!r}")
"""
ON_COLAB = "import google.colab"


def run_cells(machine: Path, folder: Path, environment: dict[str, str], *cells: str):
    return subprocess.run(
        [str(machine / "bin" / "python"), "-c", RUN_CELLS, *cells],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@unix
def test_the_set_up_cell_turns_an_empty_colab_machine_into_the_course(clone, machine, tmp_path):
    """The stamped cell of notebook 01, run twice: course, Java by apt-get, data, helpers."""
    home, tools = tmp_path / "content", tmp_path / "bin"
    home.mkdir(), tools.mkdir()
    for tool in ("git", "sh", "bash", "uname", "cat", "rm"):
        (tools / tool).symlink_to(shutil.which(tool))
    # No Java here until apt-get is asked for the right package.
    java = f"#!{shutil.which('sh')}\necho 'openjdk version \"17.0.1\"' >&2\n"
    (tools / "apt-get").write_text(
        f'#!{shutil.which("sh")}\necho "$@" >> {tmp_path}/asked\n'
        f'case "$*" in *openjdk-17-jre-headless*) cp {tmp_path}/java {tools}/java;; esac\n'
    )
    (tools / "cp").symlink_to(shutil.which("cp"))
    (tmp_path / "java").write_text(java)
    for file in (tools / "apt-get", tmp_path / "java"):
        file.chmod(0o755)
    environment = surroundings(
        machine, home, GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0=f"url.file://{clone}.insteadOf",
        GIT_CONFIG_VALUE_0=ADDRESS,
    )  # fmt: skip
    environment |= {"PATH": f"{machine / 'bin'}:{tools}"}
    environment.pop("JAVA_HOME", None)
    before = run_cells(machine, home, environment, "import helpers")
    assert "ModuleNotFoundError" in before.stdout + before.stderr
    setup = code(clone / "notebooks" / NOTEBOOKS[0].name, "setup")
    after = (
        "import helpers, os\nfrom helpers import data\nprint('FROM', helpers.__file__)\n"
        "print('HOME', os.environ['HELPERS_HOME'])\n"
        "print('ROWS', data.check(data.locate()).ratings)"
    )
    done = run_cells(machine, home, environment, ON_COLAB, setup, after)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"FROM {machine}" in done.stdout and f"HOME {home / 'course'}" in done.stdout
    assert (
        "a SIMULATED sample" in done.stdout and int(re.search(r"ROWS (\d+)", done.stdout)[1]) > 1000
    )
    assert "PySpark" in done.stdout  # the cell goes on with its versions
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["update -qq", "install -y -qq openjdk-17-jre-headless"]
    again = run_cells(machine, home, environment, ON_COLAB, setup)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "asked").read_text().splitlines() == asked


@unix
def test_a_cell_without_an_address_says_what_to_do(machine, tmp_path):
    """The cell as it is in git today, or stamped with an address that is not there."""
    setup = publish.bootstrap(None)
    done = run_cells(machine, tmp_path, surroundings(machine, tmp_path), ON_COLAB, setup)
    assert done.returncode != 0 and "%env COURSE_REPO=https://github.com/OWNER/REPO" in done.stderr
    assert not (tmp_path / "course").exists()
    nowhere = surroundings(machine, tmp_path, COURSE_REPO=f"file://{tmp_path}/nowhere")
    done = run_cells(machine, tmp_path, nowhere, ON_COLAB, setup)
    assert done.returncode != 0 and "nowhere" in done.stdout + done.stderr
    at_home = surroundings(machine, tmp_path, PYTHONPATH=str(ROOT / "src"))
    elsewhere = run_cells(machine, tmp_path, at_home, setup)
    assert elsewhere.returncode == 0 and elsewhere.stdout + elsewhere.stderr == ""


def test_a_kernel_without_the_course_says_so_in_one_sentence(tmp_path):
    """Also where the learner has a helpers.py, which is then what Python finds."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-S", "-c", publish.bootstrap(None)],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"ImportError: {sys.executable} lacks the course: start 'make lab'")
        assert "During handling" not in done.stderr
        (tmp_path / "helpers.py").touch()


def test_a_missing_package_is_one_sentence_that_names_the_kernels_python():
    assert versions("PySpark").endswith(f", PySpark {pyspark.__version__}")
    with pytest.raises(ImportError, match=rf"^{re.escape(sys.executable)} lacks no-such-package: "):
        versions("pandas", "no-such-package")


def test_files_beside_a_notebook_hide_no_package(tmp_path):
    for name in ("helpers", "random", "data", "openai", "pyspark", "pandas", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('mine')")
    (tmp_path / "mine.py").write_text("answer = 42")
    cells = [code(NOTEBOOKS[0], "setup"), "import json, random, openai, mine; print(mine.answer)"]
    path = tmp_path / "own.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    assert course.execute(path, progress=False).cells[1].outputs[0].text == "42\n"


def colab_module():
    spec = importlib.util.spec_from_file_location("course_colab", ROOT / "tools" / "colab.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_cannot_be_installed_is_one_sentence(monkeypatch, tmp_path):
    colab = colab_module()
    monkeypatch.setattr(colab, "JAVA_HOMES", tmp_path)
    monkeypatch.setenv("HELPERS_HOME", str(ROOT))
    for failing, message in (("pip", "pip could not"), (colab.JAVA, "Java 17 could"),
                             (colab.DATA, "data are not")):  # fmt: skip
        monkeypatch.setattr(colab, "_run", lambda *command, bad=failing: int(bad in command))
        with pytest.raises(colab.ColabError, match=message):
            colab.prepare()


def test_colab_keeps_its_own_kernel_and_widgets(monkeypatch):
    """Everything else that pyproject.toml asks for is installed, once with the extra's packages."""
    colab = colab_module()
    monkeypatch.setenv("HELPERS_HOME", str(ROOT))
    commands = []
    monkeypatch.setattr(colab, "_run", lambda *command: commands.append(command) or 0)
    colab.prepare("llamarec")
    packages, course = commands[0][5:], commands[1][5:]
    names = {re.match(r"[\w.-]+", line)[0] for line in packages}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["llamarec"]
    left_out = {re.match(r"[\w.-]+", line)[0] for line in wanted} - names
    assert left_out == {"ipykernel", "ipython", "ipywidgets", "jupyterlab"}
    several = colab.requirements("llamarec,scale")
    assert set(packages) | set(project["optional-dependencies"]["scale"]) == set(several)
    assert "openai>=3,<4" in packages and course == ("--no-deps", str(ROOT))


def test_a_module_that_pip_renewed_under_the_kernel_asks_for_a_restart(monkeypatch):
    colab = colab_module()
    monkeypatch.setenv("HELPERS_HOME", str(ROOT))
    versions = iter(["1.0", "1.0", "2.0", "1.0"])
    monkeypatch.setattr(colab.metadata, "version", lambda _: next(versions))
    monkeypatch.setattr(colab, "_run", lambda *_: 0)
    with pytest.raises(colab.ColabError, match=r"^numpy had been imported.*Restart session"):
        colab.prepare("llamarec")


def test_the_rest_of_a_command_that_fails_is_shown_in_a_line(capsys):
    colab = colab_module()
    assert colab._run(sys.executable, "-c", "raise ValueError('do this')") == 1
    assert colab._run("no-such-program") == 127
    assert capsys.readouterr().out == "ValueError: do this\nno-such-program was not found.\n"


# --- Binder, and where to start -----------------------------------------------------------------


@unix
@pytest.mark.slow
def test_postbuild_prepares_a_clean_folder(clone, machine, tmp_path):
    """The build installs the course and names its data."""
    home = tmp_path / "home"
    shutil.copytree(clone, home)
    dataset = locate()
    environment = surroundings(
        machine, home, **({"MOVIELENS_DIR": str(dataset.path)} if dataset.verified else {})
    )
    done = subprocess.run(
        ["bash", "postBuild"],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().splitlines()[-1] == dataset.describe()
