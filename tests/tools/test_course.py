"""The commands of tools/course.py: run, lab, execute, tidy, batch; and the set-up."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import bootstrap
import course
import lessons
import nbformat
import psutil
import pytest
from misbehaving_server import completion
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from conftest import ROOT
from helpers import replies
from helpers.data import DataError, Dataset


@pytest.fixture
def project(tmp_path, settings, monkeypatch):
    """Two small notebooks in a folder of their own, and no data looked for."""
    (tmp_path / "notebooks").mkdir()
    for name in ("01_a", "02_b"):
        cells = [new_markdown_cell("# T"), new_code_cell("print(6 * 7)"), new_markdown_cell("end")]
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(course.data, "locate", lambda _: Dataset(tmp_path, "d", "s", False, False))
    project = dataclasses.replace(settings, root=tmp_path)
    monkeypatch.setattr(course.Settings, "from_env", lambda: project)
    return project


def write_code(project, index: int, source: str):
    """Replace the code of a notebook and return its path."""
    path = lessons.paths(project.root)[index]
    notebook = nbformat.read(path, 4)
    notebook.cells[1].source = source
    nbformat.write(notebook, path)
    return path


def test_execute_saves_clean_outputs(project):
    pieces = "print(6, end='', flush=True); time.sleep(0.5); print(7); display(8); print(9)"
    path = write_code(project, 0, f"import sys, time; print('noise', file=sys.stderr); {pieces}")
    assert course.main(["execute", "01"]) == 0
    cell = nbformat.read(path, 4).cells[1]
    assert len(cell.outputs) == 3 and cell.execution_count == 1  # each line whole and in its place
    assert lessons.said(cell.outputs) == "67\n\n8\n9\n"
    assert not nbformat.read(lessons.paths(project.root)[1], 4).cells[1].outputs


def test_a_failed_cell_is_named_by_its_place_and_reason(project):
    path = write_code(project, 0, "raise OSError('Why:\\n  last' + " + "'' + " * 20 + "'')\n0")
    reason = r"\(raise OSError\([^\n]{46}\): OSError: Why: last$"
    with pytest.raises(lessons.LessonError, match=rf"^01_a\.ipynb, code cell 1 of 1 {reason}"):
        course.execute(path)


def test_run_executes_in_order_and_ends_with_the_list(project, capsys):
    ranked = project.cache_dir / "05_ranked_list.csv"
    ranked.parent.mkdir(parents=True)
    ranked.write_text("stale")  # a list of an earlier run must not pass for this one's
    rows = "rank,title,source,reason\\n1,Emma (1996),LLM,warm\\n"
    write_code(project, 1, f"import pathlib; pathlib.Path({str(ranked)!r}).write_text('{rows}')")
    assert course.main(["run", "--to", "02"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("2 notebooks in") < printed.index("ranked by: LLM")
    assert "1. Emma (1996)\n     warm" in printed
    first = project.root / "build" / "executed" / "01_a.ipynb"
    assert lessons.said(nbformat.read(first, 4).cells[1].outputs) == "42\n"
    original = nbformat.read(lessons.paths(project.root)[0], 4)
    assert not original.cells[1].outputs


def test_run_stops_at_a_failing_notebook_without_a_stale_list(project, capsys):
    ranked = project.cache_dir / "05_ranked_list.csv"
    ranked.parent.mkdir(parents=True)
    ranked.write_text("rank,title,source,reason\n1,Stale (1900),LLM,\n")
    write_code(project, 0, "assert 1 > 2")
    assert course.main(["run", "--to", "02"]) == 1
    printed = capsys.readouterr()
    assert "01_a.ipynb" in printed.err and printed.err.endswith("(assert 1 > 2): AssertionError\n")
    assert "Stale" not in printed.out
    assert not (project.root / "build" / "executed" / "02_b.ipynb").exists()


def test_a_known_fault_is_one_sentence(project, monkeypatch, capsys):
    def missing(_):
        raise DataError("links.csv is missing.")

    assert course.main(["run", "--from", "3"]) == 0  # there is no such notebook
    monkeypatch.setattr(course.data, "locate", missing)
    assert course.main(["run"]) == 1
    assert capsys.readouterr().err == "links.csv is missing.\n"
    monkeypatch.undo()
    monkeypatch.setenv("LLM_MODE", "banana")
    assert course.main(["execute", "99"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_relative_data_folder_is_the_same_for_a_kernel(project, monkeypatch):
    monkeypatch.chdir(project.root)
    monkeypatch.setenv("MOVIELENS_DIR", "../ml")
    named = dataclasses.replace(project, movielens_dir="../ml")
    monkeypatch.setattr(course.Settings, "from_env", lambda: named)
    assert course.main(["execute", "99"]) == 0
    assert os.environ["MOVIELENS_DIR"] == str(project.root.parent / "ml")


def test_copies_follow_the_course_and_keep_what_a_learner_changed(project, monkeypatch, capsys):
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(project.root / "jupyter"))
    for path in lessons.paths(project.root):
        notebook = nbformat.read(path, 4)
        nbformat.write(course.clean(notebook), path)
    folder = course.refresh_copies(project)
    first, second = (folder / path.name for path in lessons.paths(project.root))
    assert not capsys.readouterr().out
    version = course.KERNEL["language_info"]["version"]  # JupyterLab writes its own Python's
    first.write_text(first.read_text().replace(version, "3.99.0"))
    second.write_text(second.read_text().replace("6 * 7", "my own"))
    for index in (0, 1):
        write_code(project, index, "print('newer')")
    for _ in range(2):
        course.refresh_copies(project)
        assert "newer" in first.read_text() and "my own" in second.read_text()
        printed = capsys.readouterr().out
        assert second.name in printed and first.name not in printed
    second.unlink()
    course.refresh_copies(project)
    assert "newer" in second.read_text() and not capsys.readouterr().out


def test_the_set_up_follows_the_locks_and_stops_where_pip_does(tmp_path, monkeypatch):
    commands, answers = [], []

    def run(command, **_):
        commands.append(" ".join(command[1:]))
        return subprocess.CompletedProcess(command, answers.pop(0) if answers else 0)

    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    python = bootstrap.set_up(tmp_path)
    assert python.is_relative_to(tmp_path) and commands[0] == f"-m venv {tmp_path}"
    assert "--require-hashes -r requirements.lock" in commands[1] and len(commands) == 4
    assert bootstrap.set_up(tmp_path) == python and len(commands) == 4
    os.utime(tmp_path / ".ready", (0, 0))  # older than the locks
    answers += [0, 7]
    with pytest.raises(SystemExit, match="7"):
        bootstrap.set_up(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_is_answered_by_what_goes_on_in_the_environment(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(bootstrap.__file__, tmp_path / "tools")
    script = tmp_path / "tools" / "script.py"
    script.write_text("""import bootstrap, time
