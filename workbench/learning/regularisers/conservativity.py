"""Conservativity: the antisymmetric part of the denoiser's Jacobian, as a penalty."""

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
class Conservativity(Regulariser):
    r"""Penalty on the antisymmetric part of the Jacobian, which a gradient field lacks.

    .. math:: \frac1d E\,|J - J^\top|_F^2 = \frac1d E_v |J v - J^\top v|^2,\qquad E[v v^\top] = I

    J of the denoised state: that of the score times rho squared, but for the identity.

    Source: Chao et al. 2022, arXiv:2209.12753.
    """

    weight: Annotated[float, Param("factor of the penalty", ge=0, le=1e6)] = 1.0
    samples: Annotated[int, Param("samples of a batch it is taken of", ge=1, le=4096)] = 64

    def penalty(
        self, denoise: Denoise, y: Tensor, rho: Tensor, generator: torch.Generator
    ) -> Tensor:
        y, rho = y[: self.samples], rho[: self.samples]
        probe = (torch.randint(0, 2, y.shape, generator=generator) * 2.0 - 1.0).to(y)
        function = lambda v: denoise(v, rho)  # noqa: E731
        _, forward = torch.func.jvp(function, (y,), (probe,))
        _, pull = torch.func.vjp(function, y)
        return (forward - pull(probe)[0]).flatten(1).square().sum(1).mean() / y[0].numel()
