r"""DPM-OT: optimal transport from noise to noised data points, the rest by a few steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from typing import Annotated, Literal
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Empirical
from workbench.params import Param
from workbench.processes import EDM, Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.loop import walk
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.methods.runge_kutta import Heun
from workbench.sampling.noise import TRANSPORT, NoiseSource, normal, seed_tensor
from workbench.sampling.program import Apply, Program, Step

Source = Annotated[
    Literal["normal", "uniform"], Param("law that is transported: of the prior, or of a cube")
]

#: Normals of a round of the fit at least, and at least so many to a point.
BATCH, EACH = 4096, 4
#: In the half of the rounds that is averaged, and at least so many of them: the masses err by one
#: over the root of how often a cell was counted there, 1.3 % for 256 points and 300 rounds.
COUNTED, PER_CELL = 16_384, 64
#: Normals drawn for a fit at most, so many at once; its rounds read them at ever other places.
POOL, CHUNK = 1 << 22, 1 << 18
#: Steps of the run that draws points where the denoiser has none of its own.
DRAWING = 40


@dataclass(frozen=True)
class Cells:
    r"""A semi-discrete transport of noise to points: z goes to the point of

    .. math:: \arg\max_i\, \langle z, y_i\rangle + h_i

    Attributes:
        points: (N, d), float64.
        heights: h (N,), float64.
        source: law of z, see :func:`semi_discrete`.
    """

    points: Tensor
    heights: Tensor
    source: Source = "normal"

    def __call__(self, z: Tensor) -> Tensor:
        """The index of the point of each of the standard normals ``z`` (n, d); (n,) int64."""
        z = _of_source(z.double(), self.source)
        return torch.addmm(self.heights, z, self.points.T).argmax(1)


def _of_source(z: Tensor, source: Source) -> Tensor:
    """The source's variable from standard normals, coordinate by coordinate; of unit variance."""
    return z if source == "normal" else (torch.special.ndtr(z) - 0.5) * 12**0.5


def _normals(seed: Tensor, numel: int, draw: int) -> Tensor:
    return normal(seed, numel, [draw], TRANSPORT).flatten()


