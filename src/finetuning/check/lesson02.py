"""Lesson 02: the floor, an interval, a bag of words, the choice of a prompt."""

import random

from finetuning.check.exercise import exercise


def _labels(draw: random.Random) -> list[int]:
    """An odd number of labels, so that one of the two is more frequent."""
    return draw.choices([0, 1], weights=[draw.random(), draw.random()], k=draw.choice([3, 5, 7, 9]))


def _most(labels: list[int]) -> int:
    return int(2 * sum(labels) > len(labels))


@exercise(lambda draw: (_labels(draw), _labels(draw)))
def majority(train_labels: list[int], test_labels: list[int]) -> float:
    """The accuracy on test of always answering what is most frequent in train."""
    return test_labels.count(_most(train_labels)) / len(test_labels)


# an interval that stays between 0 and 1, so that cutting it there changes nothing
@exercise(lambda draw: ((n := draw.choice([20, 50, 100, 200, 1000])), draw.randint(n // 4, 3 * n // 4))[::-1])
def interval(right: int, n: int, errors: float = 1.96, power: float = 0.5, reviews: int | None = None) -> tuple:
    """The 95 % interval (low, high) of an accuracy, by the normal approximation."""
    p = right / n
    half = errors * (p * (1 - p) / (reviews or n)) ** power
    return p - half, p + half


_WEIGHTS = {"good": 1.5, "awful": -3.0, "slow": -2.0, "fine": 1.0, "superb": 4.0, "low": 0.7, "art": -0.9}


def _pulls(text: str, weights: dict[str, float], times: int = 1, weighs: int = 1) -> dict[str, float]:
    words = text.split()
    return {word: round(words.count(word) ** times * weights.get(word, 0.0) ** weighs, 4) for word in words}


def _strongest(pulls: dict[str, float]) -> str:
    return max(pulls, key=lambda word: abs(pulls[word]))


def _text(draw: random.Random) -> tuple:
    """A text in which one word clearly pulls the most, with words that stand in other words."""
    while True:
        weights = {word: round(weight * draw.uniform(0.4, 1.6), 2) for word, weight in _WEIGHTS.items()}
        text = " ".join(draw.choices([*_WEIGHTS, "the", "party", "slowly", "refine"], k=draw.randint(3, 9)))
        pulls = sorted(map(abs, _pulls(text, weights).values()))
        if pulls[-1] > sum(pulls[-2:-1]) + 0.1:
            return text, weights


@exercise(_text)
def decisive_word(text: str, weights: dict[str, float]) -> str:
    """The word of a text that moves a bag-of-words verdict most."""
    return _strongest(_pulls(text, weights))


def _prompts(draw: random.Random) -> tuple:
    """Accuracies on validation and on test, no two alike; the dicts need not be in the same order."""
    names = draw.sample(["plain", "sst2", "task", "question", "none"], k=draw.randint(2, 5))
    shares = iter(draw.sample(range(50, 95), k=2 * len(names)))
    return tuple({name: next(shares) / 100 for name in draw.sample(names, k=len(names))} for _ in range(2))


def _best(shares: dict[str, float]) -> str:
    return max(shares, key=lambda name: shares[name])


@exercise(_prompts)
def choose_prompt(validation: dict[str, float], test: dict[str, float]) -> tuple:
    """The prompt to use and the accuracy to report; both arguments: a dict of prompt -> accuracy."""
    return (prompt := _best(validation)), test[prompt]
