"""Covariances by their modes: variances along the orthonormal columns of a basis, and one outside.

A basis is (d, r), or None for the coordinate axes, with variances (r,); ``rest`` is the variance in
every direction orthogonal to it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def completed(basis: Tensor | None, variances: Tensor, rest: float) -> tuple[Tensor | None, Tensor]:
    """The modes with the directions orthogonal to them: (d, d), or None for the axes, and (d,).

    Those given come first, as they are; in float64.
    """
    basis = None if basis is None else basis.double()
    if basis is None or basis.shape[0] == basis.shape[1]:
        return basis, variances
    d, rank = basis.shape
    full = torch.linalg.qr(basis, mode="complete").Q
    full[:, :rank] = basis
    return full, torch.cat([variances, variances.new_full((d - rank,), rest)])


def apply(basis: Tensor | None, values: Tensor, rest: float | Tensor, x: Tensor) -> Tensor:
    """A function of a covariance times ``x`` (d,): ``values`` (r,) on the modes, else ``rest``."""
    if basis is None:
        return values * x
    basis = basis.to(x)
    inside = basis.T @ x
    return basis @ (values * inside) + rest * (x - basis @ inside)


def same_basis(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether two bases are one and the same, so that covariances in them commute."""
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and torch.equal(one.double(), other.double())
