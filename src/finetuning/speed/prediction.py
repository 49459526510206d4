"""Lesson 03: recipes for prediction, one change at a time."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

from finetuning.batching import length_sorted_batches, padded, token_batches
from finetuning.errors import CourseError
from finetuning.labels import Answer, Rows, begin_apart, by_one_step, by_whole_words, probabilities
from finetuning.machine import bf16_is_fast, synchronize
from finetuning.speed.int8 import has_int8
from finetuning.speed.packing import by_packing
from finetuning.speed.recipes import keep_freed_memory, one_change_each

PACK = 8192  # tokens; more of them at once no longer gained speed
BATCH = 16  # reviews, where nothing is packed
Scoring = Callable[[Rows], np.ndarray]  # the probabilities of the label words, (reviews, words)


@dataclass(frozen=True)
class PredictionRecipe:
    """How a model predicts."""

    one_step: bool = False  # the logits of the first decoder step; else ``generate`` with its default settings
    grouped: bool = False  # batches of similar length, padded to their longest; else all reviews padded to one length
    bf16: bool = False  # weights in bfloat16
    keep_memory: bool = False  # freed memory stays with the process
    packed: bool = False  # no padding at all
    int8: bool = False  # the encoder's matrices in 8-bit integers


def prediction_recipes(config: T5Config) -> dict[str, PredictionRecipe]:
    """The usual recipe, then one change at a time down to the fastest: a dict of name -> PredictionRecipe.

    Left out is what this machine is not fast at, and what is not written for models of this ``config``.
    """
    plain = not config.is_gated_act
    changes = {
        "one decoder step": {"one_step": True},
        "sorted by length": {"grouped": True},
        "weights in bf16": {"bf16": bf16_is_fast()},
        "freed memory kept": {"keep_memory": True},
        "packed": {"packed": plain},
        "8-bit integers": {"int8": plain and has_int8()},
    }
    return one_change_each({"usual: generate": PredictionRecipe()}, changes)


def answer_by(recipe: PredictionRecipe, model: T5ForConditionalGeneration, words: Sequence[int], limit: int) -> Answer:
    """A function (rows -> logits of the label words, shape (reviews, words)) that answers by this ``recipe``."""
    if recipe.bf16:
        model = copy.deepcopy(model).bfloat16()
    if recipe.packed:
        return by_packing(model, words, limit, int8=recipe.int8)
    if recipe.one_step:
        return by_one_step(model, words, None if recipe.grouped else limit)
    return by_generate(model, words, limit)


def prediction_batches(recipe: PredictionRecipe, lengths: Sequence[int], size: int) -> list[np.ndarray]:
    """Batches of ``size`` reviews as they come or from long to short, or packed ones of up to ``PACK`` tokens."""
    if recipe.packed:
        return token_batches(lengths, PACK)
    if recipe.grouped:
        return length_sorted_batches(lengths, size)
    return np.array_split(np.arange(len(lengths)), -(-len(lengths) // size))


def quickest(model: T5ForConditionalGeneration, words: Rows, limit: int, *, int8: bool = False) -> tuple[Scoring, str]:
    """The last of the ladder's recipes: a function (token ids -> probabilities, (reviews, words)), and its steps.

    ``words``: as ``label_tokens`` gives them; those that begin alike are scored whole. ``int8``: with the encoder's
    matrices in 8-bit integers, which changes a few answers. Raises CourseError where the machine does not multiply
    these rightly, or they are not written for the model or its words.
    """
    ladder = {name: one for name, one in prediction_recipes(model.config).items() if int8 or not one.int8}
    if not (one_step := begin_apart(words)):
        ladder = {"": PredictionRecipe(), "one pass for each word, sorted by length": PredictionRecipe(grouped=True)}
    *_, recipe = ladder.values()
    if int8 and not recipe.int8:
        raise CourseError("8-bit integers do not work with this model and labels on this machine; leave --int8 out.")
    keep_freed_memory(recipe.keep_memory)
    model.eval()
    answer = answer_by(recipe, model, [word[0] for word in words], limit) if one_step else by_whole_words(model, words)

    def score(rows: Rows) -> np.ndarray:
        return probabilities(answer, rows, prediction_batches(recipe, [len(row) for row in rows], BATCH), len(words))

    return score, ", ".join([*ladder][1:])


def by_generate(model: T5ForConditionalGeneration, words: Sequence[int], limit: int) -> Answer:
    """The usual recipe: ``generate`` with its default settings, reviews padded to ``limit``; the first logits."""
    if model.generation_config.max_new_tokens is None:
        model.generation_config.max_length = 20  # the library's default, said once so that it does not warn

    def answer(rows: Rows) -> Tensor:
        ids, mask = padded(rows, limit, device=model.device)
        made = model.generate(input_ids=ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True)
        return made.logits[0][:, list(words)]

    return answer


def predict(answer: Answer, rows: Rows, batches: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """Logits of the label words in the order of ``rows``, shape (reviews, words), and the seconds it took."""
    with torch.inference_mode():
        logits = np.zeros((len(rows), answer([rows[i] for i in batches[0]]).shape[1]))  # and once to warm up
        synchronize()
        began = time.perf_counter()
        for batch in batches:
            logits[batch] = answer([rows[i] for i in batch]).float().cpu().numpy()
    return logits, time.perf_counter() - began
