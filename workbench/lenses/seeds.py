r"""How much of an output the class decides, how much the seed, and how much only both together.

The same seeds are run in every class, and the outputs :math:`y_{cs}` are the cells of a two-way
layout without replicates: with the row, column and grand means,

.. math:: y_{cs} = \mu + a_c + b_s + (ab)_{cs},\qquad
          \mathrm{E}\,MS_{ab} = \sigma^2_{int},\qquad
          \mathrm{E}\,MS_b = \sigma^2_{int} + C\sigma^2_{seed},

summed over coordinates. Of Gaussian classes under a deterministic linear sampler they are known
without a run (:mod:`workbench.exact.seeds`).

Source: Searle, Casella & McCulloch 1992, *Variance Components*.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.covariance import completed
from workbench.denoisers import Denoiser, Gaussian
from workbench.denoisers.conditional import Conditional
from workbench.diffusion import Diffusion
from workbench.exact.seeds import components
from workbench.exact.transfer import transfer
from workbench.lenses.base import Lens, OnStep, Subject, remembered
from workbench.params import Param
from workbench.trajectory import sample

__all__ = ["Seeds"]

#: Groups of seeds of which each is left out once, for standard errors.
GROUPS = 20

#: How often the seeds of each class are dealt anew, for the null band.
DEALT = 200

PARTS = ("class", "seed", "interaction")


@dataclass(frozen=True)
class Seeds(Lens):
    """How much of an output does the class decide, how much the seed, how much only both together?

    ``variance``: components of the variance of the outputs over classes and seeds. ``icc``: the
    seed's share of the variance within classes, 1 where a seed means the same in every class. Its
    null band: the seeds of each class dealt anew.

    The classes are those of a Conditional; of another model, the Gaussians with the mean and
    covariance of the data of each label. Both are run with the run's own sampler, grid and seeds; a
    seed fixes the fresh noise too.
    """

    samples: Annotated[int, Param("how many seeds it looks at", ge=8, le=100_000)] = 128

    reads = ("final", "labels")

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 1024 * self.samples * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        outputs = self._outputs(subject, on_step)
        groups = torch.arange(outputs.shape[1]) % min(GROUPS, outputs.shape[1])
        count = int(groups.max()) + 1
        whole = _components(outputs)
        left = np.array([_components(outputs[:, groups != g]) for g in range(count)])
        error = np.sqrt((count - 1) * left.var(0))
        about = {"long_name": "component of the variance of the outputs", "units": "x^2"}
        icc = {"long_name": "share of the seed in the variance within classes", "units": "1"}
        return xr.Dataset(
            {
                "variance": ("part", whole[:3], about),
                "variance_se": ("part", error[:3], {"units": "x^2"}),
                "icc": ((), whole[3], icc),
                "icc_se": ((), error[3], {"units": "1"}),
            },
            {"part": list(PARTS)},
            {"classes": len(outputs)},
        )

    def exact(self, subject: Subject) -> xr.Dataset | None:
        laws, process = list(_classes(subject).values()), subject.process
        sampler, grid = subject.sampler, subject.grid
        if sampler.stochastic or process.spectral or subject.diffusion.condition is not None:
            return None
        if not all(isinstance(law, Gaussian) for law in laws):
            return None
        program = sampler.program(process, grid)
        if not program.linear:
            return None
        means, matrices = [], []
        for law in laws:
            basis = None if law.basis is None else law.basis.double()
            basis, variances = completed(basis, law.variances.double(), law.rest)
            map_ = transfer(program, variances)
            basis = torch.eye(law.dim).to(variances) if basis is None else basis
            means.append(basis @ (map_.response * (basis.T @ law.mean.double().flatten())))
            gain = map_.gain * float(process.prior_std(grid.t[0]))
            matrices.append((basis * gain) @ basis.T)
        found = components(means, matrices)
        return xr.Dataset({"variance": ("part", np.array(found[:3])), "icc": ((), found.icc)})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        outputs, generator = self._outputs(subject, None), torch.Generator().manual_seed(0)
        dealt = []
        for _ in range(DEALT):
            order = [torch.randperm(outputs.shape[1], generator=generator) for _ in outputs]
            dealt.append(
                _components(torch.stack([y[o] for y, o in zip(outputs, order, strict=True)]))[3]
            )
        band = np.quantile(dealt, [level / 2, 1 - level / 2])
        return xr.Dataset({"icc": ("bound", band)})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        parts = dataset["variance"].values
        shares = np.clip(parts, 0, None) / np.clip(parts, 0, None).sum()
        said = ", ".join(f"{share:.0%} {name}" for name, share in zip(PARTS, shares, strict=True))
        icc, high = float(dataset["icc"]), float(dataset["icc_null"].values[1])
        seen = "more than chance" if icc > high else "no more than chance"
        return [
            f"Of the outputs' variance over {dataset.attrs['classes']} classes and the seeds: "
            f"{said}. Within classes a seed decides {icc:.0%}, {seen}."
        ]

    @remembered
    def _outputs(self, subject: Subject, on_step: OnStep | None) -> Tensor:
        """Final states (classes, seeds, d) of the run's seeds in every class."""
        if not subject.process.has_prior:
            raise NotImplementedError(
                f"{subject.process!r} has no prior, so a seed does not start alike in all classes; "
                "take another process."
            )
        finals, laws = [], _classes(subject)
        for law in laws.values():
            diffusion = Diffusion(subject.process, law, subject.diffusion.condition)
            run = sample(diffusion, subject.sampler, subject.grid, subject.seeds)
            finals.append(run.final.flatten(1).double().cpu())
            if on_step is not None:
                on_step(len(finals), len(laws))
        return torch.stack(finals)


def _classes(subject: Subject) -> dict[object, Denoiser]:
    """The denoiser of each class, in float64."""
    denoiser, data = subject.denoiser, subject.data
    if isinstance(denoiser, Conditional):
        laws = dict(denoiser.classes)
    else:
        points = data.points.to(denoiser.device, torch.float64)
        chosen = {label: points[data.labels == label] for label in data.labels.unique().tolist()}
        laws = {label: Gaussian.fit(some) for label, some in chosen.items() if len(some) > 1}
    if len(laws) < 2:
        raise NotImplementedError("the data are of one class, so there are none to compare.")
    return laws


def _components(outputs: Tensor) -> list[float]:
    """Components of class, seed and interaction, and the intraclass correlation, of (C, S, d)."""
    classes, seeds = outputs.shape[:2]
    row, column, grand = outputs.mean(1), outputs.mean(0), outputs.mean((0, 1))
    rest = (outputs - row[:, None] - column + grand).square().sum().item()
    both = rest / ((classes - 1) * (seeds - 1))
    seed = (column - grand).square().sum().item() * classes / (seeds - 1)
    between = (row - grand).square().sum().item() / (classes - 1) - both / seeds
    seed = (seed - both) / classes
    return [between, seed, both, seed / (seed + both)]
