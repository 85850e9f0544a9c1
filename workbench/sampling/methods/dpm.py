r"""DPM-Solver and DPM-Solver++: Taylor expansions in log-SNR, single steps and multisteps.

With :math:`h = \lambda' - \lambda`, :math:`\lambda = \log(\alpha/\sigma)`, the flow is exactly

.. math::
    x' = \tfrac{\alpha'}{\alpha} x - \alpha' \int e^{-\lambda} \hat\epsilon\, d\lambda
       = \tfrac{\sigma'}{\sigma} x + \sigma' \int e^{\lambda} D\, d\lambda .

DPM-Solver expands the noise prediction, DPM-Solver++ the denoised state.

Sources: Lu et al. 2022, arXiv:2206.00927 (DPM-Solver); Lu et al. 2022, arXiv:2211.01095 (++).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.methods.multistep import Multistep, log_ratio
from workbench.sampling.program import Combine, Evaluate, Program, Row

__all__ = ["DPMSolver", "DPMSolverPP"]


def _between(a: Node, b: Node, share: float) -> Node:
    """The node at a share of the way from a to b in log-SNR, with the alpha of the first."""
    return Node(a.t, a.alpha, a.alpha * a.rho * (b.rho / a.rho) ** share)


def _phis(h: float) -> tuple[float, float, float]:
    """phi_1 = e^h - 1, phi_2 = phi_1 / h - 1, phi_3 = phi_2 / h - 1/2, without cancellation."""
    if abs(h) < 0.1:  # the differences would lose digits
        powers = [h**k / math.factorial(k) for k in range(1, 15)]
        two = sum(p / (k + 2) for k, p in enumerate(powers))
        three = sum(p / ((k + 2) * (k + 3)) for k, p in enumerate(powers))
        return math.expm1(h), two, three
    one = math.expm1(h)
    two = one / h - 1
    return one, two, two / h - 0.5


@dataclass(frozen=True)
class DPMSolver(Sampler):
    """DPM-Solver: single steps of order 1, 2 or 3 that expand the noise prediction.

    ``order`` evaluations a step. Order 1 is DDIM. Diverges where a step spans more than about 1.5
    in log-SNR.

    Source: Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2.
    """

    order: Annotated[int, Param("order, and evaluations a step", ge=1, le=3)] = 2

    stochastic = False

    def evaluations(self, a: Node, b: Node) -> int:
        return 1 if a.alpha == 0 else self.order

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if a.alpha == 0 or self.order == 1:
            return exponential_step(a, b)
        h = log_ratio(a, b)
        return self._second(a, b, h) if self.order == 2 else self._third(a, b, h)

    # Differences of noise predictions hold no x. With the state at u from DDIM's step and what is
    # added to it, e_u - e_s = (D_s - D_u) / rho_u + added / sigma_u.

    @staticmethod
    def _second(a: Node, b: Node, h: float) -> tuple[Row, ...]:
        u = _between(a, b, 0.5)
        weight = -b.sigma * math.expm1(h)  # 1 / (2 r), r = 1/2
        return (
            Evaluate("D", "x", a),
            Combine("y", _ddim(a, u)),
            Evaluate("D2", "y", u),
            Combine("x", _ddim(a, b, {"D": weight / u.rho, "D2": -weight / u.rho})),
        )

    @staticmethod
    def _third(a: Node, b: Node, h: float) -> tuple[Row, ...]:
        r1, r2 = 1 / 3, 2 / 3
        u, v = _between(a, b, r1), _between(a, b, r2)
        _, two_v, _ = _phis(r2 * h)
        _, two, _ = _phis(h)
        first = {"D": 1 / u.rho, "D2": -1 / u.rho}
        added = {name: -(r2 / r1) * two_v * c for name, c in first.items()}
        second = {"D": 1 / v.rho + added["D"], "D2": added["D2"], "D3": -1 / v.rho}
        return (
            Evaluate("D", "x", a),
            Combine("y", _ddim(a, u)),
            Evaluate("D2", "y", u),
            Combine("y", _ddim(a, v, {name: v.sigma * c for name, c in added.items()})),
            Evaluate("D3", "y", v),
            Combine("x", _ddim(a, b, {k: -b.sigma / r2 * two * c for k, c in second.items()})),
        )


def _ddim(a: Node, b: Node, more: dict[str, float] | None = None) -> dict[str, float]:
    """DDIM's step from a to b, and more."""
    kept = b.sigma / a.sigma
    terms = {"x": kept, "D": b.alpha - a.alpha * kept}
    for name, c in (more or {}).items():
        terms[name] = terms.get(name, 0.0) + c
    return terms


