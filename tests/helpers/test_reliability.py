"""Faults of the machine, and Ctrl-C in each slow step: one sentence, no half file, a rerun works.

The README's table of faults names a test for each; what other files test already is not repeated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import course
import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from slow_server import slow_server

from conftest import ROOT
from helpers import data, replies
from helpers.settings import Settings

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="needs the extra llamarec"
)
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


# --- the table ------------------------------------------------------------------------------------


def test_every_test_that_the_readme_names_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Reliability", 1)[1].split("\n## ", 1)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 14
    for row in rows:
        named = re.findall(r"`(test_\w+)::(test_\w+)`", row)
        assert named, f"no test is named in: {row}"
        for module, test in named:
            [path] = (ROOT / "tests").glob(f"*/{module}.py")
            source = path.read_text(encoding="utf-8")
            assert re.search(rf"^def {test}\(", source, re.MULTILINE), f"{module}::{test}"


# --- no disk, no right to write -------------------------------------------------------------------


def mounted(folder: Path, options: str) -> bool:
    """Mount a file system of its own; root may, and on some machines sudo."""
    command = ["mount", "-t", "tmpfs", "-o", f"{options},mode=777", "tmpfs", str(folder)]
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    with contextlib.suppress(OSError):
        return subprocess.run([*sudo, *command], capture_output=True).returncode == 0
    return False


@pytest.fixture
def tiny_disk(tmp_path):
    """A disk of 256 kB in a folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or not mounted(folder, "size=256k"):
        pytest.skip("a small disk of its own cannot be mounted here")
    yield folder
    sudo = [] if os.geteuid() == 0 else ["sudo", "-n"]
    subprocess.run([*sudo, "umount", "-l", str(folder)], check=True)


@pytest.fixture
def closed_home(tmp_path):
    """A copy of the project that cannot be written to."""
    if sys.platform == "win32":
        pytest.skip("the mode of a folder means nothing here")
    home = tmp_path / "home"
    (home / "data" / "cache").mkdir(parents=True)
    (home / "data" / "sample").symlink_to(ROOT / "data" / "sample")
    (home / "data" / "replies").symlink_to(ROOT / "data" / "replies")
    (home / "data" / "results").mkdir()
    folders = [home / "data" / name for name in ("cache", "results", "")]
    if os.geteuid() == 0:  # to whom the mode of a folder means nothing
        bound = ["mount", "--bind", str(home), str(home)]
        closing = ["mount", "-o", "remount,ro,bind", str(home)]
        if any(subprocess.run(one, capture_output=True).returncode for one in (bound, closing)):
            pytest.skip("a read-only folder cannot be made here")
        yield home
        subprocess.run(["umount", "-l", str(home)], check=True)
    else:
        for folder in folders:
            folder.chmod(0o555)
        yield home
        for folder in folders:
            folder.chmod(0o755)


def dataset() -> data.Dataset:
    return data.locate(Settings.from_env({"MOVIELENS_DOWNLOAD": "0", "HELPERS_HOME": str(ROOT)}))


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "filler").open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()


def save_table(folder: Path, rows: int = 3) -> Path:
    settings = Settings.from_env({"HELPERS_HOME": str(ROOT)})
    settings = dataclasses.replace(settings, root=folder)
    table = pd.DataFrame({"value": np.arange(rows)})
    return data.save_result(table, "01_x", dataset(), settings)


def test_a_full_disk_leaves_the_old_table(tiny_disk):
    path = save_table(tiny_disk)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"):
        save_table(tiny_disk, 100_000)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_full_disk_loses_no_stored_reply(tiny_disk):
    path, answer = tiny_disk / "replies.jsonl", {"choices": [{"message": {}}]}
    with replies.LocalStore(path) as store:
        store.put({"messages": "first"}, answer)
        fill(tiny_disk)
        with pytest.raises(OSError, match="No space left"):
            store.put({"messages": "second" * 100_000}, answer)
        (tiny_disk / "filler").unlink()
        store.put({"messages": "third"}, answer)
    with pytest.warns(replies.StoreWarning, match="line 2"), replies.LocalStore(path) as store:
        assert [reply.request["messages"] for reply in store.all()] == ["first", "third"]


def test_a_full_disk_while_a_request_is_noted(tiny_disk):
    fill(tiny_disk)
    pending = replies.PendingRequests(tiny_disk / "pending.jsonl")
    with pytest.raises(OSError, match="No space left"):
        pending.add({"messages": "x" * 10_000})
    (tiny_disk / "filler").unlink()
    pending.add({"messages": "y"})
    assert {"messages": "y"} in pending.all()


