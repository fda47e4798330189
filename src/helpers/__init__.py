"""Plumbing for the notebook series, and what an earlier notebook already taught."""

import os
import sys
from pathlib import Path

# OpenMP reads this when PyTorch is loaded, also in kernels started from here. By default its
# threads burn a core while they wait for each other; where anything else runs on that core (a JVM,
# a second notebook), PyTorch was measured to be up to sixty times slower for it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A kernel looks into the notebook's folder first: a learner's own random.py there hides no package.
sys.path.sort(key=lambda folder: folder in ("", str(Path.cwd())))
