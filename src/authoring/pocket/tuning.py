"""Pocket T5 fine-tuned on Pocket Reviews, again and again: for its model card, and to choose the profile's settings.

``python -m authoring tune`` compares learning rates, epochs and batch sizes by accuracy on the validation split, mean
of three seeds; the test split is not read for it.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, replace

import numpy as np

from authoring.bench.accuracy import our_recipe
from finetuning.batching import epoch_batches, token_rows
from finetuning.data import clean, load_reviews
from finetuning.labels import LABEL_WORDS, score_labels
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import Profile, choose
from finetuning.speed.recipes import Training, keep_freed_memory

RATES, EPOCHS, BATCH_SIZES = (3e-4, 6e-4, 1e-3), (3,), (16,)
SEEDS = (1, 2, 3)


@dataclass
class Tuned:
    """A fine-tuned model; ``validation``: its accuracy there, ``seconds``: of training and of that choice."""

    model: object
    validation: float
    seconds: float


def scores(model: object, settings: Profile, texts: list[str]) -> np.ndarray:
    """The label scores that a model gives to texts, with the prompt and limit of ``settings``; shape (texts, 2)."""
    given, _ = score_labels(
        model, load_tokenizer(settings), texts, prompt=settings.prompt, max_length=settings.max_length
    )
    return given


def fine_tune(settings: Profile, seed: int, *, from_scratch: bool = False) -> Tuned:
    """Train as lesson 03 does: its recipe, rate and epochs, and of the epochs the best on validation."""
    import torch

    keep_freed_memory()
    splits, tokenizer = clean(load_reviews(settings.reviews)), load_tokenizer(settings)
    rows = token_rows(tokenizer, splits["train"]["text"], prompt=settings.prompt, max_length=settings.max_length)
    labels, lengths = list(splits["train"]["label"]), [len(row) for row in rows]
    texts, truth = splits["validation"]["text"][:], np.array(splits["validation"]["label"])
    torch.manual_seed(seed)
    model = load_model(settings, from_scratch=from_scratch)
    rate = settings.scratch_learning_rate if from_scratch else settings.learning_rate
    steps = -(-len(rows) // settings.batch_size) * settings.epochs
    answers = tokenizer(list(LABEL_WORDS))["input_ids"]
    training = Training(model, our_recipe(), answers, max(lengths), learning_rate=rate, steps=steps)
    best, kept, began = -1.0, {}, time.perf_counter()
    for epoch in range(settings.epochs):
        for batch in epoch_batches(lengths, settings.batch_size, True, 100 * seed + epoch):
            training.step([rows[i] for i in batch], [labels[i] for i in batch])
        model.eval()
        accuracy = float((scores(model, settings, texts).argmax(1) == truth).mean())
        if accuracy > best:
            best, kept = accuracy, {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(kept)
    return Tuned(model, best, time.perf_counter() - began)


def main(arguments: list[str] | None = None) -> None:
    """Command line of ``python -m authoring tune``: a line per setting."""
    for rate, epochs, size in itertools.product(RATES, EPOCHS, BATCH_SIZES):
        settings = replace(choose(), learning_rate=rate, epochs=epochs, batch_size=size)
        found = [fine_tune(settings, seed) for seed in SEEDS]
        mean, each = np.mean([t.validation for t in found]), ", ".join(f"{t.validation:.3f}" for t in found)
        seconds = np.mean([t.seconds for t in found])
        print(f"rate {rate:g}, {epochs} epochs, batches of {size}: {mean:.3f} ({each}), {seconds:.0f} s", flush=True)
