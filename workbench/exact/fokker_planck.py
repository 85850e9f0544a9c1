r"""Fokker-Planck residuals of perturbed scores, and the gap between the ODE and the SDE they drive.

A modelled log-density u, or a modelled score s, of the noised data fails the equation of the
noising process by

.. math:: R[u] = \partial_t u - \tfrac{g^2}{2}(\Delta u + |\nabla u|^2) + f d + f x\cdot\nabla u
          \quad [1/t],\qquad
          \varepsilon[s] = \partial_t s - \nabla\left[\tfrac{g^2}{2}(\nabla\!\cdot s + |s|^2)
          - f x\cdot s\right] \quad [1/(x t)] .

Along a path of the probability flow of s the residual is what its density gains on the modelled one
(:func:`flow_residual`); the reverse SDE averages it over the noising process instead. Where it
vanishes both sample the model. :func:`score_residual` is that of any diffusion, a network's too;
the others are closed forms: of the mis-scaled score :math:`(1+\delta)s^*` and of a linear
perturbation of a Gaussian's.

Sources: Lai et al. 2022, arXiv:2210.04296; Deveney et al. 2023, arXiv:2311.15996 (definitions); the
identities and the bound are derived in this project.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Empirical, Gaussian, Mixture, Perturbed
from workbench.denoisers.level import any_zero
from workbench.diffusion import Diffusion

#: Denoisers whose score is that of the noised data, exactly.
LAWS = (Gaussian, Mixture, Empirical)

#: Where derivatives are differences: the step in units of sigma, and of the relative noise level.
SPACING, NUDGE = 5e-3, 1e-3

#: Dimensions up to which all derivatives are taken by differences along the coordinates.
BY_COORDINATES = 8


class Residual(NamedTuple):
    r"""What :func:`score_residual` finds, like the states.

    Attributes:
        residual: :math:`\varepsilon[s]` [1/(x t)].
        motion: :math:`\partial_t s + \nabla(f x\cdot s)`, how the score changes where the process
            merely scales the state; the residual is what of it the noise does not explain.
        each: the residual by each of the probes, (m, *x); None where the trace was exact.
    """

    residual: Tensor
    motion: Tensor
    each: Tensor | None


def score_residual(
    diffusion: Diffusion,
    x: Tensor,
    t: float,
    probes: Tensor | None = None,
    differences: Literal["none", "time", "all"] = "none",
) -> Residual:
    r"""Residual of a diffusion's own score under the equation of its process.

    .. math:: \varepsilon[s] = \partial_t s + f s + J^\top(f x) - J^\top(g^2 s)
              - \tfrac12\nabla\operatorname{tr}(g^2 J),\qquad J = \partial s/\partial x,

    with f and g2 mode by mode under a spectral process, and x less its shift under an affine one.
    It is the gradient of :math:`R[u]` where :math:`s = \nabla u`; a gauge field, which leaves every
    marginal exact, has a residual all the same. The score may be a formula's or a network's:
    derivatives are the denoiser's own, or automatic ones.

    Args:
        x: states (n, *event).
        t: time with alpha > 0 and sigma > 0.
        probes: of mean 0 and covariance I for the trace: (m, *event), the same for all states, or
            (m, n, *event). Hutchinson's estimate, one a probe; a standard error needs 2. None:
            exact, with d times the work of a denoiser that has no closed form.
        differences: what is taken by central differences: nothing; the derivative in t (as the
            authors do) and that of the trace along its probe, which spares the second derivatives
            of a network (a residual by one probe then costs 6 to 8 evaluations of it); or all, for
            a model that cannot be differentiated. Of all, two probes are spent on one estimate, and
            without probes the differences run along all coordinates (at most 8).

    Raises:
        ValueError: where the score or g2 does not exist, or no probe.

    Source: Lai et al. 2022, arXiv:2210.04296, eq. 9 (for general f and g2), and their public code.
    """
    c = diffusion.process(float(t))
    if any_zero(c.alpha) or any_zero(c.sigma) or not _finite(c.g2):
        raise ValueError(
            f"t was {t:g}, where alpha or sigma is 0: the residual needs a score that changes "
            "smoothly with the noise. Ask between pure noise and the data."
        )
    if probes is not None and not len(probes):
        raise ValueError("probes were none; an estimate needs at least 1, its error at least 2.")
    u = diffusion.to_core(x, float(t))
    alpha, sigma, d_alpha, d_sigma, g2 = (
        torch.as_tensor(v, dtype=torch.float64).to(u)
        for v in (c.alpha, c.sigma, c.d_alpha, c.d_sigma, c.g2)
    )
    f, s2 = d_alpha / alpha, sigma * sigma
    if differences == "all":
        return _by_differences(diffusion, u, c, (f, sigma, g2), probes)
    level = diffusion.core.at(c.alpha, c.sigma)
    if differences == "time" and probes is not None and not level.closed:
        return _jointly(diffusion, u, c, (alpha, sigma, d_alpha, d_sigma, g2), probes)
    if level.closed:
        denoised, score = level.denoised(u), level.score(u)
        pull = lambda w: level.vjp(u, w)  # noqa: E731
    else:  # of a network one pass forward serves all
        denoised, back = torch.func.vjp(level.denoised, u)
        score = (alpha * denoised - u) / s2
        pull = lambda w: back(w)[0]  # noqa: E731
    pulled = lambda w: pull(alpha * w / s2) - w / s2  # noqa: E731  J^T w
    if differences == "time":
        order = 6 if level.closed else 2
        rate = _in_time(diffusion.core, c, lambda other: other.denoised(u), order)
    else:
        rate = level.rate(u, c.d_alpha, c.d_sigma)
    change = (d_alpha * denoised + alpha * rate) / s2 - 2 * d_sigma / sigma * score
    motion = change + f * score + pulled(f * u)
    weight = (g2 * alpha / s2).expand(diffusion.event_shape)
    show = diffusion.process.from_modes
    rest = motion - pulled(g2 * score)
    if differences == "none" or level.closed:
        slope = level.trace_slope(u, weight, probes)
    else:
        units = torch.eye(diffusion.denoiser.dim).to(u).reshape(-1, *diffusion.event_shape)
        slope = sum(_slopes(level, u, weight, units, sigma))
    if probes is None:
        return Residual(show(rest - 0.5 * slope), show(motion), None)
    each = torch.stack([show(rest - 0.5 * one) for one in slope])
    return Residual(each.mean(0), show(motion), each)


def _moved(c, h: float) -> tuple:
    """alpha and sigma moved along their derivatives by the time ``h``."""
    return c.alpha + h * c.d_alpha, c.sigma + h * c.d_sigma


def _instant(c) -> float:
    """A time in which alpha and sigma change by the share :data:`NUDGE` at most."""
    change = max(
        float(torch.as_tensor(d / v).abs().max())
        for d, v in ((c.d_alpha, c.alpha), (c.d_sigma, c.sigma))
    )
    return NUDGE / max(change, 1e-300)


#: Weights of central differences by their order: of steps 1, 2, 3.
CENTRAL = {2: (0.5,), 6: (0.75, -0.15, 1 / 60)}


def _in_time(core: Denoiser, c, value, order: int = 6) -> Tensor:
    """Derivative in t of ``value(level)``, by central differences."""
    h, total = _instant(c), 0.0
    for k, weight in enumerate(CENTRAL[order], 1):
        ahead, behind = (value(core.at(*_moved(c, sign * k * h))) for sign in (1, -1))
        total = total + weight * (ahead - behind)
    return total / h


def _jointly(diffusion: Diffusion, u: Tensor, c, factors, probes: Tensor) -> Residual:
    r"""A network's residual, by a product with its Jacobian's transpose at two points a probe.

    D at two times gives its derivative and, by the mean, D itself. What remains is, with
    :math:`q = f u - g^2 s`, :math:`\sigma^{-2}J^\top\alpha q - \tfrac12\nabla(z\cdot J w z)` of D's
    Jacobian J and :math:`w = \alpha g^2/\sigma^2`; to second order in the step h this is

    .. math:: \sum_\pm J(u \pm h w z)^\top \left[\frac{\alpha q}{2\sigma^2} \mp \frac{z}{4h}\right].

    The motion's own product is the mean of those at the two times.
    """
    alpha, sigma, d_alpha, d_sigma, g2 = factors
    f, s2, h = d_alpha / alpha, sigma * sigma, _instant(c)
    ahead, behind = (diffusion.core.at(*_moved(c, sign * h)) for sign in (1, -1))
    if bool((f == 0).all()):
        later, before, pull = ahead.denoised(u), behind.denoised(u), None
    else:
        carried = 0.5 * alpha * f * u / s2
        (later, one), (before, other) = (_transposed(at, u, carried) for at in (ahead, behind))
        pull = one + other
    denoised, rate = 0.5 * (later + before), (later - before) / (2 * h)
    score = (alpha * denoised - u) / s2
    change = (d_alpha * denoised + alpha * rate) / s2 - 2 * d_sigma / sigma * score + f * score
    motion = change if pull is None else change + pull - f * u / s2
    q = f * u - g2 * score
    level, weight = diffusion.core.at(c.alpha, c.sigma), g2 * alpha / s2
    half, rest, each = 0.5 * alpha * q / s2, change - q / s2, []
    for z in probes.to(u):
        z = z.expand(u.shape)
        step = _step(weight * z, sigma)
        both = torch.cat([u + step * weight * z, u - step * weight * z])
        apart = z / (4 * step)
        pulled = _transposed(level, both, torch.cat([half - apart, half + apart]))[1]
        first, second = pulled.chunk(2)
        each.append(diffusion.process.from_modes(rest + first + second))
    found = torch.stack(each)
    return Residual(found.mean(0), diffusion.process.from_modes(motion), found)


def _transposed(level, u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    r"""A network's answer at ``u`` and :math:`J^\top w`, both like ``u``, by one pass each way."""
    with torch.enable_grad():
        at = u.detach().requires_grad_(True)
        denoised = level.denoised(at)
        if not denoised.requires_grad:
            return denoised, torch.zeros_like(u)
        (pulled,) = torch.autograd.grad(denoised, at, w, materialize_grads=True)
    return denoised.detach(), pulled


