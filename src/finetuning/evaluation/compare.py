"""Lesson 05: which of two models is better, how sure may one be, and where does it fail?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from finetuning import CourseError

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

    from finetuning.workspace import Workspace

ALPHA, POWER = 0.05, 0.8  # how often a test may cry wolf; how often it must see a difference that is there
SMALL = 50  # reviews; a smaller slice has an interval of twenty points or more, unless nearly all are right


def kept_answers(workspace: Workspace, truth: np.ndarray) -> dict[str, np.ndarray]:
    """For each method of the run that kept its label scores: whether it was right, an array of bool per test review.

    Raises CourseError when scores and test reviews do not match: then lesson 01 has run again since.
    """
    right = {}
    for row in workspace.results()["rows"]:
        scores = workspace.scores(row["method"])
        if scores is None:
            continue
        if len(scores) != len(truth):
            raise CourseError(
                f"{row['method']} kept scores of {len(scores)} test reviews, and there are {len(truth)} now; "
                f"run lesson {row['lesson']} again."
            )
        right[row["method"]] = scores.argmax(axis=1) == truth
    return right


# Two models on the same reviews


def paired(
    first: np.ndarray, second: np.ndarray, *, level: float = 0.95, resamples: int = 10_000, seed: int = 1
) -> dict:
    """Compare two models review by review; ``first`` and ``second`` say whether each was right (bool or 0/1 arrays).

    McNemar's test in its exact form (McNemar 1947): of the reviews on which exactly one is right, each is a coin toss if
    the two are equally good. The interval is the percentile bootstrap over reviews of the difference of the accuracies;
    the kinds of reviews in a resample are multinomial, so they are drawn directly. Returns a dict: ``n``, ``only_first``,
    ``only_second``, ``p``, ``difference``, ``low``, ``high``. Raises CourseError for arrays that do not belong together.
    """
    from scipy.stats import binomtest

    first, second = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if first.shape != second.shape or not len(first):
        raise CourseError(
            f"A paired comparison needs both models' answers on the same reviews, not {len(first)} and {len(second)} of them."
        )
    n, only_first, only_second = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    shares = np.array([only_first, only_second, n - differing]) / n
    draws = np.random.default_rng(seed).multinomial(n, shares, resamples)
    low, high = np.quantile((draws[:, 0] - draws[:, 1]) / n, [(1 - level) / 2, (1 + level) / 2])
    return {
        "n": n,
        "only_first": only_first,
        "only_second": only_second,
        "p": float(binomtest(only_first, differing).pvalue) if differing else 1.0,
        "difference": (only_first - only_second) / n,
        "low": float(low),
        "high": float(high),
    }


def told_apart(pair: dict) -> bool:
    """Whether the data settle who is better: McNemar's p under ALPHA, and an interval of the difference without zero."""
    return pair["p"] < ALPHA and not pair["low"] <= 0 <= pair["high"]


def reviews_needed(pair: dict) -> int | None:
    """About how many test reviews it takes to see a difference like this one in POWER of all trials, at level ALPHA.

    Connor 1987 (Biometrics 43, 207-211): with a share ``s`` of reviews on which exactly one model is right and a
    difference ``d``, n = (z(1 - alpha/2) sqrt(s) + z(power) sqrt(s - d^2))^2 / d^2. None where the difference is zero.
    """
    from scipy.stats import norm

    share, difference = (pair["only_first"] + pair["only_second"]) / pair["n"], pair["difference"]
    if difference == 0:
        return None
    significance, power = norm.ppf(1 - ALPHA / 2), norm.ppf(POWER)
    needed = (significance * share**0.5 + power * (share - difference**2) ** 0.5) ** 2 / difference**2
    return int(np.ceil(needed))


