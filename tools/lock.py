"""Write the locks anew: ``python tools/lock.py`` (needs uv).

A lock holds names, versions and hashes only. Each package stands in the first lock that needs it.
PyTorch, which has other builds on other systems, and what its CUDA builds bring, stand in none.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKS = {
    "requirements.lock": ("dev", "scale"),
    "requirements-llamarec.lock": ("llamarec",),
    "requirements-tools.lock": ("tools",),
}
NOT_LOCKED = re.compile(r"nvidia|cuda|triton|setuptools|torch$")


def compiled(lock: str, extras: tuple[str, ...], constraints: list[str]) -> dict[str, str]:
    """Return the entry of each package that the project needs with ``extras``, by its name.

    Versions in the ``lock`` as it is stay where they still fit; ``uv`` reads them from its output.
    """
    command = ["uv", "pip", "compile", "pyproject.toml", "--universal", "--python-version", "3.11"]
    command += ["--generate-hashes", "--no-emit-index-url", "--no-header", "--no-annotate"]
    command += [word for extra in extras for word in ("--extra", extra)]
    command += [word for lock in constraints for word in ("--constraint", lock)]
    with tempfile.TemporaryDirectory() as folder:
        output = shutil.copy(ROOT / lock, folder)
        subprocess.run([*command, "--quiet", "--output-file", output], cwd=ROOT, check=True)
        text = Path(output).read_text(encoding="utf-8")
    entries: dict[str, str] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", text.strip()):
        # A package may have a version for each range of Pythons or systems.
        name = re.split(r"==", entry)[0]
        entries[name] = entries.get(name, "") + entry + "\n"
    return entries


def main() -> None:
    """Write every lock."""
    written: list[str] = []
    core: dict[str, str] = {}
    for name, extras in LOCKS.items():
        entries = compiled(name, extras, written)
        if core:
            entries = {
                package: entry
                for package, entry in entries.items()
                if package not in core and not NOT_LOCKED.match(package)
            }
        core = core or entries
        (ROOT / name).write_text("".join(entries.values()), encoding="utf-8")
        written.append(name)


if __name__ == "__main__":
    main()
