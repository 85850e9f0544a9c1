r"""Steps saved by beginning a run with the closed-form flow of the Gaussian of its data.

At high noise a denoiser is nearly that of the Gaussian with the data's mean and covariance, whose
probability flow is known (:mod:`workbench.lenses.teleport`). A run may begin with it: the start is
carried to the k-th node of the grid in closed form and the sampler takes the remaining steps. How
many can be left out is a question of what comes out: the outputs are compared with those of the
model's own probability flow, from other seeds.

Source: Wang & Vastola 2024, arXiv:2412.09726, section 5, where 15 to 30 % of the evaluations are
saved at equal FID.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Gaussian, Neural
from workbench.diffusion import Diffusion
from workbench.lenses.base import Lens, OnStep, Subject, estimate, remembered, spaced
from workbench.lenses.checks import check_one_level
from workbench.lenses.convergence import flow_error
from workbench.lenses.errors import root_mean
from workbench.lenses.statistics import random_features
from workbench.lenses.teleport import CHEAP, NO_LEVEL, gaussian_of
from workbench.lenses.tuning import converged_flow
from workbench.lenses.two_sample import LEAST, Compared, compare_paired
from workbench.params import Param
from workbench.sampling import Grid, Record
from workbench.sampling.methods import Euler
from workbench.trajectory import sample

#: Steps of the run that stands for the model's flow.
FLOW = 48

#: Coordinates among the features, at most.
COORDINATES = 64

#: A distance below which its error is not told.
TINY = 1e-12


@dataclass(frozen=True)
class Shortcut(Lens):
    """How many steps does it save to begin with the closed-form flow of the data's Gaussian?

    The start is carried to a node of the run's grid by the flow of the Gaussian with the data's
    mean and covariance, and the sampler goes on from there. What comes out is told by
    its coordinates (of more than 64, evenly chosen ones) in standard deviations of the data and by
    32 random features tanh(Wx + b), and how far these are from those of the model's own probability
    flow of as many other seeds by the squared 2-Wasserstein distance, the mean over all of them.
    ``change`` is how much farther they are than without the skip; its null band, of all skips
    together, holds where they change nothing of the law (the members of pairs of one seed swapped
    at random). Up to its upper end a skip is free.
    ``rms`` is the distance to the flow of the same starts (none for stochastic samplers).
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=LEAST, le=4096)] = 128
    skips: Annotated[int, Param("how many numbers of steps to skip it tries", ge=1, le=200)] = 8

    reads = ("data",)

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 1024 * self.samples * (dim + 32)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        runs = self._runs(subject, on_step)
        found = [runs.compared(k) for k in runs.skipped]
        value, error = (np.array([getattr(one, of) for one in found]) for of in ("value", "error"))
        about = "squared W2 of features to the flow's, less without skip"
        variables = estimate("change", "skipped", value, about, error=error)
        if not subject.sampler.stochastic:
            square = torch.stack([(runs.finals[k] - runs.flow).square() for k in runs.skipped])
            rms, error = root_mean(square.flatten(2).mean(2))  # over samples
            about = "RMS distance to the flow of the same starts"
            variables |= estimate("rms", "skipped", rms, about, "x", error)
        grids = [_rest(subject, k) for k in runs.skipped]
        coords = {
            "skipped": ("skipped", runs.skipped, {"long_name": "steps skipped", "units": "1"}),
            "rho": ("skipped", [grid.rho[0] for grid in grids]),
            "nfe": ("skipped", [subject.sampler.nfe(grid) for grid in grids]),
        }
        attrs = {
            "steps": subject.grid.steps,
            "samples": len(subject.seeds),
            "data_std": float(subject.denoiser.std),
        }
        return xr.Dataset(variables, coords, attrs)

    def exact(self, subject: Subject) -> xr.Dataset | None:
        gaussian = isinstance(subject.denoiser, Gaussian) and subject.diffusion.condition is None
        given = subject.diffusion, subject.sampler, subject.grid
        if not gaussian or not subject.sampler.program(subject.process, subject.grid).linear:
            return None
        if subject.sampler.stochastic:
            return None
        errors = [flow_error(*given, k) for k in self._runs(subject, None).skipped]
        return xr.Dataset({"rms": ("skipped", np.array(errors))})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        runs = self._runs(subject, None)
        each = level / max(1, len(runs.skipped) - 1)  # Bonferroni: the first is no skip
        found = [runs.compared(k, each) for k in runs.skipped]
        bands = np.array([(one.low, one.high) for one in found])
        return xr.Dataset({"change": (("skipped", "bound"), bands)})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        change, high = dataset["change"].values, dataset["change_null"].sel(bound="high").values
        steps, count = dataset.attrs["steps"], dataset.attrs["samples"]
        last = _reached(change <= high)
        if last < 1:
            said = (
                f"No skip is free: without the first {int(dataset['skipped'][1])} of {steps} steps "
                f"the outputs are farther from the flow's, squared W2 of their features by "
                f"{change[1]:.2g} (null band to {high[1]:.2g})."
            )
        else:
            said = (
                f"{_saved(dataset, last)}, and the law of its outputs is as close to the flow's as "
                f"{count} samples can tell: squared W2 of their features changes by "
                f"{change[last]:.2g} (null band to {high[last]:.2g})."
            )
        if "rms" not in dataset:
            return [said]
        rms, std = dataset["rms"].values, dataset.attrs["data_std"]
        last = _reached(rms <= rms[0] + CHEAP * std)
        if last < 1:
            return [
                said,
                f"Sample by sample even that skip adds more than {CHEAP:.0%} of the data's "
                f"standard deviation to the RMS distance from the flow ({rms[1]:.2g}, without it "
                f"{rms[0]:.2g}).",
            ]
        return [
            said,
            f"{_saved(dataset, last)}, and the RMS distance to the flow of the same starts is "
            f"{rms[last]:.2g}: more than without a skip ({rms[0]:.2g}) by less than {CHEAP:.0%} of "
            f"the data's standard deviation.",
        ]

    @remembered
    def _runs(self, subject: Subject, on_step: OnStep | None) -> _Runs:
        if subject.sampler is None:
            raise NotImplementedError("there is no run to shorten; give one of wb.sample.")
        check_one_level(subject.process, NO_LEVEL)
        count, seeds = subject.grid.steps - (subject.grid.final == "denoise"), sorted(subject.seeds)
        if len(seeds) < LEAST or count < 2:
            raise NotImplementedError(
                f"the run has {len(seeds)} samples and {subject.grid.steps} steps; it needs "
                f"{LEAST} samples, whose law is compared, and 2 steps, of which one is skipped."
            )
        # A network's weights know no more digits, and a run in float64 takes six times as long.
        network = isinstance(subject.denoiser, Neural)
        diffusion = subject.diffusion.to(torch.float32 if network else torch.float64)
        process, grid = subject.process, subject.grid
        twin = Diffusion(process, gaussian_of(subject), diffusion.condition)
        begin = sample(diffusion, Euler(), Grid.times(process, grid.t[:2]), seeds, Record("x"))["x"]
        begin = begin[0].to(torch.float64)
        skipped = spaced(count, min(count, self.skips + 1))
        points = subject.data.points.flatten(1).double().cpu()
        kept = spaced(points.shape[1], COORDINATES)
        scale, random = points.std().clamp_min(TINY), random_features(points)

        def features(final: Tensor) -> Tensor:
            flat = final.flatten(1).double().cpu()
            return torch.cat([flat[:, kept] / scale, random(flat)], 1)

        others = [seeds[-1] + 1 + i for i in range(len(seeds))]
        both, _ = converged_flow(diffusion, grid.final, [*seeds, *others], steps=FLOW)
        finals, total = {}, len(skipped) + 2
        for done, k in enumerate(skipped, 3):
            if on_step is not None:
                on_step(done - 1, total)
            start = twin.flow(begin, grid.t[0], grid.t[k]).to(diffusion.dtype) if k else None
            finals[k] = sample(diffusion, subject.sampler, _rest(subject, k), seeds, x=start).final
        if on_step is not None:
            on_step(total, total)
        judged = {k: features(final) for k, final in finals.items()}
        reference = features(both[len(seeds) :])
        return _Runs(skipped, both[: len(seeds)], finals, judged, reference)


