"""Lesson 03: the loss, the measures and the checkpoints, as the Trainer needs them."""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetuning.files import SEAL, file_digest, find_damage, seal, write_atomically
from finetuning.labels import Rows


def blind_loss(labels: Sequence[Sequence[int]], words: int) -> float:
    """The loss per label token of a model that guesses blindly among the ``words`` and is sure of all else.

    It pays ln(words) once for each of the ``labels``, token ids with the end.
    """
    return float(np.log(words) * len(labels) / sum(map(len, labels)))


COIN_TOSS = blind_loss([[0, 1]], 2)  # between two words of one token each


def label_token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy summed over the label tokens and divided by their number in the whole batch.

    T5's own loss averages each micro-batch by itself, so that with gradient accumulation or several processes the sum
    comes out too large (transformers issue 47688). Handed to the Trainer as ``compute_loss_func``.
    """
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
    total = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def _beginnings(words: Rows) -> np.ndarray:
    """As many tokens of each word as it takes to tell them apart, (words, tokens), filled up with -100."""
    longest = max(map(len, words))
    size = next(size for size in range(1, longest + 1) if len({tuple(row[:size]) for row in words}) == len(words))
    return np.array([[*row, *[-100] * longest][:size] for row in words])


def first_step_logits(words: Rows) -> Callable:
    """For the Trainer's ``preprocess_logits_for_metrics``: the logits of the words' first tokens, (reviews, words).

    ``words``: as ``label_tokens`` gives them. Words that begin alike need more than the first step. While the decoder
    reads the right word, each other word is compared with it at the token in which it leaves it: what is kept is by how
    much that token is likelier than the right one, as a difference of logarithms, and 0 for the right word.
    """
    beginnings = torch.as_tensor(_beginnings(words))

    def keep(logits: Any, labels: Tensor) -> Tensor:
        logits = logits[0] if isinstance(logits, tuple) else logits
        steps = min(beginnings.shape[1], labels.shape[1])
        if beginnings.shape[1] == 1:
            return logits[:, 0, beginnings[:, 0]]
        wanted = beginnings[:, :steps].to(labels.device)  # (words, steps)
        scores = logits[:, :steps].float().log_softmax(-1)
        each = scores[:, torch.arange(steps), wanted.clamp(min=0)] * (wanted >= 0)  # (reviews, words, steps)
        right = labels[:, None, :steps]
        gain = each - scores.gather(-1, right[:, 0, :, None].clamp(min=0))[:, None, :, 0] * (right >= 0)
        same = (right == wanted).cumprod(-1)
        return gain[..., 0] + (gain[..., 1:] * same[..., :-1]).sum(-1)

    return keep


def label_accuracy(words: Rows) -> Callable:
    """For the Trainer's ``compute_metrics``: accuracy and F1 of the label words, whose token ids are ``words``."""
    from finetuning.metrics import classification_metrics  # its libraries would slow each rank's start

    metrics, beginnings = classification_metrics(), _beginnings(words)

    def compute(prediction: EvalPrediction) -> dict[str, float]:
        given = prediction.label_ids[:, None, : beginnings.shape[1]]
        wanted = (given == beginnings[:, : given.shape[2]]).all(-1).argmax(-1)
        return metrics.compute(predictions=prediction.predictions.argmax(-1), references=wanted)

    return compute


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint that was written to its end and has not changed since, or None.

    A checkpoint of the Trainer is whole when its seal fits (``keep_checkpoints``). DeepSpeed's ranks write a shard and
    the state of their random numbers each, and name the whole in ``latest`` at the end; their files carry checksums of
    their own.
    """
    steps = {}
    for path in Path(folder).glob("checkpoint-*"):
        try:
            state = json.loads((path / "trainer_state.json").read_text())
            if any(path.glob("global_step*")):
                shards = path / (path / "latest").read_text().strip()
                ranks = len([*path.glob("rng_state*.pth")])
                if len([*shards.glob("*optim_states.pt")]) != ranks or not [*shards.glob("*model_states.pt")]:
                    continue
                if any(ZipFile(file).testzip() for file in [*shards.glob("*.pt"), *path.glob("*.pth")]):
                    continue
            elif find_damage(path):
                continue
            steps[state["global_step"]] = path
        except (OSError, ValueError, KeyError, BadZipFile):
            continue
    return str(steps[max(steps)]) if steps else None


def resume_point(args: TrainingArguments, reviews: Path) -> str | None:
    """The last whole checkpoint of a training with these very arguments and prepared reviews (their sealed folder).

    None when the training has to begin at the start. What another training left in the folder is removed.
    """
    folder = Path(args.output_dir)
    noted = folder / "arguments.json"
    wanted = args.to_json_string() + file_digest(reviews / SEAL)
    if not noted.exists() or noted.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        write_atomically(noted, wanted)
    return last_whole_checkpoint(folder)


class keep_checkpoints(TrainerCallback):
    """A callback that seals every checkpoint, so that a torn one is known, and counts the seconds of training.

    Its ``seconds`` hold those of earlier, interrupted parts too: a checkpoint remembers how long it took to get there.
    """

    seconds = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        seal_of = Path(args.output_dir) / f"checkpoint-{state.global_step}" / SEAL
        self.before = json.loads(seal_of.read_text())["seconds"] if state.global_step else 0.0
        self.began = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        self.on_train_end()
        args.distributed_state.wait_for_everyone()  # every rank has written its part
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", seconds=self.seconds)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = self.before + time.perf_counter() - self.began


class stop_after(TrainerCallback):
    """A callback that ends training after so many ``epochs``, with a checkpoint, as if the power had failed then."""

    def __init__(self, epochs: float) -> None:
        self.epochs = epochs

    def on_epoch_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        # Not at the second step: the Trainer's bar in a notebook knows no time per step then, and fails.
        control.should_training_stop = state.epoch >= self.epochs and state.global_step != 2
        control.should_save = True
        return control


def curves(log_history: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The Trainer's log as arrays: ``loss`` and ``eval_loss``/``eval_accuracy``, each as (epochs, values)."""
    table = pd.DataFrame(log_history, columns=["epoch", "loss", "eval_loss", "eval_accuracy"])
    return {name: tuple(table[["epoch", name]].dropna().to_numpy(float).T) for name in table.columns[1:]}
