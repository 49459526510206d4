"""Lesson 03: the model, its loss and its checkpoints, as the Trainer needs them."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import numpy as np

from finetuning import CourseError
from finetuning.hub import hub_error
from finetuning.workspace import SEAL, damage, file_digest, seal, write_atomically

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        T5ForConditionalGeneration,
        TrainerCallback,
        TrainingArguments,
    )

    from finetuning.profiles import Profile


def load_tokenizer(settings: Profile) -> PreTrainedTokenizerBase:
    """The profile's tokenizer. Raises CourseError when it can be neither found nor reached."""
    from transformers import AutoTokenizer

    return _from_hub_or_folder(AutoTokenizer, settings)


def load_model(settings: Profile, *, from_scratch: bool = False, dropout: float = 0.0) -> T5ForConditionalGeneration:
    """The profile's T5 in fp32, with its pre-trained weights or with random ones (``from_scratch``, seeded).

    Only safetensors are read and no code of the Hub is run. ``dropout`` replaces the rate in the model's configuration.
    Raises CourseError when the model can be neither found nor reached, and when it is no T5.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, T5ForConditionalGeneration, set_seed
    from transformers.utils import logging

    _pass_over_tied_weights()
    logging.disable_progress_bar()  # the bar over a handful of weights; downloads keep theirs
    if not torch.cuda.is_available():
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # else DeepSpeed, which accelerate imports, warns that it guesses so
    config = _from_hub_or_folder(AutoConfig, settings)
    if config.model_type != "t5":
        raise CourseError(f"{settings.model} is a {config.model_type!r} model; this course fine-tunes T5 models.")
    # On a CPU the plain ("eager") attention is the faster one for T5; SDPA must add its position bias to every batch.
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    if from_scratch:
        set_seed(settings.seed)
        config.dropout_rate = dropout
        return AutoModelForSeq2SeqLM.from_config(config, attn_implementation=attention).float()
    return _from_hub_or_folder(
        T5ForConditionalGeneration,
        settings,
        dtype=torch.float32,
        use_safetensors=True,
        dropout_rate=dropout,
        attn_implementation=attention,
    )


def _pass_over_tied_weights():
    """Drop one false alarm: a checkpoint stores T5's shared embedding once, and the Trainer calls its other names missing."""
    import logging

    def keep(record):
        return not (
            record.getMessage().startswith(
                "There were missing keys in the checkpoint model loaded: ['encoder.embed_tokens.weight'"
            )
        )

    logger = logging.getLogger("transformers.trainer")
    if not logger.filters:
        logger.addFilter(keep)


def _from_hub_or_folder(kind, settings, **options):
    from httpx import HTTPError
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from safetensors import SafetensorError

    local = Path(settings.model).is_dir()
    # Were it not said, the library would ask on standard input whether to run a repository's code.
    options |= {"revision": settings.model_revision, "trust_remote_code": False}
    # Else the library asks a service of the Hub to convert pickled weights.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    try:
        try:
            return kind.from_pretrained(settings.model, **options)
        except SafetensorError:  # a file in the cache was cut short or changed: once more from the Hub
            if local or HF_HUB_OFFLINE:
                raise
            return kind.from_pretrained(settings.model, force_download=True, **options)
    except (OSError, ValueError, SafetensorError, HTTPError) as error:
        if local:
            raise CourseError(
                f"The folder {settings.model} holds no whole model ({str(error).splitlines()[0]}); "
                "expected are config.json, model.safetensors and the tokenizer's files."
            ) from error
        raise hub_error("model", settings.model, error, instead="BASE_MODEL") from error


@cache
def bf16_is_fast() -> bool:
    """Whether this machine multiplies bfloat16 matrices faster than fp32 ones; fp16 is no option, T5 overflows in it.

    Measured once in a process: a processor may list instructions for bfloat16 and still multiply it at half the speed of fp32.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        a @ b  # the first product also prepares the ones after it
        began = [time.perf_counter()]
        for _ in range(5):
            a @ b
            began.append(time.perf_counter())
        seconds[dtype] = min(np.diff(began))
    return bool(seconds[torch.bfloat16] < 0.8 * seconds[torch.float32])


def label_token_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross-entropy summed over the label tokens and divided by their number in the whole batch.

    T5's own loss averages each micro-batch by itself, so that with gradient accumulation or several processes the sum
    comes out too large (transformers issue 47688). Handed to the Trainer as ``compute_loss_func``.
    """
    import torch

    logits = outputs["logits"] if isinstance(outputs, dict) else outputs.logits
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return total / ((labels != -100).sum() if num_items_in_batch is None else num_items_in_batch)


