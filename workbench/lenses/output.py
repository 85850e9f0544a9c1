r"""Distance of a sampler's output from the law it should have.

From the mean and covariance of the samples, with :math:`m, C` of the n samples and
:math:`\mu, \Sigma` of the target,

.. math:: W_2^2 = |m - \mu|^2 + \operatorname{tr}(C + \Sigma - 2(C^{1/2}\Sigma C^{1/2})^{1/2}),
          \qquad \mathrm{KL} = \tfrac12\big[\operatorname{tr}\Sigma^{-1}C - d
          - \log\det\Sigma^{-1}C + (m-\mu)^\top\Sigma^{-1}(m-\mu)\big].

Both are above zero for finitely many exact samples: to first order in 1/n, in the eigenbasis of
:math:`\Sigma` with :math:`\chi^2` of one degree of freedom each,

.. math:: n W_2^2 \sim \sum_k \tfrac32\lambda_k\chi^2
          + \sum_{i<j}\tfrac{\lambda_i\lambda_j}{\lambda_i+\lambda_j}\chi^2_{ij},
          \qquad 2 n\,\mathrm{KL} \sim \chi^2_{d + d(d+1)/2},

(the first term stands for :math:`\lambda\chi^2` of the mean and :math:`\tfrac12\lambda\chi^2` of
the variance), which is the null band of Gaussian data. Of mixtures and point sets it is drawn.

Sources: Pierret & Galerne 2024, arXiv:2405.14250 (exact values); Székely & Rizzo 2013, J. Stat.
Plan. Inference 143, 1249 (energy distance).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Denoiser, Empirical, Gaussian, Mixture
from workbench.denoisers.sphere import Sphere
from workbench.diffusion import Diffusion
from workbench.exact import kl, law, w2
from workbench.lenses.base import Lens, OnStep, Subject, described
from workbench.lenses.errors import central
from workbench.lenses.teleport import matched_gaussian
from workbench.params import Param

#: Sets of exact samples that are drawn for a null band, and the most numbers in one.
DRAWN, MOST_DRAWN = 100, 2**20

#: Most samples, and most data points, between which the energy distance is measured.
MOST_PAIRED = 2048

ABOUT = {
    "w2": ("W2 of the output's mean and covariance to the target's", "x"),
    "kl": ("KL of the output's mean and covariance from the target's", "nats"),
    "energy": ("energy distance of the output to the data points", "x"),
    "w2_gaussian": ("exact W2 of the output on the Gaussian with the data's covariance", "x"),
    "kl_gaussian": ("exact KL of the output on the Gaussian with the data's covariance", "nats"),
}


@dataclass(frozen=True)
class Output(Lens):
    """How far is the sampler's output from the law it should have?

    ``w2`` and ``kl`` compare the mean and covariance of the samples with those of the marginal at
    the end of the grid (or of the data); ``energy`` the samples with the data points, where these
    are at hand. On Gaussian data ``w2`` and ``kl`` have an exact value for every linear sampler;
    on others ``w2_gaussian`` and ``kl_gaussian`` are exact for the Gaussian with the data's mean
    and covariance.
    """

    target: Annotated[
        Literal["marginal", "data"], Param("the marginal at the end of the grid, or the data")
    ] = "marginal"
    samples: Annotated[int, Param("how many samples it looks at", ge=2, le=1_000_000)] = 4096

    reads = ("final",)

    def memory(self, dim: int, kept: int) -> int:
        return 96 * dim * dim + 48 * self.samples * dim + 64 * MOST_PAIRED**2

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        values, final = {}, subject.field("final")
        goal = _goal(subject.diffusion, subject.grid, self.target)
        if len(final) > 1:
            fit = Gaussian.fit(final)
            distance = w2(fit, goal)
            values["w2"] = distance
            slope = influence(final, goal, transport(fit, goal)).std().item()
            values["w2_se"] = slope / (2 * distance * math.sqrt(len(final))) if distance else 0.0
            values["kl"] = kl(fit, goal)
            if math.isfinite(values["kl"]):
                both = [_inverse(one) for one in (goal, fit)]
                spread = 0.5 * influence(final, goal, lambda y: y @ (both[0] - both[1]), both[0])
                values["kl_se"] = spread.std().item() / math.sqrt(len(final))
            values |= self.energy(subject)
        if not isinstance(subject.denoiser, Gaussian):
            with suppress(TypeError):  # not a linear sampler, or modes that are not independent
                exact = exact_errors(subject, self.target)
                values |= {f"{name}_gaussian": value for name, value in exact.items()}
        return xr.Dataset(described(values, ABOUT))

    def energy(self, subject: Subject) -> dict[str, float]:
        """The energy distance to the data points with its error; {} where these are not at hand."""
        final, data = subject.field("final"), subject.data
        if data is None or data.event_shape != final.shape[1:]:
            return {}
        return dict(zip(("energy", "energy_se"), energy_distance(final, data.points), strict=True))

    def exact(self, subject: Subject) -> xr.Dataset | None:
        if not isinstance(subject.denoiser, Gaussian) or subject.run.sizes["sample"] < 2:
            return None
        try:
            return xr.Dataset(exact_errors(subject, self.target))
        except TypeError:
            return None

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        n, goal = subject.run.sizes["sample"], _goal(subject.diffusion, subject.grid, self.target)
        if n < 2:
            return None
        if isinstance(subject.denoiser, Gaussian):
            return _gaussian_null(goal, n, level)
        drawn = _drawn(subject, self.target, n)
        if drawn is None:
            return None
        distances = np.array([[d(fit, goal) for d in (w2, kl)] for fit in map(Gaussian.fit, drawn)])
        bands = zip(("w2", "kl"), central(distances, level), strict=True)
        return xr.Dataset({name: ("bound", band) for name, band in bands})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        if "w2" not in dataset:
            return []
        said = f"The output is W2 = {float(dataset['w2']):.3g} from its target"
        if "w2_exact" in dataset:
            said += f" (exactly {float(dataset['w2_exact']):.3g})"
        if "w2_null" in dataset:
            low, high = dataset["w2_null"].values
            seen = float(dataset["w2"]) > high
            said += f"; as many exact samples would be {low:.3g} to {high:.3g} away, so "
            said += "the difference is seen" if seen else "no difference can be seen"
        return [said + "."]


def _goal(diffusion: Diffusion, grid, target: str) -> Gaussian:
    """Mean and covariance of what the output should be."""
    twin = Diffusion(diffusion.process, matched_gaussian(diffusion.denoiser), diffusion.condition)
    at_data = target == "data" or grid.sigma[-1] == 0
    return twin.denoiser if at_data else twin.marginal(grid.t[-1])


def exact_errors(subject: Subject, target: str) -> dict[str, float]:
    """Exact distances of the output on the Gaussian with the data's mean and covariance."""
    diffusion = subject.diffusion
    twin = Diffusion(diffusion.process, matched_gaussian(diffusion.denoiser), diffusion.condition)
    output, goal = law(twin, subject.sampler, subject.grid), _goal(diffusion, subject.grid, target)
    return {"w2": w2(output, goal), "kl": kl(output, goal)}


