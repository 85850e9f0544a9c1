r"""Seed surgery: what part of the initial noise carries what part of the sample.

The initial noise z of a seed, in standard deviations of the prior, is changed and run again. Each
change leaves independent standard normals standard normal, so that a run of it is a run of some
seed:

* :func:`transplanted` puts a part of a donor's noise into a receiver's, :math:`z + P(z' - z)` with
  P the projection on a patch of pixels or on a band of spatial frequencies;
* :func:`interpolated` goes along the great circle between two noises; :func:`rotated` turns one in
  the plane it spans with another, :math:`\cos\theta\,z + \sin\theta\,z'`;
* :func:`averaged` is :math:`n^{-1/2}\sum_i z_i`;
* :func:`sought` is the noise whose samples come closest to targets, of several models at once: an
  optimal boundary condition.

Of Gaussian data under a linear sampler the output is :math:`m + Az`, so a transplant changes it by
:math:`AP(z' - z)`: of its energy the share :math:`\|QAP\|_F^2/\|AP\|_F^2` lies in a part Q; and the
noise sought for the targets :math:`y_c` is the ridge regression

.. math:: z = \Bigl(\sum_c A_c^\top A_c + \mu I\Bigr)^{-1} \sum_c A_c^\top (y_c - m_c) .

Sources: Shoemake 1985, *Animating rotation with quaternion curves* (the great circle), used for
initial noise by Song, Meng & Ermon 2021, arXiv:2010.02502; the closed forms are derived here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.diffusion import Diffusion
from workbench.lenses.base import Lens, OnStep, Subject, estimate, remembered
from workbench.lenses.checks import check_prior
from workbench.lenses.errors import central
from workbench.lenses.seeds import affine_maps, classes_of
from workbench.lenses.statistics import bands_of
from workbench.params import Param
from workbench.sampling import Grid, NoiseSource, Sampler
from workbench.trajectory import prior_states, sample

#: Draws of the bootstrap.
DRAWN = 200


def patch(event: Sequence[int], rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Projection (d, d) on the pixels of the rows and columns from the first to before the last.

    Raises:
        ValueError: no image, or a patch that is empty or not within it.
    """
    event = torch.Size(event)
    if len(event) < 2:
        raise ValueError(f"the samples have shape {tuple(event)}; a patch needs images.")
    height, width = event[-2:]
    for name, (low, high), size in (("rows", rows, height), ("columns", columns, width)):
        if not 0 <= low < high <= size:
            raise ValueError(
                f"the {name} of the patch were {low} to {high}; they must lie within 0 to {size}, "
                "the first before the last."
            )
    inside = torch.zeros(event, dtype=torch.float64)
    inside[..., rows[0] : rows[1], columns[0] : columns[1]] = 1
    return torch.diag(inside.flatten())


def band(event: Sequence[int], name: str) -> Tensor:
    """Projection (d, d) on a band of :func:`workbench.lenses.statistics.bands_of`, by its name.

    Raises:
        ValueError: no band of that name, with those there are.
    """
    names, bases = bands_of(torch.Size(event))
    if name not in names:
        raise ValueError(f"there is no band {name!r}; there are {', '.join(names)}.")
    basis = bases[names.index(name)]
    return basis @ basis.T


def transplanted(receiver: Tensor, donor: Tensor, part: Tensor) -> Tensor:
    """The receiver's noise with the donor's in a part of it.

    Args:
        receiver, donor: (n, *event).
        part: projection (d, d), of :func:`patch` or :func:`band`.
    """
    change = (donor - receiver).flatten(1) @ part.to(receiver).T
    return receiver + change.reshape(receiver.shape)


def interpolated(one: Tensor, other: Tensor, weight: float) -> Tensor:
    r"""Along the great circle from one noise (weight 0) to another (weight 1).

    .. math:: \frac{\sin((1-w)\theta)}{\sin\theta}\,z + \frac{\sin(w\theta)}{\sin\theta}\,z',\qquad
              \cos\theta = \frac{z\cdot z'}{\|z\|\,\|z'\|}

    Args:
        one, other: (n, *event).
    """
    a, b = one.flatten(1), other.flatten(1)
    cosine = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-300)
    angle = cosine.clamp(-1, 1).arccos()[:, None]
    sine = angle.sin()
    straight = sine.abs() < 1e-6  # the same direction
    safe = torch.where(straight, torch.ones_like(sine), sine)
    left = torch.where(straight, 1 - weight, ((1 - weight) * angle).sin() / safe)
    right = torch.where(straight, torch.full_like(sine, weight), (weight * angle).sin() / safe)
    return (left * a + right * b).reshape(one.shape)


