"""Lesson 06: low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) put into a T5, and read back from a file."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import T5ForConditionalGeneration

from finetuning.errors import CourseError, first_line
from finetuning.models import load_model
from finetuning.profiles import Profile

warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft asks the model by an older name
ADAPTER = "adapter_model.safetensors"  # peft's name of the file


def add_lora(model: T5ForConditionalGeneration, rank: int, matrices: Sequence[str]) -> PeftModel:
    """Freeze the model and put an adapter of ``rank`` beside each linear layer whose name ends in one of ``matrices``.

    ``matrices``: as ``["q", "v"]``. The adapters are counted twice in the sum (``lora_alpha / r``), whatever the rank,
    so that a learning rate keeps its meaning. Raises CourseError for a rank under 1 and for names that no layer has.
    """
    linear = {name.split(".")[-1] for name, one in model.named_modules() if isinstance(one, torch.nn.Linear)}
    linear -= {"lm_head"}  # its weights are the embedding's
    if not isinstance(rank, int) or rank < 1 or not matrices or not {*matrices} <= linear:  # peft is content with one
        way = f"choose a rank from 1 up and matrices among {', '.join(sorted(linear))}."
        raise CourseError(f"No adapter of rank {rank!r} for {[*matrices]}; {way}")
    config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=rank, lora_alpha=2 * rank, target_modules=[*matrices])
    return get_peft_model(model, config)


def load_adapter(settings: Profile, folder: Path) -> PeftModel:
    """The profile's model with the adapter that lies in ``folder``, every tensor of it.

    Raises CourseError where there is none, where tensors are missing or empty (as ZeRO-3 leaves them when its shards
    were not gathered: peft's issue 2892, trl's 4416), and where the adapter belongs to another model.
    """
    file = folder / ADAPTER
    try:
        saved = load_file(file)
    except (OSError, SafetensorError) as error:
        way = "train one first, as lesson 06 does."
        raise CourseError(f"There is no adapter that can be read in {folder} ({first_line(error)}); {way}") from error
    if empty := [name for name, tensor in saved.items() if not tensor.numel()]:
        wrong = f"{len(empty)} of the {len(saved)} tensors in {file} have the size zero, as {empty[0]}"
        raise CourseError(f"{wrong}: its shards were not gathered before it was saved; gather them and save again.")
    try:
        model = PeftModel.from_pretrained(load_model(settings), folder)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        why = first_line(error).rstrip(" .:")
        way = f"give the base_model that is named in {folder / 'adapter_config.json'}."
        raise CourseError(f"The adapter in {folder} does not fit {settings.model} ({why}); {way}") from error
    here = get_peft_model_state_dict(model)
    if here.keys() != saved.keys():  # peft would leave the missing ones as they begin: without effect
        missing = sorted(here.keys() ^ saved.keys())
        raise CourseError(f"{file} lacks tensors or has others, as {missing[0]}; save the adapter again.")
    return model
