r"""Bound on the distance between ODE and SDE by the Fokker-Planck residual, for any score.

.. math:: W_2(q^O, q^S) \le \int \frac{\alpha_0}{\alpha_\ell}\,e^{\int \sigma^2\lambda\,d\ell'}\,
          \sigma_\ell^2\left[\int_\ell^{\ell_T} \tfrac{\alpha_r}{\alpha_\ell}\,
          \|\tilde\varepsilon_r\|\,d\ell_r + \tfrac{\alpha_T}{\alpha_\ell}\,
          \|\nabla\log\pi - s\|\right] d\ell,\qquad \ell = \log\rho,

with :math:`\tilde\varepsilon = \varepsilon\,dt/d\ell` in mean square over the SDE's samples, the
second norm over the start, and :math:`\lambda` the largest eigenvalue of the symmetric part of
:math:`\nabla s` over all states. It is :func:`workbench.exact.gap_bound` without its closed forms.

Source: derived in this project, in the spirit of Deveney et al. 2023, arXiv:2311.15996.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Gaussian, Perturbed
from workbench.diffusion import Diffusion
from workbench.exact.fokker_planck import score_residual
from workbench.exact.gap import gap_bound
from workbench.lenses.base import LEVEL, Lens, OnStep, Subject, described, remembered, stepped
from workbench.lenses.checks import check_one_level, check_prior
from workbench.lenses.gap import EXACT_TRACE, PROBES, Family, check_trace
from workbench.lenses.two_sample import compare
from workbench.params import Param
from workbench.sampling import Grid, NoiseSource, Record
from workbench.trajectory import sample

#: Rows of the lattice over the states of a plane where the largest eigenvalue is looked for, and
#: how much wider than the samples it is.
LATTICE, WIDER = 25, 1.5

#: Steps of the power iteration for the largest eigenvalue, of states that it looks at.
POWER, LOOKED_AT = 12, 16


@dataclass(frozen=True)
class Bound(Lens):
    r"""By how much can ODE and SDE differ at most, and which noise levels allow it?

    ``limit`` [x] is an upper bound on their W2 by the Fokker-Planck residual over the SDE's
    samples, beside the measured ``w2`` of means and covariances; ``share`` is what each noise level
    adds to it, per unit of log rho, and ``expansion`` by what the flow may stretch a distance from
    there to the end. The largest stretch is looked for over the samples and, in a plane, a lattice
    around them; where it was missed the bound is too low. Between far modes the score expands,
    and the bound may be huge and say nothing. It is for gradient fields: see the lens
    ``asymmetry``. Of a scaled score of Gaussian data it has an exact value.
    """

    samples: Annotated[int, Param("samples of each law", ge=16, le=4096)] = 256
    steps: Annotated[int, Param("steps of each run, noise levels of the bound", ge=4, le=1024)] = 64
    probes: Annotated[
        int, Param("random directions for the trace of the Jacobian; 0: exact", ge=0, le=1024)
    ] = 0

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 256 * self.samples * dim * max(8, min(dim, EXACT_TRACE))

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        distances, curves, rho = self._found(subject, on_step)
        about = {
            "w2": ("measured W2 of means and covariances of ODE and SDE", "x"),
            "limit": ("upper bound on the W2 between ODE and SDE", "x"),
            "share": ("what a noise level adds to the bound, per unit of log rho", "x"),
            "expansion": ("largest stretch of a distance by the flow, from there to the end", "1"),
        }
        variables = described(distances, about) | described(curves, about, "rho")
        variables["expansion"][2]["scale"] = "log"
        return xr.Dataset(variables, {"rho": ("rho", rho, LEVEL)})

    def exact(self, subject: Subject) -> xr.Dataset | None:
        law, scale = subject.denoiser, 0.0
        if isinstance(law, Perturbed) and law._parts == [f"scale {law.scale:+g}"]:
            law, scale = law.base, law.scale
        if not isinstance(law, Gaussian):
            return None
        diffusion = Diffusion(subject.process, law, subject.diffusion.condition)
        grid = self._grid(subject)
        try:
            found = gap_bound(diffusion, scale, grid.t[-1], grid.t[0], "prior")
        except ValueError:
            return None
        return xr.Dataset({"w2": found.w2, "limit": found.residual})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        return xr.Dataset({"w2": ("bound", np.array([0.0, self._apart(subject).high]))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        value, bound, high = float(dataset["w2"]), float(dataset["limit"]), dataset["w2_null"][1]
        rho = float(dataset["rho"][int(np.argmax(dataset["share"].values))])
        said = f"ODE and SDE are W2 {value:.3g} apart"
        if value <= high:
            said += f", which is not told from nothing (up to {float(high):.3g}),"
        said += f" and at most {bound:.3g} by the residual"
        if bound > 100 * max(value, float(high)):
            said += ": the score stretches distances so much that the bound says little here"
        return [f"{said}. It is largest around ρ = {rho:.3g}."]

    def _grid(self, subject: Subject) -> Grid:
        return Grid.log_snr(subject.process, self.steps, final="stop")

    @remembered
    def _runs(self, subject: Subject, on_step: OnStep | None = None):
        check_one_level(subject.process, "the bound is for processes with one alpha and sigma")
        check_prior(subject.process, " that both could start from")
        grid, n = self._grid(subject), self.samples
        record = Record(["x"])
        return [
            sample(subject.diffusion, Family(eta=eta), grid, range(k * n, (k + 1) * n), record)
            for k, eta in enumerate((0.0, 1.0))
        ]

    @remembered
    def _apart(self, subject: Subject, on_step: OnStep | None = None):
        ode, sde = self._runs(subject)
        return compare(ode.final, sde.final, ("w2",))["w2"]

    @remembered
    def _found(self, subject: Subject, on_step: OnStep | None = None):
        """``w2`` and ``limit``, the curves over the noise level, and its values."""
        ode, sde = self._runs(subject)
        diffusion, grid = subject.diffusion, sde.grid
        check_trace(diffusion, self.probes)
        first = next(k for k, alpha in enumerate(grid.alpha) if alpha > 0)
        nodes = list(range(first, len(grid.t)))
        noise = NoiseSource(range(self.samples), (max(2, self.probes), *diffusion.event_shape))
        size, steep = [], []
        for k in stepped(nodes, on_step):
            t, c = grid.t[k], diffusion.process(grid.t[k])
            states = [run["x"][k] for run in (sde, ode)]
            probes = None
            if self.probes:
                probes = noise.step(PROBES + k).movedim(1, 0).sign().to(states[0])
            found = score_residual(diffusion, states[0], t, probes)
            square = found.residual.flatten(1).square()
            if found.each is not None:
                square = square - found.each.flatten(2).var(0) / len(found.each)
            mean = square.sum(1).mean().clamp_min(0).sqrt().item()
            size.append(2 * c.sigma**2 / c.g2 * mean)
            steep.append(_steepest(diffusion, torch.cat(states), t))
        start = _start_mismatch(diffusion, sde["x"][first], grid, first)
        rho = np.array([float(diffusion.process(grid.t[k]).rho) for k in nodes])
        alpha, sigma = (np.array([getattr(grid, n)[k] for k in nodes]) for n in ("alpha", "sigma"))
        total, share, expansion = _integrated(
            np.log(rho), alpha, sigma, np.array(size), np.array(steep), start
        )
        apart = self._apart(subject)
        distances = {"w2": apart.value, "w2_se": apart.error, "limit": total}
        return distances, {"share": share, "expansion": expansion}, rho


def _integrated(
    level: np.ndarray, alpha: np.ndarray, sigma: np.ndarray, size, steep, start: float
) -> tuple[float, np.ndarray, np.ndarray]:
    """The bound, what each level adds, and the expansion; all from noise to data."""
    from scipy.integrate import cumulative_trapezoid

    def running(values: np.ndarray) -> np.ndarray:
        """Integrals from the data's end on, of values that stand from noise to data."""
        return cumulative_trapezoid(values[::-1], level[::-1], initial=0)[::-1]

    growth = running(sigma**2 * steep)
    with np.errstate(over="ignore"):
        expansion = alpha[-1] / alpha * np.exp(growth)
        weight = running(expansion * sigma**2 / alpha)
        share = alpha * size * weight
        total = running(share)[0] + alpha[0] * start * weight[0]
    return float(total), share, expansion


