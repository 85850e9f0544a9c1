r"""Processes with one alpha and one sigma per mode of a basis:
:math:`c_k(t) = \alpha_k c_k(0) + \sigma_k\epsilon_k`.

Each mode by itself is a scalar process; what sets them apart is one number per mode: a variance of
the data, or a frequency, by which the signal is blurred. Coefficients have the layout of
``basis.forward``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Annotated

import torch
from torch import Tensor

from workbench.params import Param
from workbench.processes.base import Coefficients, Process
from workbench.processes.bases import Basis
from workbench.processes.scalar import VP, Cosine
from workbench.registry import register

In = Annotated[Basis, Param("the basis in which modes are independent", standard="DCT")]
Spectrum = Annotated[
    Tensor,
    Param("variance of the data in each mode [x²]", kind="spectrum", standard="variances"),
]


class Spectral(Process):
    """Base of all spectral processes: a basis, and a scalar process for each of its modes.

    A subclass gives ``own`` (the number that sets a mode apart), ``mode_at`` and
    ``mode_inverse``, which work elementwise.
    """

    basis: Basis

    spectral = True

    @property
    def own(self) -> Tensor:
        """The number that sets each mode apart; float64, of ``event_shape``."""
        raise NotImplementedError

    def mode_at(self, t: Tensor, own: Tensor) -> Coefficients:
        """Coefficients at times ``t`` of modes ``own``; both float64 and of one shape."""
        raise NotImplementedError

    def mode_inverse(self, rho: Tensor, own: Tensor) -> Tensor:
        """The times at which sigma/alpha of modes ``own`` is ``rho``; both of one shape."""
        raise NotImplementedError

    def mode_prior_std(self, t: float, own: Tensor) -> Tensor:
        """Standard deviations from which sampling of modes ``own`` starts at time ``t``."""
        return self.mode_at(torch.full_like(own, t), own).sigma

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.basis, Basis):
            raise TypeError(
                f"{type(self).__name__}: basis was {self.basis!r}; it must be a Basis, such as "
                "DCT((height, width)), Hartley((height, width)) or Columns(matrix, event_shape)."
            )

    @property
    def event_shape(self) -> torch.Size:
        """Shape of one state, and of its coefficients."""
        return self.basis.event_shape

    def at(self, t: Tensor) -> Coefficients:
        own = self.own.to(t.device)
        return self.mode_at(*torch.broadcast_tensors(t.reshape(*t.shape, *(1,) * own.ndim), own))

    def __call__(self, t: float | Tensor) -> Coefficients:
        """Coefficients of every mode at ``t``.

        For a float, float64 tensors of ``event_shape``; for a tensor, tensors of shape
        (*t.shape, *event_shape) in its dtype. They are computed in float64.

        Raises:
            ValueError: a time outside ``[0, t_max]``.
        """
        c = self.at(self._inside("t", t, 0.0, self.t_max))
        kept = isinstance(t, Tensor) and t.dtype.is_floating_point
        return c.map(lambda value: value.to(t.dtype)) if kept else c

    def time_of(self, rho: float | Tensor) -> float | Tensor:
        """Not defined: there is one rho per mode. ``mode(index).time_of(rho)`` is."""
        raise NotImplementedError(
            f"{self!r} has one rho per mode, so no time belongs to a rho. Ask one mode, "
            "process.mode(index).time_of(rho), or make the grid in t: Grid.uniform, "
            "Grid.quadratic or Grid.times."
        )

    inverse = time_of

    def prior_std(self, t: float) -> Tensor:
        """Standard deviation of each mode from which sampling starts at ``t``; event_shape."""
        self._inside("t", t, 0.0, self.t_max)
        return self.mode_prior_std(float(t), self.own)

    def to_modes(self, x: Tensor) -> Tensor:
        return self.basis.forward(x)

    def from_modes(self, u: Tensor) -> Tensor:
        return self.basis.inverse(u)

    def core(self, law):
        return law.transformed(self.basis.matrix)

    def off_core(self, law):
        return law.transformed(self.basis.matrix.T)

    def turned(self, matrices: Tensor) -> Tensor:
        matrix = self.basis.matrix.to(matrices)
        return matrix @ matrices @ matrix.T

    def mode(self, index: int | tuple[int, ...]) -> Mode:
        """The scalar process of one mode, by its place in the event (a number: flattened)."""
        own = self.own if isinstance(index, tuple) else self.own.flatten()
        try:
            value = own[index]
        except IndexError:
            value = own
        if value.ndim:
            raise IndexError(
                f"index was {index!r}; it must be the place of one mode in "
                f"{tuple(self.event_shape)}: one number per axis, or one for the flattened event."
            )
        return Mode(self, value.item())

    def distinct(self) -> tuple[list[Mode], Tensor]:
        """The distinct scalar processes, and which of them each mode has (int64, event_shape)."""
        values, index = torch.unique(self.own, return_inverse=True)
        return [Mode(self, value) for value in values.tolist()], index

    def __repr__(self) -> str:
        parts = []
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Tensor):
                low, high = value.min().item(), value.max().item()
                value = f"{value.numel()} values from {low:.3g} to {high:.3g}"
            elif isinstance(value, float) and value == entry.default:
                continue
            parts.append(f"{entry.name}={value}")
        return f"{type(self).__name__}({', '.join(parts)})"


@dataclass(frozen=True)
class Mode(Process):
    """One mode of a spectral process as a scalar process.

    Attributes:
        family: the spectral process.
        own: the number that sets this mode apart (see the family).
    """

    family: Spectral = field(repr=False)
    own: float

    t_min = property(attrgetter("family.t_min"))
    t_max = property(attrgetter("family.t_max"))
    has_prior = property(attrgetter("family.has_prior"))

    def at(self, t: Tensor) -> Coefficients:
        return self.family.mode_at(t, torch.full_like(t, self.own))

    def inverse(self, rho: Tensor) -> Tensor:
        return self.family.mode_inverse(rho, torch.full_like(rho, self.own))

    def prior_std(self, t: float) -> float:
        own = torch.tensor(self.own, dtype=torch.float64)
        return self.family.mode_prior_std(float(t), own).item()

    def __repr__(self) -> str:
        return f"mode {self.own:.6g} of {self.family!r}"


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

    t_min = property(attrgetter("base.t_min"))
    t_max = property(attrgetter("base.t_max"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.base, Process) or not self.base.single_level:
            raise TypeError(
                f"EqualSNR: base was {self.base!r}; it must be a process with one alpha and one "
                "sigma, such as VP()."
            )

    @property
    def own(self) -> Tensor:
        return torch.sqrt(self.spectrum / self.spectrum.mean())

    def mode_at(self, t: Tensor, own: Tensor) -> Coefficients:
        c = self.base.at(t)
        return replace(
            c,
            sigma=c.sigma * own,
            d_sigma=c.d_sigma * own,
            g2=c.g2 * own.square(),
            rho=c.rho * own,
        )

    def mode_inverse(self, rho: Tensor, own: Tensor) -> Tensor:
        return self.base.inverse(rho / own)

    def mode_prior_std(self, t: float, own: Tensor) -> Tensor:
        return self.base.prior_std(t) * own


class _ByFrequency(Spectral):
    """A spectral process whose modes are set apart by their frequencies."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.basis.frequency  # a sentence now if it has none

    @property
    def own(self) -> Tensor:
        return self.basis.frequency


