"""Lesson 03: matrix products of 8-bit integers, for the encoder in prediction."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def has_int8() -> bool:
    """Whether PyTorch's oneDNN multiplies 8-bit integers here, and rightly.

    A processor without VNNI or AMX adds two products in 16 bits and cuts what does not fit (oneDNN's developer guide,
    "Nuances of int8 computations"); the largest integers show it.
    """
    if torch.cuda.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return False
    packed = torch.ops.onednn.qlinear_prepack(torch.full((64, 64), 127, dtype=torch.int8), None)
    largest = torch.full((64, 64), 255, dtype=torch.uint8)
    product = multiply_int8(largest, 1.0, 0, (packed, torch.ones(64)), torch.float32)
    return bool((product == 64 * 255 * 127).all())


def multiply_int8(
    q: Tensor, step: float, zero: int, matrix: tuple[Tensor, Tensor], dtype: torch.dtype, after: str = "none",
    made_step: float = 1.0,
) -> Tensor:  # fmt: skip
    """The product of ``step * (q - zero)``, (tokens, inputs) in unsigned 8 bits, and a ``matrix`` of ``packed_int8``.

    ``dtype``: of the product, (tokens, outputs); torch.uint8 counts in units of ``made_step``. ``after``: "none" or
    "relu", applied to the product.
    """
    packed, scale = matrix
    zeros = torch.zeros_like(scale, dtype=torch.int)
    multiply = torch.ops.onednn.qlinear_pointwise
    return multiply(q, step, zero, packed, scale, zeros, None, made_step, 0, dtype, after, [], "")


def packed_int8(weight: Tensor, norm: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """A weight (outputs, inputs) in 8 bits, packed, and a scale per output; the weights of ``norm`` go into it."""
    full = weight.float() if norm is None else weight.float() * norm.weight.float()
    scale = full.abs().amax(1) / 127
    return torch.ops.onednn.qlinear_prepack((full / scale[:, None]).round().to(torch.int8), None), scale


def _rounded(x: Tensor, norm: nn.Module | None = None) -> tuple[Tensor, float]:
    """``x`` in unsigned 8 bits around 128, and the step between them, one for all tokens.

    Of the normalization only the factor per token is left, as its weights went into the matrix. Conversions go by 32
    and by 16 bits: PyTorch's direct ones are several times slower.
    """
    full = x.float()
    if norm is not None:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32)
        full = x * (length.square() / x.shape[1] + norm.variance_epsilon).rsqrt()  # not in place: x goes on as it is
    low, high = full.aminmax()
    step = max(high.item(), -low.item(), 1e-9) / 127
    q = torch.add(torch.tensor([128.5]), full, alpha=1 / step)
    return q.to(torch.int16).to(torch.uint8), step


def int8_projection(weight: Tensor, norm: nn.Module | None = None) -> Callable[[Tensor], Tensor]:
    """A projection with weights and inputs in 8 bits."""
    matrix = packed_int8(weight, norm)
    return lambda x: multiply_int8(*_rounded(x, norm), 128, matrix, weight.dtype)


def int8_feed_forward(into: Tensor, out: Tensor, norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """Both projections in 8 bits; what lies between them is rounded as it is computed.

    Its step must therefore be known before: the largest value of the first batch and a quarter more make the 255th
    step, and what exceeds it later is cut.
    """
    first, second = packed_int8(into, norm), packed_int8(out)
    steps: list[float] = []  # the one of the first batch, once it is known

    def product(x: Tensor) -> Tensor:
        q, step = _rounded(x, norm)
        if not steps:
            largest = multiply_int8(q, step, 128, first, into.dtype, "relu").max().item()
            steps.append(max(1.25 * largest / 255, 1e-9))
        between = multiply_int8(q, step, 128, first, torch.uint8, "relu", steps[0])
        return multiply_int8(between, steps[0], 0, second, out.dtype)

    return product
