"""Fixtures for all tests, and the mark of those that need the real release."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import hypothesis
import matplotlib
import pandas as pd
import pytest
from browsers import browser, lab, page  # noqa: F401  (fixtures)

from helpers.data import Dataset, locate
from helpers.settings import Settings

matplotlib.use("agg")
hypothesis.settings.register_profile("course", deadline=None)  # machines differ, and are busy
hypothesis.settings.load_profile("course")
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


# What notebooks 02 and 03 save for the sample; their claims compare it with what they find.
SAMPLE_RESULTS = {
    "02_grid": "rank,reg,train_rmse,validation_rmse\n6,0.2,0.534112,0.652525\n",
    "03_implicit": "rank,alpha,reg\n8,0.5,0.2\n",
}


def save_sample_results(cache: Path) -> None:
    """Write those tables where a notebook looks for them, unless they are there."""
    folder = cache / "results" / "sample"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in SAMPLE_RESULTS.items():
        if not (folder / f"{name}.csv").exists():
            (folder / f"{name}.csv").write_text(text, encoding="utf-8")


@pytest.fixture(scope="session")
def sample_results(settings: Settings) -> None:
    """The tables in the cache, as if 02 and 03 had run."""
    save_sample_results(settings.cache_dir)


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
