"""Commands of the course, each as ``python tools/course.py NAME``.

``run`` executes the core notebooks and prints the ranked list; ``lab`` opens copies in
JupyterLab; ``page`` writes the page to play with; ``slides`` and ``copies`` write slides and
notebooks for live coding; ``forget`` deletes stored LLM replies. For authors: ``execute`` runs
notebooks in place and saves clean outputs, ``tidy`` strips noise, ``stamp`` writes navigation bars
and the repository's address, ``batch`` exports unanswered LLM requests, imports their answers, and
keeps them as JSON Lines.
"""

from __future__ import annotations

import bootstrap  # noqa: F401  # where packages are missing it sets them up and goes on there

# isort: split
import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import copies
import nbformat
import page
import pandas as pd
import publish
import slides
from jupyterlab.labapp import LabApp
from jupyterlab_server.workspaces_handler import WorkspacesManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.sign import NotebookNotary
from tqdm import tqdm

from helpers import data, replies
from helpers.settings import Settings, SettingsError
from helpers.spark import JavaError, check_java
from research import scale

RANKED_LIST = "05_ranked_list.csv"
LAB_SETTINGS = Path(__file__).with_name("lab")
CELL_TIMEOUT_S = 1200
KERNEL = {  # as JupyterLab writes it, so that opening a notebook changes nothing
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"
    },
    "language_info": {
        "codemirror_mode": {"name": "ipython", "version": 3},
        "file_extension": ".py", "mimetype": "text/x-python", "name": "python",
        "nbconvert_exporter": "python", "pygments_lexer": "ipython3", "version": "3.11.7",
    },
}  # fmt: skip
KEPT = {"tags", "slideshow", "jupyter", "lines_to_next_cell"}  # of a cell's metadata


class NotebookFailedError(RuntimeError):
    """A cell failed; the message names notebook and cell."""


def notebooks(settings: Settings, appendices: bool = False) -> list[Path]:
    """Return the notebooks in their order; on request also the long searches beside the series."""
    folders = ["notebooks", "notebooks/appendix"] if appendices else ["notebooks"]
    found = (sorted((settings.root / name).glob("[0-9][0-9]_*.ipynb")) for name in folders)
    return list(chain(*found))


def execute(path: Path, progress: bool = True) -> nbformat.NotebookNode:
    """Run a notebook top to bottom in a fresh kernel and return it with its outputs.

    Raises:
        NotebookFailedError: a cell raised, ran too long, or its kernel died.
        KeyboardInterrupt: Ctrl-C; the kernel is ended when Python ends.
    """
    notebook = nbformat.read(path, as_version=4)
    is_code = [cell.cell_type == "code" for cell in notebook.cells]
    sent: list[int] = []
    with tqdm(total=sum(is_code), desc=path.stem, unit="cell", disable=not progress) as bar:
        client = NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT_S,
            kernel_name="python3",
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # its notice on TCP alarms readers
            resources={"metadata": {"path": str(path.parent)}},
            on_cell_execute=lambda cell_index, **_: sent.append(cell_index),
            on_cell_executed=lambda **_: bar.update(),
            on_notebook_start=lambda **_: _let_ctrl_c_interrupt(),
        )
        try:
            client.execute()
        except KeyboardInterrupt:
            client.shutdown_kernel = "immediate"  # it may be in a cell that takes minutes
            raise
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            place = f"code cell {sum(is_code[: sent[-1] + 1])} of {sum(is_code)}"
            first = notebook.cells[sent[-1]].source.strip().splitlines()[0]
            message = f"{path.name}, {place} ({first[:60]}): {_reason(error)}"
            raise NotebookFailedError(message) from error
    return notebook


def _reason(error: Exception) -> str:
    """Return the error's name and the first three lines of its message, on one line."""
    raised = isinstance(error, CellExecutionError)
    message = re.sub(r"\x1b\[[0-9;]*m", "", error.evalue if raised else str(error))
    text = " ".join(" ".join(message.strip().splitlines()[:3]).split())[:300]
    return ": ".join(filter(None, (error.ename if raised else "", text)))


