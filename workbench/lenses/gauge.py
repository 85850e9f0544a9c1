r"""Gauge freedom: which part of a model's score moves density, and which moves it in circles.

At noise rho (alpha = 1) a score splits as :math:`s = \nabla\phi + r`, :math:`\nabla\!\cdot(p\,r) =
0`, orthogonal in :math:`L^2(p)` with p the law of the noised data. Marginals and likelihoods see
:math:`\nabla\phi` alone. Three solvers agree where they overlap: a linear field under a Gaussian in
closed form (:func:`workbench.exact.gauge_split`), a grid in 2 and 3 dimensions
(:func:`workbench.exact.grid_split`), and samples in any
(:func:`workbench.lenses.galerkin.galerkin_split`).

:func:`gauge_map` gives the fields at one noise level on a grid in the plane: what a page draws.

Everything is in units of the noise prediction, :math:`\rho s = -\hat\epsilon`: pure numbers.

Source: Horvat & Pfister 2024, arXiv:2402.03845; the estimators from samples are derived here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Denoiser, Empirical, Gaussian, Perturbed
from workbench.denoisers.level import Level
from workbench.exact.fokker_planck import LAWS
from workbench.exact.gauge import (
    EXACT_TRACE,
    antisymmetric_squares,
    circulation,
    curl,
    gauge_split,
    line_gradient,
    scaled_score,
    violation_of,
)
from workbench.exact.helmholtz import grid_split
from workbench.lenses.base import (
    LEVEL,
    Lens,
    OnStep,
    Subject,
    described,
    quick,
    remembered,
    stepped,
)
from workbench.lenses.dimension import neighbours
from workbench.lenses.errors import mean_error, root_of_ratio
from workbench.lenses.galerkin import AXES, WHOLE_PAIRS, galerkin_split, gauge_least
from workbench.lenses.gap import ROUNDING, WHOLE, truth_of
from workbench.lenses.output import draws
from workbench.params import Param

#: Draws of the data that say how large a grid must be; around them it has as many deviations of
#: the noise, and a share of their range.
DRAWN, AROUND, MARGIN = 2000, 4.0, 0.1

#: Least share of the probability that the nodes of a grid must hold.
HELD = 0.95

#: Spacing of a grid at most, over the width of the density's narrowest peak, and the relative
#: density down to which peaks count.
COARSEST, PEAK = 1.5, 0.05

#: Relative density below which a map shows nothing.
SHOWN = 1e-8


def law_of(subject: Subject) -> Denoiser:
    """The law whose noised versions weigh the split: that which the model should have, see
    :func:`workbench.lenses.gap.truth_of`; else that of the data points themselves.

    Raises:
        NotImplementedError: neither a law nor data points are known.
    """
    law = truth_of(subject)
    if law is None and subject.data is not None:
        points = subject.data.points.to(subject.diffusion.device, torch.float64)
        law = Empirical(points)
    if law is None:
        raise NotImplementedError(
            f"which part of a field moves density depends on the density, and {subject.denoiser!r} "
            "has none at hand; give the data: data=wb.Data(...)."
        )
    return law


def gauge_map(
    denoiser: Denoiser,
    law: Denoiser,
    rho: float,
    nodes: int = 64,
    box: tuple[tuple[float, float], tuple[float, float]] | None = None,
    naive: bool = False,
    derivatives: bool = True,
) -> xr.Dataset:
    r"""The score of a denoiser in the plane at one noise level, split on a grid.

    Dims ``y``, ``x`` (coordinates of the nodes [x], at alpha = 1) and ``component`` (0: along x,
    1: along y). All is nan where the density is below 1e-8 of its largest.

    - ``density`` (y, x): of the noised law, over its largest.
    - ``field``, ``conservative``, ``gauge`` (y, x, component): rho s, its gradient part and its
      gauge part; ``field = conservative + gauge``.
    - ``truth`` (y, x, component): rho times the score of the noised law.
    - ``naive`` (y, x, component), where it is asked for: rho times the gradient of the potential by
      line integrals from the mean, of a linear field the symmetrised matrix: another thing than
      ``conservative``.
    - ``violation`` (y, x): :math:`\rho^2(\nabla\cdot e + e\cdot\nabla\log p)` of the error
      :math:`e = s - \nabla\log p`; zero where what is wrong with the score is a gauge.
    - ``curl`` (y, x): :math:`\rho^2(\partial_x s_y - \partial_y s_x)`; zero of a gradient.
    - ``potential`` (y, x): phi [nats], of mean 0.

    Attributes: ``rho``; ``field_norm2 = conservative_norm2 + gauge_norm2`` and ``error_norm2`` (of
    the gradient part less the truth), mean squares under the density per coordinate; ``border``
    (largest relative density on the border of the box), ``mass`` (share of the probability on the
    nodes), ``pieces`` (into how many the support falls).

    Of a gauge :math:`c A\nabla\log p` everything is linear in c: ``field = truth + c/c0 * gauge``.

    Args:
        denoiser: float64, of samples with two numbers.
        law: that of the data, a Gaussian, Mixture or Empirical; see :func:`law_of`.
        rho: noise level sigma/alpha [x].
        nodes: of the grid along each axis.
        box: ((x low, x high), (y low, y high)) [x]; None: around the data, by four times the noise.
        naive: whether to show the potential by line integrals too; a network takes seconds for it.
        derivatives: whether to show violation and curl, which take the Jacobian at every node.

    Raises:
        NotImplementedError: data that are not two numbers each.
        ValueError: a grid that the density is too narrow for, or that it is not on.
    """
    if denoiser.dim != 2:
        raise NotImplementedError(
            f"these data have {denoiser.dim} numbers each; the map is of fields in the plane. In "
            "other dimensions ask the lens gauge."
        )
    grid = _Grid.around(law, rho, nodes, box)
    level, truth = denoiser.at(1.0, rho), law.at(1.0, rho)
    points = grid.points.reshape(-1, *denoiser.event_shape)
    field, right, split, norms = _split_on(grid, level, truth)
    seen = torch.where(grid.log_prob - grid.log_prob.max() > math.log(SHOWN), 1.0, math.nan)
    potential = grid.log_prob - grid.mean(grid.log_prob.clamp_min(-1e300))  # of the truth
    found = {
        "density": (grid.log_prob - grid.log_prob.max()).exp(),
        "field": field,
        "conservative": right + split.conservative,
        "gauge": split.gauge,
        "truth": right,
        "potential": split.potential / rho + potential,
    }
    if derivatives:
        shape = grid.points.shape[:2]
        found["violation"] = violation_of(level, truth, points)[0].reshape(shape)
        found["curl"] = curl(level.jacobian(points)).reshape(shape)
    if naive:
        pull = lambda x, v: (level.vjp(x, v) - v) / rho**2  # noqa: E731
        lines = line_gradient(level.score, pull, points, law.mean)
        found["naive"] = rho * lines.reshape(field.shape)
    variables = {}
    for name, value in found.items():
        dims = ("y", "x", "component") if value.ndim == 3 else ("y", "x")
        shown = value * (seen[..., None] if value.ndim == 3 else seen)
        attrs = {"units": "nats" if name == "potential" else "1", "long_name": MAPPED[name]}
        variables[name] = (dims, shown.transpose(0, 1).cpu().numpy(), attrs)
    about = {"units": "x"}
    return xr.Dataset(
        variables,
        {
            "x": ("x", grid.axes[0].numpy(), about),
            "y": ("y", grid.axes[1].numpy(), about),
            "component": [0, 1],
        },
        {
            "rho": float(rho),
            **{f"{name}_norm2": value for name, value in norms.items()},
            "border": split.border,
            "mass": grid.mass,
            "pieces": split.pieces,
        },
    )


def _split_on(grid: _Grid, level: Level, truth: Level) -> tuple:
    """On a grid rho times the scores of a model and of the truth (*grid, d), the split of what they
    differ by, and mean squares per coordinate: of the field, its two parts, and the gradient part
    of the difference."""
    shape, d = grid.points.shape, grid.points.shape[-1]
    points = grid.points.reshape(-1, *level.denoiser.event_shape)
    field, right = (scaled_score(one, points).reshape(shape) for one in (level, truth))
    split = grid_split(field - right, grid.log_prob, grid.spacing)
    total = grid.mean(field.square().sum(-1))
    norms = {
        "field": total / d,
        "conservative": (total - split.gauge_norm2) / d,
        "gauge": split.gauge_norm2 / d,
        "error": split.conservative_norm2 / d,
    }
    return field, right, split, norms


#: What a map shows.
MAPPED = {
    "density": "density of the noised data, over its largest",
    "field": "score of the model, times rho",
    "conservative": "gradient part of the score, times rho",
    "gauge": "gauge part of the score, times rho",
    "truth": "score of the noised data, times rho",
    "naive": "gradient of the potential by line integrals, times rho: not the gradient part",
    "violation": "violation of the gauge condition by the score's error, times rho^2",
    "curl": "curl of the score, times rho^2",
    "potential": "potential of the gradient part",
}


class _Grid(NamedTuple):
    """Nodes in the plane or in space (*grid, d), the noised log-density there, and its mass."""

    points: Tensor
    log_prob: Tensor
    axes: list[Tensor]
    spacing: list[float]
    mass: float

    @classmethod
    def around(cls, law: Denoiser, rho: float, nodes: int, box=None) -> _Grid:
        if not (rho > 0 and math.isfinite(rho)):
            raise ValueError(f"rho was {rho!r}; a noise level must be positive and finite.")
        if box is None:
            x0 = draws(law, DRAWN, torch.Generator().manual_seed(0)).flatten(1)
            low, high = x0.aminmax(dim=0)
            around = AROUND * rho + MARGIN * (high - low)
            low, high = low - around, high + around
            box = list(zip(low.tolist(), high.tolist(), strict=True))
        # Nodes stand in the middle of equal cells of the box.
        spacing = [(high - low) / nodes for low, high in box]
        axes = [
            low + h * (torch.arange(nodes, dtype=torch.float64) + 0.5)
            for (low, _), h in zip(box, spacing, strict=True)
        ]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).to(law.device)
        flat = points.reshape(-1, *law.event_shape)
        log_prob = law.at(1.0, rho).log_prob(flat).reshape(points.shape[:-1])
        mass = (log_prob.exp().sum() * math.prod(spacing)).item()
        if not HELD < mass < 2 - HELD:
            raise ValueError(
                f"at rho = {rho:.3g} the nodes of a grid of {nodes} an axis, {max(spacing):.2g} "
                f"apart, hold {mass:.3g} of the probability, not 1: the density is too narrow for "
                "it, or stands elsewhere. Take more nodes, another box or a higher noise level."
            )
        width = _narrowest(log_prob, spacing)
        if max(spacing) > COARSEST * width:
            raise ValueError(
                f"at rho = {rho:.3g} the density is as narrow as {width:.2g}, too narrow for a "
                f"grid of {nodes} nodes an axis, {max(spacing):.2g} apart. Take more nodes, a "
                "smaller box or a higher noise level."
            )
        return cls(points, log_prob, axes, spacing, mass)

    def mean(self, values: Tensor) -> float:
        """Mean under the density of values at the nodes."""
        share = (self.log_prob - self.log_prob.max()).exp()
        there = share > SHOWN**1.5
        return ((share * values)[there].sum() / share[there].sum()).item()


def _narrowest(log_prob: Tensor, spacing: list[float]) -> float:
    """Width of the density's narrowest peak [x], by its curvature where it is not negligible."""
    high = log_prob > log_prob.max() + math.log(PEAK)
    steepest = 0.0
    for axis, h in enumerate(spacing):
        bend = -log_prob.diff(n=2, dim=axis) / h**2
        there = high.narrow(axis, 1, high.shape[axis] - 2)
        steepest = max(steepest, bend[there].max().item() if bool(there.any()) else 0.0)
    return 1 / math.sqrt(steepest) if steepest > 0 else math.inf


