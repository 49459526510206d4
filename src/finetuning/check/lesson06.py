"""Lesson 06: the parameters of an adapter, an adapter merged, how much of a model can be trained in a given memory."""

import random
from collections.abc import Callable

import numpy as np

from finetuning.check.exercise import exercise


def _shapes(draw: random.Random) -> tuple:
    return [(draw.randint(1, 40), draw.randint(1, 40)) for _ in range(draw.randint(2, 5))], draw.randint(2, 9)


@exercise(_shapes)
def adapter_parameters(shapes: list[tuple[int, int]], rank: int) -> int:
    """The parameters of adapters beside matrices of so many inputs and outputs each."""
    return sum(rank * (inputs + outputs) for inputs, outputs in shapes)


def _adapter(draw: random.Random) -> tuple:
    """A weight, both halves of an adapter and its scale; some of the weights are square."""
    outputs, rank = draw.randint(2, 4), draw.randint(2, 3)
    inputs = draw.choice([outputs, outputs + 1])
    drawn = [[[draw.randint(-9, 9) for _ in range(columns)] for _ in range(rows)] for rows, columns in
             ((outputs, inputs), (rank, inputs), (outputs, rank))]  # fmt: skip
    return *(np.array(values, dtype=float) for values in drawn), draw.choice([2.0, 0.5, 3.0])


@exercise(_adapter)
def merge(weight: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """The one matrix that does what a frozen weight and its adapter do together."""
    return weight + scale * b @ a


def _held(parts: list[int], count: int, trained: int = 16, frozen: int = 4) -> int:
    """Bytes in fp32 with the first ``count`` parts trained by Adam and the others frozen."""
    return trained * sum(parts[:count]) + frozen * sum(parts[count:])


def _most(parts: list[int], memory: int, held: Callable[[list[int], int], float] = _held) -> int | None:
    """The largest count whose bytes fit."""
    return max((count for count in range(len(parts) + 1) if held(parts, count) <= memory), default=None)


def _limit(draw: random.Random) -> tuple:
    """Parts of a model and a memory that lies on a border, shortly under it, or between two."""
    parts = [draw.randint(1, 30) * 10 for _ in range(draw.randint(2, 6))]
    return parts, _held(parts, draw.randint(0, len(parts))) + draw.choice([0, 0, -8, 8, 100])


@exercise(_limit)
def parts_to_train(parts: list[int], memory: int) -> int | None:
    """How many parts of a model can be trained in ``memory`` bytes, from the output on; None: none can even be held."""
    return _most(parts, memory)