@dataclass(frozen=True)
class _Runs:
    """What :class:`Shortcut` runs: final states and their features by the steps skipped.

    Attributes:
        flow: final states of the flow, of the run's seeds.
        reference: features of the flow's final states, of other seeds.
    """

    skipped: list[int]
    flow: Tensor
    finals: dict[int, Tensor]
    features: dict[int, Tensor]
    reference: Tensor

    def compared(self, skipped: int, level: float = 0.05) -> Compared:
        return compare_paired(self.features[skipped], self.features[0], self.reference, level)


def _reached(good: np.ndarray) -> int:
    """The place of the last skip up to which all are good; the first is no skip."""
    return len(good) - 1 if good.all() else int(np.argmin(good)) - 1


def _saved(dataset: xr.Dataset, place: int) -> str:
    nfe, rho = dataset["nfe"].values, float(dataset["rho"][place])
    return (
        f"Begun in closed form at ρ = {rho:.3g}, a run takes {nfe[place]} evaluations instead of "
        f"{nfe[0]} ({1 - nfe[place] / nfe[0]:.0%} saved)"
    )


def _rest(subject: Subject, skipped: int) -> Grid:
    """The run's grid without its first steps."""
    grid = subject.grid
    return Grid(grid.nodes[skipped:], grid.final, "times") if skipped else grid
