"""Plumbing for the notebook series, and what an earlier notebook already taught."""

import os

# For PyTorch, also in child processes: by default its threads burn a core while they wait, and
# where a JVM or a second notebook needs that core it was measured to be sixty times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
