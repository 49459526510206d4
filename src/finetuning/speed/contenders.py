"""Lesson 03: contenders measured in turn, side by side, and what each change gains."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import T5ForConditionalGeneration

from finetuning.batching import length_sorted_batches, padded
from finetuning.errors import CourseError
from finetuning.labels import Rows
from finetuning.speed.prediction import BATCH, PredictionRecipe, answer_by, predict, prediction_batches
from finetuning.speed.recipes import Recipe, Training, keep_freed_memory


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, lowest and highest of a contender's rounds."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "rounds": len(values)}


def factors(speeds: dict[str, list[float]]) -> list[dict]:
    """Each contender's speed, its ratio to the one before, and to the first: rows of a waterfall.

    ``speeds``: name -> one number per round, in the order of the changes. Ratios are taken within a round, then their
    median; so that the steps multiply to the total, ``step`` is the quotient of two totals. ``step_low`` and
    ``step_high`` are the lowest and highest of the rounds.
    """
    first = before = next(iter(speeds.values()))
    rows: list[dict] = []
    for name, rounds in speeds.items():
        total = spread([speed / usual for speed, usual in zip(rounds, first, strict=True)])
        steps = [speed / other for speed, other in zip(rounds, before, strict=True)]
        step = total["median"] / (rows[-1]["times"]["median"] if rows else 1.0)
        rows.append({"name": name, "speed": spread(rounds), "times": total, "step": step})
        rows[-1] |= {"step_low": min(steps), "step_high": max(steps)}
        before = rounds
    return rows


def factors_verdict(rows: list[dict]) -> str:
    """The waterfall in words: the whole, the steps that gain in every round, and those that do not."""
    times = rows[-1]["times"]
    gained = sorted((row for row in rows[1:] if row["step_low"] > 1), key=lambda row: -row["step"])
    unclear = [row["name"] for row in rows[1:] if row["step_low"] <= 1 <= row["step_high"]]
    lost = [row["name"] for row in rows[1:] if row["step_high"] < 1]
    rounds = f"{times['low']:.1f} to {times['high']:.1f} in {times['rounds']} rounds"
    lines = [f"All together: {times['median']:.1f} times the speed of the usual recipe ({rounds})."]
    groups = {
        "Faster in every round": [f"{row['name']} (x {row['step']:.2f})" for row in gained],
        "Faster in some rounds and slower in others, so no clear gain": unclear,
        "Slower in every round, here": lost,
    }
    return "\n".join(lines + [f"{group}: {', '.join(names)}." for group, names in groups.items() if names])


def sample_batches(lengths: np.ndarray, size: int, count: int) -> list[np.ndarray]:
    """``count`` batches out of all length-sorted ones, evenly spread from long to short: an epoch in small."""
    batches = length_sorted_batches(lengths, size)
    whole = [batch for batch in batches if len(batch) == size]
    if not whole:
        raise CourseError(f"A batch takes {size} reviews, and there are {len(lengths)}; raise limit= or add reviews.")
    picks = (np.arange(count) + 0.5) * len(whole) / count
    return [whole[i] for i in sorted({int(pick) for pick in picks})]


def take_turns(
    measure: Callable[..., dict], contenders: dict[str, Any], *, rounds: int,
    say: Callable[[str], Any] = lambda line: None, **settings: Any,
) -> dict[str, list[dict]]:  # fmt: skip
    """Every contender once per round: a dict of name -> what ``measure`` found, one dict per round.

    ``measure`` is ``time_training`` or ``time_prediction``; ``settings`` are its further arguments. ``say`` is handed a
    line of progress after each.
    """
    measured: dict[str, list[dict]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, contender in contenders.items():
            measured[name].append(measure(contender, **settings))
            say(f"round {turn + 1} of {rounds}: {name:42} {measured[name][-1]['speed']:8.2f} reviews/s")
    return measured


def speeds(measured: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Reviews per second of each contender, one number per round."""
    return {name: [turn["speed"] for turn in rounds] for name, rounds in measured.items()}


def time_training(
    recipe: Recipe, *, make_model: Callable[[], T5ForConditionalGeneration], rows: Rows, labels: Sequence[int],
    answers: Rows, limit: int, batches: int, batch_size: int = BATCH,
) -> dict[str, Any]:  # fmt: skip
    """Reviews per second of training by ``recipe`` (``speed``), and the ``seconds`` and ``widths`` of its batches.

    The recipe that pads everything to ``limit`` is timed on one random batch, as its batches are all alike; the others
    on ``batches`` batches from long to short. ``rows``, ``labels``: the reviews; ``answers``: as for ``Training``.
    """
    chosen = [np.random.default_rng(1).permutation(len(rows))[:batch_size]]
    if recipe.grouped:
        chosen = sample_batches(np.array([len(row) for row in rows]), batch_size, batches)
    pairs = [([rows[i] for i in batch], [labels[i] for i in batch]) for batch in chosen]
    seconds = Training(make_model(), recipe, answers, limit).seconds(pairs)
    widths = [padded(batch)[0].shape[1] if recipe.grouped else limit for batch, _ in pairs]
    return {"speed": sum(map(len, chosen)) / seconds.sum(), "seconds": seconds.tolist(), "widths": widths}


def time_prediction(
    recipe: PredictionRecipe, *, make_model: Callable[[], T5ForConditionalGeneration], rows: Rows, words: Sequence[int],
    limit: int,
) -> dict[str, Any]:  # fmt: skip
    """Reviews per second of answering ``rows`` by ``recipe`` (``speed``), and the ``logits``, (reviews, words)."""
    answer = answer_by(recipe, make_model().eval(), words, limit)
    batches = prediction_batches(recipe, [len(row) for row in rows], BATCH)
    keep_freed_memory(recipe.keep_memory)
    logits, seconds = predict(answer, rows, batches)
    return {"speed": len(rows) / seconds, "logits": logits}
