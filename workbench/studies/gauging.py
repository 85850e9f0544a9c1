"""Gauge freedom of a study's score: what the page "Gauge" shows.

The study says data, denoiser, process and grid; the options how strong a gauge is added to the
score, and whether the networks that ship for the data stand beside it. The curves over the noise
level are parts of the page that are computed while it is looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Denoiser, Gaussian, Mixture, Neural, Perturbed, checkpoints
from workbench.denoisers.sphere import Sphere
from workbench.diffusion import Diffusion
from workbench.exact import w2
from workbench.exact.fokker_planck import LAWS
from workbench.exact.turned import turned_law
from workbench.lenses.base import Lens, Subject, complete
from workbench.lenses.dimension import Dimension
from workbench.lenses.gauge import Asymmetry, Gauge, gauge_map, law_of
from workbench.lenses.output import draws
from workbench.lenses.teleport import matched_gaussian
from workbench.params import Param
from workbench.sampling import Grid, NoiseSource, Record
from workbench.sampling.methods import Euler
from workbench.studies.limits import Report, claim, unheard
from workbench.studies.options import Options
from workbench.studies.run import Setup, build, made
from workbench.studies.sections import Choice
from workbench.studies.spec import Study, StudyError
from workbench.trajectory import sample

#: Shares of the strength that the slider stops at; steps of Euler's method.
SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
STEPS = (10, 25, 50, 100)

#: Levels that are drawn, from so many sizes of the data to so few; samples of a run; nodes of a map
#: along each axis, and every how many an arrow stands.
LEVELS, FROM, TO = 13, 4.0, 0.03
SAMPLES = 160
NODES, EVERY = 48, 3

#: Of images and other data of many dimensions: the same, and fewer looks at a network.
MANY = 16
FEW = {"shares": (0.0, 0.25, 1.0), "steps": (8, 16, 32), "samples": 32}

#: Sets that say what W2 of moments is where nothing is wrong.
SETS = 40

#: Networks that stand beside the study's own model, at most; of images.
BESIDE, BESIDE_IMAGES = 3, 1


@dataclass(frozen=True)
class Gauging(Options):
    """What is asked of the gauge beside the study."""

    strength: Annotated[
        float, Param("largest gauge c that is added to the score, c A ∇log p", ge=0.1, le=5)
    ] = 2.0
    networks: Annotated[
        Literal["shipped", "none"],
        Param("networks that ship for these data, drawn beside the model"),
    ] = "shipped"


#: Parts of the page that are computed while it is looked at, in their order; each a lens.
PARTS = ("asymmetry", "gauge", "dimension")


@dataclass(frozen=True)
class GaugeSeen:
    """What :func:`gauge_of` leaves.

    Attributes:
        dataset: ``states`` (gauge, steps, level, sample, axis) of Euler's method, over
            :math:`\\sqrt{\\alpha^2 + \\sigma^2/v}`, of more than two dimensions along the first two
            principal axes; ``w2`` and ``w2_exact`` (gauge, steps); of a plane ``density`` (level,
            y, x) and ``field``, ``conservative``, ``gauge``, ``truth`` (level, y, x, component) on
            the nodes ``place`` (level, component, node).
        facts: the result in sentences.
    """

    dataset: xr.Dataset
    facts: list[str]


@dataclass(frozen=True)
class GaugeCurves:
    """What :func:`curves_of` leaves.

    Attributes:
        part: the lens, of :data:`PARTS`.
        curves: what it says of each model, by name.
        facts: what it says of the study's own model, in sentences; or why it says nothing.
    """

    part: str
    curves: dict[str, xr.Dataset]
    facts: list[str]


def gauge_of(asked: tuple[Study, Gauging], report: Report = unheard) -> GaugeSeen:
    """The gauge freedom of a study's score: its fields, and what steps make of an added gauge.

    Raises:
        StudyError: what cannot be.
    """
    study, options = asked
    setup = _setup(study, report)
    model = setup.truth.denoiser
    few = model.dim > MANY
    shares, steps, samples = FEW.values() if few else (SHARES, STEPS, SAMPLES)
    runs = 16 * max(steps) * len(shares) * samples * model.dim
    claim(runs, samples, 256 * model.dim**2, key="data")
    try:
        law = law_of(Subject(setup.truth, data=setup.data))
        rho, t = _levels(setup, model)
        variables, coords, left = _maps(model, law, rho, report)
        euler = _runs(
            study, setup, law, t, options.strength * np.array(shares), steps, samples, report
        )
    except NotImplementedError as error:
        raise StudyError({"": str(error)}) from None
    coords |= {"rho": ("level", rho), "t": ("level", t)} | euler[1]
    dataset = xr.Dataset(variables | euler[0], coords)
    dataset.attrs = {"study": study.to_yaml(), "dim": model.dim, "samples": samples}
    return GaugeSeen(dataset, _facts(dataset, left))


def _setup(study: Study, report: Report) -> Setup:
    """The objects of a study; what cannot be shown of any gauge is said.

    Raises:
        StudyError: one number a sample, or a process with other than one noise level and a prior.
    """
    report("preparing", 0.0)
    setup = build(study.changed({"device": "cpu"} if study.device == "mps" else {}))
    process = setup.diffusion.process
    if setup.truth.denoiser.dim < 2:
        raise StudyError(
            {"data": f"{study.data.name} has one number a sample; a gauge turns at least two."}
        )
    if process.spectral or not process.has_prior or setup.diffusion.condition is not None:
        raise StudyError(
            {
                "process": f"process was {study.process.name}; the gauge is shown under processes "
                "with one noise level and a prior, such as VP, EDM, OU."
            }
        )
    return setup


def _levels(setup: Setup, model: Denoiser) -> tuple[np.ndarray, np.ndarray]:
    """Noise levels that are drawn, from noise to data, and their times."""
    process, size = setup.diffusion.process, model.std or 1.0
    ends = (float(torch.as_tensor(process(t).rho).max()) for t in (process.t_max, process.t_min))
    top, least = (min(max(end, 1e-9), 1e6) for end in ends)
    high = min(FROM * size, 0.999 * top, model.largest_rho)
    rho = np.geomspace(high, max(TO * size, 1.001 * least), LEVELS)
    return rho, np.array([float(process.time_of(float(r))) for r in rho])


def _maps(model: Denoiser, law: Denoiser, rho: np.ndarray, report: Report) -> tuple:
    """Fields of a plane on a grid at each level; what could not be drawn, in a sentence."""
    if tuple(model.event_shape) != (2,):
        return {}, {}, ""
    found, reason = {}, ""  # maps by the place of their level
    for i, level in enumerate(rho.tolist()):
        report("fields", 0.02 + 0.4 * i / len(rho))
        try:
            found[i] = gauge_map(model, law, level, NODES, derivatives=False)
        except ValueError as error:
            reason = str(error)
    if not found:
        raise StudyError({"data": reason})
    first, middle = next(iter(found.values())), slice(EVERY // 2, None, EVERY)
    variables: dict[str, Any] = {}
    for name in ("density", "field", "conservative", "gauge", "truth"):
        pick = slice(None, None, 2) if name == "density" else middle
        shape = first[name].values[pick, pick].shape
        values = np.full((len(rho), *shape), np.nan, dtype=np.float32)
        for i, each in found.items():
            values[i] = each[name].values[pick, pick]
        dims = ("fine_y", "fine_x") if name == "density" else ("y", "x", "component")
        variables[name] = (("level", *dims), values, first[name].attrs)
    place = np.full((len(rho), 2, NODES // EVERY), np.nan)
    edges = np.full((len(rho), 4), np.nan)
    norms = np.full((3, len(rho)), np.nan)
    for i, each in found.items():
        axes = [each[axis].values for axis in ("x", "y")]
        place[i] = [axis[middle] for axis in axes]
        half = [(axis[1] - axis[0]) / 2 for axis in axes]
        pairs = zip(axes, half, strict=True)
        edges[i] = [end for a, h in pairs for end in (a[0] - h, a[-1] + h)]
        norms[:, i] = [each.attrs[f"{n}_norm2"] for n in ("field", "conservative", "gauge")]
    variables["edges"] = (("level", "side"), edges)
    variables["norm2"] = (("part", "level"), norms)
    left = ""
    if missing := [level for i, level in enumerate(rho.tolist()) if i not in found]:
        left = (
            f"At {len(missing)} levels, from ρ = {max(missing):.2g} down, the density is too "
            "narrow for the grid"
        )
    return variables, {"place": (("level", "component", "node"), place)}, left


def _plane_of(setup: Setup, model: Denoiser) -> tuple[Tensor, Tensor]:
    """The antisymmetric matrix of the added gauge for c = 1, and the axes (d, 2) that it turns."""
    d = model.dim
    if d == 2:
        axes = torch.eye(2, dtype=torch.float64)
    else:
        points = setup.data.points.double().flatten(1)
        axes = torch.linalg.svd(points - points.mean(0), full_matrices=False).Vh[:2].T
    one, two = axes.T
    return torch.outer(two, one) - torch.outer(one, two), axes


def _runs(study, setup, law, t, strengths: np.ndarray, steps, count: int, report: Report) -> tuple:
    """States of Euler's method for each gauge and number of steps, and what it gets wrong."""
    model, process = setup.truth.denoiser, setup.diffusion.process
    turn, axes = _plane_of(setup, model)
    moments = matched_gaussian(law) if isinstance(law, LAWS) else Gaussian.fit(setup.data.points)
    right = Diffusion(process, moments)
    variance = max(float(setup.data.points.double().var(0).mean()), 1e-12)
    scale = np.array([_scale(process, one, variance) for one in t])
    points, noise = _start(law, setup, count)
    many = len(strengths)
    states = np.zeros((many, len(steps), len(t), count, 2), np.float32)
    found, truth = np.zeros((2, many, len(steps)))
    known = isinstance(model, Perturbed) and model.exact_marginals and model.gauge is not None
    own = model.gauge.double() if known else torch.zeros_like(turn)
    # All gauges are one batch, of as many samples each.
    turns = torch.from_numpy(strengths)[:, None, None] * turn
    diffusion, dtype = Diffusion(process, _Swirled(model, law, turns)), torch.float64
    if not model.closed:
        diffusion, dtype = diffusion.to(torch.float32), torch.float32
    for j, number in enumerate(steps):
        report("Euler's method", 0.4 + 0.6 * j / len(steps))
        grid = made(study.changed({"grid.steps": number}).grid, process=process)
        if grid.alpha[0] == 0:
            grid = Grid.times(process, grid.t[1:])
        begin = right.diffuse(points, grid.t[0], noise).to(dtype)
        begin = begin.repeat(many, *[1] * len(model.event_shape))
        seeds = range(many * count)
        run = sample(diffusion, Euler(axis="t"), grid, seeds, Record(["x"]), begin)
        x = run["x"].double().cpu().numpy().reshape(len(grid.t), many, count, -1)
        last = grid.t[-1]
        target = right.marginal(last)
        for i in range(many):
            between = _between(np.array(grid.t), x[:, i], t)
            states[i, j] = (between @ axes.numpy()) / scale[:, None, None]
            final = torch.from_numpy(x[-1, i].copy())
            finite = bool(final.isfinite().all())
            final = final.reshape(count, *model.event_shape)
            found[i, j] = w2(Gaussian.fit(final), target) if finite else np.nan
            truth[i, j] = w2(_euler_law(right, grid, own + turns[i]), target)
    generator = torch.Generator().manual_seed(7)
    even = [w2(Gaussian.fit(draws(law, count, generator)), moments) for _ in range(SETS)]
    about = {"long_name": "W2 of means and covariances to the truth", "units": "x"}
    variables = {
        "states": (("strength", "steps", "level", "sample", "axis"), states),
        "w2": (("strength", "steps"), found, about),
        "w2_exact": (("strength", "steps"), truth, about),
        "w2_null": (("bound",), np.quantile(even, [0.025, 0.975])),
        "truth_states": (("level", "sample", "axis"), _truth(law, setup, axes, t, scale, count)),
    }
    return variables, {"strength": strengths, "steps": np.array(steps)}


