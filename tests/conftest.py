"""Fixtures, and the table of notebooks at the end of a run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import course
import matplotlib
import pytest
from browsers import browser, lab, page  # noqa: F401  (fixtures)

from helpers.data import Dataset, locate, result_path
from helpers.settings import Settings

matplotlib.use("agg")
# Tests never fetch anything; what they download comes from a server of their own.
os.environ["MOVIELENS_DOWNLOAD"] = "0"
ROOT = Path(__file__).resolve().parents[1]
LONG_FIRST = ("test_notebooks.py-real", "test_notebooks.py-sample", "test_lab.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Tell fixtures whether their test failed: a page then keeps a screenshot."""
    report = yield
    item.failed = getattr(item, "failed", False) or report.failed
    return report


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
def sample_results(sample, settings) -> None:
    """What notebooks 02 and 03 save for the sample; they run if they never did, in one process."""
    turn = settings.cache_dir / ".sample-results"
    deadline = time.monotonic() + 900
    while not result_path("03_implicit", sample, settings).is_file():
        settings.cache_dir.mkdir(exist_ok=True)
        try:
            turn.mkdir()
        except FileExistsError:
            assert time.monotonic() < deadline, f"{turn} is in the way: remove it."
            time.sleep(1)
            continue
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.delenv("MOVIELENS_DIR", raising=False)
                patch.setenv("HELPERS_HOME", str(ROOT))
                for path in course.notebooks(settings)[1:3]:
                    course.execute(path, progress=False)
        finally:
            turn.rmdir()


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


def group_of(test: str) -> str:
    """Return the group of a test's id: the tests of one run in one process, in their order.

    They share fixtures, or what one of them saved. Of the notebooks 01 to 05 do, so that each
    later one is a group by itself.
    """
    file, _, name = test.partition("::")
    which = re.search(r"\[(real|sample)(?=-)(-(?:0[6-9]|[1-9]\d)_)?", name)
    return Path(file).name + (f"-{which[1]}{(which[2] or '').rstrip('_')}" if which else "")


@pytest.hookimpl(optionalhook=True)  # a plain run does without pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """For `pytest -n 2`: groups of our own, since no mark makes them.

    ``--dist loadgroup`` goes by marks, but pytest-xdist 3.8 does not see them with pytest 9.2
    (pytest-xdist's issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def needs_release(item: pytest.Item) -> bool:
    """Whether a test skips without ml-latest-small, so that CI can run it apart from the rest."""
    callspec = getattr(item, "callspec", None)
    return "real" in item.fixturenames or "real" in (callspec.params.values() if callspec else ())


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Mark what needs the release; for `pytest -n 2` the longest groups begin first."""
    for item in items:
        if needs_release(item):
            item.add_marker("release")
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: group_of(item.nodeid) not in LONG_FIRST)


def pytest_terminal_summary(terminalreporter):
    runs = [
        dict(report.user_properties)["notebook"]
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if "notebook" in dict(report.user_properties) and report.when == "call"
    ]
    if runs:
        terminalreporter.section("notebooks: kernel and JVM together")
        terminalreporter.write_line(f"{'notebook':28}{'data':8}{'cells':>6}{'s':>7}{'peak MB':>9}")
        for name, which, cells, seconds, peak in sorted(runs):
            terminalreporter.write_line(f"{name:28}{which:8}{cells:6}{seconds:7.0f}{peak:9.0f}")
