"""For tests and notebooks alike: groups for two processes, and what nbval leaves out."""

from __future__ import annotations

import re

import pytest


def pytest_collectstart(collector):
    """Leave a notebook's stderr out: what the JVM writes depends on who captures it (nbval 168)."""
    if type(collector).__name__ == "IPyNbFile":
        collector.skip_compare += ("stderr",)


def pytest_collection_modifyitems(items):
    """Begin with the longest notebook, so that no process works through it alone at the end."""
    items.sort(key=lambda item: "08_llamarec.ipynb" not in item.nodeid)


def group_of(test: str) -> str:
    """Return the group of a test's id: the tests that one process runs, in their order.

    A file is a group; so are notebooks 01 to 05, which read what the one before saved.
    """
    file = test.partition("::")[0]
    return "notebooks 01-05" if re.search(r"notebooks/0[1-5]_[^/]*\.ipynb$", file) else file


@pytest.hookimpl(optionalhook=True)  # a plain run does without pytest-xdist
def pytest_xdist_make_scheduler(config, log):
    """For ``pytest -n 2``: groups of our own.

    ``--dist loadgroup`` goes by marks, but pytest-xdist 3.8 does not see them with pytest 9.2
    (pytest-xdist's issue 1386).
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)
