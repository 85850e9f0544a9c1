"""Processes driven by a noise rate that grows linearly: VP and SubVP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from workbench.params import Param
from workbench.processes.base import Coefficients, Process
from workbench.registry import register


@dataclass(frozen=True)
class LinearRate(Process):
    r"""A process driven by the noise rate
    :math:`\beta(t) = \beta_{min} + (\beta_{max} - \beta_{min}) t` and its integral :math:`B(t)`.
    Time in [0, 1].
    """

    beta_min: Annotated[float, Param("noise rate at t = 0", ge=0, le=1e3)] = 0.1
    beta_max: Annotated[float, Param("noise rate at t = 1", gt=0, le=1e3)] = 20.0
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 1e-3

    t_max = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta_max < self.beta_min:
            raise ValueError(
                f"{type(self).__name__}: beta_max was {self.beta_max!r}; it must be at least "
                f"beta_min ({self.beta_min!r})."
            )

    def rate(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """beta(t) and B(t)."""
        slope = self.beta_max - self.beta_min
        return self.beta_min + slope * t, t * (self.beta_min + 0.5 * slope * t)

    def when(self, total: Tensor) -> Tensor:
        """The time at which B is ``total``."""
        # 0.5 (b1 - b0) t^2 + b0 t = B, solved in the form without cancellation.
        slope = self.beta_max - self.beta_min
        root = self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * total)
        return torch.where(total > 0, 2 * total / root, torch.zeros_like(total))


@register
@dataclass(frozen=True)
class VP(LinearRate):
    r"""Variance-preserving process with a linear noise rate.

    .. math:: \alpha = e^{-B/2},\quad \sigma^2 = 1 - e^{-B},\quad
              B(t) = \int_0^t \beta,\quad \beta(t) = \beta_{min} + (\beta_{max} - \beta_{min}) t

    so that :math:`f = -\beta/2`, :math:`g^2 = \beta`, :math:`\rho^2 = e^B - 1`. Time in [0, 1].

    Source: Song et al. 2021, *Score-Based Generative Modeling through SDEs*, arXiv:2011.13456.
    """

    def at(self, t: Tensor) -> Coefficients:
        beta, total = self.rate(t)
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
            rho=sigma / alpha,  # sqrt(expm1(B)) would overflow at the largest rates
        )

    def inverse(self, rho: Tensor) -> Tensor:
        return self.when(log1p_square(rho))

    def prior_std(self, t: float) -> float:
        """One: data of unit variance keep unit variance, as published."""
        return 1.0


@register
@dataclass(frozen=True)
class SubVP(LinearRate):
    r"""VP's signal with less noise: the standard deviation, not the variance, is :math:`1-e^{-B}`.

    .. math:: \alpha = e^{-B/2},\quad \sigma = 1 - e^{-B},\quad f = -\beta/2,\quad
              g^2 = \beta(1 - e^{-2B}),\quad \rho = 2\sinh(B/2)

    with :math:`B` and :math:`\beta` of :class:`VP`. Time in [0, 1].

    Source: Song et al. 2021, arXiv:2011.13456, appendix B.
    """

    def at(self, t: Tensor) -> Coefficients:
        beta, total = self.rate(t)
        alpha = torch.exp(-0.5 * total)
        return Coefficients(
            alpha=alpha,
            sigma=-torch.expm1(-total),
            d_alpha=-0.5 * beta * alpha,
            d_sigma=beta * torch.exp(-total),
            f=-0.5 * beta,
            g2=-beta * torch.expm1(-2 * total),
            rho=2 * torch.sinh(0.5 * total),
        )

    def inverse(self, rho: Tensor) -> Tensor:
        return self.when(2 * torch.asinh(0.5 * rho))

    def prior_std(self, t: float) -> float:
        """One, as published."""
        return 1.0


def log1p_square(x: Tensor) -> Tensor:
    """``log(1 + x^2)`` for x >= 0, without overflow at large x or cancellation at small x."""
    return torch.where(x > 1, 2 * x.log() + x.pow(-2).log1p(), x.square().log1p())
