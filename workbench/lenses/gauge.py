r"""Gauge freedom: which part of a model's score moves density, and which moves it in circles.

At noise rho (alpha = 1) a score splits as :math:`s = \nabla\phi + r`, :math:`\nabla\!\cdot(p\,r) =
0`, orthogonal in :math:`L^2(p)` with p the law of the noised data. Marginals and likelihoods see
:math:`\nabla\phi` alone. Three solvers agree where they overlap: a linear field under a Gaussian in
closed form (:func:`workbench.exact.gauge_split`), a grid in 2 and 3 dimensions
(:func:`workbench.exact.grid_split`), and samples in any (:func:`galerkin_split`).

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
from workbench.exact.gauge import circulation, curl, gauge_split, line_gradient
from workbench.exact.helmholtz import GridSplit, grid_split
from workbench.lenses.base import Lens, OnStep, Subject, remembered
from workbench.lenses.gap import EXACT_TRACE, ROUNDING, WHOLE, _root_of_ratio, truth_of
from workbench.lenses.output import draws
from workbench.params import Param

__all__ = ["Asymmetry", "GalerkinSplit", "Gauge", "galerkin_split", "gauge_map", "law_of"]

#: Draws of the data that say how large a grid must be; around them it has as many deviations of
#: the noise, and a share of their range.
DRAWN, AROUND, MARGIN = 2000, 4.0, 0.1

#: Least share of the probability that the nodes of a grid must hold.
HELD = 0.95

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
    right = rho * truth.score(points).reshape(grid.points.shape)
    field = rho * level.score(points).reshape(grid.points.shape)
    split = grid.split(field - right)
    seen = torch.where(grid.log_prob - grid.log_prob.max() > math.log(SHOWN), 1.0, math.nan)
    gradients = level.jacobian(points), truth.jacobian(points)
    turn, traces = curl(gradients[0]), [one.diagonal(dim1=1, dim2=2).sum(1) for one in gradients]
    flat = (field - right).reshape(-1, 2), right.reshape(-1, 2)
    violation = traces[0] - traces[1] + (flat[0] * flat[1]).sum(1)
    shape = grid.points.shape[:2]
    found = {
        "density": (grid.log_prob - grid.log_prob.max()).exp(),
        "field": field,
        "conservative": right + split.conservative,
        "gauge": split.gauge,
        "truth": right,
        "violation": violation.reshape(shape),
        "curl": turn.reshape(shape),
        "potential": split.potential / rho + _centred(grid),
    }
    if naive:
        pull = lambda x, v: (level.vjp(x, v) - v) / rho**2  # noqa: E731
        lines = line_gradient(level.score, pull, points, law.mean)
        found["naive"] = rho * lines.reshape(field.shape)
    units = {"potential": "nats"}
    variables = {}
    for name, value in found.items():
        dims = ("y", "x", "component") if value.ndim == 3 else ("y", "x")
        shown = value * (seen[..., None] if value.ndim == 3 else seen)
        attrs = {"units": units.get(name, "1"), "long_name": MAPPED[name]}
        variables[name] = (dims, shown.transpose(0, 1).cpu().numpy(), attrs)
    total = grid.mean((field).square().sum(-1))
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
            "field_norm2": total / 2,
            "conservative_norm2": (total - split.gauge_norm2) / 2,
            "gauge_norm2": split.gauge_norm2 / 2,
            "error_norm2": split.conservative_norm2 / 2,
            "border": split.border,
            "mass": grid.mass,
            "pieces": split.pieces,
        },
    )


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
        return cls(points, log_prob, axes, spacing, mass)

    def split(self, field: Tensor) -> GridSplit:
        return grid_split(field, self.log_prob, self.spacing)

    def mean(self, values: Tensor) -> float:
        """Mean under the density of values at the nodes."""
        share = (self.log_prob - self.log_prob.max()).exp()
        there = share > SHOWN**1.5
        return ((share * values)[there].sum() / share[there].sum()).item()


def _centred(grid: _Grid) -> Tensor:
    """Log-density at the nodes less its mean: the truth's potential."""
    return grid.log_prob - grid.mean(grid.log_prob.clamp_min(-1e300))


