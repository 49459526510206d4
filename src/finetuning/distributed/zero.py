"""Lesson 04: DeepSpeed imported without a compiler, its configurations, and its Adam for the CPU."""

import contextlib
import difflib
import json
import os
from pathlib import Path
from types import ModuleType

import psutil

from finetuning.errors import CourseError
from finetuning.profiles import ASSETS

CONFIGURATIONS = ASSETS / "deepspeed"
# Of a configuration; "a.b" is the key b within a. Sections of which none is named are left to DeepSpeed.
KEYS = (CONFIGURATIONS / "keys.txt").read_text(encoding="utf-8").split()


def import_deepspeed() -> ModuleType:
    """The ``deepspeed`` module, imported so that it needs no compiler where there is no GPU.

    On a CPU every start would compile a shared-memory helper for half a minute; an empty list of compatible operators
    keeps DeepSpeed on PyTorch's own communication.
    """
    import torch

    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if on_cpu:
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def configuration_file(name: str) -> Path:
    """A JSON file, or that of one of the course's DeepSpeed configurations, as ``zero2_offload``; else CourseError."""
    if name.endswith(".json"):
        return Path(name)
    path = CONFIGURATIONS / f"{name}.json"
    if not path.exists():
        names = ", ".join(sorted(file.stem for file in CONFIGURATIONS.glob("*.json")))
        raise CourseError(f"There is no DeepSpeed configuration {name!r}; choose one of {names}.")
    return path


def configuration(name: str) -> dict:
    """What a ``configuration_file`` says, as a dict; what it leaves out is as in zero0.json, where much is ``auto``.

    The Trainer fills in its arguments for ``auto``; what no file names (as accumulation, or bf16) it would not pass on.
    """
    usual, own = (json.loads(configuration_file(one).read_text(encoding="utf-8")) for one in ("zero0", name))
    return usual | own


def stage_of(settings: dict) -> int:
    """The ZeRO stage of a configuration; without ``zero_optimization`` it is 0."""
    return settings.get("zero_optimization", {}).get("stage", 0)


def check_configuration(path: Path) -> None:
    """Raise CourseError where DeepSpeed's JSON file cannot be read, or asks for what DeepSpeed passes over in silence.

    That is a key at its top that DeepSpeed does not know, and offload in a stage that has none. A wrong key further
    in, at which the ranks would stop, is named as well.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        sharding, stage = settings.get("zero_optimization", {}), stage_of(settings)
        if stage not in range(4):
            raise TypeError(f"its stage is {stage!r}")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        way = f"compare it with {CONFIGURATIONS / 'zero2.json'}."
        raise CourseError(f"{path} is no DeepSpeed configuration that can be read ({error}); {way}") from error
    _check_keys(settings, path)
    key = "stage3_gather_16bit_weights_on_model_save"
    if stage == 3 and not sharding.get(key):
        raise CourseError(f"{path}: stage 3 saves no weights without {key}: true; add it to zero_optimization.")
    for key, lowest in (("offload_optimizer", 1), ("offload_param", 3)):
        if key in sharding and stage < lowest:
            way = f"take stage {lowest} or more, or leave the key out."
            raise CourseError(f"{path}: ZeRO stage {stage} cannot do {key}; {way}")


def _check_keys(settings: dict, path: Path, within: str = "") -> None:
    known = [key[len(within) :] for key in KEYS if key.startswith(within) and "." not in key[len(within) :]]
    for key, value in settings.items() if known else ():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            way = f"did you mean {near[0]!r}?" if near else "take it out."
            raise CourseError(f"{path}: DeepSpeed has no key {key!r}{within and f' in {within[:-1]}'}; {way}")
        if isinstance(value, dict):
            _check_keys(value, path, f"{within}{key}.")


def extensions_folder() -> Path:
    """PyTorch's folder of the operators that were built on this machine."""
    from torch.utils.cpp_extension import get_default_build_root

    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())


def check_locks() -> None:
    """Raise CourseError where a killed build of an operator has left its lock, on which the next start would wait.

    The lock of a build that still runs is open in its process.
    """
    held: set[str] = set()
    for lock in sorted(extensions_folder().rglob("lock")):
        for process in () if held else psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                held |= {file.path for file in process.open_files()}
        if str(lock.resolve()) not in held and lock.exists():
            raise CourseError(f"A build that was killed has left {lock}, on which every start waits; delete that file.")


def built_cpu_adam() -> type | None:
    """DeepSpeed's own Adam for the CPU where it is there without compiling, else None.

    It is there when it was installed with DeepSpeed or built by an earlier use (in PyTorch's folder of extensions).
    """
    import_deepspeed()
    from deepspeed.git_version_info import installed_ops

    if not installed_ops.get("cpu_adam") and not any(extensions_folder().rglob("cpu_adam.so")):
        return None
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    return DeepSpeedCPUAdam
