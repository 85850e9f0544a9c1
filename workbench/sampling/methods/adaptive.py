r"""Adaptive integration of the probability flow: each sample takes the steps it needs."""

from __future__ import annotations

import math
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.loop import Run
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.program import Apply, Program, Step

#: Dormand and Prince's pair: places, weights of the slopes before each stage (the last row are
#: those of the step itself), weights of the error, and of the dense output's last coefficient.
PLACES = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
STAGES = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
DENSE = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)
#: A step grows and shrinks by these factors at most, and aims at a share of the tolerance.
GROWTH, SHRINKAGE, SAFETY = 10.0, 0.2, 0.9
MOST_STEPS = 10_000


@dataclass(frozen=True)
class RK45(Sampler):
    r"""Dormand and Prince's embedded pair of orders 5 and 4 (DOPRI5), adaptive for each sample.

    Integrates the state scaled to unit noise in a variable that is log rho at high noise and rho
    at low noise, where the flow is nearly a straight line,

    .. math:: z = \frac{x}{\alpha R},\quad u = \operatorname{arsinh}\frac{\rho}{s},\quad
              R = \sqrt{s^2 + \rho^2},\qquad \frac{dz}{du} = \frac{(s^2/R)\,z - D}{\rho},

    s a quarter of the data's standard deviation: half the evaluations of either. It goes in one
    stretch from the first node with alpha > 0 to the last with sigma > 0; nodes between are read
    off the dense output of order 4 and cost nothing.

    A sample has its own steps and error norm (root mean square over its coordinates, relative to
    ``atol + rtol |z|``): its result never depends on its neighbours. Six evaluations a
    step, the last of them the first of the next; those of a run are the largest number over its
    samples. A step from pure noise or to sigma = 0 is DDIM's.

    Raises (in the run):
        ValueError: a tolerance that cannot be met, or one that takes more than 10 000 steps.

    Sources: Dormand & Prince 1980, J. Comput. Appl. Math. 6; dense output and first step: Hairer,
    Norsett & Wanner 1993, *Solving ODEs I*, II.4 and II.6; for diffusion: Song et al. 2021,
    arXiv:2011.13456, appendix D.4.
    """

    rtol: Annotated[float, Param("relative tolerance of a step", gt=0, le=1)] = 1e-3
    atol: Annotated[float, Param("absolute tolerance of a step", gt=0, le=1)] = 1e-3

    order = 5

    def nfe(self, grid: Grid) -> int | None:
        """None, only the run can tell; save on a grid of nothing but its ends."""
        inner = any(a.alpha > 0 and b.sigma > 0 for a, b in pairwise(grid.nodes))
        return None if inner else grid.steps

    def _program(self, process: Process, grid: Grid) -> Program:
        steps, first = [], True
        ends = [node for node in grid.nodes if node.sigma > 0]
        for a, b in pairwise(grid.nodes):
            if a.alpha == 0 or b.sigma == 0:
                steps.append(Step(a, b, exponential_step(a, b)))
                continue
            go = partial(self._advance, a, b, ends[-1])
            reads = ("x",) if first else ("x", "ode")
            steps.append(Step(a, b, (Apply(("x", "ode"), reads, go, None),)))
            first = False
        return Program(tuple(steps))

    def _advance(self, a: Node, b: Node, last: Node, run: Run, x: Tensor, ode=None):
        """The states at ``b``, and the integration as far as it had to go for them."""
        begun = 0 if ode is None else ode.evaluations
        # A copy shares all tensors: none is ever written to.
        ode = _Integration(self, run, x, a, last) if ode is None else copy(ode)
        ode.go_to(run, b)
        run.evaluations += ode.evaluations - begun
        return ode.at(b), ode


