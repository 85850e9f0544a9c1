"""How far a run is from what it should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.lenses.base import Lens, OnStep, Subject
from workbench.params import Param
from workbench.sampling import Record
from workbench.trajectory import sample

__all__ = ["Flow", "affine_paths", "to_flow"]


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
    if "x" not in run:
        raise ValueError("the run has no recorded x; record it with wb.Record(['x', ...]).")
    values = run["x"].values
    exact = np.stack([state.cpu().numpy() for state in _flowed(diffusion, run)])
    apart = (values.astype(np.float64) - exact).reshape(len(values), -1)
    rms = np.sqrt(np.mean(apart**2, axis=1))
    return xr.Dataset(
        {
            "exact": (run["x"].dims, exact, {"long_name": "exact probability flow"}),
            "rms": ("time", rms, {"long_name": "RMS distance to the exact flow"}),
        },
        {name: run[name] for name in ("t", "rho", "seed")},
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
        count = square.shape[1]
        if count > 1:
            spread = square.std(1, ddof=1) / np.sqrt(count)
            with np.errstate(invalid="ignore", divide="ignore"):
                error = np.where(spread > 0, spread / (2 * found["rms"].values), 0.0)
            found["rms_se"] = ("time", error, {"units": "x"})
        return found

    def exact(self, subject: Subject) -> xr.Dataset | None:
        path = affine_paths(subject)
        if path is None:
            return None
        twin, _ = subject.diffusion.diagonalised()
        ends = list(
            zip(*(subject.run[key].values.tolist() for key in ("alpha", "sigma")), strict=True)
        )
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
