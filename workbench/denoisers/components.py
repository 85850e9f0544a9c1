r"""K Gaussians under noise: what a mixture is made of, and (K = 1) a Gaussian.

A component :math:`N(\mu, C)` seen through :math:`x = A x_0 + S\epsilon` (A, S diagonal) has

.. math:: M = A C A + S^2,\quad y = x - A\mu,\quad s = -M^{-1}y,\quad m = \mu + C A M^{-1} y,\quad
          G = C A M^{-1},\quad P = C - G A C

as covariance, residual, score, posterior mean, its Jacobian and posterior covariance. Where A and S
are alike in all coordinates (or C is diagonal) every mode of C stands alone (:class:`Separate`);
otherwise they mix and M is factorised (:class:`Mixed`). All is float64, and laid out as
(component, coordinate, sample): sums over components then run over the first axis, where they are
fast.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from workbench.denoisers.level import _like, per_sample

TINY = torch.finfo(torch.float64).tiny


class Components:
    """K Gaussians by the modes of their covariances, in float64.

    Attributes:
        means: (K, d).
        basis: orthonormal columns (K, d, r), or None for the coordinate axes.
        variances: (K, r) of those columns; (K, 1) or (K, d) without a basis.
        log_weights: (K,), of a mixture.
        rest: (K, 1), the variance in every direction orthogonal to the basis; None if there is
            none.
    """

    def __init__(self, means: Tensor, basis: Tensor | None, variances: Tensor, rest=None) -> None:
        self.means, self.variances = means.double(), variances.double()
        self.basis = None if basis is None else basis.double()
        self.rest = None if rest is None else rest.double()
        self.count, self.dim = means.shape
        self._cast: dict[tuple, Tensor] = {}

    @cached_property
    def smallest(self) -> float:
        """Least variance in any direction of any component."""
        parts = [self.variances] if self.rest is None else [self.variances, self.rest]
        return min(part.min().item() for part in parts if part.numel())

    @cached_property
    def radius(self) -> float:
        """Largest norm of a mean."""
        return self.means.square().sum(1).max().sqrt().item()

    @cached_property
    def middle(self) -> tuple[int, float, float]:
        """The component nearest to the mean of all means, the largest square of a distance of
        another to it, and the largest logarithm of another's weight over its own.
        """
        nearest = (self.means - self.means.mean(0)).square().sum(1).argmin().item()
        apart = (self.means - self.means[nearest]).square().sum(1).max().item()
        return nearest, apart, (self.log_weights.max() - self.log_weights[nearest]).item()

    @cached_property
    def alike(self) -> bool:
        """Whether all are isotropic and of one variance."""
        v = self.variances
        return self.basis is None and v.shape[1] == 1 and bool((v == v[0]).all())

    def cast(self, name: str, dtype: torch.dtype) -> Tensor:
        """What the fastest products need, once in each dtype: "means" (K, d), "turned" (d, K),
        "sums", these over a row of ones (and zeros: products of four rows at a time are fastest),
        "norms", their squares (K, 1), and "column", the log-weights (K, 1).
        """
        if (name, dtype) not in self._cast:
            if name == "column":
                value = self.log_weights[:, None]
            elif name == "norms":
                value = self.means.square().sum(1, keepdim=True)
            elif name == "sums":
                means = self.means.T
                idle = means.new_zeros(-(self.dim + 1) % 4, self.count)
                value = torch.cat([means, torch.ones_like(means[:1]), idle])
            else:
                value = self.means if name == "means" else self.means.T.contiguous()
            self._cast[name, dtype] = value.to(dtype)
        return self._cast[name, dtype]

    def some(self, which: Tensor) -> Components:
        """Those components alone."""
        parts = (self.means, self.basis, self.variances, self.rest)
        return Components(*(None if part is None else part[which] for part in parts))

    def mode_variances(self) -> Tensor:
        """All d variances of each component (K, d)."""
        if self.basis is None:
            return self.variances.expand(self.count, self.dim)
        if self.rest is None:
            return self.variances
        others = self.rest.expand(self.count, self.dim - self.variances.shape[1])
        return torch.cat([others, self.variances], 1)

    def matrices(self, inside: Tensor, outside: Tensor | None) -> Tensor:
        """(K, ..., d, d) with the eigenvalues ``inside`` (K, ..., r) along the modes."""
        if self.basis is None:
            return torch.diag_embed(inside.expand(*inside.shape[:-1], self.dim))
        basis = self.basis.reshape(self.count, *(1,) * (inside.ndim - 2), *self.basis.shape[1:])
        if outside is None:
            return (basis * inside[..., None, :]) @ basis.mT
        matrices = (basis * (inside - outside)[..., None, :]) @ basis.mT
        matrices.diagonal(dim1=-2, dim2=-1).add_(outside)
        return matrices

    @cached_property
    def covs(self) -> Tensor:
        """The covariances (K, d, d)."""
        return self.matrices(self.variances, self.rest)

    @cached_property
    def roots(self) -> Tensor:
        """Their symmetric square roots (K, d, d)."""
        return self.matrices(self.variances.sqrt(), None if self.rest is None else self.rest.sqrt())

    def at(self, alpha, sigma, *rates, floor=0.0) -> Noisy:
        """The components at a noise level.

        Args:
            alpha, sigma: floats, or tensors (n or 1, d or 1).
            rates: further coefficients that will be asked with.
            floor: least variance in a density: stands in for zero where a component has none.
        """
        alike = all(map(per_sample, (alpha, sigma, *rates)))
        kind = Separate if self.basis is None or alike else Mixed
        return kind(self, turned(alpha), turned(sigma), floor)


def turned(coefficient):
    """A coefficient (n or 1, d or 1) in the layout (d or 1, n or 1), float64."""
    return coefficient.double().T if isinstance(coefficient, Tensor) else coefficient


class Noisy:
    """Components at one noise level (or one per sample); ``seen`` is what :meth:`see` returned."""

    def __init__(self, parts: Components, alpha, sigma, floor) -> None:
        self.parts, self.alpha, self.sigma = parts, alpha, sigma
        self.floor = floor if isinstance(floor, float) else floor.double().T
        self._made: dict[str, Tensor] = {}

    def residual(self, x: Tensor) -> Tensor:
        """``x - alpha mu`` (K, d, n) of states (n, d)."""
        return x.double().T - self.alpha * self.parts.means[..., None]

    def means(self, seen) -> Tensor:
        """Posterior means of the components (K, d, n)."""
        return self.parts.means[..., None] + self.shift(seen)

    def log_density(self, seen) -> Tensor:
        """(K, n) [nats]."""
        constant = self.parts.dim * math.log(2 * math.pi)
        return -0.5 * (self.quadratic(seen) + self.log_det() + constant)

    def matrices(self, kind: str) -> Tensor:
        """(K, n or 1, d, d); kinds: "gain" G, "precision" M^-1, "posterior" P."""
        if kind not in self._made:
            self._made[kind] = self._matrices(kind)
        return self._made[kind]

    def mean_matrix(self, kind: str, share: Tensor) -> Tensor:
        """``sum_k share_k X_k`` (n, d, d)."""
        matrices = self.matrices(kind)
        if matrices.shape[1] == 1:
            flat = share.T @ matrices.reshape(len(matrices), -1)
            return flat.reshape(-1, *matrices.shape[2:])
        return torch.einsum("kn,knij->nij", share, matrices)


class Separate(Noisy):
    """Each mode stands alone: functions of its variance do everything."""

    def __init__(self, parts: Components, alpha, sigma, floor) -> None:
        super().__init__(parts, alpha, sigma, floor)
        self.v = parts.variances[..., None]  # (K, r, 1)
        self.level = self._noisy(self.v)
        self.safe = self.level.clamp_min(self.floor)
        self.outside = None
        if parts.rest is not None:
            self.outside = parts.rest[..., None]  # (K, 1, 1)
            self.outside_level = self._noisy(self.outside)
            self.outside_safe = self.outside_level.clamp_min(self.floor)

    def _noisy(self, variance: Tensor) -> Tensor:
        return self.alpha * self.alpha * variance + self.sigma * self.sigma

    @property
    def singular(self) -> bool:
        """Whether any direction has no variance."""
        return any(
            bool((level <= 0).any())
            for level in (self.level, None if self.outside is None else self.outside_level)
            if level is not None and level.numel()
        )

    def see(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals (K, d, n) and their modes (K, r, n)."""
        y = self.residual(x)
        return y, y if self.parts.basis is None else self.parts.basis.mT @ y

    def apply(self, inside: Tensor, outside: Tensor | None, seen) -> Tensor:
        """The matrices of these eigenvalues times the residuals (K, d, n)."""
        y, modes = seen
        if self.parts.basis is None:
            return inside * y
        if outside is None:
            return self.parts.basis @ (inside * modes)
        return self.parts.basis @ ((inside - outside) * modes) + outside * y

    def _values(self, kind: str) -> tuple[Tensor, Tensor | None]:
        """Eigenvalues in the modes and outside them, shapes (K, r, n or 1) and (K, 1, n or 1)."""
        inside = self._value(kind, self.v, self.level, self.safe)
        if self.outside is None:
            return inside, None
        return inside, self._value(kind, self.outside, self.outside_level, self.outside_safe)

    def _value(self, kind: str, v: Tensor, level: Tensor, safe: Tensor) -> Tensor:
        if kind == "precision":
            return 1 / safe
        if kind == "gain":
            return self.alpha * v / level.clamp_min(TINY)
        return v * (self.sigma * self.sigma / level.clamp_min(TINY))

    def quadratic(self, seen) -> Tensor:
        """``y^T M^-1 y`` (K, n)."""
        total = (seen[1].square() / self.safe).sum(1)
        if self.outside is None:
            return total
        return total + self._off(seen) / self.outside_safe[:, 0]

    def _off(self, seen) -> Tensor:
        """Squared norm (K, n) of the residual outside the modes."""
        return (seen[0] - self.parts.basis @ seen[1]).square().sum(1)

    def _sum(self, inside: Tensor, outside: Tensor | None) -> Tensor:
        """Sum over all d directions (K, n or 1)."""
        if self.parts.basis is None:
            return inside.expand(-1, self.parts.dim, -1).sum(1)
        total = inside.sum(1)
        if outside is None:
            return total
        return total + (self.parts.dim - self.v.shape[1]) * outside[:, 0]

    def log_det(self) -> Tensor:
        return self._sum(self.safe.log(), None if self.outside is None else self.outside_safe.log())

    def score(self, seen) -> Tensor:
        """Scores of the components (K, d, n)."""
        return -self.apply(*self._values("precision"), seen)

    def shift(self, seen) -> Tensor:
        """Posterior means less the means of the data (K, d, n)."""
        return self.apply(*self._values("gain"), seen)

    def trace_gain(self) -> Tensor:
        """Trace of G (K, n or 1)."""
        return self._sum(*self._values("gain"))

    def _matrices(self, kind: str) -> Tensor:
        inside, outside = self._values(kind)
        return self.parts.matrices(inside.mT, None if outside is None else outside.mT)

    def mean_matrix(self, kind: str, share: Tensor) -> Tensor:
        if self.parts.basis is not None:
            return super().mean_matrix(kind, share)
        diagonal = (share[:, None] * self._values(kind)[0]).sum(0)
        return torch.diag_embed(diagonal.expand(self.parts.dim, -1).T)

    def rates(self, seen, d_alpha, d_sigma) -> tuple[Tensor, Tensor]:
        """Time derivatives at fixed x of the posterior means (K, d, n) and log-densities (K, n)."""
        a, s, da, ds = self.alpha, self.sigma, turned(d_alpha), turned(d_sigma)
        pull = (da * self.parts.means[..., None]).expand(-1, self.parts.dim, -1)
        if self.parts.basis is not None:
            pull = pull, self.parts.basis.mT @ pull
        else:
            pull = pull, pull

        def slopes(v: Tensor, level: Tensor, safe: Tensor) -> tuple[Tensor, Tensor]:
            inner = (da * (s * s - a * a * v) - 2 * a * s * ds) / level.clamp_min(TINY)
            return v / level.clamp_min(TINY) * inner, 2 * (a * da * v + s * ds) / safe

        gain, growth = slopes(self.v, self.level, self.safe)
        off_gain = off_growth = None
        if self.outside is not None:
            off_gain, off_growth = slopes(self.outside, self.outside_level, self.outside_safe)
        d_means = self.apply(gain, off_gain, seen) - self.apply(*self._values("gain"), pull)
        d_log = 0.5 * (growth * seen[1].square() / self.safe).sum(1)
        d_log = d_log - 0.5 * self._sum(growth, off_growth) - (pull[0] * self.score(seen)).sum(1)
        if self.outside is not None:
            d_log = d_log + 0.5 * (off_growth / self.outside_safe)[:, 0] * self._off(seen)
        return d_means, d_log


