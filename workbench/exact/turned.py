r"""Laws of a Gaussian's samplers whose score has one more linear part: gauges, rotations, shears.

With :math:`y = x - m_t` and the score :math:`-\Sigma_t^{-1}y + B(t)\,y`, flow and SDE stay linear,

.. math:: dy = \Big[f y - \tfrac{1+\eta}{2}\,g^2\,(B - \Sigma_t^{-1})\,y\Big]dt
               + \sqrt\eta\,g\,d\bar W ,

so that the covariance obeys a matrix equation, and Euler's steps one matrix recursion. For
:math:`B = -cA\Sigma_t^{-1}`, A antisymmetric, the marginals are exact in continuous time for every
c and not after any number of steps; for a rotation :math:`B = cA` only where A and the covariance
commute.

Source: Horvat & Pfister 2024, arXiv:2402.03845 (gauge freedom); derived here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion

#: Relative accuracy of the covariance in continuous time.
ACCURACY = 1e-10


def turned_law(
    diffusion: Diffusion,
    turn: Callable[[Tensor], Tensor],
    steps: int | Sequence[float] | None = None,
    eta: float = 0.0,
    t: float | None = None,
    s: float | None = None,
) -> Gaussian:
    """The law at time ``s`` of a Gaussian's marginal at ``t``, under a score with a linear part.

    Args:
        diffusion: of a Gaussian, under a process with one alpha and sigma.
        turn: of the marginal's covariance (d, d), the matrix B (d, d) that is added to the score
            [1/x²], e.g. ``lambda cov: -0.5 * A @ torch.linalg.inv(cov)``.
        steps: of Euler's method, or Euler and Maruyama's, uniform in t; or their nodes in t, from
            noise to data, in place of ``t`` and ``s``; None: continuous time.
        eta: noise; 0 the flow, 1 the reverse SDE.
        t, s: times; None: ``process.t_max`` and ``process.t_min``.

    Raises:
        TypeError: data that are not Gaussian, a process of other kind.
        ValueError: a negative eta, no steps, times in the wrong order.
    """
    data, process = diffusion.denoiser, diffusion.process
    if not isinstance(data, Gaussian) or process.spectral:
        raise TypeError(
            f"this closed form needs Gaussian data and one alpha and sigma; given were {data!r} "
            f"and {process!r}. For others, sample with wb.Perturbed."
        )
    nodes = list(steps) if isinstance(steps, Sequence) else None
    t, s = (nodes[0], nodes[-1]) if nodes else (t, s)
    t, s = process.t_max if t is None else float(t), process.t_min if s is None else float(s)
    if not t > s >= 0 or (s == 0 and nodes is None):
        raise ValueError(f"t was {t:g} and s {s:g}; the reverse process runs from t down to s > 0.")
    if eta < 0 or (isinstance(steps, int) and steps < 1):
        raise ValueError(
            f"eta was {eta!r} and steps {steps!r}; they must be at least 0 and 1 (or None)."
        )

    eye, spread = torch.eye(data.dim, dtype=torch.float64), data.cov.double().cpu()

    def matrices(time: float) -> tuple[Tensor, float]:
        c = process(time)
        marginal = c.alpha**2 * spread + c.sigma**2 * eye
        score = turn(marginal) - torch.linalg.inv(marginal)
        return c.f * eye - 0.5 * (1 + eta) * c.g2 * score, eta * c.g2

    cov, mean = diffusion.marginal(t).cov.double().cpu(), diffusion.marginal(s).mean.double()
    if steps is None:
        return Gaussian(mean, _symmetric(_continuous(matrices, cov, t, s)))
    nodes = nodes or [t - k * (t - s) / steps for k in range(steps + 1)]
    off = torch.zeros(data.dim, dtype=torch.float64)  # of the mean, from that of the marginal
    centre = data.mean.flatten().double().cpu()
    for begin, end in pairwise(nodes):
        drift, noise = matrices(begin)
        gain, h = eye - (begin - end) * drift, begin - end
        cov = gain @ cov @ gain.T + h * noise * eye
        here, there = process(begin), process(end)
        off = gain @ off + ((1 - h * here.f) * here.alpha - there.alpha) * centre
    return Gaussian(mean + off.reshape(mean.shape).to(mean), _symmetric(cov))


def _symmetric(matrix: Tensor) -> Tensor:
    return 0.5 * (matrix + matrix.T)


def _continuous(matrices: Callable, cov: Tensor, t: float, s: float) -> Tensor:
    from scipy.integrate import solve_ivp

    d = len(cov)

    def slope(time, flat):
        now = torch.from_numpy(flat).reshape(d, d)
        drift, noise = matrices(float(time))
        change = drift @ now + now @ drift.T - noise * torch.eye(d, dtype=torch.float64)
        return change.flatten().numpy()

    start = cov.flatten().numpy()
    found = solve_ivp(slope, (t, s), start, "DOP853", rtol=ACCURACY, atol=ACCURACY)
    return torch.from_numpy(found.y[:, -1]).reshape(d, d)
