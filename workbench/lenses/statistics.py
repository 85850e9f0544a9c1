r"""Statistics of single samples: what the samples of seeds are compared in.

A statistic turns outputs of several classes into numbers, some of them linear in the output (then
its law follows from that of the outputs), the others judged by the data of each class:

* ``state``, the output itself; ``bands``, its coefficients in rings of spatial frequency by
  octaves; ``principal``, its coordinates along the principal directions of the data;
* ``energy``, the logarithm of its energy in each band; ``fine_energy``, that of the finest detail;
* ``distance`` to the nearest of the data of its class, negative: more is better;
* ``log_density`` under the law of its class, or under the Gaussian of the data of its class where
  that law, as a network's, has none in closed form;
* ``class_probability``: the log-odds of its class, among the Gaussians of the data of all classes;
* ``features``: random features :math:`\tanh(Wy + b)` with fixed weights;
  ``feature_distance``, minus their squared Mahalanobis distance to those of the data of the class,
  the per-sample form of a Fréchet distance on fixed features.

Source of the random features: Rahimi & Recht 2007; of the Fréchet distance: Heusel et al. 2017,
arXiv:1706.08500.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian
from workbench.lenses.frequency import bands_by
from workbench.sampling.bands import rings

if TYPE_CHECKING:
    from workbench.lenses.base import Subject

#: Random features, and principal directions.
FEATURES, DIRECTIONS = 32, 8

#: Noise under which classes are told apart and densities taken where a law has none, in standard
#: deviations of the data.
BLUR = 0.1


class Statistic(NamedTuple):
    """Numbers of each output.

    Attributes:
        values: (classes, seeds, k).
        matrix: (d, k), where they are ``output @ matrix``; None: not linear.
    """

    values: Tensor
    matrix: Tensor | None = None


class Judge(NamedTuple):
    """What outputs are judged by, in float64 on the CPU.

    Attributes:
        event: shape of an output.
        laws: of the classes, in the order of the outputs.
        points: of the data of each class, (n, d); empty where a label has no data.
        subject: for the noise level at which the run ends.
    """

    event: torch.Size
    laws: list[Denoiser]
    points: list[Tensor]
    subject: Subject

    @property
    def all_points(self) -> Tensor:
        return self.subject.data.points.flatten(1).double().cpu()

    def gaussians(self) -> list[Gaussian]:
        """Of the data of each class, blurred so that each has a density."""
        std = max(self.all_points.std(0).mean().item(), 1e-12)
        return [Gaussian.fit(points).noised(1.0, BLUR * std) for points in self.points]


def bands_of(event: torch.Size) -> tuple[list[str], list[Tensor]]:
    """Names of the octaves of frequency and an orthonormal basis (d, k) of each; of a vector every
    coordinate is one, of many coordinates eight runs of them."""
    if len(event) < 2:
        d = math.prod(event)
        eye, runs = torch.eye(d, dtype=torch.float64), torch.arange(d).tensor_split(min(d, 8))
        names = [str(int(r[0])) if len(r) == 1 else f"{int(r[0])}-{int(r[-1])}" for r in runs]
        return names, [eye[:, run] for run in runs]
    _, names, inside = bands_by("octaves", event)
    passed = _passed(event)
    parts = ([p for p, in_it in zip(passed, column, strict=True) if in_it] for column in inside.T)
    return names, [_basis_of(sum(part)) for part in parts]


def _passed(event: torch.Size) -> Tensor:
    """Projections (rings, d, d) of images on their rings of frequency."""
    eye = torch.eye(math.prod(event), dtype=torch.float64).reshape(-1, *event)
    return rings(event).passed(eye).flatten(2)


def _basis_of(projection: Tensor) -> Tensor:
    """An orthonormal basis (d, k) of what a projection (d, d) keeps."""
    values, vectors = torch.linalg.eigh(0.5 * (projection + projection.T))
    return vectors[:, values > 0.5]


def _state(y: Tensor, judge: Judge) -> Statistic:
    return Statistic(y, torch.eye(y.shape[-1], dtype=y.dtype))


def _bands(y: Tensor, judge: Judge) -> Statistic:
    matrix = torch.cat(bands_of(judge.event)[1], 1)
    return Statistic(y @ matrix, matrix)


def _principal(y: Tensor, judge: Judge) -> Statistic:
    points = judge.all_points
    values, vectors = torch.linalg.eigh((points - points.mean(0)).T.cov())
    matrix = vectors[:, values > 0].flip(1)[:, :DIRECTIONS]
    return Statistic(y @ matrix, matrix)


def _energy(y: Tensor, judge: Judge) -> Statistic:
    energies = [(y @ basis).square().mean(-1) for basis in bands_of(judge.event)[1]]
    return Statistic(torch.stack(energies, -1).clamp_min(1e-300).log())


def fine(event: torch.Size) -> Tensor:
    """An orthonormal basis (d, k) of what is finest: of images the frequencies from half of the
    sampling rate on, of vectors the last of their runs."""
    if len(event) < 2:
        return bands_of(event)[1][-1]
    half, labels = min(event[-2:]) / 2, rings(event).labels
    return _basis_of(sum(p for p, k in zip(_passed(event), labels, strict=True) if k >= half))


def _fine_energy(y: Tensor, judge: Judge) -> Statistic:
    energy = (y @ fine(judge.event)).square().mean(-1, keepdim=True)
    return Statistic(energy.clamp_min(1e-300).log())


def _distance(y: Tensor, judge: Judge) -> Statistic:
    judged = [-torch.cdist(one, points).amin(1) for one, points in _with_data(y, judge)]
    return Statistic(torch.stack(judged)[..., None])


def _log_density(y: Tensor, judge: Judge) -> Statistic:
    c = judge.subject.process(float(judge.subject.grid.t[-1]))
    if all(law.closed for law in judge.laws):
        judged = []
        for one, law in zip(y, judge.laws, strict=True):
            states = one.reshape(-1, *law.event_shape).to(law.device, law.dtype)
            judged.append(law.log_prob(states, c.alpha, c.sigma))
    else:  # of a network it would be an integral over all noise levels of exact divergences
        _with_data(y, judge)
        judged = [law.log_prob(one) for one, law in zip(y, judge.gaussians(), strict=True)]
    return Statistic(torch.stack([one.double().cpu() for one in judged])[..., None])


def _class_probability(y: Tensor, judge: Judge) -> Statistic:
    _with_data(y, judge)
    laws = judge.gaussians()
    judged = torch.stack([torch.stack([law.log_prob(one) for law in laws]) for one in y])
    own = torch.eye(len(y), dtype=torch.bool)
    other = judged.masked_fill(own[..., None], -math.inf).logsumexp(1)
    return Statistic((judged[own] - other)[..., None])


def _features(y: Tensor, judge: Judge) -> Statistic:
    return Statistic(random_features(judge.all_points)(y))


def _feature_distance(y: Tensor, judge: Judge) -> Statistic:
    features, judged = random_features(judge.all_points), []
    for one, points in _with_data(y, judge):
        law, known = features(one), features(points)
        centred = known - known.mean(0)
        cov = centred.T @ centred / len(known)
        cov += 1e-3 * cov.trace() / FEATURES * torch.eye(FEATURES).to(cov)
        away = law - known.mean(0)
        judged.append(-(away * torch.linalg.solve(cov, away.T).T).sum(1))
    return Statistic(torch.stack(judged)[..., None])


def random_features(points: Tensor) -> Callable[[Tensor], Tensor]:
    """Random features (n, 32) of states (n, d) in standard deviations of data points (N, d)."""
    generator = torch.Generator().manual_seed(0)
    d, scale = points.shape[1], points.std().clamp_min(1e-12)
    matrix = torch.randn(d, FEATURES, generator=generator, dtype=torch.float64) / math.sqrt(d)
    offset = torch.randn(FEATURES, generator=generator, dtype=torch.float64)
    return lambda y: torch.tanh((y - points.mean(0)) / scale @ matrix + offset)


def _with_data(y: Tensor, judge: Judge) -> list[tuple[Tensor, Tensor]]:
    for label, points in enumerate(judge.points):
        if len(points) < 2:
            raise NotImplementedError(
                f"class {label} has {len(points)} data points, and samples are judged by two or "
                "more of each class; take data of these classes."
            )
    return list(zip(y, judge.points, strict=True))


#: Every statistic by name.
STATISTICS: dict[str, Callable[[Tensor, Judge], Statistic]] = {
    "state": _state,
    "bands": _bands,
    "principal": _principal,
    "energy": _energy,
    "fine_energy": _fine_energy,
    "distance": _distance,
    "log_density": _log_density,
    "class_probability": _class_probability,
    "features": _features,
    "feature_distance": _feature_distance,
}

#: Those of one number, of which more is better.
QUALITIES = ("distance", "log_density", "class_probability", "feature_distance")


def statistic(
    name: str, outputs: Tensor, laws: Mapping[object, Denoiser], subject: Subject
) -> Statistic:
    """A statistic of the outputs (classes, seeds, d) of each class.

    Args:
        laws: by label, in the order of the outputs.

    Raises:
        NotImplementedError: a class without data where it is judged by them.
    """
    data = subject.data
    points = data.points.flatten(1).double().cpu()
    labels = None if data.labels is None else data.labels.cpu()
    each = [points[:0] if labels is None else points[labels == label] for label in laws]
    event = next(iter(laws.values())).event_shape
    return STATISTICS[name](outputs, Judge(event, list(laws.values()), each, subject))
