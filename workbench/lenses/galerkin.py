r"""Projection of a field onto gradients, or onto gauge fields, from samples of a density.

Sources: Horvat & Pfister 2024, arXiv:2402.03845 (the split); the estimators are derived here.
Khelifa, Turner & Venkataramanan 2026, arXiv:2606.06179, estimate the gradient part of a score's
error by a dual identity too.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.lenses.errors import mean_error

#: Planes of the space at most that gauge fields turn.
PLANES = 36

#: Folds of the samples that coefficients are estimated without.
FOLDS = 8

#: Principal axes at most that features look along.
AXES = 64

#: Principal axes up to which there is a quadratic feature for each pair of them.
WHOLE_PAIRS = 16

#: Wave numbers of the random features, in the units of the samples' principal axes.
WAVES = (0.5, 1.0, 2.0, 4.0)

#: Smallest eigenvalue of the features' matrix that is not taken for rounding, over its largest.
SINGULAR = 1e-6


class GalerkinSplit(NamedTuple):
    """A field split in L2(p) from samples of p; each number with its standard error.

    Attributes:
        norm2, norm2_se: mean square of the field.
        conservative_norm2, conservative_norm2_se: of its projection onto the gradients of the
            features, without what the sample's noise adds: at most that of the gradient part.
        gauge_norm2, gauge_norm2_se: of the rest: at least that of the gauge part.
        conservative: the projection at the samples (n, d), each from the other folds.
        noise: standard deviation of conservative_norm2 where the field has no gradient part.
        features: how many.
    """

    norm2: float
    norm2_se: float
    conservative_norm2: float
    conservative_norm2_se: float
    gauge_norm2: float
    gauge_norm2_se: float
    conservative: Tensor
    noise: float
    features: int


def galerkin_split(
    field: Tensor,
    points: Tensor,
    count: int = 64,
    generator: torch.Generator | None = None,
    gradients: Tensor | None = None,
) -> GalerkinSplit:
    r"""The gradient part of a field in any dimension, from its values at samples of the density.

    The gradient part is the projection onto gradients in L2(p), here of features: linear and
    quadratic ones in the principal axes of the samples, and ``count`` random waves. With
    :math:`G = E[\nabla f_k\cdot\nabla f_l]` and :math:`b_k = E[\nabla f_k\cdot s]` its mean square
    is :math:`b^\top G^{-1} b`, estimated without bias of first order as the mean over folds of
    :math:`c_{-k}\cdot b_k`, the coefficients c of all other folds. No derivative of the field is
    needed. Quadratic features are all that a linear field under a Gaussian needs.

    Args:
        field: s at the samples (n, d).
        points: samples of p (n, d).
        count: of the random waves.
        generator: for the waves; None: one of seed 0.
        gradients: further gradient fields at the samples (n, d, m), as guesses of the gradient part
            or of what the features cannot represent, e.g. the true score or ``line_gradient``.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or samples that do not
            determine the split: fewer than twice the features.

    Source: derived here; the projection is that of Horvat & Pfister 2024, arXiv:2402.03845.
    """
    if field.ndim != 2 or field.shape != points.shape:
        raise ValueError(
            f"field has shape {tuple(field.shape)} and points {tuple(points.shape)}; both must be "
            "(n, d), the field at each sample."
        )
    bad = (~(field.isfinite() & points.isfinite()).all(1)).sum().item()
    if bad:
        raise ValueError(
            f"{bad} of {len(points)} samples, or fields there, are not finite: the field was "
            "sampled off its support. Leave them out, or take a higher noise level."
        )
    features = _Features.of(points.double(), count, generator)
    design = features.gradients(points.double())
    if gradients is not None:
        design = torch.cat([design, gradients.double()], -1)
    found = _projected(design, field.double())
    square = field.double().square().sum(1)
    left = (field.double() - found.part).square().sum(1)
    total = square.mean().item()
    spread = [mean_error(v).item() for v in (square, square - left, left)]
    return GalerkinSplit(
        total,
        spread[0],
        found.norm2,
        math.hypot(spread[1], found.noise),
        total - found.norm2,
        math.hypot(spread[2], found.noise),
        found.part,
        found.noise,
        found.count,
    )


class _Features(NamedTuple):
    """Functions of states: linear and quadratic along principal axes, and waves.

    In u = turn^T (x - centre), of variance one along each axis: u_a, u_a u_b for ``pairs``, and
    cos(w u + phase).
    """

    centre: Tensor
    turn: Tensor
    pairs: Tensor
    waves: Tensor
    phases: Tensor

    @classmethod
    def of(cls, points: Tensor, count: int, generator: torch.Generator | None) -> _Features:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        centre = points.mean(0)
        _, values, axes = torch.linalg.svd(points - centre, full_matrices=False)
        values = values / math.sqrt(max(1, len(points) - 1))
        kept = (values > 1e-9 * values[0]).nonzero()[:AXES, 0]
        turn = (axes[kept] / values[kept, None]).T
        q = len(kept)
        most = q
        if q > WHOLE_PAIRS:
            most = min(q, int((math.sqrt(8 * count + 1) - 1) / 2))
        pairs = [(a, b) for a in range(most) for b in range(a, most)]
        pairs += [(a, a) for a in range(most, q)]
        # In many dimensions a wave along all axes is nothing but noise: it looks along two.
        like = {"generator": generator, "dtype": torch.float64}
        waves = torch.randn(count, q, **like)
        if q > 4:
            rank = torch.rand(count, q, **like).argsort(1).argsort(1)
            waves = torch.where(rank < 2, waves, 0.0)
        scale = torch.tensor(WAVES, dtype=torch.float64)[torch.arange(count) % len(WAVES)]
        phases = 2 * math.pi * torch.rand(count, **like)
        waves = (scale[:, None] * waves).to(points)
        return cls(centre, turn, torch.tensor(pairs), waves, phases.to(points))

    def _places(self, x: Tensor) -> Tensor:
        return (x - self.centre) @ self.turn

    def gradients(self, x: Tensor) -> Tensor:
        """Gradients (n, d, K) at states (n, d)."""
        u, (a, b) = self._places(x), self.pairs.T
        linear = self.turn.expand(len(x), *self.turn.shape)
        squares = u[:, None, b] * self.turn[:, a] + u[:, None, a] * self.turn[:, b]
        slopes = -(u @ self.waves.T + self.phases).sin()[:, None] * (self.turn @ self.waves.T)
        return torch.cat([linear, squares, slopes], -1)

    def values(self, x: Tensor) -> Tensor:
        """Linear features and waves (n, K'), with 1 first."""
        u = self._places(x)
        ones = torch.ones(len(x), 1).to(u)
        return torch.cat([ones, u, (u @ self.waves.T + self.phases).cos()], 1)

    def slopes(self, x: Tensor) -> Tensor:
        """Gradients of :meth:`values` (n, d, K')."""
        whole = self.gradients(x)
        q, skipped = self.turn.shape[1], len(self.pairs)
        parts = [torch.zeros_like(whole[..., :1]), whole[..., :q], whole[..., q + skipped :]]
        return torch.cat(parts, -1)


class _Projected(NamedTuple):
    """Projection of a field onto a family: its mean square, what noise alone makes of that, its
    values at the samples, and the size of the family."""

    norm2: float
    noise: float
    part: Tensor
    count: int


def _projected(design: Tensor, field: Tensor) -> _Projected:
    """The projection of ``field`` (n, d) onto the fields ``design`` (n, d, K) of one sample.

    Raises:
        ValueError: samples that do not determine it.
    """
    n, _, count = design.shape
    if n < 2 * count:
        raise ValueError(
            f"{n} samples do not determine the part of a field along {count} features; take at "
            f"least {2 * count} samples, or fewer features. A linear field under a Gaussian has a "
            "closed form: gauge_split; in 2 and 3 dimensions a grid needs none: grid_split."
        )
    fold = torch.arange(n, device=field.device) % FOLDS
    products = torch.einsum("ndk,nd->nk", design, field)
    matrices, sides = [], []
    for k in range(FOLDS):
        rows = design[fold == k].flatten(0, 1)
        matrices.append(rows.T @ rows)
        sides.append(products[fold == k].sum(0))
    whole = torch.stack(matrices).sum(0)
    # In coordinates where the family is orthonormal; without what is linearly dependent in it.
    scale = whole.diagonal().clamp_min(1e-300).sqrt()
    values, vectors = torch.linalg.eigh(whole / scale[:, None] / scale)
    kept = values > SINGULAR * values[-1]
    turn = vectors[:, kept] / values[kept].sqrt() / scale[:, None]
    eye = torch.eye(int(kept.sum())).to(field)
    part, norm2 = torch.empty_like(field), 0.0
    total = turn.T @ products.sum(0)
    for k in range(FOLDS):
        inside = turn.T @ sides[k]
        left = eye - turn.T @ matrices[k] @ turn
        coefficients = torch.linalg.lstsq(left, (total - inside)[:, None]).solution[:, 0]
        norm2 += (coefficients @ inside).item() / n
        part[fold == k] = design[fold == k] @ (turn @ coefficients)
    rest = torch.einsum("ndk,nd->nk", design, field - part) @ turn
    noise = math.sqrt(2 * (rest.T @ rest).square().sum().item()) / n
    return _Projected(norm2, noise, part, count)


def gauge_least(
    error: Tensor, points: Tensor, true: Tensor, noise: float, count: int
) -> tuple[float, float, float]:
    r"""Mean square of a field's projection onto gauge fields, its standard error, and its standard
    deviation where there is nothing of them.

    :math:`g = h A\nabla\log p + A\nabla h = A\nabla(p h)/p` has no flux for any function h and
    antisymmetric A. In the plane these are all gauge fields.
    """
    n = len(points)
    features = _Features.of(points, count, None)
    values, slopes = features.values(points), features.slopes(points)
    axes = torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh
    pairs = [(a, b) for b in range(len(axes)) for a in range(b)][:PLANES]
    most = max(1, (n // 2) // len(pairs))
    # In coordinates along the axes a plane's fields have two components.
    used = axes[: 1 + pairs[-1][1]]
    score, error = true @ used.T / noise, error @ used.T
    slopes, family = torch.einsum("ndk,ad->nak", slopes, used), []
    for k, (a, b) in enumerate(pairs):
        # Of the planes of the first axes: h = 1 in each, and the other functions taken in turn.
        which = [0, *range(1 + k, values.shape[1], len(pairs))][:most]
        along = [score[:, i, None] * values[:, which] + slopes[:, i, which] for i in (a, b)]
        fields = torch.zeros(n, len(used), len(which)).to(error)
        fields[:, b], fields[:, a] = along[0], -along[1]
        family.append(fields)
    found = _projected(torch.cat(family, -1), error)
    gained = (2 * found.part * error - found.part.square()).sum(1)
    return found.norm2, math.hypot(mean_error(gained).item(), found.noise), found.noise
