r"""What a state says of the components of a mixture, and its averages over them.

With responsibilities :math:`r_k`, the components' scores :math:`s_k`, posterior means :math:`m_k`
and posterior covariances :math:`P_k`, and :math:`s = \sum r_k s_k`, :math:`D = \sum r_k m_k`,

.. math:: J = \sum_k r_k\,[G_k + (m_k - D)(s_k - s)^\top],\qquad
          H = \sum_k r_k\,[-M_k^{-1} + (s_k - s)(s_k - s)^\top],

.. math:: \operatorname{Cov}[x_0|x] = \sum_k r_k\,[P_k + (m_k - D)(m_k - D)^\top],\qquad
          \dot D = \sum_k r_k\,[\dot m_k + (m_k - D)\,\dot\ell_k],

:math:`\dot\ell_k` the time derivative of a component's log-density: none divides by alpha or sigma,
and centred as they are nothing cancels far from the data.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from workbench.denoisers.components import Level
from workbench.denoisers.stacked import log_sum_exp

__all__ = ["Posterior"]


class Posterior:
    """The components at a noise level as states ``x`` (n, d) see them; layout (K, d, n)."""

    def __init__(self, level: Level, log_weights: Tensor, x: Tensor) -> None:
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
        return log_sum_exp(self._logits)

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
