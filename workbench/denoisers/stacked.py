r"""The posterior of a mixture at one noise level for all samples: a few matrix products.

The components are stacked along the first axis, where a softmax is fast, and their scales are
folded into the factors beforehand. Axis-aligned components, with :math:`\ell_k = \alpha^2 c_k +
\sigma^2` per coordinate, have the logits

.. math:: \log w_k - \tfrac12\sum\log\ell_k - \tfrac12\sum\alpha^2\mu_k^2/\ell_k
          + x\cdot(\alpha\mu_k/\ell_k) - \tfrac12 x^2\cdot(1/\ell_k);

full ones, with :math:`C_k = U_k\Lambda_k U_k^\top`, whiten the state by the stacked factors
:math:`W_k = \ell_k^{-1/2} U_k^\top`: one product gives all residuals, one leads back. Terms of the
size (reach / noise)² cancel in the first, of its square root in the second; the coefficients alone,
never the samples, decide in which dtype that is small, or that it must not happen at all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from workbench.denoisers.components import TINY, Components

__all__ = ["Aligned", "Turned", "log_sum_exp", "softmax"]

#: Largest rounding of a logit from terms that cancel, by the dtype of the arithmetic.
ALLOWED = {torch.float64: 1e-9}
ALLOWED_SINGLE = 1e-5


class Stacked:
    """Components at one noise level (floats); states (n, d) in, (n, d) out.

    Args:
        parts: the components.
        log_weights: (K,).
        dtype: of the states.
    """

    def __init__(self, parts: Components, log_weights: Tensor, dtype: torch.dtype) -> None:
        self.parts, self.log_weights, self.dtype = parts, log_weights, dtype
        self.means = {dtype: parts.means.to(dtype), torch.float64: parts.means}
        self.smallest = parts.smallest

    def working_dtype(
        self, alpha: float, sigma: float, floor: float, exact: bool
    ) -> torch.dtype | None:
        """In which the logits may be formed; None: not by terms that cancel."""
        reach = alpha * self.parts.radius + 4 * sigma * math.sqrt(self.parts.dim)
        level = max(alpha * alpha * self.smallest + sigma * sigma, floor)
        error = self.cancelled(reach * reach / level)
        for dtype in (torch.float64,) if exact else (self.dtype, torch.float64):
            if torch.finfo(dtype).eps * error < ALLOWED.get(dtype, ALLOWED_SINGLE):
                return dtype
        return None

    def denoise(self, x: Tensor, alpha: float, sigma: float, floor: float, work) -> Tensor:
        """Posterior mean."""
        raise NotImplementedError

    def score(self, x: Tensor, alpha: float, sigma: float, floor: float, work) -> Tensor:
        """Gradient of the log-density."""
        raise NotImplementedError

    def logits(self, x: Tensor, alpha: float, sigma: float, floor: float, work) -> Tensor:
        """Logarithms (K, n) of weight times density."""
        raise NotImplementedError


class Aligned(Stacked):
    """Isotropic and diagonal components."""

    def __init__(self, parts: Components, log_weights: Tensor, dtype: torch.dtype) -> None:
        super().__init__(parts, log_weights, dtype)
        self.v = parts.variances  # (K, 1) or (K, d)
        self.square = parts.means.square()
        if self.v.shape[1] == 1:
            self.square = self.square.sum(1, keepdim=True)
        self.alike = self.v.shape[1] == 1 and bool((self.v == self.v[0]).all())
        if self.alike:  # nothing but sums: in every dtype
            norms = self.square
            self.norms = {dtype: norms.to(dtype), torch.float64: norms}
            column = log_weights[:, None]
            self.column = {dtype: column.to(dtype), torch.float64: column}

    @staticmethod
    def cancelled(ratio: float) -> float:
        return ratio

    def _inverse(self, alpha: float, sigma: float, floor: float) -> Tensor:
        return 1 / (alpha * alpha * self.v + sigma * sigma).clamp_min(floor)

    def _logits(self, x: Tensor, alpha: float, inverse: Tensor, work, whole: bool) -> Tensor:
        """Logits (K, n); but for what all components share, unless ``whole``."""
        times = self.parts.dim // self.v.shape[1]
        bias = self.log_weights[:, None] + 0.5 * (
            times * inverse.log() - alpha * alpha * self.square * inverse
        ).sum(1, keepdim=True)
        slope = (alpha * inverse * self.parts.means).to(work)
        x = x.to(work)
        if whole:
            curvature = -0.5 * inverse
            bias = bias - 0.5 * self.parts.dim * math.log(2 * math.pi)
        else:
            curvature = 0.5 * (inverse.amin(0) - inverse)
        logits = torch.addmm(bias.to(work), slope, x.T)
        square = x.square() if self.v.shape[1] > 1 else x.square().sum(1, keepdim=True)
        square = square.clamp_max(torch.finfo(work).max)  # 0 times infinity is no number
        return logits.addmm_(curvature.to(work), square.T)

    def _alike(self, x: Tensor, alpha: float, sigma: float, floor: float, work) -> Tensor:
        """Responsibilities where all have one variance: numbers of the host do, no square of x."""
        inverse = 1 / max(alpha * alpha * self.smallest + sigma * sigma, floor)
        bias = torch.add(self.column[work], self.norms[work], alpha=-0.5 * alpha * alpha * inverse)
        slope = self.means[work] * (alpha * inverse)
        return softmax(torch.addmm(bias, slope, x.to(work).T))

    def logits(self, x, alpha, sigma, floor, work) -> Tensor:
        return self._logits(x, alpha, self._inverse(alpha, sigma, floor), work, whole=True)

    def share(self, x, alpha, sigma, floor, work) -> Tensor:
        if self.alike:
            return self._alike(x, alpha, sigma, floor, work)
        inverse = self._inverse(alpha, sigma, floor)
        return softmax(self._logits(x, alpha, inverse, work, whole=False))

    def denoise(self, x, alpha, sigma, floor, work) -> Tensor:
        share = self.share(x, alpha, sigma, floor, work).to(x.dtype)
        means = self.means[x.dtype]
        if self.alike:
            level = alpha * alpha * self.smallest + sigma * sigma
            gain = alpha * self.smallest / level if level else 0.0
            keep = sigma * sigma / level if level else 1.0
            return (share.T @ (means * keep)).add_(x, alpha=gain)
        level = alpha * alpha * self.v + sigma * sigma
        gain = alpha * self.v / level.clamp_min(TINY)
        keep = sigma * sigma / level if sigma else (level == 0).double()
        return torch.addcmul(share.T @ (keep.to(x) * means), share.T @ gain.to(x), x)

    def score(self, x, alpha, sigma, floor, work) -> Tensor:
        inverse = self._inverse(alpha, sigma, floor)
        share = self.share(x, alpha, sigma, floor, work).double()
        towards = share.T @ (alpha * inverse * self.parts.means)
        return torch.addcmul(towards, share.T @ inverse, x.double(), value=-1).to(x.dtype)


class Turned(Stacked):
    """Components with full covariances; modes run along the first axis, components the second."""

    def __init__(self, parts: Components, log_weights: Tensor, dtype: torch.dtype) -> None:
        super().__init__(parts, log_weights, dtype)
        axes = parts.basis.permute(2, 0, 1)  # (mode, K, d)
        centres = (axes * parts.means).sum(-1, keepdim=True)
        self.table = torch.cat([axes, centres], -1)
        self.axes = self.table[..., :-1]
        self.v = parts.variances.T.contiguous()  # (mode, K)

    @staticmethod
    def cancelled(ratio: float) -> float:
        return 4 * math.sqrt(ratio)

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

    def logits(self, x, alpha, sigma, floor, work) -> Tensor:
        constant = 0.5 * self.parts.dim * math.log(2 * math.pi)
        return self._whitened(x, alpha, sigma, floor, work)[0] - constant

    def share(self, x, alpha, sigma, floor, work) -> Tensor:
        return softmax(self._whitened(x, alpha, sigma, floor, work)[0])

    def _back(self, residual: Tensor, share: Tensor, scale: Tensor) -> Tensor:
        """``sum_k share_k U_k (scale_k residual_k)`` (n, d)."""
        factor = (scale[..., None] * self.axes).to(residual.dtype).flatten(0, 1)
        return (residual * share).flatten(0, 1).T @ factor

    def denoise(self, x, alpha, sigma, floor, work) -> Tensor:
        logits, residual, scale = self._whitened(x, alpha, sigma, floor, work)
        share = softmax(logits)
        # The gain alpha v / level, less the scale that whitened.
        moved = self._back(residual, share, alpha * self.v * scale)
        return moved.add_(share.T @ self.means[work]).to(x.dtype)

    def score(self, x, alpha, sigma, floor, work) -> Tensor:
        logits, residual, scale = self._whitened(x, alpha, sigma, floor, work)
        return self._back(residual, softmax(logits), -scale).to(x.dtype)


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
