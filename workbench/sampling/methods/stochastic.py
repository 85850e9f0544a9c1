"""Samplers of the reverse SDE."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.methods.runge_kutta import linear_velocity
from workbench.sampling.program import Combine, Evaluate, Row

__all__ = ["EulerMaruyama"]


@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    r"""Euler-Maruyama for the reverse-time family of SDEs, in t.

    .. math:: dx = \left[f x - \tfrac{1+\eta}{2} g^2 s\right] dt + \sqrt{\eta}\, g\, dW

    eta 1 is the reverse SDE, eta 0 the probability flow, larger values stir more. Weak order 1, one
    evaluation a step. Where g is infinite (alpha = 0) the first step is the exponential one.

    Source: Song et al. 2021, arXiv:2011.13456, eq. 6 and appendix D.
    """

    eta: Annotated[float, Param("noise: 0 probability flow, 1 reverse SDE", ge=0, le=10)] = 1.0

    order = 1

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if a.alpha == 0 and self.eta > 0:
            return exponential_step(a, b, min(self.eta, 1.0))
        h = b.t - a.t
        p, q = linear_velocity(process, a)
        g2 = process(a.t).g2 if self.eta > 0 else 0.0
        stir = 0.5 * self.eta * g2 / (a.sigma * a.sigma)
        return (
            Evaluate("D", "x", a),
            Combine(
                "x",
                {"x": 1 + h * (p + stir), "D": h * (q - stir * a.alpha)},
                noise=math.sqrt(self.eta * g2 * -h),
            ),
        )
