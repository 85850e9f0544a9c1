r"""Length of a noising path in the Fisher metric of zero-mean Gaussians.

Modes of variance :math:`v_k` that stay independent move by

.. math:: d\ell^2 = \tfrac12\operatorname{tr}(\Sigma^{-1}d\Sigma)^2
          = \tfrac12\sum_k (d\log v_k)^2,

so the shortest path between two such laws is log-linear in every mode,
:math:`v_k(s) = v_k(0)^{1-s}\,v_k(1)^s`. Length does not depend on the pace along a path: between
the same ends all variance-preserving schedules have the same.

A mode of variance lambda starts to move at sigma² = lambda, which may be many powers of ten closer
to the data than to the noise: the integral is taken on pieces of time that halve towards the data,
each halved further until it is settled.

Source: Das et al. 2023, *Image generation with shortest path diffusion*, arXiv:2306.00501.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from workbench.exact.modes import checked, level
from workbench.processes import Process


def fisher_distance(start: Tensor, end: Tensor | float = 1.0) -> float:
    r"""Length of the shortest path between modes of variances ``start`` and ``end``.

    .. math:: \sqrt{\tfrac12\sum_k\log^2(v_k^{end}/v_k^{start})}

    Args:
        start, end: of one shape, or a number for all modes [x²]. The default end is pure noise.

    Returns:
        The length, infinite if a mode has no variance at one end only.
    """
    start, end = torch.broadcast_tensors(checked(start, "start"), checked(end, "end"))
    still = start == end
    ratio = (end[~still] / start[~still]).log()
    return math.sqrt(0.5 * ratio.square().sum().item())


def fisher_length(
    process: Process, variances: Tensor, t0: float | None = None, t1: float | None = None
) -> float:
    """Length of the path of Gaussian data under ``process`` from time ``t0`` to ``t1``.

    Args:
        variances: of the modes, any shape; that of the basis under a spectral process [x²].
        t0, t1: None are 0 and ``process.t_max``.

    Returns:
        The length, to about 1e-12 of itself; infinite if a mode of no variance starts at sigma = 0.

    Raises:
        ValueError: t0 above t1.
    """
    variances = checked(variances)
    t0 = 0.0 if t0 is None else float(t0)
    t1 = process.t_max if t1 is None else float(t1)
    if not t0 <= t1:
        raise ValueError(f"t0 was {t0:g} and t1 {t1:g}; the path goes from t0 up to t1.")
    if t0 == t1:
        return 0.0
    if not bool((level(process, variances, t0) > 0).all()):
        return math.inf
    middle = 0.5 * (t0 + t1)
    halves = 2.0 ** -torch.arange(-1, 61, dtype=torch.float64)
    low = torch.cat([halves.new_zeros(1), halves.flip(0)]) * (middle - t0) + t0
    panels = torch.stack([low[:-1], low[1:].clamp(max=t1)], 1)
    total = 0.0
    for _ in range(60):  # halve the panels that are not yet settled
        split = torch.stack([panels[:, 0], panels.mean(1), panels.mean(1), panels[:, 1]], 1)
        whole = _lengths(process, variances, panels)
        parts = _lengths(process, variances, split.reshape(-1, 2)).reshape(-1, 2)
        settled = (whole - parts.sum(1)).abs() <= 1e-14 * (total + parts.sum())
        total += parts[settled].sum().item()
        panels = split[~settled].reshape(-1, 2)
        if not len(panels):
            break
    return total


def _lengths(process: Process, variances: Tensor, panels: Tensor) -> Tensor:
    """Length of each piece of time (n, 2) by a Gauss-Legendre rule of 20 nodes."""
    points, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(20))
    half = 0.5 * (panels[:, 1:] - panels[:, :1])
    nodes = (panels[:, :1] + half * (points + 1)).flatten()
    chunk = max(1, 1_000_000 // max(1, variances.numel()))
    speed = torch.cat([_speed(process, variances, part) for part in nodes.split(chunk)])
    return (speed.reshape(len(panels), -1) * half * weights).sum(1)


def _speed(process: Process, variances: Tensor, times: Tensor) -> Tensor:
    c = process(times)
    alpha, sigma, d_alpha, d_sigma = (
        v.to(variances) if v.ndim > 1 else v.reshape(-1, *(1,) * variances.ndim).to(variances)
        for v in (c.alpha, c.sigma, c.d_alpha, c.d_sigma)
    )
    rate = 2 * (alpha * d_alpha * variances + sigma * d_sigma)
    rate = rate / (alpha.square() * variances + sigma.square())
    return (0.5 * rate.square().reshape(len(times), -1).sum(1)).sqrt()
