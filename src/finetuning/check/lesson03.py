"""Lesson 03: the mask of the labels, one decoder step, which training to go on with, what each ingredient gave."""

import math
from typing import Any

import numpy as np

from finetuning.check.feedback import Mistake, exercise, near, number, result


@exercise(
    "The loss leaves out one number only: -100.",
    "Every entry that equals `pad_id` becomes -100; everything else stays.",
    "For each row: `[-100 if token == pad_id else token for token in row]`.",
)
def mask_padding(answer: Any) -> str:
    """``answer(labels, pad_id)``: rows of label ids in which the padding is left out of the loss."""
    masked = result(answer, [[7, 1, 0, 0], [8, 9, 1, 0]], 0)
    if masked == [[7, 1, 0, 0], [8, 9, 1, 0]]:
        raise Mistake(
            "your labels still hold the pad id 0: the loss would count them, and the model would learn to write padding."
        )
    if masked == [[7, 1], [8, 9, 1]]:
        raise Mistake("the padding is cut off, but a batch must stay a rectangle: mark it instead.")
    if not isinstance(masked, list) or [len(row) for row in masked] != [4, 4]:
        raise Mistake("return as many rows and columns as came in.")
    if masked[0][1] == -100:
        raise Mistake("the end token 1 is left out too; the model must learn to stop.")
    if masked[0][2] != -100:
        raise Mistake(f"the padding became {masked[0][2]}; the loss leaves out -100 and nothing else.")
    if result(answer, [[0, 1, 5]], 5) != [[0, 1, -100]]:
        raise Mistake("with pad id 5 the 5 is the padding and 0 an ordinary token: use `pad_id`.")
    if masked != [[7, 1, -100, -100], [8, 9, 1, -100]]:
        raise Mistake(f"[[7, 1, 0, 0], [8, 9, 1, 0]] became {masked}.")
    return "The collator did the same in the batch above; forget it, and most of the loss is about padding."


@exercise(
    "Take the two columns of the label words first: `logits[:, words]`.",
    "Softmax over these two: exp of each, divided by the sum of both.",
    "`words` is in the order of the labels, so the probability of positive is the second column.",
)
def positive_probability(answer: Any) -> str:
    """``answer(logits, words)``: the probability of the positive word among the two.

    Logits of shape (reviews, vocabulary).
    """
    logits = np.array([[9.0, 1.0, 2.0, 0.5], [0.0, 3.0, 0.0, 4.0]])
    given = result(answer, logits, [1, 2])
    if isinstance(given, list) and len(given) == 2 and all(isinstance(row, list) for row in given):
        raise Mistake("return one number per review: the probability of the positive word alone.")
    if not isinstance(given, list) or len(given) != 2:
        raise Mistake("return one number per review.")
    whole = np.exp(logits)[:, 2] / np.exp(logits).sum(axis=1)
    right = 1 / (1 + np.exp(logits[:, 1] - logits[:, 2]))
    if near(given, whole.tolist(), 1e-3):
        raise Mistake(
            "your softmax runs over the whole vocabulary; the other words take most of the probability, and the two do not sum to one."
        )
    if near(given, (1 - right).tolist(), 1e-3):
        raise Mistake("that is the probability of the negative word; `words` holds negative first.")
    if near(given, logits[:, 2].tolist()):
        raise Mistake("these are logits; a softmax makes probabilities of them.")
    if all(value in (0, 1) for value in given):
        raise Mistake("these are decisions; asked is how sure the model is.")
    if not near(given, right.tolist(), 1e-3) or not near(
        result(answer, logits, [2, 0])[0], 1 / (1 + math.exp(-7)), 1e-3
    ):
        raise Mistake(
            f"for the first review the two logits are 1 and 2, so positive has the probability 0.731; you got {given[0]!r}."
        )
    return "One decoder step and one softmax over two numbers: the whole of this course's predictions."


