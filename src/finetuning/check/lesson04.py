"""Lesson 04: the loss of a cut batch, bytes per rank, the lowest stage that fits."""

import random

from finetuning.check.exercise import exercise


def _losses(draw: random.Random) -> tuple:
    return ([[round(draw.uniform(0.1, 4), 2) for _ in range(draw.randint(1, 5))] for _ in range(draw.randint(1, 4))],)


@exercise(_losses)
def accumulated_loss(micro_batches: list[list[float]]) -> float:
    """The loss of a whole batch from the losses of the label tokens of each micro-batch."""
    return sum(map(sum, micro_batches)) / sum(map(len, micro_batches))


def _parts(parameters: float, stage: int, ranks: float, sizes: tuple = (2, 2, 12), first: tuple = (3, 2, 1)) -> float:
    """Bytes of weights, gradients and the rest, each divided by the ranks from its first stage on."""
    return sum(parameters * n / (ranks if stage >= at else 1) for n, at in zip(sizes, first, strict=True))


@exercise(lambda draw: (draw.randint(10_000, 10**9), draw.randrange(4), draw.choice([1, 2, 3, 4, 8, 64])))
def zero_bytes(parameters: int, stage: int, ranks: int) -> float:
    """Bytes per rank of a bf16 training with Adam and an fp32 master copy."""
    return _parts(parameters, stage, ranks)


def _memory(draw: random.Random) -> tuple:
    """A memory that lies clearly between two stages, or beyond the last."""
    n, ranks = draw.randint(1, 9) * 1000, draw.choice([2, 4, 8])
    return n, ranks, int(_parts(n, draw.randrange(4), ranks) * draw.choice([0.97, 1.03]))


@exercise(_memory)
def lowest_stage(parameters: int, ranks: int, memory: int) -> int | None:
    """The lowest ZeRO stage of a bf16 training that fits into the bytes of a rank, or None."""
    return next((stage for stage in range(4) if _parts(parameters, stage, ranks) <= memory), None)
