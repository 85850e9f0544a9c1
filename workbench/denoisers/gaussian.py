r"""Gaussian data, :math:`x_0 \sim N(\mu, \Sigma)`: everything in closed form.

With :math:`\Sigma = U \Lambda U^\top` each mode of variance :math:`\lambda` is shrunk on its own,

.. math:: D(x) = \mu + \sum_k u_k \frac{\alpha\lambda_k}{\alpha^2\lambda_k + \sigma^2}
          u_k^\top (x - \alpha\mu),

and the probability flow between two noise levels multiplies it by
:math:`\sqrt{(\alpha_s^2\lambda_k + \sigma_s^2)/(\alpha_t^2\lambda_k + \sigma_t^2)}`.

Sources: Wang & Vastola 2023, arXiv:2303.02490; Pierret & Galerne 2024, arXiv:2405.14250.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser, finite, floating, per_sample
from workbench.params import Param

__all__ = ["Gaussian"]


class Gaussian(Denoiser):
    """A Gaussian with a full, diagonal, scalar or low-rank covariance.

    Args:
        mean: shape of one sample, ``event``; d elements.
        cov: (d, d), or d variances (shape (d,) or ``event``), or one variance for all [x²].

    Raises:
        ValueError: a covariance that is not square, symmetric and positive semi-definite, or
            numbers that are not finite.

    Attributes:
        basis: orthonormal columns (d, r), or None for the coordinate axes.
        variances: (r,) float64, of the columns of the basis.
        rest: variance in every direction orthogonal to the basis.
    """

    def __init__(self, mean: Tensor, cov) -> None:
        mean = finite("mean", floating("mean", mean))
        cov = finite("cov", floating("cov", cov, like=mean))
        d = mean.numel()
        if cov.ndim == 2 and cov.shape == (d, d) and (mean.ndim == 1 or cov.shape != mean.shape):
            variances, basis = eigh(cov)
        elif cov.ndim == 0:
            variances, basis = _non_negative(cov.double().expand(d)), None
        elif cov.shape == mean.shape or cov.shape == (d,):
            variances, basis = _non_negative(cov.double().flatten()), None
        else:
            raise ValueError(
                f"cov has shape {tuple(cov.shape)}; for a mean of {d} numbers it must be "
                f"({d}, {d}), ({d},) or a single number."
            )
        self._set(mean, basis, variances, 0.0)

    def _set(self, mean: Tensor, basis: Tensor | None, variances: Tensor, rest: float) -> None:
        self.mean, self.rest = mean, float(rest)
        self.basis = None if basis is None else basis.to(mean)
        self.variances = variances.to(device=mean.device, dtype=torch.float64)
        self.event_shape, self.dtype, self.device = mean.shape, mean.dtype, mean.device

    @classmethod
    def _make(cls, mean, basis, variances, rest) -> Gaussian:
        made = cls.__new__(cls)
        made._set(mean, basis, variances, rest)
        return made

    @classmethod
    def low_rank(
        cls, mean: Tensor, basis: Tensor, variances: Tensor, rest: float = 0.0
    ) -> Gaussian:
        """A Gaussian of ``variances`` (r,) along the orthonormal columns of ``basis`` (d, r).

        ``rest`` is the variance in every direction orthogonal to them (0: none, a rank-r law).

        Raises:
            ValueError: columns that are not orthonormal, or a negative variance.
        """
        mean = finite("mean", floating("mean", mean))
        basis = finite("basis", floating("basis", basis, like=mean))
        variances = finite("variances", floating("variances", variances, like=mean))
        if basis.ndim != 2 or basis.shape[0] != mean.numel() or variances.shape != basis.shape[1:]:
            raise ValueError(
                f"basis has shape {tuple(basis.shape)} and variances {tuple(variances.shape)}; for "
                f"a mean of {mean.numel()} numbers they must be ({mean.numel()}, r) and (r,)."
            )
        gram = basis.double().T @ basis.double()
        error = (gram - torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)).abs().max()
        if error > 1e3 * torch.finfo(mean.dtype).eps:
            raise ValueError(
                f"the columns of basis are off orthonormal by {error.item():.2g}; orthonormalise "
                "them first, e.g. torch.linalg.qr(basis).Q."
            )
        if not 0 <= rest < math.inf:
            raise ValueError(f"rest was {rest!r}; a variance must be finite and at least 0.")
        return cls._make(mean, basis, _non_negative(variances.double()), rest)

    @classmethod
    def fit(cls, points: Tensor, rank: int | None = None) -> Gaussian:
        """The Gaussian with the mean and (1/N) covariance of ``points`` (N, *event).

        With ``rank`` r, the r leading principal directions are kept and the rest has no variance.
        """
        points = finite("points", floating("points", points))
        if points.ndim < 2 or points.shape[0] < 1:
            raise ValueError(
                f"points has shape {tuple(points.shape)}; it must be (number of points, *event)."
            )
        flat = points.flatten(1).double()
        centred = flat - flat.mean(0)
        variances, basis = eigh(centred.T @ centred / len(flat))
        if rank is not None:
            if not 1 <= rank <= flat.shape[1]:
                raise ValueError(f"rank was {rank}; it must be from 1 to {flat.shape[1]}.")
            variances, basis = variances[-rank:], basis[:, -rank:]
        mean = flat.mean(0).reshape(points.shape[1:]).to(points.dtype)
        return cls._make(mean, basis, variances, 0.0)

    @classmethod
    def from_data(
        cls,
        data,
        rank: Annotated[int, Param("principal directions kept; 0 keeps all", ge=0, le=4096)] = 0,
    ) -> Gaussian:
        """The data's own law where it is Gaussian (and all of it is kept), otherwise a fit."""
        if isinstance(data.law, Gaussian) and rank == 0:
            return data.law
        d = data.points[0].numel()
        if rank > d:
            raise ValueError(f"denoiser rank was {rank}; these data have {d} dimensions.")
        return cls.fit(data.points, rank=rank or None)

    # -- the law -----------------------------------------------------------------------------

    @property
    def cov(self) -> Tensor:
        """The covariance as a (d, d) matrix."""
        if self.basis is None:
            return torch.diag(self.variances).to(self.dtype)
        basis = self.basis.double()
        eye = torch.eye(self.dim, dtype=torch.float64, device=self.device)
        spread = (basis * (self.variances - self.rest)) @ basis.T + self.rest * eye
        return spread.to(self.dtype)

    @property
    def spectrum(self) -> Tensor:
        """All d eigenvalues of the covariance, float64, ascending."""
        others = torch.full((self.dim - len(self.variances),), self.rest, dtype=torch.float64)
        return torch.cat([others.to(self.variances), self.variances]).sort().values

    @property
    def std(self) -> float:
        return math.sqrt(self.spectrum.mean().item())

    def _denoise(self, x: Tensor, alpha, sigma) -> Tensor:
        mean = self.mean.flatten()
        if isinstance(alpha, float) and isinstance(sigma, float):
            gain, rest = self._scalar_gains(alpha, sigma)
        else:
            self._check_modes(alpha, sigma)
            gain, rest = self._gain(self.variances, alpha, sigma).to(x.dtype), None
            if self.basis is not None and self.rest:
                rest = self._gain(self.variances.new_full((1,), self.rest), alpha, sigma).to(x)
        y = x - alpha * mean
        if self.basis is None:
            return mean + gain * y
        modes = y @ self.basis
        if rest is None:
            return torch.addmm(mean, modes * gain, self.basis.T)
        return torch.addmm(mean, modes * (gain - rest), self.basis.T) + rest * y

    def _check_modes(self, alpha, sigma) -> None:
        if self.basis is not None and not (per_sample(alpha) and per_sample(sigma)):
            raise ValueError(
                "alpha or sigma has one value per coordinate; only a Gaussian with a diagonal "
                "covariance can be asked so."
            )

    def _scalar_gains(self, alpha: float, sigma: float) -> tuple[Tensor, float | None]:
        level = alpha * alpha * self.variances + sigma * sigma
        gain = (alpha * self.variances / level.clamp_min(torch.finfo(torch.float64).tiny)).to(
            self.dtype
        )
        if not self.rest or self.basis is None:
            return gain, None
        return gain, alpha * self.rest / (alpha * alpha * self.rest + sigma * sigma)

    @staticmethod
    def _gain(variances: Tensor, alpha, sigma) -> Tensor:
        alpha = alpha.double() if isinstance(alpha, Tensor) else alpha
        sigma = sigma.double() if isinstance(sigma, Tensor) else sigma
        level = alpha * alpha * variances + sigma * sigma
        return alpha * variances / level.clamp_min(torch.finfo(torch.float64).tiny)

    def _log_prob(self, x: Tensor, alpha, sigma) -> Tensor:
        self._check_modes(alpha, sigma)
        alpha, sigma = (c.double() if isinstance(c, Tensor) else c for c in (alpha, sigma))
        y = x.double() - alpha * self.mean.flatten().double()
        modes = y if self.basis is None else y @ self.basis.double()
        level = alpha * alpha * self.variances + sigma * sigma
        others = self.dim - len(self.variances)
        rest = torch.as_tensor(alpha * alpha * self.rest + sigma * sigma, dtype=torch.float64)
        rest = rest.to(x.device)
        if not bool((level > 0).all()) or (others and not bool((rest > 0).all())):
            raise ValueError(
                "this Gaussian has no density at sigma = 0: its covariance is singular. "
                "Ask at sigma > 0."
            )
        quadratic = (modes.square() / level).sum(-1)
        log_det = level.log().expand(modes.shape).sum(-1)
        if others:
            off = (y - modes @ self.basis.double().T).square().sum(-1)
            rest = rest.reshape(-1)
            quadratic, log_det = quadratic + off / rest, log_det + others * rest.log()
        return (-0.5 * (quadratic + log_det + self.dim * math.log(2 * math.pi))).to(x.dtype)

    def noised(self, alpha: float, sigma: float) -> Gaussian:
        a2, s2 = alpha * alpha, sigma * sigma
        return Gaussian._make(
            alpha * self.mean, self.basis, a2 * self.variances + s2, a2 * self.rest + s2
        )

    def flow(self, x: Tensor, start: tuple[float, float], end: tuple[float, float]) -> Tensor:
        flat, *_ = self._flatten(x, *start)
        (a, s), (a_end, s_end) = start, end
        before = a * a * self.variances + s * s
        rest_before = a * a * self.rest + s * s
        others = self.dim > len(self.variances)
        if not bool((before > 0).all()) or (others and rest_before == 0):
            raise ValueError(
                "the flow cannot start at sigma = 0 for a singular covariance: directions without "
                "variance hold no information there. Start at sigma > 0."
            )
        scale = ((a_end * a_end * self.variances + s_end * s_end) / before).sqrt().to(x.dtype)
        mean = self.mean.flatten()
        y = flat - a * mean
        if self.basis is None:
            moved = scale * y
        else:
            modes = y @ self.basis
            moved = (modes * scale) @ self.basis.T
            if others:
                rest = math.sqrt((a_end * a_end * self.rest + s_end * s_end) / rest_before)
                moved = moved + rest * (y - modes @ self.basis.T)
        return (a_end * mean + moved).reshape(x.shape)

    def to(self, dtype: torch.dtype | None = None, device=None) -> Gaussian:
        mean = self.mean.to(device=device or self.device, dtype=dtype or self.dtype)
        return type(self)._make(mean, self.basis, self.variances, self.rest)

    def __repr__(self) -> str:
        rank = "" if self.basis is None else f", rank {len(self.variances)}"
        return f"Gaussian({self.dim} dimensions{rank})"


def eigh(cov: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (float64, tiny negatives set to 0) and eigenvectors of a checked covariance."""
    matrix = cov.double()
    size = matrix.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    skew = ((matrix - matrix.T).abs().max() / size).item()
    tolerance = 1e3 * torch.finfo(cov.dtype).eps
    if skew > tolerance:
        raise ValueError(
            f"cov differs from its transpose by {skew:.2g} (relative); a covariance is symmetric."
        )
    variances, basis = torch.linalg.eigh(0.5 * (matrix + matrix.T))
    if variances[0] < -tolerance * size:
        raise ValueError(
            f"cov has an eigenvalue of {variances[0].item():.4g}; a covariance must be positive "
            "semi-definite (all eigenvalues at least 0)."
        )
    return variances.clamp_min(0.0), basis


def _non_negative(variances: Tensor) -> Tensor:
    if bool((variances < 0).any()):
        raise ValueError(
            f"a variance was {variances.min().item():.4g}; variances must be at least 0 "
            "(a covariance is positive semi-definite)."
        )
    return variances
