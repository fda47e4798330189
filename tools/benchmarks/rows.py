"""The rows of `make bench`: their names and targets, the table, and where it is kept.

A ratio says how much less ours takes than the baseline, in seconds, tokens or megabytes; both
numbers of a row are measured in one run. ``python tools/benchmarks/rows.py`` writes the README's
table from ``data/results/bench.csv``, and the teaching guide's seconds per section.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from datetime import date
from pathlib import Path

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "data" / "results" / "bench.csv"
SECTIONS = RESULT.with_name("section_times.csv")
TEACHING = ROOT / "docs" / "teaching.md"
MARK = "<!--BENCH-->"

TARGETS = {
    "grid search, beside the article's loop": (3.5, "s"),
    "candidates, beside Spark user by user": (100, "ms a user"),
    "candidates, beside the same arrays user by user": (3, "ms a user"),
    "LLM requests, 16 at a time beside one by one": (12, "ms a user"),
    "one token, beside a generated list": (10, "s"),
    "one token, output tokens beside the list's": (20, "tokens"),
    "LRURec epoch, beside item by item": (5, "s"),
}
NOTEBOOK_TARGETS = {
    # At most three times a bare kernel with the same imports, a bare Spark and the same file: the
    # course finds the data, checks them by SHA-256 and reads more of them.
    "start-up": (0.33, "s"),
    "Run All": (1, "s"),  # beside the minutes that the README promises
    "peak memory": (1, "MB"),  # beside Binder's 2 GB, or 3 GB with PyTorch, which Binder lacks
}


@dataclass(frozen=True)
class Row:
    """One comparison; ``ratio`` is baseline over ours and meets its target or falls short."""

    name: str
    ours: float
    baseline: float
    ratio: float
    target: float
    unit: str
    met: bool
    machine: str
    date: str

    @classmethod
    def of(cls, name: str, ours: float, baseline: float) -> Row:
        """Look the target up; an unknown name is a mistake in a benchmark."""
        known, _, last = name.rpartition(": ")
        target, unit = NOTEBOOK_TARGETS[last] if known else TARGETS[name]
        ratio = baseline / ours
        today = date.today().isoformat()
        return cls(name, ours, baseline, ratio, target, unit, ratio >= target, machine(), today)

    def __str__(self) -> str:
        """Return the row as a line of the table."""
        numbers = f"{self.ours:>10.4g}{self.baseline:>10.4g} {self.unit:10}{self.ratio:>8.2f}"
        return f"{self.name:52}{numbers}{self.target:>8g}  {'met' if self.met else 'MISSED'}"


HEAD = f"{'name':52}{'ours':>10}{'baseline':>10} {'unit':10}{'ratio':>8}{'target':>8}"


def machine() -> str:
    """Return processor, cores, memory, system and Python, and no name of the machine."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        cpu = found[1].strip() if found else cpu
    memory = psutil.virtual_memory().total / 2**30
    cores = len(psutil.Process().cpu_affinity()) if sys.platform == "linux" else psutil.cpu_count()
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{cpu}, {cores} cores, {memory:.0f} GB, {system}"


