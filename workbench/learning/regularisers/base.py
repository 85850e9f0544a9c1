"""The base of a regulariser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from workbench.learning.objectives.base import Denoise
from workbench.params import Parameterised


class Regulariser(Parameterised, ABC):
    """A penalty on a network; a subclass is a frozen dataclass with a ``weight``."""

    registry_kind: ClassVar[str] = "regulariser"
    #: What ``penalty`` is handed: the denoiser, or the "log_density" of a network with a potential.
    takes: ClassVar[str] = "denoiser"
    weight: float

    @abstractmethod
    def penalty(
        self, denoise: Denoise, y: Tensor, rho: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The penalty, a scalar without the weight.

        Args:
            denoise: the network as what the regulariser ``takes``: the posterior mean like ``y``,
                or the logarithm of the density of noised data (n,).
            y: noised data (n, *event).
            rho: their noise levels (n,).
            generator: of all that it draws.
        """