def semi_discrete(
    points: Tensor,
    weights: Tensor | None = None,
    rounds: int = 300,
    seed: int = 0,
    source: Source = "normal",
) -> Cells:
    r"""The optimal transport, for squared distance, of N(0, I) or of a cube to weighted points.

    By stochastic descent (Adam, the second half of the rounds averaged) on the convex

    .. math:: E_z \max_i(\langle z, y_i\rangle + h_i) - \sum_i \nu_i h_i,\qquad
              \text{gradient } P(z \in W_i) - \nu_i

    Args:
        points: (N, *event).
        weights: nu (N,), positive, summing to one; None: all equal.
        rounds: of the descent, each over at least 4096 normals; four times as many in the second
            half.
        seed: of these.
        source: "normal"; or "uniform" in a cube, shifted and scaled to unit variance (which changes
            no cell: heights take up both).

    Source: Gu, Luo, Sun & Yau 2013, arXiv:1302.5472 (variational principle).
    """
    y = points.double().flatten(1)
    count, d = y.shape
    nu = torch.full_like(y[:, 0], 1.0 / count) if weights is None else weights.to(y)
    mean = y.mean(0)
    scale = (y - mean).square().mean().sqrt().item() or 1.0
    unit = (y - mean) / scale
    h = -0.5 * unit.square().sum(1)  # nearest point, from where it is not far to go
    spread = unit.square().sum(1).mean().sqrt().item()
    near = torch.cdist(unit[:256], unit).kthvalue(min(2, count), 1).values.median().item()
    start, end = 0.2 * spread, min(0.2, 0.1 * near) * max(near, 1e-3)
    few = max(BATCH, EACH * count)
    many = max(few, min(COUNTED, PER_CELL * count))
    drawn = max(min(rounds * many * d, POOL), many * d)
    key = seed_tensor([seed], y.device)
    draws = range(1, 2 + (drawn - 1) // CHUNK)
    pool = torch.cat([_of_source(_normals(key, CHUNK, draw), source).float() for draw in draws])
    pool = torch.cat([pool[:drawn], pool[: many * d]])  # float32: twice as fast, enough for a sum
    targets = unit.float().T.contiguous()
    first, second, average = torch.zeros_like(h), torch.zeros_like(h), torch.zeros_like(h)
    for turn in range(1, rounds + 1):
        batch = many if turn > rounds // 2 else few
        place = turn * (many * d + 1) % drawn  # one further on: other numbers meet in a vector
        z = pool[place : place + batch * d].reshape(batch, d)
        slope = _masses(z, targets, h.float()) - nu
        first.mul_(0.9).add_(slope, alpha=0.1)
        second.mul_(0.99).add_(slope.square(), alpha=0.01)
        size = start * (end / start) ** (turn / rounds) / (1 - 0.9**turn)
        h = h - size * first / (second / (1 - 0.99**turn)).sqrt().clamp_(min=0.1 / batch)
        if turn > rounds // 2:
            average += h
    h = average / (rounds - rounds // 2)
    # <z, y> + scale h differs from scale (<z, unit> + h) by <z, mean>, the same for all points.
    return Cells(y, (h - h.mean()) * scale, source)


def _masses(z: Tensor, targets: Tensor, heights: Tensor) -> Tensor:
    """Share (N,) of ``z`` (n, d) in each cell of ``targets`` (d, N), in float64.

    In pieces that stay in a cache, counted by products: three times as fast as one argmax.
    """
    counts = torch.zeros(len(heights), dtype=torch.float64, device=z.device)
    score = z.new_empty(max(1, (1 << 18) // len(heights)), len(heights))
    ones = z.new_ones(1, len(score))
    for piece in z.split(len(score)):
        here = torch.addmm(heights, piece, targets, out=score[: len(piece)])
        inside = torch.ge(here, here.amax(1, keepdim=True), out=here)
        counts += (ones[:, : len(piece)] @ inside)[0]
    return counts / len(z)


@dataclass(frozen=True)
class Targets:
    """Where a transport leads, in y = x/alpha.

    Attributes:
        cells: the transport to its points.
        data: of each point (N, *event).
        noise: of each point (N, *event), so that the point is data + rho noise at the level's rho;
            None: each sample has its own.
    """

    cells: Cells
    data: Tensor
    noise: Tensor | None


class _Fit:
    """Targets that are fitted once, when a run first asks for them."""

    def __init__(self, sampler: DPMOT, denoiser: Denoiser, rho: float) -> None:
        self._given = sampler, ref(denoiser), rho

    @cached_property
    def targets(self) -> Targets:
        sampler, denoiser, rho = self._given
        return sampler._fit(denoiser(), rho)


#: Fits by denoiser and parameters, which depend on the process by the level's rho alone.
_FITS: WeakKeyDictionary[Denoiser, dict[tuple, _Fit]] = WeakKeyDictionary()


@dataclass(frozen=True)
class DPMOT(Sampler):
    r"""Optimal transport from noise to noised data points, then a few DDIM steps.

    The initial state, in units of the prior, falls into a cell of the semi-discrete transport,
    :func:`semi_discrete`, to points at the grid's first node M with rho at most ``level``,

    .. math:: x_M = \alpha_M y_i + \sigma_M z_i,\qquad
              i = \arg\max_j\, \langle x_T, \alpha_M y_j + \sigma_M z_j\rangle + h_j ,

    and the run goes on from there. The transport jumps where the flow would have to stretch between
    modes, so few samples come to lie there. Nodes before M are not walked: a state recorded there
    is alpha y + sigma z with the same y and z. One evaluation a step from M on; the transport is
    fitted before, once for a denoiser and a rho.

    ``targets``, of which the authors' code has the first two:

    - "noised": data points y, each with one noise z (``forward_diffusion`` there). Without noise in
      the steps there are as many different samples as points.
    - "walked": the states in which long runs of the probability flow pass the level (there those of
      annealed Langevin dynamics); y is their denoised state and z their noise prediction.
    - "clean": the transport leads to data points y, and each sample has its own z. The output is
      the law of these points noised to the level and denoised.

    ``source``: "normal" transports the prior; "uniform" is the authors' code, which draws from a
    cube (``torch.rand``); here each coordinate of the prior goes to its quantile. Their code walks
    on with annealed Langevin dynamics, which ``eta`` above 0 comes nearer to; its choice among the
    ``topk`` highest cells by their angle is not used by their settings (topk = 1), nor here.

    Data points are those of an ``Empirical``, the first ``points`` of them; for other denoisers
    they are drawn by Heun's method (40 steps; not counted as evaluations). Order 1 of what follows
    the jump.

    Source: Li, Li, Wang, Lei, Luo & Gu 2023, *DPM-OT: A New Diffusion Probabilistic Model Based on
    Optimal Transport*, arXiv:2307.11308, and the authors' code.
    """

    level: Annotated[float, Param("rho at which the steps begin", gt=0, le=1e9)] = 0.5
    points: Annotated[int, Param("data points; 0: all there are, or 256", ge=0, le=50_000)] = 256
    rounds: Annotated[int, Param("rounds of the transport's fit", ge=1, le=100_000)] = 300
    seed: Annotated[
        int, Param("of the fit, of drawn points and of their noise", ge=0, le=2**31 - 1)
    ] = 0
    targets: Annotated[
        Literal["noised", "walked", "clean"],
        Param("transport to noised data, to states of the flow, or to data noised for each sample"),
    ] = "noised"
    source: Source = "normal"
    eta: Annotated[float, Param("noise of the steps: 0 DDIM, 1 ancestral", ge=0, le=1)] = 0.0
    fit: _Fit | None = field(default=None, repr=False, compare=False)
    start: tuple[float, Tensor | float] = field(default=(1.0, 0.0), repr=False, compare=False)

    order = 1
    #: Even where it draws nothing: no flow leads from its start to its end.
    stochastic = True

    def prepared(self, diffusion, grid: Grid) -> DPMOT:
        process, t = diffusion.process, grid.t[0]
        if process.spectral:
            return self  # refused with the program
        if not process.has_prior:
            raise ValueError(
                f"{process!r} keeps part of the data at t = {t:g}, so there is no noise to "
                "transport; take another process, or another sampler."
            )
        offset: Tensor | float = 0.0
        if process.affine:
            offset = (process.prior_mean(t) - process.shift(t)[0]) * diffusion.condition
        fits = _FITS.setdefault(diffusion.core, {})
        rho = 0.0 if self.targets == "clean" else grid.rho[self._joint(grid)]
        key = (self.points, self.rounds, self.seed, self.targets, self.source, rho)
        if key not in fits:
            fits[key] = _Fit(self, diffusion.core, rho)
        return replace(self, fit=fits[key], start=(process.prior_std(t), offset))

    @property
    def fitted(self) -> Targets:
        """Where the transport leads.

        Raises:
            ValueError: a sampler that was prepared for no diffusion.
        """
        if self.fit is None:
            raise ValueError(
                "this DPMOT has no data points yet; wb.sample gives it some, or "
                "DPMOT().prepared(diffusion, grid)."
            )
        return self.fit.targets

    def _fit(self, denoiser: Denoiser, rho: float) -> Targets:
        noise = None
        if self.targets == "walked":
            places = _walked(denoiser, self.points or 256, self.seed, rho)
            data = denoiser.denoise(places, 1.0, rho) if rho else places
            noise = (places - data) / (rho or 1.0)
        elif isinstance(denoiser, Empirical):
            data = denoiser.points[: self.points or None]
        else:
            data = _walked(denoiser, self.points or 256, self.seed, 0.0)
        if self.targets == "noised":
            seeds = seed_tensor([self.seed], data.device)
            noise = _normals(seeds, data.numel(), 0).reshape(data.shape).to(data)
        places = data if noise is None else data + rho * noise
        cells = semi_discrete(places, None, self.rounds, self.seed, self.source)
        return Targets(cells, data, noise)

    def nfe(self, grid: Grid) -> int:
        return grid.steps - self._joint(grid)

    def _joint(self, grid: Grid) -> int:
        """The index of node M."""
        noisy = [i for i, node in enumerate(grid.nodes) if i and node.sigma > 0]
        low = [i for i in noisy if grid.rho[i] <= self.level]
        return low[0] if low else (noisy[-1] if noisy else 1)

    def _program(self, process: Process, grid: Grid) -> Program:
        joint, steps = self._joint(grid), []
        for i, (a, b) in enumerate(pairwise(grid.nodes)):
            if i == 0:
                jump = partial(self._jump, b)
                draws = int(self.targets == "clean")
                rows = (Apply(("x", "data", "noise"), ("x",), jump, draws=draws),)
            elif i < joint:
                rows = (Apply("x", ("data", "noise"), partial(_noised, b)),)
            else:
                rows = exponential_step(a, b, self.eta)
            steps.append(Step(a, b, rows))
        return Program(tuple(steps))

    def _jump(self, b: Node, run, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fitted, (std, offset) = self.fitted, self.start
        cell = fitted.cells(((x - offset) / std).reshape(len(x), -1))
        data = fitted.data[cell].to(x.dtype)
        noise = run.noise() if fitted.noise is None else fitted.noise[cell].to(x.dtype)
        return _noised(b, run, data, noise), data, noise


def _noised(b: Node, run, data: Tensor, noise: Tensor) -> Tensor:
    return b.alpha * data + b.sigma * noise


def _walked(denoiser: Denoiser, count: int, seed: int, rho: float) -> Tensor:
    """Where so many runs of the probability flow of y = x/alpha are at ``rho``."""
    least, largest = 2.5e-5, max(80.0 * max(denoiser.std, 1e-6), 10 * rho)
    process = EDM(rho or least * largest, largest)
    grid = Grid.karras(process, DRAWING, "stop" if rho else "denoise")
    noise = NoiseSource(
        range(seed, seed + count), denoiser.event_shape, denoiser.dtype, denoiser.device
    )
    start = denoiser.mean + largest * noise.start()
    return walk(Heun().program(process, grid), denoiser, start, noise)[0]
