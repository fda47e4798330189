"""`make binder`: notebooks 01 to 06 one after another in a JupyterLab, within Binder's 2 GB.

A JupyterLab server is started as on Binder and asked, through the interface that the browser uses,
to open each notebook, start its kernel and run its cells. Server, kernels and JVMs together are
watched five times a second; above the limit all of them are killed, as Binder does. It is done
twice: with each kernel shut down before the next notebook, and with all kernels left open.
``data/results/binder.csv`` and the README's table hold what was measured; the status is 1 if the
first way does not fit.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import nbformat
import pandas as pd
import rows
import websocket

from helpers.data import locate, result_path

sys.path.insert(0, str(rows.ROOT / "tests" / "support"))
from peak_memory import PeakMemory

LIMIT_MB = 2048
LAST = "06"
CELL_TIMEOUT_S = 1200
TOKEN = "binder"
RESULT = rows.ROOT / "data" / "results" / "binder.csv"
MARK = "<!--BINDER-->"
SHUT, OPEN = "shut down after each", "left open"


@dataclass(frozen=True)
class Visit:
    """One notebook: whether it finished, and the most memory of all that ran meanwhile."""

    kernels: str
    notebook: str
    seconds: float
    peak_mb: float
    limit_mb: int
    finished: bool
    machine: str
    date: str


class KilledError(RuntimeError):
    """The limit was reached."""


class Lab:
    """A JupyterLab server of its own on this machine."""

    def __init__(self, folder: Path) -> None:
        """Start it with an empty cache and wait until it answers."""
        left_out = shutil.ignore_patterns("cache", "ml-*")
        shutil.copytree(rows.ROOT / "data", folder / "data", ignore=left_out)
        environment = dict(
            os.environ, HELPERS_HOME=str(folder), MOVIELENS_DIR=str(locate().path),
            MOVIELENS_DOWNLOAD="0", LLM_MODE="recorded", JUPYTER_RUNTIME_DIR=str(folder / "run"),
        )  # fmt: skip
        options = [f"--ServerApp.root_dir={rows.ROOT}", "--ServerApp.port=0", "--allow-root"]
        options += [f"--IdentityProvider.token={TOKEN}", "--ServerApp.disable_check_xsrf=True"]
        self._log = (folder / "lab.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", "--no-browser", *options],
            env=environment, stdout=self._log, stderr=self._log,
        )  # fmt: skip
        self.memory = PeakMemory(self.process.pid, itself=True, limit_mb=LIMIT_MB)
        self.memory.start()
        about = folder / "run" / f"jpserver-{self.process.pid}.json"
        while not about.exists():
            if self.process.poll() is not None:
                raise RuntimeError(f"JupyterLab did not start: {(folder / 'lab.log').read_text()}")
            time.sleep(0.2)
        time.sleep(1)
        self.url = json.loads(about.read_text())["url"].rstrip("/")

    def ask(self, method: str, path: str, body: dict | None = None) -> dict:
        """Send a request as the browser does."""
        request = urllib.request.Request(
            f"{self.url}/api/{path}", method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Authorization": f"token {TOKEN}", "Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.loads(reply.read() or b"{}")

    def visit(self, path: Path, shut: bool) -> None:
        """Open a notebook and run all its cells.

        Raises:
            KilledError: the limit was reached.
            RuntimeError: a cell failed.
        """
        try:
            self.ask("GET", f"contents/notebooks/{path.name}")
            asked = {"path": f"notebooks/{path.name}", "name": path.name, "type": "notebook"}
            session = self.ask("POST", "sessions", {**asked, "kernel": {"name": "python3"}})
            address = f"ws{self.url.removeprefix('http')}/api/kernels/{session['kernel']['id']}"
            wire = websocket.create_connection(
                f"{address}/channels?token={TOKEN}", timeout=CELL_TIMEOUT_S
            )
            for cell in nbformat.read(path, as_version=4).cells:
                if cell.cell_type == "code":
                    run_cell(wire, cell.source)
            wire.close()
            if shut:
                self.ask("DELETE", f"sessions/{session['id']}")
        except (OSError, websocket.WebSocketException) as error:
            time.sleep(1)
            if self.memory.killed:
                raise KilledError from None
            raise RuntimeError(f"{path.name}: {error!r}") from error

    def stop(self) -> None:
        """End the server and its kernels."""
        self.process.terminate()
        self.process.wait()
        self.memory.join()
        self._log.close()


def run_cell(wire: websocket.WebSocket, source: str) -> None:
    """Run one cell and wait for its reply, reading all its outputs."""
    name = uuid.uuid4().hex
    header = {
        "msg_id": name, "msg_type": "execute_request", "username": "", "session": "binder",
        "version": "5.3", "date": "",
    }  # fmt: skip
    content = {"code": source, "silent": False, "store_history": True, "stop_on_error": True}
    content |= {"user_expressions": {}, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content}
    wire.send(json.dumps({**message, "channel": "shell"}))
    while True:
        told = wire.recv()
        if not isinstance(told, str):  # with binary parts, as widgets send them
            continue
        reply = json.loads(told)
        if reply["parent_header"].get("msg_id") == name and reply["msg_type"] == "execute_reply":
            if reply["content"]["status"] != "ok":
                raise RuntimeError(f"A cell failed: {reply['content'].get('evalue')}")
            return


def tour(kernels: str, paths: list[Path]) -> list[Visit]:
    """Visit the notebooks in order, until the end or the limit."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        for path in paths:
            lab.memory.peak_mb = 0.0
            start, finished = time.perf_counter(), True
            try:
                lab.visit(path, kernels == SHUT)
            except KilledError:
                finished = False
            found.append(
                Visit(
                    kernels, path.stem, round(time.perf_counter() - start, 1),
                    round(lab.memory.peak_mb), LIMIT_MB, finished, rows.machine(),
                    date.today().isoformat(),
                )
            )  # fmt: skip
            what = ", ".join(f"{name} {size:.0f}" for name, size in lab.memory.parts)
            print(f"{kernels:22}{path.stem:28}{found[-1].peak_mb:6.0f} MB ({what})", flush=True)
            if not finished:
                print(f"{'':22}killed above {LIMIT_MB} MB")
                break
        lab.stop()
    return found


