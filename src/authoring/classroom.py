"""Copies of the lessons for a class: ``make learner`` (``python -m authoring learner [run]``).

``build/learner/`` has no solutions, ``build/instructor/`` has them unfolded, with the outputs of a run and teaching
notes; a zip of each lies beside them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from finetuning.files import write_atomically
from finetuning.workspace import LESSONS, home, run_folder

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDED = re.compile(r"\n*<details>\s*<summary>(.*?)</summary>\n+(.*?)\n+</details>", re.DOTALL)
PROMISE = " The solution is folded away below."  # lesson 00 says so of every exercise


def lesson_with_outputs(lesson: str, run: str) -> NotebookNode:
    """A lesson as it stands in ``notebooks/``, with the outputs of the run's executed copy where there is one.

    Only cells that have not changed since get theirs back.
    """
    import nbformat

    notebook = nbformat.read(home() / "notebooks" / f"{lesson}.ipynb", as_version=4)
    executed = run_folder(run) / "notebooks" / f"{lesson}.ipynb"
    if executed.exists():
        kept = {cell.id: cell for cell in nbformat.read(executed, as_version=4).cells if cell.cell_type == "code"}
        for cell in notebook.cells:
            if cell.id in kept and kept[cell.id].source == cell.source:
                cell.outputs, cell.execution_count = kept[cell.id].outputs, kept[cell.id].execution_count
    return notebook


def for_learners(notebook: NotebookNode) -> NotebookNode:
    """The notebook without what is folded away: solutions, answers to the quiz, teaching notes."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FOLDED.sub("", cell.source).replace(PROMISE, "").strip()
            cell.metadata.pop("notes", None)
    notebook.cells = [cell for cell in notebook.cells if cell.source or cell.cell_type == "code"]
    return notebook


def for_instructors(notebook: NotebookNode) -> NotebookNode:
    """The notebook with everything unfolded, and the notes of each section under its heading."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = FOLDED.sub(r"\n\n**\1**\n\n\2", cell.source).strip()
            if "notes" in cell.metadata:
                cell.source += f"\n\n> **For the instructor.** {cell.metadata['notes']}"
    return notebook


def make_copies(folder: Path, run: str) -> list[str]:
    """Write ``learner`` and ``instructor`` with a zip of each into ``folder``; returns the paths of the zips."""
    import nbformat

    zips = []
    for audience, change in (("learner", for_learners), ("instructor", for_instructors)):
        place = folder / audience
        shutil.rmtree(place, ignore_errors=True)
        for lesson in LESSONS:
            notebook = lesson_with_outputs(lesson, run)
            if audience == "learner":
                for cell in notebook.cells:
                    if cell.cell_type == "code":
                        cell.outputs, cell.execution_count = [], None
            write_atomically(place / "notebooks" / f"{lesson}.ipynb", nbformat.writes(change(notebook)) + "\n")
        shutil.copy(home() / "notebooks" / "glossary.ipynb", place / "notebooks")
        shutil.copytree(home() / "img", place / "img")
        zips.append(shutil.make_archive(str(place), "zip", folder, audience))
    return zips


def main(arguments: list[str]) -> None:
    """Make the copies in ``build/``, with the outputs of the run that is named (else ``pocket``)."""
    for path in make_copies(home() / "build", *(arguments or ["pocket"])):
        print(path)
