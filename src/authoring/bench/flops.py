"""How much arithmetic a model needs, and how much a machine can do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from finetuning.batching import padded
from finetuning.machine import synchronize
from finetuning.speed.int8 import multiply_int8

if TYPE_CHECKING:
    import torch
    from transformers import T5Config, T5ForConditionalGeneration


def forward_flops(config: T5Config, tokens: int, answer_tokens: float) -> float:
    """Floating-point operations of the forward pass over one review: two per multiply and add of every matrix product.

    Per token and layer the projections of the attention and the two of the feed-forward layer; per pair of tokens the
    scores and the weighted sum; the output layer per answer token. Counted as in Kaplan et al. 2020 (arXiv 2001.08361),
    table 1, with the attention's own products kept. A training step takes three times as many: the backward pass
    computes two products for each one of the forward pass.
    """
    width, inner, ff = config.d_model, config.num_heads * config.d_kv, config.d_ff
    feed_forward = (3 if config.is_gated_act else 2) * width * ff
    encoder = config.num_layers * (tokens * (4 * width * inner + feed_forward) + 2 * tokens**2 * inner)
    own = answer_tokens * (4 * width * inner + feed_forward) + 2 * answer_tokens**2 * inner
    cross = 2 * answer_tokens * width * inner + 2 * tokens * width * inner + 2 * answer_tokens * tokens * inner
    return 2 * (encoder + config.num_decoder_layers * (own + cross) + answer_tokens * width * config.vocab_size)


def tokens_written(model: T5ForConditionalGeneration, rows: Sequence[Sequence[int]], limit: int, size: int) -> float:
    """How many tokens ``generate`` with its default settings writes per review: the mean over batches of ``size``.

    ``rows``: the token ids of each review, padded to ``limit``.
    """
    model.eval()
    written = []
    for start in range(0, len(rows), size):
        ids, mask = padded(rows[start : start + size], limit, device=model.device)
        written.append(model.generate(input_ids=ids, attention_mask=mask, max_length=20).shape[1] - 1)
    return float(np.mean(written))


def matmul_peak(dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]], *, seconds: float = 0.5) -> float:
    """The most operations per second that this machine reaches in ``(m, k) x (k, n)`` products of ``dtype``.

    The median of each shape's repetitions counts, and the best shape. For ``torch.int8`` the 8-bit products of
    ``by_packing``.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = 0.0
    for m, k, n in shapes:
        left, right = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
        if dtype == torch.int8:
            packed = torch.ops.onednn.qlinear_prepack(right.to(dtype), None)
            integers = left.mul(20).to(dtype).view(torch.uint8)
            multiply = partial(multiply_int8, integers, 1.0, 128, (packed, torch.ones(n)), torch.bfloat16)
        else:
            multiply = partial(torch.nn.functional.linear, left.to(dtype), right.to(dtype))
        taken: list[float] = []
        while sum(taken) < seconds or len(taken) < 5:
            began = time.perf_counter()
            multiply()
            synchronize()
            taken.append(time.perf_counter() - began)
        best = max(best, 2 * m * k * n / float(np.median(taken[2:])))
    return best
