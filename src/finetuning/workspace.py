"""Where a run leaves its files, and ``results.json``, from which everything that shows a number reads it."""

import glob
import json
import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.errors import CourseError
from finetuning.files import content_digest, find_damage, verify_digest, with_digest, write_atomically
from finetuning.machine import this_machine, versions
from finetuning.profiles import Profile, describe
from finetuning.results import ResultRow, Results

LESSONS = (
    "00_welcome", "01_prepare_data", "02_baselines", "03_finetune_with_trainer", "04_scale_with_deepspeed",
    "05_train_on_a_cluster", "06_fewer_parameters_with_lora", "07_evaluate_and_ship",
)  # fmt: skip


def home() -> Path:
    """The folder of the course: the nearest one upwards with ``notebooks`` and ``pyproject.toml``, else the current.

    A notebook that was opened away from its clone (on Colab) finds the clone that the package is installed from.
    """
    start = Path.cwd()
    for folder in (start, *start.parents, Path(__file__).parents[2]):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return start


def runs_folder() -> Path:
    """``runs`` in the course's folder, or where the environment variable FINETUNING_RUNS points."""
    return Path(os.environ.get("FINETUNING_RUNS") or home() / "runs")


def run_folder(name: str) -> Path:
    """The folder of a run. Raises CourseError for a name that could lead out of the runs' folder."""
    if not re.fullmatch(r"[\w][\w.-]*", name) or len(name.encode()) > 100:  # a file's name, not too long
        allowed = "letters, digits, '_' and, after the first, '.' and '-', at most 100 of them"
        raise CourseError(f"A run's name is made of {allowed}, not {name[:120]!r}.")
    return runs_folder() / name


def read_results(run: str) -> Results | None:
    """What a run's ``results.json`` holds; None where there is none. Raises CourseError when it is damaged."""
    path = run_folder(run) / "results.json"
    if not path.exists():
        return None
    try:
        kept = verify_digest(path.read_text(encoding="utf-8"))
        if kept["schema"] != 1:
            raise ValueError("not a results file of schema 1")
        kept["run"]["profile"]
        return Results(kept["run"], [ResultRow(**row) for row in kept["rows"]])
    except (ValueError, KeyError, TypeError) as error:
        way = "put back a copy, or move it away and start over (FRESH=1)."
        raise CourseError(f"{path} is damaged ({error}); {way}") from error


def shipped_folder(run: str, model: str = "trainer") -> Path:
    """The folder of a run's model. Raises CourseError where there is none, with what to run or the models there are."""
    models = run_folder(run) / "models"
    trained = sorted({path.parent.name for path in models.glob("*/model.safetensors*")})
    if model not in trained:
        run_first = f"run the lessons first (make run RUN={run})"
        others = f"there are {', '.join(trained)} (--model)" if trained else run_first
        raise CourseError(f"There is no trained model in {models / model}; {others} or name another run.")
    return models / model


