"""Means and covariances of points, with all that was done to them said in words.

Source of the automatic shrinkage: Ledoit & Wolf 2004, J. Multivar. Anal. 88.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench import covariance
from workbench.denoisers.checks import finite, floating


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance by its modes, float64: as of ``Gaussian.low_rank``."""

    mean: Tensor
    basis: Tensor | None
    variances: Tensor
    rest: float
    notes: tuple[str, ...]


def completed(basis: Tensor | None, variances: Tensor, rest: float) -> tuple[Tensor, Tensor]:
    """Modes with the directions orthogonal to them: (d, d) and (d,), these first."""
    if basis is None:
        return torch.eye(len(variances), dtype=variances.dtype, device=variances.device), variances
    columns, values = covariance.completed(basis, variances, rest)
    others = len(values) - len(variances)
    return columns.roll(others, 1), values.roll(others)


def checked_points(points) -> Tensor:
    """``points`` (N, *event) as a tensor of finite numbers; ``ValueError`` otherwise."""
    points = finite("points", floating("points", points))
    if points.ndim < 2 or points.shape[0] < 1 or points[0].numel() == 0:
        raise ValueError(
            f"points has shape {tuple(points.shape)}; it must be (number of points, *event)."
        )
    return points


def moments(
    points: Tensor, rank: int | None = None, shrinkage: float | str | None = None
) -> Moments:
    """Mean and (1/N) covariance of ``points`` (N, d), and notes of what a reader must know.

    Args:
        points: finite numbers (N, d).
        rank: how many leading principal directions are kept; the others then have no variance.
        shrinkage: weight of (mean variance) times identity in the covariance, from 0 to 1; "auto"
            for Ledoit and Wolf's.

    Raises:
        ValueError: a rank or a shrinkage out of range.
    """
    flat = points.double()
    d = flat.shape[1]
    if rank is not None and not 1 <= rank <= d:
        raise ValueError(f"rank was {rank}; it must be from 1 to {d}.")
    mean = flat.mean(0)
    variances, basis = _principal(flat - mean)
    notes = [*_copies(flat), *_rank_notes(flat, len(variances))]
    amount, name = _amount(flat, shrinkage)
    rest, average = 0.0, variances.sum().item() / d
    if amount > 0:
        variances, rest = (1 - amount) * variances + amount * average, amount * average
        notes.append(
            f"The covariance is shrunk by {amount:.4g}{name} towards its mean variance, "
            f"{average:.4g}, times the identity."
        )
    total = variances.sum().item() + rest * (d - len(variances))
    if rank is not None and rank < d:
        rest = 0.0
        if rank < len(variances):
            variances, basis = variances[-rank:], basis[:, -rank:]
        dropped = 1 - variances.sum().item() / total if total else 0.0
        if dropped > 4 * d * torch.finfo(torch.float64).eps:
            notes.append(
                f"Only the {rank} leading of {d} principal directions are kept: {dropped:.3g} of "
                f"the total variance {total:.4g} is dropped, and the other directions have none."
            )
    if len(variances) == d:
        rest = 0.0
    if len(variances) == 0:  # no direction to speak of
        basis, variances, rest = None, torch.full_like(mean, rest), 0.0
    return Moments(mean, basis, variances, rest, tuple(notes))


def spread(points: Tensor, shrinkage: float | str | None = None) -> tuple[Tensor, list[str]]:
    """Variance (d,) of each coordinate of ``points`` (N, d), and notes; arguments as in moments."""
    flat = points.double()
    variances = flat.var(0, correction=0)
    amount, name = _amount(flat, shrinkage)
    notes = _copies(flat)
    if amount > 0:
        average = variances.mean()
        variances = (1 - amount) * variances + amount * average
        notes.append(
            f"The variances are shrunk by {amount:.4g}{name} towards their mean, {average:.4g}."
        )
    return variances, notes


@dataclass(frozen=True)
class Classes:
    """Weights (K,), means (K, d), and modes as of ``Components``, float64."""

    weights: Tensor
    means: Tensor
    basis: Tensor | None
    variances: Tensor
    notes: tuple[str, ...]


def by_class(points, labels, covariance: str, shrinkage: float | str | None) -> Classes:
    """A Gaussian for each label of ``points`` (N, *event), in ascending order of the labels."""
    points = checked_points(points)
    if covariance not in ("full", "diagonal", "isotropic"):
        raise ValueError(
            f'covariance was {covariance!r}; it must be "full", "diagonal" or "isotropic".'
        )
    labels = torch.as_tensor(labels, device=points.device)
    if labels.shape != points.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} and {labels.dtype}; it must hold a whole "
            f"number for each of the {len(points)} points."
        )
    flat, present = points.flatten(1).double(), labels.unique().tolist()
    missing = sorted(set(range(present[-1])) - set(present)) if present[0] >= 0 else []
    notes = []
    if 0 < len(missing) <= len(present):  # labels that count the classes
        listed = ", ".join(map(str, missing))
        notes.append(f"No point has label {listed}: no component stands for it.")
    means, bases, variances, counts = [], [], [], []
    for label in present:
        group = flat[labels == label]
        if covariance == "full":
            found = moments(group, shrinkage=shrinkage)
            basis, values = completed(found.basis, found.variances, found.rest)
            bases.append(basis)
            own = found.notes
        else:
            values, own = spread(group, shrinkage)
            values = values.mean(0, keepdim=True) if covariance == "isotropic" else values
        if len(group) == 1:
            own = ["it has one point, so its component has no variance."]
        notes += [f"Class {label}: {note[0].lower()}{note[1:]}" for note in own]
        means.append(group.mean(0))
        variances.append(values)
        counts.append(len(group))
    weights = torch.tensor(counts, dtype=torch.float64, device=flat.device) / len(flat)
    basis = torch.stack(bases) if bases else None
    return Classes(weights, torch.stack(means), basis, torch.stack(variances), tuple(notes))


