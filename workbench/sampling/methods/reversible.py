r"""Reversible Heun: a method for the flow and the SDE whose every step can be undone exactly.

It carries two states, of which one is moved by the drift and the noise at the other:

.. math:: \hat y' = 2y - \hat y + h\,k + g\,\Delta W,\qquad k' = f(\hat y'),\qquad
          y' = y + \tfrac{h}{2}(k + k') + \tfrac12 (g + g')\,\Delta W .

The same step with -h and :math:`-\Delta W` leads back from :math:`(y', \hat y', k')` to
:math:`(y, \hat y, k)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from torch import Tensor

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.methods.runge_kutta import Axis, linear_velocity
from workbench.sampling.noise import NoiseSource
from workbench.sampling.program import Combine, Evaluate, Program, Row, Step


@dataclass(frozen=True)
class ReversibleHeun(Sampler):
    r"""Reversible Heun for the probability flow or the reverse SDE, in rho (of x/alpha) or in t.

    .. math::
        dx &= \left[f x - \tfrac{1+\eta}{2} g^2 s\right] dt + \sqrt{\eta}\, g\, dW
             && \text{in } t, \\
        dy &= (1+\eta)\,\hat\epsilon\, d\rho + \sqrt{2\eta\rho}\, dW
             && \text{in } \rho,\ y = x/\alpha .

    The noise does not depend on the state, so the Stratonovich equation that the method solves is
    that of Ito. Order 2 for the flow; for the SDE strong order 1 and, where measured, weak order 2.
    One evaluation a step and one more in the first. Registers ``x``, ``hat`` (the second state) and
    ``k`` (the drift there) hold all that :meth:`back` needs to undo the run, with its noise once
    more (:meth:`noise_back`). As with leapfrog, the two states part where the drift contracts (in
    rho by about the ratio of the largest noise level to the data's spread, to the power 1 + eta):
    it wants many steps, and the SDE is better solved in t.

    A step from pure noise (alpha = 0; in t only with eta above 0, as g is infinite there) and, in
    rho, a final one to sigma = 0 are the exponential ones and are not undone.

    Source: Kidger, Foster, Li & Lyons 2021, arXiv:2105.13493, algorithms 1 and 2.
    """

    axis: Axis = "rho"
    eta: Annotated[float, Param("noise: 0 probability flow, 1 reverse SDE", ge=0, le=10)] = 0.0

    order = 2

    @property
    def in_time(self) -> bool:
        return self.axis == "t"

    def nfe(self, grid: Grid) -> int:
        return grid.steps + bool(self._own(grid))

    def _own(self, grid: Grid) -> list[tuple[Node, Node]]:
        """The steps that are reversible Heun's."""
        pure = self.axis == "t" and not self.eta  # may leave pure noise
        return [(a, b) for a, b, own in self._steps(grid) if own and (a.alpha > 0 or pure)]

    def _program(self, process: Process, grid: Grid) -> Program:
        own, steps = self._own(grid), []
        fields = self._fields(process, own)
        for pair in pairwise(grid.nodes):
            if pair not in own:
                rows = exponential_step(*pair, min(self.eta, 1.0))
            else:
                rows = self._step(fields, *pair)
                if pair == own[0]:
                    first = (*fields[pair[0]].drift("x"), Combine("hat", {"x": 1.0}))
                    rows = (*first, *rows)
            steps.append(Step(*pair, rows))
        return Program(tuple(steps))

    def back(self, process: Process, grid: Grid) -> Program:
        """The program that undoes the run on ``grid``: from the registers ``x``, ``hat`` and ``k``
        that it left (see ``registers`` of :func:`workbench.sampling.walk`) to those it began with.
        With eta above 0 it draws the noise of the run, the last first: :meth:`noise_back`.
        """
        own = self._own(grid)
        fields = self._fields(process, own)
        return Program(tuple(Step(b, a, self._step(fields, b, a)) for a, b in reversed(own)))

    def noise_back(self, grid: Grid, noise: NoiseSource) -> NoiseBackwards:
        """What :meth:`back` is to be walked with, from the noise of the run on ``grid``."""
        pure = int(self.eta > 0 and grid.alpha[0] == 0)  # the first draw, of the step not undone
        return NoiseBackwards(noise, pure + len(self._own(grid)))

    def _fields(self, process: Process, own: list[tuple[Node, Node]]) -> dict[Node, _Field]:
        return {node: self._field(process, node) for node in dict.fromkeys(sum(own, ()))}

    def _field(self, process: Process, node: Node) -> _Field:
        """Of the equation at a node: in t that of x, in rho that of y = x/alpha."""
        if self.axis == "rho":
            p = (1 + self.eta) / node.sigma
            noise = math.sqrt(2 * self.eta * node.rho)
            return _Field(node, p, -p * node.alpha, 0.0, 0.0, "denoised", noise)
        c = process(node.t)
        if node.sigma > 0:
            p, q = linear_velocity(process, node, c)
            of, stir = "denoised", 0.5 * self.eta * c.g2 / node.sigma**2 if self.eta else 0.0
            p, q = p + stir, q - stir * node.alpha
        else:  # D no longer tells the score there
            p, q, of = c.f, -0.5 * (1 + self.eta) * c.g2, "score"
        noise = math.sqrt(self.eta * c.g2) if self.eta else 0.0
        shift, pull = process.shift(node.t)
        return _Field(node, p, q, pull, shift, of, noise)

    def _step(self, fields: dict[Node, _Field], a: Node, b: Node) -> tuple[Row, ...]:
        """From ``a`` to ``b``, in either direction."""
        if self.axis == "t":
            h, grown, scale = b.t - a.t, 1.0, 1.0
            moved = fields[a].shift - fields[b].shift  # of x - m mu, as m moves
        else:
            h, grown, scale = b.rho - a.rho, b.alpha / a.alpha, b.alpha
            moved = 0.0
        hat, x, draw = {"x": 2 * grown, "hat": -grown}, {"x": grown}, ()
        if self.eta:
            draw = (Combine("z", {}, noise=1.0),)
            g, g_end = fields[a].diffusion, fields[b].diffusion
            dw = math.copysign(math.sqrt(abs(h)), -h) * scale  # of a unit z
            hat["z"], x["z"] = g * dw, 0.5 * (g + g_end) * dw
        h = h * scale
        return (
            *draw,
            Combine("hat", {**hat, "k": h, "mu": moved}),
            Combine("x", {**x, "k": 0.5 * h, "mu": moved}),
            *fields[b].drift("hat"),
            Combine("x", {"x": 1.0, "k": 0.5 * h}),
        )


class _Field(NamedTuple):
    """Drift ``p u + q D + pull mu`` of x (or the score for D) and diffusion at a node, with
    ``u = x - shift mu``.
    """

    node: Node
    p: float
    q: float
    pull: float
    shift: float
    of: Literal["denoised", "score"]
    diffusion: float

    def drift(self, at: str) -> tuple[Row, ...]:
        """Register k, the drift at the state ``at``."""
        return (
            Evaluate("D", at, self.node, self.of),
            Combine("k", {at: self.p, "D": self.q, "mu": self.pull}),
        )


class NoiseBackwards:
    """The draws of a run's noise in the opposite order.

    Args:
        noise: of the run.
        draws: how many it made; the first asked for is the last of these.
    """

    def __init__(self, noise: NoiseSource, draws: int) -> None:
        self.noise, self.draws = noise, draws

    def step(self, draw: int, interval: tuple[float, float] | None = None) -> Tensor:
        return self.noise.step(self.draws - 1 - draw, interval)
