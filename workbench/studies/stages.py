"""What a sampler does within a step: the states at which it evaluates the model.

A step of Heun looks at the end of an Euler step before it corrects it; Runge-Kutta methods and
Langevin correctors look at several states. Here they stand as nodes of the run, between its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from workbench.sampling.loop import walk
from workbench.sampling.noise import NOISES
from workbench.sampling.plan import planned
from workbench.sampling.program import Evaluate

if TYPE_CHECKING:
    import xarray

    from workbench.studies.run import Setup


class _Watched:
    """A denoiser that keeps what it is asked, and what it answers."""

    def __init__(self, model) -> None:
        self.model, self.asked = model, []

    def denoise(self, x, alpha, sigma):
        value = self.model.denoise(x, alpha, sigma)
        self.asked.append((x, value, alpha, sigma))
        return value

    def __getattr__(self, name):  # the score and the slope stay as they are
        return getattr(self.model, name)


def staged(setup: Setup, run: xarray.Dataset) -> xarray.Dataset:
    """``run`` with the states within each step as further nodes.

    Args:
        setup: what the run was made of.
        run: its dataset, with ``x`` and ``denoised`` at every node.

    Returns:
        The same variables along a longer time axis. Nodes of the grid keep their values; ``step``
        of the others lies between those of the nodes; ``stage`` names them, and is empty at nodes.

    Raises:
        ValueError: a process of several noise levels at a time or with a condition, or a run that
            holds some of its nodes alone.
    """
    import xarray as xr

    diffusion, grid = setup.diffusion, setup.grid
    process = diffusion.process
    if process.spectral or diffusion.condition is not None:
        raise ValueError(
            f"what happens within a step is shown of processes with one noise level at a time and "
            f"without a condition; {type(process).__name__} is none."
        )
    if run.sizes["time"] != grid.steps + 1:
        raise ValueError(
            "what happens within a step is shown of runs that hold every node; set record every "
            "to 1."
        )
    event, like = diffusion.event_shape, (diffusion.dtype, diffusion.device)
    source = NOISES[setup.study.noise](setup.seeds, event, *like)
    state = torch.from_numpy(run["x"].values[0].copy()).to(diffusion.device, diffusion.dtype)
    state = diffusion.to_core(state, grid.nodes[0].t)
    program = planned(diffusion, setup.sampler, grid, state, False).bound.program
    model, cuts = _Watched(diffusion.core), []
    with torch.no_grad():
        walk(program, model, state, source, None, lambda *_: cuts.append(len(model.asked)))
    nodes = [node for step in program.steps for node in (step.start, step.end)]
    nodes += [row.node for step in program.steps for row in step.rows if type(row) is Evaluate]
    times = {(float(node.alpha), float(node.sigma)): node.t for node in nodes}
    x, denoised = (run[name].values for name in ("x", "denoised"))
    frames: list[tuple] = []  # step, stage, t, alpha, sigma, x, denoised
    for k, step in enumerate(program.steps):
        begin, end = step.start, step.end
        frames.append((k, "", begin.t, begin.alpha, begin.sigma, x[k], denoised[k]))
        asked = model.asked[cuts[k - 1] if k else 0 : cuts[k]]
        inside = [
            one
            for one in asked
            if (float(one[2]), float(one[3])) != (begin.alpha, begin.sigma)
            or not np.allclose(one[0].cpu().numpy(), x[k], rtol=1e-5, atol=1e-6)
        ]
        levels = [float(s) / float(a) if float(a) else math.inf for _, _, a, s in inside]
        names = _names(levels, begin.rho, end.rho)
        for j, (name, (at, value, alpha, sigma)) in enumerate(zip(names, inside, strict=True), 1):
            level = float(alpha), float(sigma)
            t = times.get(level, begin.t + (end.t - begin.t) * j / (len(inside) + 1))
            values = at.cpu().numpy(), value.cpu().numpy()
            frames.append((k + j / (len(inside) + 1), name, t, *level, *values))
    last = program.steps[-1].end
    frames.append((grid.steps, "", last.t, last.alpha, last.sigma, x[-1], denoised[-1]))
    steps, stages, ts, alphas, sigmas, states, estimates = zip(*frames, strict=True)
    rho = [s / a if a else math.inf for a, s in zip(alphas, sigmas, strict=True)]
    along = {"t": ts, "alpha": alphas, "sigma": sigmas, "rho": rho, "step": map(float, steps)}
    coords = {name: ("time", list(values)) for name, values in along.items()}
    dims = run["x"].dims
    return xr.Dataset(
        {
            "x": (dims, np.stack(states), run["x"].attrs),
            "denoised": (dims, np.stack(estimates), run["denoised"].attrs),
        },
        {**coords, "stage": ("time", list(stages)), "seed": run["seed"]},
        run.attrs,
    )


def _names(levels: list[float], begin: float, end: float) -> list[str]:
    """Names of the states of a step from their noise levels rho, and those it leads between."""
    names: list[str] = []
    for i, rho in enumerate(levels, 1):
        if rho > begin:
            names.append("noise added")
        elif rho == begin:
            names.append("corrector")
        elif rho != end or any(name.startswith("stage") for name in names):
            names.append(f"stage {i}")
        else:
            names.append("corrector" if "predictor" in names else "predictor")
    return names
