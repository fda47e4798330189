"""The navigation bars, and the repository's address in every place that needs it.

It is ``Repository`` under ``[project.urls]`` in ``pyproject.toml`` if that is there, else what CI
says, else git's ``origin``. ``course.py stamp`` puts it into set-up cells, bars and README.
"""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import quote, urlencode

import lessons
import nbformat

from helpers.settings import Settings

NAV = "<!--NAV-->"
LAUNCH = "<!--LAUNCH-->"
BRANCH = "main"
IMAGE = "binder"  # the branch that Binder builds; a workflow moves it when the environment changes
FORM = re.compile(r"(?:^|[/@])github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$")
NOT_FOUND = "No course here: git clone it, %run REPO/tools/colab.py"
NO_ADDRESS = "The first push to GitHub puts links to Binder and Colab here."


def repository(root: Path) -> str | None:
    """Return the address, ``https://github.com/OWNER/REPO``, or ``None`` if it is not known."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    said = [project.get("urls", {}).get("Repository", "")]
    said.append("/".join(os.environ.get(f"GITHUB_{x}", "") for x in ("SERVER_URL", "REPOSITORY")))
    if shutil.which("git"):
        command = ["git", "--git-dir", str(root / ".git"), "remote", "get-url", "origin"]
        said.append(subprocess.run(command, capture_output=True, text=True).stdout.strip())
    found = next(filter(None, map(FORM.search, said)), None)
    return found and f"https://github.com/{found[1]}"


def launch_links(address: str, notebook: str) -> dict[str, str]:
    """Return where Colab opens ``notebook``, and Binder, which pulls it into a ready image."""
    path = address.removeprefix("https://github.com/")
    pull = {"repo": address, "branch": BRANCH, "targetpath": "course"}
    pulled = urlencode(pull | {"urlpath": f"lab/tree/course/{notebook}"})
    binder = f"https://mybinder.org/v2/gh/{path}/{IMAGE}?urlpath={quote(f'git-pull?{pulled}')}"
    colab = f"https://colab.research.google.com/github/{path}/blob/{BRANCH}/{notebook}"
    return {"Colab": colab, "Binder": binder}


def navigation(paths: list[Path], index: int, address: str | None) -> str:
    """Return the bar of notebook ``index``: previous, contents, next, and where to launch it."""
    parts = [f"[← {path.stem}]({path.name})" for path in paths[:index][-1:]] or ["start"]
    parts += ["[contents](../README.md#the-notebooks)"]
    parts += [f"[{path.stem} →]({path.name})" for path in paths[index + 1 :][:1]] or ["end"]
    links = launch_links(address, f"notebooks/{paths[index].name}") if address else {}
    parts += [f"[open in {place}]({link})" for place, link in links.items()]
    # On a line of its own: what follows a comment on its line is not read as Markdown.
    return f"{NAV}\n\n{' | '.join(parts)}"


def set_up(address: str | None) -> str:
    """Return the beginning of a set-up cell: on Colab it runs ``tools/colab.py`` from GitHub."""
    # Without an address the session says where the notebook lies, which is beside tools.
    asked = "curl -s $COLAB_JUPYTER_IP:9000/api/sessions|grep -o git.*notebooks|xargs -I@ "
    fetched = f"{asked}curl -sfL https://@/../tools/colab.py?raw=true"
    if address:
        fetched = f"curl -sfL {address}/raw/{BRANCH}/tools/colab.py"
    return f"""if "google.colab" in str(get_ipython()):  # fetch and install the course
    code = !{fetched}
    exec(code.n or "raise SystemExit({NOT_FOUND!r})", {{}})
from helpers.settings import versions  # missing? Say "make lab" or pip install -e .

"""


def stamp(settings: Settings) -> None:
    """Write the address into all notebooks, their template and the README, and say which."""
    root, address, paths = settings.root, repository(settings.root), lessons.paths(settings.root)
    for path in [*lessons.paths(root, appendices=True), root / "docs" / "template.ipynb"]:
        notebook = nbformat.read(path, as_version=4)
        texts = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
        for cell, known in ((texts[0], address), (texts[-1], None)) if path in paths else ():
            body = re.sub(rf"\n*{NAV}\n*.*", "", cell.source).rstrip()
            cell.source = f"{body}\n\n{navigation(paths, paths.index(path), known)}"
        (cell,) = (c for c in notebook.cells if "setup" in c.metadata.get("tags", []))
        cell.source = set_up(address) + cell.source[cell.source.index("print(versions(") :]
        nbformat.write(notebook, path)
    before, _, after = (root / "README.md").read_text(encoding="utf-8").split(LAUNCH)
    links = launch_links(address, f"notebooks/{paths[0].name}") if address else {}
    text = " | ".join(f"[Open in {place}]({link})" for place, link in links.items()) or NO_ADDRESS
    (root / "README.md").write_text(f"{before}{LAUNCH}\n\n{text}\n\n{LAUNCH}{after}", "utf-8")
    print(f"Stamped {address or '(there is no address yet)'}.")
