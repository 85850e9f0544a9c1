r"""Exact output of the continuous reverse process of Gaussian data, right score or wrong.

The family of samplers :math:`dx = [f x - \tfrac{1+\eta}{2} g^2 s']dt + \sqrt\eta\,g\,dW` is run
back from time t to s with a wrong score: that of :math:`y = x/\alpha` is
:math:`\alpha s' = (1 + \delta)\,\alpha s^* + b`, mis-scaled by :math:`\delta` and biased by a
constant b. With
:math:`Y = \lambda + \rho^2`, :math:`r = \log(Y_t/Y_s)`, :math:`\kappa = (1+\eta)(1+\delta)` and
:math:`\phi(z) = \operatorname{expm1}(z)/z`, a mode that starts with variance :math:`v_t` (its
marginal one is :math:`\ell_t = \alpha_t^2 Y_t`) ends with

.. math:: v_s = \ell_s\left[\frac{v_t}{\ell_t}e^{-(\kappa-1)r} + \eta\,r\,\phi(-(\kappa-1)r)\right]
          ,\qquad
          m_s - \alpha_s\mu = \sqrt{\ell_s/\ell_t}\;e^{-(\kappa-1)r/2}(m_t - \alpha_t\mu)
          + \tfrac{1+\eta}{2}\,\alpha_s Y_s\,r\,\phi\big((1-\tfrac\kappa2)r\big)\,b .

There is no step size in it: subtracted from a sampler's own law (:func:`workbench.exact.law`) it
leaves the discretisation error.

Sources: Pierret & Galerne 2024, arXiv:2405.14250, proposition 4 (:math:`\delta = b = 0`); the
rest is derived in this project.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from workbench.covariance import apply, completed, same_basis
from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.exact.distances import w2
from workbench.exact.modes import alpha_sigma, checked, gaussian_core, isotropic, level
from workbench.processes import Process


def reverse_law(
    diffusion: Diffusion,
    eta: float = 0.0,
    scale: float = 0.0,
    bias: Tensor | float | None = None,
    start: Gaussian | None = None,
    t: float | None = None,
    s: float | None = None,
) -> Gaussian:
    r"""The law at time ``s`` of the reverse process started at time ``t``, as a Gaussian (float64).

    Args:
        diffusion: of a Gaussian; its score is the true one.
        eta: stochasticity: 0 the probability flow, 1 the reverse SDE.
        scale: relative error :math:`\delta` of the score, at least -1.
        bias: constant error b of the score of :math:`y = x/\alpha` [1/x]: a number for all
            coordinates, or one for each (*event).
        start: law at ``t``; None is what sampling starts from there, the process's prior.
        t, s: None are ``process.t_max`` and ``process.t_min``.

    Raises:
        TypeError: data that are not Gaussian, or not independent in the basis of the process.
        ValueError: parameters outside their range, or a law without a finite mean and variance: at
            pure noise (alpha = 0) with a score too weak to forget it.
        NotImplementedError: no start given, and a process without a prior.
    """
    process, data = diffusion.process, _data(diffusion)
    t = process.t_max if t is None else float(t)
    s = process.t_min if s is None else float(s)
    _check(eta, scale)
    if not t >= s:
        raise ValueError(f"t was {t:g} and s {s:g}; the reverse process runs from t down to s.")
    begin = _prior(diffusion, data, t) if start is None else _into_core(diffusion, start, t)
    if t == s:
        return diffusion.law_from_core(begin, s)
    rest = data.variances.new_full((1,), data.rest)
    inside, outside = (
        transfer(process, variances, t, s, eta, scale) for variances in (data.variances, rest)
    )
    mean = data.mean.flatten()
    a_t, a_s = (_flat(process(time).alpha).to(mean) for time in (t, s))
    apart = begin.mean.flatten() - a_t * mean
    final = a_s * mean + apply(data.basis, inside[0], outside[0], apart)
    if bias is not None:
        final = final + apply(data.basis, inside[2], outside[2], _bias(diffusion, bias).to(mean))
    law = _spread(data, begin, inside, outside, final.reshape(data.event_shape))
    if not bool(torch.cat([law.mean.flatten(), law.variances]).isfinite().all()):
        raise ValueError(
            f"the reverse process from t = {t:g} to {s:g} with eta = {eta:g} and scale = {scale:g} "
            "has no finite law: its score is too weak to forget a start from pure noise. Start at "
            "a smaller t."
        )
    return diffusion.law_from_core(law, s)


def initialisation_error(
    diffusion: Diffusion,
    eta: float = 0.0,
    scale: float = 0.0,
    t: float | None = None,
    s: float | None = None,
) -> float:
    """What starting from the prior instead of the true marginal costs: W2 at time ``s`` [x].

    Arguments and errors as :func:`reverse_law`. Under a right score the SDE forgets it faster than
    the probability flow, which keeps its relative size.
    """
    t = diffusion.process.t_max if t is None else float(t)
    _data(diffusion)
    true = reverse_law(diffusion, eta, scale, start=diffusion.marginal(t), t=t, s=s)
    return w2(reverse_law(diffusion, eta, scale, t=t, s=s), true)


def truncation_error(diffusion: Diffusion, s: float | None = None) -> float:
    """What stopping at time ``s`` (None: ``process.t_min``) costs: W2 of its law to the data [x].

    Raises:
        TypeError: data that are not Gaussian.
    """
    _data(diffusion)
    s = diffusion.process.t_min if s is None else float(s)
    return w2(diffusion.marginal(s), diffusion.denoiser)


def retention(
    process: Process,
    variances: Tensor,
    t: float | Tensor,
    eta: float,
    s: float = 0.0,
    start: Literal["marginal", "prior"] = "marginal",
) -> Tensor:
    r"""Correlation of each mode of x_t with the same mode of x_s that the reverse process makes.

    .. math:: \operatorname{corr} = (Y_s/Y_t)^{\eta/2},\qquad
              \text{to the data: } (1 + \rho_t^2/\lambda)^{-\eta/2}

    so that the probability flow keeps all of its start and the SDE forgets it, small variances
    first. From the prior, whose variance is not the marginal one, it differs by as much as the two
    do.

    Args:
        variances: of the modes, any shape [x²].
        t, s: times; t may be a tensor.
        eta: stochasticity, with the true score.
        start: law of x_t.

    Returns:
        (*t.shape, *variances.shape), float64.
    """
    _check(eta, 0.0)
    if start not in ("marginal", "prior"):
        raise ValueError(f"start was {start!r}; it must be 'marginal' or 'prior'.")
    variances = checked(variances)
    top, end = level(process, variances, t), level(process, variances, s)
    (a_t, _), (a_s, _) = (alpha_sigma(process, variances, time) for time in (t, s))
    ratio = a_t.square() * end / (a_s.square() * top)
    if start == "marginal":
        return ratio.pow(0.5 * eta)
    times = torch.as_tensor(t, dtype=torch.float64)
    each = [torch.as_tensor(process.prior_std(u)).double() for u in times.flatten().tolist()]
    prior = torch.stack(each).reshape(times.shape + each[0].shape).to(variances)
    prior = prior.reshape(prior.shape + (1,) * (top.ndim - prior.ndim)).square()
    kept = ratio.pow(eta) * prior / top
    return (kept / (kept + 1 - ratio.pow(eta))).sqrt()


# -- the parts ---------------------------------------------------------------------------------


def transfer(
    process: Process, variances: Tensor, t: float, s: float, eta: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The reverse process from t to s as an affine map of each mode (of flat ``variances``).

    Returns:
        What multiplies the centred start, the variance that is added, what multiplies the bias.
    """
    start, end = process(t), process(s)
    a_t, s_t, a_s, s_s = (
        _flat(v).to(variances) for v in (start.alpha, start.sigma, end.alpha, end.sigma)
    )
    top, end = a_t**2 * variances + s_t**2, a_s**2 * variances + s_s**2
    ratio = a_t**2 * end / (a_s**2 * top)  # Y_s / Y_t
    r, pull = -ratio.log(), 0.5 * (1 + eta)
    excess = -1.0 if scale == -1 else eta + scale + eta * scale  # kappa - 1
    usual = (
        (end / top).sqrt() * ratio.pow(0.5 * excess),
        eta * end * _integral(-excess, r) if eta else torch.zeros_like(end),
        pull * end / a_s * _integral(0.5 * (1 - excess), r),
    )
    # Y_s = 0: a point mass of the data, reached by any score that is not switched off.
    if excess == -1:
        at_mass = (a_s / a_t, eta * a_s**2 / a_t**2 * top, pull * a_s / a_t**2 * top)
    else:  # from pure noise, with a score that is too weak, zero times infinity
        endless, zero = torch.where(a_t == 0, math.inf, 0.0), torch.zeros_like(a_t)
        at_mass = tuple(endless if power < 0 else zero for power in (excess, excess, excess - 1))
    return tuple(
        torch.where(end > 0, one, other) for one, other in zip(usual, at_mass, strict=True)
    )