@needs_torch
def test_a_full_disk_stops_a_training_in_one_sentence(tiny_disk):
    """PyTorch says 'unexpected pos 64 vs 0' where the disk is full."""
    import torch

    from research import neural

    items = np.arange(500)
    network = neural.Network(neural.Config.of("lrurec"), items)
    with pytest.raises(Exception, match="No space left"):
        neural.save(network, tiny_disk / "x.safetensors")
    fill(tiny_disk)
    with (
        pytest.raises((OSError, RuntimeError)),
        data.replacing(tiny_disk / "x.state") as fresh,
    ):
        torch.save(network.state_dict(), fresh)
    assert [path.name for path in tiny_disk.iterdir()] == ["filler"]


def test_a_read_only_folder_is_one_sentence_wherever_it_is_met(closed_home):
    cache, answer = closed_home / "data" / "cache", {"choices": [{"message": {}}]}
    attempts = (
        lambda: save_table(closed_home),
        lambda: replies.LocalStore(cache / "replies.jsonl").put({}, answer),
        lambda: replies.PendingRequests(cache / "pending.jsonl").add({"a": 1}),
    )
    for attempt in attempts:
        with pytest.raises(OSError, match=r"(Read-only file system|Permission denied): '/.*'"):
            attempt()


CLOSING = """
import dataclasses, gc, psutil
from helpers import als
from helpers.settings import Settings
from helpers.spark import close_spark, get_spark
javas = lambda: sum("java" in one.name() for one in psutil.Process().children(recursive=True))
for megabytes in (600, 800):
    settings = dataclasses.replace(Settings.from_env(), spark_driver_memory=f"{megabytes}m")
    session = get_spark(settings)
    pairs = [(user, movie, 3.0) for user in range(9) for movie in range(9)]
    rows = session.createDataFrame(pairs, "userId int, movieId int, rating float")
    model = als.make_als(2, 0.1, max_iter=1).fit(rows)  # the second lets go of the first
    gc.collect()
    heap = session._jvm.java.lang.Runtime.getRuntime().maxMemory() / 2**20
    print(model.userFactors.count(), javas(), abs(heap - megabytes) < 60)
    close_spark(session)
    print(javas())
"""