class GalerkinSplit(NamedTuple):
    """A field split in L2(p) from samples of p; each number with its standard error.

    Attributes:
        norm2, norm2_se: mean square of the field.
        conservative_norm2, conservative_norm2_se: of its projection onto the gradients of the
            features, without what the sample's noise adds: at most that of the gradient part.
        gauge_norm2, gauge_norm2_se: of the rest: at least that of the gauge part.
        conservative: the projection at the samples (n, d), each from the other folds.
        noise: standard deviation of conservative_norm2 where the field has no gradient part.
        features: how many.
    """

    norm2: float
    norm2_se: float
    conservative_norm2: float
    conservative_norm2_se: float
    gauge_norm2: float
    gauge_norm2_se: float
    conservative: Tensor
    noise: float
    features: int


def galerkin_split(
    field: Tensor,
    points: Tensor,
    count: int = 64,
    generator: torch.Generator | None = None,
    gradients: Tensor | None = None,
) -> GalerkinSplit:
    r"""The gradient part of a field in any dimension, from its values at samples of the density.

    The gradient part is the projection onto gradients in L2(p), here of features: linear and
    quadratic ones in the principal axes of the samples, and ``count`` random waves. With
    :math:`G = E[\nabla f_k\cdot\nabla f_l]` and :math:`b_k = E[\nabla f_k\cdot s]` its mean square
    is :math:`b^\top G^{-1} b`, estimated without bias of first order as the mean over folds of
    :math:`c_{-k}\cdot b_k`, the coefficients c of all other folds. No derivative of the field is
    needed. Quadratic features are all that a linear field under a Gaussian needs.

    Args:
        field: s at the samples (n, d).
        points: samples of p (n, d).
        count: of the random waves.
        generator: for the waves; None: one of seed 0.
        gradients: further gradient fields at the samples (n, d, m), as guesses of the gradient part
            or of what the features cannot represent, e.g. the true score or ``line_gradient``.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or samples that do not
            determine the split: fewer than twice the features.

    Source: derived here; the projection is that of Horvat & Pfister 2024, arXiv:2402.03845.
    """
    if field.ndim != 2 or field.shape != points.shape:
        raise ValueError(
            f"field has shape {tuple(field.shape)} and points {tuple(points.shape)}; both must be "
            "(n, d), the field at each sample."
        )
    bad = (~(field.isfinite() & points.isfinite()).all(1)).sum().item()
    if bad:
        raise ValueError(
            f"{bad} of {len(points)} samples, or fields there, are not finite: the field was "
            "sampled off its support. Leave them out, or take a higher noise level."
        )
    features = _Features.of(points.double(), count, generator)
    design = features.gradients(points.double())
    if gradients is not None:
        design = torch.cat([design, gradients.double()], -1)
    found = _projected(design, field.double())
    square = field.double().square().sum(1)
    left = (field.double() - found.part).square().sum(1)
    total, root = square.mean().item(), math.sqrt(len(points))
    spread = [v.std().item() / root for v in (square, square - left, left)]
    return GalerkinSplit(
        total,
        spread[0],
        found.norm2,
        math.hypot(spread[1], found.noise),
        total - found.norm2,
        math.hypot(spread[2], found.noise),
        found.part,
        found.noise,
        found.count,
    )


#: Folds of the samples that coefficients are estimated without.
FOLDS = 8

#: Principal axes at most that features look along.
AXES = 64

#: Wave numbers of the random features, in the units of the samples' principal axes.
WAVES = (0.5, 1.0, 2.0, 4.0)

#: Smallest eigenvalue of the features' matrix that is not taken for rounding, over its largest.
SINGULAR = 1e-6


