r"""The part of a score that moves probability in circles: the gauge freedom of the flow.

A field splits as :math:`s = \nabla\phi + r` with :math:`\nabla\!\cdot(p\,r) = 0`, the two parts
orthogonal in :math:`L^2(p)`. Marginals and likelihoods see only the gradient part: r carries
particles round and leaves p as it is. Two exact cases:

- a linear field under a Gaussian splits in closed form (:func:`gauge_split`);
- :math:`r = A\nabla\log p` with a constant antisymmetric A is a gauge field of *every* density
  (:func:`gauge_violation` is zero), since :math:`\nabla\!\cdot(A\nabla p) = 0`.

A rotation :math:`A(x - m)` is one only where A commutes with the covariance, and an antisymmetric
part of the Jacobian is neither necessary nor sufficient.

Source: Horvat & Pfister 2024, arXiv:2402.03845 (the decomposition); the closed forms are derived in
this project.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.denoisers.level import Level
from workbench.diffusion import Diffusion

#: Dimensions up to which the trace of a Jacobian is taken in closed form beside estimates of it.
EXACT_TRACE = 64

#: Points of Gauss and Legendre's rule along a line.
POINTS = 16


class GaugeSplit(NamedTuple):
    """A linear field ``B (x - m)`` split under a Gaussian, float64.

    Attributes:
        conservative: symmetric matrix P (d, d): the field ``P (x - m)`` is a gradient.
        gauge: B - P; ``p (B - P)(x - m)`` has no divergence.
        norm2: mean square of the field under the Gaussian, ``tr(B C B^T)``; it is the sum of
        conservative_norm2, gauge_norm2: those of the two parts.
    """

    conservative: Tensor
    gauge: Tensor
    norm2: float
    conservative_norm2: float
    gauge_norm2: float


def gauge_split(matrix: Tensor, law: Gaussian) -> GaugeSplit:
    r"""The gradient and the gauge part of the field :math:`B(x - m)` under :math:`N(m, C)`.

    In the eigenbasis of C, with eigenvalues l,

    .. math:: P_{ij} = \frac{l_j B_{ij} + l_i B_{ji}}{l_i + l_j},

    the solution of :math:`C^{-1}P + PC^{-1} = C^{-1}B + B^\top C^{-1}`. Between two directions
    without variance, where the law says nothing, P is the symmetric part of B.

    Args:
        matrix: B (d, d).
        law: the Gaussian, e.g. ``diffusion.marginal(t)``.
    """
    if matrix.shape != (law.dim, law.dim):
        raise ValueError(
            f"matrix has shape {tuple(matrix.shape)}; for this law it must be ({law.dim}, "
            f"{law.dim})."
        )
    twin, basis = law.diagonalised()
    basis, level = basis.double(), twin.variances
    b = basis.T @ matrix.to(basis) @ basis
    row, column = level[:, None], level
    total = row + column
    mixed = (column * b + row * b.T) / torch.where(total > 0, total, 1.0)
    p = torch.where(total > 0, mixed, 0.5 * (b + b.T))
    parts = [(m * m * level).sum().item() for m in (b, p, b - p)]
    conservative = basis @ p @ basis.T
    conservative = 0.5 * (conservative + conservative.T)
    return GaugeSplit(conservative, basis @ (b - p) @ basis.T, *parts)


def asymmetry(jacobian: Tensor) -> Tensor:
    r"""Frobenius norm of :math:`J - J^\top` of Jacobians (*batch, d, d): (*batch).

    Zero for a gradient field. It is not the size of the gauge part: a gauge field's Jacobian may
    have a symmetric part, and a field with an antisymmetric one may bias the marginals.
    """
    return torch.linalg.matrix_norm(jacobian - jacobian.mT)


def symmetrised(jacobian: Tensor) -> Tensor:
    r"""Symmetric part :math:`(J + J^\top)/2` of Jacobians (*batch, d, d), like them.

    The naive way to make a field conservative, and another thing than its conservative part: of
    :math:`Bx` under a Gaussian that is P of :func:`gauge_split`, which knows the density. The
    symmetric part of a gauge field's Jacobian is not zero, and moves the marginals.
    """
    return 0.5 * (jacobian + jacobian.mT)


def line_gradient(
    field: Callable[[Tensor], Tensor],
    pull: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    centre: Tensor,
) -> Tensor:
    r"""Gradient of the potential that line integrals from a centre give; like ``x`` (n, d).

    .. math:: \phi(x) = \int_0^1 s(c + \tau(x - c))\cdot(x - c)\,d\tau

    :func:`symmetrised` for fields that are not linear: of :math:`B(x - c)` it is
    :math:`\tfrac12(B + B^\top)(x - c)`. It is s itself where s is a gradient, and else depends on
    the centre: not the conservative part, which knows the density.

    Args:
        field: s of states (n, d).
        pull: of states and vectors, both (n, d), :math:`J^\top v` with J the field's Jacobian.
        x: states (n, d).
        centre: where the lines begin (d,).
    """
    nodes, weights = np.polynomial.legendre.leggauss(POINTS)
    total = torch.zeros_like(x)
    for node, weight in zip(0.5 + 0.5 * nodes, 0.5 * weights, strict=True):
        y = centre + node * (x - centre)
        total += weight * (field(y) + node * pull(y, x - centre))
    return total


def curl(jacobian: Tensor) -> Tensor:
    r"""Curl of fields in a plane (*batch) or in space (*batch, 3), of their Jacobians.

    Args:
        jacobian: :math:`J_{ij} = \partial_j s_i` (*batch, d, d), d = 2 or 3.

    Raises:
        ValueError: other dimensions.
    """
    turn = jacobian.mT - jacobian
    if jacobian.shape[-1] == 2:
        return turn[..., 0, 1]
    if jacobian.shape[-1] == 3:
        return torch.stack([turn[..., 1, 2], turn[..., 2, 0], turn[..., 0, 1]], -1)
    raise ValueError(
        f"jacobian has shape {tuple(jacobian.shape)}; a curl exists in 2 and 3 dimensions. In "
        "others ask for asymmetry, or for the circulation along a loop."
    )


def circulation(field: Tensor, loop: Tensor) -> Tensor:
    r"""Circulation :math:`\oint s\cdot dx` along closed loops (*batch); of a score [nats].

    Zero of a gradient field, to the accuracy of the Fourier series through the points. By Stokes
    it is the integral of the curl over what the loop encloses.

    Args:
        field: s at the points of the loop (*batch, n, d).
        loop: points at even parameters of smooth closed curves (*batch, n, d), n at least 4.
    """
    if loop.shape != field.shape or loop.ndim < 2 or loop.shape[-2] < 4:
        raise ValueError(
            f"loop has shape {tuple(loop.shape)} and field {tuple(field.shape)}; both must be (n, "
            "d), the field at each of at least 4 points."
        )
    n = loop.shape[-2]
    order = torch.fft.fftfreq(n, 1 / n, dtype=torch.float64, device=loop.device)
    if n % 2 == 0:
        order[n // 2] = 0.0
    waves = torch.fft.fft(loop.double(), dim=-2) * (1j * order[:, None])
    along = torch.fft.ifft(waves, dim=-2).real
    return (field * along).sum((-2, -1)) * (2 * math.pi / n)


def gauge_field(
    diffusion: Diffusion,
    x: Tensor,
    t,
    matrix: Tensor,
    weight: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    r"""The gauge field :math:`h(\log p_t)\,A\nabla\log p_t` at ``x``; like ``x`` [1/x].

    For any function h it has no divergence and is orthogonal to the score at every point, so that
    it runs along the density's level sets.

    Args:
        diffusion: whose score it is made of.
        x: states (*batch, *event).
        t: a time, or one per sample.
        matrix: A (d, d), antisymmetric, on flattened events.
        weight: h of log-densities (*batch) [nats]; None: 1.

    Raises:
        ValueError: a matrix that is not antisymmetric: the field would change the marginals.
    """
    size = matrix.abs().max().clamp_min(torch.finfo(matrix.dtype).tiny)
    error = ((matrix + matrix.T).abs().max() / size).item()
    if error > 1e3 * torch.finfo(matrix.dtype).eps:
        raise ValueError(
            f"matrix differs from minus its transpose by {error:.2g} (relative); only an "
            "antisymmetric one makes a gauge field."
        )
    score = diffusion.score(x, t).flatten(x.ndim - len(diffusion.event_shape))
    field = score @ matrix.to(score).T
    if weight is not None:
        field = weight(diffusion.log_prob(x, t))[..., None] * field
    return field.reshape(x.shape)


def gauge_violation(field: Tensor, jacobian: Tensor, score: Tensor) -> Tensor:
    r"""How far a field r is from a gauge field at each point: :math:`\nabla\!\cdot(p\,r)/p`.

    .. math:: \nabla\!\cdot r + r\cdot\nabla\log p

    Args:
        field: r (*batch, d).
        jacobian: its Jacobian (*batch, d, d).
        score: gradient of log p (*batch, d).
    """
    return jacobian.diagonal(dim1=-2, dim2=-1).sum(-1) + (field * score).sum(-1)


def scaled_score(level: Level, x: Tensor) -> Tensor:
    r""":math:`\sigma s = (\alpha D - x)/\sigma` at states (n, *event) [1]; like ``x``.

    Of a denoiser of another dtype than the states the difference is taken in theirs.
    """
    alpha, sigma = _coefficients(level, x)
    if level.denoiser.dtype == x.dtype:
        return sigma * level.score(x)
    return (alpha * level.denoised(x.to(level.denoiser.dtype)).to(x.dtype) - x) / sigma


def antisymmetric_squares(
    level: Level, x: Tensor, probes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Squares (n,) of the antisymmetric part of :math:`J_{ij}\,\alpha_i\sigma_j/\sigma_i`, and of
    the whole of it; J the denoiser's Jacobian.

    The antisymmetric part is that of :math:`\sigma\,\nabla s\,\sigma`: zero of a gradient field,
    and a pure number; with one noise level for all coordinates the matrix is :math:`\alpha J`.

    Args:
        level: of the denoiser; of another dtype than the states it is asked in its own.
        x: states (n, *event).
        probes: random signs (k, *event) or (k, n, *event): unbiased, by a product with the matrix
            and one with its transpose for each; None: by the whole Jacobian.
    """
    alpha, sigma = _coefficients(level, x)
    event = tuple(range(1, x.ndim))
    if probes is None:
        rows, columns = (alpha / sigma).flatten(), sigma.flatten()
        matrix = rows[:, None] * _asked(level, "jacobian", x) * columns
        apart = 0.5 * (matrix - matrix.mT)
        return apart.square().sum((1, 2)), matrix.square().sum((1, 2))
    apart = whole = torch.zeros(len(x)).to(x)
    for probe in probes.to(x):
        z = probe.expand(x.shape)
        along = alpha / sigma * _asked(level, "jvp", x, sigma * z)
        back = sigma * _asked(level, "vjp", x, alpha / sigma * z)
        apart = apart + (0.5 * (along - back)).square().sum(event) / len(probes)
        whole = whole + 0.5 * (along.square() + back.square()).sum(event) / len(probes)
    return apart, whole


