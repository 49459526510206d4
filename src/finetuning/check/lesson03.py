"""Lesson 03: the mask of the labels, one decoder step, which training to go on with, what each ingredient gave."""

import random

import numpy as np
from scipy.special import softmax

from finetuning.check.exercise import exercise


def _rows(draw: random.Random) -> tuple:
    """Padded rows of label ids with the end token 1, and the pad id, which is not always 0."""
    pad_id, width = draw.choice([0, 0, 2, 5]), draw.randint(2, 5)
    tokens = [token for token in range(9) if token not in (1, pad_id)]
    rows = [[*draw.choices(tokens, k=draw.randint(1, width - 1)), 1] for _ in range(draw.randint(1, 4))]
    return [row + [pad_id] * (width - len(row)) for row in rows], pad_id


@exercise(_rows)
def mask_padding(labels: list[list[int]], pad_id: int, mark: int | None = -100) -> list[list[int | None]]:
    """Rows of label ids in which the padding is left out of the loss."""
    return [[mark if token == pad_id else token for token in row] for row in labels]


def _logits(draw: random.Random) -> tuple:
    size = draw.randint(4, 7)
    logits = [[round(draw.uniform(-3, 3), 2) for _ in range(size)] for _ in range(draw.randint(1, 4))]
    return np.array(logits), draw.sample(range(size), k=2)


@exercise(_logits)
def positive_probability(logits: np.ndarray, words: list[int]) -> np.ndarray:
    """The probability of the positive word among the two, for logits of shape (reviews, vocabulary)."""
    return softmax(logits[:, words], axis=1)[:, 1]


def _checkpoints(*rows: tuple[float, float, bool]) -> list[dict]:
    """The checkpoints of one training, from the loss, accuracy and wholeness of each epoch."""
    return [{"epoch": i, "loss": a, "accuracy": b, "whole": c} for i, (a, b, c) in enumerate(rows, 1)]


def _trainings(draw: random.Random) -> tuple:
    """Trainings whose last epoch may be torn; no two accuracies are alike."""
    found, accuracies = {}, iter(draw.sample(range(50, 99), k=20))
    for rate in draw.sample([1e-5, 1e-4, 1e-3, 1e-2, 1e-1], k=draw.randint(2, 4)):
        whole = [True] * draw.randint(1, 4) + [False] * draw.randint(0, 1)
        found[rate] = _checkpoints(*((round(draw.random(), 2), next(accuracies) / 100, one) for one in whole))
    return (found,)


@exercise(_trainings, tolerance=1e-9)
def pick_training(
    trainings: dict[float, list[dict]], key: str = "accuracy", by: str = "whole", among: str = "whole"
) -> tuple:
    """Rate, epoch to ship, epoch to resume from; ``trainings``: rate -> list of checkpoints.

    ``by`` says which checkpoints may choose the rate, ``among`` which may be shipped or resumed.
    """
    size = {"accuracy": 1, "loss": -1}[key]
    rate = max(trainings, key=lambda r: max((size * one[key] for one in trainings[r] if one[by]), default=-9))
    kept = [one for one in trainings[rate] if one[among]]
    return rate, max(kept, key=lambda one: size * one[key])["epoch"], kept[-1]["epoch"]


def _points(accuracy: dict[str, float], *pairs: str) -> list[float]:
    """The difference of each pair of rows, in points."""
    return [100 * (accuracy[a] - accuracy[b]) for a, b in (pair.split(" - ") for pair in pairs)]


_METHODS = ("majority", "tfidf", "as_shipped", "trainer", "from_scratch")
_GAVE = ("trainer - from_scratch", "trainer - as_shipped")


@exercise(lambda draw: (dict(zip(_METHODS, (n / 1000 for n in draw.sample(range(400, 990), k=5)), strict=True)),))
def gains(accuracy: dict[str, float]) -> list[float]:
    """Points of accuracy that pre-training gave, and that fine-tuning gave; ``accuracy``: method -> value."""
    return _points(accuracy, *_GAVE)