@exercise(
    "Only checkpoints that are whole count; and only the validation accuracy tells what to ship.",
    "rate and ship: the whole checkpoint with the highest `accuracy` of all trainings. resume: the last whole one of that training.",
    "Collect (accuracy, rate, epoch) of every whole checkpoint and take the max; then the largest whole epoch at that rate.",
)
def pick_training(answer: Any) -> str:
    """``answer(trainings)``: (rate, epoch to ship, epoch to resume from).

    ``trainings``: rate -> list of checkpoints.
    """
    keys = ("epoch", "loss", "accuracy", "whole")
    rows = {
        1e-5: [(1, 0.69, 0.55, True), (2, 0.66, 0.58, True)],
        1e-3: [(1, 0.50, 0.80, True), (2, 0.30, 0.86, True), (3, 0.15, 0.84, True), (4, 0.12, 0.88, False)],
        1e-1: [(1, 0.05, 0.50, True), (2, float("nan"), 0.50, True)],
    }
    given = result(answer, {rate: [dict(zip(keys, row, strict=True)) for row in found] for rate, found in rows.items()})
    if not isinstance(given, list) or len(given) != 3:
        raise Mistake("return three things: the rate, the epoch to ship, the epoch to resume from.")
    rate, ship, resume = given
    if rate == 1e-1:
        raise Mistake(
            "that training has the lowest training loss and learnt nothing: its validation accuracy is a coin toss. Choose by validation."
        )
    if rate == 1e-5:
        raise Mistake("that rate is too small: it moves in the right direction, and far too slowly to catch up.")
    if 4 in (ship, resume):
        raise Mistake(
            "epoch 4 was being written when the power went: a torn checkpoint can be neither shipped nor resumed from."
        )
    if ship == 3:
        raise Mistake("epoch 3 is the latest, but validation was better after epoch 2: ship the best, not the last.")
    if resume == 2:
        raise Mistake("resume from the latest whole checkpoint, or you pay for an epoch twice.")
    if (rate, ship, resume) != (1e-3, 2, 3):
        raise Mistake(f"you returned {rate!r}, {ship!r} and {resume!r}.")
    tied = {
        1e-4: [dict(zip(keys, (7, 0.4, 0.9, True), strict=True))],
        1e-2: [dict(zip(keys, (1, 0.4, 0.6, True), strict=True))],
    }
    if result(answer, tied) != [1e-4, 7, 7]:
        raise Mistake("with other rates and epochs it goes wrong: does a number stand in it that belongs to one case?")
    return "Chosen by validation, shipped at its best, resumed at its latest."


@exercise(
    "To see what one ingredient gave, compare two rows that differ in it alone.",
    "Pre-training: the same training with and without it, `trainer` and `from_scratch`. Fine-tuning: `trainer` and `as_shipped`.",
    "Return both differences times 100.",
)
def bought(answer: Any) -> str:
    """``answer(accuracy)``: points of accuracy that pre-training gave, and that fine-tuning gave.

    ``accuracy``: method -> value.
    """
    given = result(answer, {"majority": 0.5, "tfidf": 0.75, "as_shipped": 0.7, "trainer": 0.9, "from_scratch": 0.6})
    if not isinstance(given, list) or len(given) != 2:
        raise Mistake("return two numbers: the points from pre-training, then those from fine-tuning.")
    first, second = (number(value) for value in given)
    if near([first, second], [0.3, 0.2]):
        raise Mistake("these are shares; points of accuracy are hundredths.")
    if near([first, second], [20, 30]):
        raise Mistake(
            "the two are swapped: pre-training is what `from_scratch` lacks, fine-tuning what `as_shipped` lacks."
        )
    if near(first, 40) or near(second, 40) or near(first, 10):
        raise Mistake(
            "against `majority` two things differ at once, pre-training and fine-tuning; compare rows that differ in one."
        )
    if near(first, 15) or near(second, 15):
        raise Mistake("`tfidf` is another kind of model: the difference says nothing about either ingredient.")
    if first < 0 or second < 0:
        raise Mistake("the sign is turned: what an ingredient gave is the row with it minus the row without it.")
    if not near([first, second], [30, 20]):
        raise Mistake(
            f"you got {first:g} and {second:g} points where trainer has 0.90, as_shipped 0.70 and from_scratch 0.60."
        )
    return "Two rows that differ in one thing: that is all an experiment is."
