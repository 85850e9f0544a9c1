r"""Processes that also draw the data towards a condition:
:math:`x_t = \alpha x_0 + m\mu + \sigma\epsilon`.

The condition :math:`\mu` (a noisy recording, a degraded image) is given to the diffusion. On the
shifted variable :math:`u = x - m\mu` an affine process is a plain one, so every sampler serves it;
one that discretises in t steps x itself, of which the drift :math:`\dot m\mu` is a part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from workbench.params import Declared, Param
from workbench.processes.base import Coefficients, Number, Process, _like
from workbench.processes.scalar import LinearRate, log1p_square, relaxation
from workbench.registry import register


class Affine(Process):
    """A process whose mean moves from the data to a condition.

    A subclass adds ``shift_at`` to what a process gives.

    Attributes:
        asks: what a study says beside the parameters, for the diffusion.
    """

    affine = True

    asks: ClassVar[dict[str, Declared]] = {
        "condition": Declared(
            "condition",
            object,
            "mean",
            Param("what the data are drawn towards, in the shape of one sample"),
            kinds=("condition",),
        )
    }

    def shift_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``m`` and its derivative at the times ``t`` (float64 tensor, inside the range)."""
        raise NotImplementedError

    def shift(self, t: Number) -> tuple[Number, Number]:
        """The factor m of the condition and its derivative in ``t`` [1/t].

        Floats for a float, tensors of ``t``'s shape and dtype otherwise.

        Raises:
            ValueError: a time outside ``[0, t_max]``.
        """
        m, d_m = self.shift_at(self._inside("t", t, 0.0, self.t_max))
        like = _like(t)
        return like(m), like(d_m)

    def prior_mean(self, t: float) -> float:
        """The factor p for which sampling starts at time ``t`` from N(p mu, prior_std(t)^2).

        It is alpha + m: the mean that x_t would have if the data were the condition itself.
        """
        t = float(t)
        return self(t).alpha + self.shift(t)[0]

    def prior_mismatch(self, t: float | None = None) -> float:
        """The share of the residual x0 - mu that x_t still has and the prior lacks: alpha.

        At ``t_max`` unless another time is given.
        """
        return self(self.t_max if t is None else float(t)).alpha


@register
@dataclass(frozen=True)
class OUVE(Affine):
    r"""An Ornstein-Uhlenbeck pull towards the condition under noise that grows geometrically.

    .. math:: dx = \theta(\mu - x)\,dt + \sigma_{min} r^t\sqrt{2L}\,dW,\qquad
              r = \sigma_{max}/\sigma_{min},\quad L = \ln r

    .. math:: \alpha = e^{-\theta t},\quad m = 1 - \alpha,\quad
              \sigma^2 = c\,(e^{2Lt} - e^{-2\theta t}),\quad
              c = \frac{\sigma_{min}^2 L}{\theta + L}

    Time in [0, 1]. At t = 1 the share :math:`e^{-\theta}` of the residual is left (22 % by
    default), which the prior N(mu, sigma^2) lacks: see ``prior_mismatch``.

    Source: Richter et al. 2023, *Speech Enhancement and Dereverberation with Diffusion-Based
    Generative Models* (SGMSE+), arXiv:2208.05830.
    """

    theta: Annotated[float, Param("stiffness of the pull [1/t]", gt=0, le=100)] = 1.5
    sigma_min: Annotated[float, Param("noise scale at t = 0", gt=0, le=1e6)] = 0.05
    sigma_max: Annotated[float, Param("noise scale at t = 1", gt=0, le=1e6)] = 0.5
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 0.03

    t_max = 1.0
    ascending = ("sigma_min", "sigma_max")

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @property
    def _variance(self) -> float:
        return self.sigma_min**2 * self._log_ratio / (self.theta + self._log_ratio)

    def at(self, t: Tensor) -> Coefficients:
        theta, rate, c = self.theta, self._log_ratio, self._variance
        alpha, growth = torch.exp(-theta * t), torch.exp(2 * rate * t)
        sigma = torch.sqrt(-c * growth * torch.expm1(-2 * (theta + rate) * t))
        return Coefficients(
            alpha=alpha,
            sigma=sigma,
            d_alpha=-theta * alpha,
            d_sigma=c * (rate * growth + theta * alpha.square()) / sigma,
            f=-theta * torch.ones_like(t),
            g2=2 * rate * self.sigma_min**2 * growth,
            rho=sigma / alpha,
        )

    def shift_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return _remainder(self.theta, t)

    def inverse(self, rho: Tensor) -> Tensor:
        # rho^2 = c (e^{2 (theta + L) t} - 1)
        level = log1p_square(rho / math.sqrt(self._variance))
        return level / (2 * (self.theta + self._log_ratio))


