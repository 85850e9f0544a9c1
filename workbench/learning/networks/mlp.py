"""Multilayer perceptrons: an unconstrained field, and the gradient of a scalar potential."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.learning.networks.base import Embedding, Network, zeroed
from workbench.params import Param
from workbench.registry import register

Width = Annotated[int, Param("units in a hidden layer", ge=1, le=4096)]
Depth = Annotated[int, Param("hidden layers", ge=1, le=32)]


class _Layers(nn.Module):
    """Residual layers of smooth units, each shifted and scaled by the embedding."""

    def __init__(self, into: int, width: int, depth: int, out: int, classes: int) -> None:
        super().__init__()
        self.embedding = Embedding(width, classes)
        self.first = nn.Linear(into, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
        self.scales = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(depth))
        self.last = nn.Linear(width, out)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None) -> Tensor:
        hidden, embedded = self.first(x), self.embedding(noise, labels)
        for index, scales in enumerate(self.scales):
            scale, shift = scales(embedded).chunk(2, 1)
            active = functional.silu(hidden * (1 + scale) + shift)
            hidden = hidden + self.layers[index](active) if index < len(self.layers) else active
        return self.last(hidden)


@register
class MLP(Network):
    """A residual perceptron on flattened states: any field, not only gradients."""

    def __init__(self, event_shape, classes: int = 0, width: Width = 64, depth: Depth = 4) -> None:
        super().__init__(event_shape, classes, width=width, depth=depth)
        dim = math.prod(self.event_shape)
        self.field = _Layers(dim, width, depth, dim, self.classes)
        zeroed(self.field.last)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.field(x.flatten(1), noise, labels).reshape(x.shape)


@register
class Potential(Network):
    r"""The gradient of a scalar perceptron, :math:`F = \nabla_x U(x)`: conservative.

    The denoiser inside EDM's scalings is then a gradient as well, at every noise level.

    Source: Salimans & Ho 2021, *Should EBMs model the energy or the score?*
    """

    def __init__(self, event_shape, classes: int = 0, width: Width = 64, depth: Depth = 4) -> None:
        super().__init__(event_shape, classes, width=width, depth=depth)
        self.potential = _Layers(math.prod(self.event_shape), width, depth, 1, self.classes)

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.func.grad(lambda v: self.value(v, noise, labels).sum())(x)

    def value(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """U of scaled states (n, *event): (n,)."""
        return self.potential(x.flatten(1), noise, labels).squeeze(1)
