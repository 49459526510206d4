"""Pocket T5 fine-tuned on Pocket Reviews as in lesson 03, for its model card."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from authoring.bench.accuracy import our_recipe, train_epoch
from finetuning.batching import token_rows
from finetuning.data import clean, load_reviews
from finetuning.labels import LABEL_WORDS, score_labels
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import Profile, choose
from finetuning.speed.recipes import Training, keep_freed_memory

if TYPE_CHECKING:
    from datasets import DatasetDict
    from transformers import PreTrainedModel


@cache
def pocket_reviews() -> DatasetDict:
    """Pocket Reviews, cleaned as in lesson 01."""
    return clean(load_reviews(choose().reviews))


def scores(model: PreTrainedModel, settings: Profile, texts: list[str]) -> np.ndarray:
    """The label scores that a model gives to texts, with the prompt and limit of ``settings``; shape (texts, 2)."""
    tokenizer = load_tokenizer(settings)
    return score_labels(model, tokenizer, texts, prompt=settings.prompt, max_length=settings.max_length)[0]


def fine_tune(settings: Profile, seed: int) -> tuple[PreTrainedModel, float]:
    """Train as lesson 03 does, of the epochs the best on validation: the model, and its accuracy there."""
    import torch

    keep_freed_memory()
    splits, tokenizer = pocket_reviews(), load_tokenizer(settings)
    rows = token_rows(tokenizer, splits["train"]["text"], prompt=settings.prompt, max_length=settings.max_length)
    labels = list(splits["train"]["label"])
    texts, truth = splits["validation"]["text"][:], np.array(splits["validation"]["label"])
    torch.manual_seed(seed)
    model = load_model(settings)
    steps = -(-len(rows) // settings.batch_size) * settings.epochs
    answers, longest = tokenizer(list(LABEL_WORDS))["input_ids"], max(map(len, rows))
    training = Training(model, our_recipe(), answers, longest, learning_rate=settings.learning_rate, steps=steps)
    best, kept = -1.0, {}
    for epoch in range(settings.epochs):
        train_epoch(training, rows, labels, settings.batch_size, 100 * seed + epoch)
        accuracy = float((scores(model, settings, texts).argmax(1) == truth).mean())
        if accuracy > best:
            best, kept = accuracy, {name: weight.clone() for name, weight in model.state_dict().items()}
    model.load_state_dict(kept)
    return model, best
