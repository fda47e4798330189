"""Fixtures for all tests, and the mark of those that need the real release."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import course
import lessons
import matplotlib
import pandas as pd
import pytest
from browsers import browser, lab, page  # noqa: F401  (fixtures)

from helpers.data import Dataset, locate, result_path
from helpers.settings import Settings

matplotlib.use("agg")
# Tests never fetch anything; what they download comes from a server of their own.
os.environ["MOVIELENS_DOWNLOAD"] = "0"
ROOT = Path(__file__).resolve().parents[1]


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


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch on one thread: the number of threads decides the last bits."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    results = [result_path(name, sample, settings) for name in ("02_grid", "03_implicit")]
    while not all(result.is_file() for result in results):
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
                for path in lessons.paths(settings.root)[1:3]:
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


def needs_release(item: pytest.Item) -> bool:
    """Whether a test skips without ml-latest-small, so that CI can run it apart from the rest."""
    callspec = getattr(item, "callspec", None)
    return "real" in item.fixturenames or "real" in (callspec.params.values() if callspec else ())


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    for item in items:
        if needs_release(item):
            item.add_marker("release")


@pytest.fixture
def rated() -> pd.DataFrame:
    """Three ratings of one user, best first, as `helpers.candidates.history` gives them."""
    rows = [
        (1, "Emma (1996)", "Comedy|Romance", 5.0, 1.5),
        (2, "Clueless (1995)", "Comedy|Romance", 4.0, 0.5),
        (3, "Alien (1979)", "Horror|Sci-Fi", 1.5, -2.0),
    ]
    return pd.DataFrame(rows, columns=["movieId", "title", "genres", "rating", "deviation"])
