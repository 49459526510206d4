"""Lesson 04: what one training of several processes is to do."""

import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from finetuning.distributed.zero import check_configuration, configuration_file
from finetuning.errors import CourseError
from finetuning.profiles import Profile
from finetuning.workspace import Workspace


@dataclass(frozen=True)
class TrainingJob:
    """One training, as ``finetuning.distributed.train`` reads it from a JSON file."""

    name: str
    settings: Profile
    reviews: str  # the folder of the prepared reviews
    folder: str  # for checkpoints, the model, and what each rank measured
    log: str
    learning_rate: float
    seed: int
    deepspeed: str | None = None  # DeepSpeed's JSON file; None: the plain Trainer
    bf16: bool = False
    steps: int = 10  # optimizer steps
    micro_batch: int = 4  # reviews per rank and micro-batch
    accumulation: int = 2  # micro-batches per step
    shape: dict[str, Any] | None = None  # values of a T5Config: a model of random weights instead of the profile's
    tokens: int | None = None  # cut each review after so many
    save: bool = False  # gather the weights and score the test reviews
    save_steps: int = 0  # write a checkpoint every so many steps, and resume from the last whole one; 0: none
    die_at: int | None = None  # kill every rank before this step, to practise resuming


def training_job(
    workspace: Workspace, name: str, *, deepspeed: str | Path | None = None, **options: Any
) -> TrainingJob:
    """A training on the run's prepared reviews; its files go to ``models/<name>`` of the run.

    ``deepspeed`` names one of the course's configurations or a JSON file; None: the plain Trainer. ``options``: further
    fields of ``TrainingJob``. Raises CourseError for a configuration or an option that is none.
    """
    settings = workspace.settings
    file = None if deepspeed is None else str(deepspeed)
    if file is not None:
        file = file if file.endswith(".json") else str(configuration_file(file))
        check_configuration(Path(file))
    known = [field.name for field in fields(TrainingJob)]
    if unknown := set(options) - set(known):
        raise CourseError(f"A training has no option {', '.join(sorted(unknown))}; it has {', '.join(known)}.")
    folders = str(workspace.data / "reviews"), str(workspace.models / name), str(workspace.logs / f"{name}.log")
    usual = TrainingJob(name, settings, *folders, settings.learning_rate, settings.seed, file)
    return replace(usual, **options)


def jobs_as_json(jobs: list[TrainingJob]) -> str:
    """The text of a file that ``read_jobs`` reads."""
    return json.dumps([asdict(job) for job in jobs], indent=1)


def read_jobs(file: Path) -> list[TrainingJob]:
    """The trainings in a JSON file, which holds one or a list of them. Raises CourseError where it holds none."""
    try:
        content = json.loads(file.read_text())
        trainings = content if isinstance(content, list) else [content]
        jobs = [TrainingJob(**(values | {"settings": Profile(**values["settings"])})) for values in trainings]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CourseError(f"{file} holds no training ({error}); lesson 04 writes such files to logs/.") from error
    if not jobs:
        raise CourseError(f"{file} holds an empty list, no training.")
    return jobs
