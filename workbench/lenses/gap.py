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
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian, Perturbed
from workbench.diffusion import Diffusion
from workbench.exact import w2
from workbench.exact.fokker_planck import (
    LAWS,
    Residual,
    log_residual,
    scaled_score_residual,
    score_residual,
)
from workbench.exact.gauge import EXACT_TRACE, antisymmetric_squares, violation_of
from workbench.exact.law import law as output_law
from workbench.exact.reverse import reverse_law
from workbench.lenses.base import (
    LEVEL,
    Lens,
    OnStep,
    Subject,
    described,
    estimate,
    remembered,
    spaced,
    stepped,
)
from workbench.lenses.checks import check_prior
from workbench.lenses.errors import root_of_ratio
from workbench.lenses.output import draws
from workbench.lenses.two_sample import STATISTICS, compare
from workbench.params import Param
from workbench.sampling import Grid, NoiseSource
from workbench.sampling.methods import DPMSolverPP
from workbench.sampling.methods.single_steps import log_ratio, moments
from workbench.trajectory import sample

#: Dimensions up to which such a model's whole Jacobian is taken for its antisymmetric part.
WHOLE = 8

#: Random directions for it in more dimensions, where no probes are asked for.
SIGNS = 4

#: Where the draws of the probes begin among those of a seed, far beyond those of a run.
PROBES = 1 << 40

#: What rounding alone makes of a residual, at most.
ROUNDING = 1e-9

#: How far automatic derivatives of a model may be from differences of its values.
DIFFERENTIABLE = 0.2

ABOUT = {
    "residual": "Fokker-Planck residual, times sigma^3/g^2",
    "relative": "residual over the change of the score",
    "asymmetry": "antisymmetric part of sigma^2 times the score's Jacobian: of no gradient field",
    "violation": "sigma^2 (div e + e.s): the part of the score's error e that moves density",
    "log_residual": "residual of the log-density less its mean, times sigma^2/g^2",
    "pointwise": "Fokker-Planck residual at each state, times sigma^3/g^2",
}


def truth_of(subject: Subject) -> Denoiser | None:
    """The law that the model should have: of a perturbed denoiser its base, of a law itself, of
    others that of the data set; None where none is known."""
    law = subject.denoiser
    if isinstance(law, Perturbed):
        law = law.base
    if isinstance(law, LAWS):
        return law
    law = getattr(subject.data, "law", None)
    return None if law is None else law.to(torch.float64, subject.diffusion.device)


def wrong_gaussian(subject: Subject) -> tuple[Diffusion, float, Tensor | None] | None:
    """Of Gaussian data with a score that is at most scaled and biased: the diffusion without these
    errors, the relative error and the bias; None of others."""
    law, scale, bias = subject.denoiser, 0.0, None
    if isinstance(law, Perturbed) and law.gauge is None and law.linear is None:
        law, scale, bias = law.base, law.scale, law.bias
    if not isinstance(law, Gaussian):
        return None
    return Diffusion(subject.process, law, subject.diffusion.condition), scale, bias