def _principal(centred: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (r,) ascending and directions (d, r) of centred points, none but rounding left."""
    count, d = centred.shape
    eps = torch.finfo(torch.float64).eps * max(count, d)
    if count <= d:  # at most N - 1 directions: from the points themselves
        scaled = torch.linalg.svd(centred / math.sqrt(count), full_matrices=False)
        kept = eps * scaled.S[:1] < scaled.S
        kept[count - 1 :] = False
        return scaled.S[kept].square().flip(0), scaled.Vh[kept].T.flip(1).contiguous()
    variances, basis = torch.linalg.eigh(centred.T @ centred / count)
    kept = variances > eps * variances[-1:]
    return variances[kept], basis[:, kept]


def _rank_notes(flat: Tensor, rank: int) -> list[str]:
    count, d = flat.shape
    if rank == d:
        return []
    notes = [
        f"The covariance of {count} points in {d} dimensions has rank {rank}; in the other "
        f"{d - rank} directions it has no variance, and no density without noise."
    ]
    constant = int((flat == flat[0]).all(0).sum())
    if constant and count > 1:
        notes.append(f"{constant} of {d} coordinates are the same in all points.")
    return notes


def _copies(flat: Tensor) -> list[str]:
    rows = (flat + 0.0).cpu().contiguous().numpy()  # + 0.0: no negative zeros
    copies = len(rows) - len({row.tobytes() for row in rows})
    return [f"{copies} of {len(rows)} points are exact copies of others."] if copies else []


def _amount(flat: Tensor, shrinkage: float | str | None) -> tuple[float, str]:
    """How much a covariance is shrunk, and in whose name."""
    if shrinkage is None:
        return 0.0, ""
    if shrinkage == "auto":
        if len(flat) == 1:
            return 0.0, ""
        from sklearn.covariance import ledoit_wolf_shrinkage

        return float(ledoit_wolf_shrinkage(flat.cpu().numpy())), " (Ledoit and Wolf's)"
    if isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise ValueError(f'shrinkage was {shrinkage!r}; it must be from 0 to 1, "auto" or None.')
    return float(shrinkage), ""


def eigh(cov: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Eigenvalues (float64, ascending), eigenvectors and notes of covariances (..., d, d), checked.

    Eigenvalues that are zero to the rounding of their dtype (negative) or of float64 are zero.
    """
    matrix = cov.double()
    tiny, d = torch.finfo(torch.float64).tiny, cov.shape[-1]
    size = matrix.abs().amax((-2, -1)).clamp_min(tiny)
    skew = ((matrix - matrix.mT).abs().amax((-2, -1)) / size).max().item()
    tolerance = 1e3 * torch.finfo(cov.dtype).eps
    if skew > tolerance:
        raise ValueError(
            f"cov differs from its transpose by {skew:.2g} (relative); a covariance is symmetric."
        )
    matrix = 0.5 * (matrix + matrix.mT)
    if bool(torch.triu(matrix, 1).any()):
        variances, basis = torch.linalg.eigh(matrix)
        rounding = d * torch.finfo(torch.float64).eps * variances[..., -1:].clamp_min(0)
    else:  # diagonal: its eigenvalues are known, however small
        variances, order = matrix.diagonal(dim1=-2, dim2=-1).sort()
        eye = torch.eye(d, dtype=matrix.dtype, device=matrix.device)
        basis, rounding = eye[order].mT, torch.zeros_like(variances[..., -1:])
    lowest = (variances[..., 0] / size).argmin()
    if variances[..., 0].flatten()[lowest] < -tolerance * size.flatten()[lowest]:
        raise ValueError(
            f"cov has an eigenvalue of {variances[..., 0].flatten()[lowest].item():.4g}; a "
            "covariance must be positive semi-definite (all eigenvalues at least 0)."
        )
    zero = variances <= rounding
    cut = variances[zero & (variances != 0)]
    notes = ()
    if cut.numel():
        notes = (
            f"{cut.numel()} of {variances.numel()} eigenvalues of the covariance are zero but for "
            f"rounding, at most {cut.abs().max().item():.2g}; they were set to 0.",
        )
    return torch.where(zero, torch.zeros_like(variances), variances), basis, notes


def non_negative(variances: Tensor, of: str = "") -> Tensor:
    """``variances`` themselves; ``ValueError`` with a sentence if one is negative."""
    if bool((variances < 0).any()):
        raise ValueError(
            f"a variance{of} was {variances.min().item():.4g}; variances must be at least 0 "
            "(a covariance is positive semi-definite)."
        )
    return variances
