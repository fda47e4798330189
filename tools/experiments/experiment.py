"""What the scripts beside this one share: they begin as their notebook does, and save tables."""

import contextlib
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd

from helpers import data


def cells_of(number: str, *words: str) -> list[list[str]]:
    """Return the code of a notebook, without set-up and solutions, cut before these words."""
    (path,) = Path(__file__).resolve().parents[2].glob(f"notebooks/{number}_*.ipynb")
    code = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    cells = [c.source for c in code if not {"setup", "solution"} & {*c.metadata.get("tags", ())}]
    cuts = [next(i for i, cell in enumerate(cells) if word in cell) for word in words]
    return [cells[start:end] for start, end in itertools.pairwise([0, *cuts, None])]


def run(cells: Sequence[str], space: dict) -> None:
    """Run cells with the variables in ``space`` and show nothing."""
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in cells:
            exec(compile(cell, "a cell", "exec", dont_inherit=True), space)


def begin(number: str, words: str) -> SimpleNamespace:
    """Return the variables of a notebook before the cell with these words."""
    import torch

    torch.set_num_threads(1)  # their number decides the last bits
    run(cells_of(number, words)[0], space := {})
    print(space["dataset"].describe(), flush=True)
    return SimpleNamespace(**space)


def save(rows: pd.DataFrame, name: str, *keys: str) -> None:
    """Save a table; with ``keys``, in place of the older rows that share them, and sorted."""
    dataset = data.locate()
    path = data.result_path(name, dataset)
    if keys and path.is_file():
        old = pd.read_csv(path)
        same = (old[[*keys]] == rows[[*keys]].iloc[0]).all(axis=1)
        rows = pd.concat([old.loc[~same], rows]).sort_values([*keys], kind="stable")
    print(data.save_result(rows, name, dataset))
