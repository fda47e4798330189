"""A lesson run in little time: small grids, and without the solutions of its exercises."""

from __future__ import annotations

import nbformat
from browsers import ROOT
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

# What is searched does not matter to these tests; notebook 03 takes up what 02 found.
PARAMETERS = {
    "02": "RANKS, REGS = [6, 8], [0.1, 0.2, 0.4]",
    "03": "IMPLICIT_RANKS, ALPHAS = [8], [0.5, 1.0]",
    "06": "STEPS = 2",
}


def execute(number: str, before: str = "", after: str = "") -> nbformat.NotebookNode:
    """Return the executed notebook, with the code of two more cells around its own."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    notebook = nbformat.read(path, as_version=4)
    own = [c for c in notebook.cells if "solution" not in c.metadata.get("tags", [])]
    for cell in own:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "\n" + PARAMETERS.get(number, "")
    notebook.cells = [new_code_cell(before), *own, new_code_cell(after)]
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()  # fmt: skip
    return notebook
