"""What every sampler is: parameters, an order, and a program for a grid."""

from __future__ import annotations

import math

from workbench.params import Parameterised
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.program import Combine, Evaluate, Program, Row, Step

__all__ = ["Sampler", "exponential_step"]


class Sampler(Parameterised):
    """Base of the samplers that take one step from a node to the next.

    A subclass is a frozen dataclass that says its ``order`` (of the global error: strong for
    deterministic methods, weak for stochastic ones), whether it is ``stochastic``, and the rows of
    one step. A step to sigma = 0 is the same for all: the denoised state.
    """

    order: int
    stochastic: bool

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        """The rows from node ``a`` to node ``b``, both with sigma > 0."""
        raise NotImplementedError

    def evaluations(self, a: Node, b: Node) -> int:
        """How many denoiser evaluations the step from ``a`` to ``b`` (sigma > 0) takes."""
        return 1

    def program(self, process: Process, grid: Grid) -> Program:
        """The whole run as rows; ``process`` is asked only by methods defined in t."""
        return Program(
            tuple(
                Step(a, b, self.rows(process, a, b) if b.sigma > 0 else exponential_step(a, b))
                for a, b in zip(grid.nodes, grid.nodes[1:], strict=False)
            )
        )

    def nfe(self, grid: Grid) -> int:
        """Number of denoiser evaluations on ``grid``. Steps are not evaluations."""
        pairs = zip(grid.nodes, grid.nodes[1:], strict=False)
        return sum(self.evaluations(a, b) if b.sigma > 0 else 1 for a, b in pairs)


def exponential_step(a: Node, b: Node, eta: float = 0.0) -> tuple[Row, ...]:
    r"""From ``a`` to ``b`` with the denoised state held constant; regular at both ends.

    .. math:: x' = \alpha' D + \sqrt{\sigma'^2 - s^2}\,\hat\epsilon + s z,\qquad
              s = \eta\,\sigma'\sqrt{1 - \rho'^2/\rho^2}

    At ``alpha = 0`` it is the exact step of the limit, at ``sigma' = 0`` it is ``alpha' D``.
    """
    ratio = b.sigma * a.alpha / (b.alpha * a.sigma)  # rho'/rho, 0 at pure noise
    fresh = eta * b.sigma * math.sqrt(max(0.0, 1.0 - ratio * ratio))
    kept = math.sqrt(max(0.0, b.sigma * b.sigma - fresh * fresh)) if eta else b.sigma
    return (
        Evaluate("D", "x", a),
        Combine("x", {"x": kept / a.sigma, "D": b.alpha - a.alpha * kept / a.sigma}, fresh),
    )
