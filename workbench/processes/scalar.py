"""Processes with one alpha and one sigma for the whole state."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
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


@register
@dataclass(frozen=True)
class Cosine(Process):
    r"""Variance-preserving process whose signal falls as a cosine.

    .. math:: \alpha = \frac{\cos k(t+s)}{\cos ks} = \frac{\sin k(1-t)}{\sin k},\quad
              \sigma^2 = 1 - \alpha^2 = \frac{\sin kt\,\sin k(t+2s)}{\sin^2 k},\quad
              k = \frac{\pi}{2(1+s)}

    so that :math:`f = -k\tan k(t+s)`, :math:`g^2 = -2f`. Time in [0, 1], both ends included: at
    t = 1 the state is pure noise and rho, f and g2 are infinite.

    Source: Nichol & Dhariwal 2021, *Improved Denoising Diffusion Probabilistic Models*,
    arXiv:2102.09672, eq. 17.
    """

    offset: Annotated[float, Param("s, for a quicker start of the noise", ge=0, le=1)] = 0.008
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 1e-3

    t_max = 1.0

    @property
    def _k(self) -> float:
        return 0.5 * math.pi / (1 + self.offset)

    def at(self, t: Tensor) -> Coefficients:
        k, s = self._k, self.offset
        one = torch.ones_like(t)
        # Of the equal forms, those without cancellation at either end, whatever s: 1 - t is exact,
        # and cos k(1-t) = sin k(t+s), sin k = sin k(1+2s).
        signal, slope = torch.sin(k * (1 - t)), k * torch.sin(k * (t + s))
        norm = torch.sin(k * one)
        alpha, d_alpha = signal / norm, -slope / norm
        rest = torch.sin(k * (t + 2 * s)) / torch.sin(k * (one + 2 * s))
        sigma = torch.sqrt(torch.sin(k * t) / norm * rest)
        d_sigma = -alpha * d_alpha / sigma
        f = -slope / signal
        return Coefficients(
            alpha=alpha,
            sigma=sigma,
            d_alpha=d_alpha,
            d_sigma=torch.where(sigma > 0, d_sigma, math.inf if s > 0 else k),
            f=f,
            g2=-2 * f,
            rho=sigma / alpha,
        )

    def inverse(self, rho: Tensor) -> Tensor:
        k = self._k
        sin, cos = math.sin(k), math.sin(k * self.offset)  # of k
        alpha = 1 / torch.hypot(torch.ones_like(rho), rho)
        sigma = rho * alpha
        # With k(1-t) = phi, sin phi = alpha sin k: kt = k - phi by its sine and cosine.
        cos_phi = torch.hypot(sigma, alpha * cos)
        sine = sin * sigma * (sigma / (cos_phi + alpha * cos))
        t = torch.atan2(sine, cos * cos_phi + alpha * sin**2) / k
        return torch.where(rho > 0, torch.where(rho.isinf(), 1.0, t), 0.0)

    def prior_std(self, t: float) -> float:
        """One: data of unit variance keep unit variance."""
        return 1.0


@register
@dataclass(frozen=True)
class VE(Process):
    r"""Variance-exploding process: geometric noise levels on unscaled data.

    .. math:: \alpha = 1,\quad \sigma = \sigma_{min} r^t,\quad f = 0,\quad g^2 = 2\ln(r)\sigma^2,
              \quad r = \sigma_{max}/\sigma_{min}

    Time in [0, 1]. **At t = 0 the noise is sigma_min, not 0**: levels below have no time.

    Source: Song et al. 2021, arXiv:2011.13456, appendix C.
    """

    sigma_min: Annotated[float, Param("noise level at t = 0", gt=0, le=1e6)] = 0.01
    sigma_max: Annotated[float, Param("noise level at t = 1", gt=0, le=1e6)] = 50.0
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 1e-5

    t_max = 1.0
    ascending = ("sigma_min", "sigma_max")

    def at(self, t: Tensor) -> Coefficients:
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        # As a product of powers it is exact at both ends.
        sigma = (self.sigma_min * one) ** (1 - t) * (self.sigma_max * one) ** t
        rate = math.log(self.sigma_max / self.sigma_min)
        return Coefficients(
            alpha=one,
            sigma=sigma,
            d_alpha=zero,
            d_sigma=rate * sigma,
            f=zero,
            g2=2 * rate * sigma.square(),
            rho=sigma,
        )

    def inverse(self, rho: Tensor) -> Tensor:
        # log1p keeps what there is of t next to the smallest level; at the largest it may round.
        excess = torch.log1p((rho - self.sigma_min) / self.sigma_min)
        t = excess / math.log(self.sigma_max / self.sigma_min)
        return torch.where(rho == self.sigma_max, 1.0, t)


@register
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

    t_min = property(attrgetter("sigma_min"))
    t_max = property(attrgetter("sigma_max"))
    ascending = ("sigma_min", "sigma_max")

    def at(self, t: Tensor) -> Coefficients:
        one, zero = torch.ones_like(t), torch.zeros_like(t)
        return Coefficients(alpha=one, sigma=t, d_alpha=zero, d_sigma=one, f=zero, g2=2 * t, rho=t)

    def inverse(self, rho: Tensor) -> Tensor:
        return rho


@register
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


@register
@dataclass(frozen=True)
class OU(Process):
    r"""The Ornstein-Uhlenbeck process :math:`dx = -\theta x\,dt + g\,dW`, started from the data.

    .. math:: \alpha = e^{-\theta t},\quad \sigma^2 = \frac{g^2}{2\theta}(1 - e^{-2\theta t}),\quad
              f = -\theta,\quad \rho^2 = \frac{g^2}{2\theta}(e^{2\theta t} - 1)

    Time in [0, t_max]. Sampling starts from the stationary law :math:`N(0, g^2/2\theta)`; at
    ``t_max`` the share :math:`e^{-\theta t_{max}}` of the data is still there.

    Source: Uhlenbeck & Ornstein 1930; as a diffusion model, with these defaults, Deveney et al.
    2023, *Closing the ODE-SDE Gap in Score-Based Diffusion Models through the Fokker-Planck
    Equation*, arXiv:2311.15996.
    """

    theta: Annotated[float, Param("rate at which the data decay [1/t]", gt=0, le=30)] = 1.0
    noise: Annotated[float, Param("strength g of the noise [x/sqrt t]", gt=0, le=1e3)] = 1.0
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=20)] = 1e-5
    t_max: Annotated[float, Param("where sampling starts", gt=0, le=20)] = 10.0

    ascending = ("t_min", "t_max")

    @property
    def stationary_std(self) -> float:
        """Standard deviation [x] of the law the process forgets everything for."""
        return self.noise / math.sqrt(2 * self.theta)

    def at(self, t: Tensor) -> Coefficients:
        return relaxation(self.theta, self.stationary_std, self.noise**2, t)

    def inverse(self, rho: Tensor) -> Tensor:
        return log1p_square(rho / self.stationary_std) / (2 * self.theta)

    def prior_std(self, t: float) -> float:
        """The stationary standard deviation, whatever ``t``."""
        return self.stationary_std


def relaxation(theta: float, std: float, g2: float, t: Tensor) -> Coefficients:
    """Coefficients of an Ornstein-Uhlenbeck process with the stationary deviation ``std``."""
    alpha = torch.exp(-theta * t)
    sigma = std * torch.sqrt(-torch.expm1(-2 * theta * t))
    one = torch.ones_like(t)
    return Coefficients(
        alpha=alpha,
        sigma=sigma,
        d_alpha=-theta * alpha,
        d_sigma=0.5 * g2 * alpha.square() / sigma,
        f=-theta * one,
        g2=g2 * one,
        rho=sigma / alpha,
    )


def log1p_square(x: Tensor) -> Tensor:
    """``log(1 + x^2)`` for x >= 0, without overflow at large x or cancellation at small x."""
    return torch.where(x > 1, 2 * x.log() + x.pow(-2).log1p(), x.square().log1p())
