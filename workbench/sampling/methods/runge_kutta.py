r"""Runge-Kutta methods for the probability flow, in rho or in t.

In rho the flow is :math:`dy/d\rho = \hat\epsilon = (y - D)/\rho` for :math:`y = x/\alpha`, the same
for every process; in t it is :math:`\dot x = p\,u + q D + \dot m\mu` with
:math:`p = \dot\sigma/\sigma`, :math:`q = \dot\alpha - p\alpha` and the core variable
:math:`u = x - m\mu` (x itself where there is no condition mu). In both a slope is a combination of
a state and of its denoised state, so a method is its Butcher tableau and the rows follow.

The rows hold u. Where t steps x from a to b, :math:`x_b = x_a + h\sum_j w_j k_j`, they hold
:math:`u_b = u_a + h\sum_j w_j k_j - (m_b - m_a)\mu`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.program import Combine, Evaluate, Row

Axis = Annotated[
    Literal["rho", "t"], Param("the variable the method steps in: rho = sigma/alpha, or time")
]


def linear_velocity(process: Process, node: Node, known=None) -> tuple[float, float]:
    """``(p, q)`` of ``dx/dt = p u + q D + m' mu`` at a node; ``known``: ``process(node.t)``."""
    c = known or process(node.t)
    p = c.d_sigma / node.sigma if node.sigma else math.inf
    if not (math.isfinite(p) and math.isfinite(c.d_alpha)):
        raise ValueError(
            f"alpha or sigma of {process!r} changes infinitely fast at t = {node.t:g}, where a "
            'method in t cannot go; take one in rho (axis="rho") or a grid that keeps off that t.'
        )
    return p, c.d_alpha - p * node.alpha


