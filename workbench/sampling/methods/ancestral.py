r"""Samplers that undo one transition of a chain: DDPM and reverse diffusion.

Between a node and the noisier one before it the forward process is a Gaussian transition,

.. math:: x = A x' + \sqrt{v}\, z,\qquad A = \alpha/\alpha',\qquad v = \sigma^2 - A^2\sigma'^2,

which under VP is :math:`A^2 = 1 - \beta`, :math:`v = \beta`, and under VE :math:`A = 1`,
:math:`v = \sigma^2 - \sigma'^2`. Both methods need these two numbers and nothing of t.

DDPM undoes a transition given the data. So it also serves the chains of ``RDDM`` and ``Resfusion``,
which keep more of the state than alpha/alpha' and add a share of the residual mu - x0 (see
``Process.carried``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Node
from workbench.sampling.methods.base import Sampler, chain_factor, exponential_step
from workbench.sampling.program import Combine, Evaluate, Row


def transition(a: Node, b: Node) -> tuple[float, float]:
    """``(A, v)`` of the forward transition from ``b`` to the noisier node ``a``."""
    kept = a.alpha / b.alpha
    return kept, _added(a, b, kept)


def _added(a: Node, b: Node, kept: float) -> float:
    """The variance v that a transition which keeps A = ``kept`` of the state adds."""
    return max(0.0, (a.sigma - kept * b.sigma) * (a.sigma + kept * b.sigma))


@dataclass(frozen=True)
class DDPM(Sampler):
    r"""Ancestral sampling: a draw from the posterior of one transition, the denoised state as data.

    .. math:: x' = \alpha' D + \tfrac{A\sigma'^2}{\sigma^2}\,(x - \alpha D) + s z

    with :math:`x - m\mu` for x under an affine process.

    The variance :math:`s^2` is small, that of the posterior for data of one point,
    :math:`v\sigma'^2/\sigma^2` (DDIM with eta 1), or large, that of the transition, v (beta under
    VP: right for data of unit variance). Where nothing of the state is kept it is small. Weak order
    1, one evaluation a step.

    Small, it is the published sampler of the chains of ``IRSDE`` (its posterior sampling), ``RDDM``
    (with their eta 1) and ``Resfusion``.

    Sources: Ho, Jain & Abbeel 2020, arXiv:2006.11239, eq. 7 and section 3.2; Liu et al. 2024
    (RDDM), arXiv:2308.13712; Shi et al. 2024 (Resfusion), arXiv:2311.14900.
    """

    variance: Annotated[
        Literal["small", "large"], Param("of the posterior, or of the forward transition")
    ] = "small"

    order = 1
    stochastic = True

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        kept = chain_factor(process, a, b)
        evaluate, combine = exponential_step(a, b, 1.0, kept)
        if self.variance == "small" or kept == 0:
            return evaluate, combine
        return evaluate, Combine(combine.out, dict(combine.terms), math.sqrt(_added(a, b, kept)))


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    r"""Reverse diffusion: the forward transition's drift and noise, turned round.

    .. math:: x' = (2 - A)\, x + \tfrac{1+\eta}{2}\, v\, s(x) + \sqrt{\eta v}\, z

    and, under an affine process, :math:`-(m - A m')\mu` more. eta 1 is the predictor of the reverse
    SDE, eta 0 that of the probability flow (half of the score's term, no noise). Where it leaves
    pure noise (A = 0) the first step is the exponential one. Order 1, one evaluation a step.

    Source: Song et al. 2021, arXiv:2011.13456, appendices E and F, algorithms 2 and 3.
    """

    eta: Annotated[float, Param("noise: 0 probability flow, 1 reverse SDE", ge=0, le=10)] = 1.0

    order = 1

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if a.alpha == 0:
            return exponential_step(a, b, min(self.eta, 1.0))
        kept, v = transition(a, b)
        pull = 0.5 * (1 + self.eta) * v / (a.sigma * a.sigma)
        moved = process.shift(a.t)[0] - process.shift(b.t)[0]
        terms = {"x": 2 - kept - pull, "D": pull * a.alpha, "mu": (1 - kept) * moved}
        return Evaluate("D", "x", a), Combine("x", terms, math.sqrt(self.eta * v))
