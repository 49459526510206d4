"""Lesson 05: a process among many, shards cut anew, a weight and its 16-bit copy, a batch cut to fit."""

import random
from itertools import accumulate, chain

import numpy as np

from finetuning.check.exercise import exercise


def _process(draw: random.Random) -> tuple:
    nodes, per_node = draw.randint(1, 6), draw.randint(1, 8)
    return draw.randrange(nodes), draw.randrange(per_node), nodes, per_node


@exercise(_process)
def place(node: int, local_rank: int, nodes: int, per_node: int) -> tuple[int, int]:
    """Rank and world size of a process, from its node, its place there, and what was started."""
    return node * per_node + local_rank, nodes * per_node


def _cut(values: list, length: int, ranks: int) -> list[list]:
    """The first ``length`` values in shards of equal size, filled up with zeros."""
    size = -(-length // ranks)
    padded = values[:length] + [0] * (size * ranks - len(values[:length]))
    return [padded[i * size : (i + 1) * size] for i in range(ranks)]


def _shards(draw: random.Random) -> tuple:
    """Shards that hold real zeros too, also at the end."""
    length = draw.randint(1, 12)
    values = [draw.choice([0, 0, draw.randint(1, 9), draw.randint(10, 99)]) for _ in range(length)]
    return _cut(values, length, draw.randint(1, 5)), length, draw.randint(1, 5)


@exercise(_shards)
def reshard(shards: list[list], length: int, ranks: int) -> list[list]:
    """The flat buffer of ``length`` values cut anew into equal shards, padded with zeros."""
    return _cut(list(chain(*shards)), length, ranks)


def _bf16(value: float) -> float:
    """The nearest number of bf16: the upper half of an fp32 number's bits, rounded to even."""
    bits = np.float32(value).view(np.uint32)
    return float((bits + np.uint32(0x7FFF) + (bits >> 16 & 1) & np.uint32(0xFFFF0000)).view(np.float32))


def _updates(draw: random.Random) -> tuple:
    """Updates that bf16 can write down, most of them too small to move the weight by themselves."""
    updates = [draw.choice([1, 1, 3, -1]) * 2.0 ** -draw.randint(7, 10) for _ in range(draw.randint(3, 12))]
    return draw.choice([0.75, 1.0, 1.5, 3.0]), updates


@exercise(_updates, tolerance=1e-6)
def bf16_copies(weight: float, updates: list[float]) -> list[float]:
    """The bf16 weight that the model computes with after each update of an fp32 master copy."""
    return [_bf16(master) for master in accumulate(updates, initial=weight)][1:]


def _batch(draw: random.Random) -> tuple:
    ranks = draw.choice([1, 2, 3, 4, 8])
    return ranks * draw.randint(1, 36), ranks, draw.randint(1, 16)


@exercise(_batch)
def split_batch(batch: int, ranks: int, most: int) -> tuple[int, int]:
    """Reviews per micro-batch and micro-batches per step of a rank; ``most`` reviews fit into it at a time."""
    share = batch // ranks
    micro = max(size for size in range(1, min(most, share) + 1) if share % size == 0)
    return micro, share // micro