def test_closing_spark_ends_its_jvm_and_a_new_session_has_one_of_its_own():
    """So the memory of a notebook's JVM is free while its kernel stays open."""
    done = subprocess.run(
        [sys.executable, "-c", CLOSING], env=course_environment(), capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr
    assert done.stdout.split("\n") == ["9 1 True", "0", "9 1 True", "0", ""]


SURROUNDED = """
from helpers import data
from helpers.settings import Settings
from helpers.spark import get_spark
settings = Settings.from_env()
session = get_spark(settings)
ratings = session.read.csv(str(data.locate(settings).path / "ratings.csv"), header=True)
ratings.write.parquet(str(settings.root / "copy"))
print(session.read.parquet(str(settings.root / "copy")).count())
print(session.range(3).mapInPandas(lambda frames: frames, "id long").count())
print(session.conf.get("spark.test.foreign", "none"))
"""


def test_a_local_session_is_its_own_whatever_the_machine_brings_along(tmp_path):
    """Another Spark, Python, Hadoop and locale, a folder's name, a file that hides a module."""
    home, foreign = tmp_path / "Größe données 電影", tmp_path / "foreign"
    shutil.copytree(ROOT / "data" / "sample", home / "data" / "sample")
    foreign.mkdir()
    (foreign / "random.py").write_text("raise SystemExit('mine')")
    (foreign / "spark-defaults.conf").write_text("spark.test.foreign yes\n")
    (foreign / "core-site.xml").write_text(
        "<configuration><property><name>fs.defaultFS</name><value>hdfs://nowhere:9</value>"
        "</property></configuration>"
    )
    environment = course_environment(
        home, MOVIELENS_DIR=str(home / "data" / "sample"), LC_ALL="C",
        SPARK_CONF_DIR=str(foreign), HADOOP_CONF_DIR=str(foreign),
        SPARK_HOME=str(tmp_path / "gone"), PYSPARK_PYTHON=str(tmp_path / "gone"),
        PYSPARK_DRIVER_PYTHON="jupyter",
        PYSPARK_SUBMIT_ARGS="--name x", PYSPARK_GATEWAY_PORT="9",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-P", "-c", SURROUNDED],
        cwd=foreign, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    rows = len((home / "data" / "sample" / "ratings.csv").read_text().splitlines()) - 1
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(rows), "3", "none"]


CLOSED_QUESTIONS = (
    "ratings.count()",
    "ratings.toPandas()",
    "ratings",
    "session.range(1)",
    "session.createDataFrame(pandas.DataFrame({'a': [1]}))",
    "ratings.where(functions.col('userId') > 1).show()",
    "ALS()",
    "model.transform(ratings).count()",
)


def test_who_goes_back_after_the_last_cell_gets_one_sentence(tmp_path, monkeypatch):
    """In a kernel, and again once there is a new session; other errors are as they were."""
    for name, value in course_environment().items():
        monkeypatch.setenv(name, value)
    first = (
        "import pandas\nfrom pyspark.ml.recommendation import ALS\n"
        "from pyspark.sql import functions\nfrom helpers import als\n"
        "from helpers.spark import close_spark, get_spark\nsession = get_spark()\n"
        "columns = 'userId int, movieId int, rating float'\n"
        "ratings = session.createDataFrame([(1, 1, 3.0)], columns)\n"
        "model = als.make_als(2, 0.1, max_iter=1).fit(ratings)\nclose_spark(session)"
    )
    again = (  # closing twice is harmless, to a new session too
        "close_spark(session); fresh = get_spark(); close_spark(session)\n"
        "print(fresh.range(3).count())"
    )
    asked = [*CLOSED_QUESTIONS, "1 / 0", again, *CLOSED_QUESTIONS[:5], "fresh.range(1).where('x')"]
    cells = [new_code_cell(text, metadata={"tags": ["raises-exception"]}) for text in asked]
    notebook = new_notebook(cells=[new_code_cell(first), *cells])
    NotebookClient(notebook, kernel_name="python3", timeout=300).execute()
    told = [
        (output.get("ename"), output.get("evalue") or output.get("text"), output.get("traceback"))
        for cell in notebook.cells[1:]
        for output in cell.outputs
        if output.get("name") != "stderr" and "SQLQueryContextLogger" not in output.get("text", "")
    ]
    n = len(CLOSED_QUESTIONS)
    for name, message, traceback in told[:n] + told[n + 2 : n + 7]:
        assert name == "SparkClosedError" and "run the notebook again from its start" in message
        assert traceback == [f"SparkClosedError: {message}"]  # and none of PySpark's frames
    assert [told[n][0], told[n + 1][1], told[-1][0]] == [
        "ZeroDivisionError", "3\n", "AnalysisException"
    ]  # fmt: skip
    assert len(told) == len(asked)


def course_environment(home: Path = ROOT, **more: str) -> dict[str, str]:
    return {
        **os.environ, "PYTHONPATH": str(ROOT / "src"), "HELPERS_HOME": str(home),
        "MOVIELENS_DIR": str(ROOT / "data" / "sample"), "MOVIELENS_DOWNLOAD": "0", **more,
    }  # fmt: skip


# --- killed kernel, port in use -------------------------------------------------------------------


def notebook_at(folder: Path, *cells: str) -> Path:
    (folder / "notebooks").mkdir(exist_ok=True)
    path = folder / "notebooks" / "01_a.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in cells]), path)
    return path


def test_a_killed_kernel_is_named_and_the_next_run_goes_on(tmp_path, settings, capsys):
    """It dies while it writes: the finished reply and the old table are there, the new one not."""
    project = dataclasses.replace(settings, root=tmp_path)
    first = (
        "from pathlib import Path; import os, signal; from helpers import data, replies\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "store = replies.LocalStore(folder / 'r.jsonl')\n"
        "print(len(store.all()), 'kept')\n"
        "store.put({'messages': 'asked'}, {'choices': [{'message': {}}]})"
    )
    second = (
        "with data.replacing(folder / 'table.csv') as fresh:\n"
        "    fresh.write_text('half' if (folder / 'kill').exists() else 'whole')\n"
        "    if (folder / 'kill').exists(): os.kill(os.getpid(), signal.SIGKILL)"
    )
    path = notebook_at(tmp_path, first, second)
    before = path.read_bytes()
    (tmp_path / "kill").touch()
    (tmp_path / "table.csv").write_text("old")
    assert course.execute_in_place(project, ["01"]) == 1
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(r"01_a\.ipynb, code cell 2 of 2 \(with data.*\): Kernel died", told)
    assert path.read_bytes() == before and (tmp_path / "table.csv").read_text() == "old"
    (tmp_path / "kill").unlink()
    assert course.execute_in_place(project, ["01"]) == 0
    assert nbformat.read(path, 4).cells[0].outputs[0].text == "1 kept\n"
    assert (tmp_path / "table.csv").read_text() == "whole"


def test_a_port_in_use_stops_neither_spark_nor_jupyterlab(tmp_path):
    with contextlib.ExitStack() as stack:
        for port in (4040, 0):  # the one of Spark's page, and one for JupyterLab
            taken = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # another program may have it: just as well
                taken.bind(("127.0.0.1", port))
                taken.listen()
        port = taken.getsockname()[1]
        code = "from helpers.spark import get_spark; print(get_spark().range(3).count())"
        session = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", code], env=course_environment(), text=True,
                stdout=subprocess.PIPE,
            )
        )  # fmt: skip
        lab = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--port={port}",
             "--allow-root", "--ServerApp.ip=127.0.0.1"],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            for line in lab.stderr:
                if found := re.search(r"http://127\.0\.0\.1:(\d+)/lab", line):
                    break
            assert found and int(found[1]) != port
        finally:
            lab.kill()
            lab.communicate()
        assert session.communicate()[0].strip() == "3"


