r"""How data becomes noise: :math:`x_t = \alpha_t x_0 + \sigma_t \epsilon`.

A process is a pair of functions of time and nothing else; it never meets data. Time grows towards
noise. Everything a sampler or a lens needs is in closed form: no autograd, no quadrature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from workbench.params import Parameterised

__all__ = ["Coefficients", "Process"]

Number = TypeVar("Number", float, Tensor)


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

    def map(self, change) -> Coefficients:
        """The same coefficients with ``change`` applied to each."""
        return Coefficients(**{f.name: change(getattr(self, f.name)) for f in fields(self)})


class Process(Parameterised):
    """Base of all processes. A subclass is a frozen dataclass with two or three short methods.

    ``t_min`` is where grids stop by default; any time in ``[0, t_max]`` may be asked for, since
    alpha and sigma are regular at both ends. Where they are and their slopes are not, the slope is
    infinite and never nan: ``d_sigma`` at sigma = 0 where sigma starts as a square root; ``f``,
    ``g2``, ``rho`` at pure noise (alpha = 0).

    Attributes:
        has_prior: whether the state at ``t_max`` is close to a Gaussian that knows nothing of the
            data, from which sampling can start.
    """

    t_min: float
    t_max: float

    has_prior: ClassVar[bool] = True

    def at(self, t: Tensor) -> Coefficients:
        """Coefficients at the times ``t`` (float64 tensor, inside the range)."""
        raise NotImplementedError

    def inverse(self, rho: Tensor) -> Tensor:
        """The time at which sigma/alpha is ``rho`` (float64 tensor)."""
        raise NotImplementedError

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
        try:
            tensor = torch.as_tensor(value, dtype=torch.float64)
            if tensor.ndim and not isinstance(value, Tensor):
                raise TypeError("a sequence")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} was {value!r}; it must be a number or a tensor.") from error
        if tensor.device.type == "cpu" and tensor.numel():
            slack = 1e-6 if isinstance(value, Tensor) and value.dtype != torch.float64 else 1e-12
            bad = ~((tensor >= least * (1 - slack)) & (tensor <= largest * (1 + slack)))
            if bad.any():
                raise ValueError(
                    f"{name} was {tensor[bad].flatten()[0].item():g}; {self!r} is defined for "
                    f"{name} from {least:g} to {largest:g}."
                )
        return tensor.clamp(least, largest)


def _like(given: float | Tensor):
    """How to hand a float64 result back: as Python floats, or in the dtype of what was given."""
    if not isinstance(given, Tensor):
        return lambda value: float(value)
    dtype = given.dtype if given.dtype.is_floating_point else torch.float64
    return lambda value: torch.as_tensor(value).to(dtype)
