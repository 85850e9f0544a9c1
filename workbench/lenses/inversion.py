"""How well samples survive the way to noise and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench import registry
from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.exact.transfer import transfer
from workbench.lenses.base import Lens, OnStep, Subject, estimate, stepped
from workbench.lenses.errors import root_mean
from workbench.lenses.teleport import matched_gaussian
from workbench.params import Param
from workbench.sampling.methods.inversion import Inversion

#: Precisions in which the trip is made.
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}
#: Halves of the trip.
WAYS = ("encode", "decode")
#: Roundings that the steps of both ways may add up to.
ROUNDING = 1024

ABOUT = {
    "error": "RMS error of a round trip",
    "noise": "RMS of the noise",
    "encode_stability": "gain of rounding, encoding",
    "decode_stability": "gain of rounding, decoding",
    "encode_nfe": "evaluations of encoding",
    "decode_nfe": "evaluations of decoding",
}


@dataclass(frozen=True)
class RoundTrip(Lens):
    r"""How well do the samples survive the way to noise and back?

    Each inversion encodes the final states of the run on its grid and decodes them again; ``error``
    is the root mean square of what came back minus what was given, infinite where numbers overflow.
    Two errors meet in it. An inversion that is not exact errs by its discretisation, which falls
    with the steps and is the same in both precisions: on Gaussian data it has an exact value, mode
    by mode. An exact one errs by rounding (the null band), enlarged by its ``stability``, which
    method and grid determine alone: where that of encoding is large, the noise is known to that
    many roundings only; where that of decoding is large, so is what comes back.
    """

    inversions: Annotated[
        tuple[Inversion, ...], Param("which are compared; none: every one, as it is")
    ] = ()
    samples: Annotated[int, Param("how many samples it looks at", ge=2, le=100_000)] = 64

    reads = ("final",)
    bytes_each = 512

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        diffusion, grid = subject.diffusion, subject.grid
        if grid.sigma[-1] == 0:
            raise NotImplementedError(
                "the run ends at sigma = 0, where many states of the noise lead to the same "
                'denoised one, so there is nothing to invert; take a grid with final="stop".'
            )
        methods, x = self._methods(), subject.field("final")
        error = np.empty((len(methods), len(PRECISIONS), len(x)))
        noise = np.empty_like(error[:, 0])
        models = [diffusion.to(dtype) for dtype in PRECISIONS.values()]
        for i, k in stepped([*product(range(len(methods)), range(len(models)))], on_step):
            given = x.to(models[k].dtype)
            latent = methods[i].encode(models[k], grid, given)
            back = methods[i].decode(models[k], grid, latent)
            error[i, k] = _mean_square(back.double() - given.double())
            if k == 0:
                noise[i] = _mean_square(latent.x.double())
        gain = self._gains(subject)
        nfe = [[m.encoding(subject.process, grid).nfe, m.nfe(grid)] for m in methods]
        variables = {}
        for name, dims, square in (
            ("error", ("inversion", "precision"), error),
            ("noise", "inversion", noise),
        ):
            value, spread = root_mean(square)
            variables |= estimate(name, dims, value, ABOUT[name], "x", spread, scale="log")
        coords = {"inversion": [_named(m) for m in methods], "precision": list(PRECISIONS)}
        for i, way in enumerate(WAYS):
            name, count = f"{way}_stability", f"{way}_nfe"
            variables |= estimate(name, "inversion", gain[:, i], ABOUT[name], scale="log")
            coords |= estimate(count, "inversion", np.array(nfe)[:, i], ABOUT[count])
        return xr.Dataset(variables, coords)

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """Of these very samples, from the gain of each mode on the way there and back."""
        core, process, grid = subject.diffusion.core, subject.process, subject.grid
        if not isinstance(core, Gaussian) or process.spectral:
            return None
        twin, rotation = core.diagonalised()
        x = subject.diffusion.to_core(subject.field("final"), grid.t[-1]).flatten(1)
        x, mean = x @ rotation, twin.mean.flatten()
        values = []
        for method in self._methods():
            apart = torch.zeros(()).to(x) if method.exact else None
            if apart is None and method.states == ("x",):
                there = transfer(method.encoding(process, grid), twin.variances)
                back = transfer(method.decoding(process, grid), twin.variances)
                shift = back.gain * there.response + back.response
                apart = (there.gain * back.gain - 1) * x + shift * mean
            square = math.nan if apart is None else apart.square().mean().item()
            values.append([math.sqrt(square)] * len(PRECISIONS))
        return xr.Dataset({"error": (("inversion", "precision"), np.array(values))})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """What roundings alone may leave, enlarged by the gains of both ways."""
        gain = self._gains(subject).prod(1)
        eps = [torch.finfo(dtype).eps for dtype in PRECISIONS.values()]
        size = subject.field("final").square().mean().sqrt().item()
        edge = ROUNDING * size * gain.clip(1)[:, None] * np.array(eps)
        band = np.stack([0 * edge, edge], -1)
        return xr.Dataset({"error": (("inversion", "precision", "bound"), band)})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        error = dataset["error"].sel(precision="float64").values
        names = dataset["inversion"].values.tolist()
        best, worst = int(np.argmin(error)), int(np.argmax(error))
        said = [f"{names[best]} returns the samples to {error[best]:.2g}"]
        if best != worst:
            said.append(f"{names[worst]} to {error[worst]:.2g}")
        return [", ".join(said) + " (root mean square per coordinate, float64)."]

    def _methods(self) -> tuple[Inversion, ...]:
        if self.inversions:
            return self.inversions
        return tuple(one.target() for one in registry.entries("inversion").values())

    def _gains(self, subject: Subject) -> np.ndarray:
        """Stability of encoding and decoding (inversion, way); nan where there is no covariance."""
        variances, methods = _variances(subject.diffusion), self._methods()
        if variances is None:
            return np.full((len(methods), len(WAYS)), math.nan)
        process, grid = subject.process, subject.grid
        return np.array(
            [[one.stability(process, grid, variances, way) for way in WAYS] for one in methods]
        )


def _named(method: Inversion) -> str:
    """Its name, with its parameters where they are not the usual ones."""
    return type(method).__name__ if method == type(method)() else repr(method)


def _mean_square(apart: Tensor) -> np.ndarray:
    """Over coordinates, of each sample (n,); infinite where numbers overflow."""
    square = apart.flatten(1).square().mean(1)
    return torch.where(square.isnan(), torch.inf, square).cpu().numpy()


def _variances(diffusion: Diffusion) -> Tensor | None:
    """Of the modes of the data: along the basis of a spectral process, else the principal ones."""
    try:
        twin = matched_gaussian(diffusion.to(torch.float64).core)
    except NotImplementedError:
        return None
    if diffusion.process.spectral:
        return twin.cov.diagonal()
    return twin.diagonalised()[0].variances.clamp_min(0.0)
