"""Which exercises and quizzes are done: ``check.progress()``. The file stays on this machine."""

import contextlib
import json
import time
import tomllib
from pathlib import Path

from finetuning.errors import CourseError
from finetuning.files import verify_digest, with_digest, write_atomically
from finetuning.profiles import ASSETS
from finetuning.workspace import runs_folder

FILE = "progress.json"


def tasks() -> dict[str, list[str]]:
    """Lesson -> its exercises, in their order, and ``quiz``."""
    files = (ASSETS / "exercises").glob("*.toml")
    found = {file.stem: tomllib.loads(file.read_text(encoding="utf-8")) for file in files}
    quizzes = [path.stem for path in (ASSETS / "quiz").glob("*.toml")]
    return {lesson: [*found.get(lesson, ()), "quiz"] for lesson in sorted(quizzes)}


def read_progress(path: Path) -> dict[str, dict[str, str]]:
    """Lesson -> task -> when it was done, from a progress file; {} where there is none. ValueError: it is damaged."""
    return verify_digest(path.read_text(encoding="utf-8")) if path.exists() else {}


def record(lesson: str, task: str) -> None:
    """Note that a task is done, once. A damaged file is put aside; where nothing can be written, nothing is noted."""
    done, path = {}, runs_folder() / FILE
    try:
        done = read_progress(path)
    except (OSError, ValueError):
        with contextlib.suppress(OSError):
            path.replace(path.with_name("progress.damaged.json"))
    if task not in done.setdefault(lesson, {}):
        done[lesson][task] = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        with contextlib.suppress(CourseError):
            write_atomically(path, json.dumps(with_digest(done), indent=1))


def progress() -> None:
    """Print what is done of each lesson's exercises and quiz on this machine, and what is open."""
    done, path = {}, runs_folder() / FILE
    try:
        done = read_progress(path)
    except (OSError, ValueError):
        print(f"{path} is damaged: it begins anew with the next task that you do.")
    for lesson, wanted in tasks().items():
        left = [task for task in wanted if task not in done.get(lesson, {})]
        still = f"; open: {', '.join(left)}" if left else ""
        print(f"{lesson}  {len(wanted) - len(left)} of {len(wanted)} done{still}")
