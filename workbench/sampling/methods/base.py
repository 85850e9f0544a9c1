"""What every sampler is: parameters, an order, and a program for a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

from workbench.diffusion import Diffusion
from workbench.params import Parameterised, declared
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.program import Combine, Evaluate, Program, Row, Step, stacked

#: Stands in for alpha = 0 in single modes of a spectral process, so that all take the same steps.
LEAST = 1e-150


class Sampler(Parameterised):
    """Base of the samplers that take one step from a node to the next.

    A subclass is a frozen dataclass that says its ``order`` (of the global error: strong for
    deterministic methods, weak for stochastic ones; 0 where more steps do not lead to the data's
    law), whether it is ``stochastic``, and the rows of one step. A step to sigma = 0 is the same
    for all, the denoised state; except that a method defined in t (``in_time``) follows its own
    rule where the grid says "stop".

    Register ``x`` is the diffusion's core variable. Under an affine process that is x - m(t) mu; a
    method in t that steps the state x itself reads mu in the register ``mu``.
    """

    registry_kind: ClassVar[str] = "sampler"

    order: int
    in_time = False
    #: How many evaluations, the step's own included, a step looks back over at most.
    remembers = 1

    @property
    def stochastic(self) -> bool:
        """Whether it draws fresh noise: with a parameter ``eta``, where that is above 0."""
        return getattr(self, "eta", 0.0) > 0

    def refuse_unless(self, name: str, acts: bool, why: str) -> None:
        """Raise for a parameter that is not at its default where it would be ignored.

        Args:
            name: of the declared parameter.
            acts: whether it has an effect, with the others as they are.
            why: the reason if not, to follow a colon.
        """
        known = declared(type(self))
        if acts or name not in known or getattr(self, name) == known[name].default:
            return
        others = ", ".join(
            f"{other}={getattr(self, other)!r}"
            for other, one in known.items()
            if other in ("order", "multistep") or getattr(self, other) != one.default
            if other != name
        )
        raise ValueError(
            f"{type(self).__name__}: {name} was {getattr(self, name)!r} with {others}, where it "
            f"changes nothing: {why}. Leave it at {known[name].default!r}, or change the others."
        )

    @property
    def global_order(self) -> int:
        """The order of the global error: ``order`` but where a method does not keep its own."""
        return self.order

    def rows(self, process: Process, a: Node, b: Node) -> tuple[Row, ...]:
        """The rows from node ``a`` to node ``b``; sigma > 0 at both unless ``in_time``."""
        raise NotImplementedError

    def evaluations(self, a: Node, b: Node) -> int:
        """How many denoiser evaluations the step from ``a`` to ``b`` takes."""
        return 1

    def prepared(self, diffusion: Diffusion, grid: Grid) -> Sampler:
        """This sampler with what it has to know of the model beforehand; most need nothing."""
        return self

    def program(self, process: Process, grid: Grid) -> Program:
        """The whole run as rows; ``process`` is asked only by methods defined in t."""
        return over_modes(self._program, process, grid)

    def _program(self, process: Process, grid: Grid) -> Program:
        steps = (
            Step(a, b, self.rows(process, a, b) if own else exponential_step(a, b))
            for a, b, own in self._steps(grid)
        )
        return Program(tuple(steps))

    def notes(self, grid: Grid) -> tuple[str, ...]:
        """Sentences on what this grid does not let the method do."""
        own = sum(a.alpha > 0 and b.sigma > 0 for a, b in pairwise(grid.nodes))
        if own >= self.remembers:
            return ()
        return (
            f"{self!r} looks back over {self.remembers} evaluations and {grid!r} has {own} steps "
            "of its kind, so all of them are of a lower order; take more steps or a lower order.",
        )

    def nfe(self, grid: Grid) -> int | None:
        """Number of denoiser evaluations on ``grid``; None where only the run can tell.

        Steps are not evaluations.
        """
        return sum(self.evaluations(a, b) if own else 1 for a, b, own in self._steps(grid))

    def _steps(self, grid: Grid):
        """Pairs of nodes, and whether the method's own rule leads from one to the other."""
        zero = self.in_time and grid.final == "stop"
        return ((a, b, b.sigma > 0 or zero) for a, b in pairwise(grid.nodes))


def over_modes(
    make: Callable[[Process | None, Grid], Program], process: Process | None, grid: Grid
) -> Program:
    """``make(process, grid)``; of a spectral process one for each mode, laid over each other."""
    if process is None or not process.spectral:
        return make(process, grid)
    modes, index = process.distinct()
    # Pure noise is that of every mode alike; otherwise none may be an exact zero.
    least = 0.0 if grid.alpha[0] == 0 else LEAST
    return stacked([make(mode, grid.along(mode, least)) for mode in modes], index)


def remembered(
    past: Sequence[tuple[Node, str]], node: Node, name: str, most: int
) -> list[tuple[Node, str]]:
    """Evaluations that a step looks back over, latest first: ``past`` with the new one at ``node``.

    No noise level rho twice, since polynomials through two evaluations at one do not exist: a mode
    of a spectral process may keep its rho over some steps (or all, and then its state is scaled
    only). Registers by name; one that is written anew is no longer of the past.
    """
    older = [(old, other) for old, other in past if old.rho != node.rho and other != name]
    return [(node, name), *older][:most]


def chain_factor(process: Process, a: Node, b: Node) -> float:
    """What the forward chain of ``process`` keeps of the state from ``b`` to the noisier ``a``."""
    end = process.carried(b.t, b.alpha)
    return process.carried(a.t, a.alpha) / end if end else a.sigma / b.sigma


def ddim_steps(nodes: Sequence[Node]) -> tuple[Step, ...]:
    """DDIM's steps from node to node."""
    return tuple(Step(a, b, exponential_step(a, b)) for a, b in pairwise(nodes))


def exponential_step(
    a: Node, b: Node, eta: float = 0.0, kept: float | None = None
) -> tuple[Row, ...]:
    r"""From ``a`` to ``b`` with the denoised state held constant; regular at both ends.

    .. math:: x' = \alpha' D + \sqrt{\sigma'^2 - s^2}\,\hat\epsilon + s z,\qquad
              s = \eta\,\sigma'\sqrt{1 - A^2\sigma'^2/\sigma^2}

    with A (``kept``) what the forward chain keeps of the state from b to a: alpha/alpha' unless
    given, whence :math:`s = \eta\sigma'\sqrt{1 - \rho'^2/\rho^2}`. At ``alpha = 0`` it is the exact
    step of the limit, at ``sigma' = 0`` it is ``alpha' D``.
    """
    if kept is None:
        ratio = b.sigma * a.alpha / (b.alpha * a.sigma) if b.alpha else 1.0  # rho'/rho
    else:
        ratio = kept * b.sigma / a.sigma
    fresh = eta * b.sigma * math.sqrt(max(0.0, 1.0 - ratio * ratio))
    left = math.sqrt(max(0.0, b.sigma * b.sigma - fresh * fresh)) if eta else b.sigma
    return (
        Evaluate("D", "x", a),
        Combine("x", {"x": left / a.sigma, "D": b.alpha - a.alpha * left / a.sigma}, fresh),
    )
