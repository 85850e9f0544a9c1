r"""Gaussian data, :math:`x_0 \sim N(\mu, \Sigma)`: everything in closed form.

With :math:`\Sigma = U \Lambda U^\top` each mode of variance :math:`\lambda` is shrunk on its own,

.. math:: D(x) = \mu + \sum_k u_k \frac{\alpha\lambda_k}{\alpha^2\lambda_k + \sigma^2}
          u_k^\top (x - \alpha\mu),

and the probability flow between two noise levels multiplies it by
:math:`\sqrt{(\alpha_s^2\lambda_k + \sigma_s^2)/(\alpha_t^2\lambda_k + \sigma_t^2)}`.

With one :math:`(\alpha, \sigma)` for each coordinate (A and S diagonal) the covariance of x is
:math:`M = A\Sigma A + S^2` and :math:`D = \mu + \Sigma A M^{-1}(x - A\mu)`.

Sources: Wang & Vastola 2023, arXiv:2303.02490; Pierret & Galerne 2024, arXiv:2405.14250.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Annotated

import torch
from torch import Tensor

from workbench.denoisers.base import Denoiser
from workbench.denoisers.checks import check_placement, finite, floating, orthonormal
from workbench.denoisers.components import TINY, Components, Noisy, Separate
from workbench.denoisers.fitting import checked_points, completed, eigh, moments, non_negative
from workbench.denoisers.level import Level, per_sample
from workbench.params import Param


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
        d, notes = mean.numel(), ()
        if cov.ndim == 2 and cov.shape == (d, d) and (mean.ndim == 1 or cov.shape != mean.shape):
            variances, basis, notes = eigh(cov)
        elif cov.ndim == 0:
            variances, basis = non_negative(cov.double().expand(d)), None
        elif cov.shape == mean.shape or cov.shape == (d,):
            variances, basis = non_negative(cov.double().flatten()), None
        else:
            raise ValueError(
                f"cov has shape {tuple(cov.shape)}; for a mean of {d} numbers it must be "
                f"({d}, {d}), ({d},) or a single number."
            )
        self._set(mean, basis, variances, 0.0, notes)

    def _set(self, mean: Tensor, basis: Tensor | None, variances: Tensor, rest, notes) -> None:
        self.mean, self.rest, self.notes = mean, float(rest), tuple(notes)
        self.basis = None if basis is None else basis.to(mean)
        self.variances = variances.to(device=mean.device, dtype=torch.float64)
        self.event_shape, self.dtype, self.device = mean.shape, mean.dtype, mean.device
        self._stamp("mean", "variances", *([] if basis is None else ["basis"]))

    def _derive(self) -> None:
        for name in ("_parts", "_turns", "eigenbasis"):
            vars(self).pop(name, None)
        self._set(self.mean, self.basis, self.variances, self.rest, self.notes)

    @classmethod
    def _make(cls, mean, basis, variances, rest=0.0, notes=()) -> Gaussian:
        made = cls.__new__(cls)
        made._set(mean, basis, variances, rest, notes)
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
        orthonormal("basis", basis)
        if not 0 <= rest < math.inf:
            raise ValueError(f"rest was {rest!r}; a variance must be finite and at least 0.")
        return cls._make(mean, basis, non_negative(variances.double()), rest)

    @classmethod
    def fit(
        cls, points: Tensor, rank: int | None = None, shrinkage: float | str | None = None
    ) -> Gaussian:
        """The Gaussian with the mean and (1/N) covariance of ``points`` (N, *event).

        What was done to the covariance, and what it lacks, is said in ``notes``.

        Args:
            points: finite numbers (N, *event).
            rank: how many leading principal directions are kept; the others have no variance.
            shrinkage: weight, from 0 to 1, of (mean variance) times identity; "auto": Ledoit and
                Wolf's (2004, J. Multivar. Anal. 88). None: the covariance as it is.
        """
        points = checked_points(points)
        found = moments(points.flatten(1), rank, shrinkage)
        mean = found.mean.reshape(points.shape[1:]).to(points.dtype)
        return cls._make(mean, found.basis, found.variances, found.rest, found.notes)

    @classmethod
    def from_data(
        cls,
        data,
        rank: Annotated[int, Param("principal directions kept; 0 keeps all", ge=0, le=4096)] = 0,
        shrinkage: Annotated[
            float,
            Param("share of the identity, times the mean variance, in a fit", ge=0, le=1),
        ] = 0.0,
    ) -> Gaussian:
        """The data's own law where it is Gaussian (and all of it is kept), otherwise a fit."""
        if isinstance(data.law, Gaussian) and rank == 0 and shrinkage == 0:
            return data.law
        d = data.points[0].numel()
        if rank > d:
            raise ValueError(f"denoiser rank was {rank}; these data have {d} dimensions.")
        return cls.fit(data.points, rank=rank or None, shrinkage=shrinkage or None)

    # -- the law -----------------------------------------------------------------------------

    @property
    def cov(self) -> Tensor:
        """The covariance as a (d, d) matrix."""
        return self._parts.covs[0].to(self.dtype)

    @property
    def spectrum(self) -> Tensor:
        """All d eigenvalues of the covariance, float64, ascending."""
        return self._parts.mode_variances()[0].sort().values

    @property
    def std(self) -> float:
        return math.sqrt(self.spectrum.mean().item())

    @cached_property
    def eigenbasis(self) -> Tensor:
        """All d eigenvectors of the covariance, as orthonormal columns (d, d)."""
        return completed(self.basis, self.variances, self.rest)[0].to(self.mean)

    def diagonalised(self) -> tuple[Gaussian, Tensor]:
        """The law of the coefficients in its own eigenbasis, diagonal; and that basis (d, d)."""
        if self.basis is None:
            return self, self.eigenbasis
        mean = self.mean.flatten().double() @ self.eigenbasis.double()
        return self._like(mean, None, self._parts.mode_variances()[0], 0.0), self.eigenbasis

    def transformed(self, matrix: Tensor) -> Gaussian:
        """The law of the coefficients ``matrix^T flatten(x0)``, in the same event shape.

        It is a diagonal Gaussian where ``matrix`` (d, d) diagonalises the covariance to rounding.
        """
        exact = self._rotation(matrix)
        mean = self.mean.flatten().double() @ exact
        basis = exact.T if self.basis is None else exact.T @ self.basis.double()
        # Each new coordinate's variance as a mean of variances: small ones stay exact.
        share = basis.square()
        variances = share @ self.variances + (1 - share.sum(1)).clamp_min(0) * self.rest
        mixed = (basis * (self.variances - self.rest)) @ basis.T
        mixed.fill_diagonal_(0.0)
        coarsest = max(torch.finfo(t).eps for t in (torch.as_tensor(matrix).dtype, self.dtype))
        if mixed.abs().max() <= 1e3 * coarsest * variances.max():
            return self._like(mean, None, variances, 0.0)
        return self._like(mean, basis, self.variances, self.rest)

    def translated(self, offset: Tensor) -> Gaussian:
        return self._like(self.mean + offset, self.basis, self.variances, self.rest)

    def _like(self, mean: Tensor, basis, variances, rest) -> Gaussian:
        mean = mean.reshape(self.event_shape).to(self.dtype)
        return Gaussian._make(mean, basis, variances, rest, self.notes)

    def noised(self, alpha, sigma) -> Gaussian:
        alpha, sigma = self._levels(alpha, sigma)
        mean = alpha * self.mean.flatten()
        if self.basis is None:
            return self._like(mean, None, alpha * alpha * self.variances + sigma * sigma, 0.0)
        if isinstance(alpha, float) and isinstance(sigma, float):
            a2, s2 = alpha * alpha, sigma * sigma
            return self._like(mean, self.basis, a2 * self.variances + s2, a2 * self.rest + s2)
        a, s = (torch.as_tensor(c).to(self.variances).expand(self.dim) for c in (alpha, sigma))
        variances, basis, notes = eigh(a[:, None] * self._parts.covs[0] * a + torch.diag(s * s))
        made = self._like(mean, basis, variances, 0.0)
        made.notes += notes
        return made

    def to(self, dtype: torch.dtype | None = None, device=None) -> Gaussian:
        check_placement(dtype, device)
        mean, basis = self.mean.to(device or self.device, dtype or self.dtype), self.basis
        if basis is not None and torch.finfo(mean.dtype).eps < torch.finfo(basis.dtype).eps:
            # Orthonormal to its new rounding.
            basis, triangle = torch.linalg.qr(basis.to(mean.dtype))
            basis = basis * triangle.diagonal().sign()
        return type(self)._make(mean, basis, self.variances, self.rest, self.notes)

    def __repr__(self) -> str:
        rank = "" if self.basis is None else f", rank {len(self.variances)}"
        return f"Gaussian({self.dim} dimensions{rank})"

    # -- under noise -------------------------------------------------------------------------

    @cached_property
    def _parts(self) -> Components:
        """This law as one component: everything but the fast path below goes through it."""
        complete = self.basis is None or len(self.variances) == self.dim
        rest = None if complete else self.variances.new_full((1, 1), self.rest)
        basis = None if self.basis is None else self.basis[None]
        return Components(self.mean.reshape(1, -1), basis, self.variances[None], rest)

    @cached_property
    def _turns(self) -> tuple[Tensor, Tensor, Tensor]:
        """Into the modes (d, r), back (r, d), and the mean's modes (r,).

        Both matrices are laid out column by column: as a right factor 1.4x faster than by rows.
        """
        centre = self.mean.flatten().double() @ self.basis.double()
        return self.basis.T.contiguous().T, self.basis.contiguous().T, centre.to(self.dtype)

    def _denoise_levels(self, x: Tensor, levels) -> list[Tensor]:
        seen = None if self.basis is None else x @ self._turns[0]
        return [level._denoised(x, seen) for level in levels]

    def flow(self, x: Tensor, start: tuple, end: tuple) -> Tensor:
        """Exact probability-flow map of ``x`` between two ``(alpha, sigma)``.

        Each may have one value per coordinate where the covariance is diagonal.

        Raises:
            ValueError: a start at sigma = 0 of a singular covariance.
            NotImplementedError: one value per coordinate of a covariance that is not diagonal.
        """
        (flat, first), (_, second) = self.at(*start)._seen(x), self.at(*end)._seen(x)
        before = self._parts.at(*first._pair, *second._pair)
        after = self._parts.at(*second._pair, *first._pair)
        if not isinstance(before, Separate):
            raise NotImplementedError(
                "this Gaussian has no closed-form flow where alpha or sigma has one value per "
                "coordinate: its covariance is not diagonal, so the maps at different noise levels "
                "do not commute. Integrate it with wb.sample on a fine grid instead."
            )
        if before.singular:
            raise ValueError(
                "the flow cannot start at sigma = 0 for a singular covariance: directions without "
                "variance hold no information there. Start at sigma > 0."
            )
        inside, outside = (after.level / before.level).sqrt(), None
        if before.outside is not None:
            outside = (after.outside_level / before.outside_level).sqrt()
        moved = before.apply(inside, outside, before.see(flat))
        return _states(moved + after.alpha * self._parts.means[..., None], flat).reshape(x.shape)


