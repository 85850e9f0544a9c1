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

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.covariance import completed
from workbench.denoisers import Denoiser, Gaussian
from workbench.denoisers.conditional import Conditional
from workbench.denoisers.neural import Neural
from workbench.diffusion import Diffusion
from workbench.exact.seeds import components
from workbench.exact.transfer import transfer
from workbench.lenses.base import Lens, OnStep, Subject, remembered
from workbench.params import Param
from workbench.sampling import NoiseSource
from workbench.trajectory import prior_states, sample

__all__ = ["Golden", "Identification", "Seeds", "classes_of", "outputs_by_class"]

#: Groups of seeds of which each is left out once, for standard errors.
GROUPS = 20

#: How often the seeds of each class are dealt anew, for a null band; drawn anew, for an error.
DEALT, REDRAWN = 200, 60

PARTS = ("class", "seed", "interaction")

#: What a seed may have in common in all classes.
SHARED = ("all noise", "the start", "nothing")

#: How far the seeds of one class are from those of the next where they share nothing, and the
#: numbers that seeds go up to.
APART, MOST = 0x9E3779B97F4A7C15, 1 << 63

#: Directions with less than this share of the largest variance say nothing of a seed.
WHITENED = 1e-2


@dataclass(frozen=True)
class Seeds(Lens):
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

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 1024 * self.samples * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        outputs = outputs_by_class(subject, on_step=on_step)
        groups = torch.arange(outputs.shape[1]) % min(GROUPS, outputs.shape[1])
        count = int(groups.max()) + 1
        whole = _components(outputs)
        left = np.array([_components(outputs[:, groups != g]) for g in range(count)])
        error = np.sqrt((count - 1) * left.var(0))
        about = {"long_name": "component of the variance of the outputs", "units": "x^2"}
        icc = {"long_name": "share of the seed in the variance within classes", "units": "1"}
        return xr.Dataset(
            {
                "variance": ("part", whole[:3], about),
                "variance_se": ("part", error[:3], {"units": "x^2"}),
                "icc": ((), whole[3], icc),
                "icc_se": ((), error[3], {"units": "1"}),
            },
            {"part": list(PARTS)},
            {"classes": len(outputs)},
        )

    def exact(self, subject: Subject) -> xr.Dataset | None:
        laws, process = list(classes_of(subject).values()), subject.process
        sampler, grid = subject.sampler, subject.grid
        if sampler.stochastic or process.spectral or subject.diffusion.condition is not None:
            return None
        if not all(isinstance(law, Gaussian) for law in laws):
            return None
        program = sampler.program(process, grid)
        if not program.linear:
            return None
        means, matrices = [], []
        for law in laws:
            basis = None if law.basis is None else law.basis.double()
            basis, variances = completed(basis, law.variances.double(), law.rest)
            map_ = transfer(program, variances)
            basis = torch.eye(law.dim).to(variances) if basis is None else basis
            means.append(basis @ (map_.response * (basis.T @ law.mean.double().flatten())))
            gain = map_.gain * float(process.prior_std(grid.t[0]))
            matrices.append((basis * gain) @ basis.T)
        found = components(means, matrices)
        return xr.Dataset({"variance": ("part", np.array(found[:3])), "icc": ((), found.icc)})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        outputs, generator = outputs_by_class(subject), torch.Generator().manual_seed(0)
        dealt = []
        for _ in range(DEALT):
            order = [torch.randperm(outputs.shape[1], generator=generator) for _ in outputs]
            dealt.append(
                _components(torch.stack([y[o] for y, o in zip(outputs, order, strict=True)]))[3]
            )
        band = np.quantile(dealt, [level / 2, 1 - level / 2])
        return xr.Dataset({"icc": ("bound", band)})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        parts = dataset["variance"].values
        shares = np.clip(parts, 0, None) / np.clip(parts, 0, None).sum()
        said = ", ".join(f"{share:.0%} {name}" for name, share in zip(PARTS, shares, strict=True))
        icc, high = float(dataset["icc"]), float(dataset["icc_null"].values[1])
        seen = "more than chance" if icc > high else "no more than chance"
        return [
            f"Of the outputs' variance over {dataset.attrs['classes']} classes and the seeds: "
            f"{said}. Within classes a seed decides {icc:.0%}, {seen}."
        ]


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
        error = by_seed.std(1, ddof=1) / np.sqrt(by_seed.shape[1])
        about = {"long_name": "seeds told from outputs of other classes", "units": "1"}
        trained, tested = next(iter(told.values())).classes
        return xr.Dataset(
            {
                "accuracy": ("shared", by_seed.mean(1), about),
                "accuracy_se": ("shared", error, {"units": "1"}),
            },
            {"shared": list(told)},
            {"trained": trained, "tested": tested, "seeds": by_seed.shape[1]},
        )

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """Of seeds dealt anew in each class that is tried: what was named meets another seed."""
        draw, bands = np.random.default_rng(0), []
        for one in self._told(subject).values():
            dealt = [
                np.mean(
                    [np.mean(draw.permutation(row) == np.arange(len(row))) for row in one.named]
                )
                for _ in range(DEALT)
            ]
            bands.append(np.quantile(dealt, [level / 2, 1 - level / 2]))
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

    @remembered
    def _told(self, subject: Subject, on_step: OnStep | None) -> dict[str, _Named]:
        shares, found = SHARED if subject.sampler.stochastic else (SHARED[0], SHARED[2]), {}
        for k, shared in enumerate(shares):
            part = None if on_step is None else _part(on_step, k, len(shares))
            found[shared] = _named(outputs_by_class(subject, shared, part))
        return found


