"""Gauge freedom of a study's score: what the page "Gauge" shows.

The study says data, denoiser, process and grid; the options how strong a gauge is added to the
score, and whether the networks that ship for the data stand beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
from workbench.lenses.base import Subject, complete
from workbench.lenses.dimension import Dimension
from workbench.lenses.gauge import Asymmetry, Gauge, gauge_map, law_of
from workbench.lenses.output import draws
from workbench.lenses.teleport import matched_gaussian
from workbench.params import Param
from workbench.sampling import Grid, NoiseSource, Record
from workbench.sampling.methods import Euler
from workbench.studies.limits import claim
from workbench.studies.options import Options
from workbench.studies.run import Setup, build
from workbench.studies.spec import Study, StudyError
from workbench.trajectory import sample

__all__ = ["GaugeSeen", "Gauging", "gauge_of"]

Report = Callable[[str, float], None]

#: Shares of the strength that the slider stops at; steps of Euler's method.
SHARES = (0.0, 0.125, 0.25, 0.5, 1.0)
STEPS = (10, 25, 50, 100)

#: Levels that are drawn, from so many sizes of the data to so few; samples of a run, and those that
#: are drawn; nodes of a map along each axis, and every how many an arrow stands.
LEVELS, FROM, TO = 13, 4.0, 0.03
SAMPLES, SHOWN = 256, 160
NODES, EVERY = 48, 3

#: Of images and other data of many dimensions: the same, and fewer looks at a network.
MANY = 16
FEW = {"shares": (0.0, 0.25, 1.0), "steps": (10, 20, 50), "samples": 64}

#: Sets that say what W2 of moments is where nothing is wrong.
SETS = 40

#: Networks that stand beside the study's own model, at most.
BESIDE = 1


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


@dataclass(frozen=True)
class GaugeSeen:
    """What :func:`gauge_of` leaves.

    Attributes:
        dataset: ``states`` (gauge, steps, level, sample, axis) of Euler's method, over
            :math:`\\sqrt{\\alpha^2 + \\sigma^2/v}`, of more than two dimensions along the first two
            principal axes; ``w2`` and ``w2_exact`` (gauge, steps); of a plane ``density`` (level,
            y, x) and ``field``, ``conservative``, ``gauge``, ``truth`` (level, y, x, component) on
            the nodes ``place`` (level, component, node).
        curves: by the name of a model its lenses: ``asymmetry``, ``gauge``, ``dimension``.
        facts: the result in sentences.
    """

    dataset: xr.Dataset
    curves: dict[str, dict[str, xr.Dataset]]
    facts: list[str]


def gauge_of(asked: tuple[Study, Gauging], report: Report = lambda stage, share: None) -> GaugeSeen:
    """The gauge freedom of a study's score.

    Raises:
        StudyError: what cannot be.
    """
    study, options = asked
    report("preparing", 0.0)
    setup = build(study.changed({"device": "cpu"} if study.device == "mps" else {}))
    model, process = setup.truth.denoiser, setup.diffusion.process
    if model.dim < 2:
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
    few = model.dim > MANY
    samples = FEW["samples"] if few else SAMPLES
    claim(64 * max(STEPS) * samples * model.dim, samples, 256 * model.dim**2, key="data")
    try:
        subject = Subject(setup.truth, data=setup.data)
        law = law_of(subject)
        rho, t = _levels(setup, model)
        variables, coords, left = _maps(model, law, rho, report)
        runs = _runs(study, setup, law, t, options, few, report)
        curves, said = _curves(study, setup, options, few, report)
    except NotImplementedError as error:
        raise StudyError({"": str(error)}) from None
    coords |= {"rho": ("level", rho), "t": ("level", t)} | runs[1]
    dataset = xr.Dataset(variables | runs[0], coords)
    dataset.attrs = {"study": study.to_yaml(), "dim": model.dim, "samples": samples}
    return GaugeSeen(dataset, curves, _facts(dataset, said, left))


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
    found, missing, reason = [], [], ""
    for i, level in enumerate(rho.tolist()):
        report("fields", 0.02 + 0.28 * i / len(rho))
        try:
            found.append(gauge_map(model, law, level, NODES))
        except ValueError as error:
            found.append(None)
            missing.append(level)
            reason = str(error)
    there = [one for one in found if one is not None]
    if not there:
        raise StudyError({"data": reason})
    middle = slice(EVERY // 2, None, EVERY)
    variables: dict[str, Any] = {}
    for name in ("density", "field", "conservative", "gauge", "truth"):
        pick = slice(None, None, 2) if name == "density" else middle
        one = there[0][name].values[pick, pick]
        values = np.full((len(rho), *one.shape), np.nan, dtype=np.float32)
        for i, each in enumerate(found):
            if each is not None:
                values[i] = each[name].values[pick, pick]
        dims = ("fine_y", "fine_x") if name == "density" else ("y", "x", "component")
        variables[name] = (("level", *dims), values, there[0][name].attrs)
    place = np.full((len(rho), 2, NODES // EVERY), np.nan)
    edges = np.full((len(rho), 4), np.nan)
    norms = np.full((3, len(rho)), np.nan)
    for i, each in enumerate(found):
        if each is None:
            continue
        axes = [each[axis].values for axis in ("x", "y")]
        place[i] = [axis[middle] for axis in axes]
        half = [(axis[1] - axis[0]) / 2 for axis in axes]
        pairs = zip(axes, half, strict=True)
        edges[i] = [end for a, h in pairs for end in (a[0] - h, a[-1] + h)]
        norms[:, i] = [each.attrs[f"{n}_norm2"] for n in ("field", "conservative", "gauge")]
    variables["edges"] = (("level", "side"), edges)
    variables["norm2"] = (("part", "level"), norms)
    left = ""
    if missing:
        left = (
            f"At {len(missing)} levels, from ρ = {max(missing):.2g} down, the density is too "
            "narrow for the grid"
        )
    coords = {"place": (("level", "component", "node"), place)}
    return variables, coords, left


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


def _runs(study, setup, law, t, options: Gauging, few: bool, report: Report) -> tuple:
    """States of Euler's method for each gauge and number of steps, and what it gets wrong."""
    shares, steps, count = FEW.values() if few else (SHARES, STEPS, SAMPLES)
    model, process = setup.truth.denoiser, setup.diffusion.process
    turn, axes = _plane_of(setup, model)
    exact = isinstance(law, LAWS)
    moments = matched_gaussian(law) if exact else Gaussian.fit(setup.data.points)
    right = Diffusion(process, moments)
    variance = max(float(setup.data.points.double().var(0).mean()), 1e-12)
    scale = np.array([_scale(process, one, variance) for one in t])
    start = _start(law, setup, count)
    strengths = options.strength * np.array(shares)
    states = np.zeros((len(shares), len(steps), len(t), min(SHOWN, count), 2), np.float32)
    found, truth = np.zeros((2, len(shares), len(steps)))
    network = not model.at(1.0, 1.0).closed
    known = isinstance(model, Perturbed) and model.exact_marginals and model.gauge is not None
    own = model.gauge.double() if known else torch.zeros_like(turn)
    for j, many in enumerate(steps):
        grid = build(study.changed({"grid.steps": many, "device": "cpu"})).grid
        if grid.alpha[0] == 0:
            grid = Grid.times(process, grid.t[1:])
        x0 = _noised(process, grid, start)
        for i, c in enumerate(strengths.tolist()):
            done = (j * len(shares) + i) / (len(shares) * len(steps))
            report("Euler's method", 0.3 + 0.3 * done)
            one = _swirled(model, law, c * turn, own)
            diffusion = Diffusion(process, one)
            begin = x0
            if network:
                diffusion, begin = diffusion.to(torch.float32), x0.float()
            run = sample(diffusion, Euler(axis="t"), grid, range(count), Record(["x"]), begin)
            x = run["x"].double().cpu().numpy().reshape(len(grid.t), count, -1)
            between = _between(np.array(grid.t), x[:, : states.shape[3]], t)
            states[i, j] = (between @ axes.numpy()) / scale[:, None, None]
            last = grid.t[-1]
            final = torch.from_numpy(x[-1].copy()).reshape(count, *model.event_shape)
            target = right.marginal(last)
            found[i, j] = w2(Gaussian.fit(final), target) if np.isfinite(x[-1]).all() else np.nan
            truth[i, j] = w2(_euler_law(right, grid, own + c * turn), target)
    generator = torch.Generator().manual_seed(7)
    even = [float(w2(Gaussian.fit(draws(moments, count, generator)), moments)) for _ in range(SETS)]
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
    r"""A model with a gauge field of the true density added to its score, :math:`A\nabla\log p`."""

    def __init__(self, model: Denoiser, law: Denoiser, turn: Tensor) -> None:
        self.model, self.law, self.turn = model, law, turn
        self.event_shape, self.dtype, self.device = model.event_shape, model.dtype, model.device
        self.mean, self.std, self.largest_rho = model.mean, model.std, model.largest_rho

    def posterior_mean(self, x: Tensor, alpha, sigma) -> Tensor:
        lag = (self.law.denoise(x, alpha, sigma) - x / alpha).flatten(1)
        turned = (lag @ self.turn.to(lag).T).reshape(x.shape)
        return self.model.denoise(x, alpha, sigma) + turned