class _Swirled(Denoiser):
    r"""A model with gauge fields of the true density added to its score, :math:`A\nabla\log p`: a
    batch is of as many equal parts as there are matrices A (k, d, d), each with its own.

    Of data whose density is not known, A times the model's own score.
    """

    def __init__(self, model: Denoiser, law: Denoiser, turns: Tensor) -> None:
        closed = isinstance(law, Gaussian | Mixture | Sphere) and law is not model
        self.model, self.law, self.turns = model, law if closed else None, turns
        self.event_shape, self.dtype, self.device = model.event_shape, model.dtype, model.device
        self.mean, self.std, self.largest_rho = model.mean, model.std, model.largest_rho

    def posterior_mean(self, x: Tensor, alpha, sigma) -> Tensor:
        denoised = self.model.denoise(x, alpha, sigma)
        right = denoised if self.law is None else self.law.denoise(x, alpha, sigma)
        lag = (right - x / alpha).reshape(len(self.turns), -1, self.dim)
        return denoised + (lag @ self.turns.to(lag).mT).reshape(x.shape)


def _euler_law(right: Diffusion, grid: Grid, turn: Tensor) -> Gaussian:
    """Of Euler's steps from the exact marginal, on the Gaussian of the data's moments."""
    return turned_law(right, lambda cov: -turn @ torch.linalg.inv(cov), list(map(float, grid.t)))


