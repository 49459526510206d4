"""Lesson 03: recipes for training, one change at a time."""

import ctypes
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import T5ForConditionalGeneration, get_constant_schedule, get_linear_schedule_with_warmup

from finetuning.batching import padded
from finetuning.labels import Rows
from finetuning.machine import bf16_is_fast, synchronize
from finetuning.trainer import label_token_loss


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. ``dropout`` None: the rate the model was shipped with."""

    grouped: bool = False  # batches of similar length, padded to their longest; else all reviews padded to one length
    bf16: bool = False  # matrices multiplied in bfloat16 (autocast), weights and sums in fp32
    dropout: float | None = None
    fused: bool = False  # AdamW in one pass over the parameters
    keep_memory: bool = False  # freed memory stays with the process
    attention: str = "eager"


def training_recipes() -> dict[str, Recipe]:
    """The usual recipe, then one change at a time down to the course's own: a dict of name -> Recipe.

    bf16 is left out where the machine is not fast at it.
    """
    changes: dict[str, dict[str, Any]] = {
        "grouped by length": {"grouped": True},
        "bf16": {"bf16": bf16_is_fast()},
        "no dropout": {"dropout": 0.0},
        "fused AdamW": {"fused": True},
        "freed memory kept": {"keep_memory": True},
    }
    return one_change_each({"usual recipe": Recipe()}, changes)


def one_change_each(steps: dict[str, Any], changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """``steps``, a dict with the first of them, and one more for each that changes some fields of the one before."""
    last = next(iter(steps.values()))
    for name, change in changes.items():
        if (changed := replace(last, **change)) != last:
            steps[name] = last = changed
    return steps


def keep_freed_memory(keep: bool = True) -> None:
    """Let this process keep the memory it frees, or (``keep`` False) give large pieces back, as glibc does unasked.

    A training step frees and asks again for the same large tensors; each time the system would hand out pages filled
    with zeros anew. Without effect where the C library is not glibc. Source: mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    if keep:
        libc.mallopt(mmap_max, 0), libc.mallopt(trim_threshold, -1)  # -1: never
    else:  # glibc raises both thresholds by itself as large pieces are freed; these are where it ends
        libc.mallopt(mmap_max, 65536), libc.mallopt(mmap_threshold, 2**25), libc.mallopt(trim_threshold, 2**26)
        libc.malloc_trim(0)


class Training:
    """A training of ``model`` by ``recipe`` with AdamW and clipped gradients, a batch at a time.

    ``answers``: the label words' token ids, end token included, one row per label. ``limit``: the length that the usual
    recipe pads to. ``steps``: of the linear schedule with a tenth of warm-up; None: a constant rate.
    """

    def __init__(
        self, model: T5ForConditionalGeneration, recipe: Recipe, answers: Rows, limit: int, *,
        learning_rate: float = 1e-3, steps: int | None = None,
    ) -> None:  # fmt: skip
        self.model, self.recipe, self.limit = model, recipe, limit
        rate = model.config.dropout_rate if recipe.dropout is None else recipe.dropout
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = rate
            elif hasattr(part, "dropout") and isinstance(part.dropout, float):  # the attention's own
                part.dropout = rate
        model.set_attn_implementation(recipe.attention)
        rows = [torch.tensor(answer) for answer in answers]
        self.answers = pad_sequence(rows, batch_first=True, padding_value=-100).to(model.device)
        loops = {"fused": recipe.fused, "foreach": not recipe.fused}
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, **loops)
        self.schedule = get_constant_schedule(self.optimizer)
        if steps is not None:
            self.schedule = get_linear_schedule_with_warmup(self.optimizer, steps // 10, steps)

    def step(self, rows: Rows, labels: Sequence[int]) -> float:
        """One optimizer step; returns the loss before it."""
        self.model.train()
        device = self.model.device
        ids, mask = padded(rows, None if self.recipe.grouped else self.limit, device=device)
        wanted = self.answers[torch.as_tensor(labels, device=device)]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16):
            outputs = self.model(input_ids=ids, attention_mask=mask, labels=wanted)
        loss = label_token_loss(outputs, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return loss.item()

    def seconds(self, batches: Sequence[tuple[Rows, Sequence[int]]]) -> np.ndarray:
        """Seconds of a step on each of the batches of (rows, labels), after two on the first that get the memory."""
        keep_freed_memory(self.recipe.keep_memory)
        taken = []
        for _ in range(2):
            self.step(*batches[0])
        for rows, labels in batches:
            synchronize()
            began = time.perf_counter()
            self.step(rows, labels)
            synchronize()
            taken.append(time.perf_counter() - began)
        return np.array(taken)