@dataclass(frozen=True)
class FokkerPlanck(Lens):
    r"""At which noise levels does the model's score break the Fokker-Planck equation?

    ``residual`` is the root mean square of :math:`\sigma^3\varepsilon/g^2` over samples and
    coordinates: a pure number, the same under every process, in units of the noise prediction (a
    noise prediction that is too large by the share :math:`\delta` has about :math:`\delta`);
    ``pointwise`` that of each sample, a map over the states. ``relative`` is
    :math:`|\varepsilon|` over the score's change where the process merely scales the state, which
    the noise has to explain. ``log_residual`` is that of the log-density, :math:`\sigma^2 R/g^2`
    per coordinate less its mean, where the model has one; its gradient is the score's.

    A gauge field has a residual although all of its marginals are exact, so two numbers tell it
    apart: ``asymmetry``, the antisymmetric part of the score's Jacobian, is zero of gradient
    fields; ``violation``, where the true law is known, is zero if what is wrong with the score is a
    gauge (the lenses ``asymmetry`` and ``gauge`` have both over all noise levels).

    The trace of the Jacobian is exact or by random ``probes`` (Hutchinson); derivatives are
    automatic, or differences ``in time`` (as Lai et al. have it) or ``all`` by differences. A
    model that automatic differentiation cannot see through is taken by differences, and the
    finding says so. Under a spectral process the weight is that of each mode.
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=2, le=100_000)] = 64
    levels: Annotated[int, Param("at how many of the recorded times", ge=1, le=1000)] = 24
    probes: Annotated[
        int, Param("random directions for the trace of the Jacobian; 0: exact", ge=0, le=1024)
    ] = 0
    differences: Annotated[
        Literal["none", "time", "all"],
        Param("derivatives by differences: none of them, that in time, or all"),
    ] = "none"

    reads = ("x",)

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 128 * self.samples * dim * max(8, min(dim, EXACT_TRACE))

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        places = self._places(subject)
        squares = self._squares(subject, on_step)
        curves: dict[str, list] = {}
        for at in squares:
            ratios = {name: (at[name],) for name in ABOUT if name in at}
            ratios["relative"] = at["residual"], at["motion"]
            for name in (n for n in ABOUT if n in ratios):
                curves.setdefault(name, []).append(root_of_ratio(*ratios[name]))
        variables: dict = {}
        for name, pairs in curves.items():
            value, error = np.array(pairs).T
            variables |= estimate(name, "rho", value, ABOUT[name], error=error)
        each = torch.stack([at["residual"].clamp_min(0).sqrt() for at in squares]).cpu().numpy()
        variables |= estimate("pointwise", ("rho", "sample"), each, ABOUT["pointwise"])
        rho, times = (subject.run[key].values[places] for key in ("rho", "t"))
        found = xr.Dataset(variables, {"rho": ("rho", rho, LEVEL), "t": ("rho", times)})
        return found.assign_attrs(differences=self._how(subject))

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """Zero for exact laws, the closed form of a mis-scaled score of one, and of a gauge."""
        law, places = subject.denoiser, self._places(subject)
        zero, known = np.zeros(len(places)), self._squares(subject)[0]
        if isinstance(law, LAWS):
            names = ("residual", "relative", "asymmetry", "violation", "log_residual")
            there = [name for name in names if name in known or name == "relative"]
            return xr.Dataset(dict.fromkeys(there, ("rho", zero)))
        if not (isinstance(law, Perturbed) and isinstance(law.base, LAWS)):
            return None
        found = {}
        diffusion = subject.diffusion
        truth = Diffusion(diffusion.process, law.base, diffusion.condition)
        if law.conservative:
            found["asymmetry"] = zero
        elif law.rotation is None and not diffusion.process.spectral:
            found["asymmetry"] = np.array([self._turned(truth, subject, k) for k in places])
        if law.exact_marginals and not diffusion.process.spectral:
            found["violation"] = zero
        if all(one is None for one in (law.bias, law.gauge, law.linear)):
            values = []
            for k in places:
                t, x = float(subject.run["t"][k]), self._states(subject, k)
                residual = _weighted(truth, scaled_score_residual(truth, x, t, law.scale), t)
                values.append(residual.square().mean().sqrt().item())
            found["residual"] = np.array(values)
        found = {name: ("rho", values) for name, values in found.items() if name in known}
        return xr.Dataset(found)

    def _turned(self, truth: Diffusion, subject: Subject, k: int) -> float:
        """Antisymmetric part of sigma^2 A H, with H the Hessian of the true log-density."""
        t, matrix = float(subject.run["t"][k]), subject.denoiser.gauge
        hessian = truth.process(t).sigma ** 2 * truth.hessian(self._states(subject, k), t)
        turned = 0.5 * (matrix @ hessian + hessian @ matrix)
        return (turned.square().sum((-2, -1)).mean() / len(matrix)).sqrt().item()

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """What rounding makes of no residual; of an estimated trace, what the probes do."""
        places, how = self._places(subject), self._how(subject)
        names = [name for name in self._squares(subject)[0] if name != "motion"] + ["relative"]
        rounding = {"none": ROUNDING, "time": ROUNDING, "all": 1e-3}[how]
        high = {name: np.full(len(places), rounding) for name in names}
        if self.probes:
            from scipy.special import stdtrit

            for i, at in enumerate(self._squares(subject)):
                squares, motion = at["residual"], at["motion"]
                error = squares.std().item() / math.sqrt(len(squares))
                edge = math.sqrt(stdtrit(len(squares) - 1, 1 - level) * error)
                high["residual"][i] = max(rounding, edge)
                high["relative"][i] = max(rounding, edge / motion.mean().clamp_min(0).sqrt().item())
        return xr.Dataset(
            {n: (("rho", "bound"), np.stack([0 * edge, edge], 1)) for n, edge in high.items()}
        )

    def findings(self, dataset: xr.Dataset) -> list[str]:
        residual = dataset["residual"].values
        worst = int(np.argmax(residual))
        seen = residual > dataset["residual_null"].values[:, 1]
        said = []
        if not seen.any():
            said.append(
                f"At {len(residual)} noise levels the score obeys the Fokker-Planck equation: the "
                f"largest residual is {residual[worst]:.1e} of the noise prediction."
            )
        else:
            rho, share = dataset["rho"].values, dataset["relative"].values[worst]
            said.append(
                f"The score breaks the Fokker-Planck equation at {seen.sum()} of {len(residual)} "
                f"noise levels, most at ρ = {rho[worst]:.3g}, by {residual[worst]:.2g} of the "
                f"noise prediction ({share:.2g} of the score's change): ODE and SDE will differ, "
                "unless this part of the score is a gauge."
            )
            if "violation" in dataset and dataset["violation"].max() < 1e-6:
                said.append(
                    "It is a gauge: the error of the score moves no density, and in continuous "
                    "time every sampler keeps the marginals."
                )
            elif "asymmetry" in dataset and dataset["asymmetry"].max() > 1e-6:
                turned = float(dataset["asymmetry"].max())
                said.append(
                    f"The score is not a gradient field: the antisymmetric part of its Jacobian "
                    f"is up to {turned:.2g}, so some of the residual may be a harmless gauge."
                )
        if dataset.attrs.get("differences") == "all" and self.differences != "all":
            said.append(
                "The model cannot be differentiated automatically; all derivatives were taken by "
                "differences of its values, with random directions above 8 dimensions."
            )
        return said

    def _places(self, subject: Subject) -> list[int]:
        """Recorded times between pure noise and the data, evenly chosen."""
        process, times = subject.process, subject.run["t"].values.tolist()
        smooth = []
        for k, t in enumerate(times):
            c = process(float(t))
            values = [torch.as_tensor(v, dtype=torch.float64) for v in (c.alpha, c.sigma, c.g2)]
            positive = all(bool((v > 0).all()) for v in values[:2])
            if positive and all(bool(v.isfinite().all()) for v in values):
                smooth.append(k)
        if not smooth:
            raise NotImplementedError(
                "none of the recorded times lies between pure noise and the data; record more: "
                "every=1."
            )
        return [smooth[i] for i in spaced(len(smooth), min(self.levels, len(smooth)))]

    @remembered
    def _how(self, subject: Subject, on_step: OnStep | None = None) -> str:
        """The differences taken: as asked for, or all where the model cannot be differentiated."""
        diffusion = subject.diffusion
        if self.differences == "all" or diffusion.core.closed:
            return self.differences
        k = self._places(subject)[-1]
        x = self._states(subject, k)[:4]
        c = diffusion.process(float(subject.run["t"][k]))
        return self.differences if _differentiable(diffusion, x, c) else "all"

    @remembered
    def _squares(self, subject: Subject, on_step: OnStep | None = None) -> list[dict[str, Tensor]]:
        """At each time, of each sample, the mean squares (n,) of the weighted residual, without
        what the probes add to it, of the weighted motion, and of what else is known.
        """
        diffusion, found = subject.diffusion, []
        places, how, dim = self._places(subject), self._how(subject), subject.denoiser.dim
        if self.probes == 1:
            raise NotImplementedError("one probe has no error: take 0, or at least 2 probes.")
        if how == "all" and (0 < self.probes < 4 or (not self.probes and dim > 8)):
            raise NotImplementedError(
                "derivatives by differences of this model (it is asked for, or it cannot be "
                f"differentiated) in {dim} dimensions take random directions: at least probes=4."
            )
        if how != "all":
            check_trace(diffusion, self.probes)
        truth = truth_of(subject)
        if truth is not None:
            truth = Diffusion(diffusion.process, truth, diffusion.condition)
        noise = NoiseSource(subject.seeds, (self.probes, *diffusion.event_shape))
        for k in stepped(places, on_step):
            t, x = float(subject.run["t"][k]), self._states(subject, k)
            if not bool(x.isfinite().all()):
                raise NotImplementedError(
                    f"states at t = {t:.4g} are not finite numbers: the run diverged, or left the "
                    "range of floating point. Take more steps."
                )
            probes = None
            if self.probes:  # of each sample's seed, so that they do not depend on the others
                probes = noise.step(PROBES + k).movedim(1, 0).sign().to(x)
            residual = score_residual(diffusion, x, t, probes, how)
            at = _mean_squares(diffusion, residual, t)
            if how != "all":
                c, u = diffusion.process(t), diffusion.to_core(x, t)
                here = diffusion.core.at(c.alpha, c.sigma)
                signs = probes
                if signs is None and not (here.closed or dim <= WHOLE):
                    generator = torch.Generator().manual_seed(0)
                    shape = (SIGNS, *diffusion.event_shape)
                    signs = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
                at["asymmetry"] = antisymmetric_squares(here, u, signs)[0] / dim
                if truth is not None and (probes is None or here.closed):
                    there = truth.core.at(c.alpha, c.sigma)
                    at["violation"] = violation_of(here, there, u)[0].square() / dim
            with suppress(NotImplementedError):  # it has no log-density
                log = log_residual(diffusion, x, t)
                weight = _log_weight(diffusion, t)
                at["log_residual"] = (weight * (log - log.mean())).square() / dim
            found.append(at)
        return found

    def _states(self, subject: Subject, place: int) -> Tensor:
        values = np.ascontiguousarray(subject.run["x"].values[place])
        return torch.from_numpy(values).to(subject.diffusion.device, torch.float64)


def check_trace(diffusion: Diffusion, probes: int) -> None:
    """Raise :class:`NotImplementedError` where a trace without probes would take too long."""
    dim = diffusion.denoiser.dim
    if not probes and dim > EXACT_TRACE and not diffusion.core.closed:
        raise NotImplementedError(
            f"the exact trace of this model takes {dim} times its work; have it estimated, e.g. "
            "probes=8."
        )


def _mean_squares(diffusion: Diffusion, found: Residual, t: float) -> dict[str, Tensor]:
    """Mean squares (n,) of the weighted residual, less what probes add to it, and of the motion."""

    def flat(v: Tensor) -> Tensor:
        return _weighted(diffusion, v, t).flatten(1)

    squares = flat(found.residual).square()
    if found.each is not None:
        squares = squares - torch.stack([flat(one) for one in found.each]).var(0) / len(found.each)
    return {"residual": squares.mean(1), "motion": flat(found.motion).square().mean(1)}


def _log_weight(diffusion: Diffusion, t: float) -> float:
    """sigma^2 / g^2, of a spectral process the mean over its modes."""
    c = diffusion.process(t)
    sigma, g2 = (torch.as_tensor(v, dtype=torch.float64) for v in (c.sigma, c.g2))
    return torch.where(g2 > 0, sigma**2 / g2, 0.0).mean().item()


def _differentiable(diffusion: Diffusion, x: Tensor, c) -> bool:
    """Whether automatic derivatives of the model are those of its values, along one direction."""
    u = diffusion.process.to_modes(x)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(u.shape, generator=generator, dtype=torch.float64).to(u)
    level = diffusion.core.at(c.alpha, c.sigma)
    h = 1e-3 * torch.as_tensor(c.sigma, dtype=torch.float64).mean().item()
    differences = (level.denoised(u + h * v) - level.denoised(u - h * v)) / (2 * h)
    try:
        automatic = level.jvp(u, v)
        level.vjp(u, v)
    except (RuntimeError, NotImplementedError):
        return False
    return (automatic - differences).norm() <= DIFFERENTIABLE * differences.norm() + 1e-9


def residual_map(
    diffusion: Diffusion, t: float, points: Tensor, differences: str = "none"
) -> Tensor:
    r"""Size of :math:`\sigma^3\varepsilon/g^2` per coordinate at ``points`` (n, *event): (n,).

    The pointwise form of :class:`FokkerPlanck`'s ``residual``.
    """
    found = score_residual(diffusion, points, t, None, differences)
    return _mean_squares(diffusion, found, t)["residual"].sqrt()


#: Pairs of laws that are compared.
PAIRS = (("ODE", "SDE"), ("ODE", "truth"), ("SDE", "truth"))

GAP_ABOUT = {
    "w2": ("W2 of means and covariances", "x"),
    "sliced": ("sliced W2, times the root of the dimension", "x"),
    "energy": ("energy distance", "x"),
    "mmd": ("squared maximum mean discrepancy, Gaussian kernel at the median distance", "1"),
    "transport": ("W2 of 256 points of each law", "x"),
    "step_error": ("W2 that the steps have moved the law, by halving them", "x"),
    "coupled": ("root mean square distance to half as many steps, from the same noise", "x"),
}


@dataclass(frozen=True)
class Family(DPMSolverPP):
    r"""Second-order multistep for the whole family of samplers between ODE and SDE, and beyond.

    With :math:`h` the step in :math:`\log(\alpha/\sigma)` and D extrapolated as in DPM-Solver++,

    .. math:: x' = \tfrac{\sigma'}{\sigma} e^{-\eta h} x + \alpha'(1 - e^{-(1+\eta)h}) D
              + \sigma'\sqrt{1 - e^{-2\eta h}}\, z,

    which is DPM-Solver++(2M) for :math:`\eta = 0` and its SDE variant for :math:`\eta = 1`.
    """

    sde: bool = False
    eta: Annotated[float, Param("noise: 0 probability flow, 1 reverse SDE", ge=0, le=10)] = 1.0

    @property
    def stochastic(self) -> bool:
        return self.eta > 0

    def combine(self, nodes, b, times):
        a, h = nodes[0], log_ratio(nodes[0], b)
        decay, fresh = math.exp(-self.eta * h), math.sqrt(-math.expm1(-2 * self.eta * h))
        weights = moments(b, (1 + self.eta) * h)
        return b.sigma / a.sigma * decay, self._past(nodes, h, weights), b.sigma * fresh


@dataclass(frozen=True)
class Gap(Lens):
    r"""How far apart do ODE and SDE end that share this score, and how far is each from the truth?

    Samples of the probability flow, of the sampler with noise ``eta`` (1: the reverse SDE), and of
    the data's own law at the end of the grid, of seeds of their own; both by the same second-order
    multistep method. ``w2`` is that of the Gaussians with their means and covariances; ``sliced``
    is the mean over directions; ``energy`` and ``mmd`` are unbiased and see all of the law;
    ``transport``, in up to three dimensions, is the optimal assignment of points. Of the squared
    ones what two sets of one law would show is taken off. Null bands and the p-values ``p``: both
    sets mixed and parted at random (:mod:`workbench.lenses.two_sample`).

    ``step_error`` is how far the steps themselves have moved each law: a third of what half as many
    change, of a method of order 2. ``coupled`` bounds that change from above, sample by sample. On
    Gaussian data both ``w2`` (without any step) and ``step_error`` have exact values.

    The truth is what the denoiser was perturbed from, or its own law, or the data points of a model
    that knows none.

    Source: Deveney et al. 2023, arXiv:2311.15996.
    """

    samples: Annotated[int, Param("samples of each law", ge=16, le=4096)] = 512
    steps: Annotated[int, Param("steps of each run", ge=2, le=4096)] = 64
    eta: Annotated[float, Param("noise of the SDE: 1 reverse SDE", gt=0, le=10)] = 1.0
    seed: Annotated[int, Param("of the first sample", ge=0, le=1 << 40)] = 0

    def memory(self, dim: int, kept: int) -> int:
        fits = 16 * self.samples * dim * dim
        return super().memory(dim, kept) + 64 * self.samples**2 + 256 * self.samples * dim + fits

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        _, errors, coupled = self._sets(subject, on_step)
        compared = self._compared(subject)
        names = list(next(iter(compared.values())))
        values = {
            name + end: np.array([getattr(compared[pair][name], part) for pair in PAIRS])
            for name in names
            for end, part in (("", "value"), ("_se", "error"))
        }
        variables = described(values, GAP_ABOUT, "pair")
        p = np.array([[compared[pair][name].p for name in names] for pair in PAIRS])
        about = "p-value of each statistic, by permutation"
        variables |= estimate("p", ("pair", "statistic"), p, about)
        steps = {"step_error": np.array(errors), "coupled": np.array(coupled)}
        variables |= described(steps, GAP_ABOUT, "sampler")
        labels = [f"{self._called(a)} and {self._called(b)}" for a, b in PAIRS]
        coords = {"pair": labels, "sampler": ["ODE", self._called("SDE")], "statistic": names}
        return xr.Dataset(variables, coords)

    @property
    def _etas(self) -> dict[str, float]:
        return {"ODE": 0.0, "SDE": self.eta}

    def _called(self, name: str) -> str:
        return f"eta {self.eta:g}" if name == "SDE" and self.eta != 1 else name

    def exact(self, subject: Subject) -> xr.Dataset | None:
        wrong, grid = wrong_gaussian(subject), self._grid(subject)
        if wrong is None:
            return None
        diffusion, scale, bias = wrong
        start, end = grid.t[0], grid.t[-1]
        try:
            laws = {
                name: reverse_law(diffusion, eta, scale, bias, t=start, s=end)
                for name, eta in self._etas.items()
            }
        except (TypeError, ValueError, NotImplementedError):
            return None
        found = {}
        if isinstance(subject.denoiser, Gaussian):
            with suppress(TypeError, ValueError, NotImplementedError):
                made = {
                    name: output_law(diffusion, Family(eta=eta), grid)
                    for name, eta in self._etas.items()
                }
                found["step_error"] = ("sampler", [w2(made[n], laws[n]) for n in made])
        laws["truth"] = diffusion.marginal(end)
        found["w2"] = ("pair", [w2(laws[a], laws[b]) for a, b in PAIRS])
        return xr.Dataset(found)

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        compared = self._compared(subject, level)
        names = list(next(iter(compared.values())))
        each = {name: [compared[pair][name] for pair in PAIRS] for name in names}
        bands = {name: [(one.low, one.high) for one in row] for name, row in each.items()}
        return xr.Dataset({n: (("pair", "bound"), np.array(band)) for n, band in bands.items()})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        said, count = [], dataset.sizes["statistic"]
        for i, pair in enumerate(dataset["pair"].values.tolist()):
            value, high = (float(dataset[k].values[i].max()) for k in ("w2", "w2_null"))
            least = float(dataset["p"][i].min())
            word = "are apart" if least < 0.05 / count else "cannot be told apart"
            text = f"{pair} {word}: W2 {value:.3g}"
            if "w2_exact" in dataset:
                text += f" (exactly {float(dataset['w2_exact'][i]):.3g})"
            text += f", up to {high:.3g} where nothing is there"
            said.append(f"{text}; least p-value of {count} statistics {least:.2g}.")
        worst = float(dataset["step_error"].max())
        if worst > 0.5 * float(dataset["w2"].max()) and dataset["w2"].max() > 0:
            said.append(
                f"The steps themselves have moved a law by about {worst:.2g}: take more steps "
                "before anything is read from the distances."
            )
        return said

    def _grid(self, subject: Subject) -> Grid:
        return Grid.log_snr(subject.process, self.steps, final="stop")

    def _compared(self, subject: Subject, level: float = 0.05):
        def compared() -> dict:
            sets, *_ = self._sets(subject)
            return {(a, b): compare(sets[a], sets[b], tuple(STATISTICS), level) for a, b in PAIRS}

        return subject.once((self, "compared", level), compared)

    @remembered
    def _sets(
        self, subject: Subject, on_step: OnStep | None = None
    ) -> tuple[dict[str, Tensor], list[float], list[float]]:
        """Samples (n, *event) of each law; how far the steps moved both; how far half as many end
        from them sample by sample."""
        diffusion, n, sets, errors, coupled = subject.diffusion, self.samples, {}, [], []
        check_prior(subject.process, " that both could start from")
        grid = self._grid(subject)
        coarse = Grid.times(subject.process, [*grid.t[:-1:2], grid.t[-1]])
        for k, (name, eta) in enumerate(self._etas.items()):
            seeds, finals = range(self.seed + k * n, self.seed + (k + 1) * n), []
            for nodes in (grid, coarse):
                key = ends_key(eta, nodes, seeds)
                if key not in subject.computed:
                    run = sample(diffusion, Family(eta=eta), nodes, seeds, noise="brownian")
                    subject.computed[key] = run.final
                finals.append(subject.computed[key])
            sets[name] = finals[0]
            if not bool(torch.stack(finals).isfinite().all()):
                raise NotImplementedError(
                    f"samples of the {name} are not finite numbers: it diverged, or they are "
                    "outside of the range of floating point. Take more steps."
                )
            errors.append(w2(*map(Gaussian.fit, finals)) / 3)
            apart = (finals[0] - finals[1]).flatten(1).double()
            coupled.append(apart.square().sum(1).mean().sqrt().item())
            if on_step is not None:
                on_step(k + 1, 3)
        sets["truth"] = truth_samples(subject, grid.t[-1], n, self.seed)
        if on_step is not None:
            on_step(3, 3)
        return sets, errors, coupled


def ends_key(eta: float, grid: Grid, seeds: range) -> tuple:
    """Under which a subject keeps the final states of a run of :class:`Family`, Brownian noise."""
    return "ends", eta, tuple(grid.t), seeds


def truth_samples(subject: Subject, end: float, n: int, seed: int = 0) -> Tensor:
    """``n`` samples (n, *event) of what the run should end in at time ``end``, float64.

    Raises:
        NotImplementedError: neither a law nor data points are known.
    """
    law = truth_of(subject)
    generator = torch.Generator().manual_seed(seed)
    x = None if law is None else draws(law, n, generator)
    if x is None:
        if subject.data is None:
            raise NotImplementedError(
                f"{subject.denoiser!r} has no law to draw the truth from, and no data are at hand; "
                "give them: data=wb.Data(...)."
            )
        which = torch.randint(len(subject.data.points), (n,), generator=generator)
        x = subject.data.points[which]
    noise = NoiseSource(range(seed + 2 * n, seed + 3 * n), subject.diffusion.event_shape).start()
    like = {"device": subject.diffusion.device, "dtype": torch.float64}
    return subject.diffusion.diffuse(x.to(**like), end, noise.to(**like))


def _weighted(diffusion: Diffusion, field: Tensor, t: float) -> Tensor:
    """``sigma^3 / g2`` times a field (n, *event), mode by mode; 0 where nothing is noised."""
    c, process = diffusion.process(t), diffusion.process
    sigma, g2 = (torch.as_tensor(v, dtype=torch.float64).to(field) for v in (c.sigma, c.g2))
    weight = torch.where(g2 > 0, sigma**3 / g2, torch.zeros_like(g2))
    return process.from_modes(weight * process.to_modes(field))