def markdown(table: pd.DataFrame) -> str:
    """Return the README's table: a row per notebook, a column per way."""
    lines = [f"| notebook | kernels {SHUT} | all kernels {OPEN} |", "| --- | --- | --- |"]
    for name in table["notebook"].unique():
        cells = []
        for way in (SHUT, OPEN):
            mine = table.loc[(table["notebook"] == name) & (table["kernels"] == way)]
            peak = "".join(f"{row.peak_mb:.0f} MB" for row in mine.itertuples() if row.finished)
            cells.append(peak or ("stopped at the limit" if len(mine) else "not reached"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", rows.measured_on(table)])


def write_readme(path: Path = rows.ROOT / "README.md") -> None:
    """Put the table between its two marks."""
    rows.between_marks(path, MARK, markdown(pd.read_csv(RESULT)))


def main() -> int:
    """Measure both ways and return 1 unless the first one fits."""
    dataset = locate()
    print(dataset.describe())
    # Only numbers from the real release go to data/results and to the README.
    path = RESULT if dataset.verified else result_path("binder", dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [name for name in rows.notebooks() if name[:2] <= LAST]
    paths = [rows.ROOT / "notebooks" / f"{name}.ipynb" for name in names]
    found = []
    for kernels in (SHUT, OPEN):
        found += tour(kernels, paths)
        table = pd.DataFrame([asdict(one) for one in found])
        table.to_csv(path, index=False, lineterminator="\n")
    if dataset.verified:
        write_readme()
    fits = [one.finished for one in found if one.kernels == SHUT]
    print("All fit." if all(fits) else "They do not fit.")
    return int(len(fits) < len(paths) or not all(fits))


if __name__ == "__main__":
    sys.exit(main())
