r"""By how much ODE and SDE miss the density that their own model claims, sample by sample.

With R the Fokker-Planck residual of the modelled log-density u (:math:`s = \nabla u`), and
:math:`\pi` the law of the start,

.. math:: \log\frac{q^O}{e^u}(x, t) &= \log\frac{\pi}{e^{u_T}}(x_T) + \int_t^T R(x_r, r)\,dr
          \quad\text{along the flow},\\
          \frac{q^S}{e^u}(x, t) &= E\Big[e^{\int_t^T R(Y_r, r)dr}\,\frac{\pi}{e^{u_T}}(Y_T)\Big]
          \quad\text{over the noising process Y from x}.

One residual, integrated along a path for the ODE and averaged over forward noise for the SDE: their
gap is the difference of the two.

Source: derived in this project (the first from the instantaneous change of variables, the second by
the formula of Feynman and Kac), in the spirit of Deveney et al. 2023, arXiv:2311.15996.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Denoiser, Perturbed
from workbench.diffusion import Diffusion
from workbench.exact.fokker_planck import log_residual, model_log_density
from workbench.exact.likelihood import log_likelihood, log_prior
from workbench.exact.reverse import reverse_law
from workbench.lenses.base import Lens, OnStep, Subject, described, stepped
from workbench.lenses.checks import check_one_level
from workbench.lenses.errors import mean_error
from workbench.lenses.gap import wrong_gaussian
from workbench.params import Param
from workbench.processes import Process
from workbench.sampling import NoiseSource

#: Steps of the flow, and of the noising paths, for an e-fold of the noise level.
PER_FOLD, NOISED_PER_FOLD = 12, 8

#: Effective paths below which a mean over them is not to be trusted.
FEW = 10

#: Where the forward noise of the paths begins among the draws of a seed.
FORWARD = 1 << 41


def flow_log_ratio(
    diffusion: Diffusion,
    x: Tensor,
    t: float,
    end: float,
    prior: Literal["marginal", "prior"] | Denoiser = "prior",
) -> Tensor:
    """``log q - u`` (n,) of the probability flow's density at ``x``, by the residual on its path.

    The path is integrated in log rho by the classical Runge-Kutta method, the residual by Simpson's
    rule on its steps.

    Args:
        diffusion: whose model has a log-density, see :func:`workbench.exact.log_residual`.
        x: states (n, *event) at ``t``, float64.
        t, end: times with alpha > 0 and sigma > 0, t below end.
        prior: the law at ``end``: what sampling starts from, the marginal, or any law.
    """
    times = _times(diffusion.process, t, end, PER_FOLD)
    rate = [2 * c.sigma**2 / c.g2 for c in map(diffusion.process, times)]  # dt / d log rho
    total = x.new_zeros(len(x))
    value = rate[0] * log_residual(diffusion, x, times[0])
    slope = rate[0] * diffusion.velocity(x, times[0])
    for k in range(0, len(times) - 2, 2):
        h = math.log(_rho(diffusion.process, times[k + 2]) / _rho(diffusion.process, times[k]))
        field = lambda v, j: rate[j] * diffusion.velocity(v, times[j])  # noqa: E731
        second = field(x + 0.5 * h * slope, k + 1)
        third = field(x + 0.5 * h * second, k + 1)
        after = x + h / 6 * (slope + 2 * (second + third) + field(x + h * third, k + 2))
        then = field(after, k + 2)
        middle = 0.5 * (x + after) + h / 8 * (slope - then)  # the cubic through both ends
        inner, outer = (
            rate[j] * log_residual(diffusion, v, times[j])
            for v, j in ((middle, k + 1), (after, k + 2))
        )
        total = total + h / 6 * (value + 4 * inner + outer)
        x, slope, value = after, then, outer
    return total + _start_ratio(diffusion, x, end, prior)


def noising_log_ratio(
    diffusion: Diffusion,
    x: Tensor,
    t: float,
    end: float,
    noise: NoiseSource,
    prior: Literal["marginal", "prior"] | Denoiser = "prior",
    on_step: OnStep | None = None,
) -> tuple[Tensor, Tensor]:
    """``log q - u`` (n,) of the reverse SDE's density at ``x``, and its standard error (n,).

    Paths of the noising process are drawn exactly between its levels, eight for each factor e of
    the noise level; the residual along them by the trapezoid rule.

    Args:
        noise: of one seed for each state, each draw (paths, *event).
    """
    process = diffusion.process
    why = "the paths of the noising process are drawn for processes with one alpha and sigma"
    check_one_level(process, why)
    times = _times(process, t, end, NOISED_PER_FOLD)
    paths = noise.step(FORWARD).shape[1]
    y = x[:, None].expand(len(x), paths, *x.shape[1:]).reshape(-1, *x.shape[1:])
    total = y.new_zeros(len(y))
    before = log_residual(diffusion, y, times[0])
    for k, (s, r) in enumerate(stepped([*pairwise(times)], on_step)):
        here, there = process(s), process(r)
        kept = there.alpha / here.alpha
        fresh = math.sqrt(max(0.0, there.sigma**2 - (kept * here.sigma) ** 2))
        z = noise.step(FORWARD + 1 + k).to(y).reshape(y.shape)
        u = kept * diffusion.to_core(y, s) + fresh * z
        y = diffusion.from_core(u, r)
        after = log_residual(diffusion, y, r)
        total = total + 0.5 * (r - s) * (before + after)
        before = after
    logs = (total + _start_ratio(diffusion, y, end, prior)).reshape(len(x), paths)
    peak = logs.max(1, keepdim=True).values
    weights = (logs - peak).exp()
    mean = weights.mean(1)
    error = weights.std(1) / (mean * math.sqrt(paths))
    return peak[:, 0] + mean.log(), error


def _rho(process: Process, t: float) -> float:
    return float(process(t).rho)


def _times(process: Process, t: float, end: float, per_fold: int) -> list[float]:
    """Times from ``t`` to ``end`` at even distances in log rho; an even number of steps."""
    check_one_level(process, "densities are compared along one level")
    low, high = math.log(_rho(process, t)), math.log(_rho(process, end))
    steps = 2 * max(1, math.ceil((high - low) * per_fold / 2))
    inner = np.exp(np.linspace(low, high, steps + 1))[1:-1]
    return [t, *(float(process.time_of(float(rho))) for rho in inner), end]


def _start_ratio(diffusion: Diffusion, x: Tensor, end: float, prior) -> Tensor:
    c = diffusion.process(end)
    u = diffusion.to_core(x, end)
    model = model_log_density(diffusion.core, diffusion.core.at(c.alpha, c.sigma), u)
    if isinstance(prior, Denoiser):
        return prior.log_prob(x) - model
    if prior == "prior":
        return log_prior(diffusion, x, end) - model
    base = diffusion.denoiser
    base = base.base if isinstance(base, Perturbed) else base
    return Diffusion(diffusion.process, base, diffusion.condition).log_prob(x, end) - model


@dataclass(frozen=True)
class DensityError(Lens):
    r"""By how many nats do ODE and SDE miss the density that their own model claims?

    At the final states of the run, ``ode`` is :math:`\log q^O - u` by the residual along the flow,
    ``sde`` is :math:`\log q^S - u` by its mean over forward noise, ``sde_error`` the standard error
    of that mean, and ``gap`` what the two differ by on average. The model is one with a
    log-density: a law, or a law perturbed without a gauge; of a perturbed mixture u is known up
    to a constant, which is in both alike. The exact value of ``ode`` comes from the flow's change
    of volume; of Gaussians with a scaled or biased score all of them are closed forms.
    """

    samples: Annotated[int, Param("how many samples it looks at", ge=1, le=10_000)] = 16
    paths: Annotated[int, Param("noising paths from each sample", ge=2, le=100_000)] = 256

    reads = ("final",)

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 64 * self.samples * self.paths * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        final, (t, end) = subject.field("final"), _ends(subject)
        diffusion = subject.diffusion
        ode = flow_log_ratio(diffusion, final, t, end)
        noise = NoiseSource(subject.seeds, (self.paths, *diffusion.event_shape))
        sde, error = noising_log_ratio(diffusion, final, t, end, noise, on_step=on_step)
        gap = ode - sde
        about = {
            "ode": ("log-density of the ODE's samples less the model's", "nats"),
            "sde": ("log-density of the SDE's samples less the model's", "nats"),
            "gap": ("mean log-density of the ODE less that of the SDE", "nats"),
            "effective": ("noising paths that carry the mean over them, of each sample", "1"),
            "sde_error": ("standard error of the SDE's by its noising paths", "nats"),
        }
        each = {"ode": ode, "sde": sde, "sde_error": error}
        each["effective"] = self.paths / (1 + (self.paths - 1) * error.square())
        each = {name: value.cpu().numpy() for name, value in each.items()}
        whole = {"gap": gap.mean().item(), "gap_se": mean_error(gap).item()}
        return xr.Dataset(described(each, about, "sample") | described(whole, about))

    def exact(self, subject: Subject) -> xr.Dataset | None:
        final, (t, end) = subject.field("final"), _ends(subject)
        diffusion = subject.diffusion
        c = diffusion.process(t)
        level = diffusion.core.at(c.alpha, c.sigma)
        model = model_log_density(diffusion.core, level, diffusion.to_core(final, t))
        flow = log_likelihood(diffusion, final, t, end, "prior", 1e-8, 1e-9).log_prob
        found = {"ode": ("sample", (flow - model).cpu().numpy())}
        wrong = wrong_gaussian(subject)
        if wrong is not None:
            right, scale, bias = wrong
            sde = reverse_law(right, 1.0, scale, bias, t=end, s=t).log_prob(final)
            found["sde"] = ("sample", (sde - model).cpu().numpy())
        return xr.Dataset(found)

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """Of ``ode``, what the quadrature leaves of nothing."""
        edge = np.full(subject.run.sizes["sample"], 1e-4)
        return xr.Dataset({"ode": (("sample", "bound"), np.stack([-edge, edge], 1))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        ode, sde, gap = (float(dataset[name].mean()) for name in ("ode", "sde", "gap"))
        error = float(dataset["gap_se"])
        said = [
            f"Where the samples end, the flow's density is {ode:+.3g} nats from what the model "
            f"claims, the SDE's {sde:+.3g}; the two differ by {gap:+.3g} ± {error:.2g} on average."
        ]
        few = int((dataset["effective"] < FEW).sum())
        if few:
            said.append(
                f"Of {few} of {dataset.sizes['sample']} samples fewer than {FEW} of the noising "
                "paths carry the mean: their SDE densities are not to be trusted; take more paths."
            )
        return said


def _ends(subject: Subject) -> tuple[float, float]:
    """The last time of the run, and its first with alpha > 0."""
    if subject.grid.sigma[-1] == 0:
        raise NotImplementedError(
            "the run ends at sigma = 0, where densities of point masses are compared with nothing; "
            'take final="stop".'
        )
    check_one_level(subject.process, "densities are compared along one level")
    if not bool((torch.as_tensor(subject.grid.alpha[0]) > 0).all()):
        raise NotImplementedError(
            "the run starts from pure noise (alpha = 0), where a wrong score has no density; take "
            "VP or EDM, or start before it."
        )
    return subject.grid.t[-1], subject.grid.t[0]
