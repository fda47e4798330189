"""The navigation bars, and the repository's address in every place that needs it.

``Repository`` under ``[project.urls]`` in ``pyproject.toml`` holds the address, and
``python tools/course.py stamp`` writes it into set-up cells (which fetch the course on Colab), bars
and README. While there is no address the cells say what to do and there are no launch links.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import nbformat

from helpers.settings import Settings

NAV = "<!--NAV-->"
LAUNCH = "<!--LAUNCH-->"
BRANCH = "main"
ADDRESS = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+")
SET_UP_ENDS = "print(versions("  # here begins what differs from notebook to notebook
NO_ADDRESS = (
    "This copy does not know its address on GitHub yet, so it has no launch links. Write it into\n"
    "`pyproject.toml` (`Repository` under `[project.urls]`), then `python tools/course.py stamp`."
)


class PublishError(ValueError):
    """The address, or a file that should hold it, has not the expected form."""


def repository(root: Path) -> str | None:
    """Return the address, ``https://github.com/OWNER/REPO``, or ``None`` if there is none yet.

    Raises:
        PublishError: it is an address that Colab and Binder cannot launch.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository", "")
    if address and not ADDRESS.fullmatch(address):
        raise PublishError(
            f"Repository in pyproject.toml is {address!r}; Colab and Binder want "
            "https://github.com/OWNER/REPO."
        )
    return address or None


def launch_links(address: str, notebook: str) -> dict[str, str]:
    """Return where Colab and Binder open ``notebook``, a path from the repository's root."""
    path = address.removeprefix("https://github.com/")
    return {
        "Colab": f"https://colab.research.google.com/github/{path}/blob/{BRANCH}/{notebook}",
        "Binder": f"https://mybinder.org/v2/gh/{path}/{BRANCH}?urlpath=lab/tree/{notebook}",
    }


def navigation(paths: Sequence[Path], index: int, address: str | None = None) -> str:
    """Return the bar of notebook ``index``: previous, contents, next, and where to launch it."""
    previous = f"[← {paths[index - 1].stem}]({paths[index - 1].name})" if index else "start"
    last = index == len(paths) - 1
    following = "end" if last else f"[{paths[index + 1].stem} →]({paths[index + 1].name})"
    parts = [previous, "[contents](../README.md#the-notebooks)", following]
    if address:
        links = launch_links(address, f"notebooks/{paths[index].name}")
        parts += [f"[open in {place}]({link})" for place, link in links.items()]
    # On a line of its own: what follows a comment on its line is not read as Markdown.
    return f"{NAV}\n\n{' | '.join(parts)}"


def write_bar(notebook: nbformat.NotebookNode, opening: str, closing: str) -> None:
    """Put ``opening`` last in the first markdown cell and ``closing`` last in the last one."""
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for cell, bar in ((texts[0], opening), (texts[-1], closing)):
        body = re.sub(rf"\n*{NAV}\n*.*", "", cell.source).rstrip()
        cell.source = f"{body}\n\n{bar}"


def set_up(address: str | None, extra: str = "") -> str:
    """Return the beginning of a set-up cell, which fetches the course on Colab."""
    first = "fetch the course first" if address else "first: %env COURSE_REPO=https://..."
    return f'''if "google.colab" in str(get_ipython()):  # {first}
    !test -d course || git clone -q --depth 1 "{address or "${COURSE_REPO:?}"}" course
    {f"%run course/tools/colab.py {extra}".strip()}
from helpers.settings import versions  # missing? Say "make lab" or pip install -e .

'''


def write_set_up(notebook: nbformat.NotebookNode, address: str | None) -> None:
    """Renew the beginning of the set-up cell; its outputs and count stay.

    The extra to install is the one that the opening asks for (``pip install -e ".[...]"``).

    Raises:
        PublishError: there is no set-up cell, or it prints no ``versions``.
    """
    cells = [c for c in notebook.cells if "setup" in c.metadata.get("tags", [])]
    if len(cells) != 1 or SET_UP_ENDS not in cells[0].source:
        raise PublishError(f"One cell tagged 'setup' is wanted, that has {SET_UP_ENDS!r}.")
    extra = re.search(r'pip install -e "\.\[([\w,]+)\]"', notebook.cells[0].source)
    own_part = cells[0].source[cells[0].source.index(SET_UP_ENDS) :]
    cells[0].source = set_up(address, extra[1] if extra else "") + own_part


def stamp(settings: Settings) -> str | None:
    """Write the address into all notebooks, their template and the README, and return it.

    Raises:
        PublishError: the address has the wrong form, or a file lacks the place for it.
    """
    address = repository(settings.root)
    paths = sorted((settings.root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    appendices = sorted((settings.root / "notebooks" / "appendix").glob("*.ipynb"))
    for path in [*paths, *appendices, settings.root / "docs" / "template.ipynb"]:
        notebook = nbformat.read(path, as_version=4)
        if path in paths:
            index = paths.index(path)
            write_bar(notebook, navigation(paths, index, address), navigation(paths, index))
        write_set_up(notebook, address)
        nbformat.write(notebook, path)
    readme = settings.root / "README.md"
    before, _, after = readme.read_text(encoding="utf-8").split(LAUNCH)
    text = NO_ADDRESS
    if address:
        links = launch_links(address, f"notebooks/{paths[0].name}")
        text = " | ".join(f"[Open in {place}]({link})" for place, link in links.items())
    readme.write_text(f"{before}{LAUNCH}\n\n{text}\n\n{LAUNCH}{after}", encoding="utf-8")
    return address
