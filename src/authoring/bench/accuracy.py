"""Whether the course's recipe and 8-bit prediction cost accuracy."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finetuning.batching import epoch_batches, length_sorted_batches, token_rows
from finetuning.data import clean, load_reviews
from finetuning.files import write_atomically
from finetuning.labels import LABEL_WORDS, Rows, by_one_step, label_ids
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import Profile, describe
from finetuning.speed import prediction, recipes
from finetuning.speed.contenders import BATCH
from finetuning.speed.int8 import has_int8
from finetuning.speed.recipes import Recipe, Training

SHIPPED_DROPOUT = 0.1  # of every T5


def our_recipe() -> Recipe:
    """The recipe of lesson 03: the last one of ``training_recipes``."""
    return list(recipes.training_recipes().values())[-1]


def train_epoch(training: Training, rows: Rows, labels: Sequence[int], batch_size: int, seed: int) -> None:
    """One pass over the reviews, in batches as the training's recipe draws them."""
    for batch in epoch_batches([len(row) for row in rows], batch_size, training.recipe.grouped, seed):
        training.step([rows[i] for i in batch], [labels[i] for i in batch])


def accuracy_of_a_seed(pocket: Profile, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Test accuracy of pocket T5 fine-tuned by the usual recipe, by ours, and of ours with the encoder in 8 bits.

    Both trainings see the same reviews with the same rate, schedule and epochs, and the same seed.
    """
    import torch

    splits = clean(load_reviews(pocket.reviews))
    tokenizer = load_tokenizer(pocket)
    rows = {
        name: token_rows(tokenizer, splits[name]["text"], prompt=pocket.prompt, max_length=pocket.max_length)
        for name in ("train", "test")
    }
    labels, truth = list(splits["train"]["label"]), np.array(splits["test"]["label"])
    words, answers = label_ids(tokenizer), tokenizer(list(LABEL_WORDS))["input_ids"]
    longest, ends = max(map(len, rows["train"])), [len(row) for row in rows["test"]]
    result: dict[str, Any] = {"n_test": len(truth), "n_train": len(labels)}
    for name, recipe in (("usual", Recipe()), ("ours", our_recipe())):
        torch.manual_seed(seed)
        model = load_model(pocket, dropout=SHIPPED_DROPOUT)
        steps = -(-len(labels) // pocket.batch_size) * pocket.epochs
        training = Training(model, recipe, answers, longest, learning_rate=pocket.learning_rate, steps=steps)
        began = time.perf_counter()
        for epoch in range(pocket.epochs):
            train_epoch(training, rows["train"], labels, pocket.batch_size, 100 * seed + epoch)
        model.eval()
        logits, _ = prediction.predict(by_one_step(model, words), rows["test"], length_sorted_batches(ends, 64))
        result[name] = float(np.mean(logits.argmax(1) == truth))
        say(f"accuracy, seed {seed}: {name:5} {result[name]:.4f} in {time.perf_counter() - began:.0f} s")
    if eight_bits := prediction.prediction_recipes(model.config).get("8-bit integers"):
        answer = prediction.answer_by(eight_bits, model, words, max(ends))
        eight, _ = prediction.predict(answer, rows["test"], prediction.prediction_batches(eight_bits, ends, BATCH))
        result["int8"] = float(np.mean(eight.argmax(1) == truth))
        result["same_answers_int8"] = float(np.mean(eight.argmax(1) == logits.argmax(1)))
    return result


def accuracy_over_seeds(pocket: Profile, seeds: int, kept: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """The means of ``accuracy_of_a_seed`` over so many seeds, and what ours gains, paired by seed.

    Finished seeds are kept in the file ``kept``.
    """
    of_what = f"{recipes.training_recipes()} {pocket}, 8-bit integers: {has_int8()}"
    before = json.loads(kept.read_text()) if kept.exists() else {}
    done = before["seeds"] if before.get("of") == of_what else {}
    for seed in range(1, seeds + 1):
        if str(seed) not in done:
            done[str(seed)] = accuracy_of_a_seed(pocket, seed, say)
            write_atomically(kept, json.dumps({"of": of_what, "seeds": done}, indent=1))
    pairs = list(done.values())
    measured = [name for name in ("usual", "ours", "int8", "same_answers_int8") if name in pairs[0]]
    gain = np.array([pair["ours"] - pair["usual"] for pair in pairs])
    return {
        "model": describe(pocket.model),
        "n_test": pairs[0]["n_test"],
        "seeds": seeds,
        **{name: float(np.mean([pair[name] for pair in pairs])) for name in measured},
        "ours_minus_usual": float(gain.mean()),
        "standard_error": float(gain.std(ddof=1) / np.sqrt(len(gain))),
        "by_seed": done,
    }