def paired_verdict(first: str, second: str, pair: dict) -> str:
    """One sentence on two methods (names): who is better where the data say so, else how many reviews it would take."""
    size = f"{100 * abs(pair['difference']):.1f} points"
    if told_apart(pair):
        better, worse = (first, second) if pair["difference"] > 0 else (second, first)
        low, high = sorted((abs(100 * pair["low"]), abs(100 * pair["high"])))
        return f"{better} is better than {worse}: by {size} ({low:.1f} to {high:.1f}), p = {pair['p']:.2g}."
    start = f"{first} and {second} cannot be told apart on {pair['n']:,} reviews (p = {pair['p']:.2g})"
    needed = reviews_needed(pair)
    if needed is None:
        alike = "the same reviews" if pair["only_first"] == 0 else "equally many"
        return f"{start}: they got {alike} right."
    return f"{start}: were the difference of {size} real, about {_round(max(needed, pair['n'] + 1)):,} would be needed."


def _round(count):
    """A count upwards to two digits: an estimate should not look like more."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values adjusted for being several (Holm 1979): after it, one false alarm among them all happens in ALPHA of trials."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty_like(stepped)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def candidates(rows: list[dict], right: dict[str, np.ndarray]) -> list[str]:
    """The methods a reader may ship: the most accurate one and all that cannot be told apart from it, the fastest first.

    ``rows``: rows of ``results.json``; ``right``: as ``kept_answers`` gives it. Among equals the fastest in prediction leads.
    """
    named = {row["method"]: row for row in rows if row["method"] in right}
    best = max(named, key=lambda method: named[method]["accuracy"])
    equal = [method for method in named if method == best or not told_apart(paired(right[best], right[method]))]
    return sorted(equal, key=lambda method: -(named[method]["predict_reviews_per_second"] or 0))


# How sure is the model, and how sure may it be?


def reliability(confidence: np.ndarray, right: np.ndarray, edges: np.ndarray) -> pd.DataFrame:
    """Reviews by confidence: a DataFrame with ``reviews``, mean ``confidence`` and ``accuracy`` per bin that is not empty.

    A bin holds the confidences above one edge and up to the next; what lies on the first edge belongs to the first bin.
    """
    import pandas as pd

    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, len(edges) - 2)
    table = pd.DataFrame({"bin": bins, "confidence": confidence, "accuracy": np.asarray(right, dtype=float)})
    table = table.groupby("bin").agg(
        reviews=("accuracy", "size"), confidence=("confidence", "mean"), accuracy=("accuracy", "mean")
    )
    table.insert(0, "from", np.asarray(edges)[table.index])
    table.insert(1, "to", np.asarray(edges)[table.index + 1])
    return table.reset_index(drop=True)


def calibration_error(confidence: np.ndarray, right: np.ndarray, edges: np.ndarray) -> float:
    """Expected calibration error: the mean gap of confidence and accuracy over the bins, weighted by their reviews.

    Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    table = reliability(confidence, right, edges)
    return float((table["reviews"] * (table["confidence"] - table["accuracy"]).abs()).sum() / table["reviews"].sum())


def with_temperature(scores: np.ndarray, temperature: float) -> np.ndarray:
    """Label scores of shape (reviews, 2) made less sure (temperature over 1) or surer (under 1); no verdict changes.

    Guo et al. 2017, section 4.2: softmax(logits / temperature); logarithms of the scores serve as logits.
    """
    from scipy.special import softmax

    return softmax(np.log(np.clip(scores, 1e-6, 1)) / temperature, axis=1)  # kept scores have six decimals


