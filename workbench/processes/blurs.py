"""Spectral processes that blur: the noise level, or the signal, follows the frequency."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from workbench.params import Param
from workbench.processes.base import Coefficients
from workbench.processes.modes import In, Spectral
from workbench.processes.scalar import Cosine
from workbench.registry import register


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
