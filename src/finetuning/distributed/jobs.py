"""Lesson 04: what one training of several processes is to do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetuning.distributed.zero import check_configuration, configuration_file
from finetuning.errors import CourseError

if TYPE_CHECKING:
    from finetuning.workspace import Workspace


def training(
    workspace: Workspace, name: str, *, deepspeed: str | Path | None = None, bf16: bool = False, **options: Any
) -> dict:
    """What ``finetuning.distributed.train`` needs for one training, as a dict; its files go to ``models/<name>`` of the run.

    ``deepspeed`` names one of the course's configurations or a JSON file; None: the plain Trainer. ``options`` replace the
    defaults below: ``steps`` (optimizer steps), ``micro_batch`` (reviews per rank and micro-batch), ``accumulation``
    (micro-batches per step), ``save`` (gather the weights and score the test reviews), ``save_steps`` (write a checkpoint
    every so many steps, and resume from the last whole one), ``shape`` (values of a T5Config: a model of random weights
    instead of the profile's), ``tokens`` (cut each review after so many), ``die_at`` (kill every rank before
    this step, to practise resuming).
    """
    settings = workspace.settings
    if deepspeed is not None and not str(deepspeed).endswith(".json"):
        deepspeed = configuration_file(str(deepspeed))
    if deepspeed is not None:
        check_configuration(Path(deepspeed))
    chosen = {
        "name": name,
        "settings": settings.as_dict(),
        "reviews": str(workspace.data / "reviews"),
        "folder": str(workspace.models / name),
        "log": str(workspace.logs / f"{name}.log"),
        "deepspeed": None if deepspeed is None else str(deepspeed),
        "bf16": bf16,
        "steps": 10,
        "micro_batch": 4,
        "accumulation": 2,
        "learning_rate": settings.learning_rate,
        "shape": None,
        "tokens": None,
        "save": False,
        "save_steps": 0,
        "seed": settings.seed,
        "die_at": None,
    }
    unknown = set(options) - set(chosen)
    if unknown:
        raise CourseError(f"A training has no option {', '.join(sorted(unknown))}; it has {', '.join(chosen)}.")
    return chosen | options
