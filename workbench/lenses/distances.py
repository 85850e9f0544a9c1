"""How far a run is from what it should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.diffusion import Diffusion
from workbench.lenses.base import Lens, OnStep, Subject
from workbench.params import Param

__all__ = ["Flow", "to_flow"]


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
    times, start = run["t"].values.tolist(), torch.from_numpy(run["x"].values[0])
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
    """How far the run is from the exact probability flow of its own starts, at each recorded time.

    For Gaussian data; see :func:`to_flow`.
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=1, le=100_000)] = 256

    reads = ("x",)

    def memory(self, dim: int, kept: int) -> int:
        return 32 * self.samples * kept * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        return to_flow(subject.diffusion, subject.run)[["rms"]]
