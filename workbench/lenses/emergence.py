r"""When the modes of Gaussian data emerge, in the time of each process and in rho.

Along the probability flow the denoised state carries mode k with the amplitude
:math:`\xi_k(t)/\xi_k(0) = \sqrt{\lambda_k/(\lambda_k + \rho^2)}`, the same function of
:math:`\rho = \sigma/\alpha` for every process; in t every process draws it elsewhere.

Source: Wang & Vastola 2023, arXiv:2303.02490.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.exact.flow import emergence
from workbench.lenses.base import Lens, OnStep, Subject, estimate
from workbench.lenses.teleport import matched_gaussian
from workbench.params import Param
from workbench.processes import PROCESSES, Process

#: Shares of its final amplitude (or power) at which a mode's emergence is told.
FRACTIONS = (0.1, 0.5, 0.9)

AMPLITUDE = "amplitude of the denoised state over its final one"
POWER = "power of the denoised state over its final one"
WHEN = "noise level at which a mode passes a share of its end"

#: Share of the largest variance below which one is rounding.
ROUNDING = 1e-12


def across_processes(
    variance: float, processes: Mapping[str, Process], points: int = 161
) -> xr.Dataset:
    """One mode's amplitude along the flow of several processes.

    Args:
        variance: of the mode [x²], above 0.
        processes: by the name to show.
        points: times per process, even in t over half of them and in log rho over the others.

    Returns:
        Dataset over (process, point) with ``amplitude`` (of the denoised state, 1 at the end), and
        as coordinates ``t``, ``share`` (t / t_max) and ``rho`` (infinite at pure noise).
    """
    columns = {name: [] for name in ("amplitude", "t", "share", "rho")}
    for process in processes.values():
        t = _times(process, points)
        c = process(t)
        # Each from its own alpha and sigma: that they meet in rho is for the picture to show.
        amplitude = c.alpha * variance**0.5 / (c.alpha**2 * variance + c.sigma**2).sqrt()
        values = amplitude, t, t / process.t_max, c.rho
        for column, value in zip(columns.values(), values, strict=True):
            column.append(value.numpy())
    dims, about = ("process", "point"), {"long_name": AMPLITUDE, "units": "1"}
    amplitude = (dims, np.stack(columns.pop("amplitude")), about)
    coords = {name: (dims, np.stack(value)) for name, value in columns.items()}
    return xr.Dataset(
        {"amplitude": amplitude}, {"process": list(processes), **coords}, {"variance": variance}
    )


def _times(process: Process, points: int) -> Tensor:
    low, high = process.t_min, process.t_max
    even = torch.linspace(low, high, points // 2, dtype=torch.float64)
    first, last = (float(process(t).rho) for t in (even[1].item() * 1e-3 + low, even[-2].item()))
    span = torch.linspace(0, 1, points - len(even), dtype=torch.float64)
    return torch.cat([even, process.time_of(first * (last / first) ** span)]).sort().values


def of_modes(variances: Tensor, rho: Tensor | None = None) -> xr.Dataset:
    """How each mode emerges along rho, and when.

    Args:
        variances: (d,) of the data, those that are 0 left out by the caller.
        rho: noise levels of the curves; None spans all that happens.

    Returns:
        Dataset with ``amplitude`` and ``power`` (mode, rho) of the denoised state relative to its
        end, and ``rho_amplitude``, ``rho_power`` (mode, fraction): where they pass 10, 50 and 90 %.
        Modes run from the largest variance down.
    """
    variances = variances.double().flatten().sort(descending=True).values
    if not len(variances) or not bool((variances > 0).all()):
        raise ValueError(
            f"{int((variances <= 0).sum())} of {len(variances)} variances are not above 0; leave "
            "them out: a direction without variance never emerges."
        )
    if rho is None:
        low, high = 0.1 * variances[-1].sqrt(), 30 * variances[0].sqrt()
        rho = torch.logspace(low.log10().item(), high.log10().item(), 181, dtype=torch.float64)
    power = variances[:, None] / (variances[:, None] + rho.square())
    variables = estimate("amplitude", ("mode", "rho"), power.sqrt().numpy(), AMPLITUDE)
    variables |= estimate("power", ("mode", "rho"), power.numpy(), POWER)
    for of in ("amplitude", "power"):
        when = [torch.as_tensor(emergence(variances, f, of)).double() for f in FRACTIONS]
        value = torch.stack(when, 1).numpy()
        variables |= estimate(f"rho_{of}", ("mode", "fraction"), value, WHEN, "x")
    return xr.Dataset(
        variables,
        {
            "mode": np.arange(1, len(variances) + 1),
            "variance": ("mode", variances.numpy()),
            "rho": rho.numpy(),
            "fraction": list(FRACTIONS),
        },
    )


@dataclass(frozen=True)
class Emergence(Lens):
    """When does each mode of the data emerge: of the Gaussian with their mean and covariance?

    See :func:`of_modes`; all of it is in closed form.
    """

    modes: Annotated[int, Param("how many modes, from the largest variance down", ge=1)] = 64

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        variances = _living(subject)
        found = of_modes(variances).isel(mode=slice(0, self.modes))
        return found.assign_attrs(silent=subject.denoiser.dim - len(variances))

    def findings(self, dataset: xr.Dataset) -> list[str]:
        half = dataset["rho_amplitude"].sel(fraction=0.5).values
        count = dataset.sizes["mode"]
        said = f"{count} mode{'s' * (count > 1)}: half of the amplitude at ρ = {half[0]:.3g}"
        said += f" for the first, at {half[-1]:.3g} for the last." if count > 1 else "."
        if silent := dataset.attrs["silent"]:
            said += (
                f" {silent} more directions have no variance: nothing ever emerges in them, and "
                "they are left out."
            )
        return [said]


@dataclass(frozen=True)
class Processes(Lens):
    """Where does each process draw the emergence of one mode, in its own time and in noise level?

    The mode of largest variance, under every process with one alpha and sigma; the study's own with
    its parameters. Each is taken from its own alpha and sigma; exact is the one curve in rho that
    they share.
    """

    points: Annotated[int, Param("times per process", ge=8, le=10_000)] = 161

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        kinds = {name: kind() for name, kind in PROCESSES.items()}
        own = subject.process
        if type(own).__name__ in kinds:  # others have a curve per mode, or a condition
            kinds[type(own).__name__] = own
        return across_processes(_living(subject).max().item(), kinds, self.points)

    def exact(self, subject: Subject) -> xr.Dataset:
        found = self.measure(subject)
        variance = found.attrs["variance"]
        curve = np.sqrt(variance / (variance + found["rho"].values ** 2))  # 0 at pure noise
        return xr.Dataset({"amplitude": (found["amplitude"].dims, curve)})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        apart = float(abs(dataset["amplitude"] - dataset["amplitude_exact"]).max())
        return [
            f"All {dataset.sizes['process']} processes, each by its own alpha and sigma: their "
            f"largest distance from the one curve in rho is {apart:.1g}."
        ]


def _living(subject: Subject) -> Tensor:
    """The variances of the data's modes that have any."""
    variances = matched_gaussian(subject.denoiser).spectrum.cpu()
    variances = variances[variances > ROUNDING * variances.max()]
    if not len(variances):
        raise NotImplementedError(
            "the data are a single point: no mode has any variance, and none emerges."
        )
    return variances