@register
@dataclass(frozen=True, eq=False, repr=False)
class HeatDissipation(_ByFrequency):
    r"""Inverse heat dissipation: the image is blurred, under a little noise that stays the same.

    .. math:: \alpha_k = e^{-\omega_k^2\sigma_B^2/2},\quad \sigma_k = noise,\quad
              \sigma_B(t) = blur_{min}\Big(\frac{blur_{max}}{blur_{min}}\Big)^t,\quad
              g_k^2 = 2\,noise^2\,\omega_k^2\sigma_B\dot\sigma_B

    Time in [0, 1]. At t = 0 the image is already blurred by ``blur_min`` pixels under the noise.
    **There is no Gaussian prior** (``has_prior`` is False): the coarse part of the data is still
    there at t = 1, the mean untouched, so sampling has to start from noised data. In fine modes
    alpha underflows to 0 once :math:`\omega_k\sigma_B` exceeds 38.

    Args:
        basis: with frequencies [radians per pixel]; the published one is the DCT.

    Source: Rissanen, Heinonen & Solin 2023, *Generative Modelling with Inverse Heat Dissipation*,
    arXiv:2206.13397.
    """

    basis: In
    blur_min: Annotated[float, Param("blur at t = 0 [pixels]", gt=0, le=1e4)] = 0.5
    blur_max: Annotated[float, Param("blur at t = 1 [pixels]", gt=0, le=1e4)] = 20.0
    noise: Annotated[float, Param("noise level at all times [x]", gt=0, le=1e3)] = 0.01
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 1e-3

    t_max = 1.0
    has_prior = False
    ascending = ("blur_min", "blur_max")

    def mode_at(self, t: Tensor, own: Tensor) -> Coefficients:
        one, rate = torch.ones_like(t), math.log(self.blur_max / self.blur_min)
        blur = (self.blur_min * one) ** (1 - t) * (self.blur_max * one) ** t
        decay = 0.5 * (own * blur).square()
        alpha, f, sigma = torch.exp(-decay), -2 * rate * decay, self.noise * one
        return Coefficients(
            alpha=alpha,
            sigma=sigma,
            d_alpha=f * alpha,
            d_sigma=torch.zeros_like(t),
            f=f,
            g2=-2 * f * self.noise**2,
            rho=sigma / alpha,
        )

    def mode_inverse(self, rho: Tensor, own: Tensor) -> Tensor:
        if bool((own == 0).any()):
            raise ValueError(
                f"{self!r} leaves the mode of frequency 0 alone: its rho is {self.noise:g} at all "
                "times."
            )
        decay = torch.log1p((rho - self.noise) / self.noise)
        blur = torch.sqrt(2 * decay) / own
        return torch.log(blur / self.blur_min) / math.log(self.blur_max / self.blur_min)

    def mode_prior_std(self, t: float, own: Tensor) -> Tensor:
        raise NotImplementedError(
            f"{self!r} has no Gaussian prior: at t = {t:g} the coarse part of the data is still "
            "there. Start from noised data: x=diffusion.diffuse(points, t, noise)."
        )


