"""Lesson 05: which ZeRO stage, offload and micro-batch fit a T5 to your GPUs, from its configuration alone.

Bytes of parameters, gradients and optimizer come from DeepSpeed's own estimators where it has any (stages 2 and 3), and
from the same arithmetic for the rest; activations from a formula over the model's shape. All for Adam and bf16, the
activations for eager attention and no dropout, as the course trains on a CPU (dropout would keep masks besides).
"""

import json
import math
import re
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import T5Config, T5ForConditionalGeneration

from finetuning.distributed.activations import activation_bytes
from finetuning.distributed.zero import import_deepspeed
from finetuning.errors import CourseError, hub_error
from finetuning.profiles import ASSETS, PROFILES, describe

FAMILY = tomllib.loads((ASSETS / "t5_family.toml").read_text(encoding="utf-8"))
# Simplest first: sharding costs messages, offload costs copies. ``plain`` is the Trainer alone; the others are the
# names of the course's DeepSpeed configurations.
STRATEGIES = {
    "plain": (0, "nothing"),
    "zero1": (1, "nothing"),
    "zero2": (2, "nothing"),
    "zero3": (3, "nothing"),
    "zero2_offload": (2, "optimizer"),
    "zero3_offload": (3, "optimizer, parameters"),
}
GPUS_PER_NODE = 8
# Set aside, by assumption: the CUDA context with NCCL's buffers; of the card a tenth lost between blocks in use, and a
# twentieth for what no estimate knows.
CONTEXT_BYTES = 2**30
SPARE = 0.15
REVIEWS_PER_STEP = 32  # that the planner's file aims at, all GPUs together
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class PlanRow:
    """One strategy of training, measured against a GPU's memory."""

    strategy: str
    stage: int
    offload: str
    micro_batch: int  # reviews: the largest power of two that fits; 0: none does
    bytes: dict[str, int]  # component -> bytes per GPU, at this micro-batch or at one review
    host_bytes: int  # main memory per node that offload takes, by DeepSpeed's estimate

    @property
    def total(self) -> int:
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Plan:
    """The answer of ``plan``."""

    model: str
    parameters: int
    gpus: int
    memory: int  # bytes of each GPU
    usable: int  # bytes of it that are not set aside
    rows: list[PlanRow]  # the one to take first, first
    advice: str
    file: str  # the text of a training's file that takes the first of the rows

    def __str__(self) -> str:
        table = pd.DataFrame(
            {"strategy": row.strategy, "micro-batch": row.micro_batch or "too large"}
            | {part: f"{size / 1e9:.2f}" for part, size in (row.bytes | {"sum": row.total}).items()}
            | {"main memory": f"{row.host_bytes / 1e9:.0f}" if row.host_bytes else "-"}
            for row in self.rows
        )
        head = f"{self.model}: {self.parameters:,} parameters on {_gpus(self.gpus)} of {_gb(self.memory)}, "
        head += f"{_gb(self.usable)} of it usable\nGB (1e9 bytes) per GPU; main memory per node"
        return "\n".join([head, table.to_string(index=False), self.advice, "The file that starts it:", self.file])


