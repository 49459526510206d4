"""What a training is to do, as a YAML file says it; ``assets/launch/train.yaml`` shows every option."""

import contextlib
import difflib
import json
import math
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from finetuning.distributed.zero import check_configuration, configuration, configuration_file, stage_of
from finetuning.errors import CourseError
from finetuning.profiles import ASSETS, PROFILES, Profile, choose
from finetuning.workspace import Workspace

EXAMPLE = ASSETS / "launch" / "train.yaml"
KINDS: dict[Any, str] = {  # of an option's value -> in words
    str: "a text", bool: "true or false", int: "a whole number from 0 up", float: "a number from 0 up",
    str | dict: "a text or keys and values",
}  # fmt: skip
LESSONS_OWN = (  # names of rows, and of models that lessons remove when they are done
    "majority|tfidf|as_shipped|from_scratch|trainer(_short)?|deepspeed_.*|one_step|few_labels|(un)?broken|fewer|plain"
    "|zero[0-3](_bf16|_offload)?|lora(_zero[0-3]|_merged|_training|_empty)?|seeds|largest_.*"
)
# The result does not hang on these: how the work is cut up, and what is kept of it.
FREE = ("name", "run", "micro_batch", "checkpointing", "deepspeed", "save_steps", "save", "record", "die_at")


@dataclass(frozen=True)
class Training:
    """The options of a training's file; 0 and "": as the profile. Raises CourseError where they do not go together."""

    name: str
    run: str = ""
    profile: str = "pocket"
    base_model: str = ""
    reviews: str = ""
    text: str = ""
    label: str = ""
    rating: str = ""
    labels: str = ""
    limit: int = 0
    max_length: int = 0
    seed: int = 1
    epochs: float = 0
    steps: int = 0
    learning_rate: float = 0
    lora_rank: int = 0  # train adapters of this rank instead of all parameters
    lora_matrices: str = "q v"  # the layers that get one, by the ends of their names
    batch_size: int = 0  # reviews per optimizer step, all processes together
    micro_batch: int = 0  # at most so many reviews at a time on each process
    bf16: bool = False
    checkpointing: bool = False
    deepspeed: str = ""  # one of the course's configurations or a JSON file; "": the plain Trainer
    save_steps: int = 0  # from one checkpoint to the next; 0: an epoch
    save: bool = True  # the model, and the label scores of the test reviews
    record: bool = True  # checkpoints and evaluations, a row in the run's results
    shape: str | dict = ""  # random weights of this shape (planner.t5_shape) instead of a model's
    die_at: int = 0  # kill every process before this step, to practise going on

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w[\w.-]{0,99}", self.name) or (self.record and re.fullmatch(LESSONS_OWN, self.name)):
            way = "give one of letters, digits, '.', '_' and '-', and none of the lessons' own, as 'trainer' or 'lora'"
            raise CourseError(f"The name {self.name!r} (the file's, where none is given) is not possible; {way}.")
        if self.epochs and self.steps:
            raise CourseError(f"Give epochs ({self.epochs:g}) or steps ({self.steps}), not both.")
        if self.lora_matrices != type(self).lora_matrices and not self.lora_rank:
            raise CourseError("lora_matrices says where adapters go; give lora_rank as well, or leave it out.")
        if self.max_length > (most := self.chosen.max_length):
            raise CourseError(f"max_length: the profile {self.profile!r} reads {most} tokens at most.")
        if self.deepspeed:
            check_configuration(configuration_file(self.deepspeed))

    @cached_property
    def chosen(self) -> Profile:
        """The profile on this training's reviews and model, as lesson 01 prepares the reviews."""
        columns = {"text": self.text, "label": self.label, "rating": self.rating, "labels": self.labels}
        own = {"reviews": self.reviews, "base_model": self.base_model}
        return choose(self.profile, **own, limit=self.limit, seed=self.seed, columns=columns)

    @property
    def settings(self) -> Profile:
        """The profile with all of this training's own values in place of its."""
        own = {key: getattr(self, key) for key in ("epochs", "learning_rate", "batch_size", "max_length")}
        return replace(self.chosen, **{key: value for key, value in own.items() if value})

    @property
    def run_name(self) -> str:
        """The name of its run: the profile's, or the training's where it has reviews or a model of its own."""
        return self.run or (self.profile if self.chosen == choose(self.profile) else self.name)

    @cached_property
    def workspace(self) -> Workspace:
        return Workspace(self.run_name, self.chosen)

    @property
    def folder(self) -> Path:
        """For the model, the checkpoints, and what each rank measured."""
        return self.workspace.models / self.name

    def held(self) -> contextlib.AbstractContextManager:
        """Hold the folder for this process, in a ``with`` block. Raises CourseError when another one trains there."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:  # the ranks of a launcher that was killed end within these seconds
            return FileLock(self.folder.with_name(f".{self.name}.lock")).acquire(timeout=10)
        except Timeout as error:
            raise CourseError(f"Another process trains in {self.folder}; wait for its end, or stop it.") from error

    @property
    def log(self) -> Path:
        return self.workspace.logs / f"{self.name}.log"

    @property
    def deepspeed_settings(self) -> dict:
        """What DeepSpeed's JSON file says; {} for the plain Trainer."""
        return configuration(self.deepspeed) if self.deepspeed else {}

    @property
    def stage(self) -> int | None:
        """The ZeRO stage; None for the plain Trainer."""
        return stage_of(self.deepspeed_settings) if self.deepspeed else None

    @property
    def resumes(self) -> bool:
        """Whether it writes checkpoints, from which it goes on; a lesson's trainings are done anew."""
        return self.record or self.save_steps > 0

    def shares(self, ranks: int) -> tuple[int, int]:
        """Reviews per micro-batch and micro-batches per step of each of so many processes.

        Raises CourseError when a step's reviews cannot be shared out evenly.
        """
        batch = self.settings.batch_size
        share, left = divmod(batch, ranks)
        if left:
            near = " or ".join(str(size * ranks) for size in (share, share + 1) if size)
            raise CourseError(f"batch_size: {batch} reviews cannot be shared out among {ranks} processes; take {near}.")
        micro = next(size for size in range(min(self.micro_batch or share, share), 0, -1) if share % size == 0)
        return micro, share // micro

    def identity(self) -> dict:
        """What makes two trainings different ones."""
        own = {key: value for key, value in asdict(self).items() if key not in FREE}
        return own | {"ZeRO stage": self.stage}


