r"""The phase portrait of a two-dimensional diffusion: its density and its flow at every time.

States shrink or grow over a run by orders of magnitude, so portraits and players show

.. math:: u = x / s,\qquad s = \sqrt{\alpha^2 + \sigma^2/v},

with v the data's variance per coordinate: data units where there is little noise, and noise of the
data's own spread where there is nothing but noise, whatever the process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import xarray as xr

from workbench.denoisers import Denoiser, Level, Perturbed
from workbench.denoisers.level import growth
from workbench.diffusion import Diffusion
from workbench.lenses.base import Lens, OnStep, Subject, stepped
from workbench.params import Param

ABOUT = {
    "log_density": {"long_name": "log-density, relative to its maximum", "units": "nats"},
    "flow": {"long_name": "du per unit of -log rho along the probability flow", "units": "x"},
}


@dataclass(frozen=True)
class Portrait(Lens):
    """Where are states of the plane likely at each noise level, and where do they flow?

    ``log_density`` and ``flow`` on lattices of u = x/s (see :func:`portrait`), read off the
    denoiser: of formulas they are exact themselves. Of a perturbed one, the exact values are those
    of the law that it was perturbed from. The density of a model that knows none is integrated
    over noise levels.
    """

    nodes: Annotated[int, Param("at how many of the recorded times, at most", ge=1, le=128)] = 12
    density: Annotated[int, Param("cells along a side, density", ge=2, le=256)] = 56
    field: Annotated[int, Param("cells along a side, flow", ge=2, le=64)] = 18

    reads = ("x",)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        if tuple(subject.diffusion.event_shape) != (2,):
            raise NotImplementedError(
                "a portrait needs two-dimensional data; these have shape "
                f"{tuple(subject.diffusion.event_shape)}."
            )
        return self._portrait(subject, subject.diffusion, on_step)

    def exact(self, subject: Subject) -> xr.Dataset | None:
        if not isinstance(subject.denoiser, Perturbed):
            return None
        law, condition = subject.denoiser.base, subject.diffusion.condition
        return self._portrait(subject, Diffusion(subject.process, law, condition))

    def findings(self, dataset: xr.Dataset) -> list[str]:
        flow = np.linalg.norm(dataset["flow"].values, axis=-1).mean((1, 2))
        most = int(np.argmax(flow))
        return [
            f"States of the plane move most, by {flow[most]:.2g} for each factor e of the noise "
            f"level, at ρ = {float(dataset['rho'][most]):.3g}."
        ]

    def _portrait(
        self, subject: Subject, diffusion: Diffusion, on_step: OnStep | None = None
    ) -> xr.Dataset:
        run = subject.run.isel(time=spread_nodes(subject.run, self.nodes))
        width = half_width(subject.run)
        found = portrait(diffusion, run, width, self.density, self.field, on_step)
        found = found.rename(time="node").drop_vars("step")
        return found.assign({name: found[name].assign_attrs(ABOUT[name]) for name in found})


def _spread(run: xr.Dataset) -> float:
    """Standard deviation of the data per coordinate, of the run's end where none is known [x]."""
    known = run.attrs.get("data_std")
    if known is None:
        known = float(np.sqrt(run["final"].var("sample").mean()))
    return known or 1.0


def display_scale(run: xr.Dataset) -> np.ndarray:
    """The divisor s (time,) that brings the states of a run to the data's own size."""
    return np.hypot(run["alpha"].values, run["sigma"].values / _spread(run))


def half_width(run: xr.Dataset) -> float:
    """Half the side of the square that holds a two-dimensional run, in units of u = x/s."""
    spread = _spread(run)
    u = run["x"].values / display_scale(run)[:, None, None]
    reach = float(np.nanmax(np.abs(u))) if u.size else 0.0
    return float(np.clip(1.04 * reach, 2.0 * spread, 4.5 * spread))


