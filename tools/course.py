"""Commands of the course, each as ``python tools/course.py NAME``.

``run`` executes the core notebooks top to bottom and prints the ranked list; ``lab``
opens JupyterLab with the notebooks in order, ``app`` the page of notebook 05's app; ``slides`` and
``copies`` write slides of 01 to 06 and notebooks for live coding; ``forget`` deletes stored LLM
replies. For authors: ``execute`` runs notebooks in place and saves clean outputs; ``tidy`` strips
noise; ``nav`` writes the navigation bars, ``stamp`` the repository's address and ``table`` the
README's table of results; ``batch`` exports unanswered LLM requests, imports the answers, and keeps
them as JSON Lines.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pandas as pd
import publish
import room
import slides
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm

from helpers import data, llm, replies
from helpers.settings import Settings, SettingsError
from helpers.spark import JavaError, check_java
from research import app, scale

CORE = ("01", "02", "03", "04", "05")
RANKED_LIST = "05_ranked_list.csv"
CELL_TIMEOUT_S = 1200
# What Jupyter, VS Code, Colab and kernels note about a cell; tags, slides and source_hidden stay.
VOLATILE_METADATA = ("execution", "ExecuteTime", "collapsed", "scrolled", "trusted", "id", "vscode",
                     "colab", "executionInfo", "outputId")  # fmt: skip


class NotebookFailedError(RuntimeError):
    """A cell failed; the message names notebook and cell."""


def notebooks(settings: Settings) -> list[Path]:
    """Return the notebooks in their order."""
    return sorted((settings.root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


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
    """Return the error's name and its message's first line; a mere heading brings its next lines.

    Pydantic heads its message with the number of errors, Py4J with the call that failed.
    """
    raised = isinstance(error, CellExecutionError)
    message = re.sub(r"\x1b\[[0-9;]*m", "", error.evalue if raised else str(error))
    lines = [line.strip() for line in message.splitlines() if line.strip()] or [""]
    heading = re.match(r"\d+ validation error|An error occurred while calling|.*:$", lines[0])
    told = " ".join(lines[: 3 if heading else 1])[:300]
    return ": ".join(filter(None, (error.ename if raised else "", told)))


def _let_ctrl_c_interrupt() -> None:
    """Take nbclient's handler away: it ends the kernel and then fails on an assertion of its own.

    The kernel still ends, at exit.
    """
    with contextlib.suppress(RuntimeError, NotImplementedError, ValueError):
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)


def clean(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove what differs between runs or machines: stderr, times, widget state, kernel names."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        for key in VOLATILE_METADATA:
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _noise(out)]
    return notebook


def _noise(output: nbformat.NotebookNode) -> bool:
    if output.get("name") == "stderr":
        return True
    # A finished progress bar without its kernel would show its first state for ever.
    text = output.get("data", {}).get("text/plain", "")
    return bool(re.match(r"[^\n]*(\s+0%\||\b0\w+ \[00:00)", text))


def tidy(settings: Settings, files: Sequence[Path]) -> int:
    """Clean notebooks in place (all by default); return 1 if one changed, as a commit hook does.

    Outputs, execution counts, tags and cell ids stay; see :func:`clean` for what goes.
    """
    changed = 0
    for path in files or [*notebooks(settings), *sorted((settings.root / "docs").glob("*.ipynb"))]:
        before = path.read_text(encoding="utf-8")
        notebook = clean(nbformat.reads(before, as_version=4))
        after = nbformat.writes(notebook) + "\n"
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{path.name}: noise removed.")
            changed = 1
    return changed


# --- run ----------------------------------------------------------------------------------------


def run(settings: Settings, first: str, last: str, output: Path) -> int:
    """Execute the notebooks from ``first`` to ``last``, print the list, return the exit status."""
    try:
        if not settings.spark_remote:
            check_java()
        dataset = data.locate(settings)
    except (JavaError, data.DataError) as error:
        print(error, file=sys.stderr)
        return 1
    print(dataset.describe())
    chosen = [path for path in notebooks(settings) if first <= path.name[:2] <= last]
    ranked = settings.cache_dir / RANKED_LIST
    ranked.unlink(missing_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    for path in chosen:
        try:
            done = execute(path)
        except NotebookFailedError as error:
            print(f"Stopped. {error}", file=sys.stderr)
            return 1
        nbformat.write(done, output / path.name)
    print(f"\n{len(chosen)} notebooks in {time.perf_counter() - start:.0f} s.")
    if ranked.exists():
        print_ranked_list(ranked)
    print(f"\nThe executed notebooks are in {output}/.")
    return 0


def print_ranked_list(path: Path) -> None:
    """Print the list that notebook 05 ends with."""
    table = pd.read_csv(path, keep_default_na=False)
    print(f"\nRecommended movies, ranked by: {table['source'].iloc[0]}\n")
    for row in table.itertuples():
        print(f"{row.rank:3}. {row.title}")
        if row.reason:
            print(f"     {row.reason}")


# --- authors ------------------------------------------------------------------------------------


def execute_in_place(settings: Settings, names: Sequence[str]) -> int:
    """Run the named notebooks (all by default) and save them with clean outputs."""
    for path in notebooks(settings):
        if names and not any(path.name.startswith(name) for name in names):
            continue
        try:
            notebook = clean(execute(path))
        except NotebookFailedError as error:
            print(error, file=sys.stderr)
            return 1
        nbformat.write(notebook, path)
    return 0


def write_navigation(settings: Settings) -> int:
    """Put the bar as the last line of the first and last markdown cell; running twice is safe."""
    paths = notebooks(settings)
    address = publish.repository(settings.root)
    for index, path in enumerate(paths):
        notebook = nbformat.read(path, as_version=4)
        bar = publish.navigation(paths, index, address)
        publish.write_bar(notebook, bar, publish.navigation(paths, index))
        nbformat.write(notebook, path)
    return 0


def write_address(settings: Settings) -> int:
    """Write the repository's address from ``pyproject.toml`` wherever it belongs, and say so."""
    address = publish.stamp(settings)
    print(f"Stamped {address}." if address else "Stamped: there is no address yet.")
    return 0


