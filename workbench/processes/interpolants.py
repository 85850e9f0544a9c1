r"""Paths between two densities: :math:`x_t = a(t)\,x_0 + b(t)\,x_1 + \gamma(t)\,z`.

**Time runs from the source to the target**: :math:`x_0 \sim \rho_0` at t = 0 is the source density,
:math:`x_1 \sim \rho_1` at t = 1 the target (the data). This is the literature's direction and the
opposite of every :class:`~workbench.processes.Process`, whose time grows towards noise. ``z`` is
standard normal, independent of both ends.

Where :math:`\gamma^2` leaves zero linearly, :math:`\dot\gamma` is infinite and
:math:`\gamma\dot\gamma` is not: formulas use the product.

A one-sided interpolant (Gaussian source, no latent ``z``) is a path with ``gamma="none"`` and a
standard normal source.

Source: Albergo, Boffi & Vanden-Eijnden 2023, *Stochastic Interpolants: A Unifying Framework for
Flows and Diffusions*, arXiv:2303.08797.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from workbench.params import Param, Parameterised
from workbench.processes.base import Coefficients, Number, Process, _like, _numbers, bisected
from workbench.registry import View, register

Gamma = Annotated[
    Literal["none", "brownian", "quadratic", "sine-squared"],
    Param("the latent noise: 0, sqrt(t(1-t)), t(1-t) or sin^2(pi t), times sqrt(scale)"),
]
Latent = Annotated[
    Literal["brownian", "quadratic", "sine-squared"],
    Param("the latent noise: sqrt(t(1-t)), t(1-t) or sin^2(pi t), times sqrt(scale)"),
]
Scale = Annotated[float, Param("what gamma^2 is multiplied by", gt=0, le=1e6, label="gamma scale")]

#: Of each gamma at scale 1: the largest gamma^2, and half the curvature of gamma^2 there.
_PEAKS = {
    "none": (0.0, 0.0),
    "brownian": (0.25, 1.0),
    "quadratic": (0.0625, 0.5),
    "sine-squared": (1.0, 2 * math.pi**2),
}


@dataclass(frozen=True)
class PathCoefficients:
    r"""A path at one time (floats) or at many (tensors of the shape of ``t``).

    Attributes:
        a, b: weights of the source and of the target.
        gamma: weight of the latent noise [x].
        d_a, d_b, d_gamma: their derivatives in ``t``; ``d_gamma`` may be infinite at the ends.
        gamma_d_gamma: the product :math:`\gamma\dot\gamma`, finite everywhere [x²/t].
    """

    a: Number
    b: Number
    gamma: Number
    d_a: Number
    d_b: Number
    d_gamma: Number
    gamma_d_gamma: Number

    @property
    def gamma2(self) -> Number:
        """Variance of the latent noise, gamma² [x²]."""
        return self.gamma * self.gamma

    @property
    def d_gamma2(self) -> Number:
        """Derivative of gamma² in t, finite everywhere [x²/t]."""
        return 2.0 * self.gamma_d_gamma

    map = Coefficients.map


@dataclass(frozen=True)
class Path(Parameterised):
    """Base of all paths. A subclass is a frozen dataclass that gives ``_ends``.

    Time in [0, 1], both ends included: **0 at the source density, 1 at the target**.

    Attributes:
        notes: what a reader must know about the path, in sentences.
    """

    registry_kind: ClassVar[str] = "path"
    noisiest: ClassVar[float] = 0.0  # the time before which it holds nothing more of the target
    notes: ClassVar[tuple[str, ...]] = ()

    gamma: Gamma = "brownian"
    scale: Scale = 1.0

    def _ends(
        self, t: Tensor, left: Tensor, product: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``a, b, d_a, d_b`` at the times ``t`` (float64), ``left`` before the end, where gamma
        d_gamma is ``product``."""
        raise NotImplementedError

    def at(self, t: Tensor, left: Tensor | None = None) -> PathCoefficients:
        """Coefficients at the times ``t`` (float64 tensor, inside [0, 1]).

        ``left`` is 1 - t, given where that is known to more digits than t: close to the end.
        """
        left = 1 - t if left is None else left
        k = math.sqrt(self.scale)
        if self.gamma == "none":
            gamma = d_gamma = product = torch.zeros_like(t)
        elif self.gamma == "brownian":
            gamma = k * torch.sqrt(t * left)
            product = 0.5 * self.scale * (left - t)
            d_gamma = product / gamma
        else:
            if self.gamma == "quadratic":
                gamma, d_gamma = k * t * left, k * (left - t)
            else:
                sine = _sin_pi(t, left)
                gamma, d_gamma = k * sine.square(), 2 * k * math.pi * sine * _cos_pi(t)
            product = gamma * d_gamma
        a, b, d_a, d_b = self._ends(t, left, product)
        return PathCoefficients(a, b, gamma, d_a, d_b, d_gamma, product)

    def __call__(self, t: float | Tensor) -> PathCoefficients:
        """Coefficients at ``t``: floats for a float, tensors of ``t``'s shape and dtype otherwise.

        They are computed in float64 whatever the dtype of ``t``.

        Raises:
            ValueError: a time outside [0, 1].
        """
        return self.at(self.times(t)).map(_like(t))

    def times(self, t: float | Tensor) -> Tensor:
        """``t`` as a float64 tensor; checked (on the host only).

        Raises:
            ValueError: a time outside [0, 1].
        """
        times = _numbers("t", t)
        if times.device.type == "cpu" and times.numel():
            bad = ~((times >= 0) & (times <= 1 + 1e-12))  # a sum of steps may end a hair beyond
            if bad.any():
                raise ValueError(
                    f"t was {times[bad].flatten()[0].item():g}; {self!r} is defined for t from 0 "
                    "(the source density) to 1 (the target)."
                )
        return times.clamp(max=1.0)


