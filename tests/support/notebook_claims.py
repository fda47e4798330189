"""Lets nbval run ``tests/notebooks/claims/NN.py`` after a notebook's last cell, in its kernel.

A lesson holds no assertions that only guard it; what its text claims beyond the saved outputs is
asserted there. On: ``PYTHONPATH=tests/support pytest --nbval -p notebook_claims notebooks``.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from nbformat.v4 import new_code_cell
from nbval.plugin import IPyNbCell

CLAIMS = Path(__file__).resolve().parents[1] / "notebooks" / "claims"


def pytest_collectstart(collector):
    """Add the claims as one more cell."""
    if type(collector).__name__ != "IPyNbFile":
        return
    claims, collect = CLAIMS / f"{collector.path.name[:2]}.py", collector.collect

    def with_claims():
        cells = list(collect())
        yield from cells
        if claims.is_file() and collector.path.parent.name == "notebooks":
            yield IPyNbCell.from_parent(
                collector, name="claims", cell_num=len(cells),
                cell=new_code_cell(claims.read_text(encoding="utf-8")),
                options=defaultdict(bool, check=False),
            )  # fmt: skip

    collector.collect = with_claims