def _integral(c: float, r: Tensor) -> Tensor:
    """The integral of exp(c z) from z = 0 to r."""
    return torch.expm1(c * r) / c if c else r


def _spread(data: Gaussian, begin: Gaussian, inside, outside, mean: Tensor) -> Gaussian:
    """The law of that mean whose covariance is what the maps make of that of ``begin``."""
    (gain, noise, _), (gain_off, noise_off, _) = inside, outside
    if isotropic(begin) or same_basis(begin.basis, data.basis):
        first = begin.variances[0] if isotropic(begin) else begin.variances
        rest = first if isotropic(begin) else begin.rest
        variances = gain**2 * first + noise
        partial = data.basis is not None and len(data.variances) < data.dim
        off = (gain_off**2 * rest + noise_off).item() if partial else 0.0
        return Gaussian._make(mean, data.basis, variances, off)
    basis = None
    if data.basis is not None:
        basis, _ = completed(data.basis, data.variances, data.rest)
        others = len(basis) - len(gain)
        gain, noise = (
            torch.cat([v, w.expand(others)]) for v, w in ((gain, gain_off), (noise, noise_off))
        )
    cov = begin.cov if basis is None else basis.T @ begin.cov @ basis
    cov = gain[:, None] * cov * gain + torch.diag(noise)
    cov = cov if basis is None else basis @ cov @ basis.T
    return Gaussian(mean, 0.5 * (cov + cov.T))


