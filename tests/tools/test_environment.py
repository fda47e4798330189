"""One source of dependencies: the locks follow pyproject.toml, and the code its extras."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
LOCKS = ("requirements.lock", "requirements-llamarec.lock", "requirements-tools.lock")
TEXTS = {name: (ROOT / name).read_text(encoding="utf-8") for name in LOCKS}
PINS = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", "\n".join(TEXTS.values()), re.MULTILINE)
SPELLINGS = {"sklearn": "scikit-learn"}


@pytest.mark.parametrize(
    "line", [line for lines in (PROJECT["dependencies"], *EXTRAS.values()) for line in lines]
)
def test_the_locks_satisfy_every_requirement(line):
    requirement = Requirement(line)
    versions = [version for name, version in PINS if name == requirement.name]
    if requirement.name == "torch":  # other builds on other systems: the Makefile has its version
        versions = re.findall(r"^TORCH := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert versions and all(requirement.specifier.contains(version) for version in versions)


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_has_a_hash_and_no_address(name):
    entries = re.split(r"\n(?=[A-Za-z0-9])", TEXTS[name].strip())
    assert len(entries) > 10 and all("--hash=sha256:" in entry for entry in entries)
    assert not re.search(r"https?://|file:|index-url", TEXTS[name])


def imported(source: str) -> set[str]:
    """Return the packages that a source imports, wherever in it, as their requirements' names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    packages = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    return {SPELLINGS.get(name, name.lower().replace("_", "-")) for name in packages}


@pytest.mark.parametrize(("package", "extras"), [("helpers", ()), ("research", ("llamarec",))])
def test_every_import_of_a_package_is_declared(package, extras):
    """What comes along with another package today may not come along tomorrow."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    files = list((ROOT / "src" / package).rglob("*.py"))
    used = set().union(*(imported(file.read_text(encoding="utf-8")) for file in files))
    assert "pandas" in used
    local = re.findall(r"^([\w-]+)==", (ROOT / "requirements-local.lock").read_text(), re.MULTILINE)
    declared = {Requirement(line).name for line in lines} | {*local}
    assert used - {"helpers", "research"} <= declared


BLOCK = """
import sys
class Block:
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block)
"""


def test_what_needs_no_extra_runs_without_one():
    """The commands, and the set-up cells of the notebooks that ask for no extra."""
    cells = ["import course, copies, page"]
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if "pip install -e" not in notebook.cells[0].source:
            code = "\n".join(c.source for c in notebook.cells if c.cell_type == "code")
            cells += re.findall(r"^(?:from (?:helpers|research)\S* )?import [\w, ]+$", code, re.M)
    assert len(cells) > 10
    blocked = ["torch", "transformers", "peft", "sentence_transformers", "sklearn", "safetensors"]
    script = BLOCK.format(blocked=blocked) + "\n".join(cells)
    path = os.pathsep.join(str(ROOT / name) for name in ("src", "tools"))
    environment = dict(os.environ, PYTHONPATH=path)
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", ["ci.yml", "publish.yml", "weekly.yml"])
def test_the_files_that_a_workflow_names_exist(name):
    text = (ROOT / ".github" / "workflows" / name).read_text(encoding="utf-8")
    files = re.findall(
        r"(?:tests|notebooks|\.ci)/[\w./]+\.(?:py|ipynb)|requirements[\w.-]*\.lock", text
    )
    assert files and [file for file in files if not Path(ROOT, file).exists()] == []


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_leave_the_core_to_others_unless_told_otherwise(before, after):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": before} if before else {}
    code = "import os, helpers; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode().strip() == after