def spread_nodes(run: xr.Dataset, most: int) -> np.ndarray:
    """Indices of at most ``most`` recorded nodes, spread over steps and over log rho alike.

    All nodes where there are no more; otherwise the outermost two at either end are among them.
    """
    rho, count = run["rho"].values, run.sizes["time"]
    if count <= most:
        return np.arange(count)
    finite = np.flatnonzero(np.isfinite(rho) & (rho > 0))
    place = np.linspace(0.0, 1.0, count)
    if len(finite) > 1:
        level = np.interp(np.arange(count), finite, np.log(rho[finite]))
        place = 0.5 * (place + (level - level[0]) / ((level[-1] - level[0]) or 1.0))
    at = np.searchsorted(np.maximum.accumulate(place), np.linspace(0, 1, max(most - 4, 0)))
    return np.unique(np.clip(np.concatenate([at, [0, 1, count - 2, count - 1]]), 0, count - 1))


def portrait(
    diffusion: Diffusion,
    run: xr.Dataset,
    half_width: float,
    density: int = 56,
    field: int = 18,
    on_step: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    r"""Log-density and flow on lattices over ``[-half_width, half_width]²`` of ``u = x/s``.

    Args:
        diffusion: with a two-dimensional event.
        run: a trajectory's dataset; its recorded times are portrayed.
        half_width: of the square shown, in units of u.
        density, field: cells along a side of the two lattices; values are at cell centres. Without
            cells of density no density is asked for.
        on_step: called as ``on_step(done, total)`` after each time.

    Returns:
        Dataset with ``log_density`` (time, y, x), relative to its maximum at that time and blurred
        by half a cell so that point masses show; and ``flow`` (time, fy, fx, component): du per
        unit of :math:`-\log\rho` along the probability flow, :math:`c D - u/(1 + \rho^2/v)` with
        :math:`c = \alpha/s`, which is regular at pure noise and without noise alike.

    A density that is not known in closed form, of a network, is integrated over noise levels from
    its denoised state and the divergence of that, as :meth:`~workbench.denoisers.Level.log_prob`
    does. The score of a network is far from a gradient where it saw no data; a potential fitted to
    it is wrong where there are data, too.
    """
    if tuple(diffusion.event_shape) != (2,):
        raise ValueError(
            "a portrait needs two-dimensional data; these have shape "
            f"{tuple(diffusion.event_shape)}."
        )
    denoiser = diffusion.denoiser
    scale, variance = display_scale(run), _spread(run) ** 2
    points, axis = _lattice(half_width, field, denoiser)
    flow = np.empty((len(scale), field, field, 2), np.float32)
    for i, (alpha, sigma, s) in enumerate(stepped(_nodes(run), None if density else on_step)):
        shrink = alpha**2 / (alpha**2 + sigma**2 / variance)  # 1 / (1 + rho^2/v)
        denoised = denoiser.denoise(points * s, alpha, sigma)
        flow[i] = ((alpha / s) * denoised - shrink * points).reshape(field, field, 2).cpu().numpy()
    log_density = np.empty((len(scale), 0, 0), np.float32)
    if density:
        log_density = log_densities(diffusion, run, half_width, density, on_step)
    fine = _axis(half_width, density)
    return xr.Dataset(
        {
            "log_density": (("time", "y", "x"), log_density),
            "flow": (("time", "fy", "fx", "component"), flow),
        },
        {
            "t": run["t"],
            "rho": run["rho"],
            "step": run["step"],
            "x": fine,
            "y": fine,
            "fx": axis,
            "fy": axis,
        },
        {"half_width": half_width},
    )


def log_densities(
    diffusion: Diffusion,
    run: xr.Dataset,
    half_width: float,
    cells: int,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """The log-density (time, y, x) of :func:`portrait` alone, which takes the same arguments."""
    denoiser = diffusion.denoiser
    blur = half_width / cells
    nodes = [(alpha, math.hypot(sigma, blur * s), s) for alpha, sigma, s in _nodes(run)]
    out = np.empty((len(nodes), cells, cells), np.float32)
    if knows_density(denoiser):
        points, _ = _lattice(half_width, cells, denoiser)
        each = (denoiser.at(alpha, sigma).log_prob(points * s) for alpha, sigma, s in nodes)
        maps = enumerate(values.reshape(cells, cells).cpu().numpy() for values in each)
    else:
        maps = _integrated(denoiser, nodes, half_width, cells)
    for done, (i, values) in enumerate(maps, 1):
        out[i] = values - values.max()
        if on_step is not None:
            on_step(done, len(nodes))
    return out


def knows_density(denoiser: Denoiser) -> bool:
    """Whether it has log-densities without integrating them over noise levels."""
    return type(denoiser.at(1.0, 1.0))._log_prob is not Level._log_prob


def _nodes(run: xr.Dataset) -> list[tuple[float, float, float]]:
    """alpha, sigma and s at the recorded times."""
    columns = (run["alpha"].values, run["sigma"].values, display_scale(run))
    return list(zip(*(column.tolist() for column in columns), strict=True))


#: Noise levels at which the growth of a log-density is asked for, in each piece of an interval, and
#: the longest piece [ln rho].
RULE, PIECE = 2, 0.5


def _integrated(
    denoiser: Denoiser, nodes: list[tuple[float, float, float]], half_width: float, cells: int
) -> Iterator[tuple[int, np.ndarray]]:
    r"""Log-densities (y, x) of a denoiser that knows none, node by node from the noisiest on.

    As :meth:`Level.log_prob` integrates one, by the heat equation from where all data look
    Gaussian down, but all nodes in one pass: at a state y held, the log-density of a node is that
    of the node before, and what it grew by in between. The lattices shrink with the noise, so a
    state of a node is within that of the node before, where cubic splines give its value.

    Args:
        nodes: alpha, sigma with the blur of a cell in it, and s.

    Yields:
        Which of the nodes, and its log-density up to a constant.
    """
    from scipy.interpolate import RectBivariateSpline

    u, axis = _lattice(half_width, cells, denoiser)
    order = min(3, cells - 1)
    u, mean, v = u.double(), denoiser.mean.flatten().double(), denoiser.std**2
    points, weights = np.polynomial.legendre.leggauss(RULE)
    excess, before, stretch = None, math.inf, 1.0
    for i in sorted(range(len(nodes)), key=lambda i: -nodes[i][1] / max(nodes[i][0], 1e-300)):
        alpha, sigma, s = nodes[i]
        if alpha > 0:
            y, rho = u * (s / alpha), sigma / alpha
            if excess is None:
                far = 1e3 * float((v + (y - mean).square().sum(1).max()) ** 0.5)
                before = max(rho, min(far, denoiser.largest_rho))
                values = torch.zeros_like(y[:, 0])
            else:
                there = axis * (s / alpha / stretch)
                drawn = RectBivariateSpline(axis, axis, excess, kx=order, ky=order)(there, there)
                values = torch.from_numpy(drawn).to(y).flatten()
            width = math.log(before / rho)
            pieces = math.ceil(width / PIECE)
            for k in range(pieces):
                for point, weight in zip(points, weights, strict=True):
                    place = (k + 0.5 + 0.5 * point) / pieces
                    at = y.new_full((1, 1), before * math.exp(-width * place))
                    values -= growth(denoiser, y, at) * (0.5 * weight * width / pieces)
            excess = values.reshape(cells, cells).cpu().numpy()
            before, stretch = rho, s / alpha
        total = (alpha**2 * v + sigma**2) / s**2
        gaussian = -0.5 * (u - mean * (alpha / s)).square().sum(1) / total
        gaussian = gaussian.reshape(cells, cells).cpu().numpy()
        yield i, gaussian if excess is None else gaussian + excess


def _axis(half_width: float, cells: int) -> np.ndarray:
    """Cell centres along a side."""
    return (np.arange(cells) + 0.5) * (2 * half_width / max(cells, 1)) - half_width


def _lattice(half_width: float, cells: int, denoiser) -> tuple[torch.Tensor, np.ndarray]:
    """Cell centres as points (cells², 2), rows of ascending y, and the axis they share."""
    axis = _axis(half_width, cells)
    points = np.stack([np.tile(axis, cells), np.repeat(axis, cells)], 1)
    return torch.from_numpy(points).to(dtype=denoiser.dtype, device=denoiser.device), axis