class _Features(NamedTuple):
    """Functions of states: linear and quadratic along principal axes, and waves.

    In u = turn^T (x - centre), of variance one along each axis: u_a, u_a u_b for ``pairs``, and
    cos(w u + phase).
    """

    centre: Tensor
    turn: Tensor
    pairs: Tensor
    waves: Tensor
    phases: Tensor

    @classmethod
    def of(cls, points: Tensor, count: int, generator: torch.Generator | None) -> _Features:
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        centre = points.mean(0)
        _, values, axes = torch.linalg.svd(points - centre, full_matrices=False)
        values = values / math.sqrt(max(1, len(points) - 1))
        kept = (values > 1e-9 * values[0]).nonzero()[:AXES, 0]
        turn = (axes[kept] / values[kept, None]).T
        q = len(kept)
        most = min(q, int((math.sqrt(8 * max(count, 1) + 1) - 1) / 2)) if q > 8 else q
        pairs = [(a, b) for a in range(most) for b in range(a, most)]
        pairs += [(a, a) for a in range(most, q)]
        # In many dimensions a wave along all axes is nothing but noise: it looks along two.
        like = {"generator": generator, "dtype": torch.float64}
        waves = torch.randn(count, q, **like)
        if q > 4:
            rank = torch.rand(count, q, **like).argsort(1).argsort(1)
            waves = torch.where(rank < 2, waves, 0.0)
        scale = torch.tensor(WAVES, dtype=torch.float64)[torch.arange(count) % len(WAVES)]
        phases = 2 * math.pi * torch.rand(count, **like)
        waves = (scale[:, None] * waves).to(points)
        return cls(centre, turn, torch.tensor(pairs), waves, phases.to(points))

    def _places(self, x: Tensor) -> Tensor:
        return (x - self.centre) @ self.turn

    def gradients(self, x: Tensor) -> Tensor:
        """Gradients (n, d, K) at states (n, d)."""
        u, (a, b) = self._places(x), self.pairs.T
        linear = self.turn.expand(len(x), *self.turn.shape)
        squares = u[:, None, b] * self.turn[:, a] + u[:, None, a] * self.turn[:, b]
        slopes = -(u @ self.waves.T + self.phases).sin()[:, None] * (self.turn @ self.waves.T)
        return torch.cat([linear, squares, slopes], -1)

    def values(self, x: Tensor) -> Tensor:
        """Linear features and waves (n, K'), with 1 first."""
        u = self._places(x)
        ones = torch.ones(len(x), 1).to(u)
        return torch.cat([ones, u, (u @ self.waves.T + self.phases).cos()], 1)

    def slopes(self, x: Tensor) -> Tensor:
        """Gradients of :meth:`values` (n, d, K')."""
        whole = self.gradients(x)
        q, skipped = self.turn.shape[1], len(self.pairs)
        parts = [torch.zeros_like(whole[..., :1]), whole[..., :q], whole[..., q + skipped :]]
        return torch.cat(parts, -1)


class _Projected(NamedTuple):
    """Projection of a field onto a family: its mean square, what noise alone makes of that, its
    values at the samples, and the size of the family."""

    norm2: float
    noise: float
    part: Tensor
    count: int


def _projected(design: Tensor, field: Tensor) -> _Projected:
    """The projection of ``field`` (n, d) onto the fields ``design`` (n, d, K) of one sample.

    Raises:
        ValueError: samples that do not determine it.
    """
    n, _, count = design.shape
    if n < 2 * count:
        raise ValueError(
            f"{n} samples do not determine the part of a field along {count} features; take at "
            f"least {2 * count} samples, or fewer features. A linear field under a Gaussian has a "
            "closed form: gauge_split; in 2 and 3 dimensions a grid needs none: grid_split."
        )
    fold = torch.arange(n, device=field.device) % FOLDS
    products = torch.einsum("ndk,nd->nk", design, field)
    matrices, sides = [], []
    for k in range(FOLDS):
        rows = design[fold == k].flatten(0, 1)
        matrices.append(rows.T @ rows)
        sides.append(products[fold == k].sum(0))
    whole = torch.stack(matrices).sum(0)
    # In coordinates where the family is orthonormal; without what is linearly dependent in it.
    scale = whole.diagonal().clamp_min(1e-300).sqrt()
    values, vectors = torch.linalg.eigh(whole / scale[:, None] / scale)
    kept = values > SINGULAR * values[-1]
    turn = vectors[:, kept] / values[kept].sqrt() / scale[:, None]
    eye = torch.eye(int(kept.sum())).to(field)
    part, norm2 = torch.empty_like(field), 0.0
    total = turn.T @ products.sum(0)
    for k in range(FOLDS):
        inside = turn.T @ sides[k]
        left = eye - turn.T @ matrices[k] @ turn
        coefficients = torch.linalg.lstsq(left, (total - inside)[:, None]).solution[:, 0]
        norm2 += (coefficients @ inside).item() / n
        part[fold == k] = design[fold == k] @ (turn @ coefficients)
    rest = torch.einsum("ndk,nd->nk", design, field - part) @ turn
    noise = math.sqrt(2 * (rest.T @ rest).square().sum().item()) / n
    return _Projected(norm2, noise, part, count)


