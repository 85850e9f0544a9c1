r"""Gradient and gauge part of a field on a grid: the weighted Poisson equation in 2-D and 3-D.

The split :math:`s = \nabla\phi + r` with :math:`\nabla\!\cdot(p\,r) = 0` solves

.. math:: \nabla\!\cdot(p\nabla\phi) = \nabla\!\cdot(p\,s),\qquad
          p\,(\nabla\phi - s)\cdot n = 0 \text{ on the boundary},

the orthogonal projection onto gradients in :math:`L^2(p)` over the grid's box: nothing flows out of
it. Where the density is negligible at the boundary this is the split over the whole space.

Finite volumes: phi stands at the nodes, fluxes on the faces between them, where s is the mean of
two nodes and p their geometric mean. For :math:`\psi = \sqrt p\,\phi` the matrix is then symmetric,
with -1/h² off the diagonal however small p is, and what p is normalised to does not matter. The
error is of second order in the spacing. Nodes whose density is below a floor are left out; where
they cut the rest into pieces, each piece has its own potential, and by what phi differs from piece
to piece is not known.

Source: Horvat & Pfister 2024, arXiv:2402.03845 (the decomposition); the scheme is derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Densities below this share of the largest are left out: their roots, which weigh the potential,
#: are then a million times above rounding.
FLOOR = 1e-12

#: Dimensions of a grid, and its nodes at most.
DIMENSIONS, MOST = (2, 3), 2_000_000

#: Relative residual at which the iteration for a grid in space ends, and its steps at most.
RESIDUAL, STEPS = 1e-11, 20_000


class GridSplit(NamedTuple):
    """A field on a grid (*grid, k), split in L2(p); float64.

    Attributes:
        potential: phi (*grid), of mean 0 under p in each piece; nan where p is below the floor.
        conservative: grad phi (*grid, k), by central differences, at the edge of the support by
        one-sided ones; nan likewise.
        gauge: the field less grad phi (*grid, k).
        support: where p is above the floor (*grid), bool.
        norm2: mean square of the field under p, from its values between the nodes; the sum of
        conservative_norm2, gauge_norm2: those of the two parts, to rounding.
        border: largest density on the boundary of the box, over the largest of all.
        pieces: into how many the floor cuts the support.
    """

    potential: Tensor
    conservative: Tensor
    gauge: Tensor
    support: Tensor
    norm2: float
    conservative_norm2: float
    gauge_norm2: float
    border: float
    pieces: int


def grid_split(
    field: Tensor, log_prob: Tensor, spacing: float | Sequence[float], floor: float = FLOOR
) -> GridSplit:
    """The gradient and the gauge part of a field on a grid in two or three dimensions.

    Args:
        field: s at the nodes (*grid, k), k = 2 or 3 the number of the grid's axes.
        log_prob: of the density p at the nodes (*grid), up to a constant [nats].
        spacing: between nodes [x]; a number, or one for each axis.
        floor: relative density below which nodes are left out.

    Raises:
        ValueError: shapes that do not fit, other dimensions, a density that vanishes on the grid, a
            field that is not finite where there is density; each says what to use instead.
    """
    s, level, h = _checked(field, log_prob, spacing, floor)
    k, log_floor = level.ndim, math.log(floor)
    support = level > log_floor
    index = np.full(level.shape, -1)
    index[support] = np.arange(support.sum())
    logs, values = level[support], s[support]

    faces = []  # (one node, the next, the field between them, spacing) along each axis
    for axis in range(k):
        ends = [slice(None)] * k, [slice(None)] * k
        ends[0][axis], ends[1][axis] = slice(None, -1), slice(1, None)
        one, two = (index[tuple(end)].ravel() for end in ends)
        there = (one >= 0) & (two >= 0)
        one, two = one[there], two[there]
        faces.append((one, two, 0.5 * (values[one, axis] + values[two, axis]), h[axis]))

    psi, pieces = _solved(faces, logs)
    phi = psi * np.exp(-0.5 * logs)
    weight = np.exp(logs)
    mass = np.bincount(pieces, weight)
    phi -= (np.bincount(pieces, weight * phi) / mass)[pieces]

    gradient = np.full_like(values, np.nan)
    squares = np.zeros(3)
    for axis, (one, two, between, step) in enumerate(faces):
        slope = (phi[two] - phi[one]) / step
        total, count = np.zeros(len(phi)), np.zeros(len(phi))
        for nodes in (one, two):
            total += np.bincount(nodes, slope, len(phi))
            count += np.bincount(nodes, minlength=len(phi))
        with np.errstate(invalid="ignore"):
            gradient[:, axis] = total / count
        on_face = np.exp(0.5 * (logs[one] + logs[two])) / weight.sum()
        squares += [(on_face * part**2).sum() for part in (between, slope, between - slope)]

    def spread(part: np.ndarray) -> Tensor:
        whole = np.full((*level.shape, *part.shape[1:]), np.nan)
        whole[support] = part
        return torch.from_numpy(whole)

    border = max(float(np.take(level, end, axis).max()) for axis in range(k) for end in (0, -1))
    return GridSplit(
        spread(phi),
        spread(gradient),
        spread(values - gradient),
        torch.from_numpy(support),
        *squares.tolist(),
        border=math.exp(border),
        pieces=len(mass),
    )


def _solved(faces: list, logs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """psi at the nodes, and the piece that each belongs to."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import cg, splu

    count = len(logs)
    diagonal, right, entries = np.zeros(count), np.zeros(count), []
    for one, two, between, step in faces:
        ratio = np.exp(0.5 * (logs[two] - logs[one]))  # root of p there over root of p here
        diagonal += np.bincount(one, ratio, count) / step**2
        diagonal += np.bincount(two, 1 / ratio, count) / step**2
        root = np.exp(0.5 * logs)
        right -= np.bincount(one, root[two] * between, count) / step
        right += np.bincount(two, root[one] * between, count) / step
        entries += [(one, two, step), (two, one, step)]
    rows, columns = (np.concatenate([entry[i] for entry in entries]) for i in (0, 1))
    off = np.concatenate([np.full(len(entry[0]), -1 / entry[2] ** 2) for entry in entries])
    matrix = sparse.csr_array((off, (rows, columns)), shape=(count, count))
    pieces = connected_components(matrix, directed=False)[1]
    # The root of p solves the homogeneous equation in each piece: hold psi where p is largest.
    order = np.lexsort((-logs, pieces))
    first = order[np.unique(pieces[order], return_index=True)[1]]
    scale = 1 / min(face[3] for face in faces) ** 2
    held = np.zeros(count)
    held[first] = scale
    if len(faces) == 2:
        system = (matrix + sparse.diags_array(diagonal + held)).tocsc()
        solver = splu(
            system,
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        return solver.solve(right), pieces
    # In space a factor fills up. Unheld the system is singular, consistent, and better conditioned.
    inverse = sparse.diags_array(1 / np.where(diagonal > 0, diagonal, 1.0))
    system = matrix + sparse.diags_array(diagonal)
    psi, left = cg(system, right, rtol=RESIDUAL, maxiter=STEPS, M=inverse)
    if left:
        raise ValueError(
            f"the potential did not settle in {STEPS} steps: the density's peaks are too far apart "
            "for this grid. Raise the floor, take a higher noise level, or estimate the split from "
            "samples: galerkin_split."
        )
    return psi, pieces


def _checked(field, log_prob, spacing, floor) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """The field, log p less its largest value, and the spacing of each axis."""
    s = torch.as_tensor(field).detach().cpu().double().numpy()
    level = torch.as_tensor(log_prob).detach().cpu().double().numpy()
    k = level.ndim
    if k not in DIMENSIONS:
        raise ValueError(
            f"log_prob has {k} axes; a grid is for 2 or 3 dimensions. In more, estimate the split "
            "from samples: galerkin_split; of a linear field under a Gaussian it is closed: "
            "gauge_split."
        )
    if s.shape != (*level.shape, k):
        raise ValueError(
            f"field has shape {s.shape}; on a grid of shape {level.shape} it must be "
            f"{(*level.shape, k)}: one vector at each node."
        )
    if min(level.shape) < 4:
        raise ValueError(f"the grid has shape {level.shape}; it takes at least 4 nodes an axis.")
    if level.size > MOST:
        raise ValueError(
            f"the grid has {level.size} nodes, and {MOST} are the most; take fewer an axis, or "
            "estimate the split from samples: galerkin_split."
        )
    steps = np.broadcast_to(np.asarray(spacing, dtype=float), (k,)).tolist()
    if not all(math.isfinite(step) and step > 0 for step in steps):
        raise ValueError(f"spacing was {spacing!r}; it must be positive and finite.")
    if not 0 < floor < 1:
        raise ValueError(f"floor was {floor!r}; it must be a share of the largest density.")
    if np.isnan(level).any() or np.isposinf(level).any() or not np.isfinite(level).any():
        raise ValueError(
            "the density vanishes, or is not a number, on the grid: no log_prob there is finite. "
            "Move the grid to where the density lives, or take a higher noise level."
        )
    level = level - level[np.isfinite(level)].max()
    there = level > math.log(floor)
    if there.sum() < 4**k:
        raise ValueError(
            f"the density vanishes on all but {there.sum()} of {level.size} nodes: the grid is too "
            "coarse for it, or stands elsewhere. Take more nodes, a smaller box or a higher noise "
            "level."
        )
    lost = there & ~np.isfinite(s).all(-1)
    if lost.any():
        raise ValueError(
            f"the field is not finite at {lost.sum()} of {there.sum()} nodes where there is "
            "density: it was sampled off its support. Give it wherever the density is above the "
            "floor, or raise the floor."
        )
    return s, level, steps
