"""Lessons 04 and 05: where the bytes of a training lie and how many are sent, in theory and counted."""

from typing import Any

import numpy as np
from torch.nn import Module
from torch.utils._pytree import tree_leaves

from finetuning.results import ResultRow

COMPONENTS = ("parameters", "gradients", "master", "optimizer")
MAX_LIVE_PARAMETERS = 10**9  # DeepSpeed's default: so many gathered parameters stage 3 keeps for the backward pass


def expected_bytes(
    parameters: int, stage: int, ranks: int, *, bf16: bool = False, frozen: int = 0
) -> dict[str, float]:  # fmt: skip
    """Bytes that each rank holds in theory: a dict of component -> bytes (Rajbhandari et al. 2020, section 5).

    Mixed precision with Adam: 2 bytes per parameter for the bf16 weights and 2 for their gradients, 4 for the fp32
    master weights and 8 for Adam's two moments. In fp32 the weights and the gradients take 4 bytes each, and stage 0
    has no master copy; stages 1 to 3 keep one of the rank's own shard. Stage 1 divides master and moments by the number
    of ranks, stage 2 the gradients too, stage 3 the weights too. ``frozen`` parameters, those that the training does
    not change, come on top (lesson 06): of them there are weights alone.
    """
    width = 2 if bf16 else 4
    share = parameters / ranks
    return {
        "parameters": width * (parameters + frozen) / (ranks if stage >= 3 else 1),
        "gradients": width * (share if stage >= 2 else parameters),
        "master": 4 * (share if stage >= 1 else parameters if bf16 else 0),
        "optimizer": 8 * (share if stage >= 1 else parameters),
    }


def expected_traffic(parameters: int, stage: int, ranks: int, accumulation: int, *, network: str = "gloo") -> float:
    """Bytes that each rank sends in one optimizer step in fp32, in theory.

    A pass sends a shard of every weight or gradient on from rank to rank, (ranks - 1) / ranks of their size. Adding
    gradients up on all ranks (all-reduce) takes two passes, keeping each sum on one rank only (reduce-scatter) or
    gathering the weights one each. ``network``: ``gloo`` (CPUs), ``nccl`` (GPUs), or ``paper`` (Rajbhandari et al.
    2020, section 7). DeepSpeed adds up on all ranks in stages 1 and 2 as well, on either network (its issue 7059), and
    gathers once per micro-batch in stage 3 as long as the model is smaller than stage3_max_live_parameters; gloo does
    a reduce-scatter by an all-reduce. Raises KeyError for another network.
    """
    gathers = 1 if network != "paper" and parameters < MAX_LIVE_PARAMETERS else 2
    scatter = {"gloo": 2, "nccl": 1, "paper": 1}[network]
    add_up = 1 if network == "paper" else 2  # the gradients of stages 1 and 2
    passes = {0: 2, 1: add_up + 1, 2: add_up * accumulation + 1, 3: (gathers + scatter) * accumulation}[stage]
    return passes * 4 * parameters * (ranks - 1) / ranks


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
        optimizer = optimizer.optimizer  # in the end DeepSpeed's own wrapper, or the plain optimizer
    weights = [getattr(weight, "ds_tensor", weight) for weight in model.parameters()]
    stepped = [weight for group in inner.param_groups for weight in group["params"]]
    stepped += _tensors(optimizer, "fp32_partitioned_groups_flat")
    partial = getattr(optimizer, "all_grad_tensors", {})  # stage 1 and 2 between micro-batches
    gradients = [weight.grad for weight in [*model.parameters(), *stepped]]
    gradients += _tensors(optimizer, "all_grad_tensors", "averaged_gradients", "grad_partitions_flat_buffer")
    gradients += [getattr(weight, "grad_accum", None) for weight in model.parameters()]
    waiting = getattr(optimizer, "ipg_buckets", {}).values()
    buckets = [tensor for bucket in waiting for tensor in _tensors(bucket, "buffer")]
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
        if tensors and getattr(optimizer, "partition_gradients", False):
            whole = sum(tensor.numel() for tensor in tensors)
            own = min(whole - optimizer.first_offset[group], optimizer.partition_size[group])
            counted["gradients"] -= (whole - own) * tensors[0].element_size()
            counted["buffers"] += (whole - own) * tensors[0].element_size()
    return counted


def _tensors(owner: Any, *attributes: str) -> list:
    """The tensors that lie under these attributes of an object, in lists and dicts or alone."""
    return [one for one in tree_leaves([getattr(owner, name, None) for name in attributes]) if one is not None]


def _stored(tensors: list) -> dict[int, int]:
    """Storages behind tensors: a dict of address -> bytes. Scalars (Adam's step counters) are left out."""
    storages = {}
    for tensor in tensors:
        if hasattr(tensor, "untyped_storage") and tensor.numel() > 1:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return storages


def verdict_lines(rows: dict[str, ResultRow], seconds: dict[str, list[float]]) -> list[str]:
    """Sentences that weigh more ranks against one process, and each stage against stage 0, from what was measured.

    ``rows``: method -> its row, with ``trainer_short`` and ``deepspeed_zero0`` among them;
    ``seconds``: ``plain``, ``zero0`` … -> seconds of each optimizer step.
    """
    held = {
        name.removeprefix("deepspeed_"): sum(row.bytes_per_rank[part] for part in COMPONENTS)
        for name, row in rows.items()
        if row.bytes_per_rank
    }
    ranks = rows["deepspeed_zero0"].world_size
    whole = pace(seconds["zero0"], seconds["plain"], "the plain Trainer")
    lines = [f"{ranks} ranks without sharding (zero0): {whole}."]
    for run, size in held.items():
        if run != "zero0":
            slower = pace(seconds[run], seconds["zero0"], "zero0")
            lines.append(f"{run}: holds {size / held['zero0']:.2f} of zero0's bytes per rank, {slower}.")
    smallest = min(held, key=lambda run: held[run])
    lines.append(f"The least memory per rank: {smallest}, {held[smallest] / 2**20:,.1f} MiB.")
    return lines


def pace(steps: list[float], others: list[float], name: str) -> str:
    """How the medians of two runs' seconds per step compare, in words; no verdict where their middle halves overlap."""
    ratio = float(np.median(steps) / np.median(others))
    (low, high), (other_low, other_high) = (np.quantile(times, [0.25, 0.75]) for times in (steps, others))
    if low <= other_high and other_low <= high:
        return f"about as long a step as {name} ({ratio:.2f} times; the steps differ more among themselves)"
    return f"{ratio:.2f} times as long a step as {name}"
