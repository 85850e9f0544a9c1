"""The base of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from workbench.params import Parameterised

#: The denoiser in training: states y = x0 + rho eps (n, *event), noise levels rho (n,) -> D.
Denoise = Callable[[Tensor, Tensor], Tensor]


class Objective(Parameterised, ABC):
    """What a network is trained by; a subclass is a frozen dataclass of declared parameters."""

    registry_kind: ClassVar[str] = "objective"

    @abstractmethod
    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        """Noise levels rho (count,), float32, at which the network is trained."""

    @abstractmethod
    def loss(self, points: Tensor, denoised: Tensor, rho: Tensor, spread: float) -> Tensor:
        """The loss of each sample (n,).

        Args:
            points: clean data (n, *event).
            denoised: what the network made of them, noised.
            rho: their noise levels (n,).
            spread: root mean square deviation of the data [x].
        """

    def fitted(self, points: Tensor) -> Objective:
        """The objective for these training data (n, *event), where it depends on them."""
        return self

    @property
    def largest(self) -> float:
        """The noise level beyond which the network is hardly trained; it is not asked there."""
        return 80.0