# --- Ctrl-C ---------------------------------------------------------------------------------------


def interrupted(
    command: list[str], after: str, within: float = 10, wait: float = 0.0, **options
) -> tuple[int, str, str]:
    """Start, send SIGINT once a line of stdout or stderr holds ``after``, and return the end.

    As the terminal does, it goes to the whole group; the end must come ``within`` seconds.
    """
    process = subprocess.Popen(
        [sys.executable, *command], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, **options,
    )  # fmt: skip
    texts, seen = {"stdout": "", "stderr": ""}, threading.Event()

    def read(name: str) -> None:
        stream = getattr(process, name)
        while piece := os.read(stream.fileno(), 65536).decode(errors="replace"):
            texts[name] += piece
            if after in texts[name]:
                seen.set()
        seen.set()

    readers = [threading.Thread(target=read, args=(name,), daemon=True) for name in texts]
    for reader in readers:
        reader.start()
    try:
        assert seen.wait(180) and process.poll() is None, texts
        time.sleep(wait)
        os.killpg(process.pid, signal.SIGINT)
        start = time.perf_counter()
        process.wait(timeout=within)
        assert time.perf_counter() - start < within
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for reader in readers:
        reader.join(10)
    return process.returncode, texts["stdout"], texts["stderr"]


DOWNLOAD = """
import io, sys, time, urllib.request
from pathlib import Path
from helpers import data
class Slow(io.BytesIO):
    def read(self):
        print("reading", flush=True)
        time.sleep(60)
urllib.request.urlopen = lambda url, timeout: Slow()
data.download(Path(sys.argv[1]))
"""


@needs_signals
def test_ctrl_c_in_the_download_leaves_nothing(tmp_path):
    target = tmp_path / "store" / "ml"
    status, _, errors = interrupted(
        # A signal between the print and the sleep would be heard after the sleep.
        ["-c", DOWNLOAD, str(target)],
        "reading",
        wait=0.5,
        env=course_environment(),
    )
    assert status != 0 and errors.strip().endswith("KeyboardInterrupt")
    assert not list(tmp_path.iterdir())


GRID = """
import sys, time
from helpers import als, data
from helpers.spark import get_spark
session = get_spark()
train, validation, _ = data.split(data.load(session, data.locate()).ratings)
als.grid_search(train, validation, ranks=[2], regs=[0.1], max_iter=1)
try:
    print("ready", flush=True)
    als.grid_search(train, validation, ranks=range(20, 60), max_iter=40)
except KeyboardInterrupt:
    start = time.perf_counter()
    again = als.grid_search(train, validation, ranks=[2], regs=[0.1], max_iter=1)
    print("again", again.rank, round(time.perf_counter() - start))
session.stop()
"""


@needs_signals
def test_ctrl_c_in_the_grid_search_ends_at_once_and_the_session_goes_on():
    """200 fits would take minutes; those under way are cancelled, the others never begin."""
    status, output, errors = interrupted(
        ["-c", GRID], "ready", 20, wait=2.0, env=course_environment()
    )
    assert status == 0, errors
    assert re.search(r"again 2 \d$", output.strip())


