r"""DPM-Solver and DPM-Solver++: Taylor expansions in log-SNR, single steps and multisteps.

In the exact flow of :mod:`workbench.sampling.methods.single_steps` DPM-Solver expands the noise
prediction, DPM-Solver++ the denoised state. From one, two or three evaluations, the latest first,
come a value, a slope and a second derivative,

.. math::
    f = f_0, \qquad f_1 = \delta_0 + \tfrac{r_0}{r_0 + r_1}(\delta_0 - \delta_1), \qquad
    f_2 = \tfrac{2}{r_0 + r_1}(\delta_0 - \delta_1), \qquad
    \delta_k = (f_k - f_{k+1}) / r_k,

with :math:`r_k` the steps before in units of this one (of two evaluations :math:`f_1 = \delta_0`),
and with the moments there the step.

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
from workbench.sampling.methods.base import Sampler
from workbench.sampling.methods.multistep import LowerOrderFinal, Multistep, Start
from workbench.sampling.methods.single_steps import log_ratio, moments, single_step
from workbench.sampling.program import Program, Row


@dataclass(frozen=True)
class _Expansion(Multistep):
    """Base of both: what follows from the parameters, the steps, and what does not go together."""

    order: Annotated[int, Param("order of the expansion", ge=1, le=3)] = 2
    multistep: Annotated[bool, Param("remember evaluations instead of making new ones")] = True
    sde: Annotated[bool, Param("sample the reverse SDE")] = False
    corrected: Annotated[bool, Param("third order with the missing factor 2")] = True
    taylor: Annotated[bool, Param("differences weighted by Taylor's formula")] = False
    lower_order_final: LowerOrderFinal = "never"
    start: Start = "published"

    def __post_init__(self) -> None:
        many = self.multistep
        self.refuse_unless("sde", many, "there are single steps of the probability flow only")
        self.refuse_unless("taylor", self.order > 1, "order 1 has no difference to weight")
        third = many and self.order == 3
        self.refuse_unless("corrected", third, "the factor is that of the third-order multistep")
        for name in ("lower_order_final", "start"):
            self.refuse_unless(name, many, "single steps have one order throughout")
        self.refuse_unless("start", not self.sde, "single steps are those of the probability flow")
        super().__post_init__()

    @property
    def stochastic(self) -> bool:
        return self.sde

    @property
    def global_order(self) -> int:
        return min(self.order, 2) if self.sde else self.order

    @property
    def remembers(self) -> int:
        return self.order if self.multistep else 1

    def evaluations(self, a: Node, b: Node) -> int:
        return 1 if self.multistep or a.alpha == 0 else self.order

    def nfe(self, grid: Grid) -> int:
        return super().nfe(grid) if self.multistep else Sampler.nfe(self, grid)

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        return single_step(a, b, 1 if a.alpha == 0 else self.order, self.keeps, self.taylor)

    def _program(self, process: Process, grid: Grid) -> Program:
        if self.multistep:
            return super()._program(process, grid)
        return Sampler._program(self, process, grid)  # row by row

    def combine(self, nodes: Sequence[Node], b: Node, times: np.ndarray | None):
        a, h = nodes[0], log_ratio(nodes[0], b)
        if self.sde and self.keeps == "noise":
            fresh = b.sigma * math.sqrt(math.expm1(2 * h))
            weights = [2 * weight for weight in moments(b, h, self.keeps)]
            return b.alpha / a.alpha, self._past(nodes, h, weights), fresh
        if self.sde:
            decay, fresh = math.exp(-h), b.sigma * math.sqrt(-math.expm1(-2 * h))
            return b.sigma / a.sigma * decay, self._past(nodes, h, moments(b, 2 * h)), fresh
        kept = b.sigma / a.sigma if self.keeps == "denoised" else b.alpha / a.alpha
        return kept, self._past(nodes, h, moments(b, h, self.keeps)), 0.0

    def _past(self, nodes: Sequence[Node], h: float, weights: Sequence[float]) -> list[float]:
        """Weights of the evaluations at ``nodes`` in a step of size ``h``."""
        one, two, three = weights
        if len(nodes) == 1:
            return [one]
        r0 = log_ratio(nodes[1], nodes[0]) / h
        if len(nodes) == 2:
            share = (two if self.taylor else 0.5 * one) / r0
            return [one + share, -share]
        r1 = log_ratio(nodes[2], nodes[1]) / h
        first = np.array([1 / r0, -1 / r0, 0.0])
        second = np.array([0.0, 1 / r1, -1 / r1])
        slope = first + r0 / (r0 + r1) * (first - second)
        bend = (2.0 if self.corrected else 1.0) * (first - second) / (r0 + r1)
        return (one * np.array([1.0, 0, 0]) + two * slope + three * bend).tolist()


@dataclass(frozen=True)
class DPMSolver(_Expansion):
    r"""DPM-Solver: the noise prediction expanded, in single steps or multisteps of order 1, 2 or 3.

    Single steps take as many evaluations as their order, multisteps one. Order 1 is DDIM. Diverges
    where a step spans more than about 1.5 in log-SNR. The other parameters are DPM-Solver++'s, see
    :class:`DPMSolverPP`; ``DPMSolver(2, multistep=True)`` is the "2M" in noise prediction, and of
    Taylor weights DEIS in log-SNR.

    The SDE variant, in multisteps, draws fresh noise: with :math:`\epsilon_1` the slope of the
    noise prediction in :math:`\lambda`, of step :math:`h`,

    .. math:: x' = \tfrac{\alpha'}{\alpha} x - 2\sigma'\left[(e^h - 1)\,\hat\epsilon
              + (e^h - 1 - h)\,\epsilon_1\right] + \sigma'\sqrt{e^{2h} - 1}\, z,

    of order 1 ``ExponentialSDE("noise")``, with ``taylor`` of order 2 the SDE-n-2 of MR Sampler.

    Sources: Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2; its multisteps: the authors'
    public code, ``algorithm_type="dpmsolver"``; SDE: "sde-dpmsolver" there, and Li et al. 2025 (MR
    Sampler), arXiv:2502.07856.
    """

    multistep: Annotated[bool, Param("remember evaluations instead of making new ones")] = False

    keeps = "noise"


@dataclass(frozen=True)
class DPMSolverPP(_Expansion):
    r"""DPM-Solver++: the denoised state expanded, in multisteps or single steps, ODE or SDE.

    Multistep (2M, 3M): one evaluation a step; single steps (2S, 3S) take as many as their order.
    Order 1 is DDIM. The SDE variant, in multisteps, draws fresh noise: of order 1 it is DDIM(1), of
    order 3 of weak order 2, with a smaller error than that of order 2.

    The third-order multistep as published lacks a factor 2 in its second difference and is of order
    2; ``corrected`` puts it right. At 20 evaluations and fewer the published one is often better.
    ``taylor`` weights differences by Taylor's formula ("heun" or "taylor" in public code) where by
    default orders 2 take half of the first weight (the midpoint's). ``lower_order_final`` as in
    public code; ``start="single_steps"`` gives multisteps their order where the run does not start
    at noise far above the data.

    In public code ``dpmpp_2m`` is the default, ``dpmpp_2m_sde`` is ``sde=True`` with or without
    ``taylor``, ``dpmpp_3m_sde`` is ``DPMSolverPP(3, sde=True, corrected=False, taylor=True)``.

    Source: Lu et al. 2022, arXiv:2211.01095, algorithms 1 and 2; SDE 3M: Crowson, k-diffusion.
    """