@register
@dataclass(frozen=True)
class IRSDE(Affine):
    r"""A mean-reverting process whose stationary law is the condition under noise of strength
    :math:`\lambda`.

    .. math:: dx = \theta(\mu - x)\,dt + \lambda\sqrt{2\theta}\,dW:\qquad
              \alpha = e^{-\theta t},\quad m = 1 - \alpha,\quad
              \sigma^2 = \lambda^2(1 - e^{-2\theta t})

    with constant :math:`\theta` and time in [0, 1]: the published cosine and linear rates give the
    same curves over another time. By default 0.7 % of the residual is left at t = 1, and the noise
    is that of images in [0, 1].

    Source: Luo et al. 2023, *Image Restoration with Mean-Reverting Stochastic Differential
    Equations*, arXiv:2301.11699.
    """

    theta: Annotated[float, Param("strength of the pull [1/t]", gt=0, le=100)] = 5.0
    noise: Annotated[float, Param("lambda: stationary noise level [x]", gt=0, le=1e6)] = 10 / 255
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 1e-3

    t_max = 1.0

    def at(self, t: Tensor) -> Coefficients:
        return relaxation(self.theta, self.noise, 2 * self.theta * self.noise**2, t)

    def shift_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return _remainder(self.theta, t)

    def inverse(self, rho: Tensor) -> Tensor:
        return log1p_square(rho / self.noise) / (2 * self.theta)

    def prior_std(self, t: float) -> float:
        """The stationary noise level, as published."""
        return self.noise


@register
@dataclass(frozen=True)
class RDDM(Affine):
    r"""Residual denoising: residual and noise are added, each on a schedule of its own.

    .. math:: \alpha = (1-t)^2,\quad m = 1 - \alpha = t(2-t),\quad \sigma = \nu t,\quad
              g^2 = \frac{2\nu^2 t(1+t)}{1-t},\quad \rho = \frac{\nu t}{(1-t)^2}

    (the published decreasing rate of the residual and increasing rate of the noise variance).
    Time in [0, 1], both ends included: at t = 1 the state is mu under noise, without data.

    Its chain adds residual and noise to the whole state, which ``DDPM`` and ``DDIM`` undo:

    .. math:: x_t = x_s + (m_t - m_s)(\mu - x_0) + \sqrt{\sigma_t^2 - \sigma_s^2}\, z

    Source: Liu et al. 2024, *Residual Denoising Diffusion Models*, arXiv:2308.13712.
    """

    noise: Annotated[float, Param("nu: noise level at t = 1 [x]", gt=0, le=1e6)] = 0.1
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 1e-3

    t_max = 1.0

    def at(self, t: Tensor) -> Coefficients:
        left, nu = 1 - t, self.noise
        return Coefficients(
            alpha=left.square(),
            sigma=nu * t,
            d_alpha=-2 * left,
            d_sigma=nu * torch.ones_like(t),
            f=-2 / left,
            g2=2 * nu**2 * t * (1 + t) / left,
            rho=nu * t / left.square(),
        )

    def shift_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t * (2 - t), 2 * (1 - t)

    def carried(self, t: float, alpha: float) -> float:
        return 1.0

    def inverse(self, rho: Tensor) -> Tensor:
        # rho s^2 + nu s - nu = 0 for s = 1 - t, solved for t without cancellation.
        level = 4 * rho / self.noise
        t = level / (1 + torch.sqrt(1 + level)).square()
        return torch.where(level.isinf(), 1.0, t)