def _swirled(model: Denoiser, law: Denoiser, turn: Tensor, own: Tensor) -> Denoiser:
    r"""The model with :math:`A\nabla\log p` added to its score; ``own`` is what it has of it.

    Of a model of data whose density is not known, A times its own score.
    """
    if not bool(turn.any()):
        return model
    if bool(own.any()):
        return Perturbed(model.base, gauge=own + turn)
    if isinstance(model, LAWS) or not isinstance(law, Gaussian | Mixture | Sphere):
        return Perturbed(model, gauge=turn)
    return _Swirled(model, law, turn)


def _euler_law(right: Diffusion, grid: Grid, turn: Tensor) -> Gaussian:
    """Of Euler's steps from the exact marginal, on the Gaussian of the data's moments."""
    return turned_law(right, lambda cov: -turn @ torch.linalg.inv(cov), list(map(float, grid.t)))


def _scale(process, t: float, variance: float) -> float:
    c = process(float(t))
    return math.sqrt(float(c.alpha) ** 2 + float(c.sigma) ** 2 / variance)


def _start(law: Denoiser, setup: Setup, count: int) -> tuple[Tensor, Tensor]:
    """Data points (n, *event) and noise: both methods start from the same exact marginal."""
    points = draws(law, count, torch.Generator().manual_seed(3))
    if points is None:
        points = setup.data.points.double()[torch.arange(count) % len(setup.data.points)]
    return points, NoiseSource(range(count), setup.truth.event_shape).start().double()


