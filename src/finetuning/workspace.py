"""Where a run leaves its files, and ``results.json``, from which everything that shows a number reads it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuning import CourseError
from finetuning.profiles import describe, this_machine, versions

if TYPE_CHECKING:
    import pandas as pd

    from finetuning.profiles import Profile

LESSONS = (
    "00_welcome",
    "01_prepare_data",
    "02_baselines",
    "03_finetune_with_trainer",
    "04_scale_with_deepspeed",
    "05_evaluate_and_ship",
)
# Every row has these; what was not measured is None.
ROW = (
    "lesson",
    "method",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "f1",
    "n_test",
    "train_seconds",
    "train_reviews_per_second",
    "predict_reviews_per_second",
    "parameters",
    "stage",
    "world_size",
    "bytes_per_rank",
    "peak_rss_bytes",
    "peak_device_bytes",
)


def home() -> Path:
    """The folder of the course: the nearest one upwards that holds ``notebooks`` and ``pyproject.toml``, else this one.

    A notebook that was opened away from its clone (on Colab) finds the clone that the package is installed from.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).parents[2]):
        if (folder / "notebooks").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    return here


def runs_folder() -> Path:
    """``runs`` in the course's folder, or where the environment variable FINETUNING_RUNS points."""
    return Path(os.environ.get("FINETUNING_RUNS") or home() / "runs")


def run_folder(name: str) -> Path:
    """The folder of a run. Raises CourseError for a name that could lead out of the runs' folder."""
    if not re.fullmatch(r"[\w][\w.-]*", name):
        raise CourseError(f"A run's name is made of letters, digits, '.', '_' and '-', not {name!r}.")
    return runs_folder() / name


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to a temporary name beside ``path`` and rename it, so that a reader never meets half a file."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CourseError(
            f"Could not write {path}: {error.strerror}; free some space or check the folder's rights, then run again."
        ) from error


SEAL = "sha256.json"


def digest(content: Any) -> str:
    """The SHA-256 of anything that JSON can hold, in hexadecimal; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, **notes: Any) -> None:
    """Write the checksums of all files under ``folder`` to its ``sha256.json``, with ``notes`` beside them.

    The last thing that is done to a folder: without its seal nothing in it is trusted.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SEAL)
    sums = {path.relative_to(folder).as_posix(): file_digest(path) for path in files}
    write_atomically(folder / SEAL, json.dumps({"files": sums, **notes}, indent=1))


def damage(folder: Path) -> str | None:
    """What is wrong with a sealed folder, in some words: no seal, a file that is gone or has changed. None: it is whole."""
    try:
        sums = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        for name, kept in sums.items():
            if not (folder / name).is_file():
                return f"{name} is gone"
            if file_digest(folder / name) != kept:
                return f"{name} has changed since it was written"
    except FileNotFoundError:
        return "it was not written to its end"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SEAL} cannot be read"
    return None


def with_digest(content: dict) -> dict:
    """``content`` with its own checksum as ``sha256``, for a file that carries it inside."""
    return content | {"sha256": digest(content)}


def without_digest(text: str) -> dict:
    """What ``with_digest`` was given, from the text of the file. Raises ValueError when the checksum is not there or does not fit."""
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("sha256", None) != digest(content):
        raise ValueError("its checksum does not fit")
    return content


def read_results(run: str) -> dict | None:
    """A run's ``results.json`` as a dict; None where there is none. Raises CourseError when it is damaged."""
    path = run_folder(run) / "results.json"
    if not path.exists():
        return None
    try:
        results = without_digest(path.read_text(encoding="utf-8"))
        if results["schema"] != 1 or not isinstance(results["rows"], list):
            raise ValueError("not a results file of schema 1")
        results["run"]["profile"]
    except (ValueError, KeyError, TypeError) as error:
        raise CourseError(
            f"{path} is damaged ({error}); put back a copy, or move it away and start over (FRESH=1)."
        ) from error
    return results


