"""Notebooks 04 and 05 with servers as people have them: no cell fails, and each fault is said."""

from __future__ import annotations

import functools
import html
import json
import re
import shutil
import socket
import time
from types import SimpleNamespace

import nbformat
import pytest
from misbehaving_server import completion
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell
from pytest_httpserver import HTTPServer
from werkzeug import Response

from conftest import ROOT, save_sample_results
from helpers import local_model

TIMEOUT_S = 0.4
# One session serves all faults; a widget that was made eleven times can stop nbclient for good.
LEFT_OUT = r"close_spark\(|ipywidgets"
REFUSED = "this server takes no prompts of that kind"
ABSENT = "model not found, try pulling it first"
FAULTS = {
    "none": ("article profile ranking", r"no usable LLM reply[^(]*\(no_reply\)"),
    "fence": ("", ""),
    "prose": ("profile ranking", r"no usable LLM reply"),
    "partial": ("profile ranking", r"no usable LLM reply"),
    "genres": ("profile", r"no usable LLM reply[^(]*\(unreadable\)"),
    "length": ("article profile ranking", r"no usable LLM reply[^(]*\(truncated\)"),
    "slow": ("article profile ranking", r"no usable LLM reply[^(]*\(timeout\)"),
    "400": ("article profile ranking", REFUSED),
    "404": ("article profile ranking", ABSENT),
    "dead": ("article profile ranking", r"no usable LLM reply[^(]*\(connection\)"),
    "budget": ("article profile ranking", r"LLM_MAX_TOKENS"),
}
"""What happens: the prompts that get no usable reply, and what must be said of each.

"none" is no server.
"""

ASKING = {
    "article": "llm.ask(client, plain, temperature=0.7)",
    "profile": "profile_answer = llm.ask(",
    "ranking": "answer, result, source = ask_for_ranking(",
}
"""The cell that sends a prompt; other readings and the workshop's variants are further ones."""

SWITCH = """
import dataclasses, os
import openai._base_client as _sdk
_sdk.SyncAPIClient._sleep_for_retry = lambda *_, **__: None  # it asks again at once
if "_at_first" in globals():  # as in a fresh kernel: nothing of the run before is left
    for _name in [name for name in globals() if not name.startswith("_")]:
        del globals()[_name]
    globals().update(_at_first)
else:
    _at_first = {{name: value for name, value in globals().items() if not name.startswith("_")}}
os.environ.update({environment!r})
if "settings" in globals():
    settings = Settings.from_env()
    dataset = dataclasses.replace(dataset, verified=True)  # what is saved now would be published
"""


def prompt_of(text: str) -> str:
    return "ranking" if "<candidates>" in text else "profile" if "<likes>" in text else "article"


def shown(text: str) -> dict[str, str]:
    """Return the letters of a ranking prompt with their titles."""
    return dict(re.findall(r'^([A-Z]) \| "(.*?)" \|', text, re.MULTILINE))


def answer(fault: str, text: str) -> str:
    """Return the text with which a server with this fault answers a prompt."""
    ids = [int(number) for number in re.findall(r"^(\d+) \| ", text, re.MULTILINE)[:2]]
    profile = {
        "summary": "Quiet dramas, says the server.",
        "genres": ["Romance"] if fault == "genres" else [],
        "eras": [],
        "themes": [{"name": "quiet evenings", "movie_ids": ids}],
        "dislikes": [],
    }
    items = [{"letter": letter, "reason": f"reason {letter}"} for letter in reversed(shown(text))]
    whole = {"profile": profile, "ranking": {"ranking": items}}.get(prompt_of(text))
    if whole is None or fault == "prose":
        return "I would begin with something light, but tastes differ."
    if fault in ("partial", "length"):
        return json.dumps(whole)[:40]
    return f"Here you are:\n```json\n{json.dumps(whole, indent=1)}\n```\nEnjoy!"


def serve(request) -> Response:
    body, fault = request.get_json(), request.path.split("/")[1]
    text = "\n".join(str(message["content"]) for message in body["messages"])
    if fault == "slow":
        time.sleep(3 * TIMEOUT_S)
    if fault in ("400", "404"):
        error = {"error": {"message": REFUSED if fault == "400" else ABSENT}}
        return Response(json.dumps(error), int(fault), content_type="application/json")
    finish = "length" if fault == "length" else "stop"
    reply = completion(answer(fault, text), finish, usage=False) | {"model": body["model"]}
    return Response(json.dumps(reply), content_type="application/json")


