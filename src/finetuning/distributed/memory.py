"""Lesson 04: where the bytes of a training lie and how many are sent, by theory and counted."""

from typing import Any

import torch
from torch.nn import Module

from finetuning.results import ResultRow

COMPONENTS = ("parameters", "gradients", "master", "optimizer")


def expected_bytes(parameters: int, stage: int, ranks: int, *, bf16: bool = False) -> dict[str, float]:
    """Bytes that each rank holds in theory: a dict of component -> bytes (Rajbhandari et al. 2020, section 5).

    Mixed precision with Adam: 2 bytes per parameter for the bf16 weights and 2 for their gradients, 4 for the fp32
    master weights and 8 for Adam's two moments. In fp32 the weights and the gradients take 4 bytes each, and stage 0
    has no master copy; stages 1 to 3 keep one of the rank's own shard. Stage 1 divides master and moments by the number
    of ranks, stage 2 the gradients too, stage 3 the weights too.
    """
    width = 2 if bf16 else 4
    share = parameters / ranks
    return {
        "parameters": width * (share if stage >= 3 else parameters),
        "gradients": width * (share if stage >= 2 else parameters),
        "master": 4 * (share if stage >= 1 else parameters if bf16 else 0),
        "optimizer": 8 * (share if stage >= 1 else parameters),
    }


def expected_traffic(parameters: int, stage: int, ranks: int, accumulation: int, *, bf16: bool = False) -> float:
    """Bytes that each rank sends in one optimizer step, in theory (Rajbhandari et al. 2020, section 7).

    Passing a shard of every weight or gradient on costs (ranks - 1) / ranks of their size. Adding gradients up on all
    ranks takes two such passes; stage 1 adds one for the new weights; stage 2 adds gradients up after every
    micro-batch, on a CPU by two passes, on a GPU by one (reduce-scatter); stage 3 gathers the weights forwards and
    backwards, and scatters the gradients, in every micro-batch.
    """
    scatter = 1 if torch.cuda.is_available() else 2
    passes = {0: 2, 1: 3, 2: scatter * accumulation + 1, 3: 3 * accumulation}[stage]
    return passes * (2 if bf16 else 4) * parameters * (ranks - 1) / ranks


def innermost(optimizer: Any) -> Any:
    """The optimizer that really steps: the Trainer, accelerate and DeepSpeed wrap one another."""
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return optimizer


def own_step_counters(optimizer: Any) -> None:
    """Give every parameter of the wrapped Adam a step counter of its own.

    After a universal checkpoint was loaded in stage 3, all parameter groups share one, which then counts several times
    a step.
    """
    for state in innermost(optimizer).state.values():
        if hasattr(state.get("step"), "clone"):
            state["step"] = state["step"].clone()


def held_bytes(model: Module, optimizer: Any) -> dict[str, int]:
    """Bytes that this process holds for training ``model``.

    A dict of component -> bytes, each stored tensor counted once. ``model`` is a plain model with its torch optimizer,
    or a DeepSpeedEngine with the optimizer that DeepSpeed wraps around one. ``buffers`` are the buckets that gradients
    wait in until they are sent, and rests of tensors that straddle two shards. Measure between two micro-batches, when
    the gradients of the first are there.
    """
    inner = innermost(optimizer)
    while optimizer is not inner and not type(optimizer).__module__.startswith("deepspeed.runtime"):
        optimizer = optimizer.optimizer
    zero = optimizer  # DeepSpeed's own wrapper, or the plain optimizer
    weights = [getattr(weight, "ds_tensor", weight) for weight in model.parameters()]
    stepped = [weight for group in inner.param_groups for weight in group["params"]]
    stepped += _tensors(zero, "fp32_partitioned_groups_flat")
    partial = getattr(zero, "all_grad_tensors", {})  # stage 1 and 2 between micro-batches
    gradients = [weight.grad for weight in [*model.parameters(), *stepped]]
    gradients += _tensors(zero, "all_grad_tensors", "averaged_gradients", "grad_partitions_flat_buffer")
    gradients += [getattr(weight, "grad_accum", None) for weight in model.parameters()]
    buckets = [tensor for bucket in getattr(zero, "ipg_buckets", {}).values() for tensor in _tensors(bucket, "buffer")]
    counted, seen = {}, set()
    for name, tensors in (
        ("parameters", weights),
        ("master", stepped),
        ("optimizer", [value for state in inner.state.values() for value in state.values()]),
        ("gradients", gradients),
        ("buffers", buckets),
    ):
        storages = _stored(tensors)
        counted[name] = sum(size for address, size in storages.items() if address not in seen)
        seen |= set(storages)
    # A tensor that lies across the border of two shards is kept whole by both: what is beyond the shard is none of it.
    for group, tensors in partial.items():
        if tensors and getattr(zero, "partition_gradients", False):
            whole = sum(tensor.numel() for tensor in tensors)
            own = min(whole - zero.first_offset[group], zero.partition_size[group])
            counted["gradients"] -= (whole - own) * tensors[0].element_size()
            counted["buffers"] += (whole - own) * tensors[0].element_size()
    return counted


def _tensors(owner: Any, *attributes: str) -> list:
    """The tensors that lie under these attributes of an object, in lists and dicts or alone."""
    tensors, waiting = [], [getattr(owner, attribute, None) for attribute in attributes]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif value is not None:
            tensors.append(value)
    return tensors


def _stored(tensors: list) -> dict[int, int]:
    """Storages behind tensors: a dict of address -> bytes. Scalars (Adam's step counters) are left out."""
    storages = {}
    for tensor in tensors:
        if hasattr(tensor, "untyped_storage") and tensor.numel() > 1:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return storages


def verdict_lines(rows: dict[str, ResultRow], seconds: dict[str, float]) -> list[str]:
    """Sentences that weigh each stage against the plain Trainer, from what was measured.

    ``rows``: method -> its row, with ``trainer_short`` and ``deepspeed_zero0`` among them;
    ``seconds``: ``plain``, ``zero0`` … -> seconds per optimizer step.
    """
    held = {
        name: sum(row.bytes_per_rank[part] for part in COMPONENTS) for name, row in rows.items() if row.bytes_per_rank
    }
    lines = []
    for name in held:
        run = name.removeprefix("deepspeed_")
        share, slower = held[name] / held["deepspeed_zero0"], seconds[run] / seconds["plain"]
        pace = f"{1 / slower:.1f} times as fast as the plain Trainer"
        if slower > 1:
            pace = f"{slower:.1f} times the plain Trainer's time per step"
        points = f"{100 * (rows[name].accuracy - rows['trainer_short'].accuracy):+.1f} points"
        lines.append(f"{run}: holds {share:.2f} of stage 0's bytes per rank, {pace}, accuracy {points} from it.")
    if faster := ", ".join(run for run in seconds if run != "plain" and seconds[run] < seconds["plain"]):
        ranks = rows["deepspeed_zero0"].world_size
        lines.append(f"Faster than the plain Trainer here: {faster}, on {ranks} ranks.")
    else:
        slow = "No stage was faster than the plain Trainer here: on this machine DeepSpeed buys no time, only memory."
        lines.append(slow)
    least = min(held, key=lambda name: held[name])
    lines.append(f"The least memory per rank: {least.removeprefix('deepspeed_')}, {held[least] / 2**20:,.1f} MiB.")
    return lines
