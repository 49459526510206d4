"""What a class has done: ``make grade FOLDER=…`` (``python -m authoring grade FOLDER``).

Every learner hands in the file ``runs/progress.json``, which ``check`` writes: named after them, or in a folder of
their name. ``build/grades.csv`` gets a line for each.
"""

import csv
import io
from pathlib import Path

from finetuning.check.progress import read_progress, tasks
from finetuning.errors import CourseError
from finetuning.files import write_atomically
from finetuning.workspace import home


def grade(folder: Path) -> list[dict[str, str | int]]:
    """A row per file under ``folder``: the learner, the tasks done per lesson and in all, the last day, what is wrong.

    Raises CourseError where there is no file.
    """
    rows: list[dict[str, str | int]] = []
    wanted = tasks()
    for path in sorted(folder.rglob("*.json")):
        learner = path.parent.name if path.stem == "progress" else path.stem
        row: dict[str, str | int] = {"learner": learner.lstrip("=+-@")}  # no formula for the spreadsheet that opens it
        try:
            done, row_note = read_progress(path), ""
        except (OSError, ValueError) as error:
            done, row_note = {}, f"cannot be read: {error}"
        counts = {lesson: sum(task in done.get(lesson, {}) for task in named) for lesson, named in wanted.items()}
        row |= {f"lesson {lesson} (of {len(wanted[lesson])})": count for lesson, count in counts.items()}
        days = [when[:10] for lesson in done.values() for when in lesson.values()]
        rows.append(row | {"all": sum(counts.values()), "last": max(days, default=""), "note": row_note})
    if not rows:
        raise CourseError(f"There is no progress file (*.json) under {folder}; FOLDER= names the folder of a class.")
    return rows


def main(arguments: list[str]) -> None:
    """Write ``build/grades.csv`` from the folder that is named."""
    if not any(arguments) or not Path(arguments[0]).is_dir():
        raise CourseError("make grade FOLDER=...: name the folder with the progress files of the class.")
    rows, path = grade(Path(arguments[0])), home() / "build" / "grades.csv"
    with io.StringIO(newline="") as text:
        table = csv.DictWriter(text, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
        write_atomically(path, text.getvalue())
    print(f"{len(rows)} learners: {path}")