def _noised(process, grid: Grid, start: tuple[Tensor, Tensor]) -> Tensor:
    """Noised data at the first node."""
    c = process(grid.t[0])
    return float(c.alpha) * start[0] + float(c.sigma) * start[1]


def _truth(law, setup, axes: Tensor, t, scale, count: int) -> np.ndarray:
    """Noised data at each level along the two axes, with the same noise."""
    points, noise = (one[:SHOWN].flatten(1) @ axes for one in _start(law, setup, count))
    process, found = setup.diffusion.process, []
    for one, size in zip(t.tolist(), scale, strict=True):
        c = process(one)
        found.append((float(c.alpha) * points + float(c.sigma) * noise).numpy() / size)
    return np.array(found, dtype=np.float32)


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
    if options.networks == "shipped":
        own = study.data.name
        there = [one for one in checkpoints.shipped() if one == own or one.startswith(f"{own}_")]
        there = [one for one in there if one not in found]
        if model.dim > MANY:
            there = [one for one in there if one.endswith("_slim")]
        middle = len(there) // 2
        for one in there[middle : middle + BESIDE]:
            other = study.changed({"denoiser": "Neural", "denoiser.checkpoint": one})
            try:
                found[one] = build(other).truth.denoiser
            except StudyError:  # of other points than it was trained on, or of another shape
                continue
    law = setup.data.law
    if law is not None and not isinstance(model, LAWS) and law.event_shape == model.event_shape:
        found["exact"] = law
    return found


def _curves(study, setup: Setup, options: Gauging, few: bool, report: Report) -> tuple:
    """Each model through the lenses over the noise level; what they say of the study's own."""
    models = _models(study, setup, options)
    curves, said = {}, []
    for i, (name, model) in enumerate(models.items()):
        subject = Subject(Diffusion(setup.diffusion.process, model), data=setup.data)
        curves[name] = {}
        costly = few and not model.at(1.0, 1.0).closed
        lenses = {
            "asymmetry": Asymmetry(levels=7, samples=16, probes=2)
            if costly
            else Asymmetry(levels=13, samples=64),
            "gauge": Gauge(levels=7, samples=512, features=32),
            "dimension": Dimension(levels=7, samples=4, points=500)
            if costly
            else Dimension(levels=13, samples=16, points=500),
        }
        for j, (key, lens) in enumerate(lenses.items()):
            begun = 0.6 + 0.4 * (i + j / 3) / len(models)
            width = 0.4 / 3 / len(models)

            def on_step(done: int, total: int, begun=begun, width=width, key=key) -> None:
                report(key, begun + width * done / total)

            if (key == "gauge" and few) or (key != "dimension" and name == "exact"):
                continue
            try:
                curves[name][key] = complete(lens, subject, on_step=on_step)
            except NotImplementedError:
                continue
            if i == 0:
                said += lens.findings(curves[name][key])[:1]
    return curves, said


def _facts(dataset: xr.Dataset, said: list[str], left: str) -> list[str]:
    wrong = dataset["w2_exact"].values
    steps, strength = dataset["steps"].values, dataset["strength"].values
    j = int(np.abs(steps - 100).argmin())
    facts = [one.rstrip(".") for one in said]
    facts.append(
        f"Euler with {steps[j]} steps is off by W₂ = {wrong[0, j]:.2g}, and by "
        f"{wrong[-1, j]:.3g} with a gauge of {strength[-1]:g} added"
    )
    return facts + ([left] if left else [])