def violation_of(level: Level, truth: Level, x: Tensor, probes: Tensor | None = None) -> Tensor:
    r"""By how much the error e of a score fails to be a gauge field of the true density, (k, n).

    .. math:: \sum_i \sigma_i^2\,(\partial_i e_i + e_i\,\partial_i\log p)

    with one noise level for all coordinates :math:`\sigma^2(\nabla\cdot e + e\cdot\nabla\log p)`, a
    pure number. Where it vanishes the error moves no density: ODE and SDE keep the marginals.

    Args:
        level: of the denoiser; of another dtype than the states it is asked in its own.
        truth: of the law of the data.
        x: states (n, *event).
        probes: random signs (k, *event) or (k, n, *event), an unbiased estimate for each, by
            products of the Jacobian's transpose; None: exact, k = 1.

    Source: Horvat & Pfister 2024, arXiv:2402.03845 (the condition).
    """
    alpha, _ = _coefficients(level, x)
    event = tuple(range(1, x.ndim))
    right = scaled_score(truth, x)
    work = ((scaled_score(level, x) - right) * right).sum(event)
    if probes is None:
        return (_trace(level, x, alpha) - _trace(truth, x, alpha) + work)[None]
    known = None
    if truth.closed and truth.denoiser.dim <= EXACT_TRACE:
        known = _trace(truth, x, alpha)
    each = []
    for probe in probes.to(x):
        z = probe.expand(x.shape)
        pulled = _asked(level, "vjp", x, alpha * z)
        if known is None:
            pulled = pulled - truth.vjp(x, alpha * z)
        trace = (pulled * z).sum(event)
        each.append(trace + work if known is None else trace - known + work)
    return torch.stack(each)


def _coefficients(level: Level, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of each coordinate (*event), or one of all of them."""
    shape = x.shape[1:]
    pair = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (level.alpha, level.sigma))
    return tuple(v.expand(1, shape.numel()).reshape(shape) for v in pair)


def _trace(level: Level, x: Tensor, alpha: Tensor) -> Tensor:
    """Trace (n,) of alpha times the denoiser's Jacobian."""
    if bool((alpha == alpha.flatten()[0]).all()):
        return alpha.flatten()[0] * _asked(level, "divergence", x)
    jacobian = _asked(level, "jacobian", x)
    return (jacobian.diagonal(dim1=-2, dim2=-1) * alpha.flatten()).sum(-1)


def _asked(level: Level, name: str, x: Tensor, *products: Tensor) -> Tensor:
    """What the level says of states, in their dtype."""
    dtype = level.denoiser.dtype
    return getattr(level, name)(x.to(dtype), *(v.to(dtype) for v in products)).to(x.dtype)
