r"""Denoising MCMC: a Markov chain over states and noise levels together, then a short descent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Annotated, Literal

import torch
from torch import Tensor

from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.program import Apply, Program, Row, Step

#: Numbers that go to one call of the log-density.
BLOCK = 1 << 18


@dataclass(frozen=True)
class DenoisingMCMC(Sampler):
    r"""Denoising Langevin Gibbs: wander over states and noise levels, then denoise from below.

    In units of the data, :math:`y = x/\alpha`, the chain has the law
    :math:`p(y, \rho) \propto p_\rho(y)` over log-uniform levels, from the grid's last to the level
    where the chain begins, the grid's first at most ``largest``. One update is

    .. math:: y \leftarrow y + \tfrac{\epsilon}{2} s(y, \rho) + \sqrt{\epsilon}\, z,\qquad
              \rho \sim p(\rho | y) = \mathrm{softmax}_j \log p_{\rho_j}(y)

    with :math:`\epsilon = \eta\rho^2`, or eta itself as published (``units="data"``: steps far too
    large for the small levels, from which the next draw of the level then escapes). The draw of the
    level is exact, by the denoiser's log-density; published is its argmax (``draw="argmax"``, with
    a trained classifier), which narrows the levels. Langevin steps leave :math:`p_\rho` only nearly
    invariant (for a small eta); ``metropolis`` accepts or refuses them so that it is exactly so,
    for a second evaluation an update.

    After ``burn_in`` updates and ``skip`` more, each sample starts its descent from the state of
    least noise among the last ``skip`` + 1 (``pick="least"``, published; biased towards small
    levels), or from the current one (``"last"``). The descent is by Heun's method or DDIM, on the
    grid's nodes: a sample waits at its own level until a node lies below it (``descent="join"``:
    many wait long), or goes over its own levels, which share out its own way down in log rho as the
    grid does its own (``"own"``, published). Until then a recorded state is alpha of the node
    times y, with less noise than the node has.

    Nodes above ``largest`` are walked like the rest of the grid, so that the chain starts where the
    law of the data shows. Evaluations of the log-density are not counted, those of waiting samples
    are. Two evaluations a Heun step, one a DDIM step or one to sigma = 0.

    Raises:
        ValueError: a denoiser without a log-density.

    Source: Kim & Ye 2022, *Denoising MCMC for Accelerating Diffusion-Based Generative Models*,
    arXiv:2209.14593, algorithm 1.
    """

    eta: Annotated[float, Param("Langevin step, in the units below", gt=0, le=100)] = 0.5
    burn_in: Annotated[int, Param("updates before the ones to pick from", ge=0, le=100_000)] = 10
    skip: Annotated[int, Param("updates to pick from", ge=1, le=100_000)] = 10
    levels: Annotated[int, Param("noise levels of the chain", ge=2, le=10_000)] = 100
    largest: Annotated[float, Param("largest rho of the chain", gt=0, le=1e9)] = 10.0
    units: Annotated[Literal["level", "data"], Param("eta in units of rho^2, or as it is")] = (
        "level"
    )
    draw: Annotated[Literal["gibbs", "argmax"], Param("how the level is drawn")] = "gibbs"
    pick: Annotated[Literal["least", "last"], Param("the state to go down from")] = "least"
    descent: Annotated[Literal["join", "own"], Param("levels on the way down")] = "join"
    integrator: Annotated[Literal["heun", "ddim"], Param("the method of the way down")] = "heun"
    metropolis: Annotated[bool, Param("make Langevin steps exact")] = False

    stochastic = True

    @property
    def order(self) -> int:
        """Of the way down."""
        return 2 if self.integrator == "heun" else 1

    def prepared(self, diffusion, grid: Grid) -> DenoisingMCMC:
        core = diffusion.core
        try:
            core.log_prob(core.mean[None], 1.0, 1.0)
        except NotImplementedError:
            raise ValueError(
                f"{diffusion.denoiser!r} has no log-density, from which DenoisingMCMC draws noise "
                "levels; take a denoiser that has one (Gaussian, Mixture, Empirical) or another "
                "sampler."
            ) from None
        return self

    def program(self, process: Process, grid: Grid) -> Program:
        if process.spectral:
            raise ValueError(
                f"DenoisingMCMC is not linear: its chain over noise levels is not defined for "
                f"{process!r}, which has one for every mode; take another process, or a linear "
                "sampler, e.g. Heun or DPMSolverPP."
            )
        return super().program(process, grid)

    def nfe(self, grid: Grid) -> int:
        chain = (1 + self.metropolis) * (self.burn_in + self.skip)
        finite = any(node.alpha > 0 for node in grid.nodes[:-1])
        return super().nfe(grid) + (chain if finite else 0)

    def evaluations(self, a: Node, b: Node) -> int:
        return self.order if a.alpha > 0 else 1

    def _program(self, process: Process, grid: Grid) -> Program:
        starts = [node for node in grid.nodes[:-1] if node.alpha > 0]
        begin = next((n for n in starts if n.rho <= self.largest), starts[-1] if starts else None)
        bottom = min((n.rho for n in grid.nodes if n.sigma > 0), default=0.0)
        steps, level = [], None
        for a, b in pairwise(grid.nodes):
            if a.alpha == 0:
                steps.append(Step(a, b, exponential_step(a, b)))
                continue
            rows: list[Row] = []
            if a is begin:
                chain = partial(self._chain, a, self._levels(bottom, a.rho))
                rows.append(Apply(("x", "rho"), ("x",), chain, *self._cost()))
                level = "rho"
            count = 1 if b.sigma == 0 else self.order
            if level is None:
                rows.append(Apply("x", ("x",), partial(self._above, a, b), count))
            else:
                down = partial(self._down, a, b, bottom)
                rows.append(Apply(("x", "rho"), ("x", "rho"), down, count))
            steps.append(Step(a, b, tuple(rows)))
        return Program(tuple(steps))

    def _cost(self) -> tuple[int, int]:
        """Evaluations and draws of the chain."""
        updates = self.burn_in + self.skip
        each = 1 + (self.draw == "gibbs") + self.metropolis
        return updates * (1 + self.metropolis), updates * each + (self.draw == "gibbs")

    def _levels(self, low: float, high: float) -> list[float]:
        if not low < high:
            return [high]
        ratio = math.log(high / low) / (self.levels - 1)
        return [low * math.exp(ratio * j) for j in range(self.levels - 1)] + [high]

    # -- the chain -------------------------------------------------------------------------------

    def _chain(self, a: Node, levels: list[float], run, x: Tensor) -> tuple[Tensor, Tensor]:
        y, rho = gibbs_chain(self, run, x / a.alpha, levels)
        return y * a.alpha, rho

    # -- the way down ----------------------------------------------------------------------------

    def _above(self, a: Node, b: Node, run, x: Tensor) -> Tensor:
        here = x.new_full((len(x),) + (1,) * (x.ndim - 1), a.rho)
        goal = torch.full_like(here, b.rho)
        return self._descend(run, x / a.alpha, here, goal, b.sigma > 0) * b.alpha

    def _down(self, a: Node, b: Node, bottom: float, run, x: Tensor, rho: Tensor):
        if b.sigma == 0:
            goal = torch.zeros_like(rho)
        elif self.descent == "join":
            goal = rho.clamp(max=b.rho)
        elif b.rho <= bottom:
            goal = torch.full_like(rho, bottom)
        else:
            share = math.log(a.rho / b.rho) / math.log(a.rho / bottom)
            goal = rho * (bottom / rho) ** share
        return self._descend(run, x / a.alpha, rho, goal, b.sigma > 0) * b.alpha, goal

    def _descend(self, run, y: Tensor, rho: Tensor, goal: Tensor, noisy: bool) -> Tensor:
        """From each sample's own level to its goal; where these are the same it stays."""
        slope = (y - run.denoise(y, 1.0, rho)) / rho
        there = y + (goal - rho) * slope
        if self.integrator == "heun" and noisy:
            other = (there - run.denoise(there, 1.0, goal)) / goal
            there = y + 0.5 * (goal - rho) * (slope + other)
        return torch.where(goal < rho, there, y)