def log_loss(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Minus the logarithm of the probability that each review's true label was given: an array of shape (reviews,)."""
    return -np.log(np.clip(scores, 1e-6, 1)[np.arange(len(truth)), truth])


def fit_temperature(scores: np.ndarray, truth: np.ndarray) -> float:
    """The temperature (between 1/20 and 20) that makes the mean log loss of these reviews smallest; fitted on validation."""
    from scipy.optimize import minimize_scalar

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
        f"a temperature of {temperature:.2f} {helped}: log loss {losses[0].mean():.3f} before, {losses[1].mean():.3f} after "
        f"(change {low:+.3f} to {high:+.3f}); calibration error {errors[0]:.3f} before, {errors[1]:.3f} after."
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
    """The smallest confidence from which on a share ``wanted`` of the answers is right; infinity where none reaches it."""
    coverage, accuracy = coverage_curve(confidence, right)
    answered = np.rint(coverage[accuracy >= wanted] * len(confidence)).astype(int)
    return float(np.sort(confidence)[-answered.max()]) if len(answered) else np.inf


# Slices


def interval(right: np.ndarray) -> tuple[float, float]:
    """Wilson's interval of an accuracy (Wilson 1927), 95 %: (low, high). Better than the bootstrap for few reviews."""
    from scipy.stats import binomtest

    found = binomtest(int(np.sum(right)), len(right)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def slices(split: Dataset) -> tuple[dict[str, np.ndarray], list[str]]:
    """Questions put to the test reviews: a dict of name -> bool array, and a list of sentences on what cannot be asked.

    By length in words (three parts of about equal size), and by trait and rating where the reviews have them.
    """
    found, missing = {}, []
    words = np.array([len(text.split()) for text in split["text"]])
    short, long = np.quantile(words, [1 / 3, 2 / 3])
    found[f"up to {short:.0f} words"] = words <= short
    found["in between"] = (words > short) & (words <= long)
    found[f"over {long:.0f} words"] = words > long
    traits, ratings = column(split, "traits", list), np.array(column(split, "rating", (int, float, str)))
    if names := sorted({trait for several in traits for trait in several if isinstance(trait, str)}):
        found |= {name: np.array([name in several for several in traits]) for name in names}
    else:
        missing.append("these reviews name no traits, so there are no slices by trait")
    if 0 < len(set(ratings.tolist())) <= 10:
        found |= {f"rating {value}": ratings == value for value in sorted(set(ratings.tolist()))}
    else:
        missing.append("these reviews have no rating in up to ten steps, so there are no slices by rating")
    return {name: rows for name, rows in found.items() if rows.any()}, missing


def column(split: Dataset, name: str, kind: type | tuple[type, ...]) -> list:
    """A column's values if all are of a kind, else none: a column of somebody else's data may only share its name."""
    values = split[name][:] if name in split.column_names else []
    return values if all(isinstance(value, kind) for value in values) else []


def slice_table(slices: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> pd.DataFrame:
    """Accuracy of two methods on each slice with Wilson's intervals: a DataFrame, a line per slice.

    ``right``: dict of two methods -> bool array. ``only`` counts the reviews that one method alone got right, ``p`` is McNemar's
    on the slice, ``p of all`` the same adjusted for the number of slices, ``note`` warns of slices under SMALL reviews.
    """
    import pandas as pd

    first, second = right
    lines = []
    for name, rows in slices.items():
        line = {"slice": name, "reviews": int(rows.sum())}
        for method in (first, second):
            answers = right[method][rows]
            low, high = interval(answers)
            line |= {method: answers.mean(), f"{method} low": low, f"{method} high": high}
        pair = paired(right[first][rows], right[second][rows])
        line |= {f"only {first}": pair["only_first"], f"only {second}": pair["only_second"], "p": pair["p"]}
        lines.append(line)
    table = pd.DataFrame(lines)
    table["p of all"] = holm(table["p"])
    table["note"] = np.where(table["reviews"] < SMALL, f"small: under {SMALL} reviews", "")
    return table


def slice_lines(table: pd.DataFrame) -> list[str]:
    """What a ``slice_table`` allows to say: sentences on the slices where one method is better, and on chance."""
    first, second = (name.removesuffix(" low") for name in table.columns if name.endswith(" low"))
    lines = []
    for better, worse in ((first, second), (second, first)):
        ahead = table[table[better] > table[worse]]
        clear = ahead[ahead["p"] < ALPHA]
        names = [f"{row['slice']} ({row[better]:.2f} against {row[worse]:.2f})" for _, row in clear.iterrows()]
        lines.append(f"{better} is better than {worse}: {'; '.join(names) or 'nowhere'}.")
        unclear = ahead[ahead["p"] >= ALPHA]["slice"]
        lines.append(f"{better} is ahead of {worse}, but not clearly: {', '.join(unclear) or 'nowhere'}.")
    kept = table[table["p of all"] < ALPHA]["slice"].tolist()
    lines.append(
        f"{len(table)} slices were searched: by chance alone up to {ALPHA * len(table):.1f} of them would look like that on average; "
        f"after Holm's correction there stay {', '.join(kept) or 'none'}."
    )
    return lines
