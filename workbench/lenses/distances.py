"""How far a run is from what it should be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.lenses.base import Lens, OnStep, Subject, stepped
from workbench.lenses.errors import root_mean
from workbench.lenses.portrait import spread_nodes
from workbench.params import Param
from workbench.sampling import Record
from workbench.trajectory import sample

#: Most nodes at which a refined flow is integrated; between them it is interpolated.
NODES = 96

#: A refined flow has converged when its error, as doubling its steps tells it, is, as a root mean
#: square over samples and coordinates, less than this share of the data's standard deviation, and
#: less than this share of the largest distance of the run from it.
TOLERANCE, OF_DISTANCE = 1e-3, 0.02

#: Nodes beyond which a refined flow is first tried with fewer steps than nodes.
MANY = 16


def to_flow(diffusion: Diffusion, run: xr.Dataset) -> xr.Dataset:
    r"""The exact probability flow from the run's own starting states, and the distance to it.

    Args:
        diffusion: of a denoiser with a closed-form flow (a Gaussian).
        run: a trajectory's dataset with ``x`` recorded.

    Returns:
        Dataset with ``exact`` (time, sample, *event) and ``rms`` (time): the root mean square over
        samples and coordinates of ``x - exact`` [x]. For a deterministic sampler it is the
        discretisation error; for a stochastic one it measures how far the noise has carried the
        samples away.

    Raises:
        NotImplementedError: where no closed form exists, with the reason.
        ValueError: ``x`` was not recorded.
    """
    values = _recorded(run)
    exact = np.stack([state.cpu().numpy() for state in _flowed(diffusion, run)])
    return _beside(run, values, exact)


def _recorded(run: xr.Dataset) -> np.ndarray:
    if "x" not in run:
        raise ValueError("the run has no recorded x; record it with wb.Record(['x', ...]).")
    return run["x"].values


def _rms(values: np.ndarray, exact: np.ndarray) -> np.ndarray:
    apart = (values.astype(np.float64) - exact).reshape(len(values), -1)
    return np.sqrt(np.mean(apart**2, axis=1))


def _beside(run: xr.Dataset, values: np.ndarray, exact: np.ndarray) -> xr.Dataset:
    rms = _rms(values, exact)
    return xr.Dataset(
        {
            "exact": (run["x"].dims, exact, {"long_name": "exact probability flow"}),
            "rms": ("time", rms, {"long_name": "RMS distance to the exact flow"}),
        },
        {name: run[name] for name in ("t", "rho")} | {"seed": run["seed"][: exact.shape[1]]},
    )


def _flowed(diffusion: Diffusion, run: xr.Dataset) -> Iterator[Tensor]:
    """The exact flow of the starting states, at each recorded time."""
    times, start = run["t"].values.tolist(), torch.from_numpy(run["x"].values[0].copy())
    start = start.to(diffusion.device, diffusion.dtype)
    if diffusion.process.spectral:
        for t in times:
            yield diffusion.flow(start, times[0], t)
        return
    # By alpha and sigma, not by t: a last step to sigma = 0 may lie below the process's own.
    pairs = list(zip(run["alpha"].values.tolist(), run["sigma"].values.tolist(), strict=True))
    begin = diffusion.to_core(start, times[0])
    for t, end in zip(times, pairs, strict=True):
        yield diffusion.from_core(diffusion.core.flow(begin, pairs[0], end), t)


def refined_flow(
    diffusion: Diffusion,
    run: xr.Dataset,
    samples: int = 1024,
    evaluations: int = 2048,
    on_step: OnStep | None = None,
) -> xr.Dataset:
    r"""The probability flow from the run's own starts, integrated until it has converged.

    For data without a closed-form flow. In units of :math:`r = \sqrt{\alpha^2+\sigma^2}` the flow
    is one curve for every process, here in :math:`\ell = \log\rho`, with
    :math:`\cos\theta = \alpha/r`:

    .. math:: \frac{d(x/r)}{d\ell} = \cos\theta\,(\cos\theta\, x/r - D),

    from pure noise in :math:`\theta` itself, and to no noise by a last denoised state. Each step
    of the run is cut into 1, 2, 4, ... steps of the classical Runge-Kutta method in float64, until
    doubling them changes nothing that is seen (:data:`TOLERANCE`, :data:`OF_DISTANCE`); a run of
    many steps is first walked with half a step each, two nodes at a time. A denoiser
    without closed form, a network, keeps its own precision.

    Args:
        diffusion: process and denoiser.
        run: a trajectory's dataset with ``x`` recorded.
        samples: how many samples are integrated, the first ones.
        evaluations: of the denoiser for each sample, after which no more steps are cut.
        on_step: called as ``on_step(done, evaluations)`` with those of each sample so far; raise in
            it to stop.

    Returns:
        As of :func:`to_flow`, of the first ``samples``, with attributes ``substeps`` (of each step
        of the run), ``error`` (estimated, of the last states, RMS [x]), ``converged``, and
        ``note``, which says so in a sentence.

    Raises:
        ValueError: ``x`` was not recorded, or the flow is not finite.
    """
    count = min(samples, run.sizes["sample"])
    values, times = _recorded(run)[:, :count], run["t"].values
    start = torch.from_numpy(values[0].copy()).to(diffusion.device, torch.float64)
    line = (_ByMode if diffusion.process.spectral else _ByLevel)(diffusion, run)
    exactly = line.diffusion
    begin = line.enter(exactly.to_core(start, float(times[0])))
    spread = float(run.attrs.get("data_std") or values[-1].std() or 1.0)
    substeps = line.first
    asked = 0

    def walk(substeps: float) -> Tensor:
        """The flow with ``substeps`` a node, and its cost counted."""
        nonlocal asked
        cost, before = line.cost(substeps), asked

        def step(done: int, total: int) -> None:
            if on_step is not None:
                on_step(min(int(before + cost * done / total), evaluations), evaluations)

        asked += cost
        return line.walk(begin, substeps, step)

    path = walk(substeps)
    while True:
        finer = walk(2 * substeps)
        coarse, substeps = line.shared(substeps), 2 * substeps
        change = (finer[coarse] - path).flatten(1).square().mean(1).sqrt()
        path, at = finer, line.nodes
        if not path.isfinite().all():
            raise ValueError("the probability flow from these starts is not finite.")
        seen = float((_rms(values[at], line.bring(path, at)) / line.scale[at]).max())
        # Of order 4: what is left is a fifteenth of what the doubling changed; steps longer than
        # those of the run show less than that order.
        order = 15 if substeps > 1 else 5
        error, most = float(change.max()) / order, min(TOLERANCE * spread, OF_DISTANCE * seen)
        enough = error <= max(line.rounding * spread, most)
        if enough or asked + line.cost(2 * substeps) > evaluations:
            break
    error = float(change[-1] * line.scale[-1]) / order
    made = _beside(run, values, line.leave(path))
    part = f"; of the first {count} samples" if count < run.sizes["sample"] else ""
    doubt = "" if enough else "; it has not converged"
    made.attrs = {
        "substeps": int(substeps),
        "error": error,
        "converged": int(enough),
        "note": f"The exact flow has no closed form here: it was integrated in float64{line.own}, "
        f"{substeps:g} Runge-Kutta step{'s' * (substeps > 1)} (order 4) a node, and is off by "
        f"about {error:.0e} (RMS) at its end, as halving its steps tells{doubt}{part}.",
    }
    return made


class _ByLevel:
    """The flow along log rho, of states in units of r = hypot(alpha, sigma).

    Attributes:
        rounding: error that rounding may leave, in units of the data's standard deviation.
        own: what a sentence says of a denoiser that keeps its own precision.
    """

    def __init__(self, diffusion: Diffusion, run: xr.Dataset) -> None:
        self.own, self.rounding = "", 1e-9
        self.diffusion = diffusion.to(torch.float64) if diffusion.denoiser.closed else diffusion
        if self.diffusion.dtype != torch.float64:
            self.own = f", the denoiser in {str(diffusion.dtype).removeprefix('torch.')}"
            self.rounding = 16 * torch.finfo(diffusion.dtype).eps
        self.times, self.nodes = run["t"].values.tolist(), spread_nodes(run, NODES)
        alpha, sigma = run["alpha"].values, run["sigma"].values
        self.scale, self.angle = np.hypot(alpha, sigma), np.arctan2(sigma, alpha)
        with np.errstate(divide="ignore"):
            self.level = np.log(sigma) - np.log(alpha)
        self.bound: dict[tuple[float, float], Callable[[Tensor], Tensor]] = {}

    def enter(self, u: Tensor) -> Tensor:
        return u / self.scale[0]

    @property
    def first(self) -> float:
        """Steps a node of the first walk: half of one where there are many nodes."""
        return 0.5 if len(self.nodes) > MANY else 1

    def shared(self, substeps: float) -> list[int]:
        """Which nodes of the integration a walk stops at: two steps in one leave out every other
        one, but for the first and the last, which are cut further (see :meth:`_between`)."""
        last = len(self.nodes) - 1
        every = range(last + 1) if substeps >= 1 else {0, *range(1, last, 2), last - 1, last}
        return sorted(every)

    def cost(self, substeps: float) -> int:
        return int(4 * substeps * (len(self.nodes) - 1))

    def walk(self, u: Tensor, substeps: float, on_step: OnStep) -> Tensor:
        """The states at the nodes of :meth:`shared`, (node, *state)."""
        nodes = [self.nodes[i] for i in self.shared(substeps)]
        states = [u]
        for a, b in stepped([*pairwise(nodes)], on_step):
            states.append(self._between(states[-1], a, b, substeps))
        return torch.stack(states)

    def _between(self, u: Tensor, a: int, b: int, substeps: float) -> Tensor:
        if self.angle[a] == self.angle[b]:
            return u
        start, end = self.level[a], self.level[b]
        if np.isinf(start):  # from pure noise
            if np.isinf(end):
                return self._denoised(0.0, 1.0)(u)
            return _runge_kutta(self._by_angle, u, self.angle[a], self.angle[b], int(2 * substeps))
        if np.isfinite(end):
            return _runge_kutta(self._by_level, u, start, end, max(1, int(substeps)))
        last = start - np.log(1e3)
        u = _runge_kutta(self._by_level, u, start, last, int(4 * substeps))
        angle = np.arctan(np.exp(last))
        return self._denoised(float(np.cos(angle)), float(np.sin(angle)))(u)

    def _denoised(self, cos: float, sin: float) -> Callable[[Tensor], Tensor]:
        """The denoised state of states at a noise level, in the denoiser's own precision; half of a
        walk's levels are those of the walk before."""
        key = round(cos, 14), round(sin, 14)
        if key not in self.bound:
            level, dtype = self.diffusion.core.at(cos, sin), self.diffusion.dtype
            self.bound[key] = lambda u: level.denoised(u.to(dtype)).to(u.dtype)
        return self.bound[key]

    def _by_angle(self, angle: float):
        cos, sin = max(float(np.cos(angle)), 0.0), float(np.sin(angle))
        denoised = self._denoised(cos if cos > 1e-15 else 0.0, sin)
        return lambda u: (cos * u - denoised(u)) / sin

    def _by_level(self, log_rho: float):
        angle = np.arctan(np.exp(log_rho))
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        denoised = self._denoised(cos, sin)
        return lambda u: cos * (cos * u - denoised(u))

    def leave(self, states: Tensor) -> np.ndarray:
        """The states x at every recorded node; between the nodes cubic in log rho, by slopes."""
        whole = states.new_empty(len(self.level), *states.shape[1:])
        whole[self.nodes] = states
        slopes: dict[int, Tensor] = {}
        for k, (i, j) in enumerate(zip(self.nodes, self.nodes[1:], strict=False)):
            if j == i + 1:
                continue
            for node, state in ((i, states[k]), (j, states[k + 1])):
                if node not in slopes:
                    slopes[node] = self._by_level(self.level[node])(state)
            h = self.level[j] - self.level[i]
            w = states.new_tensor((self.level[i + 1 : j] - self.level[i]) / h)
            keep, bend = (1 + 2 * w) * (1 - w) ** 2, w * (1 - w) * h
            weights = torch.stack([keep, 1 - keep, bend * (1 - w), -bend * w], 1)
            ends = torch.stack([states[k], states[k + 1], slopes[i], slopes[j]])
            whole[i + 1 : j] = (weights @ ends.flatten(1)).view(len(w), *states.shape[1:])
        return self.bring(whole, range(len(whole)))

    def bring(self, states: Tensor, nodes: Sequence[int]) -> np.ndarray:
        """States in units of r at some recorded nodes, as states x."""
        whole = states * states.new_tensor(self.scale[nodes]).reshape(-1, *[1] * (states.ndim - 1))
        if self.diffusion.condition is not None:
            times = [self.times[i] for i in nodes]
            whole = torch.stack([*map(self.diffusion.from_core, whole, times)])
        return whole.cpu().numpy()


