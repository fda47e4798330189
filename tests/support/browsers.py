"""A headless Chromium, a JupyterLab of our own beside it, and what tests do in the two.

Pages get no network but this machine; what they ask for elsewhere is refused and noted.
"""

from __future__ import annotations

import contextlib
import functools
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
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARTEFACTS = ROOT / "tests" / "artefacts"  # git-ignored; screenshots of what failed, and of pages
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
SIZE = {"width": 1280, "height": 720}
START_S = 90


@functools.cache
def chromium_path() -> str | None:
    """Return the system's Chromium or Chrome; root in a container may install one."""

    def search() -> str | None:
        return next(filter(None, map(shutil.which, [*NAMES, MAC])), None)

    if not search() and shutil.which("apt-get") and os.geteuid() == 0:
        for command in ("update -q", "install -qy --no-install-recommends chromium"):
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(["apt-get", *command.split()], capture_output=True, timeout=150)
    return search()


@dataclass
class Browser:
    """Opens pages that reach this machine only; ``refused`` lists what else they asked for."""

    chromium: object
    refused: list[str] = field(default_factory=list)

    def page(self, **options):
        context = self.chromium.new_context(viewport=SIZE, **options)
        near = re.compile(r"(https?|wss?)://(127\.0\.0\.1|localhost)[:/]|file:|data:|blob:")
        context.route(lambda url: not near.match(url), self._refuse)
        page = context.new_page()
        page.set_default_timeout(30_000)
        return page

    def _refuse(self, route):
        self.refused.append(route.request.url)
        route.abort()


@pytest.fixture(scope="module")
def browser():
    """One Chromium for a module: Playwright's event loop should not outlive its tests."""
    if os.environ.get("BROWSER_TESTS", "1") == "0":
        pytest.skip("browser tests are off (BROWSER_TESTS=0)")
    playwright_api = pytest.importorskip("playwright.sync_api", reason="needs the tools extra")
    if chromium_path() is None:
        pytest.skip("needs Chromium or Chrome")
    with playwright_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path(), args=ARGUMENTS)
        yield Browser(chromium)
        chromium.close()


@pytest.fixture
def page(browser, request):
    """A fresh page; a screenshot of it is kept when the test fails."""
    page = browser.page()
    yield page
    if getattr(request.node, "failed", False):
        shoot(page, f"FAILED_{request.node.name}")
    page.context.close()


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
    """A server of our own and its process."""

    url: str
    token: str
    process: subprocess.Popen

    def at(self, path: str) -> str:
        joiner = "&" if "?" in path else "?"
        return f"{self.url}/{path}{joiner}token={self.token}"


@contextlib.contextmanager
def serving(command: list[str], probe: str, folder: Path, environment: dict[str, str], token: str):
    """Start a server (``{port}`` in ``command`` is filled in), wait for ``probe``, stop it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [part.format(port=port) for part in command],
            cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    server = Server(f"http://127.0.0.1:{port}", token, process)
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


def offline_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a server: the sample, recorded replies, settings of its own."""
    own = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime",
           "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
           "IPYTHONDIR": "ipython"}  # fmt: skip
    for name in own.values():
        (folder / name).mkdir(parents=True, exist_ok=True)
    return {
        **os.environ, "MOVIELENS_DOWNLOAD": "0", "LLM_MODE": "recorded", "HELPERS_HOME": str(ROOT),
        "MOVIELENS_DIR": str(ROOT / "data" / "sample"),
        **{variable: str(folder / name) for variable, name in own.items()},
    }  # fmt: skip


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """A JupyterLab on a copy of the notebooks, which runs them on the simulated sample."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "course" / "notebooks")
    environment = offline_environment(folder)
    # All cells in the page, not only those in view.
    tracker = folder / "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text('{"windowingMode": "none", "autoStartDefaultKernel": true}')
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder / 'course'}"]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    with serving(command, "api", folder, environment, token) as server:
        yield server