class _Integration:
    """All samples on their way from the node ``a`` to ``last``; each on a step of its own.

    Attributes:
        start, reached: u where each sample's present step begins and ends (n,), float64.
        z, slope: state and dz/du at ``reached``, (n, *event).
        dense: the coefficients of the present step's dense output, each (n, *event).
        span, growth: the step it tries next (n,), and by how much it may grow after it.
        tried: how many steps it has tried (n,).
    """

    def __init__(self, method: RK45, run: Run, x: Tensor, a: Node, last: Node) -> None:
        self.method, self.width = method, 0.25 * _std(run.model)
        self.z = x / (a.alpha * math.hypot(self.width, a.rho))
        self.end = self.place(last)
        whole = torch.empty(len(x), dtype=torch.float64, device=x.device)
        self.start = self.reached = torch.full_like(whole, self.place(a))
        self.dense = (self.z, *(torch.zeros_like(x) for _ in range(4)))
        self.slope = self._velocity(run, self.z, self.reached)
        self.span, self.growth = torch.ones_like(whole), torch.full_like(whole, GROWTH)
        self.tried = torch.zeros_like(whole)

    def place(self, node: Node) -> float:
        """u of a node."""
        return math.asinh(node.rho / self.width)

    @property
    def evaluations(self) -> int:
        """The largest number over the samples."""
        return 1 + len(PLACES) * int(self.tried.max())

    def at(self, node: Node) -> Tensor:
        """States at a node that lies in each sample's present step."""
        s = _column((self.place(node) - self.start) / (self.reached - self.start), self.z)
        z, c1, c2, c3, c4 = self.dense
        z = z + s * (c1 + (1 - s) * (c2 + s * (c3 + (1 - s) * c4)))
        return z * (node.alpha * math.hypot(self.width, node.rho))

    def go_to(self, run: Run, node: Node) -> None:
        """Steps until every sample's present one reaches the node."""
        place = self.place(node)
        while True:
            late = (self.reached > place).nonzero()[:, 0]
            if not len(late):
                return
            self._try(run, late)

    def _velocity(self, run: Run, z: Tensor, u: Tensor) -> Tensor:
        rho, radius = self.width * u.sinh(), self.width * u.cosh()
        denoised = run.model.denoise(_column(radius, z) * z, 1.0, _column(rho, z))
        return _column(self.width**2 / (radius * rho), z) * z - denoised / _column(rho, z)

    def _try(self, run: Run, who: Tensor) -> None:
        """One step of the samples ``who``, kept where its error is within the tolerance."""
        rtol, atol = self.method.rtol, self.method.atol
        z, before, span = self.z[who], self.reached[who], self.span[who]
        last = before - span <= self.end
        after = torch.where(last, self.end, before - span)
        h = _column(after - before, z)
        slopes = [self.slope[who]]
        for place, weights in zip(PLACES, STAGES, strict=True):
            here = z + h * _weighted(weights, slopes)
            level = after if place == 1.0 else before + place * (after - before)
            slopes.append(self._velocity(run, here, level))
        scale = atol + rtol * torch.maximum(z.abs(), here.abs())
        ratio = (h * _weighted(ERROR, slopes) / scale).flatten(1).double()
        error = ratio.square().mean(1).sqrt().nan_to_num(math.inf)
        good = error <= 1
        factor = (SAFETY * error ** (-1 / 5)).clamp_min(SHRINKAGE)
        factor = torch.minimum(factor, torch.where(good, self.growth[who], 1.0))
        self.span = self.span.index_copy(0, who, (before - after) * factor)
        growth = torch.ones_like(span).masked_fill(good, GROWTH)
        self.growth = self.growth.index_copy(0, who, growth)
        self.tried = self.tried.index_add(0, who, torch.ones_like(span))
        self._check(who, before, good)
        kept = good.nonzero()[:, 0]
        who, z, here, h = who[kept], z[kept], here[kept], h[kept]
        slopes = [slope[kept] for slope in slopes]
        moved, bend = here - z, h * slopes[0] - (here - z)
        dense = (z, moved, bend, moved - h * slopes[-1] - bend, h * _weighted(DENSE, slopes))
        self.dense = tuple(
            old.index_copy(0, who, new) for old, new in zip(self.dense, dense, strict=True)
        )
        self.z = self.z.index_copy(0, who, here)
        self.slope = self.slope.index_copy(0, who, slopes[-1])
        self.start = self.start.index_copy(0, who, before[kept])
        self.reached = self.reached.index_copy(0, who, after[kept])

    def _check(self, who: Tensor, u: Tensor, good: Tensor) -> None:
        """Raises where a step has shrunk to nothing or there are too many."""
        stuck = ~good & (self.span[who] < 16 * torch.finfo(torch.float64).eps * u)
        many = self.tried[who] >= MOST_STEPS
        for bad, what in ((stuck, "steps shrank to nothing"), (many, f"{MOST_STEPS:,} steps")):
            count = int(bad.sum())
            if count:
                where = self.width * math.sinh(u[bad].max().item())
                did = "were not enough" if bad is many else "without meeting it"
                raise ValueError(
                    f"RK45: rtol was {self.method.rtol:g} and atol {self.method.atol:g}; {what} "
                    f"{did} at rho = {where:.4g}, for {count} of {len(self.z)} samples. Take a "
                    "larger tolerance, or look for a denoiser that jumps or is not finite there."
                )


def _std(model) -> float:
    """Of the data, where the model tells it; a scale is all that is needed."""
    try:
        return model.std or 1.0
    except (AttributeError, NotImplementedError):
        return 1.0


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    pairs = zip(weights, slopes, strict=True)
    return sum(weight * slope for weight, slope in pairs if weight)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value per sample (n,), to be broadcast against states (n, *event) in their dtype."""
    return values.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))