def plan(
    model: str | Path | dict, *, gpus: int = 1, memory: int | str = "16GB", tokens: tuple[int, int] = (512, 2),
    checkpointing: bool = False, lora: int = 0,
) -> Plan:  # fmt: skip
    """How to train a T5 with Adam in bf16 on ``gpus`` cards of ``memory`` each.

    A Plan, the simplest strategy that fits first. ``model``: as for ``t5_shape``; no weights are needed. ``memory``:
    bytes, or "16GB" (1e9 bytes) or "16GiB". ``tokens``: of an input and of a label. ``checkpointing``: keep only the
    inputs of each layer and compute the rest again in the backward pass. ``lora``: train adapters of this rank beside
    all query and value matrices (lesson 06); 0: all parameters. Used in lessons 05 and 06. Raises CourseError for wrong
    input, and when nothing fits, with what would.
    """
    card = card_bytes(memory)
    _require_positive("gpus", gpus)
    if not isinstance(tokens, (tuple, list)) or len(tokens) != 2:
        raise CourseError(f"tokens is a pair, such as (512, 2): tokens of an input and of a label; not {tokens!r}.")
    for count in tokens:
        _require_positive("Each number in tokens", count)
    shape = t5_shape(model)
    usable = int(card * (1 - SPARE)) - CONTEXT_BYTES
    _require_positive("lora, the rank,", lora or 1)  # 0: none are asked for
    setting = {"tokens": tuple(tokens), "checkpointing": checkpointing, "lora": lora}
    rows = [_row(shape, strategy, gpus, usable, setting) for strategy in STRATEGIES]
    rows.sort(key=lambda row: not row.micro_batch)  # stable: what fits, simplest first
    name = "the model" if isinstance(model, dict) else describe(str(model))
    if not rows[0].micro_batch:
        raise CourseError(_nothing_fits(name, shape, gpus, card, setting))
    advice, file = _advice(rows[0], gpus), _file(model, rows[0], gpus, setting)
    return Plan(name, count_parameters(shape)[0], gpus, card, usable, rows, advice, file)


def t5_shape(model: str | Path | dict) -> T5Config:
    """The T5Config of one of the family, as ``t5-3b``, of a folder, a JSON file, a Hub id, or of a dict of values.

    Raises CourseError for anything else. Only a Hub id outside the family needs a network.
    """
    if not isinstance(model, dict):
        for name in (str(model).lower(), f"google-t5/{str(model).lower()}"):
            if name in FAMILY:
                return T5Config(**FAMILY[name], dropout_rate=0.0)
    try:
        values = {"model_type": "t5", **model} if isinstance(model, dict) else _configuration(str(model))
        if not isinstance(values, dict) or values.get("model_type") != "t5":
            raise ValueError("its model_type is not 't5'")
        return T5Config(**{"decoder_start_token_id": 0} | values)
    except (ValueError, TypeError, StrictDataclassError) as error:
        reason = f"{' '.join(str(error).split())}; the planner knows T5 models only."
        raise CourseError(f"{model} is not the configuration of a T5: {reason}") from error


def _configuration(model: str) -> Any:
    """What the config.json of a folder or of a model of the Hub says, or a JSON file."""
    place = Path(model).expanduser()
    if (file := place if place.suffix == ".json" else place / "config.json").is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or place.exists():
        known = ", ".join(Path(name).name for name in FAMILY)
        raise CourseError(f"The planner knows {known}, folders with a config.json and Hub ids, not {model!r}.")
    try:
        return T5Config.get_config_dict(model)[0]
    except OSError as error:
        raise hub_error("model", model, error, instead="BASE_MODEL") from error


def card_bytes(memory: int | str) -> int:
    """Bytes of ``16GB``, ``80 GiB`` or a number of bytes. Raises CourseError when it is none of these."""
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(memory))
    if isinstance(memory, bool) or not parts or parts[2].upper() not in UNITS:
        raise CourseError(f"memory is a size such as '16GB', '80 GiB' or a number of bytes, not {memory!r}.")
    size = int(float(parts[1]) * UNITS[parts[2].upper()])
    if size * (1 - SPARE) <= CONTEXT_BYTES:
        why = "leaves nothing beside what CUDA itself takes, about 1 GiB"
        raise CourseError(f"memory={memory!r} {why}; did you forget the unit, as in '16GB'?")
    return size


def count_parameters(shape: T5Config) -> tuple[int, int]:
    """Parameters of a T5Config's model, and of its largest module, which ZeRO-3 gathers whole: (all, largest).

    The model is built without memory, on PyTorch's meta device.
    """
    return _count(shape.to_json_string())


@lru_cache(maxsize=32)
def _count(shape: str) -> tuple[int, int]:
    with torch.device("meta"):
        model = T5ForConditionalGeneration(T5Config(**json.loads(shape)))
    modules = (sum(weight.numel() for weight in module.parameters(recurse=False)) for module in model.modules())
    return sum(weight.numel() for weight in model.parameters()), max(modules)


