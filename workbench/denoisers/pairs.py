r"""Every component of one law with every component of another: Gaussians with one more parameter.

For independent :math:`x_0, x_1` and a standard normal z the weighted sum
:math:`a x_0 + b x_1 + c z` is a mixture over the pairs (i, j) of components, with means
:math:`a\mu_i + b\mu_j` and covariances :math:`C = q_0 C_i + q_1 C_j + q_2 I`,
:math:`q = (a^2, b^2, c^2)`. Pairs run along the first axis, those of the first component together;
all is float64.

Weights (of means or of covariances) are floats, or tensors (n, 1) with one value per state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.covariance import completed
from workbench.denoisers.empirical import Empirical
from workbench.denoisers.fitting import eigh
from workbench.denoisers.gaussian import Gaussian
from workbench.denoisers.mixture import Mixture

#: A variance below this is none: its inverse would overflow.
LEAST = 1e-280
EPS = torch.finfo(torch.float64).eps


class Pairs:
    """K pairs of Gaussian components in d dimensions; see :func:`pair`.

    Attributes:
        log_weights: (K, 1).
        means: of the first and of the second of each pair, (K, d) each.
        radii: the largest distance of the means from the origin, of the first and of the second.
        numbers: how many numbers one pair needs for one state.
    """

    log_weights: Tensor
    means: tuple[Tensor, Tensor]
    radii: tuple[float, float]
    numbers: int

    def mean(self, a, b) -> Tensor:
        """``a mu_i + b mu_j``: (K, 1, d), or (K, n, d) for weights (n, 1)."""
        return a * self.means[0][:, None] + b * self.means[1][:, None]

    def covs(self, q) -> Tensor:
        """``q0 C_i + q1 C_j + q2 I`` as a Mixture takes them; ``q`` floats."""
        raise NotImplementedError

    def solve(self, y: Tensor, q) -> tuple[Tensor, Tensor, Tensor]:
        """``C^-1 y`` of ``y`` (K, n, d) in the pairs' own coordinates; ``y C^-1 y + log det C``
        (K, n); and where C is singular.
        """
        raise NotImplementedError

    def spread(self, solved: Tensor, k) -> Tensor:
        """``(k0 C_i + k1 C_j + k2 I) C^-1 y`` (K, n, d) from ``C^-1 y`` as solved."""
        raise NotImplementedError

    def expands(self, a: float, b: float, q) -> bool:
        """Whether :meth:`energies` may be asked: isotropic components, and enough noise."""
        return False

    def trace(self, q, k) -> Tensor:
        """Trace of ``(k0 C_i + k1 C_j + k2 I) C^-1``: (K, 1 or n)."""
        raise NotImplementedError


class ModalPairs(Pairs):
    """Pairs whose two covariances share a basis: one variance per mode, whatever the weights.

    Attributes:
        basis: orthonormal columns (K, d, d), or None for the coordinates.
        first, second: variances (K, 1, d) of the modes, or (K, 1, 1) where all are equal.
    """

    def __init__(self, basis: Tensor | None, first: Tensor, second: Tensor, dim: int) -> None:
        self.basis, self.first, self.second, self.dim = basis, first[:, None], second[:, None], dim
        self.isotropic = basis is None and first.shape[1] == second.shape[1] == 1
        self.numbers = dim
        self._least = first.min().item(), second.min().item()

    def expands(self, a: float, b: float, q) -> bool:
        """Whether the terms of an expanded square cancel to less than 1e-9 of an energy.

        The coefficients alone decide, never the states.
        """
        (far, other), (least, smallest) = self.radii, self._least
        floor = q[0] * least + q[1] * smallest + q[2]
        reach = (a * far + b * other) ** 2 + 16 * floor * self.dim
        return self.isotropic and 1e-9 * floor > EPS * reach

    def energies(self, x: Tensor, a: float, b: float, q) -> Tensor:
        """``y C^-1 y + log det C`` (K, n) of ``y = x - a mu_i - b mu_j`` by one matrix product."""
        means, level = self.mean(a, b)[:, 0], self.combined(q)[:, 0]
        squares = means.square().sum(1, keepdim=True) + x.square().sum(1)
        return torch.addmm(squares, means, x.T, alpha=-2.0) / level + self.dim * level.log()

    def combined(self, k) -> Tensor:
        """Variances ``k0 l_i + k1 l_j + k2`` of the modes: (K, 1 or n, 1 or d)."""
        return k[0] * self.first + k[1] * self.second + k[2]

    def covs(self, q) -> Tensor:
        level = self.combined(q)[:, 0]
        if self.basis is not None:
            return (self.basis * level[:, None]) @ self.basis.mT
        return level[:, 0] if level.shape[1] == 1 else level

    def solve(self, y: Tensor, q) -> tuple[Tensor, Tensor, Tensor]:
        modes, level = self._modes(y), self.combined(q)
        solved = modes / level
        log_det = level.log().expand(*level.shape[:2], self.dim).sum(-1)
        return solved, (modes * solved).sum(-1) + log_det, level < LEAST

    def spread(self, solved: Tensor, k) -> Tensor:
        return self._states(self.combined(k) * solved)

    def trace(self, q, k) -> Tensor:
        gain = self.combined(k) / self.combined(q)
        return gain.expand(*gain.shape[:2], self.dim).sum(-1)

    def stretched(self, y: Tensor, factor: Tensor) -> Tensor:
        """Each mode of ``y`` times its ``factor``."""
        return self._states(self._modes(y) * factor)

    def _modes(self, y: Tensor) -> Tensor:
        return y if self.basis is None else y @ self.basis

    def _states(self, modes: Tensor) -> Tensor:
        return modes if self.basis is None else modes @ self.basis.mT


class DensePairs(Pairs):
    """Pairs whose covariances do not commute: a Cholesky factor for each set of weights.

    Attributes:
        first, second: covariances (K, d, d).
    """

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second
        self.numbers = first.shape[-1] ** 2

    def covs(self, q) -> Tensor:
        """(K, d, d), or (K, n, d, d) for weights (n, 1)."""
        first, second = self.first, self.second
        if any(isinstance(weight, Tensor) for weight in q):
            q = [weight[..., None] if isinstance(weight, Tensor) else weight for weight in q]
            first, second = first[:, None], second[:, None]
        return q[0] * first + q[1] * second + q[2] * torch.eye(first.shape[-1]).to(first)

    def solve(self, y: Tensor, q) -> tuple[Tensor, Tensor, Tensor]:
        factor, singular = self._factor(q)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if factor.ndim == 4:
            solved = torch.cholesky_solve(y[..., None], factor)[..., 0]
        else:
            solved, log_det = torch.cholesky_solve(y.mT, factor).mT, log_det[:, None]
        return solved, (y * solved).sum(-1) + log_det, singular

    def spread(self, solved: Tensor, k) -> Tensor:
        return k[0] * (solved @ self.first) + k[1] * (solved @ self.second) + k[2] * solved

    def trace(self, q, k) -> Tensor:
        inverse = torch.cholesky_inverse(self._factor(q)[0])
        if inverse.ndim == 3:
            inverse = inverse[:, None]
        traces = [(part[:, None] * inverse).sum((-2, -1)) for part in (self.first, self.second)]
        traces.append(inverse.diagonal(dim1=-2, dim2=-1).sum(-1))
        weights = [weight.T if isinstance(weight, Tensor) else weight for weight in k]
        return sum(weight * trace for weight, trace in zip(weights, traces, strict=True))

    def _factor(self, q) -> tuple[Tensor, Tensor]:
        """Cholesky factors, and which matrices are singular to rounding."""
        matrix = self.covs(q)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        size = matrix.diagonal(dim1=-2, dim2=-1).amax(-1)
        least = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
        rounding = matrix.shape[-1] * EPS
        return factor, (failed > 0) | ~(least > rounding * size)


def pair(first: Gaussian | Mixture | Empirical, second: Gaussian | Mixture | Empirical) -> Pairs:
    """All pairs of components: in common modes where the two covariances of each pair commute."""
    weights, means, variances, bases = zip(*map(_components, (first, second)), strict=True)
    k, m = map(len, weights)
    index = torch.arange(k * m, device=first.device)
    index = index // m, index % m
    means, weights, variances = (
        tuple(value[i] for value, i in zip(values, index, strict=True))
        for values in (means, weights, variances)
    )
    bases = tuple(b if b is None else b[i] for b, i in zip(bases, index, strict=True))
    pairs = _modal(bases, variances, first.dim) or _diagonalised(bases, variances, first.dim)
    pairs.means, pairs.log_weights = means, (weights[0].log() + weights[1].log())[:, None]
    pairs.radii = tuple(value.square().sum(1).max().sqrt().item() for value in means)
    return pairs


def _modal(bases, variances, dim: int) -> ModalPairs | None:
    """Pairs that need no search for their common modes."""
    one, other = bases
    if one is None and (other is None or variances[0].shape[1] == 1):
        return ModalPairs(other, *variances, dim)
    if other is None and variances[1].shape[1] == 1:
        return ModalPairs(one, *variances, dim)
    if one is not None and other is not None and torch.equal(one, other):
        return ModalPairs(one, *variances, dim)
    return None


def _diagonalised(bases, variances, dim: int) -> Pairs:
    """Pairs in common modes if each has them to rounding; as matrices otherwise."""
    covs = tuple(
        torch.diag_embed(v.expand(-1, dim)) if b is None else (b * v[:, None]) @ b.mT
        for b, v in zip(bases, variances, strict=True)
    )
    sizes = [c.abs().amax((1, 2), keepdim=True).clamp_min(1e-300) for c in covs]
    scaled = torch.stack([c / s for c, s in zip(covs, sizes, strict=True)])  # (2, K, d, d)
    # Matrices that commute share the eigenvectors of nearly every combination of them. Where two
    # eigenvalues of the combination lie close these are inexact; small rotations, to first order
    # in the elements off the diagonal, make them exact.
    golden = 0.6180339887498949
    basis = torch.linalg.eigh(scaled[0] + golden * scaled[1]).eigenvectors
    for _ in range(3):
        turned = basis.mT @ scaled @ basis
        own = turned.diagonal(dim1=-2, dim2=-1)
        apart = own[..., :, None] - own[..., None, :]
        angles = -(turned * apart).sum(0) / apart.square().sum(0).clamp_min(1e-30)
        basis = basis @ torch.linalg.qr(torch.eye(dim).to(basis) + angles).Q
    turned = basis.mT @ scaled @ basis
    own = turned.diagonal(dim1=-2, dim2=-1)
    off = (turned - torch.diag_embed(own)).abs().max().item()
    if off > 64 * dim * EPS:
        return DensePairs(*covs)
    first, second = (_rounded(v * s[:, 0], EPS) for v, s in zip(own, sizes, strict=True))
    return ModalPairs(basis, first, second, dim)


def _components(law: Gaussian | Mixture | Empirical) -> tuple:
    """Weights (K,), means (K, d), variances (K, 1 or d), and their basis (K, d, d) or None."""
    if isinstance(law, Gaussian):
        law = law.to(torch.float64)
        means = law.mean.reshape(1, -1)
        basis, variances = completed(law.basis, law.variances, law.rest)
        if basis is None and bool((variances == variances[0]).all()):
            variances = variances[:1]
        return means.new_ones(1), means, variances[None], None if basis is None else basis[None]
    there = law.weights > 0
    weights, means, covs = (v[there] for v in (law.weights, law.means.flatten(1), law.covs))
    variances, basis = covs.double().reshape(len(covs), -1), None
    if covs.ndim == 3:
        variances, basis, _ = eigh(covs)
        # Matrices held in float32 have rounding of that size where they are singular.
        full = torch.triu(covs, 1).flatten(1).any(1)[:, None]
        variances = torch.where(full, _rounded(variances, torch.finfo(covs.dtype).eps), variances)
    return weights.double() / weights.double().sum(), means.double(), variances, basis


def _rounded(variances: Tensor, eps: float) -> Tensor:
    """Eigenvalues (..., d) of a matrix with those that are rounding of the largest set to zero."""
    least = variances.shape[-1] * eps * variances.amax(-1, keepdim=True)
    return torch.where(variances > least, variances, torch.zeros_like(variances))