@dataclass(frozen=True)
class DPMSolverPP(Multistep):
    r"""DPM-Solver++: the denoised state expanded, in multisteps or single steps, ODE or SDE.

    Multistep: one evaluation a step; single steps take as many as their order. The SDE variant
    (multistep, orders 1 and 2) draws fresh noise; of order 1 it is DDIM(1).

    The third-order multistep as published lacks a factor 2 in its second difference and is of order
    2; ``corrected`` puts it right. At 20 evaluations and fewer the published one is often better.
    ``taylor`` weights the difference of the second-order multistep by Taylor's formula (the "heun"
    of public code) instead of the midpoint's.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithms 1 and 2.
    """

    order: Annotated[int, Param("order of the expansion", ge=1, le=3)] = 2
    multistep: Annotated[bool, Param("remember evaluations instead of making new ones")] = True
    sde: Annotated[bool, Param("sample the reverse SDE")] = False
    corrected: Annotated[bool, Param("third order with the missing factor 2")] = True
    taylor: Annotated[bool, Param("second order by Taylor's formula, not the midpoint's")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sde and (self.order > 2 or not self.multistep):
            raise ValueError(
                f"DPMSolverPP: order was {self.order} with multistep={self.multistep}; the SDE "
                "variant is a multistep method of order 1 or 2."
            )

    @property
    def stochastic(self) -> bool:
        return self.sde

    @property
    def remembers(self) -> int:
        return self.order if self.multistep else 1

    def evaluations(self, a: Node, b: Node) -> int:
        return 1 if self.multistep or a.alpha == 0 else self.order

    def _program(self, process: Process, grid: Grid) -> Program:
        # Single steps take the base class's way, row by row.
        return (
            super()._program(process, grid)
            if self.multistep
            else Sampler._program(self, process, grid)
        )

    def combine(self, nodes: Sequence[Node], b: Node, times: np.ndarray | None):
        a, h = nodes[0], log_ratio(nodes[0], b)
        if self.sde:
            decay = math.exp(-h)
            gain = -b.alpha * math.expm1(-2 * h)
            fresh = b.sigma * math.sqrt(-math.expm1(-2 * h))
            past = [gain]
            if len(nodes) == 2:
                share = 0.5 * h / log_ratio(nodes[1], a)
                past = [gain * (1 + share), -gain * share]
            return b.sigma / a.sigma * decay, past, fresh
        gain = -b.alpha * math.expm1(-h)
        if len(nodes) == 1:
            past = [gain]
        elif len(nodes) == 2:
            weight = -b.alpha * _phis(-h)[1] if self.taylor else 0.5 * gain
            share = weight * h / log_ratio(nodes[1], a)
            past = [gain + share, -share]
        else:
            past = self._third_multistep(nodes, b, h, gain)
        return b.sigma / a.sigma, past, 0.0

    def _third_multistep(self, nodes, b: Node, h: float, gain: float) -> list[float]:
        r0, r1 = log_ratio(nodes[1], nodes[0]) / h, log_ratio(nodes[2], nodes[1]) / h
        _, two, three = _phis(-h)
        # Published signs: phi_2 = one/h + 1 = -two, phi_3 = phi_2/h - 1/2 = three.
        first = np.array([1 / r0, -1 / r0, 0.0])  # (D_0 - D_1) / r0
        second = np.array([0.0, 1 / r1, -1 / r1])
        slope = first + r0 / (r0 + r1) * (first - second)
        bend = (2.0 if self.corrected else 1.0) * (first - second) / (r0 + r1)
        return (
            gain * np.array([1.0, 0, 0]) - b.alpha * two * slope - b.alpha * three * bend
        ).tolist()

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        if a.alpha == 0 or self.order == 1:
            return exponential_step(a, b)
        h = log_ratio(a, b)
        one, two, _ = _phis(-h)
        if self.order == 2:
            u = _between(a, b, 0.5)
            gain = -b.alpha * one
            return (
                Evaluate("D", "x", a),
                Combine("y", _ddim(a, u)),
                Evaluate("D2", "y", u),
                Combine("x", {"x": b.sigma / a.sigma, "D2": gain}),
            )
        r1, r2 = 1 / 3, 2 / 3
        u, v = _between(a, b, r1), _between(a, b, r2)
        _, two_v, _ = _phis(-r2 * h)
        bend_v, bend = -(r2 / r1) * v.alpha * two_v, -b.alpha * two / r2
        return (
            Evaluate("D", "x", a),
            Combine("y", _ddim(a, u)),
            Evaluate("D2", "y", u),
            Combine("y", _ddim(a, v, {"D": -bend_v, "D2": bend_v})),
            Evaluate("D3", "y", v),
            Combine("x", _ddim(a, b, {"D": -bend, "D3": bend})),
        )