#: Noise levels that the lenses look at: least and largest, over the size of the data.
RANGE = (0.03, 3.0)

#: What rounding makes of a symmetric Jacobian in float32, at most.
SINGLE = 1e-5

#: Products of a network's Jacobian at most for the violation at one noise level, and the states at
#: least at which it is differentiated.
MOST_PRODUCTS, LEAST_DIFFERENTIATED = 256, 32

#: Noise level, over the distance of nearest neighbours, below which a noised point is closer to
#: another only once in forty times.
ALONE = 0.25

#: Dimensions at most in which the split is estimated from samples.
SAMPLED = 256

#: Share of a field below which a gauge part is none: line integrals are about as accurate.
NOTHING = 1e-5

#: Dimensions up to which the potential by line integrals is one of the guesses.
LINES = 16

#: Nodes of a lens's grid along each axis; points of a loop.
NODES, LOOP = 96, 256

SPLIT_ABOUT = {
    "field": ("mean square of rho times the score, per coordinate", "1"),
    "conservative": ("gradient part of it: what density and likelihood see", "1"),
    "gauge": ("gauge part of it, at most: moves no density", "1"),
    "gauge_least": ("gauge part of it, at least", "1"),
    "error": ("of the gradient part less the true score: what is wrong for the density", "1"),
    "violation": ("root mean square violation of the gauge condition by the score's error", "1"),
}


