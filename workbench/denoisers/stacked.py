r"""The posterior of a mixture by a few matrix products, components stacked along the first axis.

A softmax is fast there, and scales are folded into the factors beforehand. Axis-aligned components,
with :math:`\ell_k = \alpha^2 c_k + \sigma^2` for each coordinate, have the logits

.. math:: \log w_k - \tfrac12\sum\log\ell_k - \tfrac12\sum\alpha^2\mu_k^2/\ell_k
          + x\cdot(\alpha\mu_k/\ell_k) - \tfrac12 x^2\cdot(1/\ell_k);

full ones, with :math:`C_k = U_k\Lambda_k U_k^\top`, whiten the state by the stacked factors
:math:`W_k = \ell_k^{-1/2} U_k^\top`: one product gives all residuals, one leads back. Terms of the
size (reach / noise)² cancel in the first, of its square root in the second. The coefficients alone,
never the samples, decide in which dtype that is small, or that it must not happen at all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.denoisers.components import TINY, Components

__all__ = ["Aligned", "Each", "Turned", "log_sum_exp"]

#: Rounding let pass in a logit, of terms that cancel in float64 or in a shorter dtype.
ALLOWED, ALLOWED_SHORT = 1e-9, 1e-4


class Stacked:
    """Mixture components; states (n, d) in, answers (n, ...) in their dtype out.

    Args:
        parts: the components.
        log_weights: (K,).
        dtype: of the states.

    The answers are those of :class:`~workbench.denoisers.posterior.Posterior` and take ``x, alpha,
    sigma``, the least variance ``floor`` in a density, and the dtype ``work`` of the logits.
    """

    def __init__(self, parts: Components, log_weights: Tensor, dtype: torch.dtype) -> None:
        self.parts, self.log_weights, self.dtype = parts, log_weights, dtype
        self.means = {dtype: parts.means.to(dtype), torch.float64: parts.means}
        self.constant = 0.5 * parts.dim * math.log(2 * math.pi)
        self.smallest = parts.smallest

    def _ratio(self, alpha: float, sigma: float, floor: float) -> float:
        """Square of the size of states over that of the noise."""
        reach = alpha * self.parts.radius + 4 * sigma * math.sqrt(self.parts.dim)
        return reach * reach / max(alpha * alpha * self.smallest + sigma * sigma, floor)

    def _cancelled(self, alpha, sigma, floor) -> float:
        """Size of the terms that cancel in the logits."""
        return self._ratio(alpha, sigma, floor)

    def working_dtype(self, alpha, sigma, floor, exact: bool) -> torch.dtype | None:
        """In which the logits may be formed; None: not by terms that cancel."""
        size, double = self._cancelled(alpha, sigma, floor), torch.float64
        short = self.dtype != double and torch.finfo(self.dtype).eps * size < ALLOWED_SHORT
        if short and not exact:
            return self.dtype
        return double if torch.finfo(double).eps * size < ALLOWED else None

    def shares(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        """Responsibilities (n, K)."""
        return self._share(x, alpha, sigma, floor, work).T.to(x.dtype)


class Aligned(Stacked):
    """Isotropic and diagonal components; one noise level, or one for each coordinate (1, d)."""

    def __init__(self, parts: Components, log_weights: Tensor, dtype: torch.dtype) -> None:
        super().__init__(parts, log_weights, dtype)
        self.v = parts.variances  # (K, 1) or (K, d)
        self.square = parts.means.square()
        self.isotropic = self.v.shape[1] == 1
        self.alike = self.isotropic and bool((self.v == self.v[0]).all())
        if self.alike:  # what the fastest way needs, in every dtype
            norms, column = self.square.sum(1, keepdim=True), log_weights[:, None]
            self.norms = {dtype: norms.to(dtype), torch.float64: norms}
            self.column = {dtype: column.to(dtype), torch.float64: column}

    def _cancelled(self, alpha, sigma, floor) -> float:
        if isinstance(alpha, float) and isinstance(sigma, float):
            return self._ratio(alpha, sigma, floor)
        reach = alpha * self.square.amax(0).sqrt() + 4 * sigma
        level = self._level(alpha, sigma).amin(0, keepdim=True)
        floor = torch.as_tensor(floor, dtype=level.dtype, device=level.device)
        return (reach.square() / torch.maximum(level, floor)).sum().item()

    def _level(self, alpha, sigma) -> Tensor:
        return alpha * alpha * self.v + sigma * sigma

    def _inverse(self, alpha, sigma, floor) -> Tensor:
        return 1 / self._level(alpha, sigma).clamp_min(floor)

    def _logits(self, x: Tensor, alpha, inverse: Tensor, work, whole: bool) -> Tensor:
        """Logits (K, n); but for what all components share, unless ``whole``."""
        logs = inverse.log().sum(1, keepdim=True) * (self.parts.dim // inverse.shape[1])
        norms = (alpha * alpha * inverse * self.square).sum(1, keepdim=True)
        bias = self.log_weights[:, None] + 0.5 * (logs - norms)
        slope = (alpha * inverse * self.parts.means).to(work)
        x = x.to(work)
        if whole:
            bias, curvature = bias - self.constant, -0.5 * inverse
        else:
            curvature = 0.5 * (inverse.amin(0) - inverse)
        logits = torch.addmm(bias.to(work), slope, x.T)
        square = x.square() if inverse.shape[1] > 1 else x.square().sum(1, keepdim=True)
        square = square.clamp_max(torch.finfo(work).max)  # 0 times infinity is no number
        return logits.addmm_(curvature.to(work), square.T)

    def _share(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        """Responsibilities (K, n)."""
        if not (self.alike and isinstance(alpha, float) and isinstance(sigma, float)):
            inverse = self._inverse(alpha, sigma, floor)
            return softmax(self._logits(x, alpha, inverse, work, whole=False))
        # All of one variance: numbers of the host do, and no square of x.
        inverse = 1 / max(alpha * alpha * self.smallest + sigma * sigma, floor)
        bias = torch.add(self.column[work], self.norms[work], alpha=-0.5 * alpha * alpha * inverse)
        slope = self.means[work] * (alpha * inverse)
        return softmax(torch.addmm(bias, slope, x.to(work).T))

    def log_density(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        """Log-density (n,)."""
        inverse = self._inverse(alpha, sigma, floor)
        return log_sum_exp(self._logits(x, alpha, inverse, work, whole=True)).to(x.dtype)

    def denoised(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        """Posterior mean (n, d)."""
        share = self._share(x, alpha, sigma, floor, work).to(x.dtype)
        means = self.means[x.dtype]
        if self.alike and isinstance(alpha, float) and isinstance(sigma, float):
            level = alpha * alpha * self.smallest + sigma * sigma
            gain = alpha * self.smallest / level if level else 0.0
            keep = sigma * sigma / level if level else 1.0
            return (share.T @ (means * keep)).add_(x, alpha=gain)
        gain, keep = _gain_and_keep(alpha, sigma, self.v)
        return torch.addcmul(share.T @ (keep.to(x) * means), share.T @ gain.to(x), x)

    def score(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        """Gradient (n, d) of the log-density."""
        inverse = self._inverse(alpha, sigma, floor)
        share = self._share(x, alpha, sigma, floor, work).double()
        towards = share.T @ (alpha * inverse * self.parts.means)
        return torch.addcmul(towards, share.T @ inverse, x.double(), value=-1).to(x.dtype)


class Each(Aligned):
    """Isotropic components and one noise level for each sample, (n or 1, 1); always float64."""

    def cancels(self, alpha, sigma, floor) -> Tensor | bool:
        """Of which samples (n or 1, 1) the logits must not be formed by terms that cancel."""
        reach = alpha * self.parts.radius + 4 * sigma * math.sqrt(self.parts.dim)
        level = alpha * alpha * self.smallest + sigma * sigma
        floor = torch.as_tensor(floor, dtype=level.dtype, device=level.device)
        ratio = reach.square() / torch.maximum(level, floor)
        return torch.finfo(torch.float64).eps * ratio >= ALLOWED

    def _inverse(self, alpha, sigma, floor) -> Tensor:
        """(K, n or 1)."""
        return 1 / torch.clamp_min(self._level(*_rows(alpha, sigma)), *_rows(floor))

    def _logits(self, x: Tensor, alpha, inverse: Tensor, work, whole: bool) -> Tensor:
        (a,) = _rows(alpha)
        norms = a * a * inverse * self.square.sum(1, keepdim=True)
        bias = self.log_weights[:, None] + 0.5 * (self.parts.dim * inverse.log() - norms)
        logits = torch.addcmul(bias, a * inverse, self.parts.means @ x.double().T)
        curvature = -0.5 * inverse
        if whole:
            logits = logits - self.constant
        elif self.alike:
            return logits
        else:
            curvature = 0.5 * (inverse.amin(0) - inverse)
        square = x.double().square().sum(1).clamp_max(torch.finfo(torch.float64).max)
        return torch.addcmul(logits, curvature, square)

    def _share(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        inverse = self._inverse(alpha, sigma, floor)
        return softmax(self._logits(x, alpha, inverse, work, whole=False))

    def _spread(self, x: Tensor, share: Tensor, towards: Tensor, along: Tensor) -> Tensor:
        """``sum_k share_k (towards_k mu_k + along_k x)``, of factors (K, n or 1)."""
        centre = (share * towards).T @ self.parts.means
        return torch.addcmul(centre, (share * along).sum(0)[:, None], x.double()).to(x.dtype)

    def denoised(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        gain, keep = _gain_and_keep(*_rows(alpha, sigma), self.v)
        return self._spread(x, self._share(x, alpha, sigma, floor, work), keep, gain)

    def score(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        (a,), inverse = _rows(alpha), self._inverse(alpha, sigma, floor)
        share = self._share(x, alpha, sigma, floor, work)
        return self._spread(x, share, a * inverse, -inverse)


class Turned(Stacked):
    """Full components, one noise level; modes run along the first axis, components the second."""

    def __init__(self, parts: Components, log_weights: Tensor, dtype: torch.dtype) -> None:
        super().__init__(parts, log_weights, dtype)
        axes = parts.basis.permute(2, 0, 1)  # (mode, K, d)
        centres = (axes * parts.means).sum(-1, keepdim=True)
        self.table = torch.cat([axes, centres], -1)
        self.axes = self.table[..., :-1]
        self.v = parts.variances.T.contiguous()  # (mode, K)

    def _cancelled(self, alpha: float, sigma: float, floor: float) -> float:
        return 4 * math.sqrt(self._ratio(alpha, sigma, floor))

    def _whitened(self, x: Tensor, alpha, sigma, floor, work) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (K, n), whitened residuals (mode, K, n) and the scales (mode, K) that did it."""
        scale = (alpha * alpha * self.v + sigma * sigma).clamp_min(floor).rsqrt()
        table = (scale[..., None] * self.table).to(work).flatten(0, 1)
        residual = torch.addmm(table[:, -1:], table[:, :-1], x.to(work).T, beta=-alpha)
        residual = residual.view(*self.v.shape, len(x))
        bias = (self.log_weights + scale.log().sum(0))[:, None].to(work)
        if len(residual) > 8:
            logits = torch.sub(bias, residual.square().sum(0), alpha=0.5)
        else:  # no squares to store
            logits = torch.addcmul(bias, residual[0], residual[0], value=-0.5)
            for mode in residual[1:]:
                logits.addcmul_(mode, mode, value=-0.5)
        return logits, residual, scale

    def _share(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        """Responsibilities (K, n)."""
        return softmax(self._whitened(x, alpha, sigma, floor, work)[0])

    def log_density(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        """Log-density (n,)."""
        logits = self._whitened(x, alpha, sigma, floor, work)[0]
        return (log_sum_exp(logits) - self.constant).to(x.dtype)

    def _back(self, residual: Tensor, share: Tensor, scale: Tensor) -> Tensor:
        """``sum_k share_k U_k (scale_k residual_k)`` (n, d)."""
        factor = (scale[..., None] * self.axes).to(residual.dtype).flatten(0, 1)
        return (residual * share).flatten(0, 1).T @ factor

    def denoised(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        """Posterior mean (n, d)."""
        logits, residual, scale = self._whitened(x, alpha, sigma, floor, work)
        share = softmax(logits)
        # The gain alpha v / level, less the scale that whitened.
        moved = self._back(residual, share, alpha * self.v * scale)
        return moved.add_(share.T @ self.means[work]).to(x.dtype)

    def score(self, x: Tensor, alpha, sigma, floor, work) -> Tensor:
        """Gradient (n, d) of the log-density."""
        logits, residual, scale = self._whitened(x, alpha, sigma, floor, work)
        return self._back(residual, softmax(logits), -scale).to(x.dtype)


def _rows(*coefficients) -> tuple:
    """Coefficients (n or 1, 1) as rows (1, n or 1), float64."""
    return tuple(c.double().T if isinstance(c, Tensor) else c for c in coefficients)


def _gain_and_keep(alpha, sigma, v: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the state and of its own mean in the posterior mean of a component."""
    noise = sigma * sigma
    level = alpha * alpha * v + noise
    safe = level.clamp_min(TINY)
    return alpha * v / safe, torch.where(level > 0, noise / safe, torch.ones_like(level))


def _excess(logits: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Logits less the largest of the first axis, cut at ``least``, and the largest.

    The cut keeps ``exp`` off its slow path for numbers that underflow (8x faster).
    """
    most = logits.amax(0)
    finite = most.clamp_min(torch.finfo(logits.dtype).min)  # all of them may have overflown
    return (logits - finite).clamp_(min=least), most


def softmax(logits: Tensor) -> Tensor:
    """Over the first axis, where it is several times faster than ``torch.softmax``.

    A share that is zero to any rounding is a number near the smallest of its dtype.
    """
    least = 0.9 * math.log(torch.finfo(logits.dtype).tiny)
    share = _excess(logits, least)[0].exp_()
    return share / share.sum(0)


def log_sum_exp(logits: Tensor) -> Tensor:
    """Over the first axis; terms below e^-60 of the largest cannot change a float64 sum."""
    excess, most = _excess(logits, -60.0)
    return excess.exp_().sum(0).log_().add_(most)