@pytest.fixture(scope="module")
def home(settings, tmp_path_factory):
    """A home of its own, with what 02 and 03 find and a published table."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(settings.sample_dir, home / "data" / "sample")
    save_sample_results(home / "data" / "cache")
    published = home / "data" / "results" / "05_ranked_list_user_12.csv"
    published.parent.mkdir()
    published.write_text("published", encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def runs(home):
    """A function that runs a notebook: its cells from the first question on once for each fault.

    All in one kernel. It returns the executed cells of each fault, and the requests that were sent.
    """
    with (
        HTTPServer(threaded=True) as server,
        socket.socket() as unused,
        pytest.MonkeyPatch.context() as patch,
    ):
        server.expect_request(re.compile("/.*/v1/chat/completions")).respond_with_handler(serve)
        unused.bind(("127.0.0.1", 0))  # nothing listens there
        patch.setenv("HELPERS_HOME", str(home))
        patch.setenv("MOVIELENS_DIR", str(home / "data" / "sample"))

        def switch(number, fault):
            port = unused.getsockname()[1] if fault == "dead" else server.port
            environment = {
                "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/{fault}/v1",
                "OPENAI_API_KEY": "a-key",  # pragma: allowlist secret
                "LLM_MODEL": f"served-{number}-{fault}",
                "LLM_MODE": "recorded" if fault == "none" else "live",
                "LLM_TIMEOUT_S": str(TIMEOUT_S if fault == "slow" else 30),
                "LLM_MAX_TOKENS": "1000" if fault == "budget" else "1000000",
            }
            return new_code_cell(SWITCH.format(environment=environment))

        @functools.cache
        def run(number):
            (home / "data" / "cache" / "replies.jsonl").unlink(missing_ok=True)  # of other runs
            (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
            cells = [
                new_code_cell(cell.source)
                for cell in nbformat.read(path, as_version=4).cells
                if cell.cell_type == "code" and not re.search(LEFT_OUT, cell.source)
            ]
            start = next(i for i, cell in enumerate(cells) if "llm.connect(" in cell.source)
            parts = {
                fault: [new_code_cell(cell.source) for cell in cells[start:]] for fault in FAULTS
            }
            notebook = nbformat.v4.new_notebook(cells=cells[:start])
            for fault, part in parts.items():
                notebook.cells += [switch(number, fault), *part]
            NotebookClient(
                notebook, timeout=600, kernel_name="python3", allow_errors=True,
                coalesce_streams=True,  # a slow kernel prints a line in pieces
                resources={"metadata": {"path": str(path.parent)}},
            ).execute()  # fmt: skip
            assert not any(map(error_of, notebook.cells[:start])), "before the first question"
            sent = [json.loads(request.data) for request, _ in server.log]
            return SimpleNamespace(parts=parts, sent=sent)

        yield run
        server.clear()


def error_of(cell) -> str:
    return "".join(f"{out.ename}: {out.evalue}" for out in cell.outputs if "ename" in out)


def text_of(*cells) -> str:
    return "\n".join(map(said, (out for cell in cells for out in cell.outputs)))


def said(output) -> str:
    """Return what an output says: printed text, Markdown, or a table as plain text."""
    data = output.get("data", {})
    return output.get("text") or data.get("text/markdown") or data.get("text/plain", "")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("number", ["04", "05"])
def test_a_fault_is_said_and_the_notebook_goes_on(number, fault, runs):
    cells = runs(number).parts[fault]
    assert [error for error in map(error_of, cells) if error] == []
    without_reply, words = FAULTS[fault]
    asking = {p: [c for c in cells if call in c.source] for p, call in ASKING.items()}
    assert [len(found) for found in asking.values()] == [1, 1, int(number) - 4]
    for prompt, cell in ((prompt, cell) for prompt, found in asking.items() for cell in found):
        if prompt in without_reply:
            assert len(re.findall(words, text_of(cell))) == 1, text_of(cell)
            assert "LLM reply, " not in text_of(cell) and ": ok" not in text_of(cell)
        else:
            assert "live" in text_of(cell) and f"served-{number}-{fault}" in text_of(cell)
            assert "no usable" not in text_of(cell)
    everything = text_of(*cells)
    assert ("Quiet dramas" in everything) == ("profile" not in without_reply)
    assert ("stands in for" in everything) == ("profile" in without_reply)
    if number == "05":
        by_retriever = "ranking" in without_reply
        assert ("ranked by: retriever (no usable LLM reply" in everything) == by_retriever
        assert ("0 of 10 movies changed" in everything) == by_retriever


def test_the_order_in_a_fence_is_the_final_list_with_its_reasons(runs):
    run = runs("05")
    sent = [body["messages"][-1]["content"] for body in run.sent if "fence" in body["model"]]
    *_, prompt = (t for t in sent if prompt_of(t) == "ranking" and "<wish>" not in t)
    assert "quiet evenings" in prompt  # the profile of the reply before
    (final,) = (cell for cell in run.parts["fence"] if "final.to_csv(" in cell.source)
    card = html.unescape("".join(out.get("data", {}).get("text/html", "") for out in final.outputs))
    listed = re.findall(r"<b>(\d+)\. ([^<]*)</b>.*?<div[^>]*>reason ([A-Z])</div>", card)
    expected = [(title, letter) for letter, title in reversed(shown(prompt).items())]
    assert [(title, letter) for _, title, letter in listed] == expected and len(listed) == 10


def test_no_live_run_replaces_a_published_table(runs, home):
    runs("05")
    assert [path.read_text() for path in (home / "data" / "results").iterdir()] == ["published"]
    (own,) = (home / "data" / "cache" / "results").rglob("05_ranked_list_user_12.csv")
    assert own.read_text(encoding="utf-8").startswith("rank,movieId,title,source,reason")


@pytest.mark.skipif(bool(local_model.missing()), reason=local_model.missing())
@pytest.mark.parametrize("name", ["04", "05"])
def test_the_small_model_on_this_machine_answers_every_prompt(name, home, monkeypatch):
    """From top to bottom with a real LLM, which is weak: no cell fails, and its name is said."""
    [path] = (ROOT / "notebooks").glob(f"{name}_*.ipynb")
    monkeypatch.setenv("HELPERS_HOME", str(home))
    monkeypatch.setenv("LLM_MODE", "local")
    monkeypatch.delenv("MOVIELENS_DIR", raising=False)
    notebook = nbformat.read(path, 4)
    NotebookClient(
        notebook, timeout=600, coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()  # fmt: skip
    outputs = [str(output) for cell in notebook.cells for output in cell.get("outputs", ())]
    said = "".join(outputs)
    assert said.count("local, by SmolLM2") + said.count("SmolLM2-135M-Instruct, local") >= 2
    assert "Claude" not in said and "recorded, by" not in said
    published = home / "data" / "results" / "05_ranked_list_user_12.csv"
    assert published.read_text(encoding="utf-8") == "published"