class _ByMode:
    """The flow of a process with one level per mode, in its own time."""

    rounding, own = 1e-9, ""

    def __init__(self, diffusion: Diffusion, run: xr.Dataset) -> None:
        self.diffusion, self.times = diffusion.to(torch.float64), run["t"].values.tolist()
        self.scale = np.hypot(run["alpha"].values, run["sigma"].values)
        self.first, self.nodes = 1, list(range(len(self.times)))

    def enter(self, u: Tensor) -> Tensor:
        return self.diffusion.from_core(u, self.times[0])

    def shared(self, substeps: float) -> list[int]:
        return list(range(len(self.times)))

    def cost(self, substeps: int) -> int:
        return 4 * substeps * (len(self.times) - 1)

    def walk(self, x: Tensor, substeps: int, on_step: OnStep) -> Tensor:
        def field(t: float):
            return lambda x: self.diffusion.velocity(x, t)

        states = [x]
        for a, b in stepped([*pairwise(self.times)], on_step):
            x = _runge_kutta(field, x, a, b or 1e-3 * a, substeps)
            states.append(x if b else self.diffusion.denoised(x, 1e-3 * a))
        return torch.stack(states)

    def leave(self, states: Tensor) -> np.ndarray:
        return states.cpu().numpy()

    def bring(self, states: Tensor, nodes: Sequence[int]) -> np.ndarray:
        return states.cpu().numpy()


