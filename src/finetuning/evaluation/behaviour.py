"""Lesson 07: what a model does when its input is changed on purpose, and which words carried a decision."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment

from finetuning.metrics import wilson_interval
from finetuning.profiles import ASSETS
from finetuning.reviews import LABEL_WORDS

TOLERANCE = 0.1  # how far a probability may move against the change before it counts (Ribeiro et al. 2020, section 2)
PRAISE, BLAME = "I loved it and recommend it to everyone.", "I hated it and recommend it to nobody."
PIECES = 150  # parts in which a review is covered up; the words of a longer one are covered several at a time


def with_typo(text: str, rng: np.random.Generator) -> str | None:
    """The text with two neighbouring letters swapped inside one of its words of five letters or more.

    None where it has none. First and last letter stay, so that a reader hardly stumbles. ``rng``: a numpy random
    generator.
    """
    places = [
        place
        for word in re.finditer(r"[A-Za-z]{5,}", text)
        for place in range(word.start() + 1, word.end() - 2)
        if text[place].lower() != text[place + 1].lower()
    ]
    if not places:
        return None
    place = int(rng.choice(places))
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def plain_praise() -> list[str]:
    """Thirty small sentences of praise: "The acting was good." and its like."""
    things = ("acting", "story", "music", "script", "ending")
    words = ("good", "great", "funny", "moving", "convincing", "clever")
    return [f"The {thing} was {word}." for thing in things for word in words]


def negated(text: str) -> str:
    """A sentence of ``plain_praise`` with a "not" in it."""
    return text.replace(" was ", " was not ")


def only_for_opinions(words: Sequence[str], *lists: list) -> tuple[list, ...]:
    """The lists as they are where the label words are negative and positive; else empty ones, and a sentence why."""
    if tuple(words) == LABEL_WORDS:
        return lists
    print(
        f"the labels are {', '.join(words)}: what asks for praise, blame and a not is for negative and positive alone"
    )
    return tuple([] for _ in lists)


def difference(before: str, after: str, width: int = 60) -> tuple[str, ...]:
    """A pair cut down, for reading, to where its texts part ways: two strings of about ``width`` characters."""
    at = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), min(len(before), len(after)))
    start = max(0, at - width // 3)
    return tuple(
        ("..." if start else "") + text[start : start + width] + ("..." if start + width < len(text) else "")
        for text in (before, after)
    )


# An expectation: from the label scores, (pairs, labels), of the pairs' first and second texts, which pairs fail (bool).


def same_verdict(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Invariance: a pair fails when the verdict changes."""
    return before.argmax(axis=1) != after.argmax(axis=1)


def not_less(label: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Direction: a pair fails when ``label`` becomes less probable by more than TOLERANCE."""
    return lambda before, after: after[:, label] < before[:, label] - TOLERANCE


def called(side: int, label: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Verdict: a pair fails when its first (``side`` 0) or second (1) text is not called ``label``."""
    return lambda *scores: scores[side].argmax(axis=1) != label


def negation_lines(pairs: list[tuple[str, str]], models: dict[str, Callable]) -> list[str]:
    """A ``negation_verdict`` on each of the ``models`` (as in ``failure_table``); none without pairs."""
    texts = list(zip(*pairs, strict=True))
    return [negation_verdict(name, *(score(list(some)) for some in texts)) for name, score in models.items() if pairs]


def negation_verdict(name: str, plain: np.ndarray, negated: np.ndarray) -> str:
    """One sentence on what a model does with "not".

    ``plain`` and ``negated``: its label scores, of shape (sentences, 2), of sentences of praise and of the same with a
    "not". Only a sentence that it calls positive can show whether the "not" turns its answer.
    """
    positive = plain.argmax(axis=1) == 1
    turned = int((negated.argmax(axis=1) == 0)[positive].sum())
    start = f"{name} calls {positive.sum()} of {len(plain)} plain sentences positive"
    if positive.sum() < len(plain) / 2:
        return f"{start}: too few to say what it does with a not."
    if turned == positive.sum():
        return f"{start}, and a not turns every one of them."
    return f"{start}, and a not turns {turned or 'none'} of them."


def failure_table(
    tests: dict[str, tuple[list, Callable]], models: dict[str, Callable[[Sequence[str]], np.ndarray]]
) -> pd.DataFrame:
    """How often each model fails each test, with Wilson's 95 % interval: a DataFrame, a line per test.

    ``tests``: name -> (list of (before, after), expectation); ``models``: name -> function from texts to label scores
    of shape (texts, labels). A test without pairs is left out.
    """
    tests = {name: test for name, test in tests.items() if test[0]}
    texts = sorted({text for pairs, _ in tests.values() for pair in pairs for text in pair})
    place = {text: row for row, text in enumerate(texts)}
    table: dict[str, dict[str, Any]] = {name: {"pairs": len(pairs)} for name, (pairs, _) in tests.items()}
    for model, predict in models.items():
        scores = np.asarray(predict(texts))
        for name, (pairs, expectation) in tests.items():
            before, after = (scores[[place[pair[side]] for pair in pairs]] for side in (0, 1))
            failed = expectation(before, after)
            low, high = wilson_interval(failed)
            table[name][f"{model} fails"] = f"{failed.mean():.1%} ({low:.1%} to {high:.1%})"
    return pd.DataFrame.from_dict(table, orient="index")


class MarkedText:
    """A text whose pieces carry a number each: drawn in colour in a notebook, in plain signs elsewhere.

    ``weights``: how much the probability of the verdict falls without the piece; blue spoke for it, orange against it.
    """

    def __init__(self, pieces: Sequence[str], weights: Sequence[float] | np.ndarray, verdict: str) -> None:
        self.pieces, self.weights, self.verdict = list(pieces), np.asarray(weights, dtype=float), verdict
        self.top = max(np.abs(self.weights).max(), 1e-9)

    def _repr_html_(self) -> str:
        template = Environment(autoescape=True).from_string((ASSETS / "marked.html.j2").read_text(encoding="utf-8"))
        pieces = zip(self.pieces, self.weights, strict=True)
        return template.render(pieces=pieces, top=self.top, verdict=self.verdict)

    def __repr__(self) -> str:
        """The text with its strongest pieces marked ``[+piece]`` (for the verdict) and ``[-piece]`` (against it)."""
        marked = []
        for piece, weight in zip(self.pieces, self.weights, strict=True):
            strong = abs(weight) > 0.3 * self.top
            marked.append(f"[{'+' if weight > 0 else '-'}{piece}]" if strong else piece)
        return f"{' '.join(marked)}\n(verdict: {self.verdict}; [+for it] [-against it], strongest {self.top:.2f})"


def occlusion(text: str, predict: Callable[[Sequence[str]], np.ndarray], label_words: Sequence[str]) -> MarkedText:
    """Which words carried the verdict: a ``MarkedText`` of how much its probability falls when each word is left out.

    The idea is Zeiler and Fergus' (2014, section 4.3) for pictures. ``predict`` maps texts to scores of shape (texts,
    labels). A text of more than PIECES words is covered several neighbouring words at a time.
    """
    words = text.split()
    step = -(-len(words) // PIECES)
    starts = range(0, len(words), step)
    without = [" ".join(words[:start] + words[start + step :]) for start in starts]
    scores = np.asarray(predict([text, *without]))
    label = int(scores[0].argmax())
    weights = scores[0, label] - scores[1:, label]
    pieces = [" ".join(words[start : start + step]) for start in starts]
    return MarkedText(pieces, weights, f"{label_words[label]} with probability {scores[0, label]:.2f}")
