r"""Noise levels at which a trajectory decides: between classes, and between data points.

Two classes :math:`N(\pm m, s^2)`, |m| the *offset*. At a noise level a class stands
:math:`h = \alpha|m|/\sqrt{\alpha^2 s^2 + \sigma^2}` standard deviations from the midpoint. A sample
noised so far and drawn again from the exact posterior keeps its class with probability

.. math:: \varphi(h) = \tfrac12\big(1 + E_G\tanh^2(h^2 + hG)\big)
          = 1 - \tfrac12 e^{-h^2/2}\,E_G\operatorname{sech}(hG),\qquad G \sim N(0, 1).

There is no one critical time of *speciation*: the definitions below differ by factors of order one.
*Collapse* onto single data points is where the state has told :math:`\log n` nats of the data.

Sources: Biroli, Bonnaire, de Bortoli & Mézard 2024, arXiv:2402.18491; Raya & Ambrogioni 2023,
arXiv:2305.19693; the closed form of the second expression is derived in this project.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workbench.exact.modes import checked, times_of
from workbench.processes import Process


class Critical(NamedTuple):
    """A critical noise level.

    Attributes:
        rho: noise level [x]; nan where there is none.
        t: its time, given a process; nan where the process has no such noise level, else None.
    """

    rho: float
    t: float | None


def phi(h) -> Tensor:
    """Probability that a sample keeps its class at ``h``; like ``h``, correct to rounding."""
    return 1 - _lost(torch.as_tensor(h, dtype=torch.float64).abs())


def h_at(retention) -> Tensor:
    """The ``h`` at which :func:`phi` has the value ``retention``, from 0.5 up to 1 (infinity).

    Raises:
        ValueError: a retention outside [0.5, 1].
    """
    wanted = torch.as_tensor(retention, dtype=torch.float64)
    if not bool(((wanted >= 0.5) & (wanted <= 1)).all()):
        raise ValueError(f"retention was {retention!r}; it must be from 0.5 (chance) to 1.")
    low, high = torch.zeros_like(wanted), torch.full_like(wanted, 10.0)  # 1 - phi(10) is 1e-23
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = _lost(middle) > 1 - wanted
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return torch.where(wanted == 1, math.inf, torch.where(wanted == 0.5, 0.0, 0.5 * (low + high)))


def class_retention(process: Process, t, offset: float, std: float) -> Tensor:
    """Probability that a state of time ``t``, drawn back, keeps its class; shape of ``t``.

    Args:
        t: number or tensor of times.
        offset: distance |m| of each class mean from their midpoint (half of that between them) [x].
        std: standard deviation within a class along the line of the means [x].

    Raises:
        ValueError: a negative offset or std; both sigma and std 0 with the means together.
    """
    _check(process, offset, std)
    c = process(torch.as_tensor(t, dtype=torch.float64))
    deviation = (c.alpha.square() * std**2 + c.sigma.square()).sqrt()
    return phi(c.alpha * offset / deviation)


def bimodality(offset: float, std: float, process: Process | None = None) -> Critical:
    r"""Where the marginal density begins to have two modes: :math:`\rho^2 = |m|^2 - s^2`.

    Arguments as :func:`class_retention`. There is none if the means are closer than std.
    """
    _check(process, offset, std)
    return _critical(math.sqrt(offset**2 - std**2) if offset >= std else math.nan, process)


def instability(process: Process, offset: float, std: float) -> Critical:
    r"""Where the midpoint becomes unstable for the drift of the reverse SDE.

    .. math:: -f + g^2\Big(\frac{\alpha^2|m|^2}{v^2} - \frac1v\Big) = 0,\qquad
              v = \alpha^2 s^2 + \sigma^2

    In x, so it depends on the process: with :math:`\alpha^2 + \sigma^2 = 1` and s = 1 it is
    :math:`2\alpha^2|m|^2 = 1`; without a drift (alpha = 1), where the marginal becomes bimodal.

    Arguments as :func:`class_retention`. The noisiest such level from which on, going towards the
    data, the midpoint is unstable; nan where it is always or never so (looked for down to a
    millionth of the size of the classes).
    """
    from scipy.optimize import brentq

    _check(process, offset, std)

    def slope(t):
        """The condition times alpha v², regular at pure noise."""
        c = process(torch.as_tensor(t, dtype=torch.float64))
        v = c.alpha.square() * std**2 + c.sigma.square()
        rate = 2 * c.sigma * (c.d_sigma * c.alpha - c.d_alpha * c.sigma)
        return -c.d_alpha * v.square() + rate * (c.alpha.square() * offset**2 - v)

    least = max(process(0.0).rho, 1e-6 * max(offset, std))
    largest = min(process(process.t_max).rho, 1e6 * max(offset, std))
    if not least < largest:
        return Critical(math.nan, math.nan)
    share = torch.linspace(0, 1, 4001, dtype=torch.float64)
    levels = (math.log(least) + (math.log(largest) - math.log(least)) * share).exp()
    times = times_of(process, levels.clamp(least, largest))
    uniform = times[0] + (process.t_max - times[0]) * share  # up to pure noise too
    times = torch.cat([times, uniform]).sort().values
    unstable = slope(times) > 0
    crossing = (unstable[:-1] & ~unstable[1:]).nonzero().flatten()
    if not len(crossing):
        return Critical(math.nan, math.nan)
    last = int(crossing[-1])
    pair = times[last].item(), times[last + 1].item()
    t = brentq(lambda t: float(slope(t)), *pair, xtol=1e-15, rtol=1e-14)
    return Critical(process(t).rho, t)


def speciation(
    top_variance: float,
    process: Process | None = None,
    by: Literal["power", "published"] = "power",
) -> Critical:
    r"""Speciation by the largest eigenvalue :math:`\Lambda` of the data's covariance.

    Args:
        top_variance: Lambda [x²]. For two classes as above it is :math:`|m|^2 + s^2`.
        by: "power": :math:`\rho^2 = \Lambda`, where noise and data have the same power along that
            direction; "published": :math:`\alpha^2\Lambda = 1` of a variance-preserving process,
            :math:`\rho^2 = \Lambda - 1`, whose time on the clock :math:`\alpha = e^{-t}` is
            :math:`\tfrac12\log\Lambda`. They agree for Lambda much above 1; nan below 1.
    """
    if by not in ("power", "published"):
        raise ValueError(f"by was {by!r}; it must be 'power' or 'published'.")
    checked(top_variance, "top_variance")
    square = top_variance - (by == "published")
    return _critical(math.sqrt(square) if square >= 0 else math.nan, process)


def collapse(variances: Tensor, n: int, process: Process | None = None) -> Critical:
    r"""Where the state of a Gaussian has told as much as singles out one of n data points.

    .. math:: \sum_j \tfrac12\log(1 + \lambda_j/\rho^2) = \log n

    The random-energy estimate for the ideal denoiser of n points: below it, it returns a point.

    Args:
        variances: eigenvalues of the data's covariance, any shape [x²].
        n: number of data points, at least 2.
    """
    variances = checked(variances).flatten()
    wanted = math.log(_count(n))
    variances = variances[variances > 0]
    if not len(variances):
        return _critical(0.0, process)
    # All modes as large as the largest, or only that one: the root lies between.
    top = 0.5 * math.log(variances.max().item())
    low = top - 0.5 * _log_expm1(2 * wanted)
    high = top - 0.5 * _log_expm1(2 * wanted / len(variances))
    for _ in range(64):
        middle = 0.5 * (low + high)
        told = 0.5 * torch.log1p(variances * math.exp(-2 * middle)).sum().item()
        low, high = (middle, high) if told > wanted else (low, middle)
    return _critical(math.exp(0.5 * (low + high)), process)


def isotropic_collapse(std: float, dim: int, n: int, process: Process | None = None) -> Critical:
    r"""The same for :math:`N(0, s^2 I)` in d dimensions: :math:`\rho = s/\sqrt{n^{2/d} - 1}`."""
    if not dim >= 1:
        raise ValueError(f"dim was {dim!r}; it must be at least 1.")
    _check(process, 0.0, std)
    return _critical(std * math.exp(-0.5 * _log_expm1(2 * math.log(_count(n)) / dim)), process)


def _lost(h: Tensor) -> Tensor:
    """1 - phi by the trapezoidal rule, whose error falls exponentially in the inverse step.

    The integrand sech(h g) exp(-g²/2) is analytic in |Im g| < pi/(2h): with steps of 0.25 in the
    larger of g and h g the error is about exp(-pi²/0.25), 1e-17; so is what lies beyond 160 steps.
    """
    step = 0.25 / h.clamp_min(1.0)[..., None]
    g = step * torch.arange(-160, 161, dtype=h.dtype, device=h.device)
    mean = (step * torch.exp(-0.5 * g.square()) / torch.cosh(h[..., None] * g)).sum(-1)
    return 0.5 * torch.exp(-0.5 * h.square()) * mean / math.sqrt(2 * math.pi)


def _critical(rho: float, process: Process | None) -> Critical:
    if process is None:
        return Critical(rho, None)
    return Critical(rho, times_of(process, torch.tensor(rho, dtype=torch.float64)).item())


def _check(process: Process | None, offset: float, std: float) -> None:
    for name, value in (("offset", offset), ("std", std)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} was {value!r}; it must be finite and at least 0.")
    if process is not None and process.spectral:
        raise TypeError(f"{process!r} has a noise level per mode; give one of process.mode(index).")


def _count(n: int) -> int:
    if not n >= 2:
        raise ValueError(f"n was {n!r}; it must be a number of data points, at least 2.")
    return n


def _log_expm1(x: float) -> float:
    return x + math.log(-math.expm1(-x))
