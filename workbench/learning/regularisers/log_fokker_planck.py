"""Fokker-Planck residual of the log-density of a potential, as a penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from workbench.learning.objectives.base import Denoise
from workbench.learning.regularisers.base import Regulariser
from workbench.params import Param
from workbench.registry import register


@register
@dataclass(frozen=True)
class LogFokkerPlanck(Regulariser):
    r"""Penalty on how far the log-density of a potential is from one that noising carries along.

    .. math:: \partial_\rho u = \rho\,(\Delta u + |\nabla u|^2),\qquad
              r = \rho\left[\partial_\rho u - \rho\,(\Delta u + |\nabla u|^2)\right]

    with :math:`u = \log p`, and the penalty is the mean of :math:`r^2/d`. It sees what the score
    form cannot, the part of u that depends on the noise alone, and takes one derivative less. The
    score form is its gradient, :math:`R = \rho\nabla r`. The Laplacian is exact, by d products,
    where there are at most ``exact`` dimensions, else one random direction stands for it.

    Sources: Deveney et al. 2023, arXiv:2304.04558, in y and rho; Lai et al. 2022, arXiv:2210.04296.
    """

    takes: ClassVar[str] = "log_density"

    weight: Annotated[float, Param("factor of the penalty", ge=0, le=1e6)] = 1.0
    samples: Annotated[int, Param("samples of a batch it is taken of", ge=1, le=4096)] = 64
    exact: Annotated[int, Param("dimensions up to which the Laplacian is exact", ge=0)] = 4

    def penalty(
        self, denoise: Denoise, y: Tensor, rho: Tensor, generator: torch.Generator
    ) -> Tensor:
        y, rho = y[: self.samples], rho[: self.samples]
        return self.residual(denoise, y, rho, generator).square().mean() / y[0].numel()

    def residual(
        self, log_density: Denoise, y: Tensor, rho: Tensor, generator: torch.Generator
    ) -> Tensor:
        """r of each state (n,), of ``log_density(y, rho)`` (n,)."""
        event, dim = y.shape[1:], y[0].numel()
        if dim <= self.exact:
            probes = torch.eye(dim).reshape(dim, 1, *event).expand(dim, *y.shape)
        else:
            probes = torch.randint(0, 2, (1, *y.shape), generator=generator) * 2.0 - 1.0
        score = torch.func.grad(lambda v: log_density(v, rho).sum())
        slope, pull = torch.func.vjp(score, y)
        laplacian = sum((pull(p)[0] * p).flatten(1).sum(1) for p in probes.to(y))
        change = torch.func.grad(lambda level: log_density(y, level).sum())(rho)
        return rho * (change - rho * (laplacian + slope.square().flatten(1).sum(1)))
