r"""Mixture posterior: responsibilities and moments of Gaussian components given a noisy state.

With responsibilities :math:`r_k`, the components' scores :math:`s_k`, posterior means :math:`m_k`
and posterior covariances :math:`P_k`, and :math:`s = \sum r_k s_k`, :math:`D = \sum r_k m_k`,

.. math:: J = \sum_k r_k\,[G_k + (m_k - D)(s_k - s)^\top],\qquad
          H = \sum_k r_k\,[-M_k^{-1} + (s_k - s)(s_k - s)^\top],

.. math:: \operatorname{Cov}[x_0|x] = \sum_k r_k\,[P_k + (m_k - D)(m_k - D)^\top],\qquad
          \dot D = \sum_k r_k\,[\dot m_k + (m_k - D)\,\dot\ell_k],

:math:`\dot\ell_k` the time derivative of a component's log-density: none divides by alpha or sigma,
and centred as they are nothing cancels far from the data (:class:`Fields`).

Responsibilities, D and s alone are a few matrix products, components along the first axis, where a
softmax is fast, and scales folded into the factors. Axis-aligned components (:class:`Aligned`),
with :math:`\ell_k = \alpha^2 c_k + \sigma^2` for each coordinate, have the logits

.. math:: \log w_k - \tfrac12\sum\log\ell_k - \tfrac12\sum\alpha^2\mu_k^2/\ell_k
          + x\cdot(\alpha\mu_k/\ell_k) - \tfrac12 x^2\cdot(1/\ell_k);

of one variance, with fewer terms (:class:`Alike`). Full ones (:class:`Turned`), with
:math:`C_k = U_k\Lambda_k U_k^\top`, whiten the state by the
stacked factors :math:`\ell_k^{-1/2} U_k^\top`. Terms of the size (reach / noise)² cancel in the
first, of its square root in the second. The coefficients alone, never the samples, decide in which
dtype that is small, or that it must not happen at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.denoisers.components import TINY, Components, Noisy

#: Rounding let pass in a logit, of terms that cancel in float64 or in a shorter dtype.
ALLOWED, ALLOWED_SHORT = 1e-9, 1e-4
#: The same of a divergence.
LOST = 1e-12
#: Logits up to which torch's own softmax is fastest.
FEW = 1 << 12
LOG2E = 1 / math.log(2)
#: Least power of two that is formed: it is no share to be seen, and numbers below normal are slow.
LEAST = -100.0
#: Coordinates up to which states are fastest side by side, coordinate by coordinate.
NARROW = 16


def table(parts: Components, log_weights: Tensor, dtype, alpha, sigma, floor, exact: bool):
    """What gives responsibilities, D and score at a noise level by matrix products; or None.

    Args:
        parts, log_weights: the components; log_weights (K,).
        dtype: of the states.
        alpha, sigma, floor: numbers, or tensors on the host (n or 1, d or 1).
        exact: whether logits are formed in float64 at least.
    """
    given = [c for c in (alpha, sigma) if not isinstance(c, float)]
    if parts.rest is not None or any(c.device.type != "cpu" for c in given):
        return None
    if all(len(c) == 1 for c in given):
        if parts.basis is None:
            kind = Aligned if given or not parts.alike else Alike
        elif given:
            return None
        else:
            kind = Turned
        work = _working(_cancelled(parts, alpha, sigma, floor), torch.float64 if exact else dtype)
        if work is None:
            return None
        return kind(parts, log_weights, dtype, alpha, sigma, floor, work)
    isotropic = parts.basis is None and parts.variances.shape[1] == 1
    if isotropic and all(c.shape[1] == 1 for c in given):
        return Each(parts, log_weights, alpha, sigma, floor)
    return None


class Softmaxes(NamedTuple):
    r"""Posterior means :math:`D = g x + k\sum_j r_j\mu_j,\ r = \mathrm{softmax}(W [x; 1])`.

    Attributes:
        weights: W of each noise level (levels, K, d + 1), float64.
        gain, keep: g and k of each.
        careful: whether logits are to be formed in float64, for D's sake.
        sizes: of the terms of logits.
        middle: the component nearest to the mean of all.
        apart: by how much the logits of a state may differ from that one's where it comes from
            another component, on average [nats].
        centres: (d, K), float64; sums: these over a row of ones, and zeros.
    """

    weights: Tensor
    gain: Sequence[float]
    keep: Sequence[float]
    careful: list[bool]
    sizes: list[float]
    middle: int
    apart: list[float]
    centres: Tensor
    sums: Tensor

    def with_last(self, component: int) -> Softmaxes:
        """The same with that component after all others."""
        order = [k for k in range(self.weights.shape[1]) if k != component] + [component]
        weights, centres, sums = self.weights[:, order], self.centres[:, order], self.sums[:, order]
        return self._replace(weights=weights, centres=centres, sums=sums, middle=len(order) - 1)


def softmaxes(parts: Components, dtype, levels: Sequence[tuple]) -> Softmaxes | None:
    """Components of one isotropic variance at these (alpha, sigma), as :class:`Alike` has them.

    None where they are others, or where D is lost in terms that cancel in logits.
    """
    if not parts.alike:
        return None
    numbers = [_one_variance(parts, *pair, lowest(parts, pair[0])) for pair in levels]
    pulls, curvatures, gain, keep = zip(*numbers, strict=True) if numbers else ((),) * 4
    sizes = [_cancelled(parts, *pair, lowest(parts, pair[0])) for pair in levels]
    # Of an error of the logits, k times as much is one of D.
    work = [_working(k * size, dtype) for k, size in zip(keep, sizes, strict=True)]
    if None in work:
        return None
    double = {"dtype": torch.float64, "device": parts.means.device}
    pull, curvature = torch.tensor([pulls, curvatures], **double)[..., None, None]
    names = ("column", "norms", "means", "turned", "sums")
    column, norms, means, *centres = (parts.cast(name, torch.float64) for name in names)
    weights = torch.cat([pull * means, column + curvature * norms], 2)
    careful = [own != dtype for own in work]
    middle, farthest, rarest = parts.middle
    apart = [rarest - curvature * farthest for curvature in curvatures]
    return Softmaxes(weights, gain, keep, careful, sizes, middle, apart, *centres)


def _one_variance(parts, alpha: float, sigma: float, floor: float) -> tuple[float, ...]:
    r"""Of components of one isotropic variance v, with :math:`\ell = \alpha^2 v + \sigma^2`: what
    multiplies :math:`\mu_k\cdot x` and :math:`\mu_k^2` in logits, x and :math:`\sum r_k\mu_k` in D.
    """
    v, noise = parts.smallest, sigma * sigma
    level = alpha * alpha * v + noise
    inverse = 1 / max(level, floor)
    gain, keep = (alpha * v / level, noise / level) if level else (0.0, 1.0)
    return alpha * inverse, -0.5 * alpha * alpha * inverse, gain, keep


def lowest(parts: Components, alpha) -> float | Tensor:
    """Least variance in a log-density: stands in for zero, where a component is a point."""
    if isinstance(alpha, Tensor):
        return (1e-8 * parts.radius * alpha.double()).square().clamp_min(1e-280)
    return max((1e-8 * parts.radius * alpha) ** 2, 1e-280)


def _working(size: float, dtype: torch.dtype) -> torch.dtype | None:
    """In which dtype logits whose terms are of this ``size`` are formed; None: in none."""
    if dtype != torch.float64 and torch.finfo(dtype).eps * size < ALLOWED_SHORT:
        return dtype
    return torch.float64 if torch.finfo(torch.float64).eps * size < ALLOWED else None


def _cancelled(parts: Components, alpha, sigma, floor) -> float:
    """Size of the terms that cancel in the logits: the square of that of states over that of the
    noise; of whitened ones, that itself.
    """
    if isinstance(alpha, float) and isinstance(sigma, float):
        reach = alpha * parts.radius + 4 * sigma * math.sqrt(parts.dim)
        ratio = reach * reach / max(alpha * alpha * parts.smallest + sigma * sigma, floor)
        return ratio if parts.basis is None else 4 * math.sqrt(ratio)
    reach = alpha * parts.means.abs().amax(0) + 4 * sigma
    level = (alpha * alpha * parts.variances + sigma * sigma).amin(0, keepdim=True)
    floor = torch.as_tensor(floor, dtype=level.dtype, device=level.device)
    return (reach.square() / torch.maximum(level, floor)).sum().item()


class Table:
    r"""States (n, d) in, answers (n, ...) in their dtype out; all at one noise level.

    A subclass gives ``logits`` (K, n), the posterior ``mean`` (n, d) and the ``score`` (n, d), and
    may give the ``divergence`` (n,), the trace of the mean's Jacobian.

    The divergence is that of :class:`Fields`, with :math:`\sum_k r_k (m_k - D)\cdot(s_k - s)` as
    :math:`\sum_k r_k\,m_k\cdot s_k - D\cdot s`; nan where the two would cancel, far from the data.
    """

    def shares(self, x: Tensor) -> Tensor:
        """Responsibilities (n, K)."""
        return softmax(self.logits(x)).T.to(x.dtype)

    def log_density(self, x: Tensor) -> Tensor:
        """Log-density (n,)."""
        return torch.logsumexp(self.logits(x), 0).to(x.dtype)

    def denoised(self, x: Tensor) -> Tensor:
        """Posterior mean (n, d)."""
        return self.mean(x).contiguous()


class Alike(Table):
    r"""Isotropic components of one variance v at one noise level.

    With :math:`\ell = \alpha^2 v + \sigma^2` the logits are :math:`\log w_k -
    \alpha^2\mu_k^2/2\ell + \alpha\,\mu_k\cdot x/\ell`, but for what all share, and
    :math:`D = (\alpha v\,x + \sigma^2\sum r_k\mu_k)/\ell`. All that depends on the noise are a few
    numbers and one column, so that a level costs next to nothing.
    """

    def __init__(self, parts, log_weights, dtype, alpha, sigma, floor, work) -> None:
        self.parts, self.dtype, self.work = parts, dtype, work
        self.pull, curvature, self.gain, self.keep = _one_variance(parts, alpha, sigma, floor)
        self.inverse = 1 / max(alpha * alpha * parts.smallest + sigma * sigma, floor)
        column, norms = parts.cast("column", work), parts.cast("norms", work)
        self.bias = torch.add(column, norms, alpha=curvature)

    def _relative(self, xt: Tensor) -> Tensor:
        """Logits (K, n) but for what all components share."""
        return torch.addmm(self.bias, self.parts.cast("means", self.work), xt, alpha=self.pull)

    def logits(self, x: Tensor) -> Tensor:
        xt = x.T.to(self.work)
        square = xt.square().sum(0).clamp_max(torch.finfo(self.work).max)
        volume = 0.5 * self.parts.dim * math.log(2 * math.pi / self.inverse)
        return self._relative(xt) - (0.5 * self.inverse * square + volume)

    def shares(self, x: Tensor) -> Tensor:
        return softmax(self._relative(x.T.to(self.work))).T.to(x.dtype)

    def _averaged(self, x: Tensor, gain: float, keep: float) -> Tensor:
        """``gain x + keep sum_k r_k mu_k`` (n, d)."""
        if x.shape[1] <= NARROW and len(x) * self.parts.count > FEW:
            # The quotient of two sums, each in one product: exponentials need no norm of their own.
            means = self.parts.cast("means", self.work)
            xt, d = x.T.to(self.work), x.shape[1]
            powers = torch.addmm(self.bias, means, xt, beta=LOG2E, alpha=self.pull * LOG2E)
            powers = powers.sub_(powers.amax(0)).clamp_min_(LEAST).exp2_().to(x.dtype)
            sums = self.parts.cast("sums", x.dtype) @ powers
            return torch.add(gain * x, (sums[:d] / sums[d]).T, alpha=keep)
        share = softmax(self._relative(x.T.to(self.work))).to(x.dtype)
        return torch.addmm(x, share.T, self.parts.cast("means", x.dtype), beta=gain, alpha=keep)

    def mean(self, x: Tensor) -> Tensor:
        return self._averaged(x, self.gain, self.keep)

    def score(self, x: Tensor) -> Tensor:
        return self._averaged(x, -self.inverse, self.pull)

    def divergence(self, x: Tensor) -> Tensor:
        """Trace (n,) of the Jacobian: the gain, and the variance of the centres under r."""
        share = softmax(self._relative(x.T.to(self.work)))
        first = share.T @ self.parts.cast("means", self.work)
        second = (share.T @ self.parts.cast("norms", self.work))[:, 0]
        spread = (second - first.square().sum(1)).clamp_min(0.0)
        return (self.parts.dim * self.gain + self.keep * self.pull * spread).to(x.dtype)


class Aligned(Table):
    """Isotropic and diagonal components; one noise level, or one for each coordinate (1, d)."""

    def __init__(self, parts, log_weights, dtype, alpha, sigma, floor, work) -> None:
        self.parts, self.alpha, self.sigma, self.dtype, self.work = parts, alpha, sigma, dtype, work
        level = alpha * alpha * parts.variances + sigma * sigma  # (K, 1 or d)
        self.level, inverse = level, 1 / level.clamp_min(floor)
        logs = inverse.log().sum(1, keepdim=True) * (parts.dim // inverse.shape[1])
        slope = alpha * inverse * parts.means
        bias = logs - (alpha * slope * parts.means).sum(1, keepdim=True)
        bias = log_weights[:, None] + 0.5 * bias
        self.inverse, self.slope, self.bias = inverse, slope.to(work), bias.to(work)

    def _logits(self, x: Tensor, curvature: Tensor) -> Tensor:
        xt = x.T.to(self.work)
        logits = torch.addmm(self.bias, self.slope, xt)
        square = xt.square() if curvature.shape[1] > 1 else xt.square().sum(0, keepdim=True)
        square = square.clamp_max(torch.finfo(xt.dtype).max)  # 0 times infinity is no number
        return logits.addmm_(curvature.to(self.work), square)

    def logits(self, x: Tensor) -> Tensor:
        constant = 0.5 * self.parts.dim * math.log(2 * math.pi)
        return self._logits(x, -0.5 * self.inverse) - constant

    def _share(self, x: Tensor) -> Tensor:
        """Responsibilities (n, K); what all components share is not needed."""
        return softmax(self._logits(x, 0.5 * (self.inverse.amin(0) - self.inverse))).T.to(x.dtype)

    shares = _share

    def _averaged(self, x: Tensor, towards: Tensor, along: Tensor) -> Tensor:
        """``sum_k r_k (towards_k + along_k x)``; towards (K, d), along (K, 1 or d)."""
        share = self._share(x)
        return torch.addcmul(share @ towards.to(x.dtype), share @ along.to(x.dtype), x)

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        gain, keep = _gain_and_keep(self.alpha, self.sigma, self.parts.variances, self.level)
        return keep * self.parts.means, gain

    def mean(self, x: Tensor) -> Tensor:
        return self._averaged(x, *self._moments)

    def score(self, x: Tensor) -> Tensor:
        return self._averaged(x, self.alpha * self.inverse * self.parts.means, -self.inverse)

    def divergence(self, x: Tensor) -> Tensor:
        curvature = 0.5 * (self.inverse.amin(0) - self.inverse)
        share, (towards, gain) = softmax(self._logits(x, curvature)).T, self._moments
        share, xs, wide = share.double(), x.double(), self.parts.dim // gain.shape[1]
        inverse, pull = self.inverse, self.alpha * self.inverse * self.parts.means
        # With m_k = a_k + g_k x and s_k = b_k - x / l_k coordinate by coordinate, all under r:
        none, one, two = towards * pull, gain * pull - inverse * towards, -gain * inverse
        square = xs.square() if two.shape[1] > 1 else xs.square().sum(1, keepdim=True)
        each = share @ none.sum(1)
        each = each + ((share @ one) * xs).sum(1) + ((share @ two) * square).sum(1)
        mean = torch.addcmul(share @ towards, share @ gain, xs)
        score = torch.addcmul(share @ pull, share @ -inverse, xs)
        return _joint(share @ (wide * gain.sum(1)), each, (mean * score).sum(1)).to(x.dtype)


class Each(Table):
    """Isotropic components and one noise level for each sample, (n or 1, 1); always float64."""

    def __init__(self, parts: Components, log_weights: Tensor, alpha, sigma, floor) -> None:
        self.parts, self.log_weights = parts, log_weights[:, None]
        self.alpha, self.sigma, self.floor = (
            c.double().T if isinstance(c, Tensor) else c for c in (alpha, sigma, floor)
        )
        self.level = self.alpha**2 * parts.variances + self.sigma**2  # (K, n or 1)
        floor = torch.as_tensor(self.floor, dtype=torch.float64)
        self.inverse = 1 / torch.maximum(self.level, floor)

    def cancels(self) -> Tensor:
        """Of which samples (n or 1,) the logits must not be formed by terms that cancel."""
        reach = self.alpha * self.parts.radius + 4 * self.sigma * math.sqrt(self.parts.dim)
        ratio = (reach * reach * self.inverse).amax(0)
        return torch.finfo(torch.float64).eps * ratio >= ALLOWED

    def logits(self, x: Tensor) -> Tensor:
        parts, a = self.parts, self.alpha
        norms = a * a * self.inverse * parts.means.square().sum(1, keepdim=True)
        bias = self.log_weights + 0.5 * (parts.dim * self.inverse.log() - norms)
        logits = torch.addcmul(bias, a * self.inverse, parts.means @ x.double().T)
        square = x.double().square().sum(1).clamp_max(torch.finfo(torch.float64).max)
        constant = 0.5 * parts.dim * math.log(2 * math.pi)
        logits = torch.addcmul(logits - constant, -0.5 * self.inverse, square)
        return logits.clamp_min_(torch.finfo(torch.float64).min)

    def _averaged(self, x: Tensor, towards: Tensor, along: Tensor) -> Tensor:
        """``sum_k r_k (towards_k mu_k + along_k x)``, of factors (K, n or 1)."""
        share = softmax(self.logits(x))
        centre = (share * towards).T @ self.parts.means
        return torch.addcmul(centre, (share * along).sum(0)[:, None], x.double()).to(x.dtype)

    def mean(self, x: Tensor) -> Tensor:
        gain, keep = _gain_and_keep(self.alpha, self.sigma, self.parts.variances, self.level)
        return self._averaged(x, keep, gain)

    def score(self, x: Tensor) -> Tensor:
        return self._averaged(x, self.alpha * self.inverse, -self.inverse)


class Turned(Table):
    """Full components, one noise level; modes run along the first axis, components the second."""

    def __init__(self, parts, log_weights, dtype, alpha, sigma, floor, work) -> None:
        self.means, self.alpha, self.dtype = parts.means.to(work), alpha, dtype
        variances = parts.variances.T  # (mode, K)
        self.scale = (alpha * alpha * variances + sigma * sigma).clamp_min(floor).rsqrt()
        self.axes = parts.basis.permute(2, 0, 1)  # (mode, K, d)
        self.gain = alpha * variances * self.scale
        self._whitened_means = (self.scale * (self.axes * parts.means).sum(-1)).to(work)
        into = self._factor(self.scale, work)
        self.into, self.centres = into, -alpha * self._whitened_means.flatten()[:, None]
        bias = log_weights + self.scale.log().sum(0) - 0.5 * parts.dim * math.log(2 * math.pi)
        self.bias, self.work = bias[:, None].to(work), work

    def _factor(self, scale: Tensor, work) -> Tensor:
        """Axes times a scale (mode, K) of each, (mode * K, d)."""
        return (scale[..., None] * self.axes).to(work).flatten(0, 1)

    def _whitened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (K, n) and whitened residuals (mode, K, n)."""
        residual = torch.addmm(self.centres, self.into, x.T.to(self.work))
        residual = residual.view(*self.scale.shape, len(x))
        if len(residual) > 8:
            logits = torch.sub(self.bias, residual.square().sum(0), alpha=0.5)
            return logits.clamp_min_(torch.finfo(self.work).min), residual
        logits = torch.addcmul(self.bias, residual[0], residual[0], value=-0.5)
        for mode in residual[1:]:  # no squares to store
            logits.addcmul_(mode, mode, value=-0.5)
        return logits.clamp_min_(torch.finfo(self.work).min), residual

    def logits(self, x: Tensor) -> Tensor:
        return self._whitened(x)[0]

    @cached_property
    def _back(self) -> Tensor:
        return self._factor(self.gain, self.work)

    def mean(self, x: Tensor) -> Tensor:
        """Posterior mean (n, d): the gain alpha v / level, less the scale that whitened."""
        logits, residual = self._whitened(x)
        share = softmax(logits)
        moved = (residual * share).flatten(0, 1).T @ self._back
        return moved.add_(share.T @ self.means).to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        logits, residual = self._whitened(x)
        return ((residual * -softmax(logits)).flatten(0, 1).T @ self.into).to(x.dtype)

    def divergence(self, x: Tensor) -> Tensor:
        logits, residual = self._whitened(x)
        share = softmax(logits)
        weighted = residual * share
        mean = (weighted.flatten(0, 1).T @ self._back).add_(share.T @ self.means)
        score = weighted.flatten(0, 1).T @ -self.into
        # m_k = mu_k + U_k (gain w) and s_k = -U_k (scale w), of whitened residuals w.
        pair, square = (self.gain * self.scale).to(self.work), (weighted * residual).flatten(0, 1)
        each = self._whitened_means.flatten() @ weighted.flatten(0, 1) + pair.flatten() @ square
        return _joint(pair.sum(0) @ share, -each, (mean * score).sum(1)).to(x.dtype)


