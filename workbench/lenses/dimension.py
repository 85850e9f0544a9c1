r"""Intrinsic dimension of the data, each estimator as a curve over the noise level.

At noise :math:`\rho` a mode of variance :math:`\lambda` counts as
:math:`\lambda/(\lambda+\rho^2)` of a dimension: the curve falls from the number of modes to 0, and
only where it is level has a single number a meaning. Every estimator says where that is: in the
attribute ``holds`` of its curve the lowest and the highest :math:`\rho`, and in ``holds_where`` the
condition in words. Of the field:

* ``flipd``: the Fokker-Planck estimator, :math:`\operatorname{tr}J + |D-x_0|^2/\rho^2`; ``trace``:
  its first part alone, the directions that the denoiser keeps;
* ``lidl``: d plus the slope of :math:`\log p_\delta(x_0)` over :math:`\log\delta`, by a line
  through :math:`\delta/\rho = 1/2, 1/\sqrt2, 1, \sqrt2, 2`; by the heat equation its limit is
  FLIPD;
* ``normal_bundle``: d less the number of singular values, above their widest gap, of 4 d scores at
  points noised from one data point: the scores are perpendicular to the data;
* ``flow``: of the Jacobian of the probability flow from the largest noise, the singular values
  that have come to rest, :math:`d\log s_k/d\log\rho = 1 - u_k^\top J u_k < 1/2`: along the data
  they do, the others fall like :math:`\rho`. Of Gaussian data the modes with
  :math:`\lambda_k > \rho^2`.

Of the noised points alone, without any field:

* ``mle``: by the distances to the k nearest neighbours, averaged as inverses;
* ``twonn``: by the ratio of the second distance to the first, likeliest; ``twonn_fit``: by the line
  through 90 % of the ratios' distribution. Where both differ, the ratios are not Pareto's.

Sources: Kamkari et al. 2024, arXiv:2406.03537 (FLIPD); Tempczyk et al. 2022, arXiv:2206.14882
(LIDL); Stanczuk et al. 2022, arXiv:2212.12611 (normal bundle); Horvat & Pfister 2024,
arXiv:2402.03845 (flow); Levina & Bickel 2004, *NIPS* 17, and MacKay & Ghahramani 2005 (MLE);
Facco et al. 2017, arXiv:1803.06992 (TwoNN).
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian
from workbench.denoisers.level import Level
from workbench.denoisers.sphere import Sphere
from workbench.exact.dimension import (
    denoiser_trace,
    flipd_mean,
    lidl_mean,
    line_slope,
    score_singular_values,
    sphere_flipd,
    sphere_trace,
)
from workbench.lenses.base import Lens, OnStep, Subject, estimate, quick, stepped
from workbench.lenses.errors import mean_error
from workbench.lenses.output import draws
from workbench.params import Param

#: What each curve is, in the order in which they are drawn.
CURVES = {
    "flipd": "FLIPD, mean over data points",
    "trace": "trace of the denoiser's Jacobian, mean over data points",
    "lidl": "LIDL, mean over data points",
    "normal_bundle": "normal bundle (SVD of scores), mean over data points",
    "flow": "singular values of the flow's Jacobian, mean over paths",
    "mle": "maximum likelihood of neighbours' distances (Levina-Bickel)",
    "twonn": "TwoNN, likeliest",
    "twonn_fit": "TwoNN, line through 90 % of the ratios",
}

#: Of them, those that need no field.
OF_POINTS = ("mle", "twonn", "twonn_fit")

#: Noise levels of LIDL's line, over rho.
DELTAS = (0.5, 0.5**0.5, 1.0, 2**0.5, 2.0)

#: More dimensions than this have no matrices of scores, nor a flow's Jacobian.
MATRICES = 256

#: More dimensions than this have no divergence of a network, one product for each.
PRODUCTS = 1024

#: The longest step of a flow in log rho.
STEP = 0.3

#: A curve is level where it stays this close to its middle, relative to it, over that factor.
LEVEL, SPAN = 0.025, 5.0

#: Points looked at beside the nearest, and numbers that the differences of a piece may hold.
SPARE, NUMBERS = 8, 1 << 22

#: Noise counts as small that adds this share to a squared distance of nearest neighbours.
ADDED = 0.1

#: The gap of scores' singular values, over the largest, within which few scores may miss it.
BLURRED = 0.5

#: The share of the value above it that a gap of scores' singular values takes away, to be no
#: scatter of theirs, nor that of a mean score; and the least rho times a score along normals.
CLEAR = 0.5


def neighbours(points: Tensor, k: int) -> Tensor:
    """Distances (n, k) of each of the points (n, d) to its k nearest others, nearest first.

    A matrix product says which may be the nearest, ``SPARE`` more than asked for: its rounding can
    confuse those that are as far. The distances themselves are of differences.
    """
    near, exactly = points - points.mean(0), "donot_use_mm_for_euclid_dist"
    half, among = near.square().sum(1) / 2, min(len(points), k + 1 + SPARE)
    found = []
    for rows in near.split(min(2048, max(1, NUMBERS // (among * points.shape[1])))):
        those = torch.addmm(half, rows, near.T, alpha=-1).topk(among, 1, largest=False).indices
        apart = torch.cdist(rows[:, None], near[those], compute_mode=exactly)[:, 0]
        found.append(apart.sort(1).values[:, 1 : k + 1])
    return torch.cat(found)


def levina_bickel(distances: Tensor) -> tuple[float, float]:
    r"""Dimension by distances (n, k) of neighbours, and its standard error.

    .. math:: \frac1{\hat d} = \frac1n \sum_i \frac1{k-1}\sum_{j<k} \log\frac{T_k(x_i)}{T_j(x_i)}

    Inverses are averaged: the mean of the dimensions themselves is biased by :math:`1/(k-2)`.

    Sources: Levina & Bickel 2004, *NIPS* 17; MacKay & Ghahramani 2005.
    """
    inverse = (distances[:, -1:] / distances[:, :-1]).log().mean(1)
    inverse = inverse[inverse.isfinite()]
    return _inverted(inverse)


def two_nn(distances: Tensor, fit: bool = False) -> tuple[float, float]:
    r"""Dimension by the ratios :math:`\mu = T_2/T_1`, Pareto's with exponent d; and its error.

    Args:
        distances: of :func:`neighbours`, (n, 2 or more).
        fit: by the line through the origin, of :math:`-\log(1-F(\mu))` over :math:`\log\mu`,
            without the largest tenth, instead of the likeliest, :math:`(n-1)/\sum\log\mu`.

    Source: Facco et al. 2017, arXiv:1803.06992.
    """
    logs = (distances[:, 1] / distances[:, 0]).log()
    logs = logs[logs.isfinite()]
    n, kept = len(logs), int(0.9 * len(logs))
    if not fit:
        value, error = _inverted(logs)
        return (n - 1) / max(n, 1) * value, error
    logs = logs.sort().values
    if not kept:
        return math.nan, math.nan
    place = -torch.log1p(-torch.arange(1, kept + 1, dtype=logs.dtype) / n).to(logs)
    square = logs[:kept].square().sum()
    value = (logs[:kept] * place).sum() / square
    # Of n ratios by the likeliest value: the error of the line is larger by this, measured.
    return value.item(), FIT * value.item() / math.sqrt(n)


#: Spread of a fitted TwoNN, and of estimates by neighbours that share their distances, over that
#: of independent ratios.
FIT, SHARED = 1.25, 1.25


def _inverted(inverse: Tensor) -> tuple[float, float]:
    """1 over the mean, and its error."""
    if len(inverse) < 2 or not inverse.sum() > 0:
        return math.nan, math.nan
    value = 1 / inverse.mean().item()
    error = SHARED * inverse.std().item() / math.sqrt(len(inverse))
    return value, value**2 * error


@dataclass(frozen=True)
class Dimension(Lens):
    """How many dimensions do the data have, at each noise level, for this denoiser?

    Curves of five estimators by the field and of two by neighbours (see the module), each with the
    range of noise in which it is a dimension. Exact for Gaussian data and for a sphere, as means
    over their law; the null band is what the same estimators say of an even Gaussian of the same
    spread: below it the data have fewer dimensions than their space.

    Sources: Kamkari et al. 2024, arXiv:2406.03537, and those of the module.
    """

    levels: Annotated[int, Param("how many noise levels", ge=2, le=1000)] = 25
    samples: Annotated[int, Param("how many data points it looks at", ge=2, le=100_000)] = 64
    points: Annotated[int, Param("data points among which neighbours are", ge=8, le=20_000)] = 1000
    neighbours: Annotated[int, Param("how many neighbours the likelihood takes", ge=2, le=100)] = 10
    matrices: Annotated[
        int,
        Param("data points at most for the normal bundle and the flow; 0: neither", ge=0, le=10**5),
    ] = 256

    def memory(self, dim: int, kept: int) -> int:
        matrices = 64 * self.samples * dim + 64 * dim * min(dim, MATRICES) * self._few(dim)
        return super().memory(dim, kept) + matrices + 16 * 2048 * self.points

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        denoiser = subject.denoiser
        if not denoiser.closed and denoiser.dim > PRODUCTS:
            raise NotImplementedError(
                f"the dimension is by the exact divergence, {denoiser.dim} products of this "
                f"{type(denoiser).__name__} at each point; up to {PRODUCTS} are taken. Look at a "
                "Gaussian of the same data, or at smaller images."
            )
        rho, points = self._rho(subject), self._points(subject)
        found = self._curves(denoiser, points, self._many(subject), rho, on_step)
        dataset = xr.Dataset({}, {"rho": rho.numpy()}, {"dim": denoiser.dim})
        for name, (value, error) in found.items():
            value, error = (v.double().cpu().numpy() for v in (value, error))
            dims = ("rho", "direction")[: value.ndim]
            about = CURVES.get(name, ABOUT.get(name, ""))
            dataset = dataset.assign(estimate(name, dims, value, about, error=error))
        if "flow_values" in dataset:
            dataset["flow_values"].attrs["scale"] = "log"
        self._say_where(dataset, subject, self._many(subject))
        if denoiser.dim > MATRICES:
            dataset.attrs["left_out"] = (
                f"the normal bundle and the flow are for up to {MATRICES} dimensions; these data "
                f"have {denoiser.dim}"
            )
        return dataset

    def _curves(
        self,
        denoiser: Denoiser,
        points: Tensor,
        many: Tensor,
        rho: Tensor,
        on_step: OnStep | None = None,
        flow: bool = True,
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Every curve (levels,), or singular values (levels, d), with standard errors."""
        d, levels = denoiser.dim, rho.tolist()
        denoiser = quick(denoiser)
        points = points.to(denoiser.dtype)
        few = points[: self._few(d)]
        generator = torch.Generator().manual_seed(1)
        normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        noise = normal(*many.shape).to(many)
        around = path = None
        if len(few):
            around = normal(len(few), 4 * d, d).to(few)
        if around is not None and flow:
            start = few.flatten(1) + levels[0] * normal(len(few), d).to(few)
            path = (start, torch.eye(d).to(few).expand(len(few), d, d))
        each: dict[str, list[Tensor]] = {}
        of_points: dict[str, list[tuple[float, float]]] = {name: [] for name in OF_POINTS}
        for i, level in enumerate(stepped(levels, on_step)):
            at = denoiser.at(1.0, level)
            trace = at.divergence(points)
            away = (at.denoised(points) - points).flatten(1).square().sum(1)
            row = {"flipd": trace + away / level**2, "trace": trace}
            if around is not None:
                values = _score_values(at, few, level, around)
                row["score_values"] = level * values
                row["normal_bundle"] = d - _above(values)
            if path is not None:
                if i:
                    path = _carried(denoiser, path, levels[i - 1], level)
                left, row["flow_values"], _ = torch.linalg.svd(path[1])
                jacobian = at.jacobian(path[0].reshape(-1, *denoiser.event_shape))
                row["flow"] = ((left * (jacobian @ left)).sum(1) > 0.5).sum(1)
            for name, value in row.items():
                each.setdefault(name, []).append(value.double())
            apart = neighbours(many + level * noise, self.neighbours)
            of_points["mle"].append(levina_bickel(apart))
            of_points["twonn"].append(two_nn(apart))
            of_points["twonn_fit"].append(two_nn(apart, fit=True))
        each["lidl"] = _lidl(denoiser, points, rho, torch.stack(each["flipd"]))
        found = {}
        for name in (*CURVES, "score_values", "flow_values"):
            if name in of_points:
                found[name] = torch.tensor(of_points[name], dtype=torch.float64).unbind(1)
            elif name in each:
                one = torch.stack(list(each[name]))
                found[name] = one.mean(1), mean_error(one, 1)
        return found

    def exact(self, subject: Subject) -> xr.Dataset | None:
        law, rho = subject.denoiser, self._rho(subject)
        if isinstance(law, Sphere) and not law.blur:
            exact = {"flipd": sphere_flipd(law, rho), "trace": sphere_trace(law, rho)}
        elif isinstance(law, Gaussian):
            spectrum = law.spectrum.cpu().double()
            exact = _of_spectrum(spectrum, rho)
            if self._few(law.dim):
                start = spectrum + rho[0].square()
                values = ((spectrum + rho.square()[:, None]) / start).sqrt().sort(-1, True).values
                exact["flow_values"] = values
                exact["flow"] = (spectrum > rho.square()[:, None]).sum(1).double()
                few = self._points(subject)[: self._few(law.dim)]
                exact["normal_bundle"] = torch.stack([_normal_bundle(law, few, r) for r in rho])
        else:
            return None
        dims = lambda value: ("rho", "direction")[: value.ndim]  # noqa: E731
        return xr.Dataset({n: (dims(v), v.cpu().numpy()) for n, v in exact.items()})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """Of an even Gaussian with the same spread, as many points of it: nothing to see."""
        from scipy.special import ndtri

        law = subject.denoiser
        std = law.std or 1.0
        even = Gaussian(
            torch.zeros(law.event_shape, dtype=torch.float64),
            torch.full(law.event_shape, std**2, dtype=torch.float64),
        )
        generator = torch.Generator().manual_seed(2)
        sizes = [len(self._points(subject)), len(self._many(subject))]
        points, many = (draws(even, n, generator) for n in sizes)
        rho = self._rho(subject)
        found = self._curves(even, points, many.flatten(1), rho, flow=False)
        z, bands = float(ndtri(1 - level / 2)), {}
        spectrum = even.spectrum.double()
        if self._few(law.dim):
            still = torch.where(rho < std, law.dim, 0).double()
            found["flow"] = still, torch.zeros_like(still)
        centre = _of_spectrum(spectrum, rho)
        for name in CURVES:
            if name not in found:
                continue
            value, error = found[name]
            if name in OF_POINTS:  # noised, it is an even Gaussian again: the same at every level
                value, error = value.nanmean().expand(len(value)), error.nanmean()
            if name in centre:
                value, half = centre[name].to(value), z * error
            else:  # where the band is about is drawn too
                half = z * 2**0.5 * error
            half = half + 1e-6 * value.abs()
            band = torch.stack([value - half, value + half], 1).clamp_min(0)
            bands[name] = (("rho", "bound"), band.numpy())
        return xr.Dataset(bands)

    def findings(self, dataset: xr.Dataset) -> list[str]:
        said, count = [], dataset.attrs["dim"]
        level, nowhere = [], []
        for name in ("flipd", "lidl", "normal_bundle", "flow"):
            if name not in dataset:
                continue
            holds = dataset[name].attrs["holds"]
            if holds:
                value = dataset[name].attrs["holds_at"]
                level.append(f"{SHORT[name]} at {_number(value)} for ρ = {_span(holds)}")
            else:
                nowhere.append(SHORT[name])
        if level:
            said.append(f"Of {count} dimensions the data show, level, {'; '.join(level)}.")
        if nowhere:
            values, rho = dataset["flipd"].values, dataset["rho"].values
            places = (len(values) // 4, len(values) // 2, 3 * len(values) // 4)
            at = ", ".join(f"{_number(values[i])} at ρ = {rho[i]:.2g}" for i in places)
            curve = f": a curve and no number (FLIPD {at})" if "FLIPD" in nowhere else ""
            said.append(f"Nowhere level: {', '.join(nowhere)}{curve}.")
        holds = dataset["mle"].attrs["holds"]
        if holds:
            value, other = (dataset[name].attrs["holds_at"] for name in ("mle", "twonn"))
            said.append(
                f"The points alone say {value:.3g} (MLE) and {other:.3g} (TwoNN) for ρ = "
                f"{_span(holds)}, less than their nearest neighbours' distance; of many dimensions "
                "both say too few."
            )
        if "left_out" in dataset.attrs:
            said.append(dataset.attrs["left_out"].capitalize() + ".")
        return said

    def _say_where(self, dataset: xr.Dataset, subject: Subject, many: Tensor) -> None:
        """Writes into the attributes of each curve where it may be read as a dimension."""
        rho, size = dataset["rho"].values, subject.denoiser.std or 1.0
        nearest = neighbours(many, 1).square().median().item()
        for name in CURVES:
            if name not in dataset:
                continue
            value, error = dataset[name].values, dataset[f"{name}_se"].values
            if name in OF_POINTS:
                rows = np.flatnonzero(2 * many.shape[1] * rho**2 <= ADDED * nearest)
                rows = rows[np.isfinite(value[rows])]
                where = "noise √(2d) ρ below a third of the nearest neighbours' distance"
            else:
                level = rho <= 0.5 * size
                where = f"within {LEVEL:.1%} of one value over a factor of {SPAN:g} in noise, "
                where += "at less than half the spread of the data"
                if name == "normal_bundle":
                    values = dataset["score_values"].values
                    gap = values[:, :-1] - values[:, 1:]
                    place = gap.argmax(1)[:, None] if gap.shape[1] else np.zeros((len(rho), 1), int)
                    above = np.take_along_axis(values, place, 1)[:, 0]  # of normals 1
                    level &= (gap.max(1, initial=0.0) > CLEAR * above) & (above > CLEAR)
                    level &= values.shape[1] > 2  # of two singular values there is but one gap
                    where += ", above a gap that halves the singular values, at 1/rho"
                rows = _longest_level(rho, value, error, level)
            attrs = dataset[name].attrs
            attrs["holds"] = [float(rho[rows].min()), float(rho[rows].max())] if len(rows) else []
            attrs["holds_at"] = float(np.median(value[rows])) if len(rows) else math.nan
            attrs["holds_where"] = where

    def _few(self, dim: int) -> int:
        """Points whose matrices are looked at: at least two, for an error; or none."""
        if not self.matrices or dim > MATRICES:
            return 0
        most = min(self.samples, max(2, self.matrices))
        return most if dim <= 16 else min(most, max(4, 256 // dim))

    def _rho(self, subject: Subject) -> Tensor:
        """Noise levels (levels,), decreasing, about the size of the data."""
        size = subject.denoiser.std or 1.0
        rho = size * torch.logspace(1.0, -2.0, self.levels, dtype=torch.float64)
        return rho.clamp_max(subject.denoiser.largest_rho)

    def _points(self, subject: Subject) -> Tensor:
        return self._drawn(subject, self.samples)

    def _many(self, subject: Subject) -> Tensor:
        """Points (n, d) among which neighbours are."""
        many = self._drawn(subject, self.points).flatten(1)
        if len(many) < self.neighbours + 2:
            raise NotImplementedError(
                f"{len(many)} data points were given; {self.neighbours} neighbours of each need at "
                f"least {self.neighbours + 2}. Give more points, or take fewer neighbours."
            )
        return many

    def _drawn(self, subject: Subject, count: int) -> Tensor:
        """Data points (n, *event), or exact samples of the denoiser's law."""
        if subject.data is not None:
            points = subject.data.points[:count]
        else:
            points = draws(subject.denoiser, count, torch.Generator().manual_seed(0))
        if points is None:
            raise NotImplementedError(
                f"the dimension is measured at data points, and {subject.denoiser!r} has none at "
                "hand; give them: data=wb.Data(...)."
            )
        return points.to(subject.diffusion.device, torch.float64)


#: What the singular values are.
ABOUT = {
    "score_values": "singular values of scores around a point, times rho: 1 along normals",
    "flow_values": "singular values of the flow's Jacobian from the largest noise",
}

#: Names in sentences.
SHORT = {"flipd": "FLIPD", "lidl": "LIDL", "normal_bundle": "the normal bundle", "flow": "the flow"}


def _of_spectrum(spectrum: Tensor, rho: Tensor) -> dict[str, Tensor]:
    """What the pointwise estimators are on average over Gaussian data, (levels,) each."""
    lidl = lidl_mean(spectrum, rho[:, None] * torch.tensor(DELTAS).double())
    flipd, trace = flipd_mean(spectrum, rho), denoiser_trace(spectrum, rho)
    return {"flipd": flipd, "trace": trace, "lidl": lidl}


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) > 1e-3 else "0"


def _span(holds: list[float]) -> str:
    low, high = (f"{end:.2g}" for end in holds)
    return low if low == high else f"{low} to {high}"


def _above(values: Tensor) -> Tensor:
    """How many descending values (*batch, d) are above their widest gap."""
    if values.shape[-1] == 1:
        return torch.ones(values.shape[:-1]).to(values)
    return (values[..., :-1] - values[..., 1:]).argmax(-1).double() + 1


def _score_values(at: Level, points: Tensor, rho: float, around: Tensor) -> Tensor:
    """Root mean square singular values (n, d) of scores at points noised by ``around``
    (n, K, d)."""
    n, count, d = around.shape
    noised = points.flatten(1)[:, None] + rho * around
    denoised = at.denoised(noised.reshape(n * count, *points.shape[1:])).reshape(n, count, d)
    return torch.linalg.svdvals((denoised - noised) / rho**2) / math.sqrt(count)


def _normal_bundle(law: Gaussian, points: Tensor, rho: Tensor) -> Tensor:
    """Mean over points of the dimension that infinitely many scores say; NaN where a gap of theirs
    is no wider than what few scores blur."""
    each = torch.stack([score_singular_values(law, x, 1.0, rho.item()) for x in points])
    gap = (each[:, :-1] - each[:, 1:]).max(1).values if law.dim > 1 else each[:, 0]
    clear = (gap > BLURRED * each[:, 0]).all()
    return torch.where(clear, (law.dim - _above(each)).mean(), torch.nan).cpu()


def _carried(denoiser: Denoiser, path: tuple[Tensor, Tensor], rho: float, to: float):
    r"""States (n, d) and Jacobians (n, d, d) along the flow, by one step of Runge and Kutta.

    .. math:: \frac{dy}{d\log\rho} = y - D(y; 1, \rho),\qquad
              \frac{dY}{d\log\rho} = (I - J)\,Y
    """

    def rate(y: Tensor, matrix: Tensor, level: float) -> tuple[Tensor, Tensor]:
        at, states = denoiser.at(1.0, level), y.reshape(-1, *denoiser.event_shape)
        return y - at.denoised(states).flatten(1), matrix - at.jacobian(states) @ matrix

    parts = math.ceil(abs(math.log(to / rho)) / STEP)
    if parts > 1:
        levels = [rho * (to / rho) ** (k / parts) for k in range(parts + 1)]
        for ends in pairwise(levels):
            path = _carried(denoiser, path, *ends)
        return path
    h, (y, matrix) = math.log(to / rho), path
    middle = math.sqrt(rho * to)
    a = rate(y, matrix, rho)
    b = rate(y + h / 2 * a[0], matrix + h / 2 * a[1], middle)
    if not denoiser.closed:
        return y + h * b[0], matrix + h * b[1]
    c = rate(y + h / 2 * b[0], matrix + h / 2 * b[1], middle)
    e = rate(y + h * c[0], matrix + h * c[1], to)
    return tuple(
        v + h / 6 * (k + 2 * p + 2 * q + r)
        for v, k, p, q, r in zip((y, matrix), a, b, c, e, strict=True)
    )


def _lidl(denoiser: Denoiser, points: Tensor, rho: Tensor, flipd: Tensor) -> Tensor:
    """LIDL (levels, n) by log-densities in closed form; else by the integral of FLIPD - d over log
    rho, which is what the heat equation says they differ by. NaN where a line would end beyond."""
    deltas = rho[:, None] * torch.tensor(DELTAS, dtype=torch.float64)
    d, logs = denoiser.dim, deltas.log()
    if denoiser._kind._log_prob is not Level._log_prob:
        with suppress(NotImplementedError):
            each = [denoiser.log_prob(points, 1.0, delta) for delta in deltas.flatten().tolist()]
            density = torch.stack(each).reshape(*deltas.shape, -1)
            return d + line_slope(logs[..., None].mT.to(density), density.mT).double()
    place = rho.log().flip(0)
    growth = flipd.double().flip(0) - d
    total = torch.cumulative_trapezoid(growth, place[:, None].to(growth), dim=0)
    total = torch.cat([torch.zeros_like(total[:1]), total])
    right = torch.searchsorted(place, logs).clamp(1, len(place) - 1)
    width = (place[right] - place[right - 1]).clamp_min(1e-300)
    share = ((logs - place[right - 1]) / width)[..., None].to(total)
    density = (1 - share) * total[right - 1] + share * total[right]
    inside = (logs >= place[0] - 1e-9) & (logs <= place[-1] + 1e-9)
    slope = line_slope(logs[:, None].to(density), density.movedim(1, -1))
    return torch.where(inside.all(1)[:, None].to(slope.device), d + slope, torch.nan)


def _longest_level(rho, value, error, may: np.ndarray) -> np.ndarray:
    """Rows of the longest stretch, of levels that ``may`` be, where the curve is level; or none."""
    best = np.array([], dtype=int)
    rows = np.flatnonzero(may & np.isfinite(value))
    for i, first in enumerate(rows):
        low = high = value[first]
        for j in range(i, len(rows)):
            k = rows[j]
            if k - first != j - i:
                break
            low, high = min(low, value[k]), max(high, value[k])
            middle = (low + high) / 2
            room = max(LEVEL * abs(middle), LEVEL, np.nanmax(error[first : k + 1], initial=0.0))
            if high - middle > room:
                break
            if rho[first] >= SPAN * rho[k] and j - i + 1 > len(best):
                best = rows[i : j + 1]
    return best
