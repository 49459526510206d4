"""Lesson 07: how sure is the model, and how sure may it be?"""

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from finetuning.metrics import wilson_interval


def _bins(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The number of each confidence's bin."""
    return np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)


def reliability(confidence: np.ndarray, right: np.ndarray, edges: np.ndarray) -> pd.DataFrame:
    """Reviews by confidence.

    A DataFrame with ``reviews``, mean ``confidence`` and ``accuracy`` with Wilson's 95 % interval (``low``, ``high``)
    per bin that is not empty. A bin holds the confidences above one edge and up to the next; what lies on the first
    edge belongs to the first bin.
    """
    bins = _bins(confidence, edges)
    table = pd.DataFrame({"bin": bins, "confidence": confidence, "accuracy": np.asarray(right, dtype=float)})
    table = table.groupby("bin").agg(
        reviews=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    intervals = [wilson_interval(np.asarray(right)[bins == which]) for which in table.index]
    table["low"], table["high"] = zip(*intervals, strict=True)
    table.insert(0, "from", np.asarray(edges)[table.index])
    table.insert(1, "to", np.asarray(edges)[table.index + 1])
    return table.reset_index(drop=True)


def calibration_error(confidence: np.ndarray, right: np.ndarray, edges: np.ndarray) -> float:
    """Expected calibration error: the mean gap of confidence and accuracy over the bins, weighted by their reviews.

    Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    # bin by bin, times its reviews
    gaps = np.bincount(_bins(confidence, edges), weights=np.asarray(confidence) - right)
    return float(np.abs(gaps).sum() / len(confidence))


def error_of_the_calibrated(confidence: np.ndarray, edges: np.ndarray, *, seed: int = 1) -> float:
    """The calibration error that a perfectly calibrated model of these confidences would show: chance alone.

    The mean of 200 drawings in which each answer is right as often as its confidence says.
    """
    draws = np.random.default_rng(seed).random((200, len(confidence))) < confidence
    return float(np.mean([calibration_error(confidence, right, edges) for right in draws]))


def with_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Label scores, (reviews, labels), made less sure (temperature over 1) or surer (under 1); no verdict changes.

    Guo et al. 2017, section 4.2: softmax(logits / temperature); logarithms of the scores serve as logits.
    """
    return softmax(np.log(np.clip(scores, 1e-6, 1)) / temperature, axis=1)  # kept scores have six decimals


def log_loss(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Minus the logarithm of the probability that each review's true label was given: an array of shape (reviews,)."""
    return -np.log(np.clip(scores, 1e-6, 1)[np.arange(len(truth)), truth])


def fit_temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    """The temperature, between 1/20 and 20, that makes the mean log loss smallest; fitted on validation."""
    loss = lambda exponent: log_loss(with_temperature(scores, np.exp(exponent)), truth).mean()  # noqa: E731
    return float(np.exp(minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded").x))


def calibration_verdict(
    scores: np.ndarray, temperature: float, truth: np.ndarray, edges: np.ndarray, *, seed: int = 1
) -> str:
    """One sentence on whether the temperature helped on these reviews, which it was not fitted on.

    Decided by the log loss, whose mean change gets a bootstrap interval; the calibration error stands beside it.
    """
    errors, losses = [], []
    for given in (scores, with_temperature(scores, temperature)):
        errors.append(calibration_error(given.max(axis=1), given.argmax(axis=1) == truth, edges))
        losses.append(log_loss(given, truth))
    change = losses[1] - losses[0]
    rng, n = np.random.default_rng(seed), len(change)
    low, high = np.quantile([change[rng.integers(n, size=n)].mean() for _ in range(2000)], [0.025, 0.975])
    helped = "helped" if high < 0 else "did harm" if low > 0 else "made no difference that these reviews could show"
    return (
        f"a temperature of {temperature:.2f} {helped}: log loss {losses[0].mean():.3f} before, {losses[1].mean():.3f} "
        f"after (change {low:+.3f} to {high:+.3f}); calibration error {errors[0]:.3f} before, {errors[1]:.3f} after."
    )


def coverage_curve(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy when only the surest reviews are answered: arrays ``coverage`` (rising to 1) and ``accuracy``.

    One point per distinct confidence: reviews of equal confidence are answered together or not at all.
    """
    order = np.argsort(-np.asarray(confidence), kind="stable")
    answered = np.arange(1, len(order) + 1)
    accuracy = np.cumsum(np.asarray(right, dtype=float)[order]) / answered
    last = np.append(np.diff(np.asarray(confidence)[order]) != 0, True)
    return answered[last] / len(order), accuracy[last]


def threshold_for(confidence: np.ndarray, right: np.ndarray, wanted: float) -> float:
    """The smallest confidence from which on a share ``wanted`` of the answers is right; infinity where none is."""
    coverage, accuracy = coverage_curve(confidence, right)
    answered = np.rint(coverage[accuracy >= wanted] * len(confidence)).astype(int)
    return float(np.sort(confidence)[-answered.max()]) if len(answered) else np.inf
