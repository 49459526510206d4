"""Shared by the tests that start runs: real processes, what they leave behind, and courses of small lessons."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from conftest import NOTEBOOKS, ROOT

STARTED: list[subprocess.Popen] = []
# The beginnings of ids of lesson 03's cells that take long and keep nothing: speeds, and trainings on few labels.
SPEED_OF_LESSON_03 = ("03-guess-labels", "03-labels", "03-guess-recipe", "03-speed", "03-close")
PROOF_OF_LESSON_03 = ("03-resume-proof", "03-resume-compare")  # three more trainings


def start(runs, *arguments, cwd=ROOT, **environment):
    """``python -m finetuning run`` in a session of its own; what it says goes to ``<runs>/said.txt``."""
    runs.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "finetuning", "run", *map(str, arguments)],
        cwd=cwd, env={**os.environ, "FINETUNING_RUNS": str(runs), **environment}, stdin=subprocess.DEVNULL,
        stdout=(runs / "said.txt").open("a"), stderr=subprocess.STDOUT, start_new_session=True,
        # tests that run in the background hand down that they do not hear Ctrl-C
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    STARTED.append(process)
    return process


def said(runs):
    return (runs / "said.txt").read_text()


def left_behind(runs):
    """Processes whose environment names the run's folder: a dict of pid -> command line."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"FINETUNING_RUNS={runs}".encode() in (process / "environ").read_bytes():
                found[process.name] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:100]
        except OSError:
            continue
    return found


def wait_until(condition, seconds, *, every=0.02):
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(every)
    return True


def written(folder, pattern):
    """The files of this pattern, and when each was written."""
    found = set()
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):  # gone again
            found.add((path, path.stat().st_mtime_ns))
    return found


def appears(folder, pattern, process):
    """Whether a file of this pattern is written while the process lives; some stay for milliseconds."""
    before = written(folder, pattern)
    wait_until(lambda: written(folder, pattern) - before or process.poll() is not None, 200, every=0.002)
    return process.poll() is None and written(folder, pattern) - before


def course_without_lessons(folder):
    """What the lessons stand beside: the project's file and the glossary."""
    (folder / "notebooks").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copy(ROOT / "notebooks" / "glossary.ipynb", folder / "notebooks")


def course_without(folder, *beginnings):
    """A copy of the course without the cells whose ids begin so."""
    course_without_lessons(folder)
    (folder / "img").symlink_to(ROOT / "img")
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        kept = [cell for cell in notebook.cells if not cell.id.startswith(beginnings)]
        if len(kept) == len(notebook.cells):
            shutil.copy(path, folder / "notebooks")
        else:
            notebook.cells = kept
            nbformat.write(notebook, folder / "notebooks" / path.name)
    return folder


def small_course(folder, *codes):
    """A copy of the course of as many lessons as there are codes: each its title, its parameters and that code."""
    course_without_lessons(folder)
    for path, code in zip(NOTEBOOKS, codes, strict=False):
        notebook = nbformat.read(path, as_version=4)
        keep = [cell for cell in notebook.cells if cell.id.endswith(("-title", "-parameters"))]
        notebook.cells = [*keep, nbformat.v4.new_code_cell(code, id=f"{path.stem[:2]}-code")]
        nbformat.write(notebook, folder / "notebooks" / path.name)
    return folder


def outputs(copy):
    """All text that the cells of an executed notebook put out, by cell id."""
    notebook = nbformat.read(copy, as_version=4)
    shown = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            texts = [output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
            shown[cell.id] = "\n".join(texts)
    return shown