def training_job(workspace: Workspace, name: str, **options: Any) -> Training:
    """A training of a lesson, on the run's prepared reviews; without checkpoints, model or row unless asked for."""
    settings, usual = workspace.settings, PROFILES[workspace.settings.name]
    own: dict[str, Any] = {"run": workspace.name, "profile": settings.name, "limit": settings.limit}
    own |= {"seed": settings.seed, "save": False, "record": False, **settings.columns._asdict()}
    own |= {"base_model": settings.model} if settings.model != usual.model else {}
    own |= {"reviews": settings.reviews} if settings.reviews != usual.reviews else {}
    return Training(name, **own | options)


def trainings_as_yaml(trainings: list[Training]) -> str:
    """The text of a file that ``read_trainings`` reads."""
    return json.dumps([asdict(one) for one in trainings], indent=1)  # which is YAML, too


def read_trainings(file: str | Path) -> list[Training]:
    """The trainings in a YAML file, one or a list; CourseError names the file, the line and the way out."""
    file = Path(file)
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        several = isinstance(node, yaml.SequenceNode) and node.value
        trainings = [_read_one(one, file) for one in several or [node]]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "its text is not in UTF-8"
        raise CourseError(f"{file} cannot be read ({why}); copy {EXAMPLE} and change what you need.") from error
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else file
        problem = getattr(error, "problem", None) or type(error).__name__
        raise CourseError(f"{where}: this is no YAML ({problem}); expected are lines such as 'epochs: 3'.") from error
    for place, names in Counter(one.folder for one in trainings).items():
        if names > 1:
            raise CourseError(f"{file}: {names} trainings have the name {place.name!r}; give each its own (name: ...).")
    return trainings


def _read_one(node: yaml.Node | None, file: Path) -> Training:
    if not isinstance(node, yaml.MappingNode) or not node.value:
        raise CourseError(f"{file} holds no training; expected are lines such as 'reviews: mine.csv' (see {EXAMPLE}).")
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, where = str(key_node.value), f"{file}, line {key_node.start_mark.line + 1}"
        if key in values:
            raise CourseError(f"{where}: {key} is given a second time; keep one of the two.")
        values[key] = _checked(key, yaml.SafeLoader("").construct_object(value_node, deep=True), where)
    try:
        return Training(**{"name": file.stem} | values)
    except CourseError as error:
        raise CourseError(f"{file}: {error}") from error


def _checked(key: str, value: Any, where: str) -> Any:
    """The value of an option, of its kind."""
    kinds = {field.name: field.type for field in fields(Training)}
    if key not in kinds:
        near = difflib.get_close_matches(key, kinds, n=1, cutoff=0.5)
        there = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(kinds)}."
        raise CourseError(f"{where}: there is no option {key!r}; {there}")
    kind: Any = kinds[key]
    if kind is float and not isinstance(value, bool):
        with contextlib.suppress(TypeError, ValueError):
            value = float(value)  # YAML takes 1e-3, without a point, for a text
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong or (kind in (int, float) and not 0 <= value < math.inf):
        given = "nothing (give a value, or leave the line out)" if value is None else repr(value)
        raise CourseError(f"{where}: {key} must be {KINDS[kind]}, not {given}.")
    return value
