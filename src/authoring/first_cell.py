"""The set-up cell, the same in every lesson: what happens where the course is not installed.

``python -m authoring first-cells``.

Where ``pyproject.toml`` names an address, the cell fetches the course from it and installs it (on Colab a lesson has
neither the package nor the clone); without one it says how to get there. Where the course is installed it does
nothing, and it stands folded. ``make readme`` puts it behind the title of each lesson.
"""

import tomllib

from finetuning.files import write_atomically
from finetuning.workspace import LESSONS, home

SENTENCE = """\
# Where the course is installed, this does nothing.
from importlib.util import find_spec

if find_spec("finetuning") is None:
    raise SystemExit("This kernel lacks the course: type `make lab` in a clone of this repository, and open the lesson there.")"""  # noqa: E501

FETCH = """\
# Where the course is installed, this does nothing; on Colab it fetches the course and installs it, once.
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("finetuning") is None:
    course = Path("..") if Path("../src/finetuning").is_dir() else Path("course")
    if not course.exists():
        subprocess.run(["git", "clone", "--depth", "1", "{address}", course], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"], cwd=course, check=True)
    sys.exit("The course is installed. Restart the kernel (on Colab: Runtime, Restart session), then begin at the top.")"""  # noqa: E501


def repository() -> str | None:
    """The address of the course's repository, where ``[project.urls]`` of ``pyproject.toml`` has one."""
    project = tomllib.loads((home() / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project.get("urls", {}).get("Repository")


def setup_code() -> str:
    """The code of the set-up cell."""
    address = repository()
    return FETCH.replace("{address}", address) if address else SENTENCE


def put_first_cells() -> None:
    """Write the cell behind the title of every lesson, in place of the one that stands there."""
    import nbformat

    for lesson in LESSONS:
        path = home() / "notebooks" / f"{lesson}.ipynb"
        before = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(before, as_version=4)
        cell = nbformat.v4.new_code_cell(
            setup_code(),
            id=f"{lesson[:2]}-setup",
            metadata={
                "jupyter": {"source_hidden": True},
                "slideshow": {"slide_type": "skip"},
                "tags": ["setup"],
            },
        )
        notebook.cells = [kept for kept in notebook.cells if kept.id != cell.id]
        notebook.cells.insert(1, cell)
        after = nbformat.writes(notebook) + "\n"
        if after != before:
            write_atomically(path, after)


def main(arguments: list[str]) -> None:
    """Write the cells; there is nothing to choose."""
    put_first_cells()
