"""Fixtures, and the table of notebooks at the end of a run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import matplotlib
import pytest

from helpers.data import Dataset, locate
from helpers.settings import Settings

matplotlib.use("agg")
# Tests never fetch anything; what they download comes from a server of their own.
os.environ["MOVIELENS_DOWNLOAD"] = "0"
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK_RUNS: list[tuple[str, str, int, float, float]] = []


def copy_working_tree(folder: Path, without: tuple[str, ...] = ()) -> None:
    """Copy the files that git tracks or would track, as they are now, but those ``without``."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("needs git and a git checkout")
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(without):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings.from_env({"HELPERS_HOME": str(ROOT), "MOVIELENS_DOWNLOAD": "0"})


@pytest.fixture(scope="session")
def sample(settings: Settings) -> Dataset:
    """The simulated sample."""
    return locate(settings)


@pytest.fixture(scope="session")
def real() -> Dataset:
    """The real release, where there is one."""
    dataset = locate()
    if not dataset.verified:
        pytest.skip("needs the real ml-latest-small (MOVIELENS_DIR)")
    return dataset


@pytest.fixture(scope="session")
def spark():
    from helpers.spark import get_spark

    session = get_spark()
    yield session
    session.stop()


def pytest_terminal_summary(terminalreporter):
    if NOTEBOOK_RUNS:
        terminalreporter.section("notebooks: kernel and JVM together")
        terminalreporter.write_line(f"{'notebook':28}{'data':8}{'cells':>6}{'s':>7}{'peak MB':>9}")
        for name, which, cells, seconds, peak in NOTEBOOK_RUNS:
            terminalreporter.write_line(f"{name:28}{which:8}{cells:6}{seconds:7.0f}{peak:9.0f}")