def _data(diffusion: Diffusion) -> Gaussian:
    return gaussian_core(diffusion, "the exact reverse law").to(torch.float64)


def _check(eta: float, scale: float) -> None:
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta was {eta!r}; it must be finite and at least 0.")
    if not -1 <= scale < math.inf:
        raise ValueError(f"scale was {scale!r}; it must be finite and at least -1.")


def _prior(diffusion: Diffusion, data: Gaussian, t: float) -> Gaussian:
    """What sampling starts from, in the core variable."""
    process = diffusion.process
    mean = torch.zeros_like(data.mean)
    if diffusion.condition is not None:
        off = process.prior_mean(t) - process.shift(t)[0]
        mean = off * diffusion.condition.double()
    std = torch.as_tensor(process.prior_std(t), dtype=torch.float64).to(mean.device)
    return Gaussian(mean, std**2)


def _into_core(diffusion: Diffusion, law: Gaussian, t: float) -> Gaussian:
    law = law.to(torch.float64)
    if diffusion.condition is not None:
        law = law.translated(-diffusion.process.shift(t)[0] * diffusion.condition.double())
    return diffusion.process.core(law)


def _bias(diffusion: Diffusion, bias: Tensor | float) -> Tensor:
    """The score's error in the core variable, flat (d,)."""
    bias = torch.as_tensor(bias, dtype=torch.float64)
    if bias.shape not in ((), diffusion.event_shape):
        raise ValueError(
            f"bias has shape {tuple(bias.shape)}; it must be a number or one for each coordinate, "
            f"{tuple(diffusion.event_shape)}."
        )
    bias = bias.expand(diffusion.event_shape)
    return diffusion.process.to_modes(bias).flatten()


def _flat(coefficient: float | Tensor) -> Tensor:
    return torch.as_tensor(coefficient, dtype=torch.float64).flatten()
