"""Lesson 03: load a model and its tokenizer, look at its parts, save it."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
import transformers
from httpx import HTTPError
from huggingface_hub.constants import HF_HUB_OFFLINE
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase, T5ForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from finetuning.errors import CourseError, first_line, hub_error
from finetuning.files import SEAL, sealed_aside
from finetuning.profiles import Profile


def load_tokenizer(settings: Profile) -> PreTrainedTokenizerBase:
    """The profile's tokenizer. Raises CourseError when it can be neither found nor reached."""
    return _from_hub_or_folder(transformers.AutoTokenizer, settings)


def load_model(settings: Profile, *, from_scratch: bool = False, dropout: float = 0.0) -> T5ForConditionalGeneration:
    """The profile's T5 in fp32, with its pre-trained weights or with random ones (``from_scratch``, seeded).

    Only safetensors are read and no code of the Hub is run. ``dropout`` replaces the rate in the model's configuration.
    Raises CourseError when the model can be neither found nor reached, and when it is no T5.
    """
    # Attention's smallest probabilities lead to numbers under 1e-38, on which a processor computes many times slower.
    # Taken for zero they cost nothing: on two cores it more than halved the time of pocket T5's training step in fp32.
    torch.set_flush_denormal(True)
    logging.getLogger("transformers.trainer").addFilter(_is_news)
    disable_progress_bar()  # the bar over a handful of weights; downloads keep theirs
    if not torch.cuda.is_available():  # else DeepSpeed, which accelerate imports, warns that it guesses so
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    config = _from_hub_or_folder(transformers.AutoConfig, settings)
    if config.model_type != "t5":
        raise CourseError(f"{settings.model} is a {config.model_type!r} model; this course fine-tunes T5 models.")
    # On a CPU the plain ("eager") attention is the faster one for T5; SDPA must add its position bias to every batch.
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    if from_scratch:
        transformers.set_seed(settings.seed)
        config.dropout_rate = dropout
        return transformers.AutoModelForSeq2SeqLM.from_config(config, attn_implementation=attention).float()
    options = {"dtype": torch.float32, "dropout_rate": dropout, "attn_implementation": attention}
    return _from_hub_or_folder(T5ForConditionalGeneration, settings, use_safetensors=True, **options)


def _is_news(record: logging.LogRecord) -> bool:
    """False for a false alarm: a checkpoint stores T5's embedding once, and the Trainer misses its other names."""
    alarm = "There were missing keys in the checkpoint model loaded: ['encoder.embed_tokens.weight'"
    return not record.getMessage().startswith(alarm)


def _from_hub_or_folder(kind: Any, settings: Profile, **options: Any) -> Any:
    local = Path(settings.model).is_dir()
    # Without it the library would ask on standard input whether to run a repository's code.
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
            wrong = f"The folder {settings.model} holds no whole model ({first_line(error)})"
            raise CourseError(f"{wrong}; expected are config.json, model.safetensors and a tokenizer.") from error
        raise hub_error("model", settings.model, error, instead="BASE_MODEL") from error


def parameter_table(model: PreTrainedModel) -> dict[str, int]:
    """Parameters by part of the model: part -> count. An output layer that shares the embedding counts with it."""
    parts = {"embedding": model.shared.weight.numel()}
    for name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        for i, block in enumerate(stack.block, 1):
            parts[f"{name} layer {i}"] = sum(weight.numel() for weight in block.parameters())
        parts[f"{name} final norm"] = stack.final_layer_norm.weight.numel()
    if not model.config.tie_word_embeddings:
        parts["output layer"] = model.lm_head.weight.numel()
    return parts


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, history: list[dict]) -> Path:
    """Model (safetensors), tokenizer and the Trainer's log (``history.json``) in one sealed folder; returns the folder.

    The model is written under a temporary name first, so that a full disk leaves an older one as it was.
    """
    with sealed_aside(folder, "then run the cell again") as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "history.json").write_text(json.dumps(history))
        for file in partial.iterdir():  # safetensors lets nobody else read its files
            file.chmod((partial / "history.json").stat().st_mode)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SEAL).unlink(missing_ok=True)
    for file in sorted(partial.iterdir(), key=lambda file: file.name == SEAL):  # the seal last
        file.replace(folder / file.name)
    partial.rmdir()
    return folder