def _scale(process, t: float, variance: float) -> float:
    c = process(float(t))
    return math.sqrt(float(c.alpha) ** 2 + float(c.sigma) ** 2 / variance)


def _start(law: Denoiser, setup: Setup, count: int) -> tuple[Tensor, Tensor]:
    """Data points (n, *event) and noise: both methods start from the same exact marginal."""
    points = draws(law, count, torch.Generator().manual_seed(3))
    return points, NoiseSource(range(count), setup.truth.event_shape).start().double()


def _truth(law, setup, axes: Tensor, t, scale, count: int) -> np.ndarray:
    """Noised data at each level along the two axes, with the same noise."""
    points, noise = (one.flatten(1) @ axes for one in _start(law, setup, count))
    noised = [setup.diffusion.diffuse(points, one, noise).numpy() for one in t.tolist()]
    return (np.array(noised) / scale[:, None, None]).astype(np.float32)


def _between(nodes: np.ndarray, x: np.ndarray, t: np.ndarray) -> np.ndarray:
    """States (levels, n, d) at times between the nodes, where Euler's path is a straight line."""
    place = np.searchsorted(-nodes, -t, side="right").clip(1, len(nodes) - 1)
    width = nodes[place - 1] - nodes[place]
    share = ((nodes[place - 1] - t) / width).clip(0, 1)[:, None, None]
    return (1 - share) * x[place - 1] + share * x[place]


