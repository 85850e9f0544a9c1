r"""DPM-Solver-v3: the linear part of the flow, and how the rest changes, learnt from the model.

With :math:`y = x/\alpha`, :math:`\lambda = \log(\alpha/\sigma)` and one :math:`l(\lambda)` per
dimension the flow is

.. math:: \frac{dy}{d\lambda} = -l\,y - f,\qquad f = (\sigma\hat\epsilon - l x)/\alpha
          = (1 - l)\,y - D,

and with :math:`s, b` such that :math:`df/d\lambda \approx s f + b` along it, the exact solution is

.. math:: y' = e^{-(L' - L)} y - \int e^{-(L' - L_\tau) + S_\tau - S}\,[g + B_\tau]\,d\tau,\qquad
          B_\tau = \int^\tau e^{-(S_r - S)} b_r\,dr,

L and S the integrals of l and s, in which :math:`g = e^{-(S_\tau - S)} f - B` hardly changes.
:math:`l = 1, s = 0` is DPM-Solver++, :math:`l = 0, s = -1` DPM-Solver (b = 0 in both).

Source: Zheng, Lu, Chen & Zhu 2023, arXiv:2310.13268.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import Annotated
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian, Mixture
from workbench.diffusion import Diffusion
from workbench.params import Param
from workbench.processes import Process
from workbench.sampling.grid import Grid, Node
from workbench.sampling.methods.base import exponential_step, remembered
from workbench.sampling.methods.multistep import Multistep, Start
from workbench.sampling.methods.single_steps import single_step
from workbench.sampling.noise import NoiseSource
from workbench.sampling.program import Apply, Combine, Evaluate, Program, Row, Step

#: Numbers of Jacobians formed at once; beyond, their diagonals are estimated by probes.
EXACT = 1 << 24
#: Deviations of f that are rounding (of the state's size), and that s need not follow (of the
#: data's deviation): below, s goes to zero, smoothly.
ROUNDING, SMALL = 1e-10, 1e-4
#: Points of a panel.
PANEL = 16


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    r"""The empirical model statistics l, s, b, one per dimension, as functions of log(alpha/sigma).

    Held as values at the Chebyshev points of equal panels of the range (:meth:`points`) and
    interpolated by the polynomial of each panel, whose integrals are exact.

    Args:
        low, high: the range of log(alpha/sigma).
        linear: l (nodes, d), the mean diagonal of :math:`\sigma\,\partial\hat\epsilon/\partial x`.
        slope, offset: s and b (nodes, d), the regression of df/dlambda on f.
        event_shape: of one sample, d numbers.
    """

    low: float
    high: float
    linear: np.ndarray
    slope: np.ndarray
    offset: np.ndarray
    event_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        shapes = {np.shape(v) for v in (self.linear, self.slope, self.offset)}
        nodes, wanted = np.shape(self.linear)[0], math.prod(self.event_shape)
        if len(shapes) > 1 or np.shape(self.linear) != (nodes, wanted) or self.low >= self.high:
            raise ValueError(
                f"linear, slope and offset have shapes {sorted(shapes)} from {self.low:g} to "
                f"{self.high:g}; each must be (nodes, {wanted}), over a range that ascends."
            )
        if nodes > PANEL and nodes % PANEL:
            raise ValueError(
                f"there are {nodes} nodes; take those that ModelStatistics.points gives, at most "
                f"{PANEL} or a multiple of that."
            )

    @staticmethod
    def points(low: float, high: float, nodes: int) -> np.ndarray:
        """The noise levels, ascending: about ``nodes`` of them, a multiple of 16 (or just one)."""
        count = max(1, round(nodes / PANEL))
        inner = 0.5 * (1 + np.polynomial.chebyshev.chebpts1(min(nodes, PANEL)))
        return low + (high - low) / count * (np.arange(count)[:, None] + inner).ravel()

    @classmethod
    def estimate(
        cls,
        diffusion: Diffusion,
        samples: int = 64,
        nodes: int = 128,
        seeds: Sequence[int] | None = None,
        span: tuple[float, float] | None = None,
    ) -> ModelStatistics:
        r"""Statistics of a model along its own flow, in float64.

        States start as Gaussian noise around the data's mean and its mirror image, and follow the
        flow through all nodes; D's slope along it gives :math:`df/d\lambda`. Three to five
        evaluations of the model at each node. Jacobian diagonals are exact for Gaussians, mixtures
        and in few dimensions, otherwise one random probe for each state.

        Args:
            diffusion: of a process with one alpha and sigma.
            samples: states, half of them mirror images.
            nodes: noise levels, 16 at least.
            seeds: one for each half of the samples; None: 0, 1, 2, ...
            span: the range of log(alpha/sigma); None: that of the process.
        """
        if diffusion.process.spectral or nodes < PANEL or samples < 2:
            raise ValueError(
                f"the statistics of {diffusion!r} were asked for {nodes} nodes and {samples} "
                f"samples; take {PANEL} nodes or more, two samples or more, and a process with one "
                "alpha and sigma."
            )
        low, high = _span(_ends(diffusion.process)) if span is None else span
        core, places = diffusion.core.to(torch.float64), cls.points(low, high, nodes)
        half = range(max(1, samples // 2)) if seeds is None else seeds
        source = NoiseSource(half, core.event_shape, torch.float64, core.device)
        z, probes = (torch.cat([v, -v]) for v in (source.start(), source.step(0)))
        probes = probes.sign().flatten(1)
        width = math.hypot((core.std or 1.0), math.exp(-places[0]))
        y = core.mean + width * z if hasattr(core, "mean") else width * z
        kept = []
        for here, there in zip(places, [*places[1:], None], strict=True):
            rho = math.exp(-here)
            denoised, bend = core.denoise(y, 1.0, rho), core.slope(y, 1.0, rho)
            linear = 1.0 - _diagonal(core, y, rho, probes)
            rest = (1 - linear) * y - denoised
            drift = (linear - 1) * (y - denoised) + rho * bend  # df/dlambda + l' y
            middle = rest.mean(0)
            apart = rest - middle
            apart = apart * (apart.square().mean(0) > ROUNDING**2 * y.square().mean())
            products = [(apart * other).mean(0) for other in (apart, y, drift)]
            told = (linear, *products, y.mean(0), drift.mean(0), middle)
            kept.append(torch.stack([v.flatten() for v in told]))
            if there is not None:
                h = math.exp(-there) - rho
                y = y + h * (y - denoised) / rho - 0.5 * h * h / rho * bend
        table = torch.stack(kept).cpu().numpy().transpose(1, 0, 2)
        linear, spread, with_y, with_drift, mean_y, mean_drift, middle = table
        panels, chebyshev = _series(linear), np.polynomial.chebyshev
        derivative = chebyshev.chebder(panels, axis=1) * (2 * len(panels) / (high - low))
        points = chebyshev.chebvander(chebyshev.chebpts1(PANEL), PANEL - 2)
        change = (points @ derivative).reshape(linear.shape)
        slope = (with_drift - change * with_y) / (spread + (SMALL * (core.std or 1.0)) ** 2)
        offset = mean_drift - change * mean_y - slope * middle
        offset[np.abs(offset) < 1e-9 * (core.std or 1.0)] = 0.0
        return cls(low, high, linear, slope, offset, tuple(core.event_shape))

    @cached_property
    def _coefficients(self) -> np.ndarray:
        """Chebyshev coefficients (panels, 17, 4 d) of l, b and the integrals of l and s."""
        values = (np.asarray(v, dtype=np.float64) for v in (self.linear, self.offset, self.slope))
        linear, offset, slope = map(_series, values)
        half, table = 0.5 * (self.high - self.low) / len(linear), []
        integrated = np.polynomial.chebyshev.chebint
        for series, integral in ((linear, 0), (offset, 0), (linear, 1), (slope, 1)):
            made = np.zeros_like(np.pad(series, ((0, 0), (0, 1), (0, 0))))
            part = half * integrated(series, lbnd=-1, axis=1) if integral else series
            made[:, : part.shape[1]] = part
            if integral:  # each panel goes on from the one before
                made[1:, 0] += made.sum(1)[:-1].cumsum(0)
            table.append(made)
        return np.concatenate(table, -1)

    @cached_property
    def has_offset(self) -> bool:
        return bool(np.any(self.offset))

    def at(self, places, *which: int) -> list[np.ndarray]:
        """At ``places`` (m,) l, b and the integrals of l and s from the lowest place, or those of
        them that are named by number: each (m, d).
        """
        table, places = self._coefficients, np.atleast_1d(places)
        x = (places - self.low) / (self.high - self.low) * len(table)
        if x.min() < -1e-9 or x.max() > len(table) + 1e-9:
            raise ValueError(
                f"the model statistics reach from log(alpha/sigma) = {self.low:.4g} to "
                f"{self.high:.4g} and the grid goes beyond; estimate them for this grid."
            )
        panel = np.minimum(np.maximum(x.astype(np.int64), 0), len(table) - 1)
        angle = np.arccos(np.minimum(np.maximum(2 * (x - panel) - 1, -1), 1))
        basis = np.cos(angle[:, None] * np.arange(table.shape[1]))  # Chebyshev polynomials
        d, which = table.shape[2] // 4, which or range(4)
        columns = slice(min(which) * d, (max(which) + 1) * d)
        first, last = int(panel.min()), int(panel.max())
        if first == last:
            made = basis @ table[first, :, columns]
        else:
            made = np.empty((len(x), columns.stop - columns.start))
            for one in range(first, last + 1):
                own = panel == one
                made[own] = basis[own] @ table[one, :, columns]
        return [made[:, (i - min(which)) * d :][:, :d] for i in which]

    def shaped(self, values: np.ndarray) -> float | Tensor:
        """Values (d,) as a coefficient (1, *event); a number where they are all one."""
        if values.size == 1:
            return float(values[0])
        return torch.from_numpy(values).reshape(1, *self.event_shape)

    def __repr__(self) -> str:
        return f"ModelStatistics({len(self.linear)} nodes, {self.low:.3g} to {self.high:.3g})"


@dataclass(frozen=True)
class DPMSolverV3(Multistep):
    r"""DPM-Solver-v3: a multistep method whose coefficients are statistics of the model.

    Exact for Gaussians with independent coordinates at any number of steps. One evaluation a step;
    those of the statistics, made once for a denoiser and a range of noise, are not counted. A step
    from pure noise or to sigma = 0 is DDIM's. Predictor only (published with an optional
    corrector), of growing order in the first steps: of other data than Gaussians, a run of order 3
    that does not start at noise far above them is of order 2, unless it starts with single steps
    (DPM-Solver++'s, which are not exact for Gaussians).

    Where b is not 0 a step ends with a constant, which no combination of registers holds, so the
    program is not linear. Where there is no model to ask, in a program made by hand, or no one
    noise level, under a spectral process, it is DPM-Solver++ (l = 1, s = b = 0), Taylor weights.

    Source: Zheng et al. 2023, arXiv:2310.13268, algorithm 1 and section 3.
    """

    order: Annotated[int, Param("order: evaluations that a step uses", ge=1, le=3)] = 3
    samples: Annotated[int, Param("states that the statistics are made of", ge=2, le=65_536)] = 64
    nodes: Annotated[int, Param("noise levels of the statistics", ge=16, le=1024)] = 128
    statistics: ModelStatistics | None = None
    start: Start = "published"

    def prepared(self, diffusion: Diffusion, grid: Grid) -> DPMSolverV3:
        """With statistics of the diffusion's model, estimated where it has none."""
        if self.statistics is not None or diffusion.process.spectral:
            return self
        span = _span(_ends(diffusion.process), grid.nodes)
        known = _KNOWN.setdefault(diffusion.denoiser, {})
        key = (self.samples, self.nodes, span)
        if key not in known:
            known[key] = ModelStatistics.estimate(diffusion, self.samples, self.nodes, span=span)
        return replace(self, statistics=known[key])

    def _program(self, process: Process, grid: Grid) -> Program:
        given = self.statistics or _plain(grid)
        steps, history, count = [], [], 0
        for i, (a, b) in enumerate(pairwise(grid.nodes)):
            if a.alpha == 0 or b.sigma == 0:
                steps.append(Step(a, b, exponential_step(a, b)))
                continue
            history = remembered(history, a, f"F{i % self.order}", self.order)
            name, (linear,) = history[0][1], given.at(_place(a), 0)[0]
            rest = Combine(name, {"x": given.shaped((1 - linear) / a.alpha), "D": -1.0})
            count += 1
            if self._starts(count, self.order):
                first, *others = single_step(a, b, self.order)
                steps.append(Step(a, b, (first, rest, *others)))
                continue
            state, past, constant = np.ones_like(linear), [0 * linear] * len(history), None
            if a.rho != b.rho:
                places = [_place(node) for node, _ in history]
                state, past, constant = _step(given, places, _place(b))
            terms = {"x": given.shaped(b.alpha / a.alpha * state)}
            for (_, other), weight in zip(history, past, strict=True):
                terms[other] = given.shaped(b.alpha * weight)
            rows: list[Row] = [Evaluate("D", "x", a), rest, Combine("x", terms)]
            if constant is not None:
                shift = torch.from_numpy(b.alpha * constant).reshape(1, *given.event_shape)
                rows.append(Apply("x", ("x",), partial(_shifted, shift)))
            steps.append(Step(a, b, tuple(rows)))
        return Program(tuple(steps))


#: Statistics that have been made: they depend on the denoiser and the range alone.
_KNOWN: WeakKeyDictionary[Denoiser, dict] = WeakKeyDictionary()


def _plain(grid: Grid) -> ModelStatistics:
    """Those of DPM-Solver++, of every model."""
    one, (low, high) = np.ones((1, 1)), _span(grid.nodes)
    return ModelStatistics(low, high + (low == high), one, 0 * one, 0 * one, ())


def _place(node: Node) -> float:
    """log(alpha/sigma)."""
    return -math.log(node.rho)


def _span(*nodes: Sequence[Node]) -> tuple[float, float]:
    """The range of log(alpha/sigma) of nodes."""
    places = [_place(n) for some in nodes for n in some if n.alpha > 0 and n.sigma > 0]
    return (min(places), max(places)) if places else (0.0, 1.0)


def _ends(process: Process) -> tuple[Node, ...]:
    """Nodes at both ends of a process."""
    return Grid.log_snr(process, 3).nodes


def _diagonal(core: Denoiser, y: Tensor, rho: float, probes: Tensor) -> Tensor:
    """Mean over the states of the diagonal of dD/dy, in the shape of one sample."""
    known = isinstance(core, Gaussian | Mixture) and len(y) * core.dim**2 <= EXACT
    if known or core.dim <= 4:
        matrices = core.jacobian(y, 1.0, rho)
        return matrices.diagonal(dim1=-2, dim2=-1).mean(0).reshape(core.event_shape)
    pushed = core.at(1.0, rho).jvp(y, probes.reshape(y.shape)).flatten(1)
    return (probes * pushed).mean(0).reshape(core.event_shape)


def _series(values: np.ndarray) -> np.ndarray:
    """Chebyshev coefficients (panels, n, d) of the polynomials through values (panels n, d)."""
    n, chebyshev = min(len(values), PANEL), np.polynomial.chebyshev
    points = chebyshev.chebvander(chebyshev.chebpts1(n), n - 1)
    points = 2 / n * points.T
    points[0] *= 0.5
    return points @ values.reshape(-1, n, values.shape[-1])


@cache
def _quadrature(pieces: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gauss-Legendre points and weights on [0, 1], so many in each of equal pieces, and the matrix
    of the integrals from 0 to each point."""
    legendre = np.polynomial.legendre
    x, w = legendre.leggauss(count)
    basis = legendre.legvander(x, count)
    to_series = (basis[:, :-1] * w[:, None] * (np.arange(count) + 0.5)).T
    integrals = [legendre.legint(row, lbnd=-1) for row in np.eye(count)]
    own = 0.5 * basis @ np.array(integrals).T @ to_series
    places = (np.arange(pieces)[:, None] + 0.5 * (1 + x)) / pieces
    before = np.tril(np.ones((pieces, pieces)), -1)
    whole = np.kron(np.eye(pieces), own) + np.kron(before, np.tile(0.5 * w, (count, 1)))
    return places.ravel(), np.tile(0.5 * w, pieces) / pieces, whole / pieces


def _step(given: ModelStatistics, places: Sequence[float], end: float):
    """Weights (d,) of the state, of f at ``places`` (latest first), and a constant or None: y'."""
    begin, h = places[0], end - places[0]
    # Poles of l and s are at least pi/2 off the real axis, so few points do for a short step.
    x, w, integrals = _quadrature(min(64, math.ceil(h)), 20 if h > 0.5 else 12)
    inner = begin + h * x
    # b between the latest place and each of those before it, too.
    between = [place + (begin - place) * x for place in places[1:]] if given.has_offset else []
    which = (1, 2, 3) if given.has_offset else (2, 3)
    *b, linear, slope = given.at(np.concatenate([inner, [begin, end], places, *between]), *which)
    n = len(x)
    l_begin, l_end, s_begin = linear[n], linear[n + 1], slope[n]
    weight = linear[:n] + slope[:n]
    weight -= l_end + s_begin
    np.exp(weight, out=weight)
    weight *= h * w[:, None]
    past, constant = [], None
    if given.has_offset:
        changes = b[0] * np.exp(s_begin - slope)
        constant = -(weight * (h * integrals @ changes[:n])).sum(0)
    for j, place in enumerate(places):
        others = [p for k, p in enumerate(places) if k != j]
        lagrange = math.prod(((inner - p) / (place - p) for p in others), start=np.ones(n))
        share = -lagrange @ weight
        past.append(share * np.exp(s_begin - slope[n + 2 + j]))
        if given.has_offset and j:
            start = n + 2 + len(places) + (j - 1) * n
            constant = constant + share * (begin - place) * (w @ changes[start : start + n])
    return np.exp(l_begin - l_end), past, constant


def _shifted(shift: Tensor, run, x: Tensor) -> Tensor:
    return x + shift.to(x)
