"""The repository's address in every place that needs it, from the one place that holds it.

That place is ``Repository`` under ``[project.urls]`` in ``pyproject.toml``.
``python tools/course.py stamp`` writes it into the set-up cells (which fetch the course on Colab),
the bars of the notebooks and the README. While there is no address the cells say what to do and
there are no launch links.
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
    address = project.get("urls", {}).get("Repository", "").strip().removesuffix("/")
    address = address.removesuffix(".git")
    if address and not ADDRESS.fullmatch(address):
        raise PublishError(
            f"Repository in pyproject.toml is {address!r}; Colab and Binder want "
            "https://github.com/OWNER/REPO."
        )
    return address or None


def colab(address: str, notebook: str) -> str:
    """Return where Colab opens ``notebook``, a path such as ``notebooks/01_data_loading.ipynb``."""
    path = address.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{path}/blob/{BRANCH}/{notebook}"


def binder(address: str, notebook: str) -> str:
    """Return where Binder opens ``notebook`` in JupyterLab."""
    path = address.removeprefix("https://github.com/")
    return f"https://mybinder.org/v2/gh/{path}/{BRANCH}?urlpath=lab/tree/{notebook}"


def navigation(paths: Sequence[Path], index: int, address: str | None = None) -> str:
    """Return the bar of notebook ``index``: previous, contents, next, and where to launch it."""
    previous = f"[← {paths[index - 1].stem}]({paths[index - 1].name})" if index else "start"
    last = index == len(paths) - 1
    following = "end" if last else f"[{paths[index + 1].stem} →]({paths[index + 1].name})"
    parts = [previous, "[contents](../README.md#the-notebooks)", following]
    if address:
        name = f"notebooks/{paths[index].name}"
        parts += [f"[open in Colab]({colab(address, name)})"]
        parts += [f"[open in Binder]({binder(address, name)})"]
    # On a line of its own: what follows a comment on its line is not read as Markdown.
    return f"{NAV}\n\n{' | '.join(parts)}"


def write_bar(notebook: nbformat.NotebookNode, bar: str, closing: str) -> None:
    """Put ``bar`` last in the first markdown cell and ``closing`` last in the last one."""
    texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    for cell, line in ((texts[0], bar), (texts[-1], closing)):
        body = re.sub(rf"\n*{NAV}\n*.*", "", cell.source).rstrip()
        cell.source = f"{body}\n\n{line}"


def bootstrap(address: str | None, extra: str = "") -> str:
    """Return the beginning of a set-up cell.

    It fetches the course on Colab, lets no file beside the notebook hide a package, and says so
    where the kernel is that of a Python without the course.
    """
    return f'''import os, runpy, sys

REPOSITORY = "{address or ""}"  # written by: python tools/course.py stamp
if "google.colab" in sys.modules:  # on Colab only: fetch the course, install it, Java and data
    if not (repository := os.environ.get("COURSE_REPO") or REPOSITORY):
        raise RuntimeError("First, in a cell: %env COURSE_REPO=https://github.com/OWNER/REPO")
    if not os.path.exists("course"):
        get_ipython().system(f"git clone -q --depth 1 {{repository}} course")
    runpy.run_path("course/tools/colab.py")["prepare"]({f'"{extra}"' if extra else ""})
sys.path.sort(key=lambda folder: folder in ("", os.getcwd()))  # your own files hide no package
try:
    from helpers.settings import versions
except ImportError:
    message = f"{{sys.executable}} lacks the course: start 'make lab', or run 'pip install -e .'"
    raise ImportError(message) from None
'''


REST = "print(versions("
"""What a set-up cell goes on with: versions, which differ from notebook to notebook."""


def write_bootstrap(notebook: nbformat.NotebookNode, address: str | None) -> None:
    """Renew the beginning of the set-up cell; its outputs and count stay.

    The extra to install is the one that the opening asks for (``pip install -e '.[...]'``).

    Raises:
        PublishError: there is no set-up cell, or it prints no ``versions``.
    """
    cells = [c for c in notebook.cells if "setup" in c.metadata.get("tags", [])]
    if len(cells) != 1 or REST not in cells[0].source:
        raise PublishError(f"One cell tagged 'setup' is wanted, that has {REST!r}.")
    extra = re.search(r"pip install -e '\.\[([\w,]+)\]'", notebook.cells[0].source)
    rest = cells[0].source[cells[0].source.index(REST) :]
    cells[0].source = f"{bootstrap(address, extra[1] if extra else '')}\n{rest}"


def launch_section(address: str | None, first: str) -> str:
    """Return what the README says between its two marks: two badges, or why there are none."""
    if address is None:
        return NO_ADDRESS
    images = {
        "Open in Colab": ("https://colab.research.google.com/assets/colab-badge.svg", colab),
        "Launch Binder": ("https://mybinder.org/badge_logo.svg", binder),
    }
    return "\n".join(
        f"[![{label}]({image})]({target(address, first)})"
        for label, (image, target) in images.items()
    )


def stamp(settings: Settings) -> str | None:
    """Write the address into all notebooks, their template and the README, and return it.

    Running twice is safe.

    Raises:
        PublishError: the address has the wrong form, or a file lacks the place for it.
    """
    address = repository(settings.root)
    paths = sorted((settings.root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    readme = settings.root / "README.md"
    parts = readme.read_text(encoding="utf-8").split(LAUNCH)
    if len(parts) != 3:
        raise PublishError(f"README.md needs the mark {LAUNCH} before and after the launch links.")
    for index, path in enumerate(paths):
        notebook = nbformat.read(path, as_version=4)
        write_bar(notebook, navigation(paths, index, address), navigation(paths, index))
        write_bootstrap(notebook, address)
        nbformat.write(notebook, path)
    template = settings.root / "docs" / "template.ipynb"
    if template.exists():
        notebook = nbformat.read(template, as_version=4)
        write_bootstrap(notebook, address)
        nbformat.write(notebook, template)
    parts[1] = f"\n\n{launch_section(address, f'notebooks/{paths[0].name}')}\n\n"
    readme.write_text(LAUNCH.join(parts), encoding="utf-8")
    return address
