"""Lesson 03: recipes for training and prediction, one change at a time, and how much arithmetic each needs."""

from __future__ import annotations

import copy
import ctypes
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from finetuning.batching import length_sorted_batches, padded
from finetuning.errors import CourseError
from finetuning.labels import by_one_step

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import T5Config, T5ForConditionalGeneration

PACK = 8192  # tokens; more of them at once no longer gained speed
Rows = Sequence[Sequence[int]]  # token ids of each review, end token included


@dataclass(frozen=True)
class Recipe:
    """How a model is trained. ``dropout`` None: the rate the model was shipped with."""

    grouped: bool = False  # batches of similar length, padded to their longest; else all reviews padded to one length
    bf16: bool = False  # matrices multiplied in bfloat16 (autocast), weights and sums in fp32
    dropout: float | None = None
    fused: bool = False  # AdamW in one pass over the parameters
    keep_memory: bool = False  # freed memory stays with the process
    attention: str = "eager"
    bf16_weights: bool = False  # the model itself in bfloat16, and an fp32 copy of its weights for AdamW


def training_recipes() -> dict[str, Recipe]:
    """The usual recipe, then one change at a time down to the course's own: a dict of name -> Recipe.

    bf16 is left out where the machine is not fast at it.
    """
    from finetuning.machine import bf16_is_fast

    changes: dict[str, dict[str, Any]] = {
        "grouped by length": {"grouped": True},
        "bf16": {"bf16": True},
        "no dropout": {"dropout": 0.0},
        "fused AdamW": {"fused": True},
        "freed memory kept": {"keep_memory": True},
    }
    if not bf16_is_fast():
        del changes["bf16"]
    return _ladder({"usual recipe": Recipe()}, changes)


def _ladder(steps, changes):
    for name, change in changes.items():
        steps[name] = replace(list(steps.values())[-1], **change)
    return steps


def our_recipe() -> Recipe:
    """The recipe of lesson 03: the last one of ``training_recipes``."""
    return list(training_recipes().values())[-1]