def executed_copy(run: str, lesson: str) -> dict:
    """A run's executed copy of a lesson, a notebook as JSON holds it; {} where there is none that can be read."""
    try:
        return json.loads((run_folder(run) / "notebooks" / f"{lesson}.ipynb").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def execution_mark(copy: dict) -> dict:
    """What the runner noted on an executed copy when it was done (source, cells, seconds); {} where it is not."""
    return copy.get("metadata", {}).get("finetuning", {})


class Workspace:
    """The files of one run under ``runs/<name>``: ``data/``, ``models/``, ``logs/``, ``notebooks/``, ``results.json``.

    Used by every lesson. Raises CourseError when the folder holds a run of other settings, so that numbers of two runs
    never mix, and when its ``results.json`` cannot be read.
    """

    def __init__(self, name: str, settings: Profile) -> None:
        self.name = name
        self.path = run_folder(name)
        if glob.escape(str(self.path)) != str(self.path):
            raise CourseError(f"DeepSpeed takes *, ? or [ in {self.path} for a pattern; set FINETUNING_RUNS elsewhere.")
        self.settings = settings
        self.data, self.models = self.path / "data", self.path / "models"
        self.logs, self.notebooks = self.path / "logs", self.path / "notebooks"
        self.scores_folder = self.path / "scores"
        self.results_file = self.path / "results.json"
        self._check_settings()

    def _identity(self) -> dict[str, Any]:
        """What identifies a run: two runs that differ in any of it must not share a folder."""
        settings = self.settings
        places = {"model": describe(settings.model), "dataset": describe(settings.reviews)}
        read = {
            "model_digest": content_digest(settings.model, "*") or settings.model_revision,
            "dataset_digest": content_digest(settings.reviews, "**/*") or settings.reviews_revision,
            "columns": list(settings.columns[:3]),
            "labels": settings.columns.labels,
        }
        return {"profile": settings.name, **places, **read, "limit": settings.limit, "seed": settings.seed}

    def _check_settings(self) -> None:
        if not self.results_file.exists():
            return
        kept = self.results().run
        for key, value in self._identity().items():
            if kept.get(key, value) != value:
                what = f"{key} {kept[key]!r}, not {value!r}"
                if key.endswith("_digest"):
                    what = f"another {key.removesuffix('_digest')} of this name, or it has been edited since"
                way = "give this run a name of its own (RUN=...) or start over (FRESH=1)."
                raise CourseError(f"{self.path} holds a run with {what}; {way}")

    def results(self) -> Results:
        """What the run's ``results.json`` holds; where there is none yet, the run's settings and machine and no row."""
        if results := read_results(self.name):
            return results
        head = {**self._identity(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": 0.0}
        return Results({**head, "hardware": this_machine(), "versions": versions()}, [])

    def add_rows(self, *rows: ResultRow) -> None:
        """Write rows to ``results.json``; a row replaces an earlier one of the same lesson and method."""
        results = self.results()
        measured = {(row.lesson, row.method) for row in rows}
        kept = [row for row in results.rows if (row.lesson, row.method) not in measured]
        # stable: within a lesson the order of writing
        self._write_results(Results(results.run, sorted([*kept, *rows], key=lambda row: row.lesson)))

    def _write_results(self, results: Results) -> None:
        kept = with_digest({"schema": 1, **asdict(results)})
        write_atomically(self.results_file, json.dumps(kept, indent=2) + "\n")

    def keep_seconds(self, seconds: float) -> None:
        """Note how long the lessons of this run took, all together."""
        results = self.results()
        results.run["seconds"] = round(seconds, 1)
        self._write_results(results)

    def row(self, method: str) -> ResultRow:
        """The row of a method. Raises CourseError when no lesson has written it yet."""
        for row in self.results().rows:
            if row.method == method:
                return row
        raise CourseError(f"This run has no result for {method!r} yet; run the lesson that measures it first.")

    def keep_scores(self, method: str, **scores: np.ndarray) -> None:
        """Keep a method's label scores for later lessons.

        ``scores``: split -> array (reviews, labels), as ``score_labels`` gives it, in the prepared split's order.
        """
        kept = {split: np.asarray(values).round(6).tolist() for split, values in scores.items()}
        write_atomically(self.scores_folder / f"{method}.json", json.dumps(with_digest(kept)))

    def scores(self, method: str, split: str = "test") -> np.ndarray | None:
        """A method's label scores on a split: an array of shape (reviews, labels), or None where no lesson kept any.

        Raises CourseError when the file with the scores is damaged.
        """
        path = self.scores_folder / f"{method}.json"
        if not path.exists():
            return None
        try:
            kept = verify_digest(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CourseError(f"{path} is damaged ({error}); run the lesson that measures {method!r} again.") from error
        return np.array(kept[split]) if split in kept else None

    def need(self, path: Path, lesson: str) -> Path:
        """``path``, a folder, when an earlier lesson left it whole; else CourseError says which lesson to run first."""
        if not path.exists():
            missing = f"This lesson needs what lesson {lesson} leaves in {path}"
            raise CourseError(f"{missing}; run {lesson}.ipynb first, with the same parameters.")
        if wrong := find_damage(path):
            raise CourseError(f"{path} is damaged ({wrong}); run {lesson}.ipynb again, with the same parameters.")
        return path
