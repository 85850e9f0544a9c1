"""How well data survive the way to noise and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.diffusion import Diffusion
from workbench.lenses.teleport import matched_gaussian
from workbench.processes import Process
from workbench.sampling import GRIDS, Grid
from workbench.sampling.methods.inversion import Inversion, stability

__all__ = ["round_trip"]

#: Precisions in which the trip is made.
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
#: Halves of the trip.
WAYS = ("encode", "decode")


def round_trip(
    diffusion: Diffusion,
    grid: str | Callable[[Process, int], Grid],
    inversions: Sequence[Inversion],
    x: Tensor,
    steps: Sequence[int] = (10, 20, 50, 100),
    variances: Tensor | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Encode, decode, compare: for each inversion, number of steps and precision.

    Two errors meet here. An inversion that is not exact errs by its discretisation, which falls
    with the steps and is the same in both precisions. An exact one errs by rounding, enlarged by
    its ``stability``, which method and grid determine alone: where that of encoding is large, the
    noise explodes and the rounding with it, and even where the trip succeeds, the noise is known to
    that many roundings only; where that of decoding is large, so is what comes back.

    Args:
        diffusion: process and denoiser.
        grid: its name in ``wb.GRIDS``, or a function ``(process, steps) -> Grid``.
        inversions: which to compare.
        x: states (n, *event) at the end of the grids.
        steps: of the grids.
        variances: of the modes for the stability [x²]; None: those of the Gaussian with the mean
            and covariance of the data (under a spectral process, of each mode by itself).
        on_step: called as ``on_step(done, total)`` after each trip; what it raises ends the run.

    Returns:
        Dataset over ``inversion``, ``steps``, ``precision`` and ``sample``: ``error``, root mean
        square over coordinates of what came back minus ``x`` [x], infinite where numbers overflow;
        ``noise``, the root mean square of the noise (latent.x) [x]; ``encode_stability`` and
        ``decode_stability`` (inversion, steps), see ``Inversion.stability``, nan where the denoiser
        has no covariance to tell; ``encode_nfe`` and ``decode_nfe`` (inversion, steps).

    Raises:
        ValueError: no inversions or steps, an unknown grid, and as ``Inversion.encode``.
        TypeError: as ``Inversion.encode``.
    """
    if isinstance(grid, str) and grid not in GRIDS:
        raise ValueError(f"grid was {grid!r}; it must be one of {', '.join(GRIDS)}, or a function.")
    if not callable(grid) and not isinstance(grid, str):
        raise TypeError(
            f"grid was {grid!r}; it must be a name ({', '.join(GRIDS)}) or a function "
            "(process, steps) -> Grid, e.g. wb.Grid.uniform: each number of steps has its own grid."
        )
    if not len(inversions) or not len(steps):
        raise ValueError("there must be at least one inversion and one number of steps.")
    make = GRIDS[grid] if isinstance(grid, str) else grid
    grids = [make(diffusion.process, count) for count in steps]
    known = _variances(diffusion) if variances is None else variances
    shape = (len(inversions), len(steps))
    error = np.empty((*shape, len(PRECISIONS), len(x)))
    noise, gain = np.empty_like(error), np.full((2, *shape), np.nan)
    nfe = np.empty((2, *shape), dtype=int)
    models = [diffusion.to(dtype) for dtype in PRECISIONS.values()]
    done, total = 0, error[..., 0].size
    for i, inversion in enumerate(inversions):
        for j, mine in enumerate(grids):
            for k, model in enumerate(models):
                given = x.to(model.dtype)
                latent = inversion.encode(model, mine, given)
                back = inversion.decode(model, mine, latent)
                error[i, j, k] = _rms(back.double() - given.double())
                noise[i, j, k] = _rms(latent.x.double())
                done += 1
                if on_step is not None:
                    on_step(done, total)
            process = diffusion.process
            nfe[:, i, j] = inversion.encoding(process, mine).nfe, inversion.nfe(mine)
            if known is not None:
                gain[:, i, j] = [stability(inversion, process, mine, known, way) for way in WAYS]
    where = ("inversion", "steps", "precision", "sample")
    return xr.Dataset(
        {
            "error": (where, error, {"long_name": "RMS error of a round trip"}),
            "noise": (where, noise, {"long_name": "RMS of the noise"}),
            "encode_stability": (
                where[:2],
                gain[0],
                {"long_name": "gain of rounding, encoding"},
            ),
            "decode_stability": (where[:2], gain[1], {"long_name": "gain of rounding, decoding"}),
            "encode_nfe": (where[:2], nfe[0], {"long_name": "evaluations of encoding"}),
            "decode_nfe": (where[:2], nfe[1], {"long_name": "evaluations of decoding"}),
        },
        {
            "inversion": [repr(inversion) for inversion in inversions],
            "steps": list(steps),
            "precision": list(PRECISIONS),
        },
        {
            "process": repr(diffusion.process),
            "denoiser": repr(diffusion.denoiser),
            "grid": grids[0].name,
        },
    )


def _rms(apart: Tensor) -> np.ndarray:
    rms = apart.flatten(1).square().mean(1).sqrt()
    return torch.where(rms.isnan(), torch.inf, rms).cpu().numpy()


def _variances(diffusion: Diffusion) -> Tensor | None:
    """Of the modes of the data: along the basis of a spectral process, else the principal ones."""
    try:
        twin = matched_gaussian(diffusion.to(torch.float64).core)
    except NotImplementedError:
        return None
    if diffusion.process.spectral:
        return twin.cov.diagonal()
    return twin.diagonalised()[0].variances.clamp_min(0.0)
