"""Lesson 07: a paired test, the calibration error, a slice, predictions in a stream."""

import random
import re
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from scipy.stats import binomtest

from finetuning.check.exercise import Mistake, exercise, plain


def _verdicts(draw: random.Random) -> tuple:
    n, share = draw.randint(5, 30), draw.random()
    return [int(draw.random() < 0.7) for _ in range(n)], [int(draw.random() < share) for _ in range(n)]


def _alone(first: list[int], second: list[int]) -> tuple[int, int]:
    """On how many reviews the first alone is right, and the second alone."""
    return sum(map(int.__gt__, first, second)), sum(map(int.__lt__, first, second))


@exercise(_verdicts)
def mcnemar(first: list[int], second: list[int]) -> float:
    """The exact two-sided p-value of McNemar's test, from two lists of right (1) and wrong (0) answers."""
    alone = _alone(first, second)
    return binomtest(alone[0], sum(alone)).pvalue if any(alone) else 1.0


def _bins(confidence: np.ndarray, right: np.ndarray, edges: np.ndarray, left: bool = False) -> list[tuple]:
    """Share of the reviews, mean confidence and share of right answers of each bin that is not empty."""
    at = np.digitize(confidence, edges, right=not left)
    inside = (at == i for i in range(1, len(edges)) if i in at)
    return [(one.mean(), confidence[one].mean(), right[one].mean()) for one in inside]


def _confidences(draw: random.Random) -> tuple:
    """Confidences of which some lie on the edges of the bins, never on the lowest."""
    edges = draw.choice([[0.5, 0.75, 1.0], [0.0, 0.25, 0.5, 0.75, 1.0], [0.5, 0.625, 0.75, 0.875, 1.0]])
    values = [draw.choice([*edges[1:], round(draw.uniform(0.51, 0.99), 2)]) for _ in range(draw.randint(3, 10))]
    return np.array(values), np.array(draw.choices([0, 1, 1], k=len(values))), np.array(edges)


@exercise(_confidences)
def calibration_error(confidence: np.ndarray, right: np.ndarray, edges: np.ndarray) -> float:
    """The expected calibration error; a bin holds confidences above one edge and up to the next."""
    return sum(share * abs(sure - true) for share, sure, true in _bins(confidence, right, edges))


_NEGATORS = ("not", "no", "never", "without", "didn't", "isn't", "can't", "won't")
_PLAIN = ("a", "film", "plot", "warm", "and", "another", "notable", "knot", "know", "piano", "went", "nevertheless")


def _negators(text: str, but: tuple = ()) -> list[str]:
    """The words of a text that negate."""
    words = re.findall(r"[\w']+", text.lower())
    return [word for word in words if word in {*_NEGATORS} - {*but} or (word.endswith("n't") and "n't" not in but)]


def _sentence(draw: random.Random) -> tuple:
    """Plain words, of which some hold the letters of a negation, with a negation among them or without."""
    words, negator = draw.choices(_PLAIN, k=draw.randint(2, 6)), draw.choice(_NEGATORS)
    if draw.random() < 0.6:
        words.insert(draw.randint(0, len(words)), draw.choice([negator, negator.upper(), negator.capitalize()]))
    return (" ".join(word + draw.choice(["", "", "", ",", "."]) for word in words),)


@exercise(_sentence)
def negation_slice(text: str) -> bool:
    """Whether a review belongs to the slice of those that negate something."""
    return bool(_negators(text))


def _watched(answer: Callable, texts: list[str], batch_size: int) -> list[str]:
    """The answers of a stream. Raises Mistake where it reads, holds or predicts more than it may."""
    taken: list[str] = []
    calls: list[int] = []
    given: list[str] = []

    def read() -> Iterator[str]:
        for text in texts:
            taken.append(text)
            yield text

    def predict(batch: list[str]) -> list[str]:
        batch = list(batch)
        calls.append(len(batch))
        if not batch:
            raise Mistake("`predict` got an empty batch; when the reviews divide evenly nothing is left at the end.")
        if len(batch) > batch_size:
            raise Mistake(f"`predict` got a batch of {len(batch)}, and {batch_size} is the most it may get.")
        if len(calls) > len(texts):
            raise Mistake(f"`predict` was called {len(calls)} times for {len(texts)} reviews, and was stopped there.")
        return [text.upper() for text in batch]

    made = answer(read(), predict, batch_size)
    if isinstance(made, (list, tuple, np.ndarray)):
        raise Mistake("a list holds the answers to a million reviews at once; `yield` them instead.")
    if not isinstance(made, Iterable):
        raise Mistake(f"asked are the answers one after the other, and {plain(made)!r} came; `yield` them.")
    for one in made:
        if isinstance(one, (list, tuple, np.ndarray)):
            raise Mistake(f"{len(one)} values came as one answer; `yield from` passes those of a batch on one by one.")
        if len(taken) - len(given) > batch_size:
            raise Mistake(f"{len(taken)} reviews were read when answer {len(given) + 1} came: more than a batch.")
        given.append(one)
        if len(given) > len(texts):
            raise Mistake(f"more answers come than there are reviews ({len(texts)}): what ends its loop?")
    if len(given) < len(texts):
        rest = sum(calls) == len(texts) // batch_size * batch_size < len(texts)
        why = "what is left over at the end is a batch too." if rest else "where did the others go?"
        raise Mistake(f"{len(given)} answers came for {len(texts)} reviews; {why}")
    if len(calls) > -(-len(texts) // batch_size):
        raise Mistake(f"`predict` was called {len(calls)} times, for batches of {calls}; ask full ones, and each once.")
    return given


@exercise(lambda draw: (draw.choices(_PLAIN, k=draw.randint(0, 9)), draw.randint(1, 4)), play=_watched)
def stream_answers(texts: list[str], batch_size: int) -> list[str]:
    """The answer to each text of an iterator, never holding more than a batch."""
    return [text.upper() for text in texts]