@dataclass(frozen=True)
class RungeKutta(Sampler):
    """Base of the explicit Runge-Kutta methods: a subclass is a Butcher tableau.

    ``stages`` has one row per evaluation: its place c in the step and the weights of the slopes
    before it; ``weights`` are those of the whole step.

    Where a step in rho leaves pure noise (alpha = 0) every method takes Euler's step, exact in that
    limit. Where a step in t ends at sigma = 0, slopes there are formed with the score.
    """

    axis: Axis = "rho"

    stages = ((0.0, ()),)
    weights = (1.0,)

    @property
    def in_time(self) -> bool:
        return self.axis == "t"

    def evaluations(self, a: Node, b: Node) -> int:
        return 1 if self.axis == "rho" and a.alpha == 0 else len(self.stages)

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if self.axis == "t":
            return self._in_t(process, a, b)
        return exponential_step(a, b) if a.alpha == 0 else self._in_rho(a, b)

    def _in_t(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        h, rows, slopes = b.t - a.t, [], []
        begin, _ = process.shift(a.t)

        def state(shift: float, weights) -> dict[str, float]:
            made = {"x": 1.0, "mu": begin - shift}
            for weight, slope in zip(weights, slopes, strict=True):
                _add(made, slope, h * weight)
            return made

        for i, (place, before) in enumerate(self.stages):
            node, (at, out) = _at_time(process, a, b, place), _names(i)
            shift, pull = process.shift(node.t)
            here = state(shift, before)
            if i:
                rows.append(Combine(at, here))
            if node.sigma == 0:
                c = process(node.t)
                p, q, of = c.f, -0.5 * c.g2, "score"
            else:
                p, q = linear_velocity(process, node)
                of = "denoised"
            rows.append(Evaluate(out, at, node, of))
            slopes.append({out: q, "mu": pull})
            _add(slopes[-1], here, p)
        return (*rows, Combine("x", state(process.shift(b.t)[0], self.weights)))

    def _in_rho(self, a: Node, b: Node) -> tuple[Row, ...]:
        """Each stage is DDIM's step to it, exact in x, and what slopes differ from the first:
        (k_j - k_1) = (D_1 - D_j + h sum_l a_jl (k_l - k_1)) / rho_j holds no x, so nothing cancels.
        """
        h, rows, apart = b.rho - a.rho, [], []

        def state(node: Node, weights) -> dict[str, float]:
            kept = node.sigma / a.sigma
            made = {"x": kept, "D": node.alpha - a.alpha * kept}
            scale = node.alpha * h
            for weight, slope in zip(weights, apart, strict=True):
                if weight and slope:
                    _add(made, slope, scale * weight)
            return made

        for i, (place, before) in enumerate(self.stages):
            if not i:
                rows.append(Evaluate("D", "x", a))
                apart.append({})
                continue
            node, (at, out) = _at_rho(a, b, place), _names(i)
            rows += Combine(at, state(node, before)), Evaluate(out, at, node)
            inverse = 1 / node.rho
            apart.append({"D": inverse, out: -inverse})
            for weight, slope in zip(before, apart[:i], strict=True):
                if weight and slope:
                    _add(apart[-1], slope, h * weight * inverse)
        return (*rows, Combine("x", state(b, self.weights)))


def _at_time(process: Process, a: Node, b: Node, place: float) -> Node:
    if place in (0, 1):
        return b if place else a
    t = a.t + place * (b.t - a.t)
    c = process(t)
    return Node(t, c.alpha, c.sigma)


def _at_rho(a: Node, b: Node, place: float) -> Node:
    """Between two nodes in rho, with the alpha of the first: D asks for rho alone."""
    if place in (0, 1):
        return b if place else a
    return Node(a.t, a.alpha, a.alpha * (a.rho + place * (b.rho - a.rho)))


@cache
def _names(stage: int) -> tuple[str, str]:
    """Registers of a stage's state and evaluation."""
    return ("y" + str(stage + 1), "D" + str(stage + 1)) if stage else ("x", "D")


def _add(into: dict[str, float], terms: dict[str, float], weight: float) -> None:
    for name, c in terms.items():
        into[name] = into.get(name, 0.0) + weight * c


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Explicit Euler for the probability flow. Order 1, one evaluation a step.

    In rho it is DDIM without noise; in t it is the plain Euler of flow matching.

    Source: Song et al. 2021, arXiv:2011.13456 (probability flow); Karras et al. 2022,
    arXiv:2206.00364.
    """

    order = 1

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        return exponential_step(a, b) if self.axis == "rho" else super().rows(process, a, b)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's method (the explicit trapezium) for the probability flow. Order 2, two evaluations.

    One evaluation where the step leaves pure noise in rho and in a final step to sigma = 0.

    Source: Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """

    order = 2
    stages = ((0.0, ()), (1.0, (1.0,)))
    weights = (0.5, 0.5)

    def _in_rho(self, a: Node, b: Node) -> tuple[Row, ...]:
        """That of any method, worked out: half the time of the default sampler's first call."""
        kept = b.sigma / a.sigma
        lead, half = b.alpha - a.alpha * kept, 0.5 * b.alpha * (b.rho - a.rho) / b.rho
        return (
            Evaluate("D", "x", a),
            Combine("y2", {"x": kept, "D": lead}),
            Evaluate("D2", "y2", b),
            Combine("x", {"x": kept, "D": lead + half, "D2": -half}),
        )


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The explicit midpoint method for the probability flow. Order 2, two evaluations a step.

    Source: Karras et al. 2022, arXiv:2206.00364, appendix D.2 (alpha = 1/2 of their family).
    """

    order = 2
    stages = ((0.0, ()), (0.5, (0.5,)))
    weights = (0.0, 1.0)


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical fourth-order Runge-Kutta method for the probability flow. Four evaluations.

    High order asks for small steps: it is unstable where a step spans much of the log noise level.

    Source: Kutta 1901, Z. Math. Phys. 46; for diffusion: Liu et al. 2022 (PNDM), arXiv:2202.09778.
    """

    order = 4
    stages = ((0.0, ()), (0.5, (0.5,)), (0.5, (0.0, 0.5)), (1.0, (0.0, 0.0, 1.0)))
    weights = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