def state_bytes(parameters: int, largest: int, strategy: str, gpus: int) -> tuple[dict[str, int], int]:
    """Bytes per GPU of parameters, gradients and optimizer, and main memory per node for offload: (dict, bytes).

    plain: 4 + 4 + 8 per parameter (fp32 weights, gradients, Adam's moments), 2 for the bf16 copies that autocast makes
    of the weights, and on several GPUs 4 for the buckets in which gradients are sent. ZeRO: 2 + 2 + 16 (bf16 weights
    and gradients; fp32 master weights, moments, and the gradients in fp32 during the step), of which stage 1 shares out
    the 16. Stages 2 and 3 and offload are DeepSpeed's estimates
    (deepspeed.runtime.zero.*.estimate_zero*_model_states_mem_needs), cut into components by us. They leave out
    communication buckets (small in the course's configurations), the parameters that stage 3 keeps for reuse
    (stage3_max_live_parameters), and gradients on their way to offload.
    """
    import_deepspeed()
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    stage, offload = STRATEGIES[strategy]
    offloaded = offload != "nothing"
    if stage == 0:
        weights, gradients = 6 * parameters, (4 if gpus == 1 else 8) * parameters
        return {"parameters": weights, "gradients": gradients, "optimizer": 8 * parameters}, 0
    if stage == 1:
        return {"parameters": 2 * parameters, "gradients": 2 * parameters, "optimizer": 16 * parameters // gpus}, 0
    nodes = math.ceil(gpus / GPUS_PER_NODE)
    node = {"num_gpus_per_node": gpus / nodes, "cpu_offload": offloaded}
    if stage == 2:
        _, whole = estimate_zero2_model_states_mem_needs(parameters, num_nodes=nodes, **node)
        # for main memory it counts the GPUs of all nodes as if they shared one machine: so ask for one node
        host, _ = estimate_zero2_model_states_mem_needs(parameters, num_nodes=1, **node)
        weights = 2 * parameters
    else:
        host, whole, gathered = estimate_zero3_model_states_mem_needs(
            parameters, largest, num_nodes=nodes, cpu_offload_params=offloaded, **node
        )
        weights = gathered + (0 if offloaded else int(2 * parameters / gpus))
    gradients = 0 if offloaded else int(2 * parameters / gpus)
    sizes = {"parameters": weights, "gradients": gradients, "optimizer": whole - weights - gradients}
    return sizes, host if offloaded else 0


def adapter_parameters(shape: T5Config, rank: int) -> int:
    """Parameters of LoRA adapters of this rank beside all query and value matrices of a T5."""
    attentions = shape.num_layers + 2 * shape.num_decoder_layers
    return 2 * attentions * rank * (shape.d_model + shape.d_kv * shape.num_heads)


def needed_bytes(
    shape: T5Config, strategy: str, gpus: int, reviews: int, *, lora: int = 0, **setting: Any
) -> tuple[dict[str, int], int]:  # fmt: skip
    """Bytes per GPU by component for one strategy, and main memory per node: (dict, bytes).

    ``setting``: ``tokens`` and ``checkpointing``, as for ``activation_bytes``. With ``lora`` only the adapters count
    for gradients and optimizer, and the frozen weights come on top: without a gradient, but shared out by stage 3.
    The activations, a little fewer then, are counted as without it.
    """
    parameters, largest = count_parameters(shape)
    sizes, host = state_bytes(adapter_parameters(shape, lora) if lora else parameters, largest, strategy, gpus)
    if lora and strategy == "zero3_offload":
        host += 2 * parameters // math.ceil(gpus / GPUS_PER_NODE)
    elif lora:
        sizes["parameters"] += (6 if strategy == "plain" else 2) * parameters // (gpus if strategy == "zero3" else 1)
    precision = "autocast" if strategy == "plain" else "bf16"
    activations = activation_bytes(shape, reviews, precision=precision, **setting)
    return sizes | {"activations": sum(activations.values())}, host


def family_bytes(numbers: tuple[int, ...] = (1, 8, 64)) -> dict[int, dict[str, dict[int, int]]]:
    """Bytes per GPU for one review of 512 tokens: number of GPUs -> strategy -> {parameters of a T5: bytes}."""
    shapes = [t5_shape(name) for name in FAMILY]
    return {
        gpus: {
            strategy: {
                count_parameters(shape)[0]: sum(needed_bytes(shape, strategy, gpus, 1, tokens=(512, 2))[0].values())
                for shape in shapes
            }
            for strategy, (_, offload) in STRATEGIES.items()
            if gpus > 1 or strategy == "plain" or offload != "nothing"  # one GPU has no other to shard over
        }
        for gpus in numbers
    }


def _row(shape: T5Config, strategy: str, gpus: int, usable: float, setting: dict[str, Any]) -> PlanRow:
    fits = 0
    while sum(needed_bytes(shape, strategy, gpus, max(1, 2 * fits), **setting)[0].values()) <= usable:
        fits = max(1, 2 * fits)
    sizes, host = needed_bytes(shape, strategy, gpus, max(1, fits), **setting)
    return PlanRow(strategy, *STRATEGIES[strategy], fits, sizes, host)


def _file(model: str | Path | dict, row: PlanRow, gpus: int, setting: dict[str, Any]) -> str:
    """The text of a training's file (``jobs.read_trainings``) that takes this strategy, in one line."""
    profiles = {Path(profile.model).name: name for name, profile in PROFILES.items()}
    weightless = isinstance(model, dict) or str(model).endswith(".json")
    own = {"shape": model if isinstance(model, dict) else str(model)} if weightless else {"base_model": str(model)}
    known = profiles.get(str(model).lower().removeprefix("google-t5/"))
    what: dict[str, Any] = {"profile": known} if known else {"profile": "small", **own}
    micro_batch = min(row.micro_batch, max(1, REVIEWS_PER_STEP // gpus))
    batch_size = micro_batch * gpus * max(1, REVIEWS_PER_STEP // (micro_batch * gpus))
    values = what | {"bf16": True, "batch_size": batch_size, "micro_batch": micro_batch}
    deepspeed = row.strategy if row.strategy != "plain" else ""
    more = {"deepspeed": deepspeed, "checkpointing": setting["checkpointing"], "lora_rank": setting["lora"]}
    return json.dumps(values | {key: value for key, value in more.items() if value})


def _advice(row: PlanRow, gpus: int) -> str:
    most = f"micro-batches of up to {row.micro_batch} review{'s' if row.micro_batch > 1 else ''}"
    if row.strategy == "plain":
        return f"The plain Trainer fits, with {most}: you do not need DeepSpeed."
    advice = f"Take {row.strategy}, the simplest strategy that fits {_gpus(gpus)}, with {most}"
    return advice + (f"; it wants about {_gb(row.host_bytes)} of main memory per node." if row.host_bytes else ".")


def _nothing_fits(model: str, shape: T5Config, gpus: int, card: int, setting: dict[str, Any]) -> str:
    """The sentence for a model that no strategy fits: what the least demanding one needs, and what would help."""
    needs = {strategy: sum(needed_bytes(shape, strategy, gpus, 1, **setting)[0].values()) for strategy in STRATEGIES}
    strategy = min(needs, key=lambda name: needs[name])
    least = needs[strategy]
    helps = [f"cards of {math.ceil((least + CONTEXT_BYTES) / (1 - SPARE) / 1e9)} GB"]
    usable = card * (1 - SPARE) - CONTEXT_BYTES
    more = (gpus * 2**n for n in range(1, 9))

    def fits(gpus: int, setting: dict[str, Any]) -> bool:
        return any(_row(shape, strategy, gpus, usable, setting).micro_batch for strategy in STRATEGIES)

    if enough := next((number for number in more if fits(number, setting)), None):
        helps.append(f"{enough} GPUs")
    if fits(gpus, setting | {"checkpointing": True}):
        helps.append("checkpointing=True")
    return (
        f"{model} does not fit {_gpus(gpus)} of {_gb(card)}, not even with {strategy}, which needs {_gb(least)} "
        f"of the {_gb(usable)} usable on each; take {' or '.join(helps)}, or shorter tokens."
    )


def _require_positive(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CourseError(f"{name} must be a whole number from 1 up, not {value!r}.")


def _gpus(number: int) -> str:
    return f"{number} GPU{'s' if number > 1 else ''}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