def _runge_kutta(field, y: Tensor, start: float, end: float, steps: int) -> Tensor:
    """The classical method of order 4; ``field(s)`` is the slope at s, a function of the state."""
    h, here = (end - start) / steps, field(start)
    for i in range(steps):
        middle, then = field(start + (i + 0.5) * h), field(start + (i + 1) * h)
        first = here(y)
        second = middle(y + 0.5 * h * first)
        third = middle(y + 0.5 * h * second)
        y = y + h / 6 * (first + 2 * (second + third) + then(y + h * third))
        here = then
    return y


@dataclass(frozen=True)
class Flow(Lens):
    """How far is the run from the exact probability flow of its own starts, at each recorded time?

    For Gaussian data; see :func:`to_flow`. Exact for deterministic linear samplers, as a mean over
    all starts.
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=1, le=100_000)] = 256

    reads = ("x",)

    def memory(self, dim: int, kept: int) -> int:
        return 32 * self.samples * kept * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        flow = to_flow(subject.diffusion, subject.run)
        apart = subject.run["x"].values.astype(np.float64) - flow["exact"].values
        square = np.square(apart).reshape(*apart.shape[:2], -1).mean(2)  # (time, sample)
        found = flow[["rms"]]
        found["rms"].attrs["units"] = "x"
        if square.shape[1] > 1:
            found["rms_se"] = ("time", root_mean(square)[1], {"units": "x"})
        return found

    def exact(self, subject: Subject) -> xr.Dataset | None:
        path = affine_paths(subject)
        if path is None:
            return None
        twin, _ = subject.diffusion.diagonalised()
        levels = (subject.run[key].values.tolist() for key in ("alpha", "sigma"))
        ends = list(zip(*levels, strict=True))
        begin = path[0].reshape(2, *twin.event_shape)
        flow = torch.stack([twin.denoiser.flow(begin, ends[0], end).flatten(1) for end in ends])
        zero, one = (path - flow).unbind(1)
        square = zero.square() + (one - zero).square()  # mean, and what the start adds
        return xr.Dataset({"rms": ("time", square.mean(1).sqrt().cpu().numpy())})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        worst = int(np.nanargmax(dataset["rms"].values))
        end, most = (float(dataset["rms"][i]) for i in (-1, worst))
        return [
            f"The paths end {end:.3g} (root mean square per coordinate) from the exact flow of "
            f"their starts; they are farthest, {most:.3g}, at t = {float(dataset['t'][worst]):.3g}."
        ]


def affine_paths(subject: Subject) -> Tensor | None:
    """Two runs of the twin in the eigenbasis of Gaussian data, (time, 2, d): from the start 0, and
    from one standard deviation of the prior in each mode.

    A deterministic linear sampler maps every start affinely and mode by mode, so these tell all of
    its paths. None where that does not hold.
    """
    diffusion, sampler, grid = subject.diffusion, subject.sampler, subject.grid
    plain = diffusion.process.single_level
    if sampler is None or not plain or not isinstance(diffusion.denoiser, Gaussian):
        return None
    program = sampler.prepared(diffusion, grid).program(diffusion.process, grid)
    if not program.linear or sampler.stochastic:
        return None
    twin, _ = diffusion.diagonalised()
    like = torch.zeros(twin.event_shape, dtype=torch.float64, device=twin.device)
    x = torch.stack([like, like + float(twin.process.prior_std(grid.t[0]))])
    run = sample(twin, sampler, grid, [0, 1], Record(["x"]), x=x)
    rows = [run.kept.index(int(step)) for step in subject.run["step"].values]
    return run["x"].flatten(2)[rows]
