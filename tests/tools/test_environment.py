"""One source of dependencies: the lock and environment.yml follow pyproject.toml."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from conftest import ROOT
from helpers.spark import SUPPORTED_JAVA

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", LOCK, re.MULTILINE))
EXTRA_LOCK = (ROOT / "requirements-llamarec.lock").read_text()
EXTRA_PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", EXTRA_LOCK, re.MULTILINE))
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
DEV = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]
TOOLS_LOCK = (ROOT / "requirements-tools.lock").read_text()
SCALE = [Requirement(text) for text in PROJECT["optional-dependencies"]["scale"]]
TOOLS = [Requirement(text) for text in PROJECT["optional-dependencies"]["tools"]]
LLAMAREC = [Requirement(text) for text in PROJECT["optional-dependencies"]["llamarec"]]
# They need the llamarec extra.
EXTRA_MODULES = {"adapting", "content", "embeddings", "language_model", "neural"}
EXTRA_MODULES |= {"sequence_models", "task_metrics", "training", "verbalizer_torch"}


@pytest.mark.parametrize("requirement", CORE + SCALE + DEV, ids=str)
def test_the_lock_satisfies_every_requirement(requirement):
    pins = re.findall(rf"^{re.escape(requirement.name)}==([^\s;\\]+)", LOCK, re.MULTILINE)
    assert pins and all(requirement.specifier.contains(pin) for pin in pins)


def imports(path) -> set[str]:
    """The full names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_every_import_of_the_package_is_declared():
    """What comes along with another package today may not come along tomorrow."""
    modules = list((ROOT / "src").rglob("*.py"))
    assert {path.stem for path in modules} > EXTRA_MODULES
    for extra in (False, True):
        full = set().union(*(imports(p) for p in modules if (p.stem in EXTRA_MODULES) == extra))
        imported = {name.split(".")[0] for name in full}
        foreign = {
            name.lower()
            for name in imported - set(sys.stdlib_module_names) - {"helpers", "research"}
        }
        foreign = {
            {"sklearn": "scikit-learn"}.get(name, name.replace("_", "-")) for name in foreign
        }
        allowed = CORE + LLAMAREC if extra else CORE
        assert foreign <= {requirement.name for requirement in allowed}
        assert foreign >= ({"torch", "safetensors"} if extra else {"pyspark", "openai"})


def test_the_core_does_not_import_what_needs_an_extra():
    for path in (ROOT / "src").rglob("*.py"):
        if path.stem not in EXTRA_MODULES:
            used = {name.removeprefix("research.").split(".")[0] for name in imports(path)}
            assert not used & EXTRA_MODULES, path.name


def test_every_pin_has_a_hash():
    blocks = re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip())
    assert len(blocks) >= len(PINS) > 50
    assert all("--hash=sha256:" in block for block in blocks)


def test_torch_stays_out_of_the_core():
    assert "torch" not in PINS and "torch" not in EXTRA_PINS
    extra = PROJECT["optional-dependencies"]["llamarec"]
    assert any(text.startswith("torch") for text in extra)


def test_the_extra_has_a_lock_of_its_own_beside_the_core():
    """Every package once: what both need stands in the core's lock."""
    for text in PROJECT["optional-dependencies"]["llamarec"]:
        requirement = Requirement(text)
        torch = re.search(r"^TORCH := (\S+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
        pin = torch if requirement.name == "torch" else EXTRA_PINS[requirement.name]
        assert requirement.specifier.contains(pin), text
    assert not set(EXTRA_PINS) & set(PINS)
    assert EXTRA_LOCK.count("--hash=sha256:") >= len(EXTRA_PINS) > 10


def test_the_tools_have_a_lock_of_their_own_that_agrees_with_the_others():
    pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", TOOLS_LOCK, re.MULTILINE)
    for requirement in TOOLS:
        found = [version for name, version in pins if name == requirement.name]
        found += [PINS[requirement.name]] if requirement.name in PINS else []
        assert found and all(requirement.specifier.contains(version) for version in found)
    assert not {name for name, _ in pins} & set(PINS)
    both = [(name, version) for name, version in pins if name in EXTRA_PINS]
    assert all(EXTRA_PINS[name] == version for name, version in both)
    assert TOOLS_LOCK.count("--hash=sha256:") >= len(pins) > 20


def test_the_packages_that_the_course_promises():
    names = {requirement.name for requirement in CORE + DEV}
    assert names >= {
        "jupyterlab", "pyspark", "openai", "pandas", "matplotlib", "nbval", "ipywidgets",
        "pyarrow", "numpy",
    }  # fmt: skip
    limits = {requirement.name: requirement.specifier for requirement in CORE}
    assert not limits["pandas"].contains("3.0.0") and limits["pyspark"].contains("4.3.0")
    assert limits["openai"].contains("3.54.0") and not limits["openai"].contains("2.9.0")


def test_conda_brings_python_and_java_and_the_same_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = environment["dependencies"]
    plain = dict(item.split("=") for item in listed if isinstance(item, str) and "=" in item)
    assert int(plain["openjdk"]) in SUPPORTED_JAVA
    floor = Requirement("x" + PROJECT["requires-python"]).specifier
    assert floor.contains(plain["python"] + ".0")
    (pip,) = [item["pip"] for item in listed if isinstance(item, dict)]
    assert pip == ["--require-hashes", "-r requirements.lock"]
    names = {item if isinstance(item, str) else "pip" for item in listed}
    assert {name.split("=")[0] for name in names} == {"python", "openjdk", "make", "pip"}


def test_ci_and_the_lock_use_versions_that_the_project_allows():
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    jobs = yaml.safe_load(text)["jobs"]
    floor = Requirement("x" + PROJECT["requires-python"]).specifier
    for name in ("test", "windows"):
        pythons = jobs[name]["strategy"]["matrix"]["python"]
        assert pythons and all(floor.contains(f"{version}.0") for version in pythons)
        steps = jobs[name]["steps"]
        (java,) = [step["with"] for step in steps if "setup-java" in step.get("uses", "")]
        assert int(java["java-version"]) in SUPPORTED_JAVA
    lowest = re.search(r'--python-version", "(\S+)"', (ROOT / "tools" / "lock.py").read_text())[1]
    assert f">={lowest}" == PROJECT["requires-python"]


@pytest.mark.parametrize(
    "name",
    [
        "requirements.lock",
        "requirements-llamarec.lock",
        "requirements-tools.lock",
        "environment.yml",
        "pyproject.toml",
        "Makefile",
        ".ci/run",
    ],
)
def test_no_registry_and_no_machine_is_named(name):
    text = re.sub(r"^(# )?Repository = .*", "", (ROOT / name).read_text(), flags=re.MULTILINE)
    assert not re.search(
        r"(?<!no-emit-)index-url|find-links|https?://|file:|/home/|/Users/|/root/|/opt/", text
    )


def test_the_makefile_has_its_targets():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(" ".join(re.findall(r"^([a-z -]+):", makefile, re.MULTILINE)).split())
    assert targets >= {"run", "test", "lab", "bench", "clean"}
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(("before", "after"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_leave_the_core_to_others_unless_told_otherwise(before, after):
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": before} if before else {}
    code = "import os, helpers; print(os.environ['OMP_WAIT_POLICY'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode().strip() == after
