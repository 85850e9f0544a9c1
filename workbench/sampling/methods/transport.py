r"""DPM-OT: from noise to noised data points by optimal transport, the rest by a few steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Annotated
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Empirical
from workbench.params import Param
from workbench.processes import EDM, Process
from workbench.processes.affine import Affine
from workbench.processes.spectral import Spectral
from workbench.sampling.grid import Grid, Node
from workbench.sampling.loop import walk
from workbench.sampling.methods.base import Sampler, exponential_step
from workbench.sampling.methods.runge_kutta import Heun
from workbench.sampling.noise import TRANSPORT, NoiseSource, normal, seed_tensor
from workbench.sampling.program import Apply, Program, Step

__all__ = ["DPMOT", "Cells", "semi_discrete"]

#: Normals of a round of the fit at least, and at least so many to a point.
BATCH, EACH = 4096, 4
#: Normals drawn for a fit; its rounds read them at ever other places.
POOL = 1 << 20
#: Steps of the run that draws points where the denoiser has none of its own.
DRAWING = 40


@dataclass(frozen=True)
class Cells:
    r"""A semi-discrete transport of standard normals to points: z goes to the point of

    .. math:: \arg\max_i\, \langle z, y_i\rangle + h_i

    Attributes:
        points: (N, d), float64.
        heights: h (N,), float64.
    """

    points: Tensor
    heights: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """The index of the point of each of ``z`` (n, d); (n,) int64."""
        return torch.addmm(self.heights, z.double(), self.points.T).argmax(1)


def semi_discrete(
    points: Tensor, weights: Tensor | None = None, rounds: int = 300, seed: int = 0
) -> Cells:
    r"""The optimal transport, for squared distance, of N(0, I) to weighted points.

    By stochastic descent (Adam, the second half of the rounds averaged) on the convex

    .. math:: E_z \max_i(\langle z, y_i\rangle + h_i) - \sum_i \nu_i h_i,\qquad
              \text{gradient } P(z \in W_i) - \nu_i

    Args:
        points: (N, *event).
        weights: nu (N,), positive, summing to one; None: all equal.
        rounds: of the descent, each over at least 4096 normals.
        seed: of these.

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
    batch = max(BATCH, EACH * count)
    drawn = max(min(rounds * batch * d, POOL), batch * d)
    pool = normal(seed_tensor([seed], y.device), drawn, [0], TRANSPORT).flatten()
    pool = torch.cat([pool, pool[: batch * d]]).float()  # twice as fast, and enough for a sum
    targets = unit.float().T.contiguous()
    first, second, average = torch.zeros_like(h), torch.zeros_like(h), torch.zeros_like(h)
    for turn in range(1, rounds + 1):
        place = turn * (batch * d + 1) % drawn  # one further on: other numbers meet in a vector
        z = pool[place : place + batch * d].reshape(batch, d)
        cell = torch.addmm(h.float(), z, targets).argmax(1)
        slope = torch.bincount(cell, minlength=count) / batch - nu
        first.mul_(0.9).add_(slope, alpha=0.1)
        second.mul_(0.99).add_(slope.square(), alpha=0.01)
        size = start * (end / start) ** (turn / rounds) / (1 - 0.9**turn)
        h = h - size * first / (second / (1 - 0.99**turn)).sqrt().clamp_(min=0.1 / batch)
        if turn > rounds // 2:
            average += h
    h = average / (rounds - rounds // 2)
    # <z, y> + scale h differs from scale (<z, unit> + h) by <z, mean>, the same for all points.
    return Cells(y, (h - h.mean()) * scale)


#: Transports by denoiser and parameters, which do not depend on the process.
_KNOWN: WeakKeyDictionary[Denoiser, dict[tuple, Cells]] = WeakKeyDictionary()


@dataclass(frozen=True)
class DPMOT(Sampler):
    r"""Optimal transport from noise to data noised to a level, then a few DDIM steps.

    The initial state, in units of the prior, falls into a cell of the semi-discrete transport to
    data points y, :func:`semi_discrete`, and the run goes on from :math:`\alpha_M y + \sigma_M z`
    at the grid's first node M with rho at most ``level``. The transport jumps where the flow would
    have to stretch between modes, so few samples come to lie there. Nodes before M are not walked:
    a state recorded there is alpha y + sigma z with the same z. One evaluation a step from M on;
    the transport is fitted before, once for a denoiser.

    Data points are those of an ``Empirical``, the first ``points`` of them; for other denoisers
    they are drawn by Heun's method (40 steps; not counted as evaluations). So the output is the
    law of these points noised to the level and denoised: from level 0 on the points themselves.
    Order 1 of what follows the jump.

    Source: Li, Li, Wang, Lei, Luo & Gu 2023, *DPM-OT: A New Diffusion Probabilistic Model Based on
    Optimal Transport*, arXiv:2307.11308.
    """

    level: Annotated[float, Param("rho at which the steps begin", gt=0, le=1e9)] = 0.5
    points: Annotated[int, Param("data points; 0: all there are, or 256", ge=0, le=50_000)] = 256
    rounds: Annotated[int, Param("rounds of the transport's fit", ge=1, le=100_000)] = 300
    seed: Annotated[int, Param("of the fit and of drawn points", ge=0, le=2**31 - 1)] = 0
    cells: Cells | None = field(default=None, repr=False, compare=False)
    source: tuple[float, Tensor | float] = field(default=(1.0, 0.0), repr=False, compare=False)

    order = 1
    stochastic = True

    def prepared(self, diffusion, grid: Grid) -> DPMOT:
        process, t = diffusion.process, grid.t[0]
        if isinstance(process, Spectral):
            return self  # refused with the program
        if not process.has_prior:
            raise ValueError(
                f"{process!r} keeps part of the data at t = {t:g}, so there is no noise to "
                "transport; take another process, or another sampler."
            )
        offset: Tensor | float = 0.0
        if isinstance(process, Affine):
            offset = (process.prior_mean(t) - process.shift(t)[0]) * diffusion.condition
        known = _KNOWN.setdefault(diffusion.core, {})
        key = (self.points, self.rounds, self.seed)
        if key not in known:
            points = _data_points(diffusion.core, self.points, self.seed)
            known[key] = semi_discrete(points, None, self.rounds, self.seed)
        return replace(self, cells=known[key], source=(process.prior_std(t), offset))

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
                rows = (Apply(("x", "target", "z"), ("x",), jump, draws=1),)
            elif i < joint:
                rows = (Apply("x", ("target", "z"), partial(_noised, b)),)
            else:
                rows = exponential_step(a, b)
            steps.append(Step(a, b, rows))
        return Program(tuple(steps))

    def _jump(self, b: Node, run, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.cells is None:
            raise ValueError(
                "this DPMOT has no data points yet; wb.sample gives it some, or "
                "DPMOT().prepared(diffusion, grid)."
            )
        std, offset = self.source
        cell = self.cells(((x - offset) / std).reshape(len(x), -1))
        target, z = self.cells.points[cell].to(x.dtype).reshape(x.shape), run.noise()
        return _noised(b, run, target, z), target, z


def _noised(b: Node, run, target: Tensor, z: Tensor) -> Tensor:
    return b.alpha * target + b.sigma * z


def _data_points(denoiser: Denoiser, count: int, seed: int) -> Tensor:
    """The first points of an ``Empirical``; of others so many, drawn by the probability flow."""
    if isinstance(denoiser, Empirical):
        return denoiser.points[: count or None]
    count = count or 256
    largest = 80.0 * max(denoiser.std, 1e-6)
    process = EDM(2.5e-5 * largest, largest)
    grid = Grid.karras(process, DRAWING, "denoise")
    noise = NoiseSource(
        range(seed, seed + count), denoiser.event_shape, denoiser.dtype, denoiser.device
    )
    start = denoiser.mean + largest * noise.start()
    return walk(Heun().program(process, grid), denoiser, start, noise)[0]