def _start_mismatch(diffusion: Diffusion, x: Tensor, grid: Grid, first: int) -> float:
    """Root mean square length of the difference between the start's score and the model's."""
    process, t = diffusion.process, grid.t[first]
    if first == 0:
        spread = float(torch.as_tensor(process.prior_std(t)))
        centre = 0.0
        if diffusion.condition is not None:
            centre = process.prior_mean(t) * diffusion.condition.double()
    else:  # a step from pure noise, where D is the data's mean
        spread = grid.sigma[first]
        centre = grid.alpha[first] * diffusion.denoiser.mean.double()
    apart = (centre - x) / spread**2 - diffusion.score(x, t)
    return apart.flatten(1).square().sum(1).mean().sqrt().item()


def _steepest(diffusion: Diffusion, x: Tensor, t: float) -> float:
    """Largest eigenvalue of the symmetric part of the score's Jacobian, over states."""
    c, dim = diffusion.process(t), diffusion.denoiser.dim
    u = diffusion.to_core(x, t)
    level = diffusion.core.at(c.alpha, c.sigma)
    if dim == 2:
        edge, centre = u.flatten(1).aminmax(dim=0), u.flatten(1).mean(0)
        half = WIDER * torch.maximum(edge.max - centre, centre - edge.min)
        line = torch.linspace(-1, 1, LATTICE).to(u)
        lattice = torch.cartesian_prod(line, line) * half + centre
        u = torch.cat([u, lattice.reshape(-1, *u.shape[1:])])
    if diffusion.core.closed or dim <= 8:
        jacobian = level.jacobian(u)
        values = torch.linalg.eigvalsh(0.5 * (jacobian + jacobian.mT))
        largest = values.max().item()
    else:
        largest = _power(level, u[:: max(1, len(u) // LOOKED_AT)][:LOOKED_AT])
    return (c.alpha * largest - 1) / c.sigma**2


def _power(level, u: Tensor) -> float:
    """Largest eigenvalue of the symmetric part of D's Jacobian, which is not far below zero."""
    v = torch.randn(u.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(u)
    event = tuple(range(1, u.ndim))
    value = u.new_zeros(len(u))
    for _ in range(POWER):
        v = v / v.square().sum(event, keepdim=True).sqrt()
        image = 0.5 * (level.jvp(u, v) + level.vjp(u, v))
        value = (v * image).sum(event)
        v = image
    return value.max().item()
