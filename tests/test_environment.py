"""One source of dependencies: the lock and environment.yml follow pyproject.toml."""

from __future__ import annotations

import re
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", LOCK, re.MULTILINE))
CORE = [Requirement(text) for text in PROJECT["dependencies"]]
DEV = [Requirement(text) for text in PROJECT["optional-dependencies"]["dev"]]


@pytest.mark.parametrize("requirement", CORE + DEV, ids=str)
def test_the_lock_satisfies_every_requirement(requirement):
    pins = re.findall(rf"^{re.escape(requirement.name)}==([^\s;\\]+)", LOCK, re.MULTILINE)
    assert pins and all(requirement.specifier.contains(pin) for pin in pins)


def test_every_pin_has_a_hash():
    blocks = re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip())
    assert len(blocks) >= len(PINS) > 50
    assert all("--hash=sha256:" in block for block in blocks)


def test_torch_stays_out_of_the_core():
    assert "torch" not in PINS
    extra = PROJECT["optional-dependencies"]["llamarec"]
    assert any(text.startswith("torch") for text in extra)


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
    assert plain["openjdk"] in {"17", "21"}
    floor = Requirement("x" + PROJECT["requires-python"]).specifier
    assert floor.contains(plain["python"] + ".0")
    (pip,) = [item["pip"] for item in listed if isinstance(item, dict)]
    assert "-r requirements.lock" in pip


@pytest.mark.parametrize(
    "name", ["requirements.lock", "environment.yml", "pyproject.toml", "Makefile", ".ci/run"]
)
def test_no_registry_and_no_machine_is_named(name):
    text = (ROOT / name).read_text()
    assert not re.search(
        r"(?<!no-emit-)index-url|find-links|https?://|file:|/home/|/Users/|/root/|/opt/", text
    )


def test_the_makefile_has_its_targets():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets >= {"run", "test", "lab", "bench", "clean"}
    assert "make test" in (ROOT / ".ci" / "run").read_text()