def _let_ctrl_c_interrupt() -> None:
    """Take nbclient's handler away: it ends the kernel, then fails on an assertion of its own."""
    with contextlib.suppress(RuntimeError, NotImplementedError, ValueError):
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def run(settings: Settings, first: str, last: str, output: Path) -> None:
    """Execute the notebooks from ``first`` to ``last`` and print the list that 05 ends with."""
    if not settings.spark_remote:
        check_java()
    print(data.locate(settings).describe())
    chosen = [path for path in notebooks(settings) if first <= path.name[:2] <= last]
    ranked = settings.cache_dir / RANKED_LIST
    ranked.unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for path in chosen:
        nbformat.write(execute(path), output / path.name)
    print(f"\n{len(chosen)} notebooks in {time.perf_counter() - start:.0f} s.")
    if ranked.exists():
        table = pd.read_csv(ranked, keep_default_na=False)
        print(f"\nRecommended movies, ranked by: {table['source'].iloc[0]}\n")
        for rank, title, reason in table[["rank", "title", "reason"]].itertuples(index=False):
            print(f"{rank:3}. {title}" + (f"\n     {reason}" if reason else ""))
    print(f"\nThe executed notebooks are in {output}/.")


def refresh_copies(settings: Settings) -> Path:
    """Bring the copies in ``work`` up to date and return the folder; what was changed there stays.

    ``.course.json`` keeps digests of what was written. To open and save a notebook is no change:
    JupyterLab then writes no more than its Python's version.
    """
    folder, older, notary = settings.root / "work", [], NotebookNotary()
    record = folder / ".course.json"
    written: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    for path in notebooks(settings, appendices=True):
        name = path.relative_to(settings.root / "notebooks").as_posix()
        copy, now = folder / name, _digest(path)
        if copy.exists() and _digest(copy) not in (now, written.get(name)):
            older += [name] if written.get(name) != now else []
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
        notary.sign(nbformat.read(copy, as_version=4))  # else its pictures show only once it ran
        written[name] = now
    record.write_text(json.dumps(written, indent=0))
    if older:
        print(f"Kept, as you changed them, though the course has newer ones: {', '.join(older)}. "
              "Delete or rename a copy to get the new one.")  # fmt: skip
    return folder


def _digest(path: Path) -> str:
    return hashlib.sha256(re.sub(rb'"version": "3[.\d]+"', b"", path.read_bytes())).hexdigest()


def lab_options(settings: Settings) -> list[str]:
    """Return JupyterLab's options that open the copies, the table of contents beside them."""
    folder = refresh_copies(settings)
    places = WorkspacesManager(str(folder / ".lab"))  # not those of the learner's own projects
    if not places.load("default")["data"]:
        contents = {"current": "@jupyterlab/toc:plugin", "widgets": ["@jupyterlab/toc:plugin"]}
        left = {"visible": True, "collapsed": False, **contents}
        layout = {"layout-restorer:data": {"left": left, "relativeSizes": [0.2, 0.8, 0]}}
        places.save("default", json.dumps({"data": layout, "metadata": {"id": "default"}}))
    lab = {"workspaces_dir": folder / ".lab", "app_settings_dir": LAB_SETTINGS,
           "default_url": f"/lab/tree/work/{notebooks(settings)[0].name}"}  # fmt: skip
    return [f"--ServerApp.root_dir={settings.root}", *(f"--LabApp.{k}={v}" for k, v in lab.items())]


def open_lab(settings: Settings) -> None:
    """Open JupyterLab in this process, so that Ctrl-C ends it as usual."""
    os.environ["KEEP_RESULTS"] = "1"  # a changed cell must not change the tables of the course
    LabApp.launch_instance(lab_options(settings))


def build(settings: Settings, name: str) -> None:
    """Write the page, the decks or the skeletons of the notebooks below ``build``."""
    target = settings.root / "build" / {"copies": "live"}.get(name, name)
    if name == "page":
        page.write(target, settings)
    elif name == "slides":
        slides.write_decks(settings.root, target)
    else:
        copies.write_live_copies(notebooks(settings), target)
    print(f"Written: {target}/")


def forget(settings: Settings) -> None:
    """Forget the replies of live servers, and the requests that found none; records stay."""
    files = [settings.cache_dir / f"{name}.jsonl" for name in ("replies", "pending")]
    stored, waiting = (len(replies.LocalStore(file).all()) for file in files)
    for file in files:
        file.unlink(missing_ok=True)
    print(f"{stored} stored replies and {waiting} waiting requests are forgotten.")


