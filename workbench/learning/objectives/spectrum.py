"""Spectrum-weighted objective: modes of little variance count as much as those of much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from workbench.denoisers.precondition import edm_preconditioning
from workbench.learning.objectives.edm import EDMLoss
from workbench.params import Param
from workbench.processes.bases import DCT
from workbench.registry import register


@register
@dataclass(frozen=True)
class SpectrumWeighted(EDMLoss):
    r"""EDM's loss with the error of each cosine mode weighted by the data's spectrum.

    .. math:: L = \frac{\rho^2 + \sigma_d^2}{(\rho\sigma_d)^2}\,
              \frac1d\sum_k w_k\,\hat e_k^2,\qquad
              w_k \propto \max(S_k, \epsilon\bar S)^{-\beta/2},\quad \bar w = 1,

    with :math:`\hat e` the cosine transform of the error and S the variance of the training data in
    each mode. ``beta`` of 0 is EDM's loss, 1 weights by the inverse magnitude of the spectrum. The
    minimiser is the posterior mean for any weights: they tell a small network what to spend on.

    Source: Yang et al. 2023, arXiv:2211.17106 (there |F(x0)| of each image, in distillation).
    """

    beta: Annotated[float, Param("exponent of the inverse magnitude", ge=0, le=4)] = 1.0
    floor: Annotated[
        float, Param("least variance of a mode, as a share of their mean", gt=0, le=1)
    ] = 1e-3

    def fitted(self, points: Tensor) -> SpectrumWeighted:
        fitted = type(self)(**{name: getattr(self, name) for name in self.__dataclass_fields__})
        basis = DCT(points.shape[1:])
        spectrum = basis.forward(points.double() - points.double().mean(0)).square().mean(0)
        weights = spectrum.clamp_min(self.floor * spectrum.mean()) ** (-0.5 * self.beta)
        object.__setattr__(fitted, "basis", basis)
        object.__setattr__(fitted, "weights", weights / weights.mean())
        return fitted

    def loss(self, points: Tensor, denoised: Tensor, rho: Tensor, spread: float) -> Tensor:
        if "weights" not in vars(self):
            raise ValueError(
                "SpectrumWeighted does not know the spectrum of the data yet; call "
                "objective.fitted(points) first, as wb.learning.train does."
            )
        error = self.basis.forward(denoised - points).square() * self.weights.to(denoised)
        return edm_preconditioning(rho, spread).weight * error.flatten(1).mean(1)
