"""Accuracy, F1 and their uncertainty. Lesson 02 introduces them; every later lesson uses them."""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from numpy.typing import ArrayLike
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, f1_score

from finetuning.results import ResultRow


class AccuracyAndF1(evaluate.Metric):
    """Share of right predictions, and the harmonic mean of precision and recall of label 1.

    Of more than two labels it is the mean over the labels (macro-F1), in which a rare one counts as much as any other.
    Scikit-learn's numbers behind the ``evaluate`` interface, so that no Hub is needed.
    """

    def _info(self) -> evaluate.MetricInfo:
        features = Features({"predictions": Value("int32"), "references": Value("int32")})
        return evaluate.MetricInfo(description="accuracy and F1", citation="", features=features)

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        average = "binary" if max(*references, *predictions) < 2 else "macro"
        f1 = f1_score(references, predictions, average=average, zero_division=0)
        return {"accuracy": float(accuracy_score(references, predictions)), "f1": float(f1)}


def classification_metrics() -> evaluate.Metric:
    """Accuracy and F1 in one ``evaluate`` object: ``.compute(predictions=…, references=…)`` -> a dict."""
    return AccuracyAndF1(keep_in_memory=True)


def wilson_interval(correct: ArrayLike) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy: (low, high).

    ``correct`` is an array of 0/1 (or bool), one per test review. It covers other reviews of the same kind, not other
    trainings or machines. It also holds where the bootstrap does not: where all or none are right, every draw is alike.
    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    correct = np.asarray(correct)
    wilson = binomtest(int(correct.sum()), len(correct)).proportion_ci(method="wilson")
    return float(wilson.low), float(wilson.high)


def measure(lesson: str, method: str, predictions: np.ndarray, labels: np.ndarray, **measured: Any) -> ResultRow:
    """A row of the results table from ``predictions`` and ``labels``, two arrays of 0, 1, …, one per test review.

    Accuracy with its 95 % interval, F1 and the number of test reviews, plus ``measured``: other fields of the row.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    scores = classification_metrics().compute(predictions=predictions, references=labels)
    low, high = wilson_interval(predictions == labels)
    return ResultRow(lesson, method, accuracy_low=low, accuracy_high=high, n_test=len(labels), **scores, **measured)