class _Named(NamedTuple):
    """Seeds as named, (classes tried, seeds), and the numbers of classes to learn from and try."""

    named: np.ndarray
    classes: tuple[int, int]


def _part(on_step: OnStep, k: int, count: int) -> OnStep:
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

    The quality of an output is its log-density under the law of its class, or minus its distance
    to the nearest of the data of its class; in each class it is taken in standard deviations about
    the mean over seeds. ``best`` is the highest mean quality of a seed over the classes, and its
    null band that of the seeds of each class dealt anew; ``p`` the share of deals in which the best
    seed is as good. ``kept``: what is left of the best seed of one half of the classes in the other
    half, where nothing was chosen. ``rank``: Spearman's correlation of the seeds' qualities in the
    two halves. Both over many halvings.
    """

    samples: Annotated[int, Param("how many seeds it looks at", ge=8, le=100_000)] = 128
    quality: Annotated[Literal["distance", "log_density"], Param("what is called good")] = (
        "distance"
    )

    reads = ("final", "labels")

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 1024 * self.samples * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        quality = self.qualities(subject, on_step)
        kept, rank = _halves(quality)
        found = {"best": quality.mean(0).max(), "kept": kept, "rank": rank}
        found["p"] = chance_of_best(quality)
        left = np.array([_halves(np.delete(quality, k, 1), 8)[1] for k in _groups(quality)])
        rank_error = np.sqrt((len(left) - 1) * left.var())
        about = {
            "best": ("mean quality of the best seed", "standard deviations"),
            "kept": ("quality of the best seed of other classes", "standard deviations"),
            "rank": ("rank correlation of seeds between classes", "1"),
            "p": ("share of chance deals with as good a best seed", "1"),
        }
        variables = {
            name: ((), value, dict(zip(("long_name", "units"), about[name], strict=True)))
            for name, value in found.items()
        }
        for name, value in (("kept", _error_of_kept(quality)), ("rank", rank_error)):
            variables[f"{name}_se"] = ((), value, {"units": about[name][1]})
        return xr.Dataset(
            variables,
            attrs={"classes": len(quality), "seeds": quality.shape[1], "of": self.quality},
        )

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        quality, draw = self.qualities(subject), np.random.default_rng(0)
        dealt = [draw.permuted(quality, axis=1) for _ in range(DEALT)]
        best = [one.mean(0).max() for one in dealt]
        halves = np.array([_halves(one, 4) for one in dealt])
        tails = [level / 2, 1 - level / 2]
        bands = {"best": np.quantile(best, tails)}
        bands |= {
            "kept": np.quantile(halves[:, 0], tails),
            "rank": np.quantile(halves[:, 1], tails),
        }
        return xr.Dataset({name: ("bound", band) for name, band in bands.items()})

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
        outputs, data, rows = outputs_by_class(subject, on_step=on_step), subject.data, []
        for (label, law), y in zip(classes_of(subject).items(), outputs, strict=True):
            if self.quality == "log_density":
                value = _log_density(law, y, subject)
            else:
                points = data.points[data.labels == label].flatten(1).double().cpu()
                value = -torch.cdist(y, points).amin(1)
            rows.append((value - value.mean()) / value.std())
        return torch.stack(rows).numpy()


def _log_density(law: Denoiser, y: Tensor, subject: Subject) -> Tensor:
    """Of outputs (n, d) under the law of their class where the run ends."""
    c = subject.process(float(subject.grid.t[-1]))
    x = y.reshape(-1, *law.event_shape).to(law.device, law.dtype)
    try:
        return law.log_prob(x, c.alpha, c.sigma).double().cpu()
    except (NotImplementedError, ValueError) as error:
        raise NotImplementedError(f"{error} Take quality='distance'.") from None


def chance_of_best(quality: np.ndarray, deals: int = DEALT, seed: int = 0) -> float:
    """Probability that the best of the columns is as good by chance alone, by permutation.

    Args:
        quality: (classes, seeds), in standard deviations about the mean of each class.
        deals: how often the seeds of each class are dealt anew.
    """
    quality = quality[:, quality.mean(0).argsort()]  # the answer is of the seeds in any order
    dealt = np.random.default_rng(seed).permuted(np.tile(quality, (deals, 1, 1)), axis=2)
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


def _groups(quality: np.ndarray) -> list[np.ndarray]:
    """Seeds in groups of which each is left out once."""
    return np.array_split(np.arange(quality.shape[1]), min(GROUPS, quality.shape[1]))


def _components(outputs: Tensor) -> list[float]:
    """Components of class, seed and interaction, and the intraclass correlation, of (C, S, d)."""
    classes, seeds = outputs.shape[:2]
    row, column, grand = outputs.mean(1), outputs.mean(0), outputs.mean((0, 1))
    rest = (outputs - row[:, None] - column + grand).square().sum().item()
    both = rest / ((classes - 1) * (seeds - 1))
    seed = (column - grand).square().sum().item() * classes / (seeds - 1)
    between = (row - grand).square().sum().item() / (classes - 1) - both / seeds
    seed = (seed - both) / classes
    return [between, seed, both, seed / (seed + both)]


# -- what all of them look at ------------------------------------------------------------------


def classes_of(subject: Subject) -> dict[object, Denoiser]:
    """The denoiser of each class: of a model with classes its own; of another the Gaussians with
    the mean and covariance of the data of each label. In float64, a network as it is.

    Raises:
        NotImplementedError: fewer than two classes.
    """
    denoiser, data = subject.denoiser, subject.data
    if isinstance(denoiser, Conditional):
        laws = dict(denoiser.classes)
    elif isinstance(denoiser, Neural) and "card" in vars(denoiser) and denoiser.card["classes"]:
        laws = {label: denoiser.given(label) for label in range(denoiser.card["classes"])}
    else:
        points = data.points.to(denoiser.device, torch.float64)
        chosen = {label: points[data.labels == label] for label in data.labels.unique().tolist()}
        laws = {label: Gaussian.fit(some) for label, some in chosen.items() if len(some) > 1}
    if len(laws) < 2:
        raise NotImplementedError("the data are of one class, so there are none to compare.")
    return laws


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
    if not subject.process.has_prior:
        raise NotImplementedError(
            f"{subject.process!r} has no prior, so a seed does not start alike in all classes; "
            "take another process."
        )
    if ("outputs", shared) in subject.computed:
        return subject.computed["outputs", shared]
    finals, laws = [], classes_of(subject)
    for k, law in enumerate(laws.values()):
        diffusion = Diffusion(subject.process, law, subject.diffusion.condition)
        t, seeds, start = float(subject.grid.t[0]), subject.seeds, None
        if shared != "all noise":
            source = NoiseSource(seeds, law.event_shape, law.dtype, law.device)
            seeds = [(seed + (k + 1) * APART) % MOST for seed in seeds]
            if shared == "the start":
                start = diffusion.from_core(prior_states(diffusion, t, source.start()), t)
        run = sample(diffusion, subject.sampler, subject.grid, seeds, x=start)
        finals.append(run.final.flatten(1).double().cpu())
        if on_step is not None:
            on_step(len(finals), len(laws))
    return subject.computed.setdefault(("outputs", shared), torch.stack(finals))
