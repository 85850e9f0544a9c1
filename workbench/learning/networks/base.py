"""The base of a network: what it is made for, and the embedding of noise and class."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from workbench.params import check, declared

#: Largest frequency of the features of a quarter of log rho.
HIGHEST = 16.0


class Network(nn.Module):
    """A function F(x, noise, labels) of scaled states (n, *event) that answers in their shape.

    A subclass takes ``event_shape`` and ``classes`` and declares its further parameters; it calls
    ``super().__init__(event_shape, classes, **parameters)`` first.

    Args:
        event_shape: of one sample.
        classes: number of classes that it is conditioned on; 0: of none.

    Attributes:
        parameters_given: the declared parameters by name.
    """

    registry_kind: ClassVar[str] = "network"

    def __init__(self, event_shape, classes: int = 0, **given) -> None:
        super().__init__()
        check(type(self), given)
        self.event_shape, self.classes = torch.Size(event_shape), int(classes)
        self.parameters_given = {name: given[name] for name in declared(type(self))}

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """F of states (n, *event) in units of their own spread.

        Args:
            x: scaled states.
            noise: a quarter of log rho (n,).
            labels: classes (n,) int64, ``classes`` itself standing for none; None: of none.
        """
        raise NotImplementedError


def zeroed(layer: nn.Module) -> nn.Module:
    """A layer that begins with an answer of 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class Embedding(nn.Module):
    """Features (n, width) of the noise level and of the class.

    Args:
        apart: spread of what the classes add at the start. At 0 a network begins without them and
            learns of them late.
    """

    def __init__(self, width: int, classes: int, features: int = 32, apart: float = 0.0) -> None:
        super().__init__()
        frequencies = torch.logspace(math.log10(0.5), math.log10(HIGHEST), features // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.classes = classes
        self.into, self.out = nn.Linear(features, width), nn.Linear(width, width)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=apart) if apart else zeroed(self.label)

    def forward(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        angle = noise[:, None] * self.frequencies
        hidden = self.into(torch.cat([angle.cos(), angle.sin()], 1))
        if self.label is not None:
            if labels is None:
                labels = torch.full_like(noise, self.classes, dtype=torch.int64)
            hidden = hidden + self.label(labels)
        return functional.silu(self.out(functional.silu(hidden)))