class GaussianLevel(Level):
    """Gaussian data at one noise level, where D is affine in x.

    Of one alpha and sigma for all, a function of the covariance is two matrix products, or (in its
    eigenbasis) one product a number; everything else goes by way of the one component.
    """

    def __init__(self, denoiser: Gaussian, alpha, sigma) -> None:
        super().__init__(denoiser, alpha, sigma)
        self.law, self.single = denoiser, isinstance(alpha, float) and isinstance(sigma, float)

    @cached_property
    def _noisy(self) -> Noisy:
        return self.law._parts.at(self.alpha, self.sigma)

    def _regular(self, what: str) -> Noisy:
        if self._noisy.singular:
            raise ValueError(
                f"this Gaussian has no {what} at sigma = 0: its covariance is singular. "
                "Ask at sigma > 0."
            )
        return self._noisy

    @cached_property
    def _posterior_mean(self) -> Callable:
        a, a2, s2, law = self.alpha, self.alpha**2, self.sigma**2, self.law
        gain = a * law.variances / (a2 * law.variances + s2).clamp_min(TINY)
        rest = a * law.rest / (a2 * law.rest + s2) if law.rest else 0.0
        return self._spread(gain, rest, law.mean.flatten())

    def _denoised(self, x: Tensor, modes: Tensor | None = None) -> Tensor:
        """``modes`` are those (n, r) of x, where they are known."""
        if self.single:
            return self._posterior_mean(x, modes)
        return _states(self._noisy.means(self._noisy.see(x)), x)

    def kernel(self, name: str, like: Tensor) -> Callable[[Tensor], Tensor]:
        if name == "denoised" and self.single and like.ndim == 2:
            return self._posterior_mean
        return super().kernel(name, like)

    def _spread(self, inside: Tensor, outside: float, base: Tensor | None = None) -> Callable:
        """The function of states (n, d), ``x - alpha mean`` times a function of the covariance,
        plus ``base`` (d,).

        The function is ``inside`` (r,) along the modes and ``outside`` orthogonal to them.
        """
        law, dtype = self.law, self.law.dtype
        mean = law.mean.flatten()
        base = torch.zeros_like(mean) if base is None else base
        if law.basis is None:
            base, inside = (base - self.alpha * inside * mean).to(dtype), inside.to(dtype)
            return lambda x, modes=None: torch.addcmul(base, x, inside)
        into, back, centre = law._turns
        centre = centre * -self.alpha
        around = bool(outside) and len(inside) < law.dim
        if around:
            base, inside = base - self.alpha * outside * mean, inside - outside
        inside = inside.to(dtype)

        def spread(x: Tensor, modes: Tensor | None = None) -> Tensor:
            modes = torch.addmm(centre, x, into) if modes is None else modes + centre
            start = torch.add(base, x, alpha=outside) if around else base
            return torch.addmm(start, modes.mul_(inside), back)

        return spread

    def _score(self, x: Tensor) -> Tensor:
        if not self.single or self.sigma**2 == 0:
            noisy = self._regular("score")
            return _states(noisy.score(noisy.see(x)), x)
        a2, s2, law = self.alpha**2, self.sigma**2, self.law
        return self._spread(-1 / (a2 * law.variances + s2), -1 / (a2 * law.rest + s2))(x)

    def _log_prob(self, x: Tensor) -> Tensor:
        noisy = self._regular("density")
        return noisy.log_density(noisy.see(x))[0].to(x.dtype)

    def _jacobian(self, x: Tensor) -> Tensor:
        return self._noisy.matrices("gain")[0].to(x.dtype)

    def _divergence(self, x: Tensor) -> Tensor:
        return self._noisy.trace_gain()[0].to(x.dtype).expand(len(x))

    def _hessian(self, x: Tensor) -> Tensor:
        return -self._regular("score").matrices("precision")[0].to(x.dtype)

    def _posterior_cov(self, x: Tensor) -> Tensor:
        return self._noisy.matrices("posterior")[0].to(x.dtype)

    def _rate(self, x: Tensor, d_alpha, d_sigma) -> Tensor:
        noisy = self.law._parts.at(self.alpha, self.sigma, d_alpha, d_sigma)
        return _states(noisy.rates(noisy.see(x), d_alpha, d_sigma)[0], x)

    def _jvp(self, x: Tensor, v: Tensor) -> Tensor:
        mean = self.law.mean.flatten()
        return self._denoised((self.alpha * mean).to(x.dtype) + v) - mean

    def _vjp(self, x: Tensor, u: Tensor) -> Tensor:
        alike = per_sample(self.alpha) and per_sample(self.sigma)  # then J is symmetric
        return self._jvp(x, u) if alike else super()._vjp(x, u)

    def _slope(self, x: Tensor) -> Tensor:
        """``-l rho / (l + rho^2)^2 (x / alpha - m)`` in a mode of variance l."""
        if not self.single:
            return super()._slope(x)
        a2, s2, law = self.alpha**2, self.sigma**2, self.law
        inside, outside = (
            -a2 * self.sigma * v / (a2 * v + s2) / (a2 * v + s2) for v in (law.variances, law.rest)
        )
        return self._spread(inside, outside)(x)


def _states(components: Tensor, x: Tensor) -> Tensor:
    """The one component's (1, d, n) as states (n, d), like ``x``."""
    return components[0].T.expand(x.shape).to(x.dtype).contiguous()


Gaussian._kind = GaussianLevel
