r"""Do seeds keep their rank: across samplers, step counts, networks and retraining?

The same seeds are run in every class under variants of the run: half as many steps, other samplers,
fresh noise of the seed's own; other models of the same data; and models of two halves of the data
that share none of it. A seed's score is the mean over classes of one number of its samples, and of
each variant the rank correlations of its scores with those of the run itself are given: Spearman's
and Kendall's (tau-b), with bootstrap intervals over seeds.

Ranks within a bootstrap sample follow from the signs of the differences between scores. With
:math:`s_{ij} = \operatorname{sgn}(x_i - x_j)` and the weights :math:`v` of the seeds

.. math:: r_i = \sum_j v_j s_{ij}, \qquad
          \tau = \frac{\sum_{ij} v_i v_j s^x_{ij} s^y_{ij}}
                 {\sqrt{\sum_{ij} v_i v_j |s^x_{ij}| \sum_{ij} v_i v_j |s^y_{ij}|}} .

Sources: Kendall 1938, Biometrika 30; Xu et al. 2024, arXiv:2405.14828 (the question).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Denoiser, Empirical, Gaussian, checkpoints
from workbench.denoisers.neural import Neural
from workbench.lenses.base import BOUNDS, Lens, OnStep, Subject, estimate, remembered
from workbench.lenses.errors import central, mean_error
from workbench.lenses.retention import halves_of
from workbench.lenses.seeds import another, classes_of, outputs_of, part_of
from workbench.lenses.statistics import QUALITIES, statistic
from workbench.params import Param
from workbench.sampling import Grid, Sampler
from workbench.sampling.methods import DDIM, DPMSolverPP, EulerMaruyama, Heun

#: Draws of the bootstrap, and deals of the null band.
DRAWN, DEALT = 100, 100

#: The run itself.
ITSELF = "this run"

SCORES = ("fine_energy", *QUALITIES)


class Variant(NamedTuple):
    """One way of running the seeds: a model of each class by label, a sampler and a grid."""

    laws: Mapping[object, Denoiser]
    sampler: Sampler
    grid: Grid


class RankCorrelation(NamedTuple):
    """Rank correlation of two scores: value, standard error and interval (low, high)."""

    value: float
    error: float
    interval: tuple[float, float]


def rank_correlation(
    one: np.ndarray, other: np.ndarray, draws: int = DRAWN
) -> tuple[RankCorrelation, RankCorrelation]:
    """Spearman's and Kendall's rank correlation (tau-b) of two scores of the same seeds, with 95 %
    intervals.

    Args:
        one, other: (seeds,).
        draws: of the bootstrap over seeds.

    Raises:
        ValueError: fewer than three seeds, or two numbers of them.
    """
    one, other = np.asarray(one, float), np.asarray(other, float)
    if one.shape != other.shape or one.ndim != 1 or len(one) < 3:
        raise ValueError(
            f"the scores have shapes {one.shape} and {other.shape}; a rank correlation needs one "
            "number for each of three or more seeds, of the same seeds in both."
        )
    order = np.lexsort((other, one))  # the answer is of the seeds in any order
    a, b = (np.sign(x[order][:, None] - x[order]) for x in (one, other))
    count = len(one)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), draws)
    weights = np.vstack([np.ones(count), drawn]).astype(float)

    def paired(values: np.ndarray) -> np.ndarray:
        return np.einsum("bi,bi->b", weights @ values, weights)

    ranks = [weights @ s.T for s in (a, b)]
    inside = [r - (weights * r).sum(1, keepdims=True) / count for r in ranks]
    cross = (weights * inside[0] * inside[1]).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        spearman = cross / np.sqrt(np.prod([(weights * r**2).sum(1) for r in inside], 0))
        kendall = paired(a * b) / np.sqrt(paired(np.abs(a)) * paired(np.abs(b)))
    found = []
    for values in (np.nan_to_num(spearman), np.nan_to_num(kendall)):
        low, high = central(values[1:], 0.05).tolist()
        found.append(RankCorrelation(values[0].item(), values[1:].std().item(), (low, high)))
    return tuple(found)


def variants_of(subject: Subject) -> tuple[dict[str, Variant], list[str]]:
    """Variants of the run by name, the run itself first; and why some are missing.

    Models are those of the same classes: one Gaussian for each, the data of each, the network that
    ships for these data; and of each half of the data the run's own kind of model.
    """
    return subject.once("variants", lambda: _variants(subject))


def _variants(subject: Subject) -> tuple[dict[str, Variant], list[str]]:
    laws, sampler, grid = classes_of(subject), subject.sampler, subject.grid
    found, absent = {ITSELF: Variant(laws, sampler, grid)}, []
    try:
        fewer = grid.of_steps(subject.process, max(1, grid.steps // 2))
        found[f"{fewer.steps} steps"] = Variant(laws, sampler, fewer)
    except NotImplementedError as error:
        absent.append(str(error))
    for name, other in (("Heun", Heun()), ("DDIM", DDIM()), ("DPM++", DPMSolverPP())):
        if type(other) is not type(sampler):
            found[name] = Variant(laws, other, grid)
    if not sampler.stochastic:
        found["SDE"] = Variant(laws, EulerMaruyama(), grid)
    first, data = next(iter(laws.values())), subject.data
    points, labels = data.points.double(), data.labels
    each = {label: points[labels == label] for label in laws}
    if min(map(len, each.values())) < 4:
        absent.append("there are fewer than 4 data points in a class, so there are no other models")
        return found, absent

    def made(kind: Callable[[Tensor], Denoiser], part=slice(None)) -> Mapping:
        return {label: kind(some[part]) for label, some in each.items()}

    if not isinstance(first, Gaussian):
        found["Gaussians"] = Variant(made(Gaussian.fit), sampler, grid)
    if not isinstance(first, Empirical):
        found["the data"] = Variant(made(Empirical), sampler, grid)
    if not isinstance(first, Neural):
        if data.name in checkpoints.shipped():
            network = Neural.from_data(data)
            if set(laws) <= set(range(network.card["classes"])):
                given = {label: network.given(label) for label in laws}
                found["network"] = Variant(given, sampler, grid)
            else:
                absent.append(f"the network of {data.name} knows no classes")
        else:
            absent.append(f"no network of {data.name} ships")
    try:
        if isinstance(first, Neural):
            whole = halves_of(first, data)
            pairs = {label: [one.given(label) for one in whole] for label in laws}
        else:
            pairs = {label: halves_of(law, data, only=label) for label, law in laws.items()}
        for k, name in enumerate(("first half", "second half")):
            halves = {label: pair[k] for label, pair in pairs.items()}
            found[name] = Variant(halves, sampler, grid)
    except NotImplementedError as error:
        absent.append(str(error).rstrip("."))
    return found, absent


@dataclass(frozen=True)
class Ranks(Lens):
    """Do seeds keep their rank across samplers, step counts, networks and retraining?

    ``spearman`` and ``kendall`` along ``variant``: rank correlation of the scores of the seeds with
    those of the run itself; with intervals of 95 %, from the bootstrap over seeds. ``cosine``: mean
    over classes and seeds of the cosine of their samples, about the mean of each class. The null
    bands: the seeds dealt anew. The variant ``halves``: models of two halves of the data with each
    other.
    """

    samples: Annotated[int, Param("how many seeds it looks at", ge=8, le=2048)] = 64
    score: Annotated[Literal[SCORES], Param("what seeds are ranked by")] = "fine_energy"

    reads = ("final", "labels")

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 4096 * self.samples * dim + 256 * self.samples**2

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        scores, outputs, absent = self.scores(subject, on_step)
        pairs = _pairs(scores)
        measured = [rank_correlation(*pair) for pair in pairs.values()]
        variables = {}
        for k, name in enumerate(("spearman", "kendall")):
            each = [one[k] for one in measured]
            about = f"{name.capitalize()}'s rank correlation of the seeds' scores"
            value, error, interval = zip(*each, strict=True)
            variables |= estimate(name, "variant", list(value), about, error=list(error))
            text = f"{about}, 95 % interval"
            variables |= estimate(f"{name}_interval", ("variant", "end"), list(interval), text)
        cosines = [_cosines(*pair).mean(0).cpu().numpy() for pair in _pairs(outputs).values()]
        about = "mean cosine of the samples of a seed with those of the run itself"
        mean, spread = ([of(c) for c in cosines] for of in (np.mean, mean_error))
        variables |= estimate("cosine", "variant", mean, about, error=spread)
        return xr.Dataset(
            variables,
            {"variant": list(pairs), "end": list(BOUNDS)},
            {"score": self.score, "absent": "; ".join(absent)},
        )

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        """Of seeds dealt anew."""
        draw, bands = np.random.default_rng(0), {"spearman": [], "kendall": [], "cosine": []}
        scores, outputs, _ = self.scores(subject)
        for one, other in _pairs(scores).values():
            a, b = (np.sign(x[:, None] - x) for x in (one, other))
            ranks = [s.sum(1) for s in (a, b)]
            norm = max(np.sqrt(np.prod([(r**2).sum() for r in ranks])), 1e-300)
            size = max(np.sqrt(np.prod([np.abs(s).sum() for s in (a, b)])), 1e-300)
            dealt = [draw.permutation(len(one)) for _ in range(DEALT)]
            spearman = [(ranks[0] * ranks[1][o]).sum() / norm for o in dealt]
            bands["spearman"].append(central(spearman, level))
            bands["kendall"].append(central([(a * b[o][:, o]).sum() / size for o in dealt], level))
        for one, other in _pairs(outputs).values():
            dealt = (torch.from_numpy(draw.permutation(one.shape[1])) for _ in range(DEALT))
            means = [_cosines(one, other[:, order]).mean().item() for order in dealt]
            bands["cosine"].append(central(means, level))
        return xr.Dataset({name: (("variant", "bound"), band) for name, band in bands.items()})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        rank, high = dataset["spearman"], dataset["spearman_null"].sel(bound="high")
        kept = dataset["variant"].values[(rank > high).values]
        lost = dataset["variant"].values[(rank <= high).values]
        score = dataset.attrs["score"].replace("_", " ")
        said = [
            f"Ranked by {score}, the seeds keep their order beyond chance under "
            f"{', '.join(kept) or 'none of the variants'}"
            + (f"; not under {', '.join(lost)}." if len(lost) else ".")
        ]
        worst = dataset.isel(variant=int(rank.values.argmin()))
        low, top = worst["spearman_interval"].values
        said.append(
            f"They agree least under {worst['variant'].item()}: Spearman "
            f"{float(worst['spearman']):.2f} [{low:.2f}, {top:.2f}], Kendall "
            f"{float(worst['kendall']):.2f}."
        )
        if dataset.attrs["absent"]:
            said.append(f"Left out: {dataset.attrs['absent']}.")
        return said

    @remembered
    def scores(
        self, subject: Subject, on_step: OnStep | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Tensor], list[str]]:
        """Score (seeds,) and outputs (classes, seeds, d) of each variant; why some are missing."""
        variants, absent = variants_of(subject)
        found, made = {}, {}
        for k, (name, variant) in enumerate(variants.items()):
            part = part_of(on_step, k, len(variants))
            made[name] = outputs = outputs_under(subject, name, variant, part)
            value = statistic(self.score, outputs, variant.laws, subject).values[..., 0]
            found[name] = value.mean(0).numpy()
        return found, made, absent


def outputs_under(
    subject: Subject, name: str, variant: Variant, on_step: OnStep | None = None
) -> Tensor:
    """Final states (classes, seeds, d) of the run's seeds under a variant of the run; made once."""
    if name == ITSELF and ("outputs", "all noise") in subject.computed:
        return subject.computed["outputs", "all noise"]
    under = another(subject, sampler=variant.sampler, grid=variant.grid)
    make = partial(outputs_of, under, variant.laws, on_step=on_step)
    return subject.once(("under", name), make)


def _cosines(one: Tensor, other: Tensor) -> Tensor:
    """Cosines (classes, seeds) of outputs about the mean of their class."""
    a, b = (y - y.mean(1, keepdim=True) for y in (one, other))
    return torch.nn.functional.cosine_similarity(a, b, dim=2)


def _pairs(scores: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What is compared: each variant with the run itself, and the two halves with each other."""
    own = scores[ITSELF]
    found = {name: (own, score) for name, score in scores.items() if name != ITSELF}
    if "first half" in scores:
        found["halves"] = scores["first half"], scores["second half"]
    return found
