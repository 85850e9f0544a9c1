"""Spectral processes: bases, the base of all, and those that follow the data's spectrum."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor

from workbench.params import Param
from workbench.processes.base import Coefficients, Process
from workbench.processes.modes import In, Spectral
from workbench.processes.rates import VP
from workbench.registry import register

Spectrum = Annotated[
    Tensor,
    Param("variance of the data in each mode [x²]", kind="spectrum", standard="variances"),
]


class _BySpectrum(Spectral):
    """A spectral process whose modes are set apart by the variances of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        owner, shape, given = type(self).__name__, self.event_shape, self.spectrum
        given = given(self.basis) if callable(given) else given
        try:
            values = torch.as_tensor(given, dtype=torch.float64).expand(shape).clone()
        except (TypeError, ValueError, RuntimeError) as error:
            given = tuple(given.shape) if isinstance(given, Tensor) else given
            raise ValueError(
                f"{owner}: spectrum was {given!r}; it must hold one variance per mode, "
                f"{tuple(shape)}."
            ) from error
        bad = values[~((values > 0) & values.isfinite())]
        if bad.numel():
            raise ValueError(
                f"{owner}: spectrum had a value of {bad[0].item():g}; each variance must be finite "
                "and greater than 0. Give modes without data a small variance, or leave them out "
                "of the basis."
            )
        object.__setattr__(self, "spectrum", values)


@register
@dataclass(frozen=True, eq=False, repr=False)
class ShortestPath(_BySpectrum):
    r"""The geodesic of the Fisher metric from data of a given spectrum to white noise.

    .. math:: \alpha_k^2 = \frac{\lambda_k^{1-t} - 1}{\lambda_k - 1},\qquad
              \sigma_k^2 = 1 - \alpha_k^2 = \frac{\lambda_k - \lambda_k^{1-t}}{\lambda_k - 1}

    so that the variance of mode k is :math:`\lambda_k^{1-t}`, a straight line in its logarithm:
    strong modes (coarse ones, in images) change early, weak ones late. A mode of variance 1 has
    :math:`\alpha^2 = 1 - t`. :math:`g^2 = -2f`. Time in [0, 1], both ends included: at t = 1 the
    state is pure noise, and alpha reaches 0 as a square root, with an infinite slope.

    Args:
        spectrum: variance of the data in each mode [x²], greater than 0; event_shape; or a
            function of the basis that gives it.
        basis: in which they are independent.

    Source: Das et al. 2023, *Image generation with shortest path diffusion*, arXiv:2306.00501.
    """

    spectrum: Spectrum
    basis: In
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 1e-3

    t_max = 1.0

    @property
    def own(self) -> Tensor:
        return self.spectrum

    def mode_at(self, t: Tensor, own: Tensor) -> Coefficients:
        log, left = own.log(), 1 - t

        def ratio(u: Tensor, log: Tensor) -> Tensor:
            """(lambda^u - 1) / (lambda - 1); u where the variance lambda is 1."""
            return torch.where(log == 0, u, torch.expm1(u * log) / torch.expm1(log))

        # sigma^2 = (lambda^-t - 1) / (lambda^-1 - 1): no difference of large numbers.
        alpha, sigma = torch.sqrt(ratio(left, log)), torch.sqrt(ratio(t, -log))
        # d(sigma^2)/dt = -d(alpha^2)/dt
        speed = torch.where(log == 0, 1.0, -log / torch.expm1(-log)) * torch.exp(-t * log)
        f = 0.5 * torch.where(log == 0, -1 / left, log / torch.expm1(-left * log))
        return Coefficients(
            alpha=alpha,
            sigma=sigma,
            d_alpha=-0.5 * speed / alpha,
            d_sigma=0.5 * speed / sigma,
            f=f,
            g2=-2 * f,
            rho=sigma / alpha,
        )

    def mode_inverse(self, rho: Tensor, own: Tensor) -> Tensor:
        # lambda^t = lambda (1 + r) / (lambda + r) for r = rho^2; with q = 1/r, so that r may be
        # infinite, and as 1 + change where it is close to 1.
        log, q = own.log(), rho.pow(-2)
        change = (own - 1) / (1 + own * q)
        plain = torch.log(own * ((1 + q) / (1 + own * q)))
        moved = torch.where(change.abs() < 0.5, change.log1p(), plain)
        t = torch.where(log == 0, 1 / (1 + q), moved / log)
        return torch.where(rho.isinf(), 1.0, t)

    def mode_prior_std(self, t: float, own: Tensor) -> Tensor:
        """That of data of this very spectrum at ``t``; 1 at t = 1."""
        return own ** (0.5 * (1 - t))


@register
@dataclass(frozen=True, eq=False, repr=False)
class EqualSNR(_BySpectrum):
    r"""A scalar process with noise shaped like the data: the same signal-to-noise ratio everywhere.

    .. math:: \alpha_k = \alpha,\qquad \sigma_k = \sigma\sqrt{\lambda_k/\bar\lambda}

    with :math:`\bar\lambda` the mean variance. No mode emerges before another: the control for
    every claim about coarse-to-fine order.

    Args:
        spectrum: variance of the data in each mode [x²], greater than 0; event_shape.
        basis: in which they are independent.
        base: the scalar process.

    Source: Falck et al. 2025, *A Fourier Space Perspective on Diffusion Models*, arXiv:2505.11278.
    """

    spectrum: Spectrum
    basis: In
    base: Annotated[Process, Param("the scalar process", standard="VP")] = field(default_factory=VP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.base, Process) or not self.base.single_level:
            raise TypeError(
                f"EqualSNR: base was {self.base!r}; it must be a process with one alpha and one "
                "sigma, such as VP()."
            )

    @property
    def t_min(self) -> float:
        return self.base.t_min

    @property
    def t_max(self) -> float:
        return self.base.t_max

    @property
    def own(self) -> Tensor:
        return torch.sqrt(self.spectrum / self.spectrum.mean())

    def mode_at(self, t: Tensor, own: Tensor) -> Coefficients:
        c = self.base.at(t)
        return Coefficients(
            alpha=c.alpha,
            sigma=c.sigma * own,
            d_alpha=c.d_alpha,
            d_sigma=c.d_sigma * own,
            f=c.f,
            g2=c.g2 * own.square(),
            rho=c.rho * own,
        )

    def mode_inverse(self, rho: Tensor, own: Tensor) -> Tensor:
        return self.base.inverse(rho / own)

    def mode_prior_std(self, t: float, own: Tensor) -> Tensor:
        return self.base.prior_std(t) * own
