r"""The probability flow of Gaussian data, mode by mode.

A mode of variance :math:`\lambda` and level :math:`\ell_t = \alpha_t^2\lambda + \sigma_t^2` is only
scaled by the flow, so with :math:`c` its coordinate in :math:`x_t - \alpha_t\mu`

.. math:: x_s = \alpha_s\mu + \psi c,\quad \psi = \sqrt{\ell_s/\ell_t};\qquad
          D(x_s) = \mu + \xi c,\quad \xi = \frac{\alpha_s\lambda}{\sqrt{\ell_s\ell_t}} .

A mode has emerged in the denoised state once :math:`\rho = \sigma/\alpha` has fallen below about
:math:`\sqrt\lambda`, whatever the schedule.

Source: Wang & Vastola 2023, arXiv:2303.02490 (variance preserving); here for any alpha and sigma.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from workbench.diffusion import Diffusion
from workbench.exact.modes import alpha_sigma, checked, level, times_of
from workbench.processes import Process


def flow_factor(process: Process, variances: Tensor, t, s) -> Tensor:
    r"""Factor :math:`\psi = \sqrt{\ell_s/\ell_t}` of each mode from time ``t`` to ``s``.

    Args:
        variances: of the modes, any shape (that of the basis under a spectral process) [x²].
        t, s: times, either direction: numbers, or tensors of one shape.

    Returns:
        (*times.shape, *variances.shape), float64.

    Raises:
        ValueError: from a time at which a mode has no variance (sigma = 0, lambda = 0): there it
            holds no information.
    """
    variances = checked(variances)
    start, end = level(process, variances, t), level(process, variances, s)
    times = [torch.as_tensor(time, dtype=torch.float64) for time in (t, s)]
    same = times[0] == times[1]
    same = same.reshape(same.shape + (1,) * variances.ndim).to(start.device)
    if bool(((start == 0) & ~same).any()):
        raise ValueError(
            "the flow cannot start at sigma = 0 in a mode of no variance: it holds no information "
            "there. Start at sigma > 0."
        )
    return torch.where(same, torch.ones_like(end), (end / start).sqrt())


def denoised_factor(process: Process, variances: Tensor, t, s) -> Tensor:
    r"""Factor :math:`\xi = \alpha_s\lambda/\sqrt{\ell_s\ell_t}`, from x_t to the denoised state.

    A mode of no variance is absent from the denoised state at any time. Arguments and shape as for
    :func:`flow_factor`.
    """
    variances = checked(variances)
    factor = flow_factor(process, variances, t, s)
    alpha, sigma = alpha_sigma(process, variances, s)
    end = alpha.square() * variances + sigma.square()
    return torch.where(end > 0, alpha * variances / end, 0.0) * factor


def perturbation_gain(process: Process, variances: Tensor, t, t_end: float = 0.0) -> Tensor:
    r"""Size at ``t_end`` of a unit perturbation along each mode of the state at time ``t``.

    It is the flow's own factor, since the flow is linear. To the data, under a variance-preserving
    process, it goes from :math:`\sqrt\lambda` (early) to 1 (late): early perturbations matter more
    only in modes of variance above one. For perturbations of :math:`x/\alpha` multiply by
    :math:`\alpha_t/\alpha_{end}`.

    Arguments and shape as for :func:`flow_factor`.
    """
    return flow_factor(process, variances, t, t_end)


def flow_path(diffusion: Diffusion, x: Tensor, t: float, times: Sequence[float] | Tensor) -> Tensor:
    """The exact probability flow of states ``x`` at time ``t``, at each of ``times``.

    Returns:
        (time, *x.shape), in the dtype of ``x``.

    Raises:
        NotImplementedError: data without a closed form, with the reason.
    """
    return torch.stack([diffusion.flow(x, t, s) for s in _floats(times)])


def denoised_path(
    diffusion: Diffusion, x: Tensor, t: float, times: Sequence[float] | Tensor
) -> Tensor:
    """The denoised state along the flow: arguments, shape and errors as :func:`flow_path`."""
    return torch.stack([diffusion.denoised(diffusion.flow(x, t, s), s) for s in _floats(times)])


def emergence(
    variances: Tensor,
    fraction: float = 0.5,
    of: Literal["amplitude", "power"] = "amplitude",
    process: Process | None = None,
) -> Tensor:
    r"""Noise level at which the denoised state first shows a fraction f of each mode.

    The denoised state of a flow has the amplitude :math:`\sqrt{\lambda/(\lambda + \rho^2)}` of its
    final one, and this is squared for its power, so

    .. math:: \rho = \sqrt{\lambda(f^{-2} - 1)}\ \text{(amplitude)},\qquad
              \rho = \sqrt{\lambda(f^{-1} - 1)}\ \text{(power)} :

    at f = 1/2, :math:`\sqrt{3\lambda}` and :math:`\sqrt\lambda`. The second is also where the
    shrinkage :math:`\lambda/(\lambda + \rho^2)` of the ideal linear (Wiener) denoiser is f.

    Returns:
        rho [x], in the shape of ``variances``; given a ``process`` its times instead, nan where
        none of its times has that noise level.
    """
    if of not in ("amplitude", "power"):
        raise ValueError(f"of was {of!r}; it must be 'amplitude' or 'power'.")
    power = _fraction(fraction) ** (2 if of == "amplitude" else 1)
    rho = (checked(variances) * (1.0 / power - 1.0)).sqrt()
    return rho if process is None else times_of(process, rho)


def band_emergence(
    variances: Tensor, weights: Tensor, fraction: float = 0.5, process: Process | None = None
) -> Tensor:
    r"""Noise level at which a fraction f of the power of each band has emerged.

    It solves, for each band b,

    .. math:: \sum_j w_{bj}\frac{\lambda_j^2}{\lambda_j + \rho^2} = f \sum_j w_{bj}\lambda_j .

    The square root of the band's mean variance is another number.

    Args:
        variances: eigenvalues of the covariance (d,) [x²].
        weights: energy of each eigenvector in each band (b, d), at least 0.

    Returns:
        rho [x] of each band (b,), nan for a band of no power; times as in :func:`emergence`.

    Raises:
        ValueError: shapes that do not fit, a negative weight, a fraction not between 0 and 1.
    """
    variances, fraction = checked(variances), _fraction(fraction)
    weights = torch.as_tensor(weights).to(variances)
    if variances.ndim != 1 or weights.ndim != 2 or weights.shape[1:] != variances.shape:
        raise ValueError(
            f"variances have shape {tuple(variances.shape)} and weights {tuple(weights.shape)}; "
            "they must be (d,) and (bands, d)."
        )
    if not bool((weights >= 0).all()):
        raise ValueError("a weight was negative or nan; weights are energies, at least 0.")
    power = weights * variances
    total = power.sum(1, keepdim=True)
    share = power / total  # nan for a band of no power, and so is its result
    # The mean of lambda/(lambda + rho^2) is f between the levels at which single modes reach it.
    least = torch.where(share > 0, variances, torch.inf).amin(1)
    log_low, log_high = (
        (v * (1.0 / fraction - 1.0)).log()
        for v in (least, torch.where(share > 0, variances, 0.0).amax(1))
    )
    for _ in range(64):
        middle = 0.5 * (log_low + log_high)
        shown = (share * variances / (variances + middle.exp()[:, None])).sum(1)
        log_low = torch.where(shown > fraction, middle, log_low)
        log_high = torch.where(shown > fraction, log_high, middle)
    rho = torch.where(total[:, 0] > 0, (0.25 * (log_low + log_high)).exp(), torch.nan)
    return rho if process is None else times_of(process, rho)


def _fraction(fraction: float) -> float:
    if not 0 < fraction < 1:
        raise ValueError(f"fraction was {fraction!r}; it must lie between 0 and 1.")
    return float(fraction)


def _floats(times: Sequence[float] | Tensor) -> list[float]:
    return torch.as_tensor(times, dtype=torch.float64).flatten().tolist()
