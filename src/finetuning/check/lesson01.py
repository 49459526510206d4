"""Lesson 01: leaks, stars become words, a length limit, padding."""

import random

from finetuning.check.exercise import exercise
from finetuning.data import fingerprint as words_of


def _reviews(draw: random.Random) -> tuple:
    """Training and test reviews that are copies of one another in other letters, or only look alike."""
    texts = [draw.choices(["a", "warm", "funny", "film", "very", "dull"], k=draw.randint(2, 4)) for _ in range(5)]
    texts += [texts[0][::-1], texts[1] + texts[1][-1:], [*texts[2], "end"]]

    def written(words: list[str]) -> str:
        return " ".join(draw.choice([word, word.upper()]) + draw.choice(["", "", ",", "."]) for word in words)

    return tuple([written(draw.choice(texts)) for _ in range(draw.randint(3, 6))] for _ in range(2))


@exercise(_reviews)
def leaks(train: list[str], test: list[str]) -> int:
    """How many training reviews also stand in test."""
    return sum(words_of(text) in map(words_of, test) for text in train)


@exercise(lambda draw: (draw.choices(range(1, 11), k=draw.randint(1, 8)),))
def star_words(stars: list[int]) -> list[str | None]:
    """The label word of each number of stars, None for what lies in the middle."""
    return ["negative" if s <= 4 else "positive" if s >= 7 else None for s in stars]


def _lengths(draw: random.Random) -> list[int]:
    return [draw.randint(1, 12) for _ in range(draw.randint(3, 9))]


# a share between two counts of reviews, so that no rounding decides
@exercise(lambda draw: ((x := _lengths(draw)), (draw.randrange(len(x)) + draw.choice([0.1, 0.5, 0.9])) / len(x)))
def length_limit(lengths: list[int], share: float) -> int:
    """The smallest limit that cuts no more than this share of the reviews."""
    return min(limit for limit in lengths if sum(x > limit for x in lengths) / len(lengths) <= share)


def _batches(lengths: list[int], size: int) -> list[list[int]]:
    return [lengths[i : i + size] for i in range(0, len(lengths), size)]


def _padded(lengths: list[int], size: int) -> int:
    return sum(len(batch) * max(batch) for batch in _batches(lengths, size))


@exercise(lambda draw: (_lengths(draw), draw.randint(1, 5)))
def padding_waste(lengths: list[int], batch_size: int) -> float:
    """The share of the computed tokens that is padding, batches taken in order."""
    return 1 - sum(lengths) / _padded(lengths, batch_size)
