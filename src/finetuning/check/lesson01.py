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


@exercise(
    fixed=[
        *((["A joy.", "Dull."], ["a JOY", "Great."]), (["A joy.", "a JOY.", "Dull."], ["A joy"])),
        *((["Great."], ["great", "GREAT."]), (["Dull.", "Dull."], ["Great."]), (["A joy to watch."], ["A joy"])),
        *((["A joy"], ["A joy to watch."]), (["Good, not bad."], ["Bad, not good."]), (["A joy."], []), ([], ["A."])),
    ],
    drawn=_reviews,
)
def leaks(train: list[str], test: list[str]) -> int:
    """How many training reviews also stand in test."""
    held = {words_of(text) for text in test}
    return sum(words_of(text) in held for text in train)


@exercise(
    fixed=[([1, 9],), ([4, 5, 6, 7],), ([10, 2, 6, 8, 5, 3, 7, 1, 4, 9],), ([],)],
    drawn=lambda draw: (draw.choices(range(1, 11), k=draw.randint(1, 8)),),
)
def star_words(stars: list[int]) -> list[str | None]:
    """The label word of each number of stars, None for what lies in the middle."""
    return ["negative" if s <= 4 else "positive" if s >= 7 else None for s in stars]


def _lengths(draw: random.Random) -> list[int]:
    return [draw.randint(1, 12) for _ in range(draw.randint(3, 9))]


@exercise(
    fixed=[
        *(([40, 10, 30, 20], 0.25), ([40, 10, 30, 20], 0), ([40, 10, 30, 20], 0.3), ([5, 9, 5, 5], 0.25)),
        *(([9, 9, 9, 1], 0.5), ([7], 0.5)),
    ],
    # a share between two counts of reviews, so that no rounding decides
    drawn=lambda draw: ((x := _lengths(draw)), (draw.randrange(len(x)) + 0.5) / len(x)),
)
def length_limit(lengths: list[int], share: float) -> int:
    """The smallest limit that cuts no more than this share of the reviews."""
    return min(limit for limit in lengths if sum(x > limit for x in lengths) / len(lengths) <= share)


def _batches(lengths: list[int], size: int) -> list[list[int]]:
    return [lengths[i : i + size] for i in range(0, len(lengths), size)]


def _padded(lengths: list[int], size: int) -> int:
    return sum(len(batch) * max(batch) for batch in _batches(lengths, size))


@exercise(
    fixed=[([2, 4, 6], 2), ([6, 2, 10, 6, 4], 2), ([7, 1, 1], 3), ([3, 9], 1), ([5, 2], 8), ([4], 2)],
    drawn=lambda draw: (_lengths(draw), draw.randint(1, 5)),
)
def padding_waste(lengths: list[int], batch_size: int) -> float:
    """The share of the computed tokens that is padding, batches taken in order."""
    return 1 - sum(lengths) / _padded(lengths, batch_size)
