r"""Where the gap between ODE and SDE comes from: noise levels, modes, frequencies.

Sources: the exact laws of both are those of :mod:`workbench.exact.reverse`; the gap is that of
Deveney et al. 2023, arXiv:2311.15996.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Gaussian, Perturbed
from workbench.exact import w2
from workbench.exact.reverse import reverse_law
from workbench.lenses.base import Lens, OnStep, Subject, estimate, remembered, spaced, stepped
from workbench.lenses.checks import check_prior
from workbench.lenses.errors import central
from workbench.lenses.gap import Family, wrong_gaussian
from workbench.lenses.two_sample import compare
from workbench.params import Param
from workbench.processes import DCT
from workbench.sampling import Grid, Record
from workbench.trajectory import sample

#: Most modes that are told apart, and mixtures parted for a null band.
MODES, PERMUTATIONS = 64, 199

#: Partings for the null band of each noise level.
COMPARED = 59


@dataclass(frozen=True)
class Attribution(Lens):
    r"""Which noise levels, modes and frequencies does the gap between ODE and SDE come from?

    ``level`` [x] is W2 between the ODE and a run that is the SDE above a noise level and the ODE
    below: it rises from nothing to the whole gap where noise makes a difference. ``mode`` [x²] is,
    for each principal axis of the data by falling variance, the squared difference of the standard
    deviations of ODE and SDE along it plus that of their means; ``frequency``, of images, that of
    their discrete cosine transform, by whole radial frequencies. What two sets of one law would
    show is taken off; null bands by mixing and parting the sets. Of Gaussian data with a scaled or
    biased score ``level`` and ``mode`` have exact values.
    """

    samples: Annotated[int, Param("samples of each law", ge=16, le=4096)] = 512
    steps: Annotated[int, Param("steps of each run", ge=4, le=4096)] = 48
    levels: Annotated[int, Param("noise levels at which the noise stops", ge=2, le=64)] = 6

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 8 * self.samples * dim * (self.steps + 4 * self.levels)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        rho, apart, modes, bands = self._found(subject, on_step)
        value, error = (np.array([getattr(one, of) for one in apart]) for of in ("value", "error"))
        about = "W2 of the ODE to a run with noise above this level only"
        variables = estimate("level", "rho", value, about, "x", error)
        about = "squared gap along each principal axis of the data"
        variables |= estimate("mode", "axis", modes["value"], about, "x²", modes["error"])
        coords = {
            "rho": ("rho", rho, {"long_name": "noise stops at sigma/alpha", "units": "x"}),
            "axis": ("axis", np.arange(1, len(modes["value"]) + 1)),
        }
        if bands is not None:
            about = "squared gap at each radial frequency"
            each = ("frequency", "radial", bands["value"], about, "x²", bands["error"])
            variables |= estimate(*each)
            coords["radial"] = ("radial", np.arange(len(bands["value"])))
        return xr.Dataset(variables, coords)

    def exact(self, subject: Subject) -> xr.Dataset | None:
        wrong, grid = wrong_gaussian(subject), self._grid(subject)
        if wrong is None:
            return None

        def back(eta: float, t: float, s: float, start=None) -> Gaussian:
            right, scale, bias = wrong
            return reverse_law(right, eta, scale, bias, start, t, s)

        try:
            ode = back(0.0, grid.t[0], grid.t[-1])
            level = []
            for k in self._switches(grid):
                there = back(1.0, grid.t[0], grid.t[k])
                mixed = there if k == grid.steps else back(0.0, grid.t[k], grid.t[-1], there)
                level.append(w2(mixed, ode))
            sde = back(1.0, grid.t[0], grid.t[-1])
        except (TypeError, ValueError, NotImplementedError):
            return None
        axes = self._axes(subject).to(ode.mean)
        stds = [((axes.T @ one.cov.double()) * axes.T).sum(1).sqrt() for one in (ode, sde)]
        shift = (ode.mean - sde.mean).flatten() @ axes
        mode = (stds[0] - stds[1]).square() + shift.square()
        return xr.Dataset({"level": ("rho", np.array(level)), "mode": ("axis", mode.cpu().numpy())})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        _, apart, modes, bands = self._found(subject)
        found = {"level": (("rho", "bound"), np.array([[one.low, one.high] for one in apart]))}
        found["mode"] = ("axis", "bound"), central(modes["null"], level)
        if bands is not None:
            found["frequency"] = ("radial", "bound"), central(bands["null"], level)
        return xr.Dataset(found)

    def findings(self, dataset: xr.Dataset) -> list[str]:
        level, whole = dataset["level"].values, float(dataset["level"][-1])
        if whole <= float(dataset["level_null"][-1, 1]):
            return [
                f"ODE and SDE cannot be told apart (W2 {whole:.3g}): there is no gap to attribute."
            ]
        half = int(np.argmax(level >= 0.5 * whole))
        said = [
            f"ODE and SDE are W2 {whole:.3g} apart; half of it is there when noise stops at "
            f"ρ = {float(dataset['rho'][half]):.3g}."
        ]
        for name, word in (("mode", "principal axis"), ("frequency", "radial frequency")):
            if name in dataset:
                value = dataset[name].clip(0)
                worst = int(np.argmax(value.values))
                share = float(value[worst] / value.sum()) if value.sum() > 0 else math.nan
                place = int(dataset[value.dims[0]][worst])
                said.append(f"The largest part is in {word} {place}: {share:.0%} of its square.")
        return said

    def _grid(self, subject: Subject) -> Grid:
        return Grid.log_snr(subject.process, self.steps, final="stop")

    def _switches(self, grid: Grid) -> list[int]:
        """Nodes at which the noise stops, the last of them the end."""
        return [k for k in spaced(grid.steps + 1, self.levels + 1) if k]

    @remembered
    def _axes(self, subject: Subject, on_step: OnStep | None = None) -> Tensor:
        """Principal axes of the data (d, at most 64), by falling variance."""
        law = subject.denoiser
        law = law.base if isinstance(law, Perturbed) else law
        if isinstance(law, Gaussian):
            cov = law.cov.double()
        elif subject.data is not None:
            cov = torch.cov(subject.data.points.flatten(1).double().T)
        else:
            _, _, mixed = self._runs(subject)
            cov = torch.cov(mixed[-1].flatten(1).double().T)
        cov = cov.reshape(law.dim, law.dim).to(subject.diffusion.device)
        values, basis = torch.linalg.eigh(cov)
        order = values.argsort(descending=True)[:MODES]
        basis = basis[:, order]
        return basis * basis.sum(0).sign().where(basis.sum(0) != 0, torch.ones(())).to(basis)

    @remembered
    def _runs(self, subject: Subject, on_step: OnStep | None = None):
        check_prior(subject.process, " that both could start from")
        grid, n = self._grid(subject), self.samples
        switches = self._switches(grid)
        ode = sample(subject.diffusion, Family(eta=0.0), grid, range(n)).final.double()
        seeds = range(n, 2 * n)
        sde = sample(subject.diffusion, Family(eta=1.0), grid, seeds, Record(["x"]))
        mixed = []
        for k in stepped(switches, on_step):
            states = sde["x"][k]
            if k < grid.steps:
                rest = Grid.times(subject.process, list(grid.t[k:]))
                states = sample(subject.diffusion, Family(eta=0.0), rest, seeds, x=states).final
            mixed.append(states.double())
        rho = [float(torch.as_tensor(subject.process(grid.t[k]).rho).mean()) for k in switches]
        return np.array(rho), ode, mixed

    @remembered
    def _found(self, subject: Subject, on_step: OnStep | None = None):
        rho, ode, mixed = self._runs(subject, on_step)
        apart = [compare(ode, one, ("w2",), permutations=COMPARED)["w2"] for one in mixed]
        sde = mixed[-1]
        axes = self._axes(subject)
        modes = _parts(ode.flatten(1) @ axes, sde.flatten(1) @ axes)
        bands, event = None, subject.diffusion.event_shape
        if len(event) >= 2:
            basis = DCT(tuple(event[-2:]))
            spectra = [
                basis.forward(one.reshape(-1, *event[-2:])).reshape(len(one), -1)
                for one in (ode, sde)
            ]
            rows, columns = np.meshgrid(*map(np.arange, event[-2:]), indexing="ij")
            radial = np.hypot(rows, columns).round().astype(int).ravel()
            radial = np.tile(radial, math.prod(event[:-2]))
            groups = torch.from_numpy(radial == np.arange(radial.max() + 1)[:, None]).double()
            bands = _parts(*spectra, groups)
        return rho, apart, modes, bands


def _parts(a: Tensor, b: Tensor, groups: Tensor | None = None) -> dict[str, np.ndarray]:
    """Squared differences of standard deviations and means of each coordinate (or of groups,
    (g, d)), less what they are under one law; their errors; and what mixed sets give."""
    a, b = a.double().cpu(), b.double().cpu()
    n, both = len(a), torch.cat([a, b])
    centre = both.mean(0)
    z = both - centre
    generator = torch.Generator().manual_seed(0)
    first = torch.zeros(PERMUTATIONS + 1, 2 * n, dtype=torch.float64)
    first[0, :n] = 1.0
    for row in first[1:]:
        row[torch.randperm(2 * n, generator=generator)[:n]] = 1.0
    means, stds = [], []
    for side in (first, 1 - first):
        mean = side @ z / n
        stds.append((side @ z.square() / n - mean.square()).clamp_min(0).sqrt())
        means.append(mean)
    square = (stds[0] - stds[1]).square() + (means[0] - means[1]).square()
    # Of each sample, to first order.
    shift, spread = means[0][0] - means[1][0], stds[0][0] - stds[1][0]
    influences = []
    for side, sign, k in ((a, 1, 0), (b, -1, 1)):
        y = side - side.mean(0)
        std = stds[k][0].clamp_min(1e-300)
        influences.append(sign * (2 * shift * y + spread * (y.square() / std - std)))
    if groups is not None:
        square = square @ groups.T
        influences = [one @ groups.T for one in influences]
    error = sum(one.var(0) / n for one in influences).sqrt()
    null = square[1:] - square[1:].mean(0)
    return {
        "value": (square[0] - square[1:].mean(0)).numpy(),
        "error": error.numpy(),
        "null": null.numpy(),
    }
