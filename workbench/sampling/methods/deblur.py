"""Inverse heat dissipation: a deblurred mean, and a little noise of one strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import Sampler
from workbench.sampling.program import Combine, Evaluate, Program, Row, Step


@dataclass(frozen=True)
class InverseHeat(Sampler):
    r"""Inverse heat dissipation: each step deblurs a little and adds noise of standard deviation
    :math:`\delta`.

    .. math:: u_{k-1} = \mu(u_k, k) + \delta z,\qquad \mu = A_{k-1}\,E[x_0 | u_k],\qquad
              \delta = factor\cdot\sigma

    with :math:`A_k` the blur of level k (alpha, by mode) and :math:`\sigma` the noise that
    :class:`HeatDissipation` keeps at all times: what a network trained to predict the less blurred
    image from the noisy blurred one would answer. A step to sigma = 0 adds no noise, as published.
    There the authors' last level has no blur at all; ``sharp`` ends with it, :math:`E[x_0 | u_1]`
    itself, instead of the blur that the process has at t = 0.

    **Not a discretisation of the flow or of the reverse SDE**, so the output does not tend to the
    data with the number of steps (order 0): where the steps are short, a mode of blurred variance
    S ends with the variance

    .. math:: \frac{\delta^2}{1 - (S/(S + \sigma^2))^2} \approx \frac{factor^2}{2} S

    for S well above :math:`\sigma^2`: 0.78 S with the published factor 1.25, S with
    :math:`\sqrt2`. One evaluation a step.

    Raises:
        ValueError: a process whose noise changes.

    Source: Rissanen, Heinonen & Solin 2023, *Generative Modelling with Inverse Heat Dissipation*,
    arXiv:2206.13397, algorithm 2, and the authors' code.
    """

    factor: Annotated[float, Param("delta / sigma: noise of a step", ge=0, le=100)] = 1.25
    sharp: Annotated[bool, Param("end without the blur of t = 0, as published")] = False

    order = 0

    @property
    def stochastic(self) -> bool:
        return self.factor > 0

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        return Evaluate("D", "x", a), Combine("x", {"D": b.alpha}, self.factor * b.sigma)

    def _program(self, process: Process, grid: Grid) -> Program:
        made = super()._program(process, grid)
        if not self.sharp or grid.final != "denoise":
            return made
        *steps, last = made.steps
        rows = (Evaluate("D", "x", last.start), Combine("x", {"D": 1.0}))
        return Program((*steps, Step(last.start, last.end, rows)))