def executed_copy(run: str, lesson: str) -> dict:
    """A run's executed copy of a lesson, a notebook as JSON holds it; {} where there is none that can be read."""
    try:
        return json.loads((run_folder(run) / "notebooks" / f"{lesson}.ipynb").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def execution_mark(copy: dict) -> dict:
    """What the runner noted on an executed copy (``source``, ``cells``, ``seconds``) when it was done; {} where it is not."""
    return copy.get("metadata", {}).get("finetuning", {})


def fill_block(text: str, name: str, content: str, command: str) -> str:
    """``text`` with ``content`` put between its marks ``<!-- name: begin (command) -->`` and ``<!-- name: end -->``.

    Raises CourseError where the text has no such marks.
    """
    begin, end = f"<!-- {name}: begin ({command}) -->", f"<!-- {name}: end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise CourseError(f"The text has lost the marks {begin} and {end}; put them back, each on a line of its own.")
    return f"{before}{begin}\n{content}\n{end}{after}"


class Workspace:
    """The files of one run: ``data/``, ``models/``, ``logs/``, ``notebooks/`` and ``results.json`` under ``runs/<name>``.

    Used by every lesson. Raises CourseError when the folder holds a run of other settings, so that numbers of two runs
    never mix, and when its ``results.json`` cannot be read.
    """

    def __init__(self, name: str, settings: Profile) -> None:
        self.name = name
        self.path = run_folder(name)
        self.settings = settings
        self.data, self.models = self.path / "data", self.path / "models"
        self.logs, self.notebooks = self.path / "logs", self.path / "notebooks"
        self.scores_folder = self.path / "scores"
        self.results_file = self.path / "results.json"
        self._check_settings()

    def _about(self):
        """What identifies a run: two runs that differ in any of it must not share a folder."""
        settings = self.settings
        return {
            "profile": settings.name,
            "model": describe(settings.model),
            "dataset": describe(settings.reviews),
            "limit": settings.limit,
            "seed": settings.seed,
        }

    def _check_settings(self):
        if not self.results_file.exists():
            return
        kept = self.results()["run"]
        for key, value in self._about().items():
            if kept.get(key) != value:
                raise CourseError(
                    f"{self.path} holds a run with {key} {kept.get(key)!r}, not {value!r}; "
                    f"give this run a name of its own (RUN=...) or start over (FRESH=1)."
                )

    def results(self) -> dict:
        """The run's ``results.json`` as a dict; a fresh one where there is none yet."""
        if results := read_results(self.name):
            return results
        head = {**self._about(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": 0.0}
        return {"schema": 1, "run": {**head, "hardware": this_machine(), "versions": versions()}, "rows": []}

    def add_rows(self, *rows: dict) -> None:
        """Write rows to ``results.json``; a row replaces an earlier one of the same lesson and method."""
        results = self.results()
        for row in rows:
            row = {**dict.fromkeys(ROW), **row}
            same = (row["lesson"], row["method"])
            results["rows"] = [r for r in results["rows"] if (r["lesson"], r["method"]) != same] + [row]
        results["rows"].sort(key=lambda row: row["lesson"])  # stable: within a lesson the order of writing
        self._write_results(results)

    def _write_results(self, results):
        write_atomically(self.results_file, json.dumps(with_digest(results), indent=2) + "\n")

    def keep_seconds(self, seconds: float) -> None:
        """Note how long the lessons of this run took, all together."""
        results = self.results()
        results["run"]["seconds"] = round(seconds, 1)
        self._write_results(results)

    def row(self, method: str) -> dict:
        """The row of a method. Raises CourseError when no lesson has written it yet."""
        for row in self.results()["rows"]:
            if row["method"] == method:
                return row
        raise CourseError(f"This run has no result for {method!r} yet; run the lesson that measures it first.")

    def keep_scores(self, method: str, **scores: np.ndarray) -> None:
        """Keep a method's label scores for later lessons.

        ``scores``: split -> array of shape (reviews, 2), as ``score_labels`` gives them, in the order of the prepared split.
        """
        kept = {split: np.asarray(values).round(6).tolist() for split, values in scores.items()}
        write_atomically(self.scores_folder / f"{method}.json", json.dumps(with_digest(kept)))

    def scores(self, method: str, split: str = "test") -> np.ndarray | None:
        """A method's label scores on a split: an array of shape (reviews, 2), or None where no lesson kept any.

        Raises CourseError when the file with the scores is damaged.
        """
        path = self.scores_folder / f"{method}.json"
        if not path.exists():
            return None
        try:
            kept = without_digest(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CourseError(f"{path} is damaged ({error}); run the lesson that measures {method!r} again.") from error
        return np.array(kept[split]) if split in kept else None

    def need(self, path: Path, lesson: str) -> Path:
        """``path``, a folder, when an earlier lesson left it whole; else CourseError says which lesson to run first."""
        if not path.exists():
            raise CourseError(
                f"This lesson needs what lesson {lesson} leaves in {path}; run {lesson}.ipynb first, with the same parameters."
            )
        if wrong := damage(path):
            raise CourseError(f"{path} is damaged ({wrong}); run {lesson}.ipynb again, with the same parameters.")
        return path


def results_table(results: dict, *, price_per_hour: float | None = None) -> pd.DataFrame:
    """The results as a pandas DataFrame for reading: one line per method, measured values rounded, intervals in words.

    With the price of an hour of this machine also the memory at its peak and the cost of predicting 1,000 reviews.
    """
    import pandas as pd

    lines = []
    for row in results["rows"]:
        more = {}
        if price_per_hour is not None:
            peak, speed = row["peak_device_bytes"] or row["peak_rss_bytes"], row["predict_reviews_per_second"]
            more["trained per second"] = _count(row["train_reviews_per_second"])
            more["peak memory"] = "-" if peak is None else f"{peak / 2**20:,.0f} MiB"
            more["cost per 1,000"] = "-" if speed is None else _two_digits(price_per_hour / 3.6 / speed)
        lines.append(
            {
                "lesson": row["lesson"],
                "method": row["method"],
                "accuracy": f"{row['accuracy']:.3f}",
                "95 % interval": f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}",
                "F1": f"{row['f1']:.3f}",
                "test reviews": f"{row['n_test']:,}",
                "training": "none" if row["train_seconds"] is None else f"{row['train_seconds']:.1f} s",
                "predicts per second": _count(row["predict_reviews_per_second"]),
                "parameters": _count(row["parameters"]),
                **more,
            }
        )
    return pd.DataFrame(lines, index=[""] * len(lines))


def caption(results: dict) -> str:
    """One line under every table and plot: model, data, seed and hardware of the run."""
    run = results["run"]
    hardware = run["hardware"]
    machine = hardware["gpu"] or f"{hardware['cores']} cores of {hardware['processor']}"
    return f"{run['model']} on {run['dataset']}, seed {run['seed']}, {machine}"


def _two_digits(value: float) -> str:
    """A small sum written out, for no price is read as 2.6e-06."""
    return np.format_float_positional(value, precision=2, fractional=False, trim="-")


def _count(value):
    return "-" if value is None else f"{value:,.0f}"
