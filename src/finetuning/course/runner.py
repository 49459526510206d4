"""Run the lessons headless, one after the other: ``make run``, ``python -m finetuning run``."""

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from finetuning.course.report import write_report
from finetuning.errors import CourseError, way_out
from finetuning.files import digest, file_digest, find_damage, write_atomically
from finetuning.profiles import choose
from finetuning.results import caption, results_table
from finetuning.workspace import LESSONS, Workspace, executed_copy, execution_mark, home, read_results, run_folder

# What a lesson leaves in sealed folders of the run; it is done when they are whole.
LEAVES = {"01_prepare_data": ("data/reviews",), "03_finetune_with_trainer": ("models/trainer",)}
KILLED_KERNEL = "the kernel died (often: out of memory); close other programs, set LIMIT=, or choose a smaller profile"


def run_course(
    profile: str = "pocket", *, reviews: str = "", base_model: str = "", limit: int = 0, seed: int = 1, name: str = "",
    fresh: bool = False, columns: Mapping[str, str] | None = None, lessons: Sequence[str] = LESSONS,
) -> Workspace:  # fmt: skip
    """Execute the lessons with papermill and write ``report.html``; returns the workspace.

    A lesson that this run has executed before is skipped, unless its source, an earlier lesson or what it left has
    changed since. A failing cell raises CourseError with the lesson, the cell and the error; the partly executed
    notebook stays. So does a second run in the same folder.
    """
    settings = choose(profile, reviews=reviews, base_model=base_model, limit=limit, seed=seed, columns=columns)
    name = name or profile
    sources = {lesson: home() / "notebooks" / f"{lesson}.ipynb" for lesson in lessons}
    for source in sources.values():
        if not source.exists():
            raise CourseError(f"{source} is missing; run this from a clone of the course.")
    parameters = {"profile": profile, "limit": limit, "seed": seed, "run": name}
    parameters["own_columns"] = {key: value for key, value in (columns or {}).items() if value}
    parameters |= {"reviews": reviews and settings.reviews, "base_model": base_model and settings.model}
    with only_run(name):
        if not fresh:
            _put_aside_damaged_results(name)
        # From the first lesson on that is not done, all are run: each builds on the ones before.
        todo = list(dropwhile(lambda lesson: not fresh and _done(name, sources[lesson]), lessons))
        if todo and Path(settings.reviews).exists():  # a wrong file should show now, not after a lesson
            from finetuning.data import load_reviews

            load_reviews(settings.reviews, limit=limit, seed=seed, columns=settings.columns)
        if fresh:
            shutil.rmtree(run_folder(name), ignore_errors=True)
        workspace = Workspace(name, settings)
        print(f"{len(lessons)} lessons, {caption(workspace.results())}; files go to {workspace.path}", flush=True)
        for lesson in lessons:
            if lesson not in todo:
                print(f"{lesson}  done before (FRESH=1 starts over)", flush=True)
                continue
            _execute(workspace, lesson, sources[lesson], parameters)
            workspace.keep_seconds(sum(execution_mark(executed_copy(name, done)).get("seconds", 0) for done in LESSONS))
        report = workspace.path / "report.html"
        if todo or not report.exists():
            report = write_report(workspace)
    results = workspace.results()
    print(f"\n{results_table(results).to_string(index=False)}\n\n{caption(results)}\nreport: {report}")
    return workspace


def chosen_lessons(numbers: str) -> list[str]:
    """The lessons of these numbers, as "00,01"; all of them for "". Raises CourseError for a number that is none."""
    known = {lesson[:2]: lesson for lesson in LESSONS}
    wanted = numbers.split(",") if numbers else known
    if unknown := [number for number in wanted if number not in known]:
        raise CourseError(f"There is no lesson {', '.join(map(repr, unknown))}; the lessons are {', '.join(known)}.")
    return [known[number] for number in sorted(set(wanted))]


@contextlib.contextmanager
def only_run(name: str) -> Iterator[None]:
    """Hold the run's folder for this process alone. Raises CourseError when another process holds it.

    The system lets go of the lock when the process ends, however it ends.
    """
    lock = FileLock(run_folder(name).with_name(f".{name}.lock"))
    holder = run_folder(name).with_name(f".{name}.pid")
    try:
        holder.parent.mkdir(parents=True, exist_ok=True)
        held = lock.acquire(blocking=False)
    except Timeout as error:
        number = holder.read_text() if holder.exists() else "unknown"
        way = "wait for its end, stop it, or give this one a name of its own (RUN=...)."
        raise CourseError(f"Another run (process {number}) works in {run_folder(name)}; {way}") from error
    except OSError as error:
        way = "set FINETUNING_RUNS to a folder of your own."
        raise CourseError(f"Nothing can be written to {holder.parent} ({error.strerror}); {way}") from error
    with held:
        write_atomically(holder, str(os.getpid()))
        yield