def first_step_logits(words: list[int]) -> Callable:
    """For the Trainer's ``preprocess_logits_for_metrics``: keep the two label words' logits of the first decoder step."""

    def keep(logits, labels):
        return (logits[0] if isinstance(logits, tuple) else logits)[:, 0, words]

    return keep


def label_accuracy(words: list[int]) -> Callable:
    """For the Trainer's ``compute_metrics``: accuracy and F1 of the label words, by the course's metrics."""
    from finetuning.metrics import classification_metrics

    metrics = classification_metrics()

    def compute(prediction):
        wanted = (prediction.label_ids[:, 0] == words[1]).astype(int)
        return metrics.compute(predictions=prediction.predictions.argmax(-1), references=wanted)

    return compute


def last_whole_checkpoint(folder: str | Path) -> str | None:
    """The newest checkpoint that was written to its end and has not changed since, or None.

    A checkpoint of the Trainer is whole when its seal fits (``keep_checkpoints``). DeepSpeed's ranks write a shard and the
    state of their random numbers each, and name the whole in ``latest`` at the end; their files carry checksums of their own.
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
            elif damage(path):
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
    told = folder / "arguments.json"
    wanted = args.to_json_string() + file_digest(reviews / SEAL)
    if not told.exists() or told.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        write_atomically(told, wanted)
    return last_whole_checkpoint(folder)


def keep_checkpoints() -> TrainerCallback:
    """A callback that seals every checkpoint, so that a torn one is known, and counts the seconds of training.

    Its ``seconds`` hold those of earlier, interrupted parts too: a checkpoint remembers how long it took to get there.
    """
    from transformers import TrainerCallback

    class Keep(TrainerCallback):
        seconds = 0.0

        def on_train_begin(self, args, state, control, **kwargs):
            seal_of = Path(args.output_dir) / f"checkpoint-{state.global_step}" / SEAL
            self.before = json.loads(seal_of.read_text())["seconds"] if state.global_step else 0.0
            self.began = time.perf_counter()

        def _count(self):
            self.seconds = self.before + time.perf_counter() - self.began

        def on_save(self, args, state, control, **kwargs):
            self._count()
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", seconds=self.seconds)

        def on_train_end(self, args, state, control, **kwargs):
            self._count()

    return Keep()


def stop_after(epochs: float) -> TrainerCallback:
    """A callback that ends training after so many epochs, as if the power had failed then."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_epoch_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.epoch >= epochs
            control.should_save = True
            return control

    return Stop()


def curves(log_history: list[dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The Trainer's log as arrays: ``loss`` and ``eval_loss``/``eval_accuracy``, each as (epochs, values)."""
    found = {}
    for key in ("loss", "eval_loss", "eval_accuracy"):
        points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
        found[key] = tuple(np.array(points).T) if points else (np.array([]), np.array([]))
    return found


def parameter_table(model: PreTrainedModel) -> dict[str, int]:
    """Parameters by part of the model: a dict of part -> count; the output layer counts once, with the embedding it shares."""
    parts = {"embedding (shared with the output layer)": model.shared.weight.numel()}
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for i, block in enumerate(stack.block, 1):
            parts[f"{name} layer {i}"] = sum(weight.numel() for weight in block.parameters())
        parts[f"{name} final norm"] = stack.final_layer_norm.weight.numel()
    if not model.config.tie_word_embeddings:
        parts["output layer"] = model.lm_head.weight.numel()
    return parts


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, log_history: list[dict]
) -> Path:
    """Model (safetensors), tokenizer and the Trainer's log (``history.json``) in one sealed folder; returns the folder.

    The model is written under a temporary name first, so that a full disk leaves an older one as it was.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "history.json").write_text(json.dumps(log_history))
        seal(partial)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CourseError(
            f"Could not write {folder}: {error.strerror or error}; free some space, then run the cell again."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SEAL).unlink(missing_ok=True)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == SEAL):  # the seal last
        file.replace(folder / file.name)
    partial.rmdir()
    return folder
