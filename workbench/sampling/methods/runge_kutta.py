r"""Runge-Kutta methods for the probability flow, in rho or in t.

In rho the flow is :math:`d(x/\alpha)/d\rho = \hat\epsilon`, the same for every process; in t it is
:math:`\dot x = p\,x + q D` with :math:`p = \dot\sigma/\sigma`, :math:`q = \dot\alpha - p\alpha`.
Both are combinations of the state and of denoised states, so each method is a few rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.program import Combine, Evaluate, Row

__all__ = ["Euler", "Heun"]

Axis = Annotated[
    Literal["rho", "t"], Param("the variable the method steps in: rho = sigma/alpha, or time")
]


def linear_velocity(process: Process, node: Node) -> tuple[float, float]:
    """``(p, q)`` of ``dx/dt = p x + q D`` at a node."""
    c = process(node.t)
    p = c.d_sigma / node.sigma
    return p, c.d_alpha - p * node.alpha


@dataclass(frozen=True)
class Euler(Sampler):
    """Explicit Euler for the probability flow. Order 1, one evaluation a step.

    In rho it is DDIM without noise; in t it is the plain Euler of flow matching.

    Source: Song et al. 2021, arXiv:2011.13456 (probability flow); Karras et al. 2022,
    arXiv:2206.00364.
    """

    axis: Axis = "rho"

    order = 1
    stochastic = False

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if self.axis == "rho":
            return exponential_step(a, b)
        h = b.t - a.t
        p, q = linear_velocity(process, a)
        return Evaluate("D", "x", a), Combine("x", {"x": 1 + h * p, "D": h * q})


@dataclass(frozen=True)
class Heun(Sampler):
    r"""Heun's method (the explicit trapezium) for the probability flow. Order 2.

    Two evaluations a step; one where the step leaves pure noise in rho (alpha = 0, where the rule
    is singular and Euler is exact in the limit) and one in a final step to sigma = 0.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """

    axis: Axis = "rho"

    order = 2
    stochastic = False

    def evaluations(self, a: Node, b: Node) -> int:
        return 1 if self.axis == "rho" and a.alpha == 0 else 2

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if self.axis == "t":
            return self._in_time(process, a, b)
        if a.alpha == 0:
            return exponential_step(a, b)
        ratio = b.sigma / a.sigma
        half = 0.5 * b.alpha * (b.rho - a.rho)
        return (
            Evaluate("D1", "x", a),
            Combine("y", {"x": ratio, "D1": b.alpha - a.alpha * ratio}),
            Evaluate("D2", "y", b),
            Combine("x", {"x": ratio, "D1": half * (1 / b.rho - 2 / a.rho), "D2": -half / b.rho}),
        )

    @staticmethod
    def _in_time(process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        h = b.t - a.t
        (p, q), (p_end, q_end) = linear_velocity(process, a), linear_velocity(process, b)
        again = 1 + h * p_end  # the predictor enters the second slope
        return (
            Evaluate("D1", "x", a),
            Combine("y", {"x": 1 + h * p, "D1": h * q}),
            Evaluate("D2", "y", b),
            Combine(
                "x",
                {
                    "x": 1 + 0.5 * h * (p + p_end * (1 + h * p)),
                    "D1": 0.5 * h * q * again,
                    "D2": 0.5 * h * q_end,
                },
            ),
        )
