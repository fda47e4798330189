"""Open the course: JupyterLab with its notebooks in order, or the app's page.

Both print or open an address that holds its token already.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from helpers.settings import Settings

WORKSPACE = "course"
PAGE = Path(__file__).with_name("app.ipynb")


def workspace(first: str) -> dict:
    """Return a JupyterLab workspace: the contents, the first notebook, all of them at the side.

    ``first`` is its path from the folder that JupyterLab serves; it is in front, the README behind
    it, and the file browser shows its folder, where the numbers keep the order. Not a tab for each
    notebook: a tab starts a kernel.
    """
    tabs = {
        "markdownviewer-widget:README.md": ("README.md", "Markdown Preview"),
        f"notebook:{first}": (first, "Notebook"),
    }
    dock = {"type": "tab-area", "currentIndex": 1, "widgets": list(tabs)}
    layout = {
        "main": {"dock": dock, "current": f"notebook:{first}"},
        "left": {"collapsed": False, "current": "filebrowser", "widgets": ["filebrowser"]},
        "right": {"collapsed": True, "widgets": []},
    }
    widgets = {
        name: {"data": {"path": path, "factory": factory}} for name, (path, factory) in tabs.items()
    }
    folder = {"path": str(Path(first).parent.as_posix())}
    data = {"layout-restorer:data": layout, "file-browser-filebrowser:cwd": folder, **widgets}
    return {"data": data, "metadata": {"id": WORKSPACE}}


def write_workspace(root: Path, folder: Path) -> dict[str, str]:
    """Write the workspace of the notebooks under ``root``; return the environment to start Lab in.

    ``folder`` takes the place of your own folder of workspaces, so none of yours is touched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, JUPYTERLAB_WORKSPACES_DIR=str(folder))
    found = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / f"{WORKSPACE}.jupyterlab-workspace"
        file.write_text(json.dumps(workspace(f"notebooks/{found[0].name}")))
        command = [sys.executable, "-m", "jupyterlab", "workspaces", "import", str(file)]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    return environment


def lab(settings: Settings, options: Sequence[str] = ()) -> int:
    """Start JupyterLab on the course's workspace and return its exit status."""
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={settings.root}"]
    command += [f"--LabApp.default_url=/lab/workspaces/{WORKSPACE}", *options]
    environment = write_workspace(settings.root, settings.cache_dir / "lab")
    return subprocess.run(command, env=environment).returncode


def app_command(options: Sequence[str] = ()) -> list[str]:
    """Return the command that serves the app's page."""
    return [sys.executable, "-m", "voila", str(PAGE), "--Voila.strip_sources=True", *options]


def app(options: Sequence[str] = ()) -> int:
    """Serve the app's page until interrupted and return the exit status."""
    if importlib.util.find_spec("voila") is None:
        print("The page needs Voila: pip install -e '.[tools]'.", file=sys.stderr)
        return 1
    return subprocess.run(app_command(options)).returncode
