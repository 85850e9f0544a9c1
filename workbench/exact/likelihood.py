r"""Log-likelihood under the continuous flow of a field: a number, to a tolerance.

Along the probability flow :math:`\dot x = v(x, t)` a density obeys
:math:`\frac{d}{dt}\log q(x_t, t) = -\nabla\!\cdot v`, whatever the field, so

.. math:: \log q(x, t) = \log\pi(x_T) + \int_t^T \nabla\!\cdot v(x_r, r)\,dr .

With the exact divergence nothing is estimated; a trained network's estimate has the variance of
:func:`hutchinson_variance`.

Sources: Chen et al. 2018, arXiv:1806.07366; Song et al. 2021, arXiv:2011.13456, section 4.3.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workbench.denoisers import Denoiser
from workbench.denoisers.perturbed import Perturbed
from workbench.diffusion import Diffusion, stretch
from workbench.exact.ode import integrate
from workbench.processes import Process

#: States whose divergences by random directions are taken in one go.
TOGETHER = 4096


class Likelihood(NamedTuple):
    """What :func:`log_likelihood` finds, float64.

    Attributes:
        log_prob: log-density [nats] of each state (*batch).
        latent: where the flow takes it (*batch, *event).
        log_volume: integral of the divergence along its path (*batch): log-density at the state
            minus log-density at the latent.
        evaluations: how often the field was asked, on average over the samples.
        error: standard error of log_prob (*batch) by what its probes differ; None: exact.
        each: log_prob by each of the probes (*batch, m), whose mean it is; None: exact.
    """

    log_prob: Tensor
    latent: Tensor
    log_volume: Tensor
    evaluations: float
    error: Tensor | None = None
    each: Tensor | None = None


def log_likelihood(
    diffusion: Diffusion,
    x: Tensor,
    t: float | None = None,
    end: float | None = None,
    prior: Literal["marginal", "prior"] | Denoiser = "marginal",
    rtol: float = 1e-10,
    atol: float = 1e-12,
    probes: Tensor | None = None,
) -> Likelihood:
    """Log-likelihood of states at time ``t`` under the diffusion's own probability flow.

    Each state is carried from ``t`` to ``end`` with its divergence, in float64, with steps of its
    own: a sample's result does not depend on the others of the batch beyond the last bit of a
    matrix product. The integral runs through to alpha = 0 (pure noise) where the field is regular
    there; a field with a gauge part turns ever faster towards it and needs an earlier ``end``.

    Args:
        diffusion: with a denoiser that knows its divergence.
        x: states (*batch, *event) at time ``t``.
        t: None is ``process.t_min``.
        end: None is ``process.t_max``.
        prior: the law at ``end``: the diffusion's own marginal there ("marginal"; of a field whose
            only error is a gauge, the one it keeps), what sampling starts from ("prior"), or any
            law with a log-density.
        rtol, atol: tolerances of a step, for the state and for the integral each.
        probes: random directions of mean 0 and covariance I for the divergence (Hutchinson), at
            least 2, held along a path: (m, *event), the same for all states. None: exact.

    Raises:
        ValueError: times that do not increase, a field that is infinite at ``end`` or before,
            fewer than two probes.
        NotImplementedError: a denoiser without a closed-form divergence.
    """
    process = diffusion.process
    t = float(process.t_min if t is None else t)
    end = float(process.t_max if end is None else end)
    if not t <= end:
        raise ValueError(f"t was {t:g} and end {end:g}; likelihoods flow towards noise, t < end.")
    if not (isinstance(prior, Denoiser) or prior in ("marginal", "prior")):
        raise TypeError(f"prior was {prior!r}; it must be 'marginal', 'prior' or a law.")
    exact = diffusion if diffusion.dtype == torch.float64 else diffusion.to(torch.float64)
    batch = x.shape[: x.ndim - len(exact.event_shape)]
    if x.shape[len(batch) :] != exact.event_shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; it must end in {tuple(exact.event_shape)}, the shape "
            "of one sample."
        )
    if probes is not None and len(probes) < 2:
        raise ValueError("probes were fewer than 2; a standard error needs at least 2.")
    dim, parts = exact.denoiser.dim, 1 if probes is None else len(probes)
    flat = x.detach().to(device=exact.device, dtype=torch.float64).reshape(-1, dim)

    def field(y: Tensor, times: Tensor) -> Tensor:
        states = y[:, :dim].reshape(-1, *exact.event_shape)
        if probes is None:
            velocity, divergence = exact.velocity_and_divergence(states, times)
            return torch.cat([velocity.flatten(1), divergence[:, None]], 1)
        velocity = exact.velocity(states, times).flatten(1)
        return torch.cat([velocity, _probed_divergence(exact, states, times, probes)], 1)

    start = torch.cat([flat, flat.new_zeros(len(flat), parts)], 1)
    if not bool(field(start, flat.new_full((len(flat),), end)).isfinite().all()):
        raise ValueError(f"the flow is infinite at end = {end:g}; give an end before it.")
    y, asked = integrate(field, start, t, end, rtol, atol, groups=(dim, parts))
    latent, volume = y[:, :dim].reshape(-1, *exact.event_shape), y[:, dim:].mean(1)
    if isinstance(prior, Denoiser):
        base = prior.to(torch.float64, exact.device).log_prob(latent)
    else:
        base = log_prior(exact, latent, end) if prior == "prior" else _marginal(exact, latent, end)
    error = each = None
    if probes is not None:
        each = (base[:, None] + y[:, dim:]).reshape(*batch, parts)
        error = each.std(-1) / math.sqrt(parts)
    return Likelihood(
        (base + volume).reshape(batch),
        latent.reshape(*batch, *exact.event_shape),
        volume.reshape(batch),
        asked / max(1, len(flat)),
        error,
        each,
    )


def _probed_divergence(diffusion: Diffusion, x: Tensor, times: Tensor, probes: Tensor) -> Tensor:
    """Divergence of the velocity (n, m) by each of the probes (m, *event)."""
    found, n = [], len(x)
    for some in probes.split(max(1, TOGETHER // max(1, n))):
        again = (len(some), *[1] * (x.ndim - 1))
        u, c = diffusion._seen(x.repeat(again), times.repeat(len(some)))
        level = diffusion.core.at(c.alpha, c.sigma)
        inner, outer = stretch(c)
        z = some.to(u).repeat_interleave(n, 0)
        each = (level.vjp(u, inner * z) * z).flatten(1).sum(1)
        found.append((each + outer.expand(u.shape).flatten(1).sum(1)).reshape(len(some), n))
    return torch.cat(found).T


def log_prior(diffusion: Diffusion, x: Tensor, t: float | None = None) -> Tensor:
    """Log-density [nats] at ``x`` (*batch, *event) of what sampling starts from at ``t`` (*batch).

    ``t`` None is ``process.t_max``.
    """
    process: Process = diffusion.process
    t = float(process.t_max if t is None else t)
    spread = process.prior_std(t)
    if diffusion.condition is not None:
        x = x - process.prior_mean(t) * diffusion.condition
    x = process.to_modes(x)
    spread = torch.as_tensor(spread, dtype=x.dtype, device=x.device).expand(diffusion.event_shape)
    events = tuple(range(x.ndim - len(diffusion.event_shape), x.ndim))
    square = (x / spread).square().sum(events)
    return -0.5 * square - spread.log().sum() - 0.5 * diffusion.denoiser.dim * math.log(2 * math.pi)


def _marginal(diffusion: Diffusion, x: Tensor, t: float) -> Tensor:
    """Log-density of the diffusion's marginal; a gauge field keeps that of its base."""
    denoiser = diffusion.denoiser
    kept = isinstance(denoiser, Perturbed) and denoiser.exact_marginals
    if kept and not diffusion.process.spectral:
        diffusion = Diffusion(diffusion.process, denoiser.base, diffusion.condition)
    return diffusion.log_prob(x, t)


def hutchinson_variance(
    matrix: Tensor, probe: Literal["rademacher", "gaussian"] = "rademacher"
) -> Tensor:
    r"""Variance of one probe of the trace estimator :math:`z^\top M z` (*batch).

    .. math:: 2\sum_{i\ne j} S_{ij}^2 \;\text{(signs)},\qquad 2\sum_{ij} S_{ij}^2 \;
              \text{(normals)},\qquad S = \tfrac12(M + M^\top)

    Signs are exact where the symmetric part is diagonal. Probes are independent: n of them have
    1/n of it.

    Args:
        matrix: (*batch, d, d).
        probe: the law of the elements of z.

    Source: Hutchinson 1990, *Communications in Statistics* 19(2); the traces of Skilling 1989.
    """
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; it must be (*batch, d, d).")
    if probe not in ("rademacher", "gaussian"):
        raise ValueError(f"probe was {probe!r}; it must be 'rademacher' or 'gaussian'.")
    symmetric = 0.5 * (matrix + matrix.mT)
    if probe == "rademacher":
        symmetric = symmetric - torch.diag_embed(symmetric.diagonal(dim1=-2, dim2=-1))
    return 2 * symmetric.square().sum((-2, -1))
