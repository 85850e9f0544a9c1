"""What is known exactly of a study: one mode under every process, its modes' emergence, and how far
its data are from Gaussian at each noise level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workbench.lenses.emergence import across_processes, alive, of_modes
from workbench.lenses.teleport import matched_gaussian, teleportation
from workbench.processes import PROCESSES, SPECTRAL
from workbench.studies.run import Setup, build
from workbench.studies.spec import Study

if TYPE_CHECKING:
    import xarray

__all__ = ["Exactness", "exactness"]

#: Samples, noise levels and solver steps of the teleportation.
SAMPLES, LEVELS, STEPS = 64, 12, 48

#: Share of the data's standard deviation that a skip may cost to be called cheap.
CHEAP = 0.01

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Exactness:
    """What :func:`exactness` leaves.

    Attributes:
        setup: the objects the study names, in float64.
        processes: of :func:`workbench.lenses.emergence.across_processes`, for the mode of largest
            variance, or None.
        modes: of :func:`workbench.lenses.emergence.of_modes`, or None.
        teleport: of :func:`workbench.lenses.teleport.teleportation`, or None.
        sentences: by the name of the part, what is to be said of it: what it shows in numbers, or
            why it is not there.
    """

    setup: Setup
    processes: xarray.Dataset | None
    modes: xarray.Dataset | None
    teleport: xarray.Dataset | None
    sentences: dict[str, str]

    @property
    def study(self) -> Study:
        return self.setup.study


def exactness(study: Study, report: Report = lambda stage, fraction: None) -> Exactness:
    """The exact truth about ``study``, in float64.

    Args:
        report: called as ``report(stage, fraction)`` along the way; raise in it to stop.

    Raises:
        StudyError: values that do not go together.
    """
    report("modes of the data", 0.0)
    device = {"device": "cpu"} if study.device == "mps" else {}  # float64 is not to be had there
    setup = build(study.changed({"dtype": "float64", **device}))
    found: dict[str, xarray.Dataset | None] = {"processes": None, "modes": None, "teleport": None}
    sentences = {}
    try:
        variances = matched_gaussian(setup.diffusion.denoiser).spectrum.cpu()
    except NotImplementedError as error:
        return Exactness(setup, **found, sentences=dict.fromkeys(found, str(error)))
    living = alive(variances)
    if len(living):
        kinds = {name: kind() for name, kind in PROCESSES.items()}
        if study.process.name not in SPECTRAL:  # which has a curve for each of its modes
            kinds[study.process.name] = setup.diffusion.process
        found["processes"] = across_processes(living.max().item(), kinds)
        found["modes"] = of_modes(living)
        sentences["processes"] = _of_processes(found["processes"])
        sentences["modes"] = _of_modes(found["modes"], len(variances))
    else:
        none = "The data are a single point: no mode has any variance, and none emerges."
        sentences |= {"processes": none, "modes": none}
    report("teleportation", 0.02)
    try:
        found["teleport"] = teleportation(
            setup.diffusion,
            setup.seeds[:SAMPLES],
            LEVELS,
            STEPS,
            lambda done, total: report("teleportation", 0.02 + 0.98 * done / total),
        )
        sentences["teleport"] = _of_teleport(found["teleport"])
    except NotImplementedError as error:
        sentences["teleport"] = str(error)
    return Exactness(setup, **found, sentences=sentences)


def _of_processes(lens: xarray.Dataset) -> str:
    variance, rho = lens.attrs["variance"], lens["rho"].values
    formula = np.sqrt(variance / (variance + rho**2))  # 0 at pure noise
    apart = np.abs(lens["amplitude"].values - formula).max()
    return (
        f"All {lens.sizes['process']} processes, each by its own alpha and sigma: their largest "
        f"distance from the one curve in rho is {apart:.1g}."
    )


def _of_modes(lens: xarray.Dataset, dimension: int) -> str:
    half = lens["rho_amplitude"].sel(fraction=0.5).values
    count = lens.sizes["mode"]
    text = f"{count} mode{'s' * (count > 1)}"
    text += f": half of the amplitude at ρ = {half[0]:.3g}" + (
        f" for the first, at {half[-1]:.3g} for the last." if count > 1 else "."
    )
    if silent := dimension - count:
        text += (
            f" {silent} of {dimension} directions have no variance: nothing ever emerges in them, "
            "and they are left out."
        )
    return text


def _of_teleport(lens: xarray.Dataset) -> str:
    rms, floor, rho = lens["rms"].values, lens["floor"].values, lens["rho"].values
    std = lens.attrs["data_std"]
    if (rms <= floor).all():
        return (
            "Every skip is exact, down to the data: the largest displacement is "
            f"{rms.max():.1g}, at each level below the solver's floor ({floor.max():.1g})."
            + (" So it must be: these data are Gaussian." if lens.attrs["gaussian"] else "")
        )
    cheap = rms <= CHEAP * std
    cheap[np.argmin(cheap) :] = bool(cheap.all())  # only what is reached without a gap
    text = (
        f"A skip of all of the run displaces the endpoint by {rms[-1]:.2g} (root mean square per "
        f"coordinate), {rms[-1] / std:.0%} of the data's standard deviation"
    )
    if not cheap.any():
        return f"{text}; no skip drawn here costs less than {CHEAP:.0%} of it."
    last = int(np.flatnonzero(cheap)[-1])
    return (
        f"{text}; a skip to ρ = {rho[last]:.3g} (t = {float(lens['t'][last]):.3g}), by "
        f"{rms[last]:.1g}."
    )
