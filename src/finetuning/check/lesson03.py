"""Lesson 03: the mask of the labels, one decoder step, which training to go on with, what each ingredient gave."""

import random

import numpy as np

from finetuning.check.exercise import exercise


def _rows(draw: random.Random) -> tuple:
    """Padded rows of label ids with the end token 1, and the pad id, which is not always 0."""
    pad_id, width = draw.choice([0, 0, 2, 5]), draw.randint(2, 5)
    tokens = [token for token in range(9) if token not in (1, pad_id)]
    rows = [[*draw.choices(tokens, k=draw.randint(1, width - 1)), 1] for _ in range(draw.randint(1, 4))]
    return [row + [pad_id] * (width - len(row)) for row in rows], pad_id


def _change(rows: list[list[int]], old: int, new: int | None) -> list[list]:
    return [[new if token == old else token for token in row] for row in rows]


@exercise(
    fixed=[([[7, 1, 0, 0], [8, 9, 1, 0]], 0), ([[0, 1, 5]], 5), ([[7, 1]], 0)],
    drawn=_rows,
)
def mask_padding(labels: list[list[int]], pad_id: int) -> list[list[int]]:
    """Rows of label ids in which the padding is left out of the loss."""
    return _change(labels, pad_id, -100)


def _logits(draw: random.Random) -> tuple:
    size = draw.randint(4, 7)
    logits = [[round(draw.uniform(-3, 3), 2) for _ in range(size)] for _ in range(draw.randint(1, 4))]
    return np.array(logits), draw.sample(range(size), k=2)


def _softmax(logits: np.ndarray, axis: int = 1) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=axis, keepdims=True)


@exercise(
    fixed=[
        (np.array([[9.0, 1.0, 2.0, 0.5], [0.0, 3.0, 0.0, 4.0]]), [1, 2]),
        *((np.array([[9.0, 1.0, 2.0, 0.5]]), [2, 0]), (np.array([[2.0, 2.0, 5.0]]), [0, 1])),
    ],
    drawn=_logits,
)
def positive_probability(logits: np.ndarray, words: list[int]) -> np.ndarray:
    """The probability of the positive word among the two, for logits of shape (reviews, vocabulary)."""
    return _softmax(logits[:, words])[:, 1]


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


def _pick(trainings: dict[float, list[dict]], key: str = "accuracy", by: str = "whole", among: str = "whole") -> tuple:
    """Rate, epoch to ship and to resume from; ``by`` chooses the checkpoints for the rate, ``among`` for the rest."""
    size = {"accuracy": 1, "loss": -1}[key]
    rate = max(trainings, key=lambda r: max((size * one[key] for one in trainings[r] if one[by]), default=-9))
    kept = [one for one in trainings[rate] if one[among]]
    return rate, max(kept, key=lambda one: size * one[key])["epoch"], kept[-1]["epoch"]


@exercise(
    fixed=[
        (
            {
                1e-5: _checkpoints((0.69, 0.55, True), (0.66, 0.58, True)),
                1e-3: _checkpoints((0.5, 0.80, True), (0.3, 0.86, True), (0.2, 0.84, True), (0.1, 0.88, False)),
                1e-1: _checkpoints((0.05, 0.50, True), (float("nan"), 0.51, True)),
            },
        ),
        ({1e-3: _checkpoints((0.4, 0.8, True), (0.3, 0.7, True)), 1e-2: _checkpoints((0.1, 0.9, False))},),
        ({1e-4: _checkpoints((0.4, 0.9, True)), 1e-2: _checkpoints((0.5, 0.6, True), (0.1, 0.95, False))},),
    ],
    drawn=_trainings,
    tolerance=1e-9,
)
def pick_training(trainings: dict[float, list[dict]]) -> tuple:
    """Rate, epoch to ship, epoch to resume from; ``trainings``: rate -> list of checkpoints."""
    return _pick(trainings)


def _points(accuracy: dict[str, float], *pairs: str) -> list[float]:
    """The difference of each pair of rows, in points."""
    return [100 * (accuracy[a] - accuracy[b]) for a, b in (pair.split(" - ") for pair in pairs)]


def _rows_of(values: list[int]) -> tuple:
    return (
        dict(
            zip(
                ("majority", "tfidf", "as_shipped", "trainer", "from_scratch"),
                (value / 1000 for value in values),
                strict=True,
            )
        ),
    )


_GAVE = ("trainer - from_scratch", "trainer - as_shipped")


@exercise(
    fixed=[_rows_of([500, 750, 700, 900, 600]), _rows_of([500, 900, 800, 700, 750])],
    drawn=lambda draw: _rows_of(draw.sample(range(400, 990), k=5)),
)
def bought(accuracy: dict[str, float]) -> list[float]:
    """Points of accuracy that pre-training gave, and that fine-tuning gave; ``accuracy``: method -> value."""
    return _points(accuracy, *_GAVE)
