"""Min-SNR weighting: the weight of little noise is bounded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from workbench.learning.objectives.base import Objective
from workbench.params import Param
from workbench.registry import register

#: Angles of the cosine schedule are kept this far from its ends.
EDGE = 1e-3


@register
@dataclass(frozen=True)
class MinSNR(Objective):
    r"""Squared error weighted by the smaller of the signal-to-noise ratio and a bound.

    .. math:: L = \min(\rho^{-2}, \gamma)\,\frac1d|D - x_0|^2,\qquad
              \rho = \tan\frac{\pi t}{2},\quad t \sim U(0, 1)

    The same as :math:`\min(\rho^{-2}, \gamma)\rho^2` times the error of the noise, and as
    :math:`\min(\rho^{-2}, \gamma)/(\rho^{-2} + 1)` times that of v. The times are those of the
    cosine schedule.

    Source: Hang et al. 2023, arXiv:2303.09556, section 3.4.
    """

    gamma: Annotated[float, Param("largest weight", gt=0, le=1e6)] = 5.0

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        t = torch.rand(count, generator=generator).clamp(EDGE, 1 - EDGE)
        return (0.5 * math.pi * t).tan()

    def loss(self, points: Tensor, denoised: Tensor, rho: Tensor, spread: float) -> Tensor:
        error = (denoised - points).square().flatten(1).mean(1)
        return rho.square().reciprocal().clamp_max(self.gamma) * error

    @property
    def largest(self) -> float:
        return math.tan(0.5 * math.pi * (1 - EDGE))
