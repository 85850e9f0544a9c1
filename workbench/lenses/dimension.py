r"""Intrinsic dimension of the data as the denoiser sees them, as a curve over the noise level.

At noise :math:`\rho` a mode of variance :math:`\lambda` counts as
:math:`\lambda/(\lambda+\rho^2)` of a dimension: the curve falls from the number of modes to 0, and
only where it is level has a single number a meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.exact.dimension import denoiser_trace, flipd, flipd_mean
from workbench.lenses.base import Lens, OnStep, Subject
from workbench.lenses.output import draws
from workbench.params import Param

__all__ = ["Dimension"]


@dataclass(frozen=True)
class Dimension(Lens):
    """How many dimensions do the data have, at each noise level, for this denoiser?

    ``flipd``: the Fokker-Planck estimator at data points; ``trace``: of the denoiser's Jacobian
    there, the number of directions that it keeps. Exact for Gaussian data, as means over their law.

    Source: Kamkari et al. 2024, arXiv:2406.03537.
    """

    levels: Annotated[int, Param("how many noise levels", ge=2, le=1000)] = 25
    samples: Annotated[int, Param("how many data points it looks at", ge=2, le=100_000)] = 64

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 64 * self.samples * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        denoiser, points = subject.denoiser, self._points(subject)
        rho = self._rho(subject)
        columns = {name: [] for name in ("flipd", "trace")}
        for i, level in enumerate(rho.tolist()):
            columns["flipd"].append(flipd(denoiser, points, level))
            columns["trace"].append(denoiser.divergence(points, 1.0, level))
            if on_step is not None:
                on_step(i + 1, len(rho))
        about = {
            "flipd": "local intrinsic dimension (FLIPD), mean over data points",
            "trace": "trace of the denoiser's Jacobian, mean over data points",
        }
        variables = {}
        for name, values in columns.items():
            each = torch.stack(values).double().cpu()
            attrs = {"long_name": about[name], "units": "1"}
            variables[name] = ("rho", each.mean(1).numpy(), attrs)
            error = each.std(1) / len(points) ** 0.5
            variables[f"{name}_se"] = ("rho", error.numpy(), {"units": "1"})
        return xr.Dataset(variables, {"rho": rho.numpy()}, {"dim": denoiser.dim})

    def exact(self, subject: Subject) -> xr.Dataset | None:
        if not isinstance(subject.denoiser, Gaussian):
            return None
        spectrum, rho = subject.denoiser.spectrum.cpu(), self._rho(subject)
        exact = {"flipd": flipd_mean(spectrum, rho), "trace": denoiser_trace(spectrum, rho)}
        return xr.Dataset({name: ("rho", value.numpy()) for name, value in exact.items()})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        value = dataset["flipd"].values
        rho, middle = dataset["rho"].values, len(value) // 2
        first, *others = (f"{value[i]:.3g} at ρ = {rho[i]:.2g}" for i in (-1, middle, 0))
        count = dataset.attrs["dim"]
        return [f"Of {count} dimensions the data show {first}, {' and '.join(others)}."]

    def _rho(self, subject: Subject) -> Tensor:
        """Noise levels (levels,), decreasing, about the size of the data."""
        size = subject.denoiser.std or 1.0
        return size * torch.logspace(1.0, -2.0, self.levels, dtype=torch.float64)

    def _points(self, subject: Subject) -> Tensor:
        """Data points (n, *event), or exact samples of the denoiser's law."""
        if subject.data is not None:
            points = subject.data.points[: self.samples]
        else:
            points = draws(subject.denoiser, self.samples, torch.Generator().manual_seed(0))
        if points is None:
            raise NotImplementedError(
                f"the dimension is measured at data points, and {subject.denoiser!r} has none at "
                "hand; give them: data=wb.Data(...)."
            )
        return points.to(subject.diffusion.device, torch.float64)
