r"""How much of an output the class decides, how much the seed, and how much only both together.

The same seeds are run in every class, and the outputs :math:`y_{cs}` are the cells of a two-way
layout without replicates: with the row, column and grand means,

.. math:: y_{cs} = \mu + a_c + b_s + (ab)_{cs},\qquad
          \mathrm{E}\,MS_{ab} = \sigma^2_{int},\qquad
          \mathrm{E}\,MS_b = \sigma^2_{int} + C\sigma^2_{seed},

summed over coordinates. Of Gaussian classes under a deterministic linear sampler they are known
without a run (:mod:`workbench.exact.seeds`).

Whoever sees outputs of some classes can name the seeds of others if a seed leaves a mark of its
own (:class:`Identification`), and may ask whether some seeds are better than others in all classes
(:class:`Golden`): of many seeds the best looks good by chance alone.

Sources: Searle, Casella & McCulloch 1992, *Variance Components*; Xu et al. 2024, *Good Seed Makes
a Good Crop*, arXiv:2405.14828 (the questions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian
from workbench.denoisers.conditional import Conditional
from workbench.denoisers.neural import Neural
from workbench.diffusion import Diffusion
from workbench.exact.seeds import components
from workbench.exact.transfer import transfer
from workbench.lenses.base import BOUNDS, Lens, OnStep, Subject, estimate, remembered
from workbench.lenses.checks import check_prior
from workbench.lenses.errors import GROUPS, central, jackknife, mean_error
from workbench.lenses.statistics import QUALITIES, bands_of, statistic
from workbench.params import Param
from workbench.sampling import NoiseSource
from workbench.sampling.methods import DDIM
from workbench.trajectory import prior_states, sample

#: How often the seeds of each class are dealt anew, for a null band; drawn anew, for an error.
DEALT, REDRAWN = 200, 60

PARTS = ("class", "seed", "interaction")

#: What a seed may have in common in all classes.
SHARED = ("all noise", "the start", "nothing")

#: How far the seeds of one class are from those of the next where they share nothing, and the
#: numbers that seeds go up to.
APART, MOST = 0x9E3779B97F4A7C15, 1 << 63

#: What the lenses of seeds say, in words.
SHARE = "share of the seed in the variance within classes"
CROSSED = "95 % interval of the share, over other seeds and other classes"
NAMED = "seeds told from outputs of other classes"
#: Directions with less than this share of the largest variance say nothing of a seed.
WHITENED = 1e-2


@dataclass(frozen=True)
class VarianceComponents(Lens):
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
    bytes_each = 1024

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        outputs = outputs_by_class(subject, on_step=on_step)
        whole, error = _components(outputs), jackknife(_components, outputs, 1)
        about = "component of the variance of the outputs"
        variables = estimate("variance", "part", whole[:3], about, "x^2", error[:3])
        variables |= estimate("icc", (), whole[3], SHARE, error=error[3])
        variables |= estimate("interval", "end", crossed_interval(outputs), CROSSED)
        coords = {"part": list(PARTS), "end": list(BOUNDS)}
        return xr.Dataset(variables, coords, {"classes": len(outputs)})

    def exact(self, subject: Subject) -> xr.Dataset | None:
        maps = affine_maps(subject, stochastic=False)
        if maps is None:
            return None
        found = components(maps.means, maps.matrices)
        return xr.Dataset({"variance": ("part", np.array(found[:3])), "icc": ((), found.icc)})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        dealt = _dealt(_icc, outputs_by_class(subject), torch.Generator().manual_seed(0))
        return xr.Dataset({"icc": ("bound", central(dealt, level))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        parts = dataset["variance"].values
        shares = np.clip(parts, 0, None) / np.clip(parts, 0, None).sum()
        said = ", ".join(f"{share:.0%} {name}" for name, share in zip(PARTS, shares, strict=True))
        icc, high = float(dataset["icc"]), float(dataset["icc_null"].values[1])
        seen = "more than chance" if icc > high else "no more than chance"
        low, top = dataset["interval"].values
        return [
            f"Of the outputs' variance over {dataset.attrs['classes']} classes and the seeds: "
            f"{said}. Within classes a seed decides {icc:.0%}, {seen} (with other seeds and other "
            f"classes, {low:.0%} to {top:.0%})."
        ]


@dataclass(frozen=True)
class Properties(Lens):
    """Which properties of a sample does the seed decide, in all classes alike?

    ``icc`` along ``property``: the seed's share of the variance within classes of the whole sample,
    of its coefficients in each band of spatial frequency, of its principal coordinates; and of what
    is not linear in it, the energy of each band and whatever it is judged by
    (:mod:`workbench.lenses.statistics`). The null band: the seeds of each class dealt anew.
    ``interval``: with other seeds and other classes.
    """

    samples: Annotated[int, Param("how many seeds it looks at", ge=8, le=100_000)] = 128

    reads = ("final", "labels")
    bytes_each = 4096

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        names, values, _ = self._columns(subject, on_step)
        whole, each = torch.cat(values, 2), partial(_icc_of, values=values)
        icc, error = each(whole), jackknife(each, whole, 1)
        intervals = np.array([crossed_interval(one, draws=DEALT // 2) for one in values])
        variables = estimate("icc", "property", icc, SHARE, error=error)
        variables |= estimate("interval", ("property", "end"), intervals, CROSSED)
        return xr.Dataset(variables, {"property": names, "end": list(BOUNDS)})

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """Of Gaussians under a linear sampler, for what is linear in the output."""
        maps = affine_maps(subject, stochastic=False)
        if maps is None:
            return None
        found = []
        for matrix in self._columns(subject)[2]:
            if matrix is None:
                found.append(np.nan)
                continue
            means = [matrix.T @ mean for mean in maps.means]
            found.append(components(means, [matrix.T @ one for one in maps.matrices]).icc)
        return xr.Dataset({"icc": ("property", found)})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        values = self._columns(subject)[1]
        each, generator = partial(_icc_of, values=values), torch.Generator().manual_seed(0)
        dealt = _dealt(each, torch.cat(values, 2), generator)
        return xr.Dataset({"icc": (("property", "bound"), central(dealt, level))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        icc, names = dataset["icc"].values, dataset["property"].values
        order = np.argsort(icc)
        seen = (icc > dataset["icc_null"].sel(bound="high").values).sum()
        return [
            f"Of {len(icc)} properties the seed decides most of {names[order[-1]]} "
            f"({icc[order[-1]]:.0%}) and least of {names[order[0]]} ({icc[order[0]]:.0%}); "
            f"{seen} are beyond chance."
        ]

    @remembered
    def _columns(self, subject: Subject, on_step: OnStep | None) -> tuple[list, list, list]:
        """Names; values (classes, seeds, k) and matrices (d, k) or None of each property."""
        outputs, laws = outputs_by_class(subject, on_step=on_step), classes_of(subject)
        event = next(iter(laws.values())).event_shape
        octaves, bases = bands_of(event)
        kind = "band" if len(event) > 1 else "coordinate"
        names, values, matrices = ["sample"], [outputs], [torch.eye(outputs.shape[2]).double()]
        for name, basis in zip(octaves, bases, strict=True):
            names.append(f"{kind} {name}")
            values.append(outputs @ basis)
            matrices.append(basis)
        energies = statistic("energy", outputs, laws, subject).values
        for k, name in enumerate(octaves):
            names.append(f"energy {name}")
            values.append(energies[..., k : k + 1])
            matrices.append(None)
        for name in ("principal", "features", *QUALITIES):
            with suppress(NotImplementedError):  # judged by data that this class does not have
                found = statistic(name, outputs, laws, subject)
                names.append(name.replace("_", " "))
                values.append(found.values)
                matrices.append(found.matrix)
        return names, values, matrices


def _icc_of(whole: Tensor, values: list[Tensor]) -> np.ndarray:
    """Intraclass correlation of each of ``values``, columns of ``whole`` (classes, seeds, k)."""
    _, seed, both = by_column(whole)
    parts = zip(*(part.split([v.shape[2] for v in values]) for part in (seed, both)), strict=True)
    return np.array([(a.sum() / (a.sum() + b.sum()).clamp_min(1e-300)).item() for a, b in parts])


def _dealt(measure: Callable, outputs: Tensor, generator: torch.Generator) -> list:
    """Numbers of outputs (classes, seeds, k), the seeds of each class dealt anew each time."""
    found = []
    for _ in range(DEALT):
        order = (torch.randperm(outputs.shape[1], generator=generator) for _ in outputs)
        found.append(measure(torch.stack([y[o] for y, o in zip(outputs, order, strict=True)])))
    return found


@dataclass(frozen=True)
class Fading(Lens):
    r"""How fast does fresh noise on the way take away the mark of a seed's start?

    Along the stochasticity :math:`\kappa` (0 the probability flow, 1 the reverse SDE) the seeds are
    run in every class by DDIM with :math:`\eta = \sqrt\kappa`: a seed fixes its start alone, the
    noise on the way is fresh in each class. ``icc``: the seed's share of the variance within
    classes; ``accuracy``: how often the seed is told from outputs of other classes, as in
    ``identification``. The null bands: the seeds of each class dealt anew.
    """

    samples: Annotated[int, Param("how many seeds it looks at", ge=8, le=4096)] = 64
    kappas: Annotated[
        tuple[float, ...], Param("stochasticity of each run", ge=0, le=1, fewest=1)
    ] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)

    reads = ("final", "labels")

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 1024 * self.samples * dim + 32 * self.samples**2

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        rows = self._rows(subject, on_step)
        classes, seeds = rows[0].shape[:2]
        icc, error = [_icc(outputs) for outputs in rows], [jackknife(_icc, one, 1) for one in rows]
        right = np.array([(_named(one).named == np.arange(seeds)).mean(0) for one in rows])
        kappa = {"long_name": "stochasticity: 0 probability flow, 1 reverse SDE", "units": "1"}
        return xr.Dataset(
            estimate("icc", "kappa", icc, SHARE, error=error)
            | estimate("accuracy", "kappa", right.mean(1), NAMED, error=mean_error(right, 1)),
            {"kappa": ("kappa", list(self.kappas), kappa)},
            {"classes": classes, "seeds": seeds},
        )

    def exact(self, subject: Subject) -> xr.Dataset | None:
        """The seed's share, of Gaussian classes: what each mode keeps of its start, and the fresh
        noise as a residual."""
        found = []
        for kappa in self.kappas:
            maps = affine_maps(self._noisy(subject, kappa))
            if maps is None:
                return None
            found.append(components(maps.means, maps.matrices, maps.noise).icc)
        return xr.Dataset({"icc": ("kappa", found)})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        generator, draw = torch.Generator().manual_seed(0), np.random.default_rng(0)
        bands = {"icc": [], "accuracy": []}
        for outputs in self._rows(subject):
            bands["icc"].append(central(_dealt(_icc, outputs, generator), level))
            bands["accuracy"].append(central(_by_chance(_named(outputs), draw), level))
        return xr.Dataset({name: (("kappa", "bound"), band) for name, band in bands.items()})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        kappas, accuracy = dataset["kappa"].values, dataset["accuracy"].values
        lost = accuracy <= dataset["accuracy_null"].sel(bound="high").values
        ends = (
            f"At kappa = {kappas[0]:g} the seed decides {float(dataset['icc'][0]):.0%} of the "
            f"variance within classes, at {kappas[-1]:g} {float(dataset['icc'][-1]):.0%}"
        )
        if not lost.any():
            return [f"{ends}; its start is told beyond chance at each kappa."]
        return [f"{ends}; from kappa = {kappas[lost.argmax()]:g} its start is told by chance only."]

    @remembered
    def _rows(self, subject: Subject, on_step: OnStep | None = None) -> list[Tensor]:
        """Outputs (classes, seeds, d) at each kappa."""
        found = []
        for k, kappa in enumerate(self.kappas):
            part = part_of(on_step, k, len(self.kappas))
            found.append(outputs_by_class(self._noisy(subject, kappa), "the start", part))
        return found

    def _noisy(self, subject: Subject, kappa: float) -> Subject:
        return another(subject, sampler=DDIM(eta=float(np.sqrt(kappa))))


@dataclass(frozen=True)
class Identification(Lens):
    """Can the seed be told from the output, by one who learnt it from other classes?

    ``accuracy``: how often the nearest of all seeds is the right one. Outputs are taken about the
    mean of their class; a seed's place is its mean over the first two thirds of the classes, and
    what is compared with it are the outputs of the remaining ones, in coordinates in which the
    outputs of one seed spread alike in all directions. Chance is one over the number of seeds; the
    null band: the seeds of each class dealt anew.

    Along ``shared``: a seed that fixes all noise; its start alone, with fresh noise on the way; or
    nothing.
    """

    samples: Annotated[int, Param("how many seeds it looks at", ge=8, le=4096)] = 64

    reads = ("final", "labels")

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 1024 * self.samples * dim + 32 * self.samples**2

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        told = self._told(subject, on_step)
        right = np.stack([one.named == np.arange(len(one.named.T)) for one in told.values()])
        by_seed = right.mean(1)  # (shared, seeds)
        error = mean_error(by_seed, 1)
        trained, tested = next(iter(told.values())).classes
        return xr.Dataset(
            estimate("accuracy", "shared", by_seed.mean(1), NAMED, error=error),
            {"shared": list(told)},
            {"trained": trained, "tested": tested, "seeds": by_seed.shape[1]},
        )

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """Of seeds dealt anew in each class that is tried: what was named meets another seed."""
        draw, told = np.random.default_rng(0), self._told(subject).values()
        bands = [central(_by_chance(one, draw), level) for one in told]
        return xr.Dataset({"accuracy": (("shared", "bound"), np.array(bands))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        chance, said = 1 / dataset.attrs["seeds"], []
        for name in dataset["shared"].values:
            at = dataset.sel(shared=name)
            seen = float(at["accuracy"]) > float(at["accuracy_null"].sel(bound="high"))
            fixed = {"nothing": "no noise"}.get(str(name), str(name))
            said.append(
                f"Where a seed fixes {fixed}, {float(at['accuracy']):.1%} of the seeds are named "
                f"(chance {chance:.1%}): {'it leaves a mark' if seen else 'no mark is seen'}."
            )
        return said

    def confusion(self, subject: Subject) -> np.ndarray:
        """Share of the samples of each seed that are taken for those of each, (seeds, seeds)."""
        named = next(iter(self._told(subject).values())).named
        found = np.zeros((named.shape[1], named.shape[1]))
        for row in named:
            found[np.arange(len(row)), row] += 1 / len(named)
        return found

    @remembered
    def _told(self, subject: Subject, on_step: OnStep | None) -> dict[str, _Named]:
        shares, found = SHARED if subject.sampler.stochastic else (SHARED[0], SHARED[2]), {}
        for k, shared in enumerate(shares):
            part = part_of(on_step, k, len(shares))
            found[shared] = _named(outputs_by_class(subject, shared, part))
        return found


class _Named(NamedTuple):
    """Seeds as named, (classes tried, seeds), and the numbers of classes to learn from and try."""

    named: np.ndarray
    classes: tuple[int, int]


def _by_chance(one: _Named, draw: np.random.Generator) -> list[float]:
    """How often the seed is named where what was named is dealt anew."""
    seeds = np.arange(one.named.shape[1])
    return [
        np.mean([np.mean(draw.permutation(row) == seeds) for row in one.named])
        for _ in range(DEALT)
    ]


def part_of(on_step: OnStep | None, k: int, count: int) -> OnStep | None:
    """What the k-th of ``count`` equal parts of the work calls."""
    if on_step is None:
        return None
    return lambda done, total: on_step(k * total + done, count * total)


def _named(outputs: Tensor) -> _Named:
    """Which seed each output (classes, seeds, d) of the last third of the classes is taken for."""
    count = len(outputs)
    first = max(1, min(count - 1, round(2 * count / 3)))
    y = outputs - outputs.mean(1, keepdim=True)
    places = y[:first].mean(0)
    within = (y[:first] - places if first > 1 else y[:first]).flatten(0, 1)
    variances, basis = torch.linalg.eigh(within.T @ within / len(within))
    kept = variances > WHITENED * variances[-1]
    white = basis[:, kept] / variances[kept].sqrt()
    apart = torch.cdist((y[first:] @ white).flatten(0, 1), places @ white)
    named = apart.argmin(1).reshape(count - first, -1).numpy()
    return _Named(named, (first, count - first))


@dataclass(frozen=True)
class Golden(Lens):
    """Are some seeds better than others in all classes, or does the best only look so by chance?

    The quality of an output is minus its distance to the nearest of the data of its class, its
    log-density, the log-odds of its class, or minus the distance of its random features to those of
    the data (:mod:`workbench.lenses.statistics`); in each class it is taken in standard deviations
    about the mean over seeds. ``best`` is the highest mean quality of a seed over the classes, and
    its null band that of the seeds of each class dealt anew; ``p`` the share of deals in which the
    best seed is as good. ``kept``: what is left of the best seed of one half of the classes in the
    other half, where nothing was chosen. ``rank``: Spearman's correlation of the seeds' qualities
    in the two halves. Both over many halvings.
    """

    samples: Annotated[int, Param("how many seeds it looks at", ge=8, le=100_000)] = 128
    quality: Annotated[Literal[QUALITIES], Param("what is called good")] = "distance"

    reads = ("final", "labels")
    bytes_each = 1024

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        quality = self.qualities(subject, on_step)
        kept, rank = _halves(quality)
        seeds = quality.shape[1]
        groups = np.array_split(np.arange(seeds), min(GROUPS, seeds))
        left = np.array([_halves(np.delete(quality, k, 1), 8)[1] for k in groups])
        rank_error = np.sqrt((len(left) - 1) * left.var())
        unit, best = "standard deviations", quality.mean(0).max()
        variables = estimate("best", (), best, "mean quality of the best seed", unit)
        about, error = "quality of the best seed of other classes", _error_of_kept(quality)
        variables |= estimate("kept", (), kept, about, unit, error)
        about = "rank correlation of seeds between classes"
        variables |= estimate("rank", (), rank, about, error=rank_error)
        about = "share of chance deals with as good a best seed"
        variables |= estimate("p", (), chance_of_best(quality), about)
        attrs = {"classes": len(quality), "seeds": seeds, "of": self.quality}
        return xr.Dataset(variables, attrs=attrs)

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        quality, draw = self.qualities(subject), np.random.default_rng(0)
        dealt = [draw.permuted(quality, axis=1) for _ in range(DEALT)]
        bands = central([(one.mean(0).max(), *_halves(one, 4)) for one in dealt], level)
        named = zip(("best", "kept", "rank"), bands, strict=True)
        return xr.Dataset({name: ("bound", band) for name, band in named})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        p, seeds = float(dataset["p"]), dataset.attrs["seeds"]
        kept, rank = float(dataset["kept"]), float(dataset["rank"])
        golden_seed = "There is a golden seed" if p <= 0.05 else "No golden seed is seen"
        return [
            f"{golden_seed}: the best of {seeds} seeds has a mean quality of "
            f"{float(dataset['best']):.2f} standard deviations, and chance alone has one as good "
            f"in {p:.1%} of the deals.",
            f"Chosen by half of the classes it keeps {kept:.2f} ± "
            f"{2 * float(dataset['kept_se']):.2f} in the other half; the ranks of the seeds agree "
            f"between halves by {rank:.2f} ± {2 * float(dataset['rank_se']):.2f}.",
        ]

    @remembered
    def qualities(self, subject: Subject, on_step: OnStep | None) -> np.ndarray:
        """In standard deviations about the mean of each class, (classes, seeds)."""
        outputs = outputs_by_class(subject, on_step=on_step)
        value = statistic(self.quality, outputs, classes_of(subject), subject).values[..., 0]
        spread = value.std(1, keepdim=True).clamp_min(1e-300)
        return ((value - value.mean(1, keepdim=True)) / spread).numpy()


def chance_of_best(quality: np.ndarray, deals: int = DEALT) -> float:
    """Probability that the best of the columns is as good by chance alone, by permutation.

    Args:
        quality: (classes, seeds), in standard deviations about the mean of each class.
        deals: how often the seeds of each class are dealt anew.
    """
    quality = quality[:, quality.mean(0).argsort()]  # the answer is of the seeds in any order
    dealt = np.random.default_rng(0).permuted(np.tile(quality, (deals, 1, 1)), axis=2)
    as_good = (dealt.mean(1).max(1) >= quality.mean(0).max()).sum()
    return float((1 + as_good) / (1 + deals))


def _halves(quality: np.ndarray, splits: int = 32) -> tuple[float, float]:
    """What the best seed of one half keeps in the other, and the rank correlation between them."""
    draw, count = np.random.default_rng(0), len(quality)
    kept, rank = [], []
    for _ in range(splits):
        order = draw.permutation(count)
        one, other = (quality[some].mean(0) for some in (order[: count // 2], order[count // 2 :]))
        kept += [other[one.argmax()], one[other.argmax()]]
        rank.append(np.corrcoef(one.argsort().argsort(), other.argsort().argsort())[0, 1])
    return float(np.mean(kept)), float(np.mean(rank))


def _error_of_kept(quality: np.ndarray) -> float:
    """Standard error of what the best seed keeps, with other seeds: by the bootstrap."""
    draw, seeds = np.random.default_rng(0), quality.shape[1]
    drawn = [_halves(quality[:, draw.integers(0, seeds, seeds)], 4)[0] for _ in range(REDRAWN)]
    return float(np.std(drawn))


def by_column(outputs: Tensor) -> Tensor:
    """Components of class, seed and interaction of each column of (classes, seeds, k), (3, k)."""
    classes, seeds = outputs.shape[:2]
    row, column, grand = outputs.mean(1), outputs.mean(0), outputs.mean((0, 1))
    rest = (outputs - row[:, None] - column + grand).square().sum((0, 1))
    both = rest / ((classes - 1) * (seeds - 1))
    seed = (column - grand).square().sum(0) * classes / (seeds - 1)
    between = (row - grand).square().sum(0) / (classes - 1) - both / seeds
    seed = (seed - both) / classes
    return torch.stack([between, seed, both])


def _components(outputs: Tensor) -> list[float]:
    """Components of class, seed and interaction, and the intraclass correlation, of (C, S, d)."""
    between, seed, both = by_column(outputs).sum(1).tolist()
    return [between, seed, both, seed / (seed + both)]


def _icc(outputs: Tensor) -> float:
    return _components(outputs)[3]


def crossed_interval(outputs: Tensor, draws: int = DEALT) -> np.ndarray:
    r"""95 % interval of the intraclass correlation over other seeds and other classes, (2,).

    The crossed (pigeonhole) bootstrap: seeds and classes are drawn anew, each with replacement.
    With :math:`G_{cd}` the covariance over seeds of the outputs of two classes, the component of
    the seed is the mean of :math:`G_{cd}` over pairs of different classes, and that of seed and
    interaction the mean of :math:`G_{cc}`; a class that is drawn twice is not compared with itself.

    Args:
        outputs: (classes, seeds, k).
        draws: of the bootstrap.

    Source: Owen 2007, *The pigeonhole bootstrap*, Ann. Appl. Stat. 1.
    """
    classes, seeds = outputs.shape[:2]
    # The interval is that of the seeds in any order.
    z = outputs[:, outputs.mean((0, 2)).argsort()]
    draw = np.random.default_rng(0)
    of_class, of_seed = (
        torch.from_numpy(draw.multinomial(n, np.full(n, 1 / n), draws)).double()
        for n in (classes, seeds)
    )
    several = ((of_class > 0).sum(1) > 1) & ((of_seed > 0).sum(1) > 1)
    w, v = of_class[several], of_seed[several] / seeds
    products = torch.einsum("csk,dsk->scd", z, z).flatten(1)
    means = torch.einsum("bs,csk->bck", v, z)
    gram = (v @ products).reshape(-1, classes, classes) - means @ means.mT
    pairs = w[:, :, None] * w[:, None, :]
    pairs.diagonal(dim1=1, dim2=2).zero_()
    seed = (pairs * gram).sum((1, 2)) / pairs.sum((1, 2))
    both = (w * gram.diagonal(dim1=1, dim2=2)).sum(1) / w.sum(1)
    return central((seed / both.clamp_min(1e-300)).numpy(), 0.05)


# -- what all of them look at ------------------------------------------------------------------


def classes_of(subject: Subject) -> dict[object, Denoiser]:
    """The denoiser of each class: of a model with classes its own; of another the Gaussians with
    the mean and covariance of the data of each label. In float64, a network as it was trained.

    Raises:
        NotImplementedError: fewer than two classes.
    """
    if "classes" in subject.computed:
        return subject.computed["classes"]
    denoiser, data = subject.denoiser, subject.data
    if isinstance(denoiser, Conditional):
        laws = dict(denoiser.classes)
    elif isinstance(denoiser, Neural) and "card" in vars(denoiser) and denoiser.card["classes"]:
        network = denoiser.to(torch.float32)  # as it was trained: in float64 ten times slower
        laws = {label: network.given(label) for label in range(network.card["classes"])}
    else:
        points = data.points.to(denoiser.device, torch.float64)
        chosen = {label: points[data.labels == label] for label in data.labels.unique().tolist()}
        laws = {label: Gaussian.fit(some) for label, some in chosen.items() if len(some) > 1}
    if len(laws) < 2:
        raise NotImplementedError("the data are of one class, so there are none to compare.")
    subject.computed["classes"] = laws
    return laws


def another(subject: Subject, **changes) -> Subject:
    """The same classes in another run: what was computed of this one is left behind, but for them.

    Args:
        changes: of the subject's attributes.
    """
    return replace(subject, computed={"classes": classes_of(subject)}, **changes)


class AffineMaps(NamedTuple):
    """Outputs of Gaussian classes, mean + matrix z + noise, of standard normal starts z.

    Attributes:
        means: (d,) of each class.
        matrices: (d, d) of each class.
        noise: variance that fresh noise leaves, summed over coordinates, mean over classes [x²].
    """

    means: list[Tensor]
    matrices: list[Tensor]
    noise: float


def affine_maps(subject: Subject, stochastic: bool = True) -> AffineMaps | None:
    """What the run's sampler does to the start of a seed in each class, in closed form; None where
    a class is not Gaussian, the sampler not linear, or ``stochastic`` if it may not be, or the
    process spectral or conditioned."""
    if subject.sampler.stochastic and not stochastic:
        return None
    laws, process = list(classes_of(subject).values()), subject.process
    if process.spectral or subject.diffusion.condition is not None or not process.has_prior:
        return None
    if not all(isinstance(law, Gaussian) for law in laws):
        return None
    program = subject.sampler.program(process, subject.grid)
    if not program.linear:
        return None
    means, matrices, noise = [], [], 0.0
    prior_std = float(process.prior_std(subject.grid.t[0]))
    for law in laws:
        twin, basis = law.diagonalised()
        basis = basis.double().cpu()
        modes = transfer(program, twin.variances.double().cpu().expand(law.dim))
        means.append(basis @ (modes.response * (basis.T @ law.mean.double().cpu().flatten())))
        matrices.append((basis * modes.gain * prior_std) @ basis.T)
        noise += modes.noise.sum().item() / len(laws)
    return AffineMaps(means, matrices, noise)


def outputs_by_class(
    subject: Subject, shared: str = "all noise", on_step: OnStep | None = None
) -> Tensor:
    """Final states (classes, seeds, d) of the run's seeds in every class, float64; made once.

    Args:
        shared: what a seed has in common in all classes: ``"all noise"``; ``"the start"`` alone,
            with fresh noise of their own on the way; or ``"nothing"``.

    Raises:
        NotImplementedError: a process without a prior; fewer than two classes.
    """
    check_prior(subject.process, ", so a seed does not start alike in all classes")
    make = lambda: outputs_of(subject, classes_of(subject), shared, on_step)  # noqa: E731
    return subject.once(("outputs", shared), make)


def outputs_of(
    subject: Subject,
    laws: Mapping[object, Denoiser],
    shared: str = "all noise",
    on_step: OnStep | None = None,
) -> Tensor:
    """Final states (classes, seeds, d) of the run's seeds under each of ``laws``, float64."""
    finals = []
    for k, law in enumerate(laws.values()):
        diffusion = Diffusion(subject.process, law, subject.diffusion.condition)
        t, seeds, start = float(subject.grid.t[0]), subject.seeds, None
        if shared != "all noise":
            source = NoiseSource(seeds, law.event_shape, law.dtype, law.device)
            seeds = [(seed + (k + 1) * APART) % MOST for seed in seeds]
            if shared == "the start":
                start = diffusion.from_core(prior_states(diffusion, t, source.start()), t)
        part = part_of(on_step, k, len(laws))
        run = sample(diffusion, subject.sampler, subject.grid, seeds, x=start, on_step=part)
        finals.append(run.final.flatten(1).double().cpu())
    return torch.stack(finals)