def execute_in_place(settings: Settings, names: Sequence[str]) -> int:
    """Run the notebooks whose names begin so (all by default); save them with clean outputs.

    An appendix's name begins with ``appendix/``.
    """
    for path in notebooks(settings, appendices=True):
        name = path.relative_to(settings.root / "notebooks").as_posix()
        if names and not name.startswith(tuple(names)):
            continue
        try:
            nbformat.write(clean(execute(path)), path)
        except NotebookFailedError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what differs between runs or machines: stderr, times, widget state, kernel names."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    for cell in notebook.cells:
        for key in cell.metadata.keys() - KEPT:
            del cell.metadata[key]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
    return notebook


def _is_noise(output: nbformat.NotebookNode) -> bool:
    """Whether it is stderr, or a progress bar: without its kernel it shows its first state."""
    text = output.get("data", {}).get("text/plain", "")
    bar = re.match(r"[^\n]*(\s+0%\||\b0\w+ \[00:00)", text)
    return output.get("name") == "stderr" or bool(bar)


def tidy(settings: Settings, files: Sequence[Path]) -> int:
    """Clean notebooks in place (all by default); return 1 if one changed, as a commit hook does."""
    status = 0
    docs = sorted((settings.root / "docs").glob("*.ipynb"))
    for path in files or [*notebooks(settings, appendices=True), *docs]:
        before = path.read_text(encoding="utf-8")
        after = nbformat.writes(clean(nbformat.reads(before, as_version=4))) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{path.name}: noise removed.")
            status = 1
    return status


def stamp(settings: Settings) -> None:
    """Write navigation bars, set-up cells and launch links, and say with which address."""
    print(f"Stamped {publish.stamp(settings) or '(there is no address yet)'}.")


def exchange_batch(settings: Settings, action: str, file: Path) -> int | None:
    """Export unanswered requests, import a Batch API output file, or keep uncommitted replies."""
    noted = replies.LocalStore(settings.cache_dir / "pending.jsonl").all()
    committed = replies.CommittedStore(settings.replies_dir)
    asked = {one.key: one.request for one in noted if committed.get(one.key) is None}
    with replies.LocalStore(settings.cache_dir / "replies.jsonl") as store:
        if action == "export":
            # A request stays noted after its answer came; it must not be sent and paid again.
            unanswered = [b for key, b in asked.items() if store.usable(key) is None]
            count = scale.export_batch(unanswered, file, settings.llm_model or "MODEL")
            return print(f"{count} requests written to {file}.")
        if action == "keep":
            kept = [store.usable(key) for key in sorted({reply.key for reply in store.all()})]
            records = [
                {"key": one.key, "request": one.request, "response": one.response}
                for one in kept
                if one and committed.get(one.key) is None
            ]
            lines = [json.dumps(record, ensure_ascii=False, sort_keys=True) for record in records]
            file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
            return print(f"{len(lines)} replies written to {file}.")
        report = scale.import_batch(file, asked.values(), store)
    print(report)
    return 1 if report.again else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and return the exit status; a known fault is one sentence."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="NAME")

    def add(name: str, action: Callable[[Settings, argparse.Namespace], int | None]):
        command_parser = commands.add_parser(name)
        command_parser.set_defaults(action=action)
        return command_parser

    running = add("run", lambda s, o: run(s, o.first, o.last, o.output))
    running.add_argument("--from", dest="first", default="01")
    running.add_argument("--to", dest="last", default="05")
    running.add_argument("--output", type=Path, default=Path("build/executed"))
    for name in ("page", "slides", "copies"):
        add(name, lambda s, _, name=name: build(s, name))
    for name, action in {"lab": open_lab, "forget": forget, "stamp": stamp}.items():
        add(name, lambda s, _, action=action: action(s))
    executing = add("execute", lambda s, o: execute_in_place(s, o.names))
    executing.add_argument("names", nargs="*", help="beginnings of names, e.g. 02")
    add("tidy", lambda s, o: tidy(s, o.files)).add_argument("files", nargs="*", type=Path)
    exchange = add("batch", lambda s, o: exchange_batch(s, o.exchange, o.file))
    exchange.add_argument("exchange", choices=["export", "import", "keep"])
    exchange.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    try:
        return options.action(Settings.from_env(), options) or 0
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C. What was finished is kept.", file=sys.stderr)
        return 130
    except (SettingsError, JavaError, data.DataError, slides.SlideError,
            NotebookFailedError, OSError) as error:  # fmt: skip
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