@dataclass(frozen=True)
class Gauge(Lens):
    r"""Which part of the model's score moves density, and which part is free?

    Mean squares per coordinate in units of the noise prediction, over states of the noised data at
    each noise level: ``field = conservative + gauge``, where the gauge part moves no density and
    changes no likelihood. The excess loss of a model is ``error + gauge``: ``error``, of the
    gradient part less the true score, is what is wrong with the density; the rest is free.
    ``violation`` is the root mean square of :math:`\rho^2(\nabla\cdot e + e\cdot\nabla\log
    p)/\sqrt d` of the score's error e, zero where that is a gauge.

    In the plane the split is solved on a grid. In more dimensions it is estimated from samples and
    known between two bounds: ``gauge`` is what the gradients of features leave of the field, at
    most larger than the gauge part by what they cannot represent, and ``gauge_least`` is its
    projection onto fields :math:`h A\nabla\log p + A\nabla h` of no flux, A antisymmetric. Where
    they are far apart the sample does not determine it, and the finding says so. The law of the
    data points is taken where no other is known: where the noise is smaller than the distance
    between them, the error is that to the points themselves.
    """

    levels: Annotated[int, Param("how many noise levels", ge=2, le=200)] = 9
    samples: Annotated[int, Param("how many states it looks at", ge=16, le=100_000)] = 1024
    features: Annotated[
        int, Param("random features of the potential, from samples", ge=1, le=1000)
    ] = 64
    probes: Annotated[
        int, Param("random directions for the trace of the Jacobian", ge=2, le=1024)
    ] = 4
    solver: Annotated[
        Literal["auto", "grid", "samples"],
        Param("auto: a grid in the plane, samples in more dimensions"),
    ] = "auto"
    seed: Annotated[int, Param("first seed of the states", ge=0)] = 0

    def memory(self, dim: int, kept: int) -> int:
        if dim == 2 and self.solver != "samples":
            return super().memory(dim, kept) + 1024 * NODES**2
        axes = min(dim, AXES)
        pairs = axes * (axes + 1) // 2 if axes <= WHOLE_PAIRS else self.features + axes
        return super().memory(dim, kept) + 48 * self.samples * dim * (self.features + axes + pairs)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        dataset = _curves(subject, self._seen(subject, on_step), SPLIT_ABOUT)
        if truth_of(subject) is None:
            points = subject.data.points[:DRAWN].double().flatten(1)
            nearest = neighbours(points, 1).median().item()
            dataset.attrs["alone"] = ALONE * nearest
        return dataset.assign_attrs(solver=self._solver(subject))

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """Nothing but a gradient of exact laws; of a perturbed Gaussian the closed split."""
        model, rho = subject.denoiser, levels_of(subject.denoiser, self.levels)
        base = model.base if isinstance(model, Perturbed) else model
        if not isinstance(base, LAWS):
            return None
        zero, found = np.zeros(len(rho)), {}
        if base is model:
            found = dict.fromkeys(("gauge", "gauge_least", "error", "violation"), zero)
        elif model.exact_marginals:
            found = dict.fromkeys(("error", "violation"), zero)
        elif model.conservative:
            found = dict.fromkeys(("gauge", "gauge_least"), zero)
        if isinstance(base, Gaussian):
            rows = [_linear(model, base, level) for level in rho]
            found |= {name: np.array([row[name] for row in rows]) for name in rows[0]}
            found["gauge_least"] = found["gauge"]
        if self._solver(subject) == "grid":
            found.pop("gauge_least", None)
        return xr.Dataset({name: ("rho", values) for name, values in found.items()})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """What a gradient field shows: of a grid its error, by a grid of half the nodes; of the
        lower bound what the sample's noise makes; of the violation rounding, or the probes'."""
        from scipy.special import ndtri

        seen, bands = self._seen(subject), {}
        for name in ("gauge", "gauge_least", "violation"):
            noise = [at.get(f"{name}_noise") for at in seen]
            if noise[0] is None:
                continue
            edge = np.maximum(np.array(noise, dtype=float), ROUNDING)
            low = 0 * edge
            if name == "gauge_least":
                edge = -ndtri(level / 2) * edge
                low = -edge
            bands[name] = (("rho", "bound"), np.stack([low, edge], 1))
        return xr.Dataset(bands)

    def findings(self, dataset: xr.Dataset) -> list[str]:
        rho, gauge, whole = (dataset[name].values for name in ("rho", "gauge", "field"))
        share = gauge / whole
        worst = int(np.nanargmax(share)) if np.isfinite(share).any() else 0
        at = f"ρ = {rho[worst]:.3g}"
        nothing = gauge <= np.maximum(ROUNDING, NOTHING * whole)
        if "gauge_null" in dataset:
            nothing = gauge <= dataset["gauge_null"].values[:, 1]
        said = []
        if bool(np.all(nothing | ~np.isfinite(gauge))):
            said.append("The score has no gauge part: it is a gradient as far as can be told.")
        elif "gauge_least" in dataset:
            least = max(0.0, float(dataset["gauge_least"][worst] / whole[worst]))
            said.append(
                f"Between {least:.2g} and {share[worst]:.2g} of the score's mean square is gauge "
                f"at {at}, where it is most: it moves no density."
            )
            if not determined(dataset):
                said.append(
                    "These samples and features do not determine it more closely: take more of "
                    "both."
                )
        else:
            said.append(
                f"{share[worst]:.2g} of the score's mean square is gauge at {at}, where it is "
                "most: it moves no density."
            )
        if "error" in dataset:
            error, free = (
                max(0.0, float(np.nanmean(dataset[name]))) for name in ("error", "gauge")
            )
            if error + free > ROUNDING:
                most = "at most " if "gauge_least" in dataset else ""
                said.append(
                    f"Of the score's error, {error + free:.2g} of the noise prediction's mean "
                    f"square on average over the levels, {most}{free / (error + free):.0%} is "
                    "gauge, and harmless in continuous time."
                )
        if "alone" in dataset.attrs:
            said.append(
                "No law of the data is known: the density is that of the noised data points. Below "
                f"ρ = {dataset.attrs['alone']:.2g}, a quarter of the distance between neighbours, "
                "a state belongs to one of them, and the error is that to the points themselves."
            )
        missing = rho[~np.isfinite(gauge)]
        if len(missing):
            said.append(
                f"At {len(missing)} noise levels from ρ = {missing.max():.3g} down the density is "
                "too narrow for the grid; take solver=samples."
            )
        return said

    def _solver(self, subject: Subject) -> str:
        dim = subject.denoiser.dim
        if self.solver == "auto":
            return "grid" if dim == 2 else "samples"
        if self.solver == "grid" and dim != 2:
            raise NotImplementedError(
                f"solver was grid, and these data have {dim} numbers each; the lens's grid is in "
                "the plane. Take solver=samples."
            )
        return self.solver

    @remembered
    def _seen(self, subject: Subject, on_step: OnStep | None = None) -> list[dict[str, float]]:
        law, solver = law_of(subject), self._solver(subject)
        if solver == "samples" and law.dim > SAMPLED:
            raise NotImplementedError(
                f"these data have {law.dim} numbers each; the split is estimated from samples in "
                f"at most {SAMPLED} dimensions. Take smaller images, or the lens asymmetry; of a "
                "Gaussian's linear field it is closed: gauge_split."
            )
        rho, found = levels_of(subject.denoiser, self.levels), []
        generator, fast = torch.Generator().manual_seed(self.seed), quick(subject.denoiser)
        x0 = draws(law, self.samples, generator)
        z = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0.device)
        for noise in stepped(rho, on_step):
            y = x0 + noise * z
            model, right = fast.at(1.0, noise), law.at(1.0, noise)
            split = self._on_grid if solver == "grid" else self._on_samples
            values = split(model, right, law, y, noise)
            values |= self._violation(model, right, y, noise, generator)
            found.append({"rho": noise} | values)
        return found

    def _on_grid(self, model, right, law: Denoiser, y: Tensor, noise: float) -> dict[str, float]:
        try:
            grid = _Grid.around(law, noise, NODES)
        except ValueError:
            return dict.fromkeys(
                ("field", "conservative", "gauge", "error", "gauge_noise"), math.nan
            )
        field, true, split, norms = _split_on(grid, model, right)
        coarse = grid_split(
            (field - true)[::2, ::2], grid.log_prob[::2, ::2], [2 * h for h in grid.spacing]
        )
        return norms | {"gauge_noise": abs(coarse.gauge_norm2 - split.gauge_norm2) / 2}

    def _on_samples(self, model, right, law: Denoiser, y: Tensor, noise: float) -> dict[str, float]:
        true, field = (scaled_score(one, y).flatten(1) for one in (right, model))
        error, points = field - true, y.flatten(1)
        guesses = [true]
        if not model.closed and law.dim <= LINES:
            pull = lambda x, v: (model.vjp(x, v) - v) / noise**2  # noqa: E731
            line = noise * line_gradient(model.score, pull, y, law.mean)
            guesses.append(line.flatten(1) - true)
        guesses = torch.stack(guesses, -1)
        try:
            split = galerkin_split(error, points, self.features, gradients=guesses)
            least = gauge_least(error, points, true, noise, self.features)
        except ValueError as undetermined:
            raise NotImplementedError(str(undetermined)) from None
        square, left = field.square().sum(1), (error - split.conservative).square().sum(1)
        total = square.mean().item()
        found = {
            "field": total,
            "field_se": mean_error(square).item(),
            "conservative": total - split.gauge_norm2,
            "conservative_se": math.hypot(mean_error(square - left).item(), split.noise),
            "gauge": split.gauge_norm2,
            "gauge_se": split.gauge_norm2_se,
            "gauge_least": least[0],
            "gauge_least_se": least[1],
            "gauge_least_noise": least[2],
            "error": split.conservative_norm2,
            "error_se": split.conservative_norm2_se,
        }
        return {name: value / law.dim for name, value in found.items()}

    def _violation(self, model, right, y: Tensor, noise: float, generator) -> dict[str, float]:
        """Exact traces in few dimensions and of closed forms, else by products of two estimates
        from different probes, whose mean is the square."""
        d = model.denoiser.dim
        exact = d <= WHOLE or (model.closed and right.closed)
        if not model.closed:
            y = y[: max(LEAST_DIFFERENTIATED, MOST_PRODUCTS // (d if exact else self.probes))]
        probes = None
        if not exact:
            shape = (self.probes, *y.shape)
            probes = torch.randint(0, 2, shape, generator=generator) * 2.0 - 1
        each = violation_of(model, right, y, probes)
        square = each.mean(0).square()
        if len(each) > 1:
            square = square - each.var(0) / len(each)
        value, error = root_of_ratio(square / d)
        found = {"violation": value, "violation_se": error}
        if len(each) == 1:
            found["violation_noise"] = ROUNDING
        return found


def determined(dataset: xr.Dataset) -> bool:
    """Whether the bounds of a gauge part agree where its share of the score is largest: it is none
    to twice its error, or the lower bound half of the upper one at least. A grid has one value."""
    if "gauge_least" not in dataset:
        return True
    gauge, error, whole = (dataset[name].values for name in ("gauge", "gauge_se", "field"))
    worst = int(np.argmax(np.nan_to_num(gauge / whole)))
    if gauge[worst] <= max(2 * error[worst], NOTHING * whole[worst]):
        return True
    return bool(dataset["gauge_least"].values[worst] >= 0.5 * gauge[worst])


def _linear(model: Denoiser, base: Gaussian, rho: float) -> dict[str, float]:
    """The closed split of a Gaussian's score, perturbed or not, at one noise level."""
    noised, d = base.noised(1.0, rho), base.dim
    own, wrong = _linear_matrices(model, base, rho)
    constant = torch.zeros(d).to(own)
    if model is not base and model.bias is not None:
        constant = model.bias.flatten().to(own)
    split, whole = (gauge_split(matrix, noised) for matrix in (wrong, own + wrong))
    shift, unit = constant.square().sum().item(), rho**2 / d
    cov = noised.cov.double()
    # Of y ~ N(0, C): tr W - y.W^T C^-1 y - b.C^-1 y has mean 0.
    form = 0.5 * (wrong.mT - own @ wrong @ cov)
    square = 2 * (form @ form).trace() - constant @ own @ constant
    return {
        "field": unit * (whole.norm2 + shift),
        "conservative": unit * (whole.conservative_norm2 + shift),
        "gauge": unit * split.gauge_norm2,
        "error": unit * (split.conservative_norm2 + shift),
        "violation": rho**2 * math.sqrt(max(0.0, square.item()) / d),
    }


def _linear_matrices(model: Denoiser, base: Gaussian, rho: float) -> tuple[Tensor, Tensor]:
    """Matrices of a Gaussian's score, and of what a perturbation adds to it."""
    own = -torch.linalg.inv(base.noised(1.0, rho).cov.double())
    wrong = torch.zeros_like(own)
    if model is not base:
        wrong = model.scale * own
        if model.gauge is not None:
            wrong = wrong + model.gauge @ own
        if model.linear is not None:
            wrong = wrong + model.linear
    return own, wrong


AROUND_AXES = "circulation of the score around the ellipse of the first two principal axes"
ASYMMETRY_ABOUT = {
    "asymmetry": ("antisymmetric part of rho^2 times the score's Jacobian, per coordinate", "1"),
    "share": ("antisymmetric part over the whole of the denoiser's Jacobian", "1"),
    "circulation": (AROUND_AXES, "nats"),
}


@dataclass(frozen=True)
class Asymmetry(Lens):
    r"""At which noise levels is the model's score not the gradient of anything?

    ``asymmetry``: root mean square over states of the antisymmetric part of
    :math:`\rho^2\nabla s`, which is that of the denoiser's Jacobian, per coordinate; ``share``:
    over the whole of that Jacobian. ``circulation`` [nats]: :math:`\oint s\cdot dx` around one
    standard deviation of the noised data in the plane of the first two principal axes (times the
    root of two), by Stokes the integral of the curl inside. All are zero of a gradient field. None
    is the size of the gauge part: a gauge field's Jacobian may have a symmetric part, and a field
    with an antisymmetric one may move the marginals (see the lens ``gauge``).

    In few dimensions and of closed forms by the whole Jacobian; else by one product with it and
    one with its transpose for each random probe, unbiased in the squares.
    """

    levels: Annotated[int, Param("how many noise levels", ge=2, le=200)] = 20
    samples: Annotated[int, Param("how many states it looks at", ge=2, le=100_000)] = 64
    probes: Annotated[int, Param("random directions for the Jacobian", ge=1, le=1024)] = 4
    seed: Annotated[int, Param("first seed of the states", ge=0)] = 0

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 128 * self.samples * dim * min(dim, EXACT_TRACE)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        return _curves(subject, self._seen(subject, on_step), ASYMMETRY_ABOUT)

    @remembered
    def _seen(self, subject: Subject, on_step: OnStep | None = None) -> list[dict[str, float]]:
        model, law = subject.denoiser, law_of(subject)
        generator, found = torch.Generator().manual_seed(self.seed), []
        x0 = draws(law, self.samples, generator)
        z = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0.device)
        signs = torch.randint(0, 2, (self.probes, *x0.shape), generator=generator) * 2.0 - 1
        rho, fast = levels_of(model, self.levels), quick(model)
        whole_matrix = fast.closed or model.dim <= WHOLE
        for k, noise in enumerate(stepped(rho, on_step)):
            level, y = fast.at(1.0, noise), x0 + noise * z
            apart, whole = antisymmetric_squares(level, y, None if whole_matrix else signs)
            values = {"rho": noise}
            values["asymmetry"], values["asymmetry_se"] = root_of_ratio(apart / model.dim)
            values["share"], values["share_se"] = root_of_ratio(apart, whole)
            if model.dim > 1:
                loop = self._loops(subject)[k][0]
                places, field = loop.flatten(1), scaled_score(level, loop).flatten(1)
                field = field / noise
                values["circulation"] = circulation(field, places).item()
                half = circulation(field[::2], places[::2]).item()
                values["circulation_noise"] = abs(half - values["circulation"])
            found.append(values)
        return found

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """Zero of laws and of what is perturbed by gradients; of a Gaussian with a gauge the closed
        form."""
        model, rho = subject.denoiser, levels_of(subject.denoiser, self.levels)
        base = model.base if isinstance(model, Perturbed) else model
        if not isinstance(base, LAWS):
            return None
        if base is model or model.conservative:
            names = ["asymmetry", "share", "circulation"][: 3 if model.dim > 1 else 2]
            return xr.Dataset(dict.fromkeys(names, ("rho", np.zeros(len(rho)))))
        if not isinstance(base, Gaussian):
            return None
        found = {"asymmetry": [], "share": [], "circulation": []}
        for noise, (_, axes) in zip(rho, self._loops(subject), strict=True):
            matrix = torch.stack(_linear_matrices(model, base, noise)).sum(0)
            turn = noise**2 * 0.5 * (matrix - matrix.mT)
            jacobian = noise**2 * matrix + torch.eye(model.dim).to(matrix)
            found["asymmetry"].append((turn.norm() / math.sqrt(model.dim)).item())
            found["share"].append((turn.norm() / jacobian.norm()).item())
            u, v = axes  # half axes: the circulation of M y is pi (v.M u - u.M v)
            found["circulation"].append(math.pi * (v @ matrix @ u - u @ matrix @ v).item())
        return xr.Dataset({name: ("rho", np.array(values)) for name, values in found.items()})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """What rounding makes of a gradient field; of a circulation, what the loop's points do."""
        rho = levels_of(subject.denoiser, self.levels)
        rounding = ROUNDING
        if quick(subject.denoiser).dtype != torch.float64:
            rounding = SINGLE
        band = np.stack([np.zeros(len(rho)), np.full(len(rho), rounding)], 1)
        bands = {"asymmetry": band, "share": band}
        if subject.denoiser.dim > 1:
            places = [loop.square().sum().item() / LOOP for loop, _ in self._loops(subject)]
            edge = 0.1 * rounding * (1 + np.array(places) / np.array(rho) ** 2)
            edge = edge + [at["circulation_noise"] for at in self._seen(subject)]
            bands["circulation"] = np.stack([-edge, edge], 1)
        return xr.Dataset({name: (("rho", "bound"), value) for name, value in bands.items()})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        rho, share = dataset["rho"].values, dataset["share"].values
        worst = int(np.argmax(share))
        if (dataset["asymmetry"].values <= dataset["asymmetry_null"].values[:, 1]).all():
            return [
                f"At all {len(rho)} noise levels the score's Jacobian is symmetric: the score is a "
                "gradient."
            ]
        said = (
            f"The score is not a gradient: the antisymmetric part is {share.min():.2g} to "
            f"{share.max():.2g} of the denoiser's Jacobian, most at ρ = {rho[worst]:.3g}"
        )
        if "circulation" in dataset:
            turned = dataset["circulation"].values
            most = int(np.argmax(np.abs(turned)))
            said += (
                f". Around the data at ρ = {rho[most]:.3g} it does {turned[most]:.2g} nats of work"
            )
        return [f"{said}.", "How much of it is a harmless gauge, the lens gauge says."]

    @remembered
    def _loops(
        self, subject: Subject, on_step: OnStep | None = None
    ) -> list[tuple[Tensor, tuple[Tensor, Tensor]]]:
        """At each level an ellipse (LOOP, *event) around the noised data, and its half axes."""
        law = law_of(subject)
        x0 = draws(law, DRAWN, torch.Generator().manual_seed(0)).flatten(1)
        _, values, axes = torch.linalg.svd(x0 - x0.mean(0), full_matrices=False)
        angle = torch.arange(LOOP, dtype=torch.float64) * (2 * math.pi / LOOP)
        around = torch.stack([angle.cos(), angle.sin()], 1).to(x0)
        loops = []
        for noise in levels_of(subject.denoiser, self.levels):
            half = (2 * (values[:2] ** 2 / (len(x0) - 1) + noise**2)).sqrt()
            ends = half[:, None] * axes[:2]
            loop = law.mean.flatten() + around @ ends
            loops.append((loop.reshape(LOOP, *law.event_shape), (ends[0], ends[1])))
        return loops


def levels_of(denoiser: Denoiser, count: int) -> list[float]:
    """Noise levels, decreasing, about the size of the data."""
    size = denoiser.std or 1.0
    low, high = (min(edge * size, denoiser.largest_rho) for edge in RANGE)
    return np.geomspace(high, low, count).tolist()


def _curves(
    subject: Subject, rows: list[dict[str, float]], about: dict[str, tuple[str, str]]
) -> xr.Dataset:
    """Curves over the noise level, of what was found at each."""
    names = [name for name in rows[0] if name.removesuffix("_se") in about]
    values = {name: np.array([float(row[name]) for row in rows]) for name in names}
    variables = described(values, about, "rho")
    rho = np.array([row["rho"] for row in rows])
    return xr.Dataset(variables, {"rho": ("rho", rho, LEVEL)}, {"dim": subject.denoiser.dim})
