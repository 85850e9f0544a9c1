"""Flow matching: squared error of the velocity of straight paths, and how its times are drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from workbench.learning.objectives.base import Objective
from workbench.params import Param
from workbench.registry import register

#: Times are kept this far from data and from pure noise.
EDGE = 1e-4


class _Velocity(Objective):
    """Squared error of the velocity; a subclass draws the times."""

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times (count,) from 0, data, to 1, noise."""
        raise NotImplementedError

    def levels(self, count: int, generator: torch.Generator) -> Tensor:
        t = self.times(count, generator).clamp(EDGE, 1 - EDGE)
        return t / (1 - t)

    def loss(self, points: Tensor, denoised: Tensor, rho: Tensor, spread: float) -> Tensor:
        error = (denoised - points).square().flatten(1).mean(1)
        return ((1 + rho) / rho) ** 2 * error

    @property
    def largest(self) -> float:
        return (1 - EDGE) / EDGE


@register
@dataclass(frozen=True)
class FlowMatching(_Velocity):
    r"""Squared error of the velocity of straight paths, at uniform or logit-normal times.

    With :math:`x_t = (1-t)x_0 + t\epsilon`, :math:`\rho = t/(1-t)` and the velocity
    :math:`v = (x_t - D)/t`,

    .. math:: L = \frac1d|v - (\epsilon - x_0)|^2 = \frac{1}{t^2}\,\frac1d|D - x_0|^2 .

    ``spread`` of 0 draws t uniformly, else :math:`\operatorname{logit} t = \log\rho \sim
    N(\text{mean}, \text{spread}^2)`.

    Sources: Lipman et al. 2023, arXiv:2210.02747; Esser et al. 2024, arXiv:2403.03206, section 3.
    """

    mean: Annotated[float, Param("mean of log rho, of logit-normal times", ge=-10, le=10)] = 0.0
    spread: Annotated[
        float, Param("standard deviation of log rho; 0: uniform times", ge=0, le=10)
    ] = 0.0

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        if not self.spread:
            return torch.rand(count, generator=generator)
        return (self.mean + self.spread * torch.randn(count, generator=generator)).sigmoid()


@register
@dataclass(frozen=True)
class UShaped(_Velocity):
    r"""Flow matching at times near data and near noise, where straightened flows err most.

    .. math:: p(t) = \frac{a\,(e^{at} + e^{a(1-t)})}{2\,(e^a - 1)}

    Source: Lee et al. 2024, arXiv:2405.20320, section 4.1, with a = 4.
    """

    a: Annotated[float, Param("how much more often the ends are drawn", gt=0, le=50)] = 4.0

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        u = torch.rand(count, generator=generator, dtype=torch.float64)
        rising = (u * math.expm1(self.a)).log1p() / self.a
        mirrored = torch.rand(count, generator=generator) < 0.5
        return torch.where(mirrored, 1 - rising, rising).float()