def influence(
    final: Tensor, goal: Gaussian, second: Callable[[Tensor], Tensor], first: Tensor | None = None
) -> Tensor:
    """Influence (n,) of each sample on a distance: ``2 shift first y + y second(y)``, y = x - m.

    Samples enter a distance by their mean and covariance, whose derivatives are these.
    """
    flat = final.flatten(1)
    y, shift = flat - flat.mean(0), flat.mean(0) - goal.mean.flatten().double()
    slope = shift if first is None else first @ shift
    return 2 * (y @ slope) + (y * second(y)).sum(1)


def transport(fit: Gaussian, goal: Gaussian) -> Callable[[Tensor], Tensor]:
    r"""``y -> (I - T) y`` with the optimal map T from ``fit`` to ``goal``.

    .. math:: T = C^{-1/2}(C^{1/2}\Sigma C^{1/2})^{1/2}C^{-1/2}
    """
    values, basis = torch.linalg.eigh(fit.cov.double())
    values = torch.where(values > 1e-12 * values.max(), values, 0.0)
    root = values.sqrt()
    inverse = torch.where(root > 0, 1 / root, 0.0)
    inner = root[:, None] * (basis.T @ goal.cov.double() @ basis) * root
    inner_values, turn = torch.linalg.eigh(inner)
    half = (turn * inner_values.clamp_min(0).sqrt()) @ turn.T
    matrix = basis @ (inverse[:, None] * half * inverse) @ basis.T
    return lambda y: y - y @ matrix


def _inverse(one: Gaussian) -> Tensor:
    return torch.linalg.pinv(one.cov.double(), hermitian=True)


def _gaussian_null(goal: Gaussian, n: int, level: float) -> xr.Dataset:
    """Null bands of Gaussian data: a gamma law with the first two moments of the weighted chi²."""
    from scipy.special import gammaincinv

    values = goal.spectrum.double()
    values = values[values > 0]
    tails = [level / 2, 1 - level / 2]
    if not len(values):
        return xr.Dataset({"w2": ("bound", np.zeros(2)), "kl": ("bound", np.zeros(2))})
    pairs = values[:, None] * values / (values[:, None] + values)
    off = torch.triu(torch.ones_like(pairs), 1).bool()
    weights = torch.cat([values, 0.5 * values, pairs[off]]) / n
    mean, variance = weights.sum().item(), 2 * weights.square().sum().item()
    d = len(values)
    kl_band = gammaincinv((d + d * (d + 1) / 2) / 2, tails) / n if n > d else [math.inf] * 2
    w2_band = np.sqrt(gammaincinv(mean**2 / variance, tails) * variance / mean)
    return xr.Dataset({"w2": ("bound", w2_band), "kl": ("bound", kl_band)})


