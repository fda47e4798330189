"""Commands of the course, each as ``python tools/course.py NAME``.

``run`` executes the core notebooks and prints the ranked list; ``lab`` opens copies in
JupyterLab; ``page``, ``slides``, ``copies`` write the page to play with, decks, and skeletons for
live coding. For authors: ``execute 03`` runs notebooks in place, ``tidy`` strips noise, ``stamp``
writes bars and the address, ``batch export``, ``import`` and ``keep`` exchange LLM requests.
"""

import bootstrap  # noqa: F401  # where packages are missing it sets them up and goes on there

# isort: split
import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import lessons
import nbformat
import pandas as pd
import publish
from jupyterlab.labapp import LabApp
from jupyterlab_server.workspaces_handler import WorkspacesManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from nbformat.sign import NotebookNotary
from tqdm import tqdm

from helpers import data, replies
from helpers.settings import Settings, SettingsError
from research import scale

LAB = Path(__file__).with_name("lab")  # settings and metadata as JupyterLab writes them
KERNEL = json.loads((LAB / "kernel.json").read_text("utf-8"))
KEPT = {"tags", "slideshow", "jupyter", "lines_to_next_cell"}  # of a cell's metadata


def execute(path: Path) -> nbformat.NotebookNode:
    """Run a notebook in a fresh kernel and return it; a cell that fails is a LessonError."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=1200,  # seconds a cell
        kernel_name="python3",
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # its notice on TCP alarms readers
        resources={"metadata": {"path": str(path.parent)}},
    )
    code = [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    with client.setup_kernel():  # client.execute() would take Ctrl-C for itself
        for n, (index, cell) in enumerate(tqdm(code, path.stem, unit="cell", mininterval=0), 1):
            try:
                client.execute_cell(cell, index)
            except KeyboardInterrupt:
                client.shutdown_kernel = "immediate"  # it may be in a cell that takes minutes
                raise
            except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
                why = f"{error.ename}: {error.evalue}" if hasattr(error, "ename") else str(error)
                why = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", why).split())[:300].rstrip(": ")
                first = cell.source.strip().splitlines()[0][:60]
                place = f"code cell {n} of {len(code)} ({first})"
                raise lessons.LessonError(f"{path.name}, {place}: {why}") from error
        client.set_widgets_metadata()
    for cell in notebook.cells:  # a line may come in pieces, and what goes to stderr between them
        cell.get("outputs", []).sort(key=lambda output: output.get("name") == "stderr")
    return CoalesceStreamsPreprocessor().preprocess(notebook, {})[0]


def run(settings: Settings, first: str, last: str) -> None:
    """Execute the notebooks from ``first`` to ``last`` and print the list that 05 ends with."""
    chosen = [path for path in lessons.paths(settings.root) if first <= path.name[:2] <= last]
    print(data.locate(settings).describe())
    ranked, output = settings.cache_dir / "05_ranked_list.csv", settings.root / "build" / "executed"
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
    """Bring the copies in ``work`` up to date and return it; what was changed there stays."""
    folder, notary = settings.root / "work", NotebookNotary()
    record = folder / ".course.json"  # digests of what was written
    written: dict[str, str] = json.loads(record.read_text()) if record.exists() else {}
    for path in lessons.paths(settings.root, appendices=True):
        name = path.relative_to(settings.root / "notebooks").as_posix()
        copy, now = folder / name, _digest(path)
        if not copy.exists() or _digest(copy) in (now, written.get(name)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            notary.sign(nbformat.read(copy, as_version=4))  # else pictures show only once it ran
            written[name] = now
        elif written.get(name) != now:
            print(f"Your changed {name} stays. To get the newer one, rename or delete yours.")
    record.write_text(json.dumps(written, indent=0))
    return folder


def _digest(path: Path) -> str:
    # Opened and saved is not changed: JupyterLab then writes no more than its Python's version.
    return hashlib.sha256(re.sub(rb'"version": "3[.\d]+"', b"", path.read_bytes())).hexdigest()


def lab_options(settings: Settings) -> list[str]:
    """Return JupyterLab's options that open the copies, the table of contents beside them."""
    folder = refresh_copies(settings)
    places = WorkspacesManager(str(folder / ".lab"))  # not those of the learner's own projects
    if not places.load("default")["data"]:
        places.save("default", (LAB / "workspace.json").read_text("utf-8"))
    lab = {"workspaces_dir": folder / ".lab", "app_settings_dir": LAB,
           "default_url": f"/lab/tree/work/{lessons.paths(settings.root)[0].name}"}  # fmt: skip
    return [f"--ServerApp.root_dir={settings.root}", *(f"--LabApp.{k}={v}" for k, v in lab.items())]