@register
@dataclass(frozen=True, eq=False, repr=False)
class Blurring(_ByFrequency):
    r"""Blurring diffusion: a cosine process whose signal is blurred as well.

    .. math:: \alpha_k = \cos(\tfrac{\pi t}{2})\,d_k,\quad \sigma_k = \sin(\tfrac{\pi t}{2}),\quad
              d_k = floor + (1 - floor)\,e^{-\omega_k^2\sigma_B^2/2},\quad
              \sigma_B(t) = blur_{max}\sin^2(\tfrac{\pi t}{2})

    Time in [0, 1], both ends included: at t = 1 the state is pure noise. (The published process
    stops at a log-SNR of -10 and +10.)

    Args:
        basis: with frequencies [radians per pixel]; the published one is the DCT.

    Source: Hoogeboom & Salimans 2023, *Blurring Diffusion Models*, arXiv:2209.05557.
    """

    basis: In
    blur_max: Annotated[float, Param("blur at t = 1 [pixels]", gt=0, le=1e4)] = 20.0
    floor: Annotated[float, Param("least factor of a blurred mode", ge=1e-6, lt=1)] = 1e-3
    t_min: Annotated[float, Param("where grids stop", gt=0, lt=1)] = 1e-3

    t_max = 1.0

    def _blur(self, t: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The factor d and its derivative in t."""
        sine, cosine = torch.sin(0.5 * math.pi * t), torch.cos(0.5 * math.pi * t)
        scale = (own * self.blur_max).square()
        kept = (1 - self.floor) * torch.exp(-0.5 * scale * sine**4)
        return self.floor + kept, -math.pi * scale * sine**3 * cosine * kept

    def mode_at(self, t: Tensor, own: Tensor) -> Coefficients:
        base, (factor, slope) = _COSINE.at(t), self._blur(t, own)
        relative = slope / factor
        return Coefficients(
            alpha=base.alpha * factor,
            sigma=base.sigma,
            d_alpha=base.d_alpha * factor + base.alpha * slope,
            d_sigma=base.d_sigma,
            f=base.f + relative,
            g2=base.g2 - 2 * relative * base.sigma.square(),
            rho=base.rho / factor,
        )

    def mode_inverse(self, rho: Tensor, own: Tensor) -> Tensor:
        # The cosine's own rho is rho d, with d from floor to 1 and falling in t: d is bisected.
        low, high = torch.full_like(rho, self.floor), torch.ones_like(rho)
        for _ in range(80):  # to neighbouring floats
            middle = 0.5 * (low + high)
            above = middle > self._blur(_COSINE.inverse(rho * middle), own)[0]
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return _COSINE.inverse(rho * high)

    def mode_prior_std(self, t: float, own: Tensor) -> Tensor:
        """One, as in the cosine process."""
        return torch.ones_like(own)


#: cos(pi t / 2) and sin(pi t / 2).
_COSINE = Cosine(offset=0.0)