try:
    print("on", flush=True), time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1), print("saved")""")
    for lock in bootstrap.LOCKS:
        (tmp_path / lock.name).touch()
    venv = tmp_path / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (venv / ".ready").touch()
    bare = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with subprocess.Popen([sys.executable, "-S", script], env=bare, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, start_new_session=True) as process:  # fmt: skip
        assert process.stdout.readline() == b"on\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate(timeout=60)[0] == b"saved\n" and process.returncode == 0


def test_batch_sends_each_open_request_once(project, tmp_path, capsys):
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in "abc"]
    keys = [replies.request_key(body) for body in bodies]
    pending = replies.Store(project.cache_dir / "pending.jsonl")
    for body in bodies:
        pending.put(body, {})
    replies.Store(project.replies_dir / "x.jsonl").put(bodies[0], completion("x"))
    sent, answers, kept = tmp_path / "in", tmp_path / "out", project.replies_dir / "kept.jsonl"

    def exported() -> list[str]:
        assert course.main(["batch", "export", str(sent)]) == 0
        return [json.loads(line)["custom_id"] for line in sent.read_text().splitlines()]

    def imported(key: str) -> int:
        answer = {"custom_id": key, "response": {"status_code": 200, "body": completion("yes")}}
        answers.write_text(json.dumps(answer) + "\n")
        return course.main(["batch", "import", str(answers)])

    assert exported() == keys[1:]
    assert imported(keys[1]) == 1  # one is still open
    assert exported() == keys[2:]
    assert imported(keys[2]) == 0
    assert "1 answers imported, 0 users" in capsys.readouterr().out
    for _ in range(2):  # nothing new is no reason to lose the old
        assert course.main(["batch", "keep", str(kept)]) == 0
    assert [reply.key for reply in replies.Store(kept).all()] == keys[1:]


def test_tidy_keeps_outputs_and_strips_noise(project, tmp_path):
    output = new_output("stream", name="stdout", text="42\n")
    noise = new_output("stream", name="stderr", text="a warning\n")
    cell = new_code_cell("print(42)", execution_count=3, outputs=[output, noise])
    kept = {"tags": ["solution"], "slideshow": {"slide_type": "slide"}}
    cell.metadata = nbformat.from_dict(kept | {"execution": {"x": "now"}, "scrolled": True})
    notebook = new_notebook(cells=[cell], metadata={"widgets": {"x": 1}, "kernelspec": {
        "name": "mine", "display_name": "My env", "language": "python"}})  # fmt: skip
    path = tmp_path / "x.ipynb"
    nbformat.write(notebook, path)
    assert course.main(["tidy", str(path)]) == 1
    tidied = nbformat.read(path, as_version=4)
    assert [output.text for output in tidied.cells[0].outputs] == ["42\n"]
    assert tidied.cells[0].metadata == kept and tidied.cells[0].execution_count == 3
    assert tidied.metadata == course.KERNEL
    assert course.main(["tidy", str(path)]) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_in_make_run_is_one_line_and_leaves_no_kernel(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "sample").symlink_to(ROOT / "data" / "sample")
    (tmp_path / "notebooks").mkdir()
    own = tmp_path / "pid"
    cells = [f"import os, pathlib; pathlib.Path({str(own)!r}).write_text(str(os.getpid()))",
             "import time; time.sleep(300)"]  # fmt: skip
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    nbformat.write(notebook, tmp_path / "notebooks" / "01_a.ipynb")
    command = [sys.executable, str(ROOT / "tools" / "course.py"), "run", "--to", "01"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src"), "HELPERS_HOME": str(tmp_path)},
        start_new_session=True,
    )  # fmt: skip
    guard = threading.Timer(180, os.killpg, (process.pid, signal.SIGKILL))
    guard.start()
    output = b""
    try:
        while b"1/2" not in output and (piece := os.read(process.stdout.fileno(), 65536)):
            output += piece
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        output += process.communicate(timeout=20)[0]
    finally:
        guard.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130 and b"Stopped by Ctrl-C" in output
    assert b"Traceback" not in output and list((tmp_path / "build" / "executed").iterdir()) == []
    deadline = time.time() + 10
    while psutil.pid_exists(int(own.read_text())):
        assert time.time() < deadline, "the kernel is left"
        time.sleep(0.2)
