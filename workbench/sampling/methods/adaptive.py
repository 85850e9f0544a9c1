r"""Adaptive integration of the probability flow: each sample takes the steps it needs."""

from __future__ import annotations

import math
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

__all__ = ["RK45"]

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
    r"""The embedded pair of orders 5 and 4 of Dormand and Prince (DOPRI5), adaptive for each sample.

    Integrates :math:`dy/d\rho = \hat\epsilon(y, \rho)`, :math:`y = x/\alpha`, in one go from the
    first node with alpha > 0 to the last with sigma > 0; nodes between are read off the dense
    output of order 4 and cost nothing. In rho the flow is a straight line wherever D stands still,
    at both ends, so steps there are long.

    A sample has its own step, error norm (root mean square over its coordinates, relative to
    ``atol + rtol |y|``) and end: its result never depends on its neighbours. Six evaluations a
    step, the last of them the first of the next; those of a run are the largest number over its
    samples. A step from pure noise or to sigma = 0 is DDIM's.

    Raises (in the run):
        ValueError: a tolerance that cannot be met, or one that takes more than 10 000 steps.

    Sources: Dormand & Prince 1980, J. Comput. Appl. Math. 6; dense output and first step: Hairer,
    Norsett & Wanner 1993, *Solving ODEs I*, II.4 and II.6; for diffusion: Song et al. 2021,
    arXiv:2011.13456, appendix D.4.
    """

    rtol: Annotated[float, Param("relative tolerance of a step", gt=0, le=1)] = 1e-3
    atol: Annotated[float, Param("absolute tolerance of a step [x]", gt=0, le=1e6)] = 1e-3

    order = 5
    stochastic = False

    def nfe(self, grid: Grid) -> int | None:
        """None: only the run can tell."""
        return None

    def _program(self, process: Process, grid: Grid) -> Program:
        steps, first = [], True
        ends = [node for node in grid.nodes if node.sigma > 0]
        for a, b in pairwise(grid.nodes):
            if a.alpha == 0 or b.sigma == 0:
                steps.append(Step(a, b, exponential_step(a, b)))
                continue
            go = partial(self._advance, a, b, ends[-1].rho)
            reads = ("x",) if first else ("x", "ode")
            steps.append(Step(a, b, (Apply(("x", "ode"), reads, go, None),)))
            first = False
        return Program(tuple(steps))

    def _advance(self, a: Node, b: Node, end: float, run: Run, x: Tensor, ode=None):
        """The states at ``b``, and the integration as far as it had to go for them."""
        begun = 0 if ode is None else ode.evaluations
        ode = _Integration(self, run, x / a.alpha, a.rho, end) if ode is None else ode.copy()
        ode.go_to(run, b.rho)
        run.evaluations += ode.evaluations - begun
        return b.alpha * ode.at(b.rho), ode


class _Integration:
    """All samples on their way from ``rho`` down to ``end``; each on a step of its own.

    Attributes:
        start, reached: where each sample's present step begins and ends (n,), float64.
        y, slope: state and dy/drho at ``reached``, (n, *event).
        dense: the coefficients of the present step's dense output, each (n, *event).
        span, growth: the step it tries next (n,), and by how much it may grow after it.
        tried: how many steps it has tried (n,).
    """

    def __init__(self, method: RK45, run: Run, y: Tensor, rho: float, end: float) -> None:
        self.method, self.end, self.y = method, end, y
        self.start = self.reached = torch.full((len(y),), rho, dtype=torch.float64, device=y.device)
        self.dense = (y, *(torch.zeros_like(y) for _ in range(4)))
        self.slope = self._noise(run, y, self.reached)
        self.span = 0.5 * self.reached
        self.growth = torch.full_like(self.span, GROWTH)
        self.tried = torch.zeros_like(self.span)

    @property
    def evaluations(self) -> int:
        """The largest number over the samples."""
        return 1 + len(PLACES) * int(self.tried.max())

    def copy(self) -> _Integration:
        """Shares all tensors: none is ever written to."""
        made = object.__new__(_Integration)
        made.__dict__.update(self.__dict__)
        return made

    def at(self, rho: float) -> Tensor:
        """States at ``rho``, which lies in each sample's present step."""
        s = _column((rho - self.start) / (self.reached - self.start), self.y)
        y, c1, c2, c3, c4 = self.dense
        return y + s * (c1 + (1 - s) * (c2 + s * (c3 + (1 - s) * c4)))

    def go_to(self, run: Run, rho: float) -> None:
        """Steps until every sample's present one reaches ``rho``."""
        while True:
            late = (self.reached > rho).nonzero()[:, 0]
            if not len(late):
                return
            self._try(run, late)

    @staticmethod
    def _noise(run: Run, y: Tensor, rho: Tensor) -> Tensor:
        sigma = _column(rho, y)
        return (y - run.model.denoise(y, 1.0, sigma)) / sigma

    def _try(self, run: Run, who: Tensor) -> None:
        """One step of the samples ``who``, kept where its error is within the tolerance."""
        rtol, atol = self.method.rtol, self.method.atol
        y, before, span = self.y[who], self.reached[who], self.span[who]
        last = before - span <= self.end
        after = torch.where(last, self.end, before - span)
        h = _column(after - before, y)
        slopes = [self.slope[who]]
        for place, weights in zip(PLACES, STAGES, strict=True):
            here = y + h * _weighted(weights, slopes)
            level = after if place == 1.0 else before + place * (after - before)
            slopes.append(self._noise(run, here, level))
        scale = atol + rtol * torch.maximum(y.abs(), here.abs())
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
        who, y, here, h = who[kept], y[kept], here[kept], h[kept]
        slopes = [slope[kept] for slope in slopes]
        moved, bend = here - y, h * slopes[0] - (here - y)
        dense = (y, moved, bend, moved - h * slopes[-1] - bend, h * _weighted(DENSE, slopes))
        self.dense = tuple(
            old.index_copy(0, who, new) for old, new in zip(self.dense, dense, strict=True)
        )
        self.y = self.y.index_copy(0, who, here)
        self.slope = self.slope.index_copy(0, who, slopes[-1])
        self.start = self.start.index_copy(0, who, before[kept])
        self.reached = self.reached.index_copy(0, who, after[kept])

    def _check(self, who: Tensor, rho: Tensor, good: Tensor) -> None:
        """Raises where a step has shrunk to nothing or there are too many."""
        stuck = ~good & (self.span[who] < 16 * torch.finfo(torch.float64).eps * rho)
        many = self.tried[who] >= MOST_STEPS
        for bad, what in ((stuck, "steps shrank to nothing"), (many, f"{MOST_STEPS:,} steps")):
            count = int(bad.sum())
            if count:
                where = rho[bad].max().item()
                did = "were not enough" if bad is many else "without meeting it"
                raise ValueError(
                    f"RK45: rtol was {self.method.rtol:g} and atol {self.method.atol:g}; {what} "
                    f"{did} at rho = {where:.4g}, for {count} of {len(self.y)} samples. Take a "
                    "larger tolerance, or look for a denoiser that jumps or is not finite there."
                )


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    pairs = zip(weights, slopes, strict=True)
    return sum(weight * slope for weight, slope in pairs if weight)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """One value per sample (n,), to be broadcast against states (n, *event) in their dtype."""
    return values.to(like.dtype).reshape(-1, *(1,) * (like.ndim - 1))
