"""The optimizer of pocket T5's layers in pre-training."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


class Muon:
    """The optimizer of the layers' matrices: steps of equal length in all directions (Jordan et al. 2024, "Muon").

    The momentum of a matrix is brought near to the nearest orthogonal one by five Newton-Schulz steps with the
    authors' coefficients. PyTorch's own Muon computes these in bfloat16, which is slow on many processors; this one
    does it in fp32, all matrices of a shape at once. ``state``: the momenta.
    """

    COEFFICIENTS, MOMENTUM = (3.4445, -4.7750, 2.0315), 0.95

    def __init__(self, matrices: list[nn.Parameter]) -> None:
        import torch

        shapes = sorted({tuple(matrix.shape) for matrix in matrices})
        self.groups = [[matrix for matrix in matrices if tuple(matrix.shape) == shape] for shape in shapes]
        self.state = [torch.zeros(len(group), *shape) for group, shape in zip(self.groups, shapes, strict=True)]

    def step(self, rate: float) -> None:
        """Move every matrix by ``rate`` in each of its directions.

        Times the root of rows over columns where there are more rows than columns.
        """
        import torch

        with torch.no_grad():
            for group, momentum in zip(self.groups, self.state, strict=True):
                gradient = torch.stack([matrix.grad for matrix in group])
                momentum.lerp_(gradient, 1 - self.MOMENTUM)
                x = gradient.lerp(momentum, self.MOMENTUM)
                tall = x.shape[1] > x.shape[2]
                x = x.mT if tall else x
                x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
                a, b, c = self.COEFFICIENTS
                for _ in range(5):
                    square = x @ x.mT
                    x = a * x + (b * square + c * square @ square) @ x
                x = x.mT if tall else x
                length = rate * max(1.0, x.shape[1] / x.shape[2]) ** 0.5
                for matrix, direction in zip(group, x, strict=True):
                    matrix.add_(direction, alpha=-length)
