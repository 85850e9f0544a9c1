r"""The phase portrait of a two-dimensional diffusion: its density and its flow at every time.

States shrink or grow over a run by orders of magnitude, so portraits and players show

.. math:: u = x / s,\qquad s = \sqrt{\alpha^2 + \sigma^2/v},

with v the data's variance per coordinate: data units where there is little noise, and noise of the
data's own spread where there is nothing but noise, whatever the process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import xarray as xr

from workbench.denoisers import Level, Perturbed
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
    of the law that it was perturbed from. The density of a model that knows none is integrated from
    its score.
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
        by half a cell so that point masses show (of a network, that whose gradient is nearest to
        its score, by least squares); and ``flow`` (time, fy, fx, component): du per
        unit of :math:`-\log\rho` along the probability flow, :math:`c D - u/(1 + \rho^2/v)` with
        :math:`c = \alpha/s`, which is regular at pure noise and without noise alike.
    """
    if tuple(diffusion.event_shape) != (2,):
        raise ValueError(
            "a portrait needs two-dimensional data; these have shape "
            f"{tuple(diffusion.event_shape)}."
        )
    denoiser = diffusion.denoiser
    scale, variance = display_scale(run), _spread(run) ** 2
    fine, axis = _lattice(half_width, density, denoiser)
    coarse, field_axis = _lattice(half_width, field, denoiser)
    blur = half_width / max(density, 1)
    log_density = np.empty((len(scale), density, density), np.float32)
    flow = np.empty((len(scale), field, field, 2), np.float32)
    nodes = zip(run["alpha"].values.tolist(), run["sigma"].values.tolist(), scale, strict=True)
    for i, (alpha, sigma, s) in enumerate(stepped([*nodes], on_step)):
        s = float(s)
        level = denoiser.at(alpha, float(np.hypot(sigma, blur * s)))
        if type(level)._log_prob is Level._log_prob:  # no closed form: an evaluation a cell
            score = level.score(fine * s).reshape(density, density, 2).double().cpu().numpy()
            values = _potential(score, 2 * blur * s)
        else:
            values = level.log_prob(fine * s).reshape(density, density).cpu().numpy()
        log_density[i] = values - values.max()
        shrink = alpha**2 / (alpha**2 + sigma**2 / variance)  # 1 / (1 + rho^2/v)
        denoised = denoiser.denoise(coarse * s, alpha, sigma)
        velocity = (alpha / s) * denoised - shrink * coarse
        flow[i] = velocity.reshape(field, field, 2).cpu().numpy()
    return xr.Dataset(
        {
            "log_density": (("time", "y", "x"), log_density),
            "flow": (("time", "fy", "fx", "component"), flow),
        },
        {
            "t": run["t"],
            "rho": run["rho"],
            "step": run["step"],
            "x": axis,
            "y": axis,
            "fx": field_axis,
            "fy": field_axis,
        },
        {"half_width": half_width},
    )


def _potential(score: np.ndarray, cell: float) -> np.ndarray:
    """The function (y, x) whose differences are nearest to those that a field (y, x, 2) says.

    Least squares over the edges of the lattice, each with the mean slope of its ends: Poisson's
    equation with free borders, which the cosine transform solves.
    """
    from scipy.fft import dctn, idctn

    along = 0.5 * cell * (score[:, 1:, 0] + score[:, :-1, 0])
    up = 0.5 * cell * (score[1:, :, 1] + score[:-1, :, 1])
    right = np.zeros(score.shape[:2])
    right[:, 1:] += along
    right[:, :-1] -= along
    right[1:] += up
    right[:-1] -= up
    curves = [2 - 2 * np.cos(np.pi * np.arange(n) / n) for n in right.shape]
    total = curves[0][:, None] + curves[1]
    total[0, 0] = np.inf  # a constant is free
    return idctn(dctn(right, norm="ortho") / total, norm="ortho")


def _lattice(half_width: float, cells: int, denoiser) -> tuple[torch.Tensor, np.ndarray]:
    """Cell centres as points (cells², 2), rows of ascending y, and the axis they share."""
    axis = (np.arange(cells) + 0.5) * (2 * half_width / cells) - half_width
    points = np.stack([np.tile(axis, cells), np.repeat(axis, cells)], 1)
    return torch.from_numpy(points).to(dtype=denoiser.dtype, device=denoiser.device), axis
