r"""Reversible Heun: a second-order method whose every step can be undone exactly.

It carries two states, of which one is moved by the slope at the other:

.. math:: \hat y' = 2y - \hat y + h\,k,\qquad k' = f(\hat y'),\qquad
          y' = y + \tfrac{h}{2}(k + k').

The same step with -h leads back from :math:`(y', \hat y', k')` to :math:`(y, \hat y, k)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.methods.runge_kutta import Axis, linear_velocity
from workbench.sampling.program import Combine, Evaluate, Program, Row, Step

__all__ = ["ReversibleHeun"]


@dataclass(frozen=True)
class ReversibleHeun(Sampler):
    r"""Reversible Heun for the probability flow, in rho (of x/alpha) or in t.

    Order 2, one evaluation a step and one more in the first. Registers ``x``, ``hat`` (the second
    state) and ``k`` (its slope) hold all that :meth:`back` needs to undo the run. As with leapfrog,
    the two states drift apart where the flow contracts (in rho by about the ratio of the largest
    noise level to the data's spread): it wants many steps.

    A step from pure noise (alpha = 0) in rho and a final one to sigma = 0 are the exponential ones
    and are not undone.

    Source: Kidger, Foster, Li & Lyons 2021, arXiv:2105.13493, algorithms 1 and 2.
    """

    axis: Axis = "rho"

    order = 2
    stochastic = False

    @property
    def in_time(self) -> bool:
        return self.axis == "t"

    def nfe(self, grid: Grid) -> int:
        return grid.steps + bool(self._own(grid))

    def _own(self, grid: Grid) -> list[tuple[Node, Node]]:
        """The steps that are reversible Heun's."""
        return [
            (a, b) for a, b, own in self._steps(grid) if own and (a.alpha > 0 or self.axis == "t")
        ]

    def _program(self, process: Process, grid: Grid) -> Program:
        own, steps = self._own(grid), []
        for pair in pairwise(grid.nodes):
            if pair not in own:
                rows = exponential_step(*pair)
            else:
                rows = self._step(process, *pair)
                if pair == own[0]:
                    first = (*self._slope(process, pair[0], "x"), Combine("hat", {"x": 1.0}))
                    rows = (*first, *rows)
            steps.append(Step(*pair, rows))
        return Program(tuple(steps))

    def back(self, process: Process, grid: Grid) -> Program:
        """The program that undoes the run on ``grid``: from the registers ``x``, ``hat`` and ``k``
        that it left (see ``registers`` of :func:`workbench.sampling.walk`) to those it began with.
        """
        pairs = [(b, a) for a, b in reversed(self._own(grid))]
        return Program(tuple(Step(a, b, self._step(process, a, b)) for a, b in pairs))

    def _slope(self, process: Process, node: Node, at: str) -> tuple[Row, ...]:
        """Register k, the slope of the state ``at``: the noise prediction in rho, velocity in t."""
        of = "denoised"
        if self.axis == "rho":
            p, q = 1 / node.sigma, -node.alpha / node.sigma
        elif node.sigma > 0:
            p, q = linear_velocity(process, node)
        else:  # D no longer tells the slope there
            c = process(node.t)
            p, q, of = c.f, -0.5 * c.g2, "score"
        pull = process.shift(node.t)[1] if self.axis == "t" else 0.0
        return Evaluate("D", at, node, of), Combine("k", {at: p, "D": q, "mu": pull})

    def _step(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if self.axis == "t":
            h, grown, scale = b.t - a.t, 1.0, 1.0
            moved = process.shift(a.t)[0] - process.shift(b.t)[0]  # of x - m mu, as m moves
        else:
            h, grown, scale = b.rho - a.rho, b.alpha / a.alpha, b.alpha
            moved = 0.0
        h = h * scale
        return (
            Combine("hat", {"x": 2 * grown, "hat": -grown, "k": h, "mu": moved}),
            Combine("x", {"x": grown, "k": 0.5 * h, "mu": moved}),
            *self._slope(process, b, "hat"),
            Combine("x", {"x": 1.0, "k": 0.5 * h}),
        )
