"""Lesson 07: which of two models is better on the same reviews, and how sure may one be?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, norm

from finetuning.errors import CourseError
from finetuning.results import ResultRow
from finetuning.workspace import Workspace

ALPHA, POWER = 0.05, 0.8  # shares: of false alarms that a test may raise, of real differences that it must see


def kept_answers(workspace: Workspace, truth: np.ndarray) -> dict[str, np.ndarray]:
    """For each method of the run that kept its label scores: whether it was right, an array of bool per test review.

    Raises CourseError when scores and test reviews do not match: then lesson 01 has run again since.
    """
    right = {}
    for row in workspace.results().rows:
        scores = workspace.scores(row.method)
        if scores is None:
            continue
        if len(scores) != len(truth):
            kept = f"{row.method} kept scores of {len(scores)} test reviews"
            raise CourseError(f"{kept}, and there are {len(truth)} now; run lesson {row.lesson} again.")
        right[row.method] = scores.argmax(axis=1) == truth
    return right


@dataclass(frozen=True)
class PairedComparison:
    """Two models on the same reviews: shares and differences of accuracies lie between -1 and 1."""

    n: int  # reviews
    only_first: int  # reviews that the first alone got right
    only_second: int
    p: float  # of McNemar's exact test, two-sided
    difference: float  # the first's accuracy less the second's
    low: float  # of the difference's bootstrap interval
    high: float


def paired(
    first: np.ndarray, second: np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 1
) -> PairedComparison:
    """Compare two models review by review; ``first`` and ``second`` say whether each was right (bool or 0/1 arrays).

    McNemar's test in its exact form (McNemar 1947): of the reviews on which exactly one is right, each is a coin toss
    if the two are equally good. The interval is the percentile bootstrap over reviews of the difference of the
    accuracies; the kinds of reviews in a resample are multinomial, so they are drawn directly. Raises CourseError for
    arrays that do not belong together.
    """
    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape or not len(first):
        given = f"{len(first)} and {len(second)} of them"
        raise CourseError(f"A paired comparison needs both models' answers on the same reviews, not {given}.")
    n, only_first, only_second = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    shares = np.array([only_first, only_second, n - differing]) / n
    draws = np.random.default_rng(seed).multinomial(n, shares, resamples)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [(1 - level) / 2, (1 + level) / 2])
    p = float(binomtest(only_first, differing).pvalue) if differing else 1.0
    return PairedComparison(n, only_first, only_second, p, (only_first - only_second) / n, float(low), float(high))


def is_settled(pair: PairedComparison) -> bool:
    """Whether the data settle who is better: McNemar's p under ALPHA, and an interval without zero."""
    return pair.p < ALPHA and not pair.low <= 0 <= pair.high


def reviews_needed(pair: PairedComparison) -> int | None:
    """About how many test reviews it takes to see a difference like this one in POWER of all trials, at level ALPHA.

    Connor 1987 (Biometrics 43, 207-211): with a share ``s`` of reviews on which exactly one model is right and a
    difference ``d``, n = (z(1 - alpha/2) sqrt(s) + z(power) sqrt(s - d^2))^2 / d^2. None where the difference is zero.
    """
    share, difference = (pair.only_first + pair.only_second) / pair.n, pair.difference
    if difference == 0:
        return None
    significance, power = norm.ppf(1 - ALPHA / 2), norm.ppf(POWER)
    needed = (significance * share**0.5 + power * (share - difference**2) ** 0.5) ** 2 / difference**2
    return int(np.ceil(needed))


def paired_verdict(first: str, second: str, pair: PairedComparison) -> str:
    """One sentence on two methods (names): who is better where the data say so, else how many reviews it would take."""
    size = f"{100 * abs(pair.difference):.1f} points"
    if is_settled(pair):
        better, worse = (first, second) if pair.difference > 0 else (second, first)
        low, high = sorted((abs(100 * pair.low), abs(100 * pair.high)))
        return f"{better} is better than {worse}: by {size} ({low:.1f} to {high:.1f}), p = {pair.p:.2g}."
    start = f"{first} and {second} cannot be told apart on {pair.n:,} reviews (p = {pair.p:.2g})"
    needed = reviews_needed(pair)
    if needed is None:
        alike = "the same reviews" if pair.only_first == 0 else "equally many"
        return f"{start}: they got {alike} right."
    needed = max(needed, pair.n + 1)
    unit = 10 ** max(0, len(str(needed)) - 2)  # upwards to two digits: an estimate should not look like more
    return f"{start}: were the difference of {size} real, about {-(-needed // unit) * unit:,} would be needed."


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values adjusted for being several (Holm 1979): one false alarm among them all in ALPHA of trials."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty_like(stepped)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def candidates(rows: Sequence[ResultRow], right: dict[str, np.ndarray]) -> list[str]:
    """The methods a reader may ship.

    The most accurate one and all that cannot be told apart from it, the fastest first. ``right``: as ``kept_answers``
    gives it. Among equals the fastest in prediction leads.
    """
    named = {row.method: row for row in rows if row.method in right}
    best = max(named, key=lambda method: named[method].accuracy)
    equal = [method for method in named if method == best or not is_settled(paired(right[best], right[method]))]
    return sorted(equal, key=lambda method: -(named[method].predict_reviews_per_second or 0))
