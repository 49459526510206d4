"""The cell that sets the course up where it is not installed, the same in every lesson.

``python -m authoring first-cells``.

A lesson opened on Colab has neither the package nor the clone; there the cell fetches and installs both. Everywhere
else it does nothing. ``make readme`` puts it behind the title of each lesson.
"""

import tomllib

from finetuning.files import write_atomically
from finetuning.workspace import LESSONS, home

SOURCE = """\
# On Colab: fetches the course and installs it, once. Where it is installed, this does nothing.
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("finetuning") is None:
    course = Path("..") if Path("../src/finetuning").is_dir() else Path("course")
    if not course.exists():
        subprocess.run(["git", "clone", "--depth", "1", "{repository}", course], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "-r", "requirements.txt"], cwd=course, check=True)
    sys.exit("The course is installed. Restart the kernel (on Colab: Runtime, Restart session), then begin at the top.")"""  # noqa: E501


def repository() -> str:
    """The address of the course's repository, as ``pyproject.toml`` has it."""
    return tomllib.loads((home() / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def put_first_cells() -> None:
    """Write the cell behind the title of every lesson, in place of the one that stands there."""
    import nbformat

    for lesson in LESSONS:
        path = home() / "notebooks" / f"{lesson}.ipynb"
        before = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(before, as_version=4)
        cell = nbformat.v4.new_code_cell(
            SOURCE.replace("{repository}", repository()),
            id=f"{lesson[:2]}-setup",
            metadata={"slideshow": {"slide_type": "skip"}, "tags": ["setup"]},
        )
        notebook.cells = [kept for kept in notebook.cells if kept.id != cell.id]
        notebook.cells.insert(1, cell)
        after = nbformat.writes(notebook) + "\n"
        if after != before:
            write_atomically(path, after)


def main(arguments: list[str]) -> None:
    """Write the cells; there is nothing to choose."""
    put_first_cells()
