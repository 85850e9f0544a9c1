r"""Where a model's score breaks the equation of its process, and what that makes of ODE and SDE.

A score s that belongs to noised data obeys :math:`\varepsilon[s] = 0`
(:func:`workbench.exact.score_residual`). The probability flow and the reverse SDE of one score
sample the same law if it does and they start alike; a residual drives them apart, the flow along
each of its paths, the SDE by its mean over the noising process.

Sources: Lai et al. 2022, arXiv:2210.04296 (the residual); Deveney et al. 2023, arXiv:2311.15996
(the gap).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Empirical, Gaussian, Mixture, Perturbed
from workbench.diffusion import Diffusion
from workbench.exact import w2
from workbench.exact.fokker_planck import scaled_score_residual, score_residual
from workbench.exact.reverse import reverse_law
from workbench.lenses.base import Lens, OnStep, Subject, remembered
from workbench.lenses.output import draws, energy_distance, influence, transport
from workbench.params import Param
from workbench.sampling import Grid, NoiseSource
from workbench.sampling.methods import DPMSolverPP, Heun
from workbench.trajectory import sample

__all__ = ["FokkerPlanck", "Gap"]

#: Denoisers whose score is that of the noised data, exactly.
LAWS = (Gaussian, Mixture, Empirical)

#: Dimensions up to which the exact trace of a model without closed form is taken.
EXACT_TRACE = 64

#: Where the draws of the probes begin among those of a seed, far beyond those of a run.
PROBES = 1 << 40

#: What rounding alone makes of a residual, at most.
ROUNDING = 1e-9

ABOUT = {
    "residual": "Fokker-Planck residual, times sigma^3/g^2",
    "relative": "residual over the change of the score",
}


@dataclass(frozen=True)
class FokkerPlanck(Lens):
    r"""At which noise levels does the model's score break the Fokker-Planck equation?

    ``residual`` is the root mean square of :math:`\sigma^3\varepsilon/g^2` over samples and
    coordinates: a pure number, the same under every process, in units of the noise prediction (a
    noise prediction that is too large by the share :math:`\delta` has about :math:`\delta`).
    ``relative`` is :math:`|\varepsilon|` over the score's change where the process merely scales
    the state, which the noise has to explain. Both are taken at states of the run. A gauge field
    has a residual although all of its marginals are exact.

    Under a spectral process the weight is that of each mode.
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=2, le=100_000)] = 64
    levels: Annotated[int, Param("at how many of the recorded times", ge=1, le=1000)] = 24
    probes: Annotated[
        int, Param("random directions for the trace of the Jacobian; 0: exact", ge=0, le=1024)
    ] = 0

    reads = ("x",)

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 128 * self.samples * dim * max(8, min(dim, EXACT_TRACE))

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        places = self._places(subject)
        squares = self._squares(subject, places, on_step)
        curves = {name: [] for name in ("residual", "residual_se", "relative", "relative_se")}
        for residual, motion in squares:
            for name, below in (("residual", torch.ones_like(motion)), ("relative", motion)):
                value, error = _root_of_ratio(residual, below)
                curves[name].append(value)
                curves[f"{name}_se"].append(error)
        variables = {
            name: (
                "rho",
                np.array(values),
                {"units": "1"} | ({"long_name": ABOUT[name]} if name in ABOUT else {}),
            )
            for name, values in curves.items()
        }
        times = subject.run["t"].values[places]
        rho = subject.run["rho"].values[places]
        about = {"long_name": "noise level sigma/alpha", "units": "x"}
        return xr.Dataset(variables, {"rho": ("rho", rho, about), "t": ("rho", times)})

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """Zero for exact laws, and the closed form of a mis-scaled score of one."""
        law, places = subject.denoiser, self._places(subject)
        if isinstance(law, LAWS):
            return xr.Dataset(dict.fromkeys(ABOUT, ("rho", np.zeros(len(places)))))
        if not (isinstance(law, Perturbed) and isinstance(law.base, LAWS)):
            return None
        if any(one is not None for one in (law.bias, law.gauge, law.gradient)):
            return None
        diffusion = subject.diffusion
        truth = Diffusion(diffusion.process, law.base, diffusion.condition)
        found = []
        for k in places:
            t, x = float(subject.run["t"][k]), self._states(subject, k)
            residual = _weighted(truth, scaled_score_residual(truth, x, t, law.scale), t)
            found.append(residual.square().mean().sqrt().item())
        return xr.Dataset({"residual": ("rho", np.array(found))})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """What rounding makes of no residual; of an estimated trace, what the probes do."""
        places = self._places(subject)
        high = {name: np.full(len(places), ROUNDING) for name in ABOUT}
        if self.probes:
            from scipy.special import stdtrit

            for i, (squares, motion) in enumerate(self._squares(subject, places)):
                error = squares.std().item() / math.sqrt(len(squares))
                edge = math.sqrt(stdtrit(len(squares) - 1, 1 - level) * error)
                high["residual"][i] = max(ROUNDING, edge)
                high["relative"][i] = max(ROUNDING, edge / motion.mean().sqrt().item())
        bands = {name: np.stack([0 * edge, edge], 1) for name, edge in high.items()}
        return xr.Dataset({name: (("rho", "bound"), band) for name, band in bands.items()})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        residual = dataset["residual"].values
        worst = int(np.argmax(residual))
        seen = residual > dataset["residual_null"].values[:, 1]
        if not seen.any():
            return [
                f"At {len(residual)} noise levels the score obeys the Fokker-Planck equation: the "
                f"largest residual is {residual[worst]:.1e} of the noise prediction."
            ]
        rho, share = dataset["rho"].values, dataset["relative"].values[worst]
        return [
            f"The score breaks the Fokker-Planck equation at {seen.sum()} of {len(residual)} noise "
            f"levels, most at ρ = {rho[worst]:.3g}, by {residual[worst]:.2g} of the noise "
            f"prediction ({share:.2g} of the score's change): ODE and SDE will differ, unless "
            "this part of the score is a gauge."
        ]

    def _places(self, subject: Subject) -> list[int]:
        """Recorded times between pure noise and the data, evenly chosen."""
        process, times = subject.process, subject.run["t"].values.tolist()
        smooth = []
        for k, t in enumerate(times):
            c = process(float(t))
            values = [torch.as_tensor(v, dtype=torch.float64) for v in (c.alpha, c.sigma, c.g2)]
            if all(bool((v.isfinite() & (v > 0)).all()) for v in values[:2]):
                smooth += [k] if bool(values[2].isfinite().all()) else []
        if not smooth:
            raise NotImplementedError(
                "none of the recorded times lies between pure noise and the data; record more: "
                "every=1."
            )
        chosen = np.linspace(0, len(smooth) - 1, min(self.levels, len(smooth)))
        return [smooth[int(i)] for i in np.unique(chosen.round())]

    def _states(self, subject: Subject, place: int) -> Tensor:
        values = np.ascontiguousarray(subject.run["x"].values[place])
        return torch.from_numpy(values).to(subject.diffusion.device, torch.float64)

    def _squares(
        self, subject: Subject, places: list[int], on_step: OnStep | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """At each time, of each sample, the mean squares (n,) of the weighted residual, without
        what the probes add to it, and of the weighted motion.
        """
        diffusion, found = subject.diffusion, []
        if self.probes == 1:
            raise NotImplementedError("one probe has no error: take 0, or at least 2 probes.")
        if not self.probes and diffusion.denoiser.dim > EXACT_TRACE and not _closed(diffusion):
            raise NotImplementedError(
                f"the exact trace of this model takes {diffusion.denoiser.dim} times its work; "
                "have it estimated, e.g. probes=8."
            )
        noise = NoiseSource(subject.seeds, (self.probes, *diffusion.event_shape))
        for done, k in enumerate(places):
            t, x = float(subject.run["t"][k]), self._states(subject, k)
            probes = None
            if self.probes:  # of each sample's seed, so that they do not depend on the others
                probes = noise.step(PROBES + k).movedim(1, 0).sign().to(x)
            residual, motion, each = score_residual(diffusion, x, t, probes)
            flat = lambda v, t=t: _weighted(diffusion, v, t).flatten(1)  # noqa: E731
            squares = flat(residual).square()
            if each is not None:
                squares = squares - torch.stack([flat(one) for one in each]).var(0) / len(each)
            found.append((squares.mean(1), flat(motion).square().mean(1)))
            if on_step is not None:
                on_step(done + 1, len(places))
        return found


#: The laws that are compared, two at a time.
PAIRS = (("ODE", "SDE"), ("ODE", "truth"), ("SDE", "truth"))

#: How often two sets are mixed and parted again: for a null band, and for its mean alone.
MIXED, FOR_MEAN = 100, 40

GAP_ABOUT = {
    "w2": ("W2 of means and covariances", "x"),
    "energy": ("energy distance", "x"),
    "step_error": ("W2 to half as many steps", "x"),
}


@dataclass(frozen=True)
class Gap(Lens):
    r"""How far apart do ODE and SDE end that share this score, and how far is each from the truth?

    Samples of the probability flow (``Heun``), of the reverse SDE (``DPMSolverPP`` of order 2) and
    of the data's own law at the end of the grid, of seeds of their own. ``w2`` is that of the
    Gaussians with their means and covariances, less what as many samples of one law would show;
    ``energy`` is the unbiased energy distance, which sees all of the law. Null bands: both sets
    mixed and parted at random. ``step_error`` is what half as many steps change, so about what the
    steps themselves may have moved.

    The truth is what the denoiser was perturbed from, or its own law, or the data points of a model
    that knows none. On Gaussian data ``w2`` has an exact value without any step.

    Sources: Deveney et al. 2023, arXiv:2311.15996; Székely & Rizzo 2013, J. Stat. Plan. Inference
    143, 1249.
    """

    samples: Annotated[int, Param("samples of each law", ge=16, le=4096)] = 512
    steps: Annotated[int, Param("steps of each run", ge=2, le=4096)] = 64

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 64 * self.samples**2 + 256 * self.samples * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        sets, errors = self._sets(subject, on_step)
        numbers: dict[str, list[float]] = {"w2": [], "w2_se": [], "energy": [], "energy_se": []}
        for a, b in PAIRS:
            fits = Gaussian.fit(sets[a]), Gaussian.fit(sets[b])
            floor = _parted(sets[a], sets[b], FOR_MEAN)[0].square().mean().item()
            square = w2(*fits) ** 2
            value = math.sqrt(max(0.0, square - floor))
            slopes = [
                influence(sets[one], other, transport(mine, other)).var() / self.samples
                for one, mine, other in ((a, fits[0], fits[1]), (b, fits[1], fits[0]))
            ]
            error = math.sqrt(sum(slopes).item())
            numbers["w2"].append(value)
            numbers["w2_se"].append(error / (2 * value) if value**2 > 3 * error else math.nan)
            energy, energy_error = energy_distance(sets[a], sets[b], drawn=True)
            numbers["energy"].append(energy)
            numbers["energy_se"].append(energy_error)
        variables = {
            name: ("pair", np.array(values), _about(name)) for name, values in numbers.items()
        }
        variables["step_error"] = ("sampler", np.array(errors), _about("step_error"))
        labels = [f"{a} and {b}" for a, b in PAIRS]
        return xr.Dataset(variables, {"pair": labels, "sampler": ["ODE", "SDE"]})

    def exact(self, subject: Subject) -> xr.Dataset | None:
        law, scale, bias = subject.denoiser, 0.0, None
        if isinstance(law, Perturbed) and law.gauge is None and law.gradient is None:
            law, scale, bias = law.base, law.scale, law.bias
        if not isinstance(law, Gaussian):
            return None
        diffusion = Diffusion(subject.process, law, subject.diffusion.condition)
        grid = self._grid(subject)
        start, end = grid.t[0], grid.t[-1]
        try:
            laws = {
                name: reverse_law(diffusion, eta, scale, bias, t=start, s=end)
                for name, eta in (("ODE", 0.0), ("SDE", 1.0))
            }
        except (TypeError, ValueError, NotImplementedError):
            return None
        laws["truth"] = diffusion.marginal(end)
        return xr.Dataset({"w2": ("pair", np.array([w2(laws[a], laws[b]) for a, b in PAIRS]))})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        sets, _ = self._sets(subject, None)
        bands: dict[str, list] = {"w2": [], "energy": []}
        for a, b in PAIRS:
            distances, energies = _parted(sets[a], sets[b])
            squares = distances.square()
            edge = torch.quantile(squares - squares.mean(), 1 - level).clamp_min(0.0).sqrt()
            bands["w2"].append([0.0, edge.item()])
            tails = torch.tensor([level / 2, 1 - level / 2], dtype=torch.float64)
            bands["energy"].append(torch.quantile(energies, tails).tolist())
        return xr.Dataset({n: (("pair", "bound"), np.array(band)) for n, band in bands.items()})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        said = []
        for i, (a, b) in enumerate(PAIRS):
            value, high = (float(dataset[k].values[i].max()) for k in ("w2", "w2_null"))
            energy, bands = float(dataset["energy"][i]), dataset["energy_null"].values[i]
            seen = value > high or energy > bands[1]
            word = "are apart" if seen else "cannot be told apart"
            text = f"{a} and {b} {word}: W2 {value:.3g}"
            if "w2_exact" in dataset:
                text += f" (exactly {float(dataset['w2_exact'][i]):.3g})"
            said.append(f"{text}, up to {high:.3g} where nothing is there.")
        return said

    def _grid(self, subject: Subject) -> Grid:
        return Grid.log_snr(subject.process, self.steps, final="stop")

    @remembered
    def _sets(
        self, subject: Subject, on_step: OnStep | None
    ) -> tuple[dict[str, Tensor], list[float]]:
        """Samples (n, *event) of each law, and how far half as many steps end from both runs."""
        diffusion, n, sets, errors = subject.diffusion, self.samples, {}, []
        if not subject.process.has_prior:
            raise NotImplementedError(
                f"{subject.process!r} has no prior that both could start from; take another "
                "process."
            )
        grid = self._grid(subject)
        coarse = Grid.times(subject.process, [*grid.t[:-1:2], grid.t[-1]])
        for k, (name, sampler) in enumerate(
            (("ODE", Heun()), ("SDE", DPMSolverPP(order=2, sde=True)))
        ):
            seeds, finals = range(k * n, (k + 1) * n), []
            for nodes in (grid, coarse):
                run = sample(diffusion, sampler, nodes, seeds, noise="brownian")
                finals.append(run.final)
            sets[name] = finals[0]
            errors.append(w2(*map(Gaussian.fit, finals)))
            if on_step is not None:
                on_step(k + 1, 3)
        sets["truth"] = self._truth(subject, grid.t[-1])
        if on_step is not None:
            on_step(3, 3)
        return sets, errors

    def _truth(self, subject: Subject, end: float) -> Tensor:
        law, n = subject.denoiser, self.samples
        law = law.base if isinstance(law, Perturbed) else law
        generator = torch.Generator().manual_seed(0)
        x = draws(law, n, generator)
        if x is None:
            if subject.data is None:
                raise NotImplementedError(
                    f"{law!r} has no law to draw the truth from, and no data are at hand; give "
                    "them: data=wb.Data(...)."
                )
            which = torch.randint(len(subject.data.points), (n,), generator=generator)
            x = subject.data.points[which]
        noise = NoiseSource(range(2 * n, 3 * n), subject.diffusion.event_shape).start()
        like = {"device": subject.diffusion.device, "dtype": torch.float64}
        return subject.diffusion.diffuse(x.to(**like), end, noise.to(**like))


def _about(name: str) -> dict[str, str]:
    long_name, unit = GAP_ABOUT[name.removesuffix("_se")]
    return {"units": unit} if name.endswith("_se") else {"long_name": long_name, "units": unit}


def _parted(a: Tensor, b: Tensor, times: int = MIXED) -> tuple[Tensor, Tensor]:
    """W2 of the fits and energy distances (times,) of both sets mixed and parted at random."""
    both = torch.cat([a, b]).flatten(1).double().cpu()
    n, generator = len(a), torch.Generator().manual_seed(0)
    apart = torch.cdist(both, both).fill_diagonal_(0)
    distances, energies = [], []
    for _ in range(times):
        order = torch.randperm(2 * n, generator=generator)
        first, second = order[:n], order[n:]
        distances.append(w2(Gaussian.fit(both[first]), Gaussian.fit(both[second])))
        side = torch.zeros(2 * n, dtype=torch.float64)
        side[first] = 1.0
        rows = apart @ side
        inside, total = side @ rows, apart.sum()
        across = rows.sum() - inside
        other = total - 2 * across - inside
        pairs = n * (n - 1)
        energies.append(2 * across / (n * n) - inside / pairs - other / pairs)
    return torch.tensor(distances, dtype=torch.float64), torch.stack(energies)


def _closed(diffusion: Diffusion) -> bool:
    """Whether the Jacobian is known without automatic differentiation."""
    return diffusion.core.at(1.0, 1.0)._closed


def _weighted(diffusion: Diffusion, field: Tensor, t: float) -> Tensor:
    """``sigma^3 / g2`` times a field (n, *event), mode by mode; 0 where nothing is noised."""
    c, process = diffusion.process(t), diffusion.process
    sigma, g2 = (torch.as_tensor(v, dtype=torch.float64).to(field) for v in (c.sigma, c.g2))
    weight = torch.where(g2 > 0, sigma**3 / g2, torch.zeros_like(g2))
    return process.from_modes(weight * process.to_modes(field))


def _root_of_ratio(above: Tensor, below: Tensor) -> tuple[float, float]:
    """``sqrt(mean above / mean below)`` of values (n,), 0 if not positive, and its standard error:
    nan where the mean above is not told from zero.
    """
    size = below.mean()
    ratio = above.mean() / size
    error = (above - ratio * below).std() / (size * math.sqrt(len(above)))
    value = ratio.clamp_min(0.0).sqrt().item()
    return value, (error / (2 * value)).item() if ratio > 3 * error else math.nan