@register
@dataclass(frozen=True)
class Resfusion(Affine, LinearRate):
    r"""Residual noise in a variance-preserving process, stopped where the data are gone.

    .. math:: x_t = u x_0 + (1-u)(\mu - x_0) + \sqrt{1-u^2}\,\epsilon,\quad
              u = \sqrt{\bar\alpha} = e^{-B/2}:\qquad
              \alpha = 2u - 1,\quad m = 1 - u,\quad \sigma^2 = 1 - u^2

    .. math:: f = -\frac{\beta u}{\alpha},\quad g^2 = \frac{\beta u(2-u)}{\alpha}

    with :math:`B` and :math:`\beta` of :class:`VP`. Time in [0, t_max], where :math:`u = 1/2` and
    alpha is 0: sampling starts from N(mu/2, 3/4), exactly.

    Its chain is that of VP towards the residual, with :math:`A = u_t/u_s`; ``DDPM`` undoes it:

    .. math:: x_t = A x_s + (1 - A)(\mu - x_0) + \sqrt{1 - A^2}\, z

    Source: Shi et al. 2024, *Resfusion: Denoising Diffusion Probabilistic Models for Image
    Restoration Based on Prior Residual Noise*, arXiv:2311.14900.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        mean = 0.5 * (self.beta_min + self.beta_max)
        if mean < _HALVING:
            raise ValueError(
                f"Resfusion: the mean of beta_min and beta_max was {mean:g}; it must be at least "
                f"{_HALVING:.4g} (2 log 2), or half of the signal is never lost. Raise beta_max."
            )
        if self.t_min >= self.t_max:
            raise ValueError(
                f"Resfusion: t_min was {self.t_min!r}; it must be below t_max, {self.t_max:g}."
            )

    @property
    def t_max(self) -> float:
        return self.when(torch.tensor(_HALVING, dtype=torch.float64)).item()

    def at(self, t: Tensor) -> Coefficients:
        beta, total = self.rate(t)
        u, end = torch.exp(-0.5 * total), self.t_max
        slope = self.beta_max - self.beta_min
        # 2u - 1 = exp((B* - B)/2) - 1, with the zero of B* - B at t_max as a factor; early on in
        # the form that is 1 at t = 0.
        late = torch.expm1(0.5 * (end - t) * (self.beta_min + 0.5 * slope * (end + t)))
        alpha = torch.where(total < 0.5, 1 + 2 * torch.expm1(-0.5 * total), late)
        sigma = torch.sqrt(-torch.expm1(-total))
        at_zero = math.inf if self.beta_min > 0 else math.sqrt(0.5 * self.beta_max)
        return Coefficients(
            alpha=alpha,
            sigma=sigma,
            d_alpha=-beta * u,
            d_sigma=torch.where(sigma > 0, 0.5 * beta * u.square() / sigma, at_zero),
            f=-beta * u / alpha,
            g2=beta * u * (2 - u) / alpha,
            rho=sigma / alpha,
        )

    def shift_at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        beta, total = self.rate(t)
        return -torch.expm1(-0.5 * total), 0.5 * beta * torch.exp(-0.5 * total)

    def carried(self, t: float, alpha: float) -> float:
        return 0.5 * (1 + alpha)  # u

    def inverse(self, rho: Tensor) -> Tensor:
        # rho^2 = (1 - u^2)/(2u - 1)^2 is quadratic in u; with q = 1/rho the root is, free of
        # cancellation, 1 - u = 1/(2 + q^2 + q sqrt(3 + q^2)).
        q = 1 / rho
        lost = 1 / (2 + q.square() + q * torch.sqrt(3 + q.square()))
        return self.when(-2 * torch.log1p(-lost))


#: B at which sqrt(alpha bar) is one half.
_HALVING = 2 * math.log(2)


def _remainder(theta: float, t: Tensor) -> tuple[Tensor, Tensor]:
    """``m = 1 - alpha`` and its derivative, for alpha = exp(-theta t)."""
    return -torch.expm1(-theta * t), theta * torch.exp(-theta * t)