def gibbs_chain(
    sampler: DenoisingMCMC, run, y: Tensor, levels: list[float], rho: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The states and levels that ``sampler`` picks from its chains, one for each sample.

    Args:
        sampler: says how many updates, and of which kind.
        run: of the loop: the denoiser and the noise.
        y: states in units of the data (n, *event).
        levels: the noise levels, ascending.
        rho: the level each sample starts at (n, 1, ...); None draws it given y.
    """
    values = torch.tensor(levels, dtype=torch.float64, device=y.device).to(y.dtype)
    shape = (len(y),) + (1,) * (y.ndim - 1)
    if rho is None:
        rho = _drawn(sampler, run, y, values).reshape(shape)
    best, least = y, rho
    for update in range(sampler.burn_in + sampler.skip):
        y = _langevin(sampler, run, y, rho)
        rho = _drawn(sampler, run, y, values).reshape(shape)
        better = (rho < least) | (update < sampler.burn_in or sampler.pick == "last")
        best, least = torch.where(better, y, best), torch.where(better, rho, least)
    return best, least


def _langevin(sampler: DenoisingMCMC, run, y: Tensor, rho: Tensor) -> Tensor:
    r"""A Langevin step of :math:`p_\rho`; with Metropolis' correction it leaves it invariant."""
    square = rho * rho
    size = sampler.eta * (square if sampler.units == "level" else torch.ones_like(square))

    def mean(state: Tensor) -> Tensor:
        return state + 0.5 * size * (run.denoise(state, 1.0, rho) - state) / square

    def log_prob(state: Tensor) -> Tensor:
        return run.model.log_prob(state, 1.0, rho).double()

    middle = mean(y)
    proposed = middle + size.sqrt() * run.noise()
    if not sampler.metropolis:
        return proposed
    there, back = (proposed - middle).square(), (y - mean(proposed)).square()
    gain = 0.5 * ((there - back) / size).reshape(len(y), -1).sum(1).double()
    gain = gain + log_prob(proposed) - log_prob(y)
    accepted = _uniform(run.noise()).log() < gain
    return torch.where(accepted.reshape(rho.shape), proposed, y)


def _drawn(sampler: DenoisingMCMC, run, y: Tensor, values: Tensor) -> Tensor:
    """The level of each sample given its state (n,), of equal prior weights."""
    pieces = values.split(max(1, BLOCK // y.numel()))
    logits = torch.cat([_log_probs(run, y, piece) for piece in pieces])
    if sampler.draw == "argmax":
        return values[logits.argmax(0)]
    sums = logits.softmax(0).cumsum(0)
    below = sums < _uniform(run.noise()) * sums[-1]
    return values[below.sum(0).clamp(max=len(values) - 1)]


def _log_probs(run, y: Tensor, levels: Tensor) -> Tensor:
    """The log-density of each state at each level, (levels, n)."""
    states = y.expand(len(levels), *y.shape)
    sigma = levels[:, None].expand(len(levels), len(y))
    return run.model.log_prob(states, 1.0, sigma).double()


def _uniform(z: Tensor) -> Tensor:
    """A uniform number for each sample (n,), from the first of its normals."""
    return torch.special.ndtr(z.reshape(len(z), -1)[:, 0].double())