def notebooks() -> list[str]:
    """Return the names of the notebooks, in order."""
    return sorted(path.stem for path in (ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def expected() -> list[str]:
    """Return the name of every row of a complete table, in order."""
    return [*TARGETS, *(f"{name}: {what}" for name in notebooks() for what in NOTEBOOK_TARGETS)]


def merged(old: pd.DataFrame | None, rows: Iterable[Row]) -> pd.DataFrame:
    """Return the table with the rows measured now in place of older ones of the same name."""
    columns = [field.name for field in fields(Row)]
    fresh = pd.DataFrame([astuple(row) for row in rows], columns=columns)
    if old is not None:
        fresh = pd.concat([fresh, old.loc[~old["name"].isin(fresh["name"])]])
    order = {name: place for place, name in enumerate(expected())}
    fresh = fresh.loc[fresh["name"].isin(order)]
    return fresh.sort_values("name", key=lambda names: names.map(order), ignore_index=True)


def save(rows: Iterable[Row], path: Path = RESULT) -> pd.DataFrame:
    """Write what was measured; rows of a part that did not run stay, with their own date."""
    table = merged(pd.read_csv(path) if path.exists() else None, rows)
    for name in ("ours", "baseline", "ratio"):
        table[name] = table[name].map(lambda value: float(f"{value:.4g}"))
    table.to_csv(path, index=False, lineterminator="\n")
    return table


def sections_path() -> Path:
    """Return where the seconds of sections belong: beside the rows that are being measured."""
    elsewhere = os.environ.get("BENCH_CSV")
    return Path(elsewhere).with_name(SECTIONS.name) if elsewhere else SECTIONS


def save_sections(notebook: str, seconds: dict[str, float]) -> pd.DataFrame:
    """Keep the seconds of a notebook's sections in place of what was there for it."""
    fresh = pd.DataFrame({"notebook": notebook, "section": list(seconds)})
    fresh["seconds"] = [round(value, 1) for value in seconds.values()]
    fresh = fresh.assign(machine=machine(), date=date.today().isoformat())
    path = sections_path()
    if path.exists():
        old = pd.read_csv(path)
        fresh = pd.concat([old.loc[old["notebook"] != notebook], fresh])
    fresh = fresh.sort_values("notebook", kind="stable", ignore_index=True)
    fresh.to_csv(path, index=False, lineterminator="\n")
    return fresh


def shown_seconds(seconds: float) -> str:
    """Return seconds as the teaching guide shows them."""
    return f"{seconds:.0f}" if seconds >= 1 else "< 1"


def write_teaching(path: Path = TEACHING) -> None:
    """Put the measured seconds of each section into the last column of its row."""
    times = pd.read_csv(SECTIONS)
    text = path.read_text(encoding="utf-8")
    for row in times.itertuples():
        start = re.escape(f"| [{row.section}](../notebooks/{row.notebook}.ipynb#")
        text = re.sub(
            rf"^({start}[^)]*\) \| \d+ \| ).* \|$",
            lambda found, row=row: f"{found[1]}{shown_seconds(row.seconds)} |",
            text,
            flags=re.MULTILINE,
        )
    path.write_text(text, encoding="utf-8")


def markdown(table: pd.DataFrame) -> str:
    """Return the README's table: a row per comparison, and one per notebook."""
    lines = ["| what, beside what | ours | baseline | ratio | target |", "| --- " * 5 + "|"]
    for row in table.loc[table["name"].isin(list(TARGETS))].itertuples():
        numbers = f"{row.ours:.3g} {row.unit} | {row.baseline:.3g} {row.unit}"
        lines.append(f"| {row.name} | {numbers} | {row.ratio:.1f} | {row.target:g} |")
    lines += ["", "| notebook | start-up | Run All | promised | peak memory |", "| --- " * 5 + "|"]
    by_name = table.set_index("name")
    for name in notebooks():
        if f"{name}: Run All" not in by_name.index:
            continue
        start, every, memory = (by_name.loc[f"{name}: {what}"] for what in NOTEBOOK_TARGETS)
        lines.append(
            f"| {name} | {start.ours:.0f} s | {every.ours:.0f} s | {every.baseline:.0f} s | "
            f"{memory.ours:.0f} MB of {memory.baseline:.0f} |"
        )
    return "\n".join([*lines, "", measured_on(table)])


def measured_on(table: pd.DataFrame) -> str:
    """Return the sentence under a table: machine and days."""
    machines, days = (sorted(table[name].unique()) for name in ("machine", "date"))
    return f"Measured on: {'; '.join(machines)}; {', '.join(days)}."


def between_marks(path: Path, mark: str, text: str) -> None:
    """Put ``text`` between the two marks in a file.

    Raises:
        ValueError: the marks are not there.
    """
    parts = path.read_text(encoding="utf-8").split(mark)
    if len(parts) != 3:
        raise ValueError(f"{path.name} needs the mark {mark} before and after the table.")
    parts[1] = f"\n\n{text}\n\n"
    path.write_text(mark.join(parts), encoding="utf-8")


def write_readme(path: Path = ROOT / "README.md") -> None:
    """Put the tables between their two marks."""
    between_marks(path, MARK, markdown(pd.read_csv(RESULT)))


if __name__ == "__main__":
    write_readme()
    write_teaching()