#: Noise levels that the lenses look at: least and largest, over the size of the data.
RANGE = (0.03, 3.0)

#: Dimensions up to which the potential by line integrals is one of the guesses.
LINES = 16

#: Nodes of a lens's grid along each axis; points of a loop.
NODES, LOOP = 96, 256

#: Gauge fields at most that the lower bound is projected onto, of all planes of the space.
PLANES = 36

SPLIT_ABOUT = {
    "field": "mean square of rho times the score, per coordinate",
    "conservative": "gradient part of it: what density and likelihood see",
    "gauge": "gauge part of it, at most: moves no density",
    "gauge_least": "gauge part of it, at least",
    "error": "of the gradient part less the true score: what is wrong for the density",
    "violation": "root mean square violation of the gauge condition by the score's error",
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
        axes = min(dim, AXES)
        features = self.features + axes + axes * (axes + 1) // 2
        return super().memory(dim, kept) + 32 * self.samples * dim * min(features, self.samples)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        return _curves(subject, self._seen(subject, on_step), SPLIT_ABOUT).assign_attrs(
            solver=self._solver(subject)
        )

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
        elif base is not model and self._solver(subject) == "grid":
            found.pop("gauge_least", None)
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
        nothing = gauge <= ROUNDING
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
            if least < 0.5 * share[worst]:
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
            error, free = (float(np.nanmean(dataset[name])) for name in ("error", "gauge"))
            if error + free > ROUNDING:
                said.append(
                    f"Of the score's error, {error + free:.2g} of the noise prediction's mean "
                    f"square on average over the levels, {free / (error + free):.0%} is gauge, and "
                    "harmless in continuous time."
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
        rho, found = levels_of(subject.denoiser, self.levels), []
        generator = torch.Generator().manual_seed(self.seed)
        x0 = draws(law, self.samples, generator)
        z = torch.randn(x0.shape, generator=generator, dtype=torch.float64).to(x0.device)
        for done, noise in enumerate(rho):
            y = x0 + noise * z
            model, right = subject.denoiser.at(1.0, noise), law.at(1.0, noise)
            split = self._on_grid if solver == "grid" else self._on_samples
            values = split(model, right, law, y, noise)
            values |= self._violation(model, right, y, noise, generator)
            found.append({"rho": noise} | values)
            if on_step is not None:
                on_step(done + 1, len(rho))
        return found

    def _on_grid(self, model, right, law: Denoiser, y: Tensor, noise: float) -> dict[str, float]:
        try:
            grid = _Grid.around(law, noise, NODES)
        except ValueError:
            return dict.fromkeys(
                ("field", "conservative", "gauge", "error", "gauge_noise"), math.nan
            )
        points = grid.points.reshape(-1, *law.event_shape)
        true = noise * right.score(points).reshape(grid.points.shape)
        field = noise * model.score(points).reshape(grid.points.shape)
        split = grid.split(field - true)
        coarse = grid_split(
            (field - true)[::2, ::2], grid.log_prob[::2, ::2], [2 * h for h in grid.spacing]
        )
        total = grid.mean(field.square().sum(-1))
        return {
            "field": total / 2,
            "conservative": (total - split.gauge_norm2) / 2,
            "gauge": split.gauge_norm2 / 2,
            "error": split.conservative_norm2 / 2,
            "gauge_noise": abs(coarse.gauge_norm2 - split.gauge_norm2) / 2,
        }

    def _on_samples(self, model, right, law: Denoiser, y: Tensor, noise: float) -> dict[str, float]:
        n, d = len(y), law.dim
        true, field = (noise * one.score(y).flatten(1) for one in (right, model))
        error, points = field - true, y.flatten(1)
        guess = None
        if not model._closed and d <= LINES:
            pull = lambda x, v: (model.vjp(x, v) - v) / noise**2  # noqa: E731
            line = noise * line_gradient(model.score, pull, y, law.mean)
            guess = (line.flatten(1) - true)[..., None]
        split = galerkin_split(error, points, self.features, gradients=guess)
        least = _least(error, points, true, noise, self.features)
        square, left = field.square().sum(1), (error - split.conservative).square().sum(1)
        total = square.mean().item()
        return {
            "field": total / d,
            "field_se": square.std().item() / math.sqrt(n) / d,
            "conservative": (total - split.gauge_norm2) / d,
            "conservative_se": math.hypot((square - left).std().item() / math.sqrt(n), split.noise)
            / d,
            "gauge": split.gauge_norm2 / d,
            "gauge_se": split.gauge_norm2_se / d,
            "gauge_least": least[0] / d,
            "gauge_least_se": least[1] / d,
            "gauge_least_noise": least[2] / d,
            "error": split.conservative_norm2 / d,
            "error_se": split.conservative_norm2_se / d,
        }

    def _violation(self, model, right, y: Tensor, noise: float, generator) -> dict[str, float]:
        """Exact traces in few dimensions and of closed forms, else by products of two estimates
        from different probes, whose mean is the square."""
        d = model.denoiser.dim
        true = noise * right.score(y)
        work = ((noise * model.score(y) - true) * true).flatten(1).sum(1)
        if d <= WHOLE or (model._closed and right._closed):
            each = (model.divergence(y) - right.divergence(y) + work)[None]
        else:
            signs = torch.randint(0, 2, (self.probes, *y.shape), generator=generator) * 2.0 - 1
            own = right.divergence(y) if d <= EXACT_TRACE and right._closed else None
            each = []
            for probe in signs.to(y):
                pulled = model.vjp(y, probe)
                if own is None:
                    pulled = pulled - right.vjp(y, probe)
                trace = (pulled * probe).flatten(1).sum(1)
                each.append(trace + work if own is None else trace - own + work)
            each = torch.stack(each)
        square = each.mean(0).square()
        if len(each) > 1:
            square = square - each.var(0) / len(each)
        value, error = _root_of_mean(square / d)
        found = {"violation": value, "violation_se": error}
        if len(each) == 1:
            found["violation_noise"] = ROUNDING
        return found


def _least(
    error: Tensor, points: Tensor, true: Tensor, noise: float, count: int
) -> tuple[float, float, float]:
    r"""Mean square of a field's projection onto gauge fields, its standard error, and its standard
    deviation where there is nothing of them.

    :math:`g = h A\nabla\log p + A\nabla h = A\nabla(p h)/p` has no flux for any function h and
    antisymmetric A. In the plane these are all gauge fields.
    """
    n = len(points)
    features = _Features.of(points, count, None)
    values, slopes = features.values(points), features.slopes(points)
    axes = torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh
    pairs = [(a, b) for b in range(len(axes)) for a in range(b)][:PLANES]
    most = max(1, (n // 2) // len(pairs))
    score, family = true / noise, []
    for k, (a, b) in enumerate(pairs):
        # Of the planes of the first axes: h = 1 in each, and the other functions taken in turn.
        which = [0, *range(1 + k, values.shape[1], len(pairs))][:most]
        field = score[:, :, None] * values[:, None, which] + slopes[..., which]
        along = [torch.einsum("ndk,d->nk", field, axis) for axis in (axes[a], axes[b])]
        family.append(along[0][:, None] * axes[b][:, None] - along[1][:, None] * axes[a][:, None])
    found = _projected(torch.cat(family, -1), error)
    gained = (2 * found.part * error - found.part.square()).sum(1)
    spread = gained.std().item() / math.sqrt(n)
    return found.norm2, math.hypot(spread, found.noise), found.noise


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
        "violation": rho**2 * math.sqrt(square.item() / d),
    }


def _linear_matrices(model: Denoiser, base: Gaussian, rho: float) -> tuple[Tensor, Tensor]:
    """Matrices of a Gaussian's score, and of what a perturbation adds to it."""
    own = -torch.linalg.inv(base.noised(1.0, rho).cov.double())
    wrong = torch.zeros_like(own)
    if model is not base:
        wrong = model.scale * own
        if model.gauge is not None:
            wrong = wrong + model.gauge @ own
        if model.gradient is not None:
            wrong = wrong + model.gradient
    return own, wrong


ASYMMETRY_ABOUT = {
    "asymmetry": "antisymmetric part of rho^2 times the score's Jacobian, per coordinate",
    "share": "antisymmetric part over the whole of the denoiser's Jacobian",
    "circulation": "circulation of the score around the ellipse of the first two principal axes",
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
        rho = levels_of(model, self.levels)
        for done, noise in enumerate(rho):
            level, y = model.at(1.0, noise), x0 + noise * z
            apart, whole = _antisymmetric(level, y, signs.to(y))
            values = {"rho": noise}
            values["asymmetry"], values["asymmetry_se"] = _root_of_ratio(
                apart / model.dim, torch.ones_like(apart)
            )
            values["share"], values["share_se"] = _root_of_ratio(apart, whole)
            if model.dim > 1:
                loop = self._loops(subject)[done][0]
                places, field = loop.flatten(1), level.score(loop).flatten(1)
                values["circulation"] = circulation(field, places).item()
                half = circulation(field[::2], places[::2]).item()
                values["circulation_noise"] = abs(half - values["circulation"])
            found.append(values)
            if on_step is not None:
                on_step(done + 1, len(rho))
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
        band = np.stack([np.zeros(len(rho)), np.full(len(rho), ROUNDING)], 1)
        bands = {"asymmetry": band, "share": band}
        if subject.denoiser.dim > 1:
            places = [loop.square().sum().item() for loop, _ in self._loops(subject)]
            edge = ROUNDING * (1 + np.array(places) / np.array(rho) ** 2)
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


def _antisymmetric(level: Level, y: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
    """Squares (n,) of the antisymmetric part of a denoiser's Jacobian, and of the whole."""
    event = tuple(range(1, y.ndim))
    if level._closed or level.denoiser.dim <= WHOLE:
        jacobian = level.jacobian(y)
        turn = 0.5 * (jacobian - jacobian.mT)
        return turn.square().sum((1, 2)), jacobian.square().sum((1, 2))
    apart = whole = torch.zeros(len(y)).to(y)
    for probe in probes:
        along, back = level.jvp(y, probe), level.vjp(y, probe)
        apart = apart + (0.5 * (along - back)).square().sum(event) / len(probes)
        whole = whole + 0.5 * (along.square() + back.square()).sum(event) / len(probes)
    return apart, whole


def _root_of_mean(square: Tensor) -> tuple[float, float]:
    return _root_of_ratio(square, torch.ones_like(square))


def levels_of(denoiser: Denoiser, count: int) -> list[float]:
    """Noise levels, decreasing, about the size of the data."""
    size = denoiser.std or 1.0
    low, high = (min(edge * size, denoiser.largest_rho) for edge in RANGE)
    return np.geomspace(high, low, count).tolist()


def _curves(subject: Subject, rows: list[dict[str, float]], about: dict[str, str]) -> xr.Dataset:
    """Curves over the noise level, of what was found at each."""
    variables = {}
    for name in rows[0]:
        if name == "rho" or name.endswith("_noise"):
            continue
        attrs = {"units": "nats" if name.startswith("circulation") else "1"}
        if name in about:
            attrs["long_name"] = about[name]
        variables[name] = ("rho", np.array([float(row[name]) for row in rows]), attrs)
    text = {"long_name": "noise level sigma/alpha", "units": "x"}
    rho = np.array([row["rho"] for row in rows])
    return xr.Dataset(variables, {"rho": ("rho", rho, text)}, {"dim": subject.denoiser.dim})
