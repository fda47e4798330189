"""A headless Chromium, a JupyterLab of our own beside it, and what tests do in the two.

The browser is the system's Chromium or Chrome, else Playwright's own, else one is installed where
that may be done (continuous integration, or root in a container). Pages get no network but this
machine; what they ask for elsewhere is refused and noted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARTEFACTS = ROOT / "tests" / "artefacts"  # git-ignored; screenshots of what failed, and of pages
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
SIZE = {"width": 1280, "height": 720}
START_S = 90


@dataclass(frozen=True)
class Found:
    """The browser's path, or why there is none."""

    path: str | None
    why: str = ""


@functools.cache
def find() -> Found:
    """Look for a browser that starts; install one where that may be done."""
    if os.environ.get("BROWSER_TESTS", "1") == "0":
        return Found(None, "browser tests are off (BROWSER_TESTS=0)")
    try:
        import playwright  # noqa: F401
    except ImportError:
        return Found(None, "needs Playwright: pip install -e '.[tools]'")
    places = [shutil.which(name) for name in NAMES]
    places += ["/Applications/Google Chrome.app/Contents/MacOS/Google Chrome", _own()]
    for place in places:
        if place and starts(place):
            return Found(place)
    if os.environ.get("CI") or (hasattr(os, "geteuid") and os.geteuid() == 0):
        for place in _install():
            if place and starts(place):
                return Found(place)
        return Found(None, "no Chromium was found and none could be installed")
    return Found(None, "no Chromium was found: run 'python -m playwright install chromium'")


def starts(path: str) -> bool:
    """Whether the browser can show an empty page."""
    if not Path(path).exists():
        return False
    command = [path, "--headless=new", *ARGUMENTS, "--dump-dom", "about:blank"]
    done = _run(command, 60)
    return done is not None and done.returncode == 0 and "<html" in done.stdout


def _own() -> str | None:
    code = (
        "from playwright.sync_api import sync_playwright as p\n"
        "with p() as one: print(one.chromium.executable_path)"
    )
    done = _run([sys.executable, "-c", code], 60)
    return done.stdout.strip() if done and done.returncode == 0 else None


def _install() -> Iterator[str | None]:
    _run([sys.executable, "-m", "playwright", "install", "chromium"], 90)
    yield _own()
    if shutil.which("apt-get") and os.geteuid() == 0:
        _run(["apt-get", "update", "-q"], 45)
        _run(["apt-get", "install", "-qy", "--no-install-recommends", "chromium"], 150)
        yield shutil.which("chromium")


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess | None:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


# --- pages ----------------------------------------------------------------------------------------


@dataclass
class Browser:
    """Opens pages that reach this machine only; ``refused`` lists what else they asked for."""

    playwright: object
    chromium: object
    refused: list[str] = field(default_factory=list)

    def page(self, **options):
        context = self.chromium.new_context(viewport=SIZE, **options)
        context.route(
            lambda url: (
                not re.match(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|file:|data:|blob:", url)
            ),
            self._refuse,
        )
        page = context.new_page()
        page.set_default_timeout(30_000)
        return page

    def _refuse(self, route):
        self.refused.append(route.request.url)
        route.abort()


@pytest.fixture(scope="module")
def browser():
    """One Chromium for a module: Playwright's event loop should not outlive its tests."""
    found = find()
    if found.path is None:
        pytest.skip(found.why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found.path, args=ARGUMENTS)
        yield Browser(playwright, chromium)
        chromium.close()


@pytest.fixture
def page(browser, request):
    """A fresh page; a screenshot of it is kept when the test fails."""
    one = browser.page()
    yield one
    if getattr(request.node, "failed", False):
        shoot(one, f"FAILED_{request.node.name}")
    one.context.close()


def shoot(page, name: str, **options) -> Path:
    """Keep a screenshot in ``tests/artefacts`` and return its path."""
    ARTEFACTS.mkdir(exist_ok=True)
    path = ARTEFACTS / (re.sub(r"[^\w.-]+", "_", name) + ".png")
    with contextlib.suppress(Exception):  # the page may be gone; the failure itself is reported
        page.screenshot(path=path, **options)
    return path


# --- servers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A server of our own, the folder it serves, and its log."""

    url: str
    token: str
    folder: Path
    log: Path
    process: subprocess.Popen

    def at(self, path: str) -> str:
        joiner = "&" if "?" in path else "?"
        return f"{self.url}/{path}{joiner}token={self.token}"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextlib.contextmanager
def serving(command: list[str], probe: str, folder: Path, environment: dict[str, str], token: str):
    """Start a server (``{port}`` in ``command`` is filled in), wait for ``probe``, stop it."""
    port = free_port()
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [part.format(port=port) for part in command],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", token, folder, log, process)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{server.url}/{probe}", timeout=5).close()
                break
            except urllib.error.HTTPError:
                break  # it answers
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(log.read_text()[-3000:]) from None
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def offline_environment(folder: Path, sample: bool = True) -> dict[str, str]:
    """Return the environment of a server: the sample, recorded replies, settings of its own."""
    environment = dict(os.environ, MOVIELENS_DOWNLOAD="0", LLM_MODE="recorded")
    environment["HELPERS_HOME"] = str(ROOT)
    if sample:
        environment.pop("MOVIELENS_DIR", None)
        if (ROOT / "data" / "ml-latest-small").exists():
            environment["MOVIELENS_DIR"] = str(ROOT / "data" / "sample")
    for name in ("config", "runtime", "settings", "workspaces", "ipython"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    environment |= {
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    return environment


SETTINGS = {
    # All cells in the page, not only those in view.
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/notification": {
        "checkForUpdates": False, "doNotDisturbMode": True, "fetchNews": "false"
    },
    "docmanager-extension/plugin": {"autosave": False},
}  # fmt: skip


def write_settings(folder: Path) -> None:
    for name, values in SETTINGS.items():
        path = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """A JupyterLab on a copy of the notebooks, which runs them on the simulated sample."""
    folder = tmp_path_factory.mktemp("lab")
    course = folder / "course"
    shutil.copytree(ROOT / "notebooks", course / "notebooks",
                    ignore=shutil.ignore_patterns(".ipynb_checkpoints"))  # fmt: skip
    shutil.copy(ROOT / "README.md", course / "README.md")
    environment = offline_environment(folder)
    # A home of its own: what other tests save meanwhile must not meet what these runs save.
    others = shutil.ignore_patterns("cache", "ml-latest-small")
    shutil.copytree(ROOT / "data", folder / "home" / "data", ignore=others)
    kept = Path("data", "cache", "results", "sample")
    if (ROOT / kept).is_dir():  # so that one notebook can be tested by itself
        shutil.copytree(ROOT / kept, folder / "home" / kept)
    environment["HELPERS_HOME"] = str(folder / "home")
    write_settings(folder / "settings")
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={course}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    with serving(command, "api", folder, environment, token) as server:
        yield server
