"""The commands, the doctor, and Java's one sentence."""

from __future__ import annotations

import dataclasses
import stat

import nbformat
import pandas as pd
import pytest
from nbconvert.filters.markdown import markdown2html
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from helpers import cli, doctor
from helpers import spark as spark_module
from helpers.settings import Settings
from helpers.spark import JavaError, check_java, parse_java_version


@pytest.fixture
def project(tmp_path, settings):
    (tmp_path / "notebooks").mkdir()
    for name in ("01_a", "02_b", "03_c"):
        cells = [new_markdown_cell("# T"), new_code_cell("print(6 * 7)"), new_markdown_cell("end")]
        nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / f"{name}.ipynb")
    return dataclasses.replace(settings, root=tmp_path)


def test_navigation_links_neighbours_and_is_idempotent(project):
    cli.write_navigation(project)
    texts = [path.read_text() for path in cli.notebooks(project)]
    cli.write_navigation(project)
    assert texts == [path.read_text() for path in cli.notebooks(project)]
    first = nbformat.read(cli.notebooks(project)[1], 4).cells[0].source
    assert "(01_a.ipynb)" in first and "(03_c.ipynb)" in first and first.count(cli.NAV) == 1
    assert markdown2html(first).count("<a href=") == 3


def test_execute_saves_clean_outputs(project):
    path = cli.notebooks(project)[0]
    notebook = nbformat.read(path, 4)
    notebook.cells[1].source += "\nimport sys; print('noise', file=sys.stderr)"
    nbformat.write(notebook, path)
    assert cli.execute_in_place(project, ["01"]) == 0
    cell = nbformat.read(path, 4).cells[1]
    assert [output.text for output in cell.outputs] == ["42\n"] and cell.execution_count == 1


def test_a_failing_cell_is_named(project):
    path = cli.notebooks(project)[0]
    notebook = nbformat.read(path, 4)
    notebook.cells[1].source = "1 / 0"
    nbformat.write(notebook, path)
    with pytest.raises(cli.NotebookFailedError, match=r"01_a\.ipynb.*ZeroDivisionError"):
        cli.execute(path, progress=False)


def test_the_ranked_list_is_printed(tmp_path, capsys):
    rows = [{"rank": 1, "movieId": 7, "title": "Emma (1996)", "source": "LLM", "reason": "warm"}]
    pd.DataFrame(rows).to_csv(tmp_path / "x.csv", index=False)
    cli.print_ranked_list(tmp_path / "x.csv")
    printed = capsys.readouterr().out
    assert "ranked by: LLM" in printed and "1. Emma (1996)" in printed and "warm" in printed


def test_the_doctor_prints_a_line_per_check_and_fails_on_any(capsys):
    def broken():
        raise doctor.CheckError("do this")

    assert doctor.main({"A": lambda: "fine", "B": broken}) == 1
    assert capsys.readouterr().out == "OK    A: fine\nFAIL  B: do this\n"
    assert doctor.main({"A": lambda: "fine"}) == 0
    assert list(doctor.CHECKS) == ["Python", "Java", "Memory", "Spark", "Data", "LLM"]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('openjdk version "17.0.15" 2025-04-15', 17),
        ('java version "1.8.0_402"', 8),
        ('openjdk version "21-ea"', 21),
        ("nothing", None),
    ],
)
def test_java_versions(text, version):
    assert parse_java_version(text) == version


def fake_java(tmp_path, monkeypatch, version: str):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))


def test_a_wrong_or_missing_java_is_one_sentence_with_the_install_line(tmp_path, monkeypatch):
    fake_java(tmp_path, monkeypatch, "11.0.2")
    with pytest.raises(JavaError, match=r"^Java 11 .*install Java 17 with '.+'") as caught:
        check_java()
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(JavaError, match="holds no Java"):
        check_java()
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setattr(spark_module.shutil, "which", lambda _: None)
    with pytest.raises(JavaError, match="Java was not found"):
        check_java()


def test_a_suitable_java_is_reported(tmp_path, monkeypatch):
    fake_java(tmp_path, monkeypatch, "21.0.1")
    assert check_java().version == 21


def test_settings_refuse_nonsense():
    from helpers.settings import SettingsError

    for name, value in {
        "LLM_MODE": "maybe",
        "LLM_MAX_TOKENS": "-3",
        "SPARK_PARTITIONS": "x",
    }.items():
        with pytest.raises(SettingsError, match=name):
            Settings.from_env({name: value})