class Mixed(Noisy):
    r"""One noise level per coordinate of components whose modes are no coordinates.

    With a root :math:`C = R R^\top`, :math:`M = F F^\top` for :math:`F = [A R, S]`; a QR
    decomposition of :math:`F^\top` gives :math:`W` with :math:`M^{-1} = W^\top W` from the square
    root of M's condition number. Where a coordinate has no noise, and M may be singular, a singular
    value decomposition gives the pseudo-inverse: the limit from above.
    """

    def __init__(self, parts: Components, alpha, sigma, floor) -> None:
        super().__init__(parts, alpha, sigma, floor)
        d, like = parts.dim, parts.means
        a, s = torch.broadcast_tensors(*(_like(c, like).T.expand(-1, d) for c in (alpha, sigma)))
        self._rows = a, s  # (n or 1, d)
        noise = torch.diag_embed(s).expand(parts.count, -1, d, d)
        factor = torch.cat([a[..., None] * parts.roots[:, None], noise], -1)  # (K, n or 1, d, 2d)
        self.singular = False
        if bool((s == 0).any()):
            self._decompose(factor)
        else:
            q, r = torch.linalg.qr(factor.mT)
            eye = torch.eye(d, dtype=like.dtype, device=like.device).expand_as(r)
            self.whiten = self.root = torch.linalg.solve_triangular(r.mT, eye, upper=False)
            self.lift = parts.roots[:, None] @ q[..., :d, :]
            self._log_det = 2 * r.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    def _decompose(self, factor: Tensor) -> None:
        left, values, right = torch.linalg.svd(factor, full_matrices=False)
        d = self.parts.dim
        kept = values > 4 * d * torch.finfo(values.dtype).eps * values[..., :1]
        self.singular = not bool(kept.all())
        floor = torch.as_tensor(self.floor, dtype=values.dtype, device=values.device)
        least = floor.amax(0)[:, None] if floor.ndim else floor  # (n or 1, 1)
        least = least.clamp_min(1e-280).sqrt()
        safe = torch.maximum(torch.where(kept, values, torch.zeros_like(values)), least)
        self.whiten = left.mT / safe[..., None]
        self.root = torch.where(kept, 1 / safe, torch.zeros_like(safe))[..., None] * left.mT
        self.lift = self.parts.roots[:, None] @ right[..., :d].mT
        self._log_det = 2 * safe.log().sum(-1)

    def see(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals and whitened residuals, both (K, d, n)."""
        y = self.residual(x)
        return y, self._times(self.whiten, y)

    @staticmethod
    def _times(matrices: Tensor, y: Tensor) -> Tensor:
        if matrices.shape[1] == 1:
            return matrices[:, 0] @ y
        return torch.einsum("knij,kjn->kin", matrices, y)

    def quadratic(self, seen) -> Tensor:
        return seen[1].square().sum(1)

    def log_det(self) -> Tensor:
        return self._log_det

    def score(self, seen) -> Tensor:
        return -self._times(self.whiten.mT, seen[1])

    @cached_property
    def _gain(self) -> Tensor:
        return self.lift @ self.root

    def shift(self, seen) -> Tensor:
        return self._times(self._gain, seen[0])

    def trace_gain(self) -> Tensor:
        return self._gain.diagonal(dim1=-2, dim2=-1).sum(-1)

    def _matrices(self, kind: str) -> Tensor:
        if kind == "gain":
            return self._gain
        if kind == "precision":
            return self.whiten.mT @ self.whiten
        # Joseph's form of P: a sum of squares, so that nothing cancels.
        s = self._rows[1]
        kept, noise = self._kept @ self.parts.roots[:, None], self._gain * s[:, None]
        return kept @ kept.mT + noise @ noise.mT

    @cached_property
    def _kept(self) -> Tensor:
        """``I - G A`` (K, n or 1, d, d)."""
        kept = -self._gain * self._rows[0][:, None]
        kept.diagonal(dim1=-2, dim2=-1).add_(1.0)
        return kept

    def rates(self, seen, d_alpha, d_sigma) -> tuple[Tensor, Tensor]:
        s, da, ds = self.sigma, turned(d_alpha), turned(d_sigma)
        weighted = -self.score(seen)  # M^-1 y
        shift = self.shift(seen)
        pull = da * self.parts.means[..., None]
        spread = self.parts.covs @ (da * weighted)
        noise = 2 * s * ds * weighted
        d_means = self._times(self._kept, spread) - self._times(
            self._gain, (da * shift + noise + pull).expand_as(spread)
        )
        gain, precision = (
            self.matrices(kind).diagonal(dim1=-2, dim2=-1).mT for kind in ("gain", "precision")
        )
        d_det = (2 * da * gain + 2 * s * ds * precision).sum(1)
        d_square = (weighted * (2 * da * shift + noise)).sum(1)
        return d_means, 0.5 * (d_square - d_det) + (pull * weighted).sum(1)