def keep_freed_memory(keep: bool = True) -> bool:
    """Let this process keep the memory it frees, or (``keep`` False) give large pieces back at once, as glibc does unasked.

    A training step frees and asks again for the same large tensors; each time the system would hand out pages filled with
    zeros anew. Returns whether it is so; without effect (False) where the C library is not glibc. Source: mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    if keep:
        return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1))  # -1: never
    # glibc raises both thresholds by itself as large pieces are freed; these are where it ends
    libc.mallopt(mmap_max, 65536), libc.mallopt(mmap_threshold, 2**25), libc.mallopt(trim_threshold, 2**26)
    libc.malloc_trim(0)
    return False


@contextmanager
def memory_kept(keep: bool) -> Iterator[None]:
    """``keep_freed_memory(keep)`` for the time of a ``with`` block; afterwards large pieces are given back again."""
    keep_freed_memory(keep)
    try:
        yield
    finally:
        keep_freed_memory(False)


def _wait():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Training:
    """A training of ``model`` by ``recipe`` with AdamW and clipped gradients, a batch at a time.

    ``answers``: the label words' token ids, end token included, one row per label. ``limit``: the length that the usual
    recipe pads to. ``steps``: of the linear schedule with a tenth of warm-up; None: a constant rate.
    """

    def __init__(
        self,
        model: T5ForConditionalGeneration,
        recipe: Recipe,
        answers: Rows,
        limit: int,
        *,
        learning_rate: float = 1e-3,
        steps: int | None = None,
    ) -> None:
        import torch
        from transformers import get_constant_schedule, get_linear_schedule_with_warmup

        self.model, self.recipe, self.limit = model, recipe, limit
        rate = model.config.dropout_rate if recipe.dropout is None else recipe.dropout
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = rate
            elif hasattr(part, "dropout") and isinstance(part.dropout, float):  # the attention's own
                part.dropout = rate
        model.set_attn_implementation(recipe.attention)
        self.answers = torch.tensor(answers, device=model.device)
        if recipe.bf16_weights:
            self.copies = [weight.detach().float().clone().requires_grad_() for weight in model.parameters()]
            model.bfloat16()
        self.optimizer = torch.optim.AdamW(
            self.copies if recipe.bf16_weights else model.parameters(),
            lr=learning_rate,
            weight_decay=0.01,
            fused=recipe.fused,
            foreach=not recipe.fused,
        )
        self.schedule = (
            get_constant_schedule(self.optimizer)
            if steps is None
            else get_linear_schedule_with_warmup(self.optimizer, steps // 10, steps)
        )

    def step(self, rows: Rows, labels: Sequence[int]) -> float:
        """One optimizer step; returns the loss before it."""
        import torch

        from finetuning.trainer import label_token_loss

        self.model.train()
        device = self.model.device
        ids, mask = padded(rows, None if self.recipe.grouped else self.limit, device=device)
        wanted = self.answers[torch.as_tensor(labels, device=device)]
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.bf16):
            outputs = self.model(input_ids=ids, attention_mask=mask, labels=wanted)
        loss = label_token_loss(outputs, wanted)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if self.recipe.bf16_weights:
            for weight, one in zip(self.model.parameters(), self.copies, strict=True):
                one.grad = weight.grad.float()
        self.optimizer.step()
        self.schedule.step()
        if self.recipe.bf16_weights:
            with torch.no_grad():
                torch._foreach_copy_(list(self.model.parameters()), self.copies)
        self.optimizer.zero_grad()
        self.model.zero_grad()
        return loss.item()

    def seconds(self, batches: Sequence[tuple[Rows, Sequence[int]]]) -> np.ndarray:
        """Seconds of a step on each of the batches of (rows, labels), after two on the first, so that memory is there."""
        taken = []
        with memory_kept(self.recipe.keep_memory):
            for _ in range(2):
                self.step(*batches[0])
            for rows, labels in batches:
                _wait()
                began = time.perf_counter()
                self.step(rows, labels)
                _wait()
                taken.append(time.perf_counter() - began)
        return np.array(taken)


def forward_flops(config: T5Config, tokens: int, answer_tokens: int) -> int:
    """Floating-point operations of the forward pass over one review: two per multiply and add of every matrix product.

    Per token and layer the projections of the attention and the two of the feed-forward layer; per pair of tokens the scores
    and the weighted sum; the output layer per answer token. Counted as in Kaplan et al. 2020 (arXiv 2001.08361), table 1, with
    the attention's own products kept. A training step takes three times as many: the backward pass computes two products
    for each one of the forward pass.
    """
    width, inner, ff = config.d_model, config.num_heads * config.d_kv, config.d_ff
    feed_forward = (3 if config.is_gated_act else 2) * width * ff
    encoder = config.num_layers * (tokens * (4 * width * inner + feed_forward) + 2 * tokens**2 * inner)
    own = answer_tokens * (4 * width * inner + feed_forward) + 2 * answer_tokens**2 * inner
    cross = 2 * answer_tokens * width * inner + 2 * tokens * width * inner + 2 * answer_tokens * tokens * inner
    return 2 * (encoder + config.num_decoder_layers * (own + cross) + answer_tokens * width * config.vocab_size)


def matmul_peak(dtype: torch.dtype, shapes: Sequence[tuple[int, int, int]], *, seconds: float = 0.5) -> float:
    """The most floating-point operations per second that this machine reaches in ``(m, k) x (k, n)`` products of ``dtype``.

    The median of each shape's repetitions counts, and the best shape. For ``torch.int8`` the 8-bit products of ``by_packing``.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    best = 0.0
    for m, k, n in shapes:
        left, right = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
        if dtype == torch.int8:
            packed = torch.ops.onednn.qlinear_prepack(right.to(dtype), None)
            integers = left.mul(20).to(dtype).view(torch.uint8)
            multiply = partial(_multiply_int8, integers, 1.0, 128, (packed, torch.ones(n)), torch.bfloat16)
        else:
            multiply = partial(torch.nn.functional.linear, left.to(dtype), right.to(dtype))
        taken: list[float] = []
        while sum(taken) < seconds or len(taken) < 5:
            began = time.perf_counter()
            multiply()
            _wait()
            taken.append(time.perf_counter() - began)
        best = max(best, 2 * m * k * n / float(np.median(taken[2:])))
    return best


