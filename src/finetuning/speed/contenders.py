"""Lesson 03: contenders measured in turn, side by side, and what each change gains."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuning.batching import length_sorted_batches, padded
from finetuning.errors import CourseError
from finetuning.speed import prediction, recipes
from finetuning.speed.prediction import PredictionRecipe
from finetuning.speed.recipes import Recipe, Training

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

    from transformers import T5ForConditionalGeneration


BATCH = 16


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
        total = spread([one / usual for one, usual in zip(rounds, first, strict=True)])
        steps = [one / other for one, other in zip(rounds, before, strict=True)]
        step = total["median"] / (rows[-1]["times"]["median"] if rows else 1.0)
        rows.append({"name": name, "speed": spread(rounds), "times": total, "step": step})
        rows[-1] |= {"step_low": min(steps), "step_high": max(steps)}
        before = rounds
    return rows


def tell_factors(rows: list[dict]) -> str:
    """The waterfall in words: the whole, the steps that gain in every round, and those that do not."""
    times = rows[-1]["times"]
    gained = sorted((row for row in rows[1:] if row["step_low"] > 1), key=lambda row: -row["step"])
    unclear = [row["name"] for row in rows[1:] if row["step_low"] <= 1 <= row["step_high"]]
    lost = [row["name"] for row in rows[1:] if row["step_high"] < 1]
    lines = [
        f"All together: {times['median']:.1f} times the speed of the usual way "
        f"({times['low']:.1f} to {times['high']:.1f} in {times['rounds']} rounds)."
    ]
    if gained:
        faster = [f"{row['name']} (x {row['step']:.2f})" for row in gained]
        lines.append(f"Faster in every round: {', '.join(faster)}.")
    if unclear:
        lines.append(f"Now faster, now slower, so no gain that one can see: {', '.join(unclear)}.")
    if lost:
        lines.append(f"Slower in every round, here: {', '.join(lost)}.")
    return "\n".join(lines)


def sample_batches(lengths: np.ndarray, size: int, count: int) -> list[np.ndarray]:
    """``count`` batches out of all length-sorted ones, evenly spread from long to short: an epoch in small."""
    batches = length_sorted_batches(lengths, size)
    whole = [batch for batch in batches if len(batch) == size]
    if not whole:
        raise CourseError(f"The bench needs at least {size} reviews; here are {len(lengths)}.")
    picks = (np.arange(count) + 0.5) * len(whole) / count
    return [whole[i] for i in sorted({int(pick) for pick in picks})]


def in_this_process(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """The result of ``work``, done in this process."""
    return work(*args, **named)


def in_own_process(work: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """The result of ``work``, done in a process of its own that has the libraries loaded and has computed nothing yet.

    Memory that a process has freed makes its next tensors cheap: of two contenders in one process the second would
    profit from the first. ``work`` and its arguments must be picklable. Raises CourseError if the process dies.
    """
    with ProcessPoolExecutor(1, mp_context=_fresh_processes()) as pool:
        try:
            return pool.submit(work, *args, **named).result()
        except BrokenProcessPool:
            raise CourseError(
                "A measurement's process was killed, most likely for want of memory; close other programs and start again."
            ) from None


@cache
def _fresh_processes() -> BaseContext:
    """Processes that start as copies of one that has done nothing but import (where the system cannot: as new ones)."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["finetuning.models", "transformers.models.t5.modeling_t5"])
    return context


