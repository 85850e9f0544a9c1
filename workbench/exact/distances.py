r"""Distances between Gaussian laws, and how large they are for samples of the same law.

Both distances are formed where the two covariances live: two low-rank laws in d dimensions are
compared in the span of their bases, outside of which each is isotropic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.covariance import completed, same_basis
from workbench.denoisers import Gaussian
from workbench.exact.modes import isotropic


def w2(a: Gaussian, b: Gaussian) -> float:
    r"""2-Wasserstein (Bures) distance between two Gaussians [x].

    .. math:: W_2^2 = |\mu_a - \mu_b|^2 + \operatorname{tr} C_a + \operatorname{tr} C_b
              - 2\,\|C_a^{1/2} C_b^{1/2}\|_* = |\mu_a - \mu_b|^2 + \|R_a - R_b Q\|_F^2

    with roots :math:`R R^\top = C` and Q the orthogonal factor of :math:`R_b^\top R_a`. The second
    form is what is computed: it loses nothing when the laws are close. Where the covariances
    commute it is the distance between the vectors of standard deviations.

    Raises:
        ValueError: laws of different dimensions.
    """
    frame = _Frame(a, b)
    square = frame.shift.square().sum().item() + frame.off_shift**2
    square += frame.outside * (math.sqrt(frame.rests[0]) - math.sqrt(frame.rests[1])) ** 2
    if frame.commuting:
        stds = [variances.sqrt() for variances in frame.variances]
        return math.sqrt(square + (stds[0] - stds[1]).square().sum().item())
    small, large = sorted((frame.root(i) for i in (0, 1)), key=lambda root: root.shape[1])
    left, _, right = torch.linalg.svd(small.T @ large, full_matrices=False)
    return math.sqrt(square + (large - small @ (left @ right)).square().sum().item())


def kl(a: Gaussian, b: Gaussian) -> float:
    r"""Kullback-Leibler divergence of ``b`` from ``a``, KL(a || b) [nats].

    .. math:: \tfrac12\sum_k (x_k - 1 - \log x_k) + \tfrac12
              (\mu_a - \mu_b)^\top C_b^{-1} (\mu_a - \mu_b),

    where :math:`x_k` are the eigenvalues of :math:`C_b^{-1} C_a`. It is infinite unless the two
    laws live in the same affine subspace; singular laws that do are compared within it.

    A variance counts as zero if it is exactly zero or, of a law with a basis of eigenvectors, below
    the rounding of its largest (d times 2e-16).

    Raises:
        ValueError: laws of different dimensions.
    """
    frame = _Frame(a, b, rounded=True)
    (rest_a, rest_b), (var_a, var_b) = frame.rests, frame.variances
    value, live = 0.0, var_b > 0
    if frame.outside:
        if (rest_a > 0) != (rest_b > 0) or (rest_b == 0 and frame.counts(frame.off_shift)):
            return math.inf
        if rest_b > 0:
            ratio = torch.tensor(rest_a / rest_b, dtype=torch.float64)
            value = frame.outside * _excess(ratio).item() + 0.5 * frame.off_shift**2 / rest_b
    if int(live.sum()) != int((var_a > 0).sum()):
        return math.inf
    shift, root = (frame.in_second(x) for x in (frame.shift, frame.root(0)))
    if frame.counts(shift[~live].norm().item()) or frame.counts(root[~live].norm().item()):
        return math.inf  # a stands outside the subspace of b
    value += 0.5 * (shift[live].square() / var_b[live]).sum().item()
    if frame.commuting:
        return value + _excess(var_a[live] / var_b[live]).sum().item()
    scaled = root[live] / var_b[live].sqrt()[:, None]
    return value + _excess(torch.linalg.svdvals(scaled).square()).sum().item()


def _excess(x: Tensor) -> Tensor:
    return 0.5 * ((x - 1) - torch.log1p(x - 1))


def w2_floor(n: int, law: Gaussian) -> float:
    r"""Expected squared W2 between ``law`` and the Gaussian fitted to ``n`` of its samples [x²].

    .. math:: \frac1n\Big[\tfrac32\operatorname{tr} C + \sum_{i<j}
              \frac{\lambda_i\lambda_j}{\lambda_i + \lambda_j}\Big]

    to first order in 1/n. A distance measured from n samples that is not well above it shows
    nothing.

    Raises:
        ValueError: n below 1.
    """
    if not n >= 1:
        raise ValueError(f"n was {n!r}; it must be a number of samples, at least 1.")
    variances, rest, others = law.variances, law.rest, law.dim - len(law.variances)
    trace = variances.sum().item() + others * rest
    each = variances[:, None] + variances
    products = variances[:, None] * variances
    pairs = torch.where(each > 0, products / each, 0.0)
    total = 0.5 * (pairs.sum() - pairs.diagonal().sum()).item()
    if others and rest:
        total += others * (variances * rest / (variances + rest)).sum().item()
        total += 0.25 * others * (others - 1) * rest
    return (1.5 * trace + total) / n


def w2_null(n: int, law: Gaussian, m: int | None = None) -> float:
    r"""Expected squared W2 between Gaussians fitted to two samples of the same law [x²].

    The samples have sizes ``n`` and ``m`` (None: n); each contributes its :func:`w2_floor`. For the
    unit covariance and n = m it is :math:`[2d + d(d+1)/2]/n`.
    """
    return w2_floor(n, law) + w2_floor(n if m is None else m, law)


class _Frame:
    """Two laws in a common frame of k dimensions; in the d - k others both are isotropic.

    Attributes:
        bases: eigenvectors (k, k) of each in the frame, None for its axes.
        variances: (k,) of each along them.
        commuting: whether both are diagonal in the frame.
        shift: difference of the means within the frame (k,); off_shift: its length outside.
        outside: d - k; rests: the variance of each there.
    """

    def __init__(self, a: Gaussian, b: Gaussian, rounded: bool = False) -> None:
        if a.dim != b.dim:
            raise ValueError(
                f"the laws have {a.dim} and {b.dim} dimensions; a distance needs the same number."
            )
        apart = (a.mean.double() - b.mean.reshape(a.mean.shape).to(a.device).double()).flatten()
        modes = [_modes(law, a.device, rounded) for law in (a, b)]
        axes = None  # (d, k), orthonormal; None: the coordinate axes
        shared = same_basis(a.basis, b.basis)
        self.commuting = shared or isotropic(a) or isotropic(b)
        if self.commuting:
            leader = 1 if isotropic(a) and not shared else 0
            axes, lead, _ = modes[leader]
            for i in (0, 1):
                if i != leader and not shared:
                    level = modes[i][1][0].item() if len(modes[i][1]) else modes[i][2]
                    modes[i] = (axes, torch.full_like(lead, level), level)
            inner = [(None, variances) for _, variances, _ in modes]
        else:
            axes, inner = _span(modes, a.dim)
        self.bases, self.variances = zip(*inner, strict=True)
        self.rests = (modes[0][2], modes[1][2])
        self.shift = apart if axes is None else axes.T @ apart
        self.outside = a.dim - len(self.shift)
        self.off_shift = (apart - axes @ self.shift).norm().item() if self.outside else 0.0
        spread = max(float(v.max()) if len(v) else 0.0 for v in self.variances)
        self._scale = max(apart.norm().item(), math.sqrt(max(spread, *self.rests)))

    def root(self, i: int) -> Tensor:
        """R (k, rank) with R R^T the covariance within the frame."""
        basis, variances = self.bases[i], self.variances[i]
        columns = torch.eye(len(variances)).to(variances) if basis is None else basis
        return (columns * variances.sqrt())[:, variances > 0]

    def in_second(self, x: Tensor) -> Tensor:
        """``x`` (k, ...) in the eigenvectors of the second law."""
        return x if self.bases[1] is None else self.bases[1].T @ x

    def counts(self, length: float) -> bool:
        """Whether a length is more than rounding."""
        return length > 1e-10 * self._scale


def _modes(law: Gaussian, device, rounded: bool) -> tuple[Tensor | None, Tensor, float]:
    """Basis, variances, rest; ``rounded``: what eigenvectors leave of a zero is made zero."""
    variances, rest = law.variances.to(device), law.rest
    if law.basis is None:
        return None, variances, rest
    if rounded:
        largest = max(float(variances.max()) if len(variances) else 0.0, rest)
        tolerance = law.dim * torch.finfo(torch.float64).eps * largest
        variances = torch.where(variances > tolerance, variances, 0.0)
        rest = rest if rest > tolerance else 0.0
    return law.basis.double().to(device), variances, rest


def _span(modes: list, d: int) -> tuple[Tensor | None, list]:
    """Axes of the span of both bases (None: the whole space), and each law in that frame."""
    bases = [basis for basis, _, _ in modes]
    axes = None
    if all(basis is not None for basis in bases) and sum(b.shape[1] for b in bases) < d:
        axes = torch.linalg.qr(torch.cat(bases, 1)).Q
        modes = [(axes.T @ basis, variances, rest) for basis, variances, rest in modes]
    return axes, [completed(*mode) for mode in modes]