@dataclass(frozen=True)
class Way:
    """How a model predicts."""

    one_step: bool = False  # the logits of the first decoder step; else ``generate`` with its default settings
    grouped: bool = False  # batches of similar length, padded to their longest; else all reviews padded to one length
    bf16: bool = False  # weights in bfloat16
    keep_memory: bool = False  # freed memory stays with the process
    packed: bool = False  # no padding at all
    int8: bool = False  # the encoder's matrices in 8-bit integers


def prediction_ways(config: T5Config) -> dict[str, Way]:
    """The usual way to predict, then one change at a time down to the fastest: a dict of name -> Way.

    Left out is what this machine is not fast at, and what is not written for models of this ``config``.
    """
    from finetuning.machine import bf16_is_fast

    changes: dict[str, dict[str, Any]] = {
        "one decoder step": {"one_step": True},
        "sorted by length": {"grouped": True},
        "weights in bf16": {"bf16": True},
        "freed memory kept": {"keep_memory": True},
        "packed": {"packed": True},
        "8-bit integers": {"int8": True},
    }
    if not bf16_is_fast():
        del changes["weights in bf16"]
    if config.is_gated_act:
        del changes["packed"]
    if config.is_gated_act or not has_int8():
        del changes["8-bit integers"]
    return _ladder({"usual: generate": Way()}, changes)


def answer_by(
    way: Way, model: T5ForConditionalGeneration, words: Sequence[int], limit: int, written: list[int] | None = None
) -> Callable[[Rows], Tensor]:
    """A function (rows -> logits of the two label words, shape (reviews, 2)) that answers in this ``way``."""
    if way.bf16:
        model = copy.deepcopy(model).bfloat16()
    if way.packed:
        return by_packing(model, words, limit, int8=way.int8)
    if way.one_step:
        return by_one_step(model, words, None if way.grouped else limit)
    return by_generate(model, words, limit, written)


