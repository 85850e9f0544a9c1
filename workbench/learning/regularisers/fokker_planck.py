"""Fokker-Planck residual of the score, as a penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from workbench.learning.objectives.base import Denoise
from workbench.learning.regularisers.base import Regulariser
from workbench.params import Param
from workbench.registry import register


@register
@dataclass(frozen=True)
class FokkerPlanck(Regulariser):
    r"""Penalty on how far the score is from one that the noising process carries along.

    With :math:`y = x_0 + \rho\epsilon` the score of the noised law obeys

    .. math:: \partial_\rho s = \rho\,\nabla(\nabla\!\cdot s + |s|^2),\qquad
              R = \rho^2\left[\partial_\rho s - \rho\,\nabla(\nabla\!\cdot s + |s|^2)\right],

    and the penalty is the mean of :math:`|R|^2/d`. The factor makes R a pure number at every noise
    level. The divergence is exact, by d products, where there are at most ``exact`` dimensions,
    else one random direction stands for it, whose variance is part of the penalty.

    Source: Lai et al. 2022, arXiv:2210.04296, eq. 9, in y and rho.
    """

    weight: Annotated[float, Param("factor of the penalty", ge=0, le=1e6)] = 1.0
    samples: Annotated[int, Param("samples of a batch it is taken of", ge=1, le=4096)] = 64
    exact: Annotated[int, Param("dimensions up to which the divergence is exact", ge=0)] = 4

    def penalty(
        self, denoise: Denoise, y: Tensor, rho: Tensor, generator: torch.Generator
    ) -> Tensor:
        y, rho = y[: self.samples], rho[: self.samples]
        return self.residual(denoise, y, rho, generator).square().mean()

    def residual(
        self, denoise: Denoise, y: Tensor, rho: Tensor, generator: torch.Generator
    ) -> Tensor:
        """R of each state, like ``y``."""
        event, dim = y.shape[1:], y[0].numel()
        shape = (-1, *(1,) * len(event))

        def score(v: Tensor, level: Tensor) -> Tensor:
            return (denoise(v, level) - v) / level.square().reshape(shape)

        if dim <= self.exact:
            probes = torch.eye(dim).reshape(dim, 1, *event).expand(dim, *y.shape)
        else:
            probes = torch.randint(0, 2, (1, *y.shape), generator=generator) * 2.0 - 1.0
        probes = probes.to(y)

        def potential(v: Tensor) -> Tensor:
            s, pull = torch.func.vjp(lambda w: score(w, rho), v)
            trace = sum((pull(probe)[0] * probe).flatten(1).sum(1) for probe in probes)
            return (trace + s.square().flatten(1).sum(1)).sum()

        slope = torch.func.grad(potential)(y)
        _, change = torch.func.jvp(lambda level: score(y, level), (rho,), (torch.ones_like(rho),))
        level = rho.reshape(shape)
        return level.square() * (change - level * slope)
