"""EDM's objective: log-normal noise levels, and the weight under which all of them count alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from workbench.denoisers.precondition import edm_preconditioning
from workbench.learning.objectives.base import Objective
from workbench.params import Param
from workbench.registry import register

#: Standard deviations of log rho above the mean beyond which a network is not asked.
REACH = 4.0


@register
@dataclass(frozen=True)
class EDMLoss(Objective):
    r"""Weighted squared error of the denoised state at log-normal noise levels.

    .. math:: \log\rho \sim N(P_{mean}, P_{std}^2),\qquad
              L = \frac{\rho^2 + \sigma_d^2}{(\rho\sigma_d)^2}\,
              \frac1d |D(x_0 + \rho\epsilon) - x_0|^2

    Source: Karras et al. 2022, arXiv:2206.00364, table 1.
    """

    p_mean: Annotated[float, Param("mean of log rho", ge=-10, le=10)] = -1.2
    p_std: Annotated[float, Param("standard deviation of log rho", gt=0, le=10)] = 1.2

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        return (self.p_mean + self.p_std * torch.randn(count, generator=generator)).exp()

    def loss(self, points: Tensor, denoised: Tensor, rho: Tensor, spread: float) -> Tensor:
        return edm_preconditioning(rho, spread).weight * (denoised - points).square().flatten(
            1
        ).mean(1)

    @property
    def largest(self) -> float:
        return math.exp(self.p_mean + REACH * self.p_std)