RANK = """
import sys
from pathlib import Path
from research import scale
from helpers.replies import LocalStore
users = (
    (user, [10, 20, 30], [{"role": "user", "content": f"user {user} "}]) for user in range(200)
)
with LocalStore(Path(sys.argv[1])) as store:
    for one in scale.blocking(scale.rank_users(users, store=store)):
        print("got", one.user, one.source, flush=True)
"""

ASK = """
from helpers import llm
from research import evaluation
from helpers.settings import Settings
requests = {
    user: ([10, 20, 30], [{"role": "user", "content": f"user {user} "}]) for user in range(200)
}
print("got", flush=True)
print(len(evaluation.ask_all(llm.connect(Settings.from_env()), requests).orders))
"""


@needs_signals
@pytest.mark.parametrize("code", [RANK, ASK], ids=["rank_users", "ask_all"])
def test_ctrl_c_while_an_llm_ranks_keeps_every_answer(code, tmp_path):
    path = tmp_path / "data" / "cache" / "replies.jsonl"
    (tmp_path / "data" / "sample").mkdir(parents=True)

    def stored() -> int:
        with replies.LocalStore(path) as store:
            return len(store.all())

    with slow_server(0.2) as server:
        environment = course_environment(
            tmp_path, OPENAI_BASE_URL=server.url, LLM_MODEL="served", LLM_MODE="live",
            LLM_MAX_TOKENS="100000000",
        )  # fmt: skip
        command = ["-c", code, str(path)]
        status, output, errors = interrupted(command, "got", 6, wait=1.5, env=environment)
        assert status != 0 and errors.strip().endswith("KeyboardInterrupt"), output + errors
        asked, kept = len(server.log()), stored()
        assert 0 < kept < 190 and asked == kept  # what was paid for is kept
        done = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert sorted(server.users()) == list(range(200))  # nobody was asked twice
    assert stored() == 200


@needs_signals
@needs_torch
def test_after_ctrl_c_in_a_training_the_same_command_goes_on(tmp_path):
    path = tmp_path / "x.safetensors"
    script = ROOT / "tools" / "experiments" / "07_retrievers.py"
    command = [str(script), "--to", str(path)]
    options = {"env": course_environment(OMP_NUM_THREADS="1")}
    status, _, errors = interrupted(command, "recall=", **options)
    assert status != 0, errors
    assert [path.suffix for path in tmp_path.iterdir()] == [".state"]
    import torch

    epochs = len(torch.load(path.with_suffix(".state"), weights_only=True)["history"])
    assert epochs >= 1
    _, _, errors = interrupted(command, "epoch", **options)
    bars = re.findall(r"(\d+)epoch", errors)
    assert int(bars[0]) >= epochs  # it did not begin anew


EMBED = """
import sys, time
import numpy as np
from research import embeddings
def make(texts):
    print("embedding", flush=True)
    time.sleep(float(sys.argv[1]))
    return np.ones((len(texts), 3))
print(len(embeddings.embed([str(n) for n in range(300)], batch=20, make=make)))
"""


@needs_signals
@needs_torch
def test_ctrl_c_while_texts_are_embedded_leaves_no_half_cache(tmp_path):
    (tmp_path / "data" / "sample").mkdir(parents=True)
    options = {"env": course_environment(tmp_path)}
    status, _, errors = interrupted(["-c", EMBED, "1"], "embedding", 3, wait=1.2, **options)
    assert status != 0 and errors.strip().endswith("KeyboardInterrupt")
    assert not list(tmp_path.rglob("*.parquet*"))
    again = subprocess.run(
        [sys.executable, "-c", EMBED, "0"], capture_output=True, text=True, **options
    )
    assert again.stdout.splitlines()[-1] == "300"


@needs_signals
def test_ctrl_c_in_make_run_leaves_no_kernel(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(ROOT / "data" / "sample")
    own, kernel = tmp_path / "pid", "import os, pathlib; "
    kernel += f"pathlib.Path({str(own)!r}).write_text(str(os.getpid()))"
    notebook_at(tmp_path, kernel, "import time; time.sleep(300)")
    command = [str(ROOT / "tools" / "course.py"), "run", "--to", "01", "--output"]
    command += [str(tmp_path / "out")]
    status, _, errors = interrupted(command, "1/2", wait=0.5, env=course_environment(tmp_path))
    assert status != 0, errors
    assert list((tmp_path / "out").iterdir()) == []
    deadline = time.time() + 10
    while psutil.pid_exists(int(own.read_text())):
        assert time.time() < deadline, "the kernel is left"
        time.sleep(0.2)