def _joint(within: Tensor, each: Tensor, outer: Tensor) -> Tensor:
    """``within + each - outer`` (n,), nan where the difference of the last two is lost."""
    doubtful = torch.finfo(each.dtype).eps * outer.abs() > LOST
    return (within + (each - outer)).masked_fill(doubtful, math.nan)


def _gain_and_keep(alpha, sigma, v: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the state and of its own mean in the posterior mean of a component."""
    safe = level.clamp_min(TINY)
    keep = torch.as_tensor(sigma * sigma, dtype=level.dtype) / safe
    return alpha * v / safe, torch.where(level > 0, keep, torch.ones_like(level))


def softmax(logits: Tensor) -> Tensor:
    """Over the first axis; of many, by powers of two, which cost half of what exponentials do."""
    if logits.numel() <= FEW:
        return torch.softmax(logits, 0)
    share = (logits - logits.amax(0)).mul_(LOG2E).exp2_()
    return share / share.sum(0)


class Fields:
    """The components at a noise level as states ``x`` (n, d) see them; layout (K, d, n)."""

    def __init__(self, level: Noisy, log_weights: Tensor, x: Tensor) -> None:
        self.level, self.seen = level, level.see(x)
        self._logits = log_weights[:, None] + level.log_density(self.seen)

    @cached_property
    def share(self) -> Tensor:
        """Responsibilities (K, n)."""
        finite = self._logits.clamp_min(torch.finfo(torch.float64).min)  # where all have overflown
        return torch.softmax(finite, 0)

    @property
    def shares(self) -> Tensor:
        """Responsibilities (n, K)."""
        return self.share.T

    @property
    def log_density(self) -> Tensor:
        """Log-density (n,) [nats]."""
        return torch.logsumexp(self._logits, 0)

    def _average(self, field: Tensor) -> Tensor:
        return (self.share[:, None] * field).sum(0).T

    @property
    def denoised(self) -> Tensor:
        """Posterior mean (n, d)."""
        shift = self._average(self.level.shift(self.seen))
        return torch.addmm(shift, self.share.T, self.level.parts.means)

    @property
    def score(self) -> Tensor:
        """Gradient (n, d) of the log-density."""
        return self._average(self.level.score(self.seen))

    def _centred(self, field: Tensor) -> Tensor:
        return field - self._average(field).T

    @cached_property
    def _means(self) -> Tensor:
        return self._centred(self.level.means(self.seen))

    @cached_property
    def _scores(self) -> Tensor:
        return self._centred(self.level.score(self.seen))

    def _outer(self, left: Tensor, right: Tensor) -> Tensor:
        """``sum_k r_k left_k right_k^T`` (n, d, d)."""
        return (self.share[:, None] * left).permute(2, 1, 0) @ right.permute(2, 0, 1)

    def jacobian(self) -> Tensor:
        """``dD_i/dx_j`` (n, d, d)."""
        within = self.level.mean_matrix("gain", self.share)
        return within + self._outer(self._means, self._scores)

    def divergence(self) -> Tensor:
        """Trace (n,) of the Jacobian."""
        each = self.level.trace_gain() + (self._means * self._scores).sum(1)
        return (self.share * each).sum(0)

    def hessian(self) -> Tensor:
        """Second derivatives (n, d, d) of the log-density."""
        within = self.level.mean_matrix("precision", self.share)
        return self._outer(self._scores, self._scores) - within

    def posterior_cov(self) -> Tensor:
        """``Cov[x0 | x]`` (n, d, d)."""
        within = self.level.mean_matrix("posterior", self.share)
        return within + self._outer(self._means, self._means)

    def moving(self, d_alpha, d_sigma, along: Tensor) -> Tensor:
        """Time derivative (n, d) of the posterior mean where ``x`` moves by ``along`` (n, d)."""
        level, d_x = self.level, along.double().T
        d_x = d_x.expand(level.parts.count, *d_x.shape)
        modes = d_x if level.parts.basis is None else level.parts.basis.mT @ d_x
        moved, growth = level.rates(self.seen, d_alpha, d_sigma)
        moved = moved + level.shift((d_x, modes))
        return self._joined(moved, growth + (self._scores * d_x).sum(1))

    def rate(self, d_alpha, d_sigma) -> Tensor:
        """Time derivative (n, d) of the posterior mean at fixed ``x``."""
        return self._joined(*self.level.rates(self.seen, d_alpha, d_sigma))

    def _joined(self, moved: Tensor, growth: Tensor) -> Tensor:
        """``sum_k r_k [moved_k + (m_k - D) growth_k]``."""
        growth = growth - (self.share * growth).sum(0)
        return self._average(moved + self._means * growth[:, None])
