"""`make bench`: every comparison of the course in one run, as a table and as bench.csv.

``python tools/benchmarks/run.py`` runs all, ``--only bench_grid`` (or ``-k``, as in pytest) a part.
It ends with 1 where a row falls short of its target. A bench is a function ``bench_*`` in a file
``bench_*.py``, so that ``pytest`` alone leaves it out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest
import rows

from helpers import data

HERE = Path(__file__).resolve().parent
MEASURED: list[rows.Row] = []


class Versus:
    """Measures ours and its baseline by turns and keeps the row."""

    def __init__(self, benchmark, plugins) -> None:
        self._benchmark = benchmark
        self._reporter = plugins.get_plugin("terminalreporter")
        self._capture = plugins.get_plugin("capturemanager")

    def __call__(
        self,
        name: str,
        ours: Callable[[], object],
        baseline: Callable[[], object],
        *,
        rounds: int = 1,
        parts: tuple[float, float] = (1, 1),
    ) -> rows.Row:
        """Time both ``rounds`` times, the baseline first each time; medians count.

        ``parts`` are by how much the seconds of each are divided (users ranked, say).
        """
        seconds = []

        def before() -> None:
            start = perf_counter()
            baseline()
            seconds.append(perf_counter() - start)

        self._benchmark.pedantic(ours, setup=before, rounds=rounds)
        mine = statistics.median(self._benchmark.stats.stats.data)
        return self.add(name, mine / parts[0], statistics.median(seconds) / parts[1])

    def add(self, name: str, ours: float, baseline: float) -> rows.Row:
        """Keep a row that was measured in another way; it is on disk at once."""
        row = rows.Row.of(name, ours, baseline)
        self._benchmark.extra_info[name] = row.ratio
        MEASURED.append(row)
        path = Path(os.environ.get("BENCH_CSV") or rows.RESULT)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.save([row], path)
        self.note(str(row))
        return row

    def note(self, text: str) -> None:
        """Print a line at once."""
        with self._capture.global_and_fixture_disabled():
            self._reporter.ensure_newline()
            self._reporter.write_line(text)


@pytest.fixture
def versus(benchmark, request):
    return Versus(benchmark, request.config.pluginmanager)


@pytest.fixture(scope="module")
def session():
    """A Spark session of the course that ends with the file, so that its JVM is gone after it."""
    from helpers.spark import get_spark

    session = get_spark()
    yield session
    session.stop()


def pytest_sessionfinish(session, exitstatus):
    if any(not row.met for row in MEASURED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    if not MEASURED:
        return
    terminalreporter.section("ours beside a baseline")
    terminalreporter.write_line(rows.HEAD)
    for row in MEASURED:
        terminalreporter.write_line(str(row))
    short = [row.name for row in MEASURED if not row.met]
    if short:
        terminalreporter.write_line(f"Short of the target: {'; '.join(short)}.")
    elsewhere = os.environ.get("BENCH_CSV")
    if not elsewhere:
        rows.write_readme()
        rows.write_teaching()
    terminalreporter.write_line(
        f"Written to {Path(elsewhere).name if elsewhere else 'data/results/bench.csv, README.md'}."
    )


def main(arguments: list[str] | None = None, folder: Path = HERE) -> int:
    """Run the benches in ``folder`` and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", "-k", default="", help="which, as an expression of pytest -k")
    options = parser.parse_args(arguments)
    dataset = data.locate()
    print(dataset.describe())
    if not dataset.verified:  # only numbers from the real release go to data/results
        os.environ.setdefault("BENCH_CSV", str(data.result_path("bench", dataset)))
    command = [str(folder), f"--rootdir={rows.ROOT}", "-c", str(rows.ROOT / "pyproject.toml")]
    command += ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*"]
    command += ["-p", "no:cacheprovider", "-rs", "--no-header"]
    command += ["--benchmark-quiet", f"--ignore={HERE / 'bench_scale.py'}"]
    if options.only:
        command += ["-k", options.only]
    return int(pytest.main(command, plugins=[sys.modules[__name__]]))


if __name__ == "__main__":
    sys.exit(main())