def _step(along: Tensor, sigma: Tensor) -> Tensor:
    """The factor by which a difference is taken along ``along``: :data:`SPACING` sigma in all."""
    size = along.square().sum((*range(1, along.ndim),)).mean().sqrt()
    return SPACING * sigma.mean() / size.clamp_min(1e-30)


def _slopes(level, u: Tensor, weight: Tensor, probes: Tensor, sigma: Tensor) -> list[Tensor]:
    r"""Gradients of ``z . J (w z)`` by each probe z: how :math:`J^\top z` changes along w z."""
    slopes = []
    for z in probes.to(u):
        z = z.expand(u.shape)
        along = weight * z
        step = _step(along, sigma)
        both = torch.cat([u + step * along, u - step * along])
        ahead, behind = level.vjp(both, torch.cat([z, z])).chunk(2)
        slopes.append((ahead - behind) / (2 * step))
    return slopes


def _by_differences(diffusion: Diffusion, u: Tensor, c, factors, probes) -> Residual:
    r"""The residual from values of the score alone.

    Along a direction v it is :math:`v\cdot\partial_t s - \partial_v[\tfrac12 s\cdot g^2 s
    - f u\cdot s] - \tfrac12\partial_v\partial_z(g^2 z\cdot s)` on average over z, and
    :math:`v (v\cdot\varepsilon)` is the residual on average over v.
    """
    core, (f, sigma, g2) = diffusion.core, factors
    score = core.at(c.alpha, c.sigma).score
    event = tuple(range(1, u.ndim))
    h = SPACING * sigma.mean()

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(event, keepdim=True)

    def quadratic(at: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        return dot(0.5 * g2 * s, s) - dot(f * at, s), dot(f * at, s)

    change = _in_time(core, c, lambda other: other.score(u))
    dim = diffusion.denoiser.dim
    if probes is None:
        if dim > BY_COORDINATES:
            raise ValueError(
                f"these data have {dim} dimensions; differences along all of them are for at most "
                f"{BY_COORDINATES}: give probes."
            )
        units = torch.eye(dim).to(u).reshape(dim, 1, *u.shape[1:])
        pairs = [(v, list(units)) for v in units]
    else:
        if len(probes) < 4:
            raise ValueError(
                f"probes were {len(probes)}; two are spent on one estimate and a standard error "
                "needs two estimates: give at least 4."
            )
        each = probes.to(u).reshape(len(probes), -1, *u.shape[1:]).expand(-1, *u.shape)
        pairs = [(v, [z]) for v, z in zip(each[::2], each[1::2], strict=False)]
    residuals, motions = [], []
    for v, others in pairs:
        (up, carried_up), (down, carried_down) = (
            quadratic(at, score(at)) for at in (u + h * v, u - h * v)
        )
        bend = 0.0
        for z in others:
            corners = [
                sign * other * score(u + h * (sign * v + other * z))
                for sign in (1, -1)
                for other in (1, -1)
            ]
            bend = bend + dot(g2 * z, sum(corners)) / (4 * h * h)
        along = dot(v, change)
        residuals.append(v * (along - (up - down) / (2 * h) - 0.5 * bend))
        motions.append(v * (along + (carried_up - carried_down) / (2 * h)))
    show = diffusion.process.from_modes
    if probes is None:
        return Residual(show(sum(residuals)), show(sum(motions)), None)
    each = torch.stack([show(one) for one in residuals])
    return Residual(each.mean(0), show(torch.stack(motions).mean(0)), each)


def model_log_density(core: Denoiser, level, u: Tensor) -> Tensor:
    r"""A log-density whose gradient is the model's score, up to a function of time (*batch).

    Of a law its own; of a perturbed one :math:`(1+\delta)\log p + b\cdot y + \tfrac12 (y-m)^\top
    G (y-m)` with :math:`y = x/\alpha`, normalised where that is known (a scaled Gaussian).

    Args:
        core: the denoiser.
        level: of it, at one noise level.
        u: states (*batch, *event).

    Raises:
        NotImplementedError: a score that is the gradient of nothing known, with the reason.
    """
    if isinstance(core, LAWS) or not isinstance(core, Perturbed) or not core._parts:
        if isinstance(core, (*LAWS, Perturbed)):
            return level.log_prob(u)
        raise NotImplementedError(
            f"{core!r} gives a score alone: its log-density, and with it the residual in "
            "log-density form, is not known. Ask for the residual of the score."
        )
    if core.gauge is not None or core.rotation is not None:
        raise NotImplementedError(
            "a score with a gauge or a rotation is the gradient of nothing, so it has no "
            "log-density; ask for the residual of the score."
        )
    if core.bias is None and core.gradient is None and isinstance(core.base, Gaussian):
        return level.log_prob(u)
    value = (1 + core.scale) * model_log_density(core.base, level.base, u)
    y = (u / _over(level.alpha, u)).flatten(u.ndim - len(core.event_shape))
    if core.bias is not None:
        value = value + y @ core.bias.flatten()
    if core.gradient is not None:
        apart = y - core.mean.flatten()
        value = value + 0.5 * ((apart @ core.gradient) * apart).sum(-1)
    return value


def _over(coefficient, u: Tensor) -> Tensor | float:
    """A level's coefficient, which may be flat (1, d), against states."""
    if isinstance(coefficient, Tensor) and coefficient.numel() == u[0].numel():
        return coefficient.reshape(u.shape[1:]).to(u)
    return coefficient


def log_residual(diffusion: Diffusion, x: Tensor, t: float) -> Tensor:
    r"""Residual R of a model's log-density at ``x`` (*batch) [1/t]; see the module.

    Up to a function of time alone where the log-density is known up to one. The derivative in t is
    a central difference of order 6.

    Args:
        diffusion: whose denoiser is a law, or one that was perturbed without a gauge.
        x: states (n, *event), float64.
        t: time with alpha > 0 and sigma > 0.

    Raises:
        NotImplementedError: a model that gives a score alone.

    Source: Deveney et al. 2023, arXiv:2311.15996, and their public code.
    """
    c = diffusion.process(float(t))
    core, u = diffusion.core, diffusion.to_core(x, float(t))
    g2, f = (torch.as_tensor(v, dtype=torch.float64).to(u) for v in (c.g2, c.f))
    if any_zero(c.alpha) or not _finite(c.g2):
        raise ValueError(f"t was {t:g}, where alpha is 0; ask between pure noise and the data.")
    level = core.at(c.alpha, c.sigma)
    rate = _in_time(core, c, lambda other: model_log_density(core, other, u))
    score = level.score(u)
    event = tuple(range(u.ndim - len(diffusion.event_shape), u.ndim))
    weight = g2.expand(diffusion.event_shape)
    if g2.ndim == 0:
        trace = (c.alpha * level.divergence(u) - diffusion.denoiser.dim) / (c.sigma * c.sigma)
        laplacian = g2 * trace
    else:
        laplacian = level.hessian(u).diagonal(dim1=-2, dim2=-1) @ weight.flatten()
    pull = f.expand(diffusion.event_shape)
    noise = 0.5 * (laplacian + (weight * score * score).sum(event))
    return rate - noise + pull.sum() + (pull * u * score).sum(event)


def scaled_score_residual(diffusion: Diffusion, x: Tensor, t: float, delta: float) -> Tensor:
    r"""Residual of the score :math:`(1+\delta)s^*`, with s* the diffusion's own; like ``x``.

    .. math:: \varepsilon = -\delta(1+\delta)\, H g^2 s^*,\qquad H = \nabla^2\log p_t

    for every density. Under a spectral process g2 acts mode by mode.

    Args:
        diffusion: with a denoiser that knows its Hessian.
        x: states (*batch, *event).
        t: time.
        delta: relative error of the score.
    """
    score = diffusion.score(x, t)
    stirred = _per_mode(diffusion, score, diffusion.process(t).g2)
    flat = stirred.flatten(x.ndim - len(diffusion.event_shape))
    turned = (diffusion.hessian(x, t) @ flat[..., None]).reshape(x.shape)
    return -delta * (1 + delta) * turned


def linear_score_residual(
    diffusion: Diffusion,
    x: Tensor,
    t: float,
    matrix: Tensor,
    matrix_rate: Tensor | None = None,
) -> Tensor:
    r"""Residual of a Gaussian's score plus a linear field, :math:`s = s^* + B(x - m_t)`.

    .. math:: \varepsilon = \dot M y - M F m_t - M^\top G M y + (M^\top F + F M)\,y + M^\top F m_t,
              \qquad y = x - m_t,\quad M = B - \Sigma_t^{-1}

    with F = f and G = g2, matrices under a spectral process; under an affine one x and m_t are
    counted from m mu. It is not zero for a gauge field :math:`B = cA\Sigma_t^{-1}` (A
    antisymmetric), though that leaves every marginal exact: the residual tests gradient fields
    only.

    Args:
        diffusion: of a Gaussian.
        x: states (*batch, *event), float64.
        t: time.
        matrix: B at ``t`` (d, d).
        matrix_rate: its time derivative; None: constant.
    """
    data = _gaussian(diffusion)
    law = diffusion.marginal(t)
    drift, stir = _matrices(diffusion, t)
    cov = law.cov.double()
    precision = torch.linalg.inv(cov)
    precision_rate = -precision @ (drift @ cov + cov @ drift + stir) @ precision
    m = matrix.double().to(cov.device) - precision
    rate = -precision_rate if matrix_rate is None else matrix_rate.to(cov) - precision_rate
    core_mean = law.mean if diffusion.condition is None else diffusion.process(t).alpha * data.mean
    centre = drift @ core_mean.double().flatten()
    y = (x.double() - law.mean.double()).flatten(x.ndim - len(diffusion.event_shape))
    by_y = rate - m.T @ stir @ m + m.T @ drift + drift @ m
    return (y @ by_y.T + (m.T - m) @ centre).reshape(x.shape).to(x.dtype)


def scaled_law(diffusion: Diffusion, t: float, delta: float) -> Gaussian:
    r"""The density whose score is :math:`(1+\delta)s^*`: :math:`N(m_t, \Sigma_t/(1+\delta))`.

    It is what a Gaussian model with that score would say its density is; neither the ODE nor the
    SDE driven by the score samples it.
    """
    _gaussian(diffusion)
    law = diffusion.marginal(t)
    if not delta > -1:
        raise ValueError(f"delta was {delta!r}; (1 + delta) times a score is one for delta > -1.")
    basis, scale = law.basis, 1 / (1 + delta)
    return Gaussian._make(law.mean, basis, law.variances * scale, law.rest * scale)


def scaled_log_residual(diffusion: Diffusion, x: Tensor, t: float, delta: float) -> Tensor:
    r"""Residual R of the log-density of :func:`scaled_law` at ``x`` (*batch) [1/t].

    .. math:: R = \tfrac\delta2\left[\operatorname{tr}(g^2\Sigma_t^{-1})
              - (1+\delta)\, s^*\!\cdot g^2 s^*\right]
    """
    _gaussian(diffusion)
    event = x.ndim - len(diffusion.event_shape)
    g2, score = diffusion.process(t).g2, diffusion.score(x, t)
    square = (score * _per_mode(diffusion, score, g2)).flatten(event).sum(-1)
    law = diffusion.marginal(t)
    if diffusion.process.spectral:
        cov = law.cov.double()
        matrix = diffusion.process.basis.matrix.to(cov)
        total = ((matrix * torch.linalg.solve(cov, matrix)).sum(0) * g2.flatten().to(cov)).sum()
    else:
        total = g2 * law.spectrum.reciprocal().sum()
    return 0.5 * delta * (total.item() - (1 + delta) * square)


def scaled_flow(diffusion: Diffusion, x: Tensor, t: float, s: float, delta: float) -> Tensor:
    r"""Probability-flow map of the score :math:`(1+\delta)s^*` from ``t`` to ``s``; like ``x``.

    Each mode of Gaussian data is multiplied, about its mean, by

    .. math:: \frac{\alpha_s}{\alpha_t}\left(\frac{Y_s}{Y_t}\right)^{(1+\delta)/2},\qquad
              Y = \lambda + \rho^2 .
    """
    data, levels = _levels(diffusion, t, s)
    (start, before), (end, after) = levels
    gain = end.alpha / start.alpha * (after.log() - before.log()).mul(0.5 * (1 + delta)).exp()
    centred = diffusion.to_core(x, t) - start.alpha * data.mean
    matrix = data.eigenbasis.double()
    flat = centred.flatten(x.ndim - len(diffusion.event_shape)).double() @ matrix
    moved = (flat * gain) @ matrix.T
    return diffusion.from_core(end.alpha * data.mean + moved.reshape(x.shape).to(x.dtype), s)


def flow_residual(diffusion: Diffusion, x: Tensor, t: float, end: float, delta: float) -> Tensor:
    r"""Integral of R from ``t`` to ``end`` along the flow path that ends at ``x`` (*batch).

    .. math:: \int_t^T R\,dr = \tfrac12\sum_k \delta L_k - (1+\delta)\frac{y_k^2}{\ell_k(T)}
              \left(1 - e^{-\delta L_k}\right),\qquad L_k = \log\frac{Y_k(T)}{Y_k(t)}

    With start law :math:`\pi` it gives the ODE's density exactly, at the path's state
    :math:`x_t` = :func:`scaled_flow` of ``x``:

    .. math:: \log q(x_t) = \log p_\theta(x_t) + \log\frac{\pi}{p_{\theta}}(x) + \int R\,dr .

    Args:
        diffusion: of a Gaussian.
        x: states (*batch, *event) at ``end``.
        t, end: times, t below end.
        delta: relative error of the score.
    """
    data = _gaussian(diffusion)
    centred = diffusion.to_core(x, end) - diffusion.process(end).alpha * data.mean
    flat = centred.flatten(x.ndim - len(diffusion.event_shape)).double()
    flat = flat @ data.eigenbasis.double()
    return _integrated(diffusion, flat.square(), t, end, delta)


def mean_flow_residual(
    diffusion: Diffusion, start: Gaussian, t: float, end: float, delta: float
) -> float:
    r"""The mean of :func:`flow_residual` over paths whose state at ``end`` is drawn from ``start``.

    It is what the flow adds to the distance from the model,
    :math:`KL(q_t|p_\theta) = KL(\pi|p_{\theta,T}) + \int E[R]\,dr`.
    """
    matrix, law = _gaussian(diffusion).eigenbasis.double(), diffusion.marginal(end)
    offset = (start.mean.double() - law.mean.double()).flatten() @ matrix
    spread = (matrix * (start.cov.double() @ matrix)).sum(0)
    return _integrated(diffusion, offset.square() + spread, t, end, delta).item()


def _integrated(diffusion: Diffusion, squares: Tensor, t, end, delta: float) -> Tensor:
    """The formula of :func:`flow_residual` for squared modes (*batch, d) at ``end``."""
    _, ((_, near), (c, far)) = _levels(diffusion, t, end)
    span = far.log() - near.log()
    share = squares / (c.alpha * c.alpha * far)
    return 0.5 * (delta * span + (1 + delta) * share * torch.expm1(-delta * span)).sum(-1)


def _levels(diffusion: Diffusion, *times: float):
    """The Gaussian data, and per time its coefficients and Y = lambda + rho^2 of each mode."""
    data = _gaussian(diffusion)
    if diffusion.process.spectral:
        raise NotImplementedError(
            "this closed form needs one alpha and sigma for all modes; "
            f"{diffusion.process!r} has one per mode."
        )
    twin, _ = data.diagonalised()
    found = []
    for t in times:
        c = diffusion.process(float(t))
        if c.alpha == 0:
            raise ValueError(
                f"t was {t:g}, where alpha is 0: a mis-scaled score has no flow from pure noise. "
                "Start or stop before it."
            )
        found.append((c, twin.variances + c.rho * c.rho))
        if not bool((found[-1][1] > 0).all()):
            raise ValueError(f"t was {t:g}, where a direction of the data has no variance at all.")
    return data, found


def _gaussian(diffusion: Diffusion) -> Gaussian:
    if not isinstance(diffusion.denoiser, Gaussian):
        raise TypeError(f"this closed form needs Gaussian data; these are {diffusion.denoiser!r}.")
    return diffusion.denoiser


def _per_mode(diffusion: Diffusion, field: Tensor, factor) -> Tensor:
    """``factor * field``; under a spectral process one factor per mode."""
    factor = factor.to(field) if isinstance(factor, Tensor) else factor
    return diffusion.process.from_modes(factor * diffusion.process.to_modes(field))


def _finite(coefficient: float | Tensor) -> bool:
    return bool(torch.as_tensor(coefficient).isfinite().all())


def _matrices(diffusion: Diffusion, t: float) -> tuple[Tensor, Tensor]:
    """Linear drift F and squared diffusion G of the process as matrices (d, d), float64."""
    c, d = diffusion.process(float(t)), diffusion.denoiser.dim
    if diffusion.process.spectral:
        matrix = diffusion.process.basis.matrix.double().to(diffusion.device)
        make = lambda v: (matrix * v.double().flatten().to(matrix)) @ matrix.T  # noqa: E731
    else:
        eye = torch.eye(d, dtype=torch.float64, device=diffusion.device)
        make = lambda v: v * eye  # noqa: E731
    if not _finite(c.g2):
        raise ValueError(f"t was {t:g}, where g2 is infinite; ask before it.")
    return make(c.f), make(c.g2)
