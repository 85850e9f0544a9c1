r"""How data becomes noise: :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`.

A process is a pair of functions of time and nothing else; it never meets data. Time grows towards
noise. A subclass gives ``alpha`` and ``sigma``, and derivatives and inverse follow by automatic
differentiation and bisection; every process of the package gives them in closed form instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor

from workbench.params import Parameterised

Number = TypeVar("Number", float, Tensor)

#: Size of alpha that is rounding, where alpha is 1 at the data.
NO_SIGNAL = 1e-15


@dataclass(frozen=True)
class Coefficients:
    r"""A process at one time (floats) or at many (tensors of the shape of ``t``).

    Attributes:
        alpha, sigma: signal and noise coefficients, :math:`x_t = \alpha x_0 + \sigma \epsilon`.
        d_alpha, d_sigma: their derivatives in ``t``.
        f: linear drift of the forward SDE, :math:`\dot\alpha/\alpha` [1/t].
        g2: squared diffusion, :math:`\frac{d\sigma^2}{dt} - 2 f \sigma^2` [x²/t].
        rho: :math:`\sigma/\alpha`, the noise level in units of the data (EDM's sigma).
    """

    alpha: Number
    sigma: Number
    d_alpha: Number
    d_sigma: Number
    f: Number
    g2: Number
    rho: Number

    @property
    def log_snr(self) -> Number:
        r"""Log signal-to-noise ratio :math:`2\log(\alpha/\sigma) = -2\log\rho`."""
        if isinstance(self.rho, Tensor):
            return -2.0 * self.rho.log()
        if self.rho == 0.0:
            return math.inf
        return -2.0 * math.log(self.rho) if self.rho < math.inf else -math.inf

    def map(self, change) -> Self:
        """The same coefficients with ``change`` applied to each."""
        return type(self)(**{f.name: change(getattr(self, f.name)) for f in fields(self)})


class Process(Parameterised):
    """Base of all processes. A subclass is a frozen dataclass with ``alpha`` and ``sigma``.

    It may give ``at`` (all coefficients in closed form) and ``inverse`` in place of these.

    ``t_min`` is where grids stop by default; any time in ``[0, t_max]`` may be asked for, since
    alpha and sigma are regular at both ends. Where they are and their slopes are not, the slope is
    infinite and never nan: ``d_sigma`` at sigma = 0 where sigma starts as a square root; ``f``,
    ``g2``, ``rho`` at pure noise (alpha = 0).

    Attributes:
        has_prior: whether the state at ``t_max`` is close to a Gaussian that knows nothing of the
            data, from which sampling can start.
        affine: whether it also draws the data towards a condition, by the factor ``shift`` of it.
        spectral: whether every mode of a basis has an alpha and sigma of its own.
        ascending: two parameters of which the second must be greater, or none.
    """

    t_min: float
    t_max: float

    registry_kind: ClassVar[str] = "process"
    has_prior: ClassVar[bool] = True
    affine: ClassVar[bool] = False
    spectral: ClassVar[bool] = False
    ascending: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        values = [getattr(self, name) for name in self.ascending]
        if values and values[1] <= values[0]:
            (low, high), (least, most) = self.ascending, values
            raise ValueError(
                f"{type(self).__name__}: {high} was {most!r}; it must be greater than {low} "
                f"({least!r})."
            )

    @property
    def single_level(self) -> bool:
        """Whether alpha and sigma are all there is, the same for every coordinate."""
        return not (self.affine or self.spectral)

    def alpha(self, t: Tensor) -> Tensor:
        """Signal coefficient at the times ``t`` (float64 tensor), by differentiable functions."""
        return self.at(t).alpha

    def sigma(self, t: Tensor) -> Tensor:
        """Noise coefficient at the times ``t``, likewise; at least 0, and sigma/alpha increases."""
        return self.at(t).sigma

    def at(self, t: Tensor) -> Coefficients:
        """Coefficients at the times ``t`` (float64 tensor, inside the range).

        Here from ``alpha`` and ``sigma``. Below 1e-15 alpha counts as 0: cos(pi/2) is 6e-17.
        """
        if type(self).alpha is Process.alpha or type(self).sigma is Process.sigma:
            raise NotImplementedError(
                f"{type(self).__name__} gives neither alpha(t) and sigma(t) nor at(t)."
            )
        (alpha, d_alpha), (sigma, d_sigma) = (_derived(f, t) for f in (self.alpha, self.sigma))
        alpha = torch.where(alpha.abs() < NO_SIGNAL, 0.0, alpha)
        d_sigma = torch.where(d_sigma.isnan() & (sigma == 0), math.inf, d_sigma)
        f = d_alpha / alpha
        # Where sigma leaves 0 as a square root, sigma d_sigma is 0 inf: it is read a little later.
        later = torch.where(d_sigma.isinf(), t + 1e-12 * self.t_max, t)
        (_, slope), level = _derived(self.sigma, later), self.sigma(later).detach()
        half = torch.where(d_sigma.isinf(), slope * level, d_sigma * sigma)
        return Coefficients(
            alpha=alpha,
            sigma=sigma,
            d_alpha=d_alpha,
            d_sigma=d_sigma,
            f=f,
            g2=2 * half - torch.where(sigma > 0, 2 * f * sigma.square(), 0.0),
            rho=sigma / alpha,
        )

    def inverse(self, rho: Tensor) -> Tensor:
        """The time at which sigma/alpha is ``rho`` (float64 tensor), here by bisection."""
        return bisected(self, rho)

    # -- the core variable: in it, x is plain alpha u0 + sigma eps --------------------------------

    def to_modes(self, x: Tensor) -> Tensor:
        """A state (*batch, *event) in the basis in which alpha and sigma are diagonal."""
        return x

    def from_modes(self, u: Tensor) -> Tensor:
        """The inverse of :meth:`to_modes`."""
        return u

    def core(self, law):
        """The law of data (whatever has ``transformed``) as that of their modes."""
        return law

    def off_core(self, law):
        """The inverse of :meth:`core`."""
        return law

    def turned(self, matrices: Tensor) -> Tensor:
        """Linear maps (*batch, d, d) of modes as those of states."""
        return matrices

    def prior_std(self, t: float) -> float:
        """Standard deviation of the centred Gaussian from which sampling starts at time ``t``."""
        return self(t).sigma

    def shift(self, t: Number) -> tuple[Number, Number]:
        """The factor m of a condition mu in the state's mean, and its derivative in ``t`` [1/t].

        Both are 0 but for an affine process.
        """
        return 0.0, 0.0

    def carried(self, t: float, alpha: float) -> float:
        r"""What the forward chain carries of the state at time 0 to the time ``t``.

        With :math:`A = c_t/c_s` the ratio of two such numbers, the chain that ancestral sampling
        undoes is, given the data (and the condition),

        .. math:: x_t = A x_s + (\alpha_t - A\alpha_s) x_0 + (m_t - A m_s)\mu
                        + \sqrt{\sigma_t^2 - A^2\sigma_s^2}\, z .

        It is ``alpha``, that of ``t``, where the chain is a Markov process of its own; a published
        chain that is not says otherwise.
        """
        return alpha

    def __call__(self, t: float | Tensor) -> Coefficients:
        """Coefficients at ``t``: floats for a float, tensors of ``t``'s shape and dtype otherwise.

        They are computed in float64 whatever the dtype of ``t``.

        Raises:
            ValueError: a time outside ``[0, t_max]``.
        """
        times = self._inside("t", t, 0.0, self.t_max)
        return self.at(times).map(_like(t))

    def time_of(self, rho: float | Tensor) -> float | Tensor:
        """The time at which ``sigma/alpha`` equals ``rho``; the inverse of ``process(t).rho``.

        Raises:
            ValueError: ``rho`` below that of ``t = 0`` or above that of ``t_max``.
        """
        least, largest = self.at(torch.tensor([0.0, self.t_max], dtype=torch.float64)).rho.tolist()
        levels = self._inside("rho", rho, least, largest)
        return _like(rho)(self.inverse(levels).clamp(0.0, self.t_max))

    def _inside(self, name: str, value: float | Tensor, least: float, largest: float) -> Tensor:
        """``value`` as a float64 tensor, checked (on the host only) against the two bounds."""
        tensor = _numbers(name, value)
        if tensor.device.type == "cpu" and tensor.numel():
            slack = 1e-6 if isinstance(value, Tensor) and value.dtype != torch.float64 else 1e-12
            bad = ~((tensor >= least * (1 - slack)) & (tensor <= largest * (1 + slack)))
            if bad.any():
                raise ValueError(
                    f"{name} was {tensor[bad].flatten()[0].item():g}; {self!r} is defined for "
                    f"{name} from {least:g} to {largest:g}."
                )
        return tensor.clamp(least, largest)


def bisected(process: Process, rho: Tensor, levels: Callable | None = None) -> Tensor:
    """The time at which the sigma/alpha of a process is ``rho``, to neighbouring floats.

    ``levels`` gives alpha and sigma at times, if that is cheaper than asking for one by one.
    """
    levels = levels or (lambda t: (process.alpha(t), process.sigma(t)))
    low, high = torch.zeros_like(rho), torch.full_like(rho, process.t_max)
    for _ in range(160):  # t may go as the square of rho
        middle = 0.5 * (low + high)
        if bool(((middle == low) | (middle == high)).all()):
            break
        alpha, sigma = levels(middle)
        below = sigma < rho * alpha
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    first = process.at(torch.zeros_like(rho)).rho
    high = torch.where(rho <= first, 0.0, high)
    return torch.where(rho.isinf(), torch.full_like(rho, process.t_max), high).detach()


def _derived(function: Callable[[Tensor], Tensor], t: Tensor) -> tuple[Tensor, Tensor]:
    """The values of a function at ``t``, each of its own time, and their derivatives."""
    with torch.enable_grad():
        times = t.detach().clone().requires_grad_()
        values = torch.as_tensor(function(times), dtype=torch.float64, device=t.device)
        values = values.expand(t.shape)
        slope = None
        if values.requires_grad:
            (slope,) = torch.autograd.grad(values.sum(), times, allow_unused=True)
    return values.detach(), torch.zeros_like(t) if slope is None else slope


def _numbers(name: str, value: float | Tensor) -> Tensor:
    """A number or a tensor as a float64 tensor; ``TypeError`` with a sentence for anything else."""
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64)
        if tensor.ndim and not isinstance(value, Tensor):
            raise TypeError("a sequence")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} was {value!r}; it must be a number or a tensor.") from error
    return tensor


def _like(given: float | Tensor):
    """How to hand a float64 result back: as Python floats, or in the dtype of what was given."""
    if not isinstance(given, Tensor):
        return lambda value: float(value)
    dtype = given.dtype if given.dtype.is_floating_point else torch.float64
    return lambda value: torch.as_tensor(value).to(dtype)