def _put_aside_damaged_results(name: str) -> None:
    """With the results gone no lesson counts as done, and all are run again."""
    try:
        read_results(name)
    except CourseError:
        results = run_folder(name) / "results.json"
        results.replace(results.with_name("results.damaged.json"))
        print(f"{results} is damaged and was put aside as results.damaged.json; all lessons are run again", flush=True)


def _done(name: str, source: Path) -> bool:
    """Whether the run holds its results, a whole execution of this very notebook, and what that left."""
    copy = executed_copy(name, source.stem)
    mark = execution_mark(copy)
    if not (run_folder(name) / "results.json").exists() or mark.get("source") != file_digest(source):
        return False
    wrong = "its executed copy has changed" if mark["cells"] != digest(copy["cells"]) else None
    for left in LEAVES.get(source.stem, ()):
        if damage := find_damage(run_folder(name) / left):
            wrong = wrong or f"{left} is damaged: {damage}"
    if wrong:
        print(f"{source.stem}  is run again: {wrong}", flush=True)
    return not wrong


def _execute(workspace: Workspace, lesson: str, source: Path, parameters: dict[str, Any]) -> None:
    """One lesson through papermill, with a line per slow cell; its copy is marked when it is done."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    copy = workspace.notebooks / f"{lesson}.ipynb"
    copy.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # bars as widgets would clutter the executed copies
    began = time.monotonic()
    print(f"{lesson}  started", flush=True)
    try:
        papermill.execute_notebook(
            source, copy, parameters=parameters, cwd=source.parent, kernel_name="python3",
            progress_bar=False, log_output=False, **_slow_cells(source),
            extra_arguments=["--IPKernelApp.log_level=50"],  # else a stopped kernel ends in a traceback
        )  # fmt: skip
    except PapermillExecutionError as error:
        why = f"{lesson}, cell {error.exec_count}: {_reason(error)}\n(executed so far: {copy})"
        raise CourseError(why) from error
    except DeadKernelError as error:
        raise CourseError(f"{lesson}: {KILLED_KERNEL}.\n(executed so far: {copy})") from error
    except OSError as error:
        why = f"{lesson}: could not write {copy}: {error.strerror}; free some space, then run again."
        raise CourseError(why) from error
    seconds = time.monotonic() - began
    notebook = nbformat.read(copy, as_version=4)
    cells = digest(json.loads(nbformat.writes(notebook))["cells"])
    notebook.metadata["finetuning"] = {"source": file_digest(source), "cells": cells, "seconds": round(seconds, 1)}
    write_atomically(copy, nbformat.writes(notebook))
    print(f"{lesson}  done in {seconds:.0f} s", flush=True)


def _reason(error: Any) -> str:
    """Why a cell failed, by papermill: its own sentence, the known way out, or the last lines without colours."""
    if error.ename == "CourseError":
        return error.evalue
    if way := way_out(f"{error.ename}: {error.evalue}", "lesson"):
        return f"{way}, then run the same command again; it goes on from here ({error.ename})."
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    lines = [line for line in plain.splitlines() if line.strip()][-6:]
    return "\n  ".join([f"{error.ename}: {error.evalue}", *lines])


def _slow_cells(source: Path) -> dict[str, Callable]:
    """The hooks of nbclient that print a line for each cell of more than two seconds."""
    cells = json.loads(source.read_text(encoding="utf-8"))["cells"]
    count = sum(cell["cell_type"] == "code" for cell in cells) + 1  # with the parameters that papermill puts in
    began = 0.0

    def begin(**_: Any) -> None:
        nonlocal began
        began = time.monotonic()

    def end(cell: Any, **_: Any) -> None:
        if (seconds := time.monotonic() - began) > 2:
            first = next((line for line in cell.source.splitlines() if line and not line.startswith("#")), "")
            print(f"    cell {cell.execution_count}/{count}  {seconds:5.1f} s  {first[:70]}", flush=True)

    return {"on_cell_execute": begin, "on_cell_executed": end}
