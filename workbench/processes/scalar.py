"""Processes with one alpha and one sigma for the whole state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from workbench.params import Param
from workbench.processes.base import Coefficients, Process

__all__ = ["EDM", "VP", "RectifiedFlow"]


@dataclass(frozen=True)
class VP(Process):
    r"""Variance-preserving process with a linear noise rate.

    .. math:: \alpha = e^{-B/2},\quad \sigma^2 = 1 - e^{-B},\quad
              B(t) = \int_0^t \beta,\quad \beta(t) = \beta_{min} + (\beta_{max} - \beta_{min}) t

    so that :math:`f = -\beta/2`, :math:`g^2 = \beta`, :math:`\rho^2 = e^B - 1`. Time in [0, 1].

    Source: Song et al. 2021, *Score-Based Generative Modeling through SDEs*, arXiv:2011.13456.
    """

    beta_min: Annotated[float, Param("noise rate at t = 0", ge=0, le=1e3)] = 0.1
    beta_max: Annotated[float, Param("noise rate at t = 1", gt=0, le=1e3)] = 20.0
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 1e-3

    t_max = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_max < self.beta_min:
            raise ValueError(
                f"VP: beta_max was {self.beta_max!r}; it must be at least beta_min "
                f"({self.beta_min!r})."
            )

    def at(self, t: Tensor) -> Coefficients:
        beta = self.beta_min + (self.beta_max - self.beta_min) * t
        total = self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t
        alpha, sigma = torch.exp(-0.5 * total), torch.sqrt(-torch.expm1(-total))
        # Without an initial rate sigma starts as sqrt(beta_max/2) t.
        at_zero = math.inf if self.beta_min > 0 else math.sqrt(0.5 * self.beta_max)
        d_sigma = 0.5 * beta * alpha.square() / sigma
        return Coefficients(
            alpha=alpha,
            sigma=sigma,
            d_alpha=-0.5 * beta * alpha,
            d_sigma=torch.where(sigma > 0, d_sigma, at_zero),
            f=-0.5 * beta,
            g2=beta,
            rho=torch.sqrt(torch.expm1(total)),
        )

    def inverse(self, rho: Tensor) -> Tensor:
        # 0.5 (b1 - b0) t^2 + b0 t = log(1 + rho^2), solved in the form without cancellation.
        total = torch.log1p(rho.square())
        slope = self.beta_max - self.beta_min
        root = self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * total)
        return torch.where(total > 0, 2 * total / root, torch.zeros_like(total))

    def prior_std(self, t: float) -> float:
        """One: data of unit variance keep unit variance, as published."""
        return 1.0


@dataclass(frozen=True)
class EDM(Process):
    r"""The plain noising process :math:`x_t = x_0 + t \epsilon`: time is the noise level.

    :math:`\alpha = 1`, :math:`\sigma = \rho = t`, :math:`f = 0`, :math:`g^2 = 2t`. Time in
    [0, sigma_max], in units of the data.

    Source: Karras et al. 2022, *Elucidating the Design Space of Diffusion-Based Generative
    Models*, arXiv:2206.00364.
    """

    sigma_min: Annotated[float, Param("smallest noise level of a grid", gt=0, le=1e6)] = 0.002
    sigma_max: Annotated[float, Param("largest noise level", gt=0, le=1e6)] = 80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_max <= self.sigma_min:
            raise ValueError(
                f"EDM: sigma_max was {self.sigma_max!r}; it must be greater than sigma_min "
                f"({self.sigma_min!r})."
            )

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def at(self, t: Tensor) -> Coefficients:
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        return Coefficients(alpha=one, sigma=t, d_alpha=zero, d_sigma=one, f=zero, g2=2 * t, rho=t)

    def inverse(self, rho: Tensor) -> Tensor:
        return rho


@dataclass(frozen=True)
class RectifiedFlow(Process):
    r"""The straight path :math:`x_t = (1 - t) x_0 + t \epsilon` of flow matching.

    :math:`f = -1/(1-t)`, :math:`g^2 = 2t/(1-t)`, :math:`\rho = t/(1-t)`. Time in [0, 1], both ends
    included: at t = 1 the state is pure noise and rho is infinite.

    Sources: Liu et al. 2023, arXiv:2209.03003; Lipman et al. 2023, arXiv:2210.02747.
    """

    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 1e-3

    t_max = 1.0

    def at(self, t: Tensor) -> Coefficients:
        one = torch.ones_like(t)
        return Coefficients(
            alpha=1 - t,
            sigma=t,
            d_alpha=-one,
            d_sigma=one,
            f=-1 / (1 - t),
            g2=2 * t / (1 - t),
            rho=t / (1 - t),
        )

    def inverse(self, rho: Tensor) -> Tensor:
        return torch.where(torch.isinf(rho), torch.ones_like(rho), rho / (1 + rho))
