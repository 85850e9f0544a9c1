"""How far a run is from what it should be."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from workbench.diffusion import Diffusion

__all__ = ["to_flow"]


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
    coefficients = list(
        zip(run["alpha"].values.tolist(), run["sigma"].values.tolist(), strict=True)
    )
    start = torch.from_numpy(values[0]).to(diffusion.device)
    exact = np.stack(
        [diffusion.denoiser.flow(start, coefficients[0], end).cpu().numpy() for end in coefficients]
    )
    apart = (values.astype(np.float64) - exact).reshape(len(values), -1)
    rms = np.sqrt(np.mean(apart**2, axis=1))
    return xr.Dataset(
        {
            "exact": (run["x"].dims, exact, {"long_name": "exact probability flow"}),
            "rms": ("time", rms, {"long_name": "RMS distance to the exact flow"}),
        },
        {name: run[name] for name in ("t", "rho", "seed")},
    )