def open_lab(settings: Settings) -> None:
    """Open JupyterLab in this process, so that Ctrl-C ends it as usual."""
    os.environ["KEEP_RESULTS"] = "1"  # a changed cell must not change the tables of the course
    LabApp.launch_instance(lab_options(settings))


def build(settings: Settings, name: str) -> None:
    """Write what the module ``name`` makes of the notebooks below ``build``."""
    folder = settings.root / "build" / {"copies": "live"}.get(name, name)
    folder.mkdir(parents=True, exist_ok=True)
    importlib.import_module(name).write(folder, settings)
    print(f"Written: {folder}/")


def execute_in_place(settings: Settings, names: list[str]) -> None:
    """Run the notebooks whose names begin so (all by default); an appendix's: appendix/NAME."""
    for path in lessons.paths(settings.root, appendices=True):
        name = path.relative_to(settings.root / "notebooks").as_posix()
        if name.startswith(tuple(names or [""])):
            nbformat.write(clean(execute(path)), path)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what differs between runs or machines: stderr, times, widget state, kernel names."""
    notebook.metadata = nbformat.from_dict(KERNEL)
    bar = re.compile(r"[^\n]*(\s+0%\||\b0\w+ \[00:00)")  # without its kernel: its first state
    for cell in notebook.cells:
        for key in cell.metadata.keys() - KEPT:
            del cell.metadata[key]
        if cell.cell_type == "code":
            kept = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = [output for output in kept if not bar.match(lessons.said([output]))]
    return notebook


def tidy(settings: Settings, files: list[str]) -> int:
    """Clean notebooks in place (all by default); return 1 if one changed, as a commit hook does."""
    status, template = 0, settings.root / "docs" / "template.ipynb"
    for path in map(Path, files or [*lessons.paths(settings.root, appendices=True), template]):
        before = path.read_text(encoding="utf-8")
        after = nbformat.writes(clean(nbformat.reads(before, as_version=4))) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{path.name}: noise removed.")
            status = 1
    return status


def exchange_batch(settings: Settings, action: str, file: Path) -> int | None:
    """Export unanswered requests, import a Batch API output file, or keep uncommitted replies."""
    committed = replies.Store(settings.replies_dir)
    store = replies.Store(settings.cache_dir / "replies.jsonl")
    if action == "keep":
        kept = [store.get(key) for key in sorted({reply.key for reply in store.all()})]
        new = [reply for reply in kept if reply and committed.get(reply.key) is None]
        rows = [{name: getattr(r, name) for name in ("key", "request", "response")} for r in new]
        lines = [json.dumps(row, ensure_ascii=False, sort_keys=True) + "\n" for row in rows]
        with file.open("a", encoding="utf-8", newline="\n") as output:
            output.writelines(lines)
        return print(f"{len(lines)} replies added to {file}.")
    noted = replies.Store(settings.cache_dir / "pending.jsonl").all()
    # A request stays noted after its answer came; it must not be sent and paid again.
    unanswered = [r.request for r in noted if not (committed.get(r.key) or store.get(r.key))]
    if action == "export":
        count = scale.export_batch(unanswered, file, settings.llm_model or "MODEL")
        return print(f"{count} requests written to {file}.")
    print(report := scale.import_batch(file, unanswered, store))
    return int(bool(report.again))


two_digits = "{:0>2}".format  # 2 is 02
BATCH = {"choices": ["export", "import", "keep"]}
COMMANDS: dict[str, tuple] = {  # functions, and their arguments as argparse reads them
    "run": (run, ("--from", {"dest": "first", "default": "01", "type": two_digits}),
            ("--to", {"dest": "last", "default": "05", "type": two_digits})),
    **{name: (partial(build, name=name),) for name in ("page", "slides", "copies")},
    **{"lab": (open_lab,), "stamp": (publish.stamp,)},
    "execute": (execute_in_place, ("names", {"nargs": "*"})),
    "tidy": (tidy, ("files", {"nargs": "*"})),
    "batch": (exchange_batch, ("action", BATCH), ("file", {"type": Path})),
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and return the exit status; a known fault is one sentence."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="command", metavar="NAME")
    for name, (_, *accepted) in COMMANDS.items():
        command = commands.add_parser(name)
        for argument, about in accepted:
            command.add_argument(argument, **about)
    options = vars(parser.parse_args(arguments))
    action = COMMANDS[options.pop("command")][0]
    try:
        settings = Settings.from_env()
        if settings.movielens_dir:  # absolute: kernels run in another folder
            os.environ["MOVIELENS_DIR"] = str(settings.movielens_dir)
        return action(settings, **options) or 0
    except KeyboardInterrupt:
        print("\nStopped by Ctrl-C. What was finished is kept.", file=sys.stderr)
        return 130
    except (SettingsError, data.DataError, lessons.LessonError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
