"""Lesson 05: a paired test, the calibration error, a slice, predictions in a stream."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from finetuning.check.feedback import Mistake, exercise, name_mistake, near, number, result


@exercise(
    "Only the reviews on which exactly one of the two is right can tell them apart; count both kinds.",
    "If the two were equally good, each such review would be a coin toss: a binomial distribution with a half.",
    "`scipy.stats.binomtest(b, b + c).pvalue`, where b and c are the two counts; without any such review p is 1.",
)
def mcnemar(answer: Any) -> str:
    """``answer(first, second)``: the exact two-sided p-value of McNemar's test.

    Both: lists of right (1) and wrong (0) answers.
    """
    first, second = [1] * 8 + [0] * 2 + [1] * 10 + [0] * 3, [0] * 8 + [1] * 2 + [1] * 10 + [0] * 3
    p = number(result(answer, first, second))
    named = (
        (0.0546875, "that is one tail; the second may be the better one as well, so both tails count."),
        (
            0.0577795,
            "that is the chi-square approximation; with so few differing reviews it is too sure of itself. Use the binomial.",
        ),
        (0.1138463, "that is the chi-square approximation with a correction; the exact test is the binomial."),
        (0.0214844, "the outcome 8 to 2 itself is missing: count what is as extreme, not only what is more so."),
        (
            0.2100244,
            "you tossed a coin for all 23 reviews; those on which both agree say nothing about which is better.",
        ),
    )
    name_mistake(p, named)
    if not 0 <= p <= 1:
        raise Mistake(f"a p-value lies between 0 and 1, and you got {p:g}.")
    if near(p, 0.109375, 1e-4):
        if near(number(result(answer, [1, 0, 1], [1, 0, 1])), 1):
            return "Reviews on which both agree say nothing about which is better, however many there are."
        raise Mistake("two models that agree on every review cannot be told apart: p is 1.")
    raise Mistake(
        f"of 23 reviews the first alone is right on 8, the second alone on 2; the other 13 do not count. You got {p:.4f}."
    )


@exercise(
    "Look at words, not at letters: 'nothing', 'notice' and 'another' hold the letters of 'not'.",
    'Split the lower-cased text into words first: `re.findall(r"[\\w\']+", text.lower())`.',
    "A word negates when it is 'not', 'no', 'never', 'without', or ends in \"n't\".",
)
def negation_slice(answer: Any) -> str:
    """``answer(text)``: whether a review belongs to the slice of those that negate something."""
    cases = {
        "It was not good.": "it misses a plain 'not'.",
        "NOT what I paid for.": "it misses capital letters.",
        "I didn't laugh once.": 'it misses short forms such as "didn\'t".',
        "I never looked at the clock.": "it misses 'never'.",
        "A film without a heart": "it misses 'without'.",
        "No plot at all.": "it misses 'no'.",
    }
    wrong = {
        "Another notable film, a knot well tied.": "it finds 'not' inside other words, such as 'another' and 'notable'.",
        "A warm and funny film.": "it finds a negation where there is none.",
        "I now know the piano score by heart.": "it finds 'no' inside other words, such as 'know' and 'piano'.",
    }
    for text, sentence in cases.items():
        if not result(answer, text):
            raise Mistake(f"{sentence} ({text})")
    for text, sentence in wrong.items():
        if result(answer, text):
            raise Mistake(f"{sentence} ({text})")
    return "A slice is a question put as a function: is the model as good where something is negated?"


@exercise(
    "For each bin: how sure was the model there on average, and how often was it right?",
    "The gap of a bin is the absolute difference of the two; an empty bin has none.",
    "Weight each gap by the share of all reviews that lie in its bin, and add up.",
)
def calibration_error(answer: Any) -> str:
    """``answer(confidence, right, edges)``: the expected calibration error.

    A bin holds confidences above one edge and up to the next.
    """
    confidence, right = np.array([0.6, 0.6, 0.6, 0.6, 0.9, 0.9]), np.array([1, 1, 1, 0, 0, 1])
    error = number(result(answer, confidence, right, [0.5, 0.75, 1.0]))
    signed = "the gaps cancel: in one bin the model is too sure, in the other not sure enough. Take absolute values."
    named = (
        (0.275, "you average over the bins; a bin with more reviews must weigh more."),
        (0.55, "you add the gaps up without weighting them by the reviews in each bin."),
        (1 / 30, signed),
        (-1 / 30, signed),
        (2.8 / 6, "you compare review by review; one review is right or wrong, only a bin has a share of right ones."),
        (70 / 3, "asked is a number between 0 and 1, not a percentage."),
    )
    name_mistake(error, named)
    if not near(error, 7 / 30, 1e-4):
        raise Mistake(
            f"four reviews at 0.6, three right, and two at 0.9, one right: 4/6 of 0.15 plus 2/6 of 0.40; you got {error:g}."
        )
    if not near(number(result(answer, confidence, right, [0.0, 0.5, 0.75, 1.0])), 7 / 30, 1e-4):
        raise Mistake("with an empty bin it comes out differently, or as no number; leave empty bins out.")
    if not near(number(result(answer, np.array([0.75, 1.0]), np.array([1, 1]), [0.5, 0.75, 1.0])), 0.125, 1e-4):
        raise Mistake("a confidence on an edge belongs to the bin below it; 1.0 is in the last bin.")
    return "A small error says that of the reviews called 90 % sure about nine in ten are right; it says nothing about accuracy."


@exercise(
    "Collect texts in a list until it is as long as a batch, hand it to `predict`, and begin a new one.",
    "`yield from predict(batch)` passes the answers on, one after the other, before the next text is read.",
    "After the loop the last batch may be shorter, but not empty: `if batch: yield from predict(batch)`.",
)
def stream_answers(answer: Any) -> str:
    """``answer(texts, predict, batch_size)``.

    Yields the answer to each text of an iterator, and never holds more than a batch.
    """
    if not callable(answer):
        raise Mistake("hand over the function itself, without brackets behind its name.")
    taken, batches = [], []

    def texts() -> Iterator[str]:
        for i in range(7):
            taken.append(i)
            yield f"review {i}"

    def predict(batch: list[str]) -> list[str]:
        batches.append(len(batch))
        return [text.upper() for text in batch]

    made = answer(texts(), predict, 3)
    if isinstance(made, list):
        raise Mistake("a list holds the answers to a million reviews at once; `yield` them instead.")
    given = [next(made, None)]
    if len(taken) == 7:
        raise Mistake("all reviews were read before the first answer came; a file may be larger than your memory.")
    given += made
    if 1 in batches[:-1]:
        raise Mistake("`predict` was called for single reviews; in batches it is many times as fast.")
    if max(batches, default=0) > 3:
        raise Mistake(f"a batch of {max(batches)} was handed to `predict`, and 3 is the most it may get.")
    if len(given) == 6:
        raise Mistake("the answer to the last review is missing: what is left over at the end is a batch too.")
    if batches[-1:] == [0]:
        raise Mistake("the last batch was empty; when the reviews divide evenly there is nothing left to predict.")
    if given != [f"REVIEW {i}" for i in range(7)]:
        raise Mistake(f"seven reviews were put in and {len(given)} answers came out, or in another order.")
    made = list(answer(iter(["a", "b"]), predict, 2))
    if made != ["A", "B"] or 0 in batches:
        raise Mistake("two reviews in batches of two: one batch, and no empty one after it.")
    return "The command `python -m finetuning predict` reads files of any size in just this way."
