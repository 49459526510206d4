"""Where the time of a step goes, by class of operators."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from finetuning.labels import Rows
from finetuning.speed import recipes
from finetuning.speed.contenders import BATCH
from finetuning.speed.prediction import PredictionRecipe, answer_by, predict, prediction_batches
from finetuning.speed.recipes import Recipe, Training

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration


OPERATIONS = (  # classes of operators in the profiles, by name
    ("matrix products of attention", r"bmm|einsum"),
    ("matrix products", r"mm$|linear|addmm"),
    ("softmax", r"softmax"),
    ("dropout", r"dropout|bernoulli|native_dropout"),
    ("optimizer", r"adam|lerp|addcdiv|addcmul|sqrt"),
    ("copies and casts", r"copy_|_to_copy|cat$|clone|fill_|zero_|index|embedding"),
    (
        "element by element",
        r"add|mul|sub|div|pow|sum|mean|rsqrt|relu|clamp|threshold|round|aminmax|exp|log|neg|abs|where|norm",
    ),
)


def operator_profile(work: Callable[[], Any]) -> dict[str, float]:
    """Where the time of ``work`` goes: a dict of class of operators -> share, the largest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as measured:
        work()
    shares: dict[str, float] = {}
    for event in measured.key_averages():
        name = event.key.split("::")[-1].lower()
        kind = next((kind for kind, pattern in OPERATIONS if re.search(pattern, name)), "the rest")
        shares[kind] = shares.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(shares.values())
    return {kind: micro / total for kind, micro in sorted(shares.items(), key=lambda item: -item[1])}


def profile_training(
    make_model: Callable[[], T5ForConditionalGeneration],
    recipe: Recipe,
    *,
    pair: tuple[Rows, Sequence[int]],
    answers: Rows,
    limit: int,
) -> dict[str, float]:
    """The ``operator_profile`` of one step by ``recipe`` on a batch of (rows, labels)."""
    training = Training(make_model(), recipe, answers, limit)
    recipes.keep_freed_memory(recipe.keep_memory)
    training.step(*pair)
    return operator_profile(partial(training.step, *pair))


def profile_prediction(
    make_model: Callable[[], T5ForConditionalGeneration],
    recipe: PredictionRecipe,
    *,
    rows: Rows,
    words: Sequence[int],
    limit: int,
) -> dict[str, float]:
    """The ``operator_profile`` of answering all ``rows`` by ``recipe``."""
    answer = answer_by(recipe, make_model().eval(), words, limit)
    batches = prediction_batches(recipe, [len(row) for row in rows], BATCH)
    recipes.keep_freed_memory(recipe.keep_memory)
    predict(answer, rows, batches)
    return operator_profile(partial(predict, answer, rows, batches))