def draws(denoiser: Denoiser, n: int, generator: torch.Generator) -> Tensor | None:
    """``n`` exact samples (n, *event) of a denoiser's data, float64; None where that is not known.

    Args:
        denoiser: a Gaussian, a Mixture, an Empirical or a Sphere.
        generator: on the CPU.
    """
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    if isinstance(denoiser, Empirical):
        which = torch.randint(len(denoiser.points), (n,), generator=generator)
        return denoiser.points[which.to(denoiser.device)].double()
    if isinstance(denoiser, Sphere):
        return denoiser.draws(n, generator)
    if isinstance(denoiser, Gaussian):
        denoiser = Mixture(torch.ones(1).to(denoiser.mean), denoiser.mean[None], denoiser.cov[None])
    if not isinstance(denoiser, Mixture):
        return None
    weights = denoiser.weights.double().cpu()
    label = torch.multinomial(weights, n, replacement=True, generator=generator)
    means, covs = denoiser.means.flatten(1).double(), denoiser.covs.double()
    z, label = normal(n, means.shape[1]).to(means.device), label.to(means.device)
    if covs.ndim == 3:
        values, basis = torch.linalg.eigh(covs)
        roots = basis * values.clamp_min(0).sqrt()[:, None]
        z = (roots[label] @ z[..., None])[..., 0]
    else:
        z = z * (covs.sqrt()[label][:, None] if covs.ndim == 1 else covs.sqrt()[label])
    return (means[label] + z).reshape(n, *denoiser.event_shape)


def _drawn(subject: Subject, target: str, n: int) -> list[Tensor] | None:
    """Sets of n exact samples of the target; None where they cannot be drawn, or are too many."""
    if n * subject.denoiser.dim > MOST_DRAWN:
        return None
    generator = torch.Generator().manual_seed(0)
    first = draws(subject.denoiser, 1, generator)
    if first is None:
        return None
    sets = []
    for _ in range(DRAWN):
        x = draws(subject.denoiser, n, generator)
        if target == "marginal" and subject.grid.sigma[-1] > 0:
            z = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
            x = subject.diffusion.diffuse(x, subject.grid.t[-1], z)
        sets.append(x)
    return sets


def energy_distance(
    samples: Tensor, points: Tensor, drawn: bool = False, paired: bool = False
) -> tuple[float, float]:
    r"""Energy distance of a law, known by samples, to another, and its standard error [x].

    .. math:: 2\,E|X - Y| - E|X - X'| - E|Y - Y'|,

    unbiased in the samples (pairs of different ones). The points are all of the other law, and of
    more than 2048 of either as many are taken at even distances; or they are ``drawn`` from it, and
    the distance is unbiased in them too; of pairs (one start, two ways; ``paired``) only members of
    different pairs are compared. The error is that of what was drawn, to first order (Székely &
    Rizzo 2013, J. Stat. Plan. Inference 143, 1249).
    """
    x, y = (one.flatten(1).double().cpu() for one in (samples, points))
    if not drawn:
        x, y = _thinned(x), _thinned(y)
    if len(x) < 2 or (drawn and len(y) < 2):
        return math.nan, math.nan
    across, within = torch.cdist(x, y), _to_others(x)
    if paired:  # with a mean over the others as large as over all, but for a pair's own distance
        across = across.fill_diagonal_(0) * (len(x) / (len(x) - 1))
    variance = (across.mean(1) - within).var() / len(x)
    if drawn:
        among = _to_others(y)
        other = across.mean(0) - among
        variance = variance + other.var() / len(y)
        if paired:
            influences = torch.stack([across.mean(1) - within, other])
            variance = influences.sum(0).var() / len(x)
    else:
        among = torch.cdist(y, y).fill_diagonal_(0)
    value = 2 * across.mean() - within.mean() - among.mean()
    return value.item(), 2 * math.sqrt(variance.item())


def _to_others(points: Tensor) -> Tensor:
    """Mean distance (n,) of each point to the others."""
    return torch.cdist(points, points).fill_diagonal_(0).sum(1) / (len(points) - 1)


def _thinned(points: Tensor) -> Tensor:
    return points if len(points) <= MOST_PAIRED else points[:: -(-len(points) // MOST_PAIRED)]