def _models(study: Study, setup: Setup, options: Gauging) -> dict[str, tuple[Denoiser, Any]]:
    """The study's model and the networks that ship for its data, by name."""
    model = setup.truth.denoiser
    name = study.denoiser.name
    if isinstance(model, Neural):
        asked = dict(study.denoiser.parameters).get("checkpoint", "matching")
        name = study.data.name if asked == "matching" else str(asked)
    found = {name: model}
    if options.networks == "shipped" and not _changed(study.data):
        own = study.data.name
        there = [one for one in checkpoints.shipped() if one == own or one.startswith(f"{own}_")]
        there = [one for one in there if one not in found]
        most = BESIDE
        if model.dim > MANY:
            there, most = [one for one in there if one.endswith("_slim")], BESIDE_IMAGES
        for one in there[:most]:
            other = study.changed({"denoiser": "Neural", "denoiser.checkpoint": one})
            try:
                found[one] = build(other).truth.denoiser
            except StudyError:  # of other points than it was trained on, or of another shape
                continue
    law = setup.data.law
    if law is not None and type(law) is not type(model) and law.event_shape == model.event_shape:
        found["exact"] = law
    return found


def _changed(data: Choice) -> bool:
    """Whether parameters make the data of another law than what the networks were trained on."""
    return any(
        value != data.entry.parameters[name].default
        for name, value in data.parameters.items()
        if name not in ("size", "seed")
    )


def curves_of(asked: tuple[Study, Gauging], part: str, report: Report = unheard) -> GaugeCurves:
    """A part of the page: the study's model, and the networks beside it, through one lens.

    Args:
        part: the lens, of :data:`PARTS`.

    Raises:
        StudyError: a part that there is not, or what cannot be.
    """
    study, options = asked
    if part not in PARTS:
        raise StudyError({"": f"the page has no part {part!r}; there are {', '.join(PARTS)}."})
    setup = _setup(study, report)
    models = _models(study, setup, options)
    if part != "dimension":
        models.pop("exact", None)
    curves, facts = {}, []
    for i, (name, model) in enumerate(models.items()):
        lens = _lens(part, model, first=i == 0)
        # A Gaussian may be of lower rank than the data: its dimension is at its own points.
        own = part == "dimension" and isinstance(model, Gaussian)
        data = None if own else setup.data
        subject = Subject(Diffusion(setup.diffusion.process, model), data=data)

        def on_step(done: int, total: int, i=i) -> None:
            report(part, (i + done / total) / len(models))

        try:
            claim(lens.memory(model.dim, 0), key="data")
            curves[name] = complete(lens, subject, on_step=on_step)
        except (NotImplementedError, StudyError) as error:
            facts += [str(error).rstrip(".")] if i == 0 else []
            continue
        if i == 0:
            facts += [one.rstrip(".") for one in lens.findings(curves[name])]
    return GaugeCurves(part, curves, facts)


def _lens(part: str, model: Denoiser, first: bool) -> Lens:
    """The lens of a part; of a network of many dimensions it looks fewer times, and of those beside
    the study's own model, takes no matrices."""
    costly = model.dim > MANY and not model.closed
    if part == "asymmetry":
        few = {"levels": 7, "samples": 16, "probes": 2}
        return Asymmetry(**few) if costly else Asymmetry(levels=13, samples=64)
    if part == "gauge":
        return Gauge(levels=7, samples=512, features=32)
    if costly:
        return Dimension(levels=7, samples=4, points=500, matrices=2 if first else 0)
    return Dimension(levels=13, samples=16, points=500)


def _facts(dataset: xr.Dataset, left: str) -> list[str]:
    wrong = dataset["w2_exact"].values
    steps, strength = dataset["steps"].values, dataset["strength"].values
    j = int(np.abs(steps - 100).argmin())
    fact = (
        f"Euler with {steps[j]} steps is off by W₂ = {wrong[0, j]:.2g}, and by "
        f"{wrong[-1, j]:.3g} with a gauge of {strength[-1]:g} added "
        "(exact on the Gaussian of the mean and covariance of the data)"
    )
    return [fact] + ([left] if left else [])
