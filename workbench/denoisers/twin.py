r"""Twins of a denoiser: the same data in another basis, moved by an offset, or under noise.

Of a denoiser with one noise level per sample, and with the identity for what is not asked,

.. math:: y_0 = B^\top x_0:\ D'(y) = B^\top D(B y),\qquad
          y_0 = x_0 + b:\ D'(y) = D(y - \alpha b) + b,

.. math:: y_0 = a x_0 + s\epsilon:\ D'(y; \alpha, \sigma) = a D + \alpha s^2 (y - \alpha a D)/S^2,
          \quad D = D(y; \alpha a, S),\ S^2 = \alpha^2 s^2 + \sigma^2 .
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.checks import finite, floating
from workbench.denoisers.level import Level


class Twin(Denoiser):
    """The law of a linear function of another denoiser's data, with or without noise.

    Args:
        of: the other denoiser.
        matrix: orthonormal columns (d, d), checked; the data are ``matrix^T flatten(x0)``.
        offset: what is added to the data, shape ``event``.
        noise: numbers (a, s); the data are ``a x0 + s eps``.
    """

    def __init__(self, of: Denoiser, matrix=None, offset=None, noise=None) -> None:
        self.of, self.event_shape, self.notes = of, of.event_shape, of.notes
        self.dtype, self.device, self.largest_rho = of.dtype, of.device, of.largest_rho
        like = torch.empty(0, dtype=of.dtype, device=of.device)
        self.matrix = None if matrix is None else matrix.to(like)
        self.offset = None
        if offset is not None:
            offset = finite("offset", floating("offset", offset, like=like))
            self.offset = offset.expand(of.event_shape)
        self.noise = noise
        if noise is not None:
            level = of.at(*noise)
            if not isinstance(level.alpha, float) or not isinstance(level.sigma, float):
                raise ValueError(
                    f"alpha and sigma differ between coordinates; {of!r} has a noised law of one "
                    "alpha and sigma only."
                )
            self.noise = level._pair

    @property
    def mean(self) -> Tensor:
        mean = self.of.mean
        if self.matrix is not None:
            mean = (mean.flatten() @ self.matrix).reshape(self.event_shape)
        if self.offset is not None:
            mean = mean + self.offset
        return mean if self.noise is None else self.noise[0] * mean

    @property
    def std(self) -> float:
        a, s = self.noise or (1.0, 0.0)
        return (a * a * self.of.std**2 + s * s) ** 0.5

    def _level(self, alpha, sigma) -> Level:
        return TwinLevel(self, alpha, sigma)

    def __repr__(self) -> str:
        changes = {
            "in another basis": self.matrix,
            "moved": self.offset,
            "under noise": self.noise,
        }
        said = ", ".join(word for word, value in changes.items() if value is not None)
        return f"Twin({self.of!r} {said})"


class TwinLevel(Level):
    """A twin at one noise level: the other denoiser's answer, carried over."""

    def __init__(self, denoiser: Twin, alpha, sigma) -> None:
        super().__init__(denoiser, alpha, sigma)
        alpha, sigma = (c if isinstance(c, float) else c.to(denoiser.dtype) for c in self._pair)
        if denoiser.noise is not None:
            a, s = denoiser.noise
            self.total = (alpha * s) ** 2 + sigma**2
            alpha, sigma = alpha * a, self.total**0.5
        self.base = denoiser.of._level(alpha, sigma)

    def _carried(self, y: Tensor) -> Tensor:
        """The state of the other denoiser."""
        twin = self.denoiser
        if twin.offset is not None:
            y = y - self.base.alpha * twin.offset.flatten()
        return y if twin.matrix is None else y @ twin.matrix.T

    def _denoised(self, x: Tensor) -> Tensor:
        twin = self.denoiser
        denoised = self.base._denoised(self._carried(x))
        if twin.matrix is not None:
            denoised = denoised @ twin.matrix
        if twin.offset is not None:
            denoised = denoised + twin.offset.flatten()
        if twin.noise is not None:
            a, s = twin.noise
            share = self.alpha * s * s / self.total
            denoised = a * denoised + share * (x - self.base.alpha * denoised)
        return denoised.to(x.dtype)

    def _score(self, x: Tensor) -> Tensor:
        score = self.base._score(self._carried(x))
        return score if self.denoiser.matrix is None else score @ self.denoiser.matrix

    def _log_prob(self, x: Tensor) -> Tensor:
        return self.base._log_prob(self._carried(x))