def prediction_batches(way: Way, lengths: Sequence[int], size: int) -> list[np.ndarray]:
    """Batches of ``size`` reviews as they come or from long to short, or packed ones of up to ``PACK`` tokens."""
    if way.packed:
        return token_batches(lengths, PACK)
    if way.grouped:
        return length_sorted_batches(lengths, size)
    return np.array_split(np.arange(len(lengths)), -(-len(lengths) // size))


def by_generate(
    model: T5ForConditionalGeneration, words: Sequence[int], limit: int, written: list[int] | None = None
) -> Callable[[Rows], Tensor]:
    """The usual way: ``generate`` with its default settings on reviews padded to ``limit``; the first step's logits are kept.

    How many tokens each batch wrote is added to the list ``written``.
    """
    if model.generation_config.max_new_tokens is None:
        model.generation_config.max_length = 20  # the library's default, said once so that it does not warn

    def answer(rows):
        ids, mask = padded(rows, limit, device=model.device)
        made = model.generate(input_ids=ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True)
        if written is not None:
            written.append(made.sequences.shape[1] - 1)
        return made.logits[0][:, list(words)]

    return answer


def by_packing(
    model: T5ForConditionalGeneration, words: Sequence[int], longest: int, *, int8: bool = False
) -> Callable[[Rows], Tensor]:
    """One decoder step over reviews laid end to end, without padding, and without products that one step does not need.

    Attention runs review by review, on pieces that stay in the processor's cache. The decoder's first step asks every review
    one question, q; its score for a token x, q.(Kx), is computed as (K'q).x, and the values are summed before they are
    projected, so that no keys and values of whole reviews are made: the same numbers with an eighth less arithmetic at
    t5-small's shape. ``longest``: the most tokens of a review. ``int8``: the encoder's projections in 8-bit integers.
    Raises CourseError for a T5 with gated feed-forward layers.
    """
    import torch
    from torch.nn.functional import linear, scaled_dot_product_attention

    config, heads = model.config, model.config.num_heads
    if config.is_gated_act:
        raise CourseError("Packing is written for T5's plain feed-forward layers; this model has gated ones.")
    project, feed_forward = (_int8, _int8_feed_forward) if int8 else (_plain, _plain_feed_forward)
    encoder = []
    for block in model.encoder.block:
        attention, dense = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        joined = torch.cat([attention.q.weight, attention.k.weight, attention.v.weight])
        encoder.append(
            (
                project(joined, block.layer[0].layer_norm),
                project(attention.o.weight),
                feed_forward(dense.wi.weight, dense.wo.weight, block.layer[1].layer_norm),
            )
        )
    first = model.encoder.block[0].layer[0].SelfAttention
    bias = first.compute_bias(longest, longest)[0].to(model.dtype).contiguous()  # (heads, tokens, tokens)

    def attend(joined, length):  # (tokens, 3 x heads x d_kv) -> (tokens, heads, d_kv)
        q, k, v = joined.view(length, 3, heads, -1).permute(1, 2, 0, 3).contiguous()
        if model.device.type == "cuda":
            mask = bias[None, :, :length, :length]
            return scaled_dot_product_attention(q[None], k[None], v[None], mask, scale=1.0)[0].transpose(0, 1)
        scores = torch.baddbmm(bias[:, :length, :length], q, k.transpose(1, 2))
        return torch.bmm(scores.softmax(-1), v).transpose(0, 1)

    def encode(rows):
        lengths = [len(row) for row in rows]
        x = model.shared(torch.cat([torch.tensor(row) for row in rows]).to(model.device))
        for qkv, o, forward in encoder:
            pieces = qkv(x).split(lengths)
            x += o(torch.cat([attend(*piece) for piece in zip(pieces, lengths, strict=True)]).flatten(1))
            x += forward(x)
        return model.encoder.final_layer_norm(x).split(lengths)

    def answer(rows):
        reviews = torch.nn.utils.rnn.pad_sequence(encode(rows), batch_first=True)  # (reviews, tokens, d_model)
        ends = torch.tensor([len(row) for row in rows], device=model.device)
        beyond = (torch.arange(reviews.shape[1], device=model.device) >= ends[:, None])[:, None]
        x = model.shared.weight[config.decoder_start_token_id].expand(len(rows), -1)
        for block in model.decoder.block:
            own, cross = block.layer[0].SelfAttention, block.layer[1].EncDecAttention
            x = x + own.o(own.v(block.layer[0].layer_norm(x)))  # the only position attends to itself
            q = cross.q(block.layer[1].layer_norm(x)).view(len(rows), heads, -1)
            keys, values = (weight.view(heads, config.d_kv, -1) for weight in (cross.k.weight, cross.v.weight))
            asked = torch.einsum("bhd,hdm->bhm", q, keys)
            scores = torch.bmm(asked, reviews.transpose(1, 2)).float().masked_fill(beyond, -torch.inf)
            summed = torch.bmm(scores.softmax(-1).to(reviews.dtype), reviews)
            x = x + cross.o(torch.einsum("bhm,hdm->bhd", summed, values).flatten(1))
            x = block.layer[2](x)
        x = model.decoder.final_layer_norm(x)
        scale = config.d_model**-0.5 if config.tie_word_embeddings else 1.0
        return linear(x * scale, model.lm_head.weight[list(words)])

    return answer


def _plain(weight, norm=None):
    """A projection of x, normalized first where ``norm`` is given."""
    from torch.nn.functional import linear

    return lambda x: linear(x if norm is None else norm(x), weight)


def _plain_feed_forward(into, out, norm):
    from torch.nn.functional import linear

    return lambda x: linear(linear(norm(x), into).relu_(), out)


def has_int8() -> bool:
    """Whether PyTorch's oneDNN multiplies 8-bit integers here, and rightly.

    A processor without VNNI or AMX adds two products in 16 bits and cuts what does not fit (oneDNN's developer guide, "Nuances
    of int8 computations"); the largest integers show it.
    """
    import torch

    if torch.cuda.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    packed = torch.ops.onednn.qlinear_prepack(torch.full((64, 64), 127, dtype=torch.int8), None)
    largest = torch.full((64, 64), 255, dtype=torch.uint8)
    product = _multiply_int8(largest, 1.0, 0, (packed, torch.ones(64)), torch.float32)
    return bool((product == 64 * 255 * 127).all())


def _multiply_int8(
    q: Tensor,
    step: float,
    zero: int,
    matrix: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    after: str = "none",
    made_step: float = 1.0,
) -> Tensor:
    """The product of ``step * (q - zero)``, unsigned 8 bits, and a ``matrix`` in 8 bits: packed, and one scale per output.

    ``dtype``: of the product; unsigned 8 bits again, it counts in units of ``made_step``.
    """
    import torch

    packed, scale = matrix
    zeros = torch.zeros_like(scale, dtype=torch.int)
    return torch.ops.onednn.qlinear_pointwise(
        q, step, zero, packed, scale, zeros, None, made_step, 0, dtype, after, [], ""
    )


def _packed_int8(weight: Tensor, norm: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """A matrix rounded to 8 bits, one scale per output; the normalization's own weights go into it, where there are any."""
    import torch

    full = weight.float() if norm is None else weight.float() * norm.weight.float()
    scale = full.abs().amax(1) / 127
    return torch.ops.onednn.qlinear_prepack((full / scale[:, None]).round().to(torch.int8), None), scale


def _rounded(x, norm=None):
    """``x`` in unsigned 8 bits around 128, and the step between them, one for all tokens.

    Of the normalization only the factor per token is left, as its weights went into the matrix. Conversions go by 32 and by
    16 bits: PyTorch's direct ones are several times slower.
    """
    import torch

    full = x.float()
    if norm is not None:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        full.mul_((length.square() / x.shape[1] + norm.variance_epsilon).rsqrt())
    low, high = full.aminmax()
    step = max(high.item(), -low.item(), 1e-9) / 127
    q = torch.add(torch.tensor([128.5]), full, alpha=1 / step)
    return q.to(torch.int16).to(torch.uint8), step


def _int8(weight, norm=None):
    """A projection with weights and inputs in 8 bits."""
    matrix = _packed_int8(weight, norm)

    def product(x):
        q, step = _rounded(x, norm)
        return _multiply_int8(q, step, 128, matrix, weight.dtype)

    return product


def _int8_feed_forward(into, out, norm):
    """Both projections in 8 bits; what lies between them is rounded as it is computed.

    Its step must therefore be known before: the largest value of the first batch and a quarter more make the 255th step, and
    what exceeds it later is cut.
    """
    import torch

    first, second = _packed_int8(into, norm), _packed_int8(out)
    steps: list[float] = []  # the one of the first batch, once it is known

    def product(x):
        q, step = _rounded(x, norm)
        if not steps:
            largest = _multiply_int8(q, step, 128, first, into.dtype, "relu").max().item()
            steps.append(max(1.25 * largest / 255, 1e-9))
        between = _multiply_int8(q, step, 128, first, torch.uint8, "relu", steps[0])
        return _multiply_int8(between, steps[0], 0, second, out.dtype)

    return product


def predict(answer: Callable[[Rows], Tensor], rows: Rows, batches: Sequence[np.ndarray]) -> tuple[np.ndarray, float]:
    """Logits of the two label words in the order of ``rows``, shape (reviews, 2), and the seconds it took."""
    import torch

    logits = np.zeros((len(rows), 2))
    with torch.inference_mode():
        answer([rows[i] for i in batches[0]])  # once to warm up
        _wait()
        began = time.perf_counter()
        for batch in batches:
            logits[batch] = answer([rows[i] for i in batch]).float().cpu().numpy()
    return logits, time.perf_counter() - began


def token_batches(lengths: Sequence[int] | np.ndarray, tokens: int) -> list[np.ndarray]:
    """Rows from the longest to the shortest, in batches of at most so many tokens (a longer review makes one of its own)."""
    batches: list[list[int]] = [[]]
    room = tokens
    for row in np.argsort(-np.asarray(lengths), kind="stable"):
        if batches[-1] and lengths[row] > room:
            batches.append([])
            room = tokens
        batches[-1].append(int(row))
        room -= lengths[row]
    return [np.array(batch) for batch in batches]
