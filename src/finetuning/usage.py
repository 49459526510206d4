"""How a saved model is asked, kept beside its weights in ``finetuning.json``."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetuning.errors import CourseError
from finetuning.files import write_atomically
from finetuning.models import load_model, load_tokenizer
from finetuning.profiles import Profile, choose

USAGE = "finetuning.json"


def save_usage(folder: Path, settings: Profile, words: Sequence[str]) -> Path:
    """Write ``finetuning.json`` beside a saved model: the prompt, the length in tokens and the label words.

    Returns its path. With it the folder holds all that is needed to ask the model as it was trained.
    """
    usage = {"prompt": settings.prompt, "max_length": settings.max_length, "label_words": list(words)}
    write_atomically(folder / USAGE, json.dumps(usage, indent=2) + "\n")
    return folder / USAGE


def read_usage(folder: Path) -> dict:
    """What ``save_usage`` wrote; CourseError when it is missing or damaged."""
    path, way = folder / USAGE, "run 07_evaluate_and_ship.ipynb, which writes it."
    try:
        usage = json.loads(path.read_text(encoding="utf-8"))
        words = [word for word in usage["label_words"] if isinstance(word, str)]
        asked = "{text}" in usage["prompt"] and usage["max_length"] > 0
        if not asked or len({*words}) < max(2, len(usage["label_words"])):
            raise ValueError("expected are prompt, max_length and label_words, two or more that differ")
    except FileNotFoundError as error:
        raise CourseError(f"{folder} holds no {USAGE}, which says how the model is asked; {way}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CourseError(f"{path} cannot be used ({error}); {way}") from error
    return usage


def load_shipped(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict]:
    """A saved model on this machine's GPU, if it has one, its tokenizer and how it is asked (``read_usage``)."""
    usage = read_usage(folder)
    saved = choose(base_model=str(folder))
    model = load_model(saved).to("cuda" if torch.cuda.is_available() else "cpu")
    return model, load_tokenizer(saved), usage