def _take_turns(
    measure: Callable[..., dict], contenders: dict[str, Any], rounds: int, say: Callable[[str], None], **settings: Any
) -> dict[str, list[dict]]:
    """Every contender once per round: a dict of name -> what ``measure`` found, one dict per round."""
    found: dict[str, list[dict]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, contender in contenders.items():
            found[name].append(measure(contender, **settings))
            say(f"round {turn + 1} of {rounds}: {name:42} {found[name][-1]['speed']:8.2f} reviews/s")
    return found


def speeds(found: dict[str, list[dict]]) -> dict[str, list[float]]:
    """Reviews per second of each contender, one number per round."""
    return {name: [one["speed"] for one in rounds] for name, rounds in found.items()}


def train_contenders(
    make_model: Callable[[], T5ForConditionalGeneration],
    contenders: dict[str, Recipe],
    rows: recipes.Rows,
    labels: Sequence[int],
    answers: recipes.Rows,
    limit: int,
    *,
    rounds: int,
    batches: int,
    batch_size: int = BATCH,
    do: Callable[..., Any] = in_this_process,
    say: Callable[[str], None] = print,
) -> dict[str, list[dict]]:
    """What ``time_training`` finds for each recipe, in turn: a dict of name -> one dict per round.

    Used in lesson 03, too.

    ``do``: ``in_this_process``, or ``in_own_process`` for a process of its own each time.
    """
    return _take_turns(
        partial(do, time_training), contenders, rounds, say, make_model=make_model, rows=rows, labels=labels, answers=answers, limit=limit,
        batches=batches, batch_size=batch_size,
    )  # fmt: skip


def time_training(
    recipe: Recipe,
    *,
    make_model: Callable[[], T5ForConditionalGeneration],
    rows: recipes.Rows,
    labels: Sequence[int],
    answers: recipes.Rows,
    limit: int,
    batches: int,
    batch_size: int,
) -> dict[str, Any]:
    """Reviews per second of training by ``recipe`` (``speed``), and the ``seconds`` and ``widths`` of its batches.

    The recipe that pads everything to ``limit`` is timed on one random batch, as its batches are all alike; the others
    on ``batches`` batches from long to short.
    """
    chosen = [np.random.default_rng(1).permutation(len(rows))[:batch_size]]
    if recipe.grouped:
        chosen = sample_batches(np.array([len(row) for row in rows]), batch_size, batches)
    pairs = [([rows[i] for i in batch], [labels[i] for i in batch]) for batch in chosen]
    seconds = Training(make_model(), recipe, answers, limit).seconds(pairs)
    widths = [padded(some)[0].shape[1] if recipe.grouped else limit for some, _ in pairs]
    return {"speed": sum(map(len, chosen)) / seconds.sum(), "seconds": seconds.tolist(), "widths": widths}


def predict_contenders(
    make_model: Callable[[], T5ForConditionalGeneration],
    contenders: dict[str, PredictionRecipe],
    rows: recipes.Rows,
    words: Sequence[int],
    limit: int,
    *,
    rounds: int,
    do: Callable[..., Any] = in_this_process,
    say: Callable[[str], None] = print,
) -> dict[str, list[dict]]:
    """What ``time_prediction`` finds for each recipe, in turn: a dict of name -> one dict per round.

    Used in lesson 03, too.

    ``do``: as in ``train_contenders``.
    """
    return _take_turns(
        partial(do, time_prediction), contenders, rounds, say, make_model=make_model, rows=rows, words=words, limit=limit
    )  # fmt: skip


def time_prediction(
    recipe: PredictionRecipe,
    *,
    make_model: Callable[[], T5ForConditionalGeneration],
    rows: recipes.Rows,
    words: Sequence[int],
    limit: int,
) -> dict[str, Any]:
    """Reviews per second of answering ``rows`` (``speed``), the ``logits``, (reviews, 2), and the tokens written."""
    model = make_model().eval()
    written: list[int] = []
    answer = prediction.answer_by(recipe, model, words, limit, written)
    batches = prediction.prediction_batches(recipe, [len(row) for row in rows], BATCH)
    with recipes.memory_kept(recipe.keep_memory):
        logits, seconds = prediction.predict(answer, rows, batches)
    tokens = float(np.mean(written)) if written else 1.0
    return {"speed": len(rows) / seconds, "logits": logits, "tokens_written": tokens}
