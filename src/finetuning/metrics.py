"""Accuracy, F1 and their uncertainty. Lesson 02 introduces them; every later lesson uses them."""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score

from finetuning.results import ResultRow

_FEATURES = Features({"predictions": Value("int32"), "references": Value("int32")})


class Accuracy(evaluate.Metric):
    """Share of right predictions; scikit-learn's number behind the ``evaluate`` interface, so that no Hub is needed."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description="accuracy", citation="", features=_FEATURES)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class F1(evaluate.Metric):
    """Harmonic mean of precision and recall of the positive class."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description="F1", citation="", features=_FEATURES)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {"f1": float(f1_score(references, predictions, zero_division=0))}


def classification_metrics() -> evaluate.CombinedEvaluations:
    """Accuracy and F1 in one ``evaluate`` object: ``.compute(predictions=…, references=…)`` -> a dict."""
    return evaluate.combine([Accuracy(keep_in_memory=True), F1(keep_in_memory=True)])


def bootstrap_interval(
    correct: np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 1
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean (Efron and Tibshirani 1993, chapter 13): (low, high).

    ``correct`` is an array of 0/1 (or bool), one per test review. For 0/1 values the number of right answers in a
    resample is binomial, so it is drawn directly instead of review by review.
    """
    correct = np.asarray(correct, dtype=float)
    n = len(correct)
    means = np.random.default_rng(seed).binomial(n, correct.mean(), resamples) / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(right: np.ndarray) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (Wilson 1927): (low, high).

    ``right`` is an array of 0/1 (or bool), not empty. Like the bootstrap it speaks of other reviews of the same kind,
    and of nothing else; unlike it, it does not shrink to a point where all are right, or none.
    """
    found = binomtest(int(np.sum(right)), len(right)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def measure(
    lesson: str, method: str, predictions: np.ndarray, labels: np.ndarray, *, seed: int = 1, **measured: Any
) -> ResultRow:
    """A row of the results table from ``predictions`` and ``labels``, two arrays of 0 and 1, one per test review.

    Accuracy with its 95 % interval, F1 and the number of test reviews, plus ``measured``: other fields of the row.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    scores = classification_metrics().compute(predictions=predictions, references=labels)
    low, high = bootstrap_interval(predictions == labels, seed=seed)
    return ResultRow(lesson, method, accuracy_low=low, accuracy_high=high, n_test=len(labels), **scores, **measured)
