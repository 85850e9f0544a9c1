r"""Samplers that undo one transition of a chain: DDPM and reverse diffusion.

Between a node and the noisier one before it the forward process is a Gaussian transition,

.. math:: x = A x' + \sqrt{v}\, z,\qquad A = \alpha/\alpha',\qquad v = \sigma^2 - A^2\sigma'^2,

which under VP is :math:`A^2 = 1 - \beta`, :math:`v = \beta`, and under VE :math:`A = 1`,
:math:`v = \sigma^2 - \sigma'^2`. Both methods need these two numbers and nothing of t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.program import Combine, Evaluate, Row

__all__ = ["DDPM", "ReverseDiffusion", "transition"]


def transition(a: Node, b: Node) -> tuple[float, float]:
    """``(A, v)`` of the forward transition from ``b`` to the noisier node ``a``."""
    kept = a.alpha / b.alpha
    return kept, max(0.0, (a.sigma - kept * b.sigma) * (a.sigma + kept * b.sigma))


@dataclass(frozen=True)
class DDPM(Sampler):
    r"""Ancestral sampling: a draw from the posterior of one transition, the denoised state as data.

    .. math:: x' = \alpha' D + \tfrac{A\sigma'^2}{\sigma^2}\,(x - \alpha D) + s z

    The variance :math:`s^2` is small, that of the posterior for data of one point,
    :math:`v\sigma'^2/\sigma^2` (DDIM with eta 1), or large, that of the transition, v (beta under
    VP: right for data of unit variance). From pure noise it is small. Weak order 1, one evaluation
    a step.

    Source: Ho, Jain & Abbeel 2020, arXiv:2006.11239, eq. 7 and section 3.2.
    """

    variance: Annotated[
        Literal["small", "large"], Param("of the posterior, or of the forward transition")
    ] = "small"

    order = 1
    stochastic = True

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        evaluate, combine = exponential_step(a, b, 1.0)
        if self.variance == "small" or a.alpha == 0:
            return evaluate, combine
        _, v = transition(a, b)
        return evaluate, Combine(combine.out, dict(combine.terms), math.sqrt(v))


@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    r"""Reverse diffusion: the forward transition's drift and noise, turned round.

    .. math:: x' = (2 - A)\, x + \tfrac{1+\eta}{2}\, v\, s(x) + \sqrt{\eta v}\, z

    eta 1 is the predictor of the reverse SDE, eta 0 that of the probability flow (half of the
    score's term, no noise). Where it leaves pure noise (A = 0) the first step is the exponential
    one. Order 1, one evaluation a step.

    Source: Song et al. 2021, arXiv:2011.13456, appendices E and F, algorithms 2 and 3.
    """

    eta: Annotated[float, Param("noise: 0 probability flow, 1 reverse SDE", ge=0, le=10)] = 1.0

    order = 1

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if a.alpha == 0:
            return exponential_step(a, b, min(self.eta, 1.0))
        kept, v = transition(a, b)
        pull = 0.5 * (1 + self.eta) * v / (a.sigma * a.sigma)
        return (
            Evaluate("D", "x", a),
            Combine("x", {"x": 2 - kept - pull, "D": pull * a.alpha}, math.sqrt(self.eta * v)),
        )