TABLE = "<!--EVALUATION-->"


def evaluation_table(rows: pd.DataFrame) -> str:
    """Return the Markdown table of ``data/results/06_evaluation.csv`` that the README shows.

    A row per retriever and ranker, with the 95 % interval in brackets where there is one.
    """
    metrics = ["NDCG@10", "Recall@10", "Recall@20"]

    def cell(retriever: str, ranker: str, metric: str) -> str:
        mine = (rows["retriever"] == retriever) & (rows["ranker"] == ranker)
        found = rows.loc[mine & (rows["metric"] == metric)]
        if found.empty:
            return ""
        one = found.iloc[0]
        if pd.isna(one["low"]):  # published, to four digits
            return f"{one['value']:.4f}"
        return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"

    lines = [f"| retriever | ranker | {' | '.join(metrics)} |", "| --- | --- | --- | --- | --- |"]
    for retriever, ranker in (
        rows[["retriever", "ranker"]].drop_duplicates().itertuples(index=False)
    ):
        cells = [cell(retriever, ranker, metric) for metric in metrics]
        lines.append(f"| {retriever} | {ranker} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table(settings: Settings) -> int:
    """Put the table between its two marks in the README; running twice is safe.

    Raises:
        ValueError: the README lacks the marks.
    """
    readme = settings.root / "README.md"
    parts = readme.read_text(encoding="utf-8").split(TABLE)
    if len(parts) != 3:
        raise ValueError(f"README.md needs the mark {TABLE} before and after the table.")
    parts[1] = (
        f"\n\n{evaluation_table(pd.read_csv(settings.results_dir / '06_evaluation.csv'))}\n\n"
    )
    readme.write_text(TABLE.join(parts), encoding="utf-8")
    return 0


def exchange_batch(settings: Settings, action: str, file: Path) -> int:
    """Export requests that found no answer, import a Batch API output file, or keep replies.

    ``keep`` writes the local store's replies that are not committed yet to a JSON Lines file.
    """
    noted = replies.PendingRequests(settings.cache_dir / "pending.jsonl").all()
    committed = replies.CommittedStore(settings.replies_dir)
    pending = [body for body in noted if committed.get(replies.request_key(body)) is None]
    with replies.LocalStore(settings.cache_dir / "replies.jsonl") as store:
        if action == "export":
            # A request stays noted after its answer came; it must not be sent and paid again.
            pending = [
                body
                for body in pending
                if store.get(replies.request_key(body), fault=llm.usable) is None
            ]
            count = scale.export_batch(pending, file, settings.llm_model or "MODEL")
            print(f"{count} requests written to {file}.")
            return 0
        if action == "keep":
            fresh = [
                reply
                for reply in store.all()
                if committed.get(reply.key) is None
                and not llm.usable(reply.request, reply.response)
            ]
            print(f"{replies.write_jsonl(fresh, file)} replies written to {file}.")
            return 0
        report = scale.import_batch(file, pending, store)
    print(report)
    return 1 if report.again else 0


def forget(settings: Settings) -> int:
    """Forget the replies of live servers, and the requests that found none; records stay."""
    pending = settings.cache_dir / "pending.jsonl"
    waiting = len(replies.PendingRequests(pending).all())
    with replies.LocalStore(settings.cache_dir / "replies.jsonl") as store:
        stored = store.forget()
    pending.unlink(missing_ok=True)
    print(f"{stored} stored replies and {waiting} waiting requests are forgotten.")
    return 0


# --- people ---------------------------------------------------------------------------------------


def open_app(settings: Settings, options: Sequence[str]) -> int:
    """Make what the app needs, then serve its page: notebooks 02 and 03 run if they never did."""
    try:
        dataset = data.locate(settings)
        print(dataset.describe())
        for number in ("02", "03"):
            if not data.result_path("03_implicit", dataset, settings).is_file():
                print(f"The app needs what notebooks 02 and 03 save: running {number}, once.")
                execute(next(p for p in notebooks(settings) if p.name.startswith(number)))
        app.load_retriever(dataset, settings)
    except (JavaError, data.DataError, NotebookFailedError) as error:
        print(error, file=sys.stderr)
        return 1
    return room.app(options)


def write_for_the_room(settings: Settings, what: str, target: Path | None) -> int:
    """Write slides or live-coding copies and say where they are."""
    found = notebooks(settings)
    try:
        if what == "slides":
            target = target or settings.root / "docs-build" / "slides"
            written = slides.write_slides([p for p in found if p.name[:2] in slides.NAMES], target)
        else:
            target = target or settings.root / "live"
            written = slides.write_live_copies(found, target)
    except slides.SlidesError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{len(written)} files in {target}:", *(path.name for path in written), sep="\n  ")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python tools/course.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="run the core notebooks and print the ranked list")
    one.add_argument("--from", dest="first", default=CORE[0])
    one.add_argument("--to", dest="last", default=CORE[-1])
    one.add_argument("--output", type=Path, default=Path("executed"))
    two = commands.add_parser("execute", help="run notebooks in place, for authors")
    two.add_argument("names", nargs="*", help="beginnings of names, e.g. 02")
    commands.add_parser("nav", help="write the navigation bars")
    commands.add_parser("stamp", help="write the repository's address into notebooks and README")
    tidying = commands.add_parser("tidy", help="strip noise from notebooks, keep their outputs")
    tidying.add_argument("files", nargs="*", type=Path, help="default: all notebooks")
    commands.add_parser("table", help="write the README's table from notebook 06's results")
    commands.add_parser("lab", help="open JupyterLab with the notebooks in order")
    commands.add_parser("app", help="serve the page of notebook 05's app")
    for name, text in (("slides", "write slides of notebooks 01 to 06"),
                       ("copies", "write notebooks without outputs and solutions")):  # fmt: skip
        commands.add_parser(name, help=text).add_argument("--output", type=Path)
    three = commands.add_parser("batch", help="record LLM replies in bulk")
    three.add_argument("action", choices=["export", "import", "keep"])
    three.add_argument("file", type=Path)
    commands.add_parser("forget", help="forget the stored replies of live servers")
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in ("lab", "app"):  # those two pass them on
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    try:
        return _dispatch(settings, options, rest)
    except (publish.PublishError, JavaError, data.DataError) as error:
        print(error, file=sys.stderr)
        return 1


def _dispatch(settings: Settings, options: argparse.Namespace, rest: list[str]) -> int:
    if options.command == "run":
        return run(settings, options.first, options.last, options.output)
    if options.command == "execute":
        return execute_in_place(settings, options.names)
    if options.command == "nav":
        return write_navigation(settings)
    if options.command == "stamp":
        return write_address(settings)
    if options.command == "tidy":
        return tidy(settings, options.files)
    if options.command == "table":
        return write_table(settings)
    if options.command == "lab":
        return room.lab(settings, rest)
    if options.command == "app":
        return open_app(settings, rest)
    if options.command in ("slides", "copies"):
        return write_for_the_room(settings, options.command, options.output)
    if options.command == "forget":
        return forget(settings)
    return exchange_batch(settings, options.action, options.file)


if __name__ == "__main__":
    sys.exit(main())