@register
@dataclass(frozen=True)
class Linear(Path):
    r"""The straight path :math:`a = 1 - t`, :math:`b = t`.

    With ``gamma="none"`` and a standard normal source it is the rectified flow, time reversed.
    """

    def _ends(self, t, left, product):
        one = torch.ones_like(t)
        return left, t, -one, one


@register
@dataclass(frozen=True)
class Trigonometric(Path):
    r"""The path that keeps unit variance between ends of unit variance.

    .. math:: a = \sqrt{1 - \gamma^2}\cos\tfrac{\pi t}{2},\quad
              b = \sqrt{1 - \gamma^2}\sin\tfrac{\pi t}{2}

    so that :math:`a^2 + b^2 + \gamma^2 = 1`; gamma must not exceed 1.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        peak = _PEAKS[self.gamma][0]
        if self.scale * peak > 1:
            raise ValueError(
                f"Trigonometric: scale was {self.scale!r}, with which gamma reaches "
                f"{math.sqrt(self.scale * peak):.3g}; it may not exceed 1, as a and b are "
                f"multiples of sqrt(1 - gamma^2). With {self.gamma!r} scale is at most "
                f"{1 / peak:g}."
            )

    @property
    def notes(self) -> tuple[str, ...]:
        if self.scale * _PEAKS[self.gamma][0] < 1:
            return ()
        return (
            "At t = 0.5 gamma is 1 and the path is pure noise; a and b have a kink there, and "
            "their derivatives are those from the left.",
        )

    def _ends(self, t, left, product):
        # 1 - gamma^2 as its least value plus what gamma^2 lacks to its peak: nothing cancels.
        peak, curvature = _PEAKS[self.gamma]
        u = (t - 0.5).square()
        if self.gamma == "none":
            lacking = torch.zeros_like(t)
        elif self.gamma == "brownian":
            lacking = u
        elif self.gamma == "quadratic":
            lacking = u * (0.5 - u)
        else:
            lacking = _cos_pi(t).square() * (1 + _sin_pi(t, left).square())
        root = torch.sqrt((1 - self.scale * peak) + self.scale * lacking)
        from_left = torch.full_like(t, -math.sqrt(self.scale * curvature))
        d_root = torch.where(root > 0, -product / root, from_left)
        cosine, sine = torch.sin(0.5 * math.pi * left), torch.sin(0.5 * math.pi * t)
        turn = 0.5 * math.pi * root
        return (
            root * cosine,
            root * sine,
            d_root * cosine - turn * sine,
            d_root * sine + turn * cosine,
        )


@register
@dataclass(frozen=True)
class EncoderDecoder(Path):
    r"""The path through pure noise: the source is encoded, then the target decoded.

    .. math:: a = \cos^2(\pi t)\,1_{t \le 1/2},\quad b = \cos^2(\pi t)\,1_{t > 1/2}

    At t = 1/2 the state is :math:`\gamma z`, so gamma may not be zero there.
    """

    gamma: Latent = "sine-squared"
    noisiest = 0.5

    def _ends(self, t, left, product):
        cosine = _cos_pi(t)
        weight, slope = cosine.square(), -2 * math.pi * _sin_pi(t, left) * cosine
        zero, early = torch.zeros_like(t), t <= 0.5
        return (
            torch.where(early, weight, zero),
            torch.where(early, zero, weight),
            torch.where(early, slope, zero),
            torch.where(early, zero, slope),
        )


@register
@dataclass(frozen=True)
class Mirror(Path):
    r"""From the target through its noised law and back: :math:`x_t = x_1 + \gamma z`."""

    gamma: Latent = "brownian"
    noisiest = 0.5
    notes = ("A mirror path has the target density at both ends; the source is not used.",)

    def _ends(self, t, left, product):
        zero = torch.zeros_like(t)
        return zero, torch.ones_like(t), zero, zero


def _sin_pi(t: Tensor, left: Tensor) -> Tensor:
    """sin(pi t) for t in [0, 1]: exactly 0 at both ends, to the last bits near them."""
    return torch.sin(math.pi * torch.minimum(t, left))


def _cos_pi(t: Tensor) -> Tensor:
    """cos(pi t) for t in [0, 1]: exactly 0 at 1/2."""
    return torch.sin(math.pi * (0.5 - t))


@register
@dataclass(frozen=True)
class OneSided(Process):
    r"""A path from standard normal noise to the data as a process: time grows towards the noise.

    .. math:: \alpha(t) = b(s),\quad \sigma^2(t) = a^2(s) + \gamma^2(s),\quad s = 1 - t

    since source and latent noise are independent normals. A path through pure noise, or one that
    comes back, is walked as far as its noisiest point: ``t_max`` is 1/2 there.

    Source: Albergo, Boffi & Vanden-Eijnden 2023, arXiv:2303.08797, section 4.1 (one-sided).
    """

    path: Annotated[Path, Param("the path; its source is standard normal noise")] = Linear()
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=0.5)] = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.path, Path):
            raise TypeError(f"OneSided: path was {self.path!r}; it must be a Path, e.g. Linear().")

    @property
    def t_max(self) -> float:
        return 1.0 - self.path.noisiest

    @property
    def has_prior(self) -> bool:
        """Whether the path begins, or passes, where nothing is left of the data."""
        return self.path(self.path.noisiest).b == 0.0

    def at(self, t: Tensor) -> Coefficients:
        c = self.path.at(1 - t, t)
        d_alpha, half = -c.d_b, -(c.a * c.d_a + c.gamma_d_gamma)  # half of d(sigma^2)/dt
        sigma = torch.hypot(c.a, c.gamma)
        f = torch.where(c.b == 0, -math.inf, d_alpha / c.b)  # b may leave 0 as a square
        at_zero = torch.where(half > 0, math.inf, -c.d_a + c.d_gamma.abs())
        return Coefficients(
            alpha=c.b,
            sigma=sigma,
            d_alpha=d_alpha,
            d_sigma=torch.where(sigma > 0, half / sigma, at_zero),
            f=f,
            g2=2 * half - torch.where(sigma > 0, 2 * f * sigma.square(), 0.0),
            rho=sigma / c.b,
        )

    def inverse(self, rho: Tensor) -> Tensor:
        def levels(t: Tensor) -> tuple[Tensor, Tensor]:
            c = self.path.at(1 - t, t)
            return c.b, torch.hypot(c.a, c.gamma)

        return bisected(self, rho, levels)


#: Every path by name.
PATHS = View("path")