def rotated(one: Tensor, other: Tensor, angle: float) -> Tensor:
    """cos(angle) one + sin(angle) other: standard normal at each angle [radians]."""
    return math.cos(angle) * one + math.sin(angle) * other


def averaged(noises: Tensor) -> Tensor:
    """The sum of n noises (n, *event) over the root of n, (1, *event): a standard normal."""
    return noises.sum(0, keepdim=True) / math.sqrt(len(noises))


def noise_of(diffusion: Diffusion, seeds: Sequence[int]) -> Tensor:
    """Initial noise (n, *event) of seeds, in standard deviations of the prior."""
    source = NoiseSource(seeds, diffusion.event_shape, diffusion.dtype, diffusion.device)
    return source.start()


def outcome(
    diffusion: Diffusion,
    sampler: Sampler,
    grid: Grid,
    noise: Tensor,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """The samples (n, *event) that an initial noise (n, *event) ends in.

    Args:
        noise: in standard deviations of the prior.
        seeds: of the fresh noise of a stochastic sampler; None: 0, 1, ...
    """
    t = float(grid.t[0])
    start = diffusion.from_core(prior_states(diffusion, t, noise.to(diffusion.dtype)), t)
    seeds = range(len(noise)) if seeds is None else seeds
    return sample(diffusion, sampler, grid, seeds, x=start).final


class Sought(NamedTuple):
    """What :func:`sought` leaves.

    Attributes:
        noise: (1, *event), in standard deviations of the prior.
        outcomes: its samples, one for each model, (models, *event).
        distance: root mean square of what is left to the targets, in the units of the data.
        evaluations: of all models together, forward and backward.
    """

    noise: Tensor
    outcomes: Tensor
    distance: float
    evaluations: int


def sought(
    diffusions: Sequence[Diffusion],
    sampler: Sampler,
    grid: Grid,
    targets: Tensor,
    weight: float = 1e-3,
    start: Tensor | None = None,
    most: int = 100,
    on_step: OnStep | None = None,
) -> Sought:
    r"""The noise whose samples under several models come closest to targets, from the prior.

    The minimum of :math:`\sum_c \|x_c(z) - y_c\|^2 + \mu\|z\|^2` by L-BFGS through the sampler's
    own steps.

    Args:
        diffusions: one for each target: of several classes, what is sought suits all of them.
        targets: (models, *event).
        weight: mu, of the prior.
        start: (1, *event) where the search begins; None: at 0, the mode of the prior.
        most: iterations at most.

    Raises:
        ValueError: a stochastic sampler, or another number of targets than of models.
    """
    if sampler.stochastic:
        raise ValueError(
            f"{sampler!r} draws fresh noise, so no initial noise leads to a target; take a "
            "deterministic sampler."
        )
    if len(targets) != len(diffusions):
        raise ValueError(
            f"there are {len(targets)} targets and {len(diffusions)} models; give one each."
        )
    from scipy.optimize import minimize

    shape, t, count = (1, *diffusions[0].event_shape), float(grid.t[0]), 0

    def ends(z: Tensor) -> Tensor:
        finals = []
        for diffusion in diffusions:
            like = z.to(diffusion.dtype)
            x = diffusion.from_core(prior_states(diffusion, t, like), t)
            run = sample(diffusion, sampler, grid, [0], x=x)
            nonlocal count
            count += run.nfe
            finals.append(run.final.double())
        return torch.cat(finals)

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        z = torch.from_numpy(flat.copy()).reshape(shape).requires_grad_()
        with torch.enable_grad():
            value = (ends(z) - targets.double()).square().sum() + weight * z.square().sum()
        (slope,) = torch.autograd.grad(value, z)
        return value.item(), slope.flatten().numpy()

    done = 0

    def told(_) -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(min(done, most), most)

    begin = torch.zeros(shape) if start is None else start
    found = minimize(
        loss,
        begin.double().flatten().numpy(),
        jac=True,
        method="L-BFGS-B",
        callback=told,
        options={"maxiter": most, "maxcor": 20, "ftol": 1e-12, "gtol": 1e-9},
    )
    z = torch.from_numpy(found.x).reshape(shape)
    with torch.no_grad():
        outcomes = ends(z)
    left = (outcomes - targets.double()).square().mean().sqrt().item()
    return Sought(z, outcomes, left, count)


@dataclass(frozen=True)
class Surgery(Lens):
    """Which part of the initial noise carries which part of the sample?

    A band of each seed's noise is replaced by that of the next seed, in every class: bands of
    spatial frequency of images, coordinates of vectors. ``moved`` along ``band``: the energy by
    which the output changes, over that of replacing all of the noise. ``inside``: the share of it
    that lies in the same band of the output; 1 where a band of the noise decides that band of the
    sample and nothing else. The null band: the share of that band where all of the noise is
    replaced, so that the change is of no band's making.
    """

    samples: Annotated[int, Param("how many seeds it looks at", ge=8, le=4096)] = 64

    reads = ("final", "labels")
    bytes_each = 1024

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        names, changed, whole = self._changed(subject, on_step)
        energy = changed.sum(2)  # (bands, seeds)
        own = torch.stack([one[:, k] for k, one in enumerate(changed)])
        total = whole.sum(1)
        inside, error = _ratios(own, energy)
        about = "share of the change in the band that was transplanted"
        variables = estimate("inside", "band", inside, about, error=error)
        moved, error = _ratios(energy, total.expand_as(energy))
        about = "change of the output over that of a whole transplant"
        variables |= estimate("moved", "band", moved, about, error=error)
        return xr.Dataset(variables, {"band": names}, {"seeds": len(whole)})

    def exact(self, subject: Subject) -> xr.Dataset | None:
        maps = affine_maps(subject, stochastic=False)
        if maps is None:
            return None
        _, bases = bands_of(subject.diffusion.event_shape)
        parts = [[a @ basis for a in maps.matrices] for basis in bases]
        energy = [sum(one.square().sum().item() for one in part) for part in parts]
        own = [
            sum((basis.T @ one).square().sum().item() for one in part)
            for basis, part in zip(bases, parts, strict=True)
        ]
        inside = np.array(own) / energy
        moved = np.array(energy) / sum(energy)
        return xr.Dataset({"inside": ("band", inside), "moved": ("band", moved)})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        _, _, whole = self._changed(subject)
        draw, count = np.random.default_rng(0), len(whole)
        weights = torch.from_numpy(draw.multinomial(count, np.full(count, 1 / count), DRAWN))
        drawn = weights.double() @ whole
        band = central(drawn / drawn.sum(1, keepdim=True), level)
        return xr.Dataset({"inside": (("band", "bound"), band)})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        names, inside = dataset["band"].values, dataset["inside"].values
        most, moved = int(inside.argmax()), int(dataset["moved"].values.argmax())
        own = (inside > dataset["inside_null"].sel(bound="high").values).sum()
        return [
            f"{own} of {len(names)} bands of the noise change their own band of the sample more "
            f"than another's: {names[most]} most, {inside[most]:.0%} of its change; and "
            f"{names[moved]} moves the sample most, "
            f"{float(dataset['moved'][moved]):.0%} of a whole transplant."
        ]

    @remembered
    def _changed(
        self, subject: Subject, on_step: OnStep | None
    ) -> tuple[list[str], Tensor, Tensor]:
        """Names of the bands; energy of the change in each band of the output, for each band that
        was transplanted (bands, seeds, bands), and of the whole (seeds, bands); over all classes.
        """
        check_prior(subject.process, ", so no seed starts from noise alone")
        event = subject.diffusion.event_shape
        names, bases = bands_of(event)
        seeds, laws = sorted(subject.seeds), classes_of(subject)
        changed = torch.zeros(len(names), len(seeds), len(names), dtype=torch.float64)
        whole = torch.zeros(len(seeds), len(names), dtype=torch.float64)
        for c, law in enumerate(laws.values()):
            diffusion = Diffusion(subject.process, law, subject.diffusion.condition)
            z = noise_of(diffusion, seeds)
            donor = z.roll(-1, 0)
            run = lambda noise, d=diffusion: (  # noqa: E731
                outcome(d, subject.sampler, subject.grid, noise, seeds).flatten(1).double().cpu()
            )
            before, after = run(z), run(donor)
            whole += _in_bands(after - before, bases)
            for k, basis in enumerate(bases):
                part = run(transplanted(z, donor, basis @ basis.T))
                changed[k] += _in_bands(part - before, bases)
                if on_step is not None:
                    on_step(c * len(bases) + k + 1, len(laws) * len(bases))
        return names, changed, whole


def _in_bands(change: Tensor, bases: list[Tensor]) -> Tensor:
    return torch.stack([(change @ basis).square().sum(1) for basis in bases], 1)


def _ratios(top: Tensor, bottom: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Ratios of sums over seeds of (k, seeds), and standard errors: neighbours share a seed, so the
    influences of two of them that do are correlated."""
    n = top.shape[1]
    ratio = top.sum(1) / bottom.sum(1).clamp_min(1e-300)
    share = (top - ratio[:, None] * bottom) / bottom.mean(1, keepdim=True).clamp_min(1e-300)
    variance = share.square().mean(1) + 2 * (share * share.roll(1, 1)).mean(1).clamp_min(0)
    return ratio.numpy(), (variance / n).sqrt().numpy()
