"""Where measured rows are kept: data/results, each with its machine and day."""

from __future__ import annotations

import platform
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parents[2]


def machine() -> str:
    """Return processor, cores, memory, system and Python, and no name of the machine."""
    processor = platform.processor() or platform.machine()
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()}, Python {platform.python_version()}"
    return f"{processor}, {psutil.cpu_count()} cores, {memory:.0f} GB, {system}"


def save(rows: list[dict[str, Any]], path: Path, key: str) -> pd.DataFrame:
    """Put rows into a table in place of those with the same ``key``; return the table."""
    table = pd.DataFrame(rows).assign(machine=machine(), date=date.today().isoformat())
    if path.exists():
        old = pd.read_csv(path)
        table = pd.concat([old.loc[~old[key].isin(table[key])], table], ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, lineterminator="\n")
    return table
