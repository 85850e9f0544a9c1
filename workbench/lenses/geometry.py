r"""Geometry of paths: how straight, how evenly walked, when they commit, and what a way back keeps.

All of it depends on which state is looked at, on the times, and on what is taken off: a path of
:math:`x/\alpha` from a noise level far above the data is a straight line to many digits, whatever
the data. So each lens says which it took.

A *U-turn* noises a data point to a level and draws it back from the posterior. Given the noised
state the point and its return are independent and alike, so in any band

.. math:: E\langle x_0 - m, x_0' - m\rangle = E\,\lVert D(x_t) - m\rVert^2 :

what a U-turn keeps of a band is what has emerged of it.

Sources: Wang & Vastola 2023, arXiv:2303.02490; Chen et al. 2024, arXiv:2405.11326 (deviation from
the chord); Liu, Gong & Liu 2022, arXiv:2209.03003 (straightness); Sclocchi, Favero & Wyart 2024,
arXiv:2402.16991 (U-turns); Biroli et al. 2024, arXiv:2402.18491 (speciation and collapse).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Empirical, Gaussian
from workbench.exact import critical
from workbench.lenses.base import BOUNDS, Lens, OnStep, Subject, estimate, spaced, stepped
from workbench.lenses.distances import affine_paths
from workbench.lenses.errors import mean_error, root_mean
from workbench.lenses.frequency import NOTHING, bands_by, modes_of, weights
from workbench.lenses.planarity import divisor, explained_variance
from workbench.lenses.teleport import gaussian_of
from workbench.params import Param
from workbench.sampling import Grid, NoiseSource
from workbench.sampling.methods import DDIM
from workbench.trajectory import sample

State = Literal["scaled", "x", "ratio"]
Plane = Literal["principal", "chord"]

STATES = {
    "scaled": "the state over sqrt(alpha^2 + sigma^2/v), v the data's variance",
    "x": "the state as it is",
    "ratio": "x/alpha, the state of EDM",
}


def deviation(path: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of each state of paths (time, n, d) from the line through their ends, (time, n);
    and the length of that chord, (n,)."""
    chord = path[-1] - path[0]
    length = chord.norm(dim=-1)
    unit = chord / length.clamp_min(torch.finfo(path.dtype).tiny)[:, None]
    off = path - path[-1]
    return (off - (off * unit).sum(-1, keepdim=True) * unit).norm(dim=-1), length


def straightness(path: Tensor, times: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""How far paths are from straight lines walked at one speed, in the units of their chord.

    .. math:: S = \int_0^1 \lVert x_1 - x_0 - \dot x_\tau\rVert^2 d\tau
              = \underbrace{(L^2 - c^2)}_{\text{shape}}
              + \underbrace{\int_0^1 (\lVert\dot x\rVert - L)^2 d\tau}_{\text{speed}}

    with the length L and the chord c: the first is left over by any pace.

    Args:
        path: (time, n, d), taken to be walked evenly from node to node.
        times: (time,), monotone; scaled to a span of one.

    Returns:
        Arc over chord, shape, and speed, each (n,), the last two over the chord's square.
    """
    steps = path.diff(dim=0).norm(dim=-1)
    share = times.diff().abs()[:, None]
    share = share / share.sum()
    chord = (path[-1] - path[0]).norm(dim=-1)
    arc = steps.sum(0)
    speed = ((steps / share).square() * share).sum(0) - arc.square()
    return arc / chord, (arc / chord).square() - 1, speed / chord.square()


@dataclass(frozen=True)
class Geometry(Lens):
    """How straight is a path, in shape and in speed, and where does it bend?

    ``arc_over_chord`` of the recorded path, 1 for a line. ``shape`` and ``speed`` add up to the
    straightness of rectified flow in the process's own time, over the squared chord: the first is
    0 for a line however it is walked. ``off_chord`` is the distance from the chord over its length,
    and ``off_chord_spread`` how much samples differ in it, relative to their mean: small where all
    paths are one curve. ``outside`` is the share of the energy outside of the plane of the first
    and the last state. ``turned`` is the angle that the direction of the path of x/alpha,
    x/alpha - D, has turned by since the start, and ``curvature`` its rate per length.
    """

    state: Annotated[State, Param("scaled, x as it is, or ratio: x/alpha, the state of EDM")] = (
        "scaled"
    )
    samples: Annotated[int, Param("how many samples it looks at", ge=2, le=100_000)] = 256

    reads = ("x", "denoised")

    def memory(self, dim: int, kept: int) -> int:
        return 64 * self.samples * kept * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        if not subject.process.single_level:
            raise NotImplementedError(
                f"{subject.process!r} has no one alpha and sigma, so there is no x/alpha; take a "
                "process with one noise level."
            )
        x, denoised = (subject.field(name).flatten(2) for name in self.reads)
        run = subject.run
        alpha, sigma, t = (torch.from_numpy(run[key].values) for key in ("alpha", "sigma", "t"))
        start = int(alpha[0] == 0) if self.state == "ratio" else 0  # pure noise has no x/alpha
        if len(x) - start < 3:
            raise NotImplementedError("a path of fewer than three recorded times has no shape.")
        path = (x / divisor(subject, self.state))[start:]
        arc, shape, speed = straightness(path, t[start:])
        off, chord = deviation(path)
        relative = off / chord
        mean = relative.mean(1)
        spread = torch.where(
            mean > 1e-12, relative.std(1, correction=0) / mean.clamp_min(1e-300), 0.0
        )
        plane = torch.linalg.qr(torch.stack([path[0], path[-1]], -1)).Q  # (n, d, 2)
        flat = path.movedim(0, 1)
        lost = (flat - flat @ plane @ plane.mT).square().sum((1, 2)) / flat.square().sum((1, 2))
        pad, error = (np.nan,) * start, mean_error(relative, 1)
        mean, error, spread = (np.concatenate([pad, v.numpy()]) for v in (mean, error, spread))
        about = "distance from the chord over its length"
        variables = estimate("off_chord", "time", mean, about, error=error)
        about = "how much samples differ in it, relative"
        variables |= estimate("off_chord_spread", "time", spread, about)
        turned, curvature = _turning(x, denoised, alpha, sigma)
        for key, value, about, unit in (
            ("turned", turned, "angle that the direction has turned by", "rad"),
            ("curvature", curvature, "curvature of the path of x/alpha", "1/x"),
        ):
            error = mean_error(value, 1).numpy()
            variables |= estimate(key, "time", value.mean(1).numpy(), about, unit, error)
        for key, value, about in (
            ("arc_over_chord", arc, "length of a path over its chord"),
            ("shape", shape, "straightness that no pace mends, over the squared chord"),
            ("speed", speed, "straightness that is a matter of pace, over the squared chord"),
            ("outside", lost, "share of the energy outside of the plane of noise and sample"),
        ):
            error = mean_error(value, 0).item()
            variables |= estimate(key, (), value.mean().item(), about, error=error)
        coords = {key: ("time", run[key].values) for key in ("t", "rho")}
        top = float(run["rho"].values[start])
        return xr.Dataset(variables, coords, {"state": self.state, "from_rho": top})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        value = {
            key: float(dataset[key]) for key in ("arc_over_chord", "shape", "speed", "outside")
        }
        off = dataset["off_chord"].values
        where = int(np.nanargmax(off))
        state, top = STATES[dataset.attrs["state"]], dataset.attrs["from_rho"]
        said = [
            f"Of {state}, from ρ = {top:.3g} on the run's own grid: a path is "
            f"{value['arc_over_chord']:.4g} times its chord, and farthest from it by "
            f"{off[where]:.2g} of its length at ρ = {dataset['rho'].values[where]:.3g}; "
            f"{value['outside']:.2%} of its energy, about the origin, is outside of the plane of "
            "noise and sample.",
            f"Straightness: {value['shape']:.3g} is the path's shape, {value['speed']:.3g} its "
            "pace in the process's time.",
        ]
        return said if np.isfinite(dataset["arc_over_chord_se"]) else [*said, ALONE]


#: What is said of a run of one sample.
ALONE = "One sample says nothing of the spread: there are no errors."


def paths_in_plane(
    subject: Subject, state: State = "scaled", plane: Plane = "principal", count: int = 12
) -> xr.Dataset:
    r"""The first paths, each in a plane of its own, in units of its chord.

    The *principal* plane is that of the two leading principal directions of the path's own recorded
    states about their mean over the nodes, which all weigh alike: no plane holds more of its
    variance. The origin is that mean, the first axis points from noise to sample, the second to
    where the middle of the path is. The *chord* plane is that of the first and last state and of
    what deviates most from the line between them: from noise (0, 0) to the sample (1, 0).

    Beside the share of variance in the first one and two principal directions stands that of the
    exact flow of Gaussian data with the same mean and covariance from the same starts,
    :math:`y_k(\rho) - m_k = z_k\sqrt{\lambda_k + \rho^2}`, and a null: of paths whose steps have
    the same lengths and independent directions. It is far from 0; of many dimensions and steps
    such a path has 6/π² of its variance in one direction and 5/4 of that in two.

    Args:
        subject: with a run that recorded x and the denoised state.

    Returns:
        Dataset over (path, time) of ``along`` and ``across``, and of the denoised state
        ``along_denoised`` and ``across_denoised``; over (path, component) ``share``, cumulative,
        and ``share_gaussian`` (of data whose covariance is known); over (component, bound)
        ``share_null``, between which 95 % of the means over the paths are.

    Source: Wang & Vastola 2023, arXiv:2303.02490; of the null Antognini & Sohl-Dickstein 2018,
    arXiv:1806.08805.
    """
    x, denoised = (subject.field(name).flatten(2)[:, :count] for name in ("x", "denoised"))
    start = int(float(subject.run["alpha"].values[0]) == 0) if state == "ratio" else 0
    path = (x / divisor(subject, state))[start:].movedim(0, 1)  # (path, time, d)
    if path.shape[1] < 3:
        raise NotImplementedError("a path of fewer than three recorded times has no shape.")
    first, chord = path[:, :1], path[:, -1] - path[:, 0]
    length = chord.norm(dim=-1).clamp_min(1e-300)[:, None]
    middle = path.mean(1, keepdim=True)
    if plane == "principal":
        origin, axes = middle, torch.linalg.svd(path - middle, full_matrices=False).Vh[:, :2]
        away = (path[:, path.shape[1] // 3 : -(path.shape[1] // 3)] - middle).mean(1)
        if axes.shape[1] < 2:  # of one dimension
            axes = torch.cat([axes, torch.zeros_like(axes)], 1)
        towards = torch.stack([chord, away], 1)
        axes = axes * torch.sign((axes * towards).sum(-1, keepdim=True) + 1e-300)
    else:
        origin, unit = first, chord / length
        off = path - first
        off = off - (off @ unit[..., None]) * unit[:, None]
        away = torch.linalg.svd(off, full_matrices=False).Vh[:, 0]
        away = away * torch.sign((off @ away[..., None]).sum(1) + 1e-300)
        axes = torch.stack([unit, away], 1)
    columns: dict = {}
    for end, value in (("", path), ("_denoised", denoised[start:].movedim(0, 1))):
        found = ((value - origin) @ axes.mT / length[..., None]).cpu().numpy()
        for name, column in zip(("along", "across"), np.moveaxis(found, -1, 0), strict=True):
            columns[f"{name}{end}"] = (("path", "time"), column)
    columns["share"] = (("path", "component"), explained_variance(path.movedim(1, 0), 2).numpy())
    gaussian = _gaussian_paths(subject, x, state)
    if gaussian is not None:
        share = explained_variance(gaussian[start:], 2)
        columns["share_gaussian"] = (("path", "component"), share.numpy())
    columns["share_null"] = (("component", "bound"), _share_of_wandering(path))
    rho = subject.run["rho"].values[start:]
    coords = {"rho": ("time", rho), "component": [1, 2], "bound": list(BOUNDS)}
    return xr.Dataset(columns, coords, {"state": state, "plane": plane})


def said_of_plane(paths: xr.Dataset) -> str:
    """A sentence of the shares of variance of :func:`paths_in_plane`, on the run's own grid."""
    one, two = (_percent(v) for v in paths["share"].mean("path").values)
    said = f"Of a path's variance about its mean over the run's nodes, {one} lies in one direction"
    said += f" and {two} in two"
    if "share_gaussian" in paths:
        one, two = (_percent(v) for v in paths["share_gaussian"].mean("path").values)
        said += f" (Gaussian data from the same starts, exactly: {one} and {two})"
    (low, high), (lower, higher) = paths["share_null"].values
    return said + (
        f"; a path of as long steps in independent directions has {low:.0%} to {high:.0%} and "
        f"{lower:.0%} to {higher:.0%}."
    )


def _percent(share: float) -> str:
    """A share, or what is missing of one that is nearly the whole."""
    return f"{share:.2%}" if share < 0.9999 else f"all but {max(0.0, 1 - share):.1g}"


def _gaussian_paths(subject: Subject, x: Tensor, state: State) -> Tensor | None:
    """Paths (time, n, d) of the exact flow of the Gaussian of the data, from the run's starts."""
    try:
        law = gaussian_of(subject)
    except NotImplementedError:
        return None
    variances, turn = (v.to(x) for v in modes_of(law))
    alpha, sigma = (
        torch.from_numpy(subject.run[key].values).to(x)[:, None, None] for key in ("alpha", "sigma")
    )
    mean = law.mean.flatten().to(x) @ turn
    spread = (alpha.square() * variances + sigma.square()).sqrt()
    z = (x[0] @ turn - alpha[0] * mean) / spread[0].clamp_min(1e-300)
    return ((alpha * mean + spread * z) @ turn.T / divisor(subject, state)).cpu()


def _share_of_wandering(path: Tensor, draws: int = 24) -> np.ndarray:
    """Share of variance in one and two directions, (component, bound), of paths (n, time, d) whose
    steps keep their lengths and have independent directions: 95 % of the means over n paths."""
    generator = torch.Generator().manual_seed(0)
    lengths = path.diff(dim=1).norm(dim=-1, keepdim=True).cpu().double()
    means = []
    for _ in range(draws):
        steps = torch.randn(*path[:, 1:].shape, generator=generator, dtype=torch.float64)
        steps = steps / steps.norm(dim=-1, keepdim=True) * lengths
        means.append(explained_variance(steps.cumsum(1).movedim(1, 0), 2).mean(0))
    value = torch.stack(means)
    reach = 1.96 * value.std(0)
    centre = value.mean(0)
    return torch.stack([centre - reach, centre + reach], -1).clamp(0, 1).numpy()


def _turning(x: Tensor, denoised: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Angle [rad] turned by since the start, and curvature, of the path of x/alpha, (time, n).

    From the directions x - alpha D that the flow itself has, not from differences of states.
    """
    alpha, sigma = alpha[:, None, None].to(x), sigma[:, None, None].to(x)
    direction = x - alpha * denoised
    length = direction.norm(dim=-1, keepdim=True)
    there = (sigma[..., 0] > 0) & (length[..., 0] > 0)
    unit = direction / length.clamp_min(torch.finfo(x.dtype).tiny)
    step = (unit.diff(dim=0).norm(dim=-1) / 2).clamp(max=1).asin() * 2
    step = torch.where(there[1:] & there[:-1], step, 0.0)
    turned = torch.cat([torch.zeros_like(step[:1]), step.cumsum(0)])
    y = torch.where(alpha > 0, x / alpha.clamp_min(1e-300), math.nan)
    walked = y.diff(dim=0).norm(dim=-1)
    rate = torch.where(walked > 0, step / walked, 0.0)
    return turned, torch.cat([rate, rate[-1:]]).nan_to_num(0.0)


# ---- commitment ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Commitment(Lens):
    """When has a path decided for a class and for a data point, and what does a nudge change?

    ``class_kept`` and ``point_kept``: share of the samples whose class, and whose nearest data
    point, no longer changes from a noise level on; the class is the one that the data points make
    most probable, the point the nearest to x/alpha. ``class_entropy`` and ``point_entropy`` are
    what the state leaves open of them [nats]. ``response`` is the root mean square change of a
    coordinate of the sample by white noise of deviation ``nudge`` added to the scaled state,
    x/sqrt(alpha^2 + sigma^2), at a level; ``changed`` the share of samples whose nearest data point
    is another one then. In a Gaussian world a late nudge changes more pixels, an early one is
    damped; what an early one changes is the content.

    Exact on Gaussian data: the response to order of the sampler's own error.
    """

    nudge: Annotated[float, Param("deviation of the nudge [scaled x]", gt=0, le=10)] = 0.2
    levels: Annotated[int, Param("how many levels are nudged", ge=1, le=64)] = 6
    samples: Annotated[int, Param("how many samples it looks at", ge=2, le=10_000)] = 64

    reads = ("x", "final", "data")

    def memory(self, dim: int, kept: int) -> int:
        return 48 * self.samples * (kept + self.levels) * dim + super().memory(dim, kept)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        if not subject.process.single_level:
            raise NotImplementedError(f"{subject.process!r} has no one alpha and sigma.")
        data, run = subject.data, subject.run
        points = data.points.flatten(1).to(subject.diffusion.device, torch.float64)
        labels = None if data.labels is None else data.labels.to(points.device)
        x = subject.field("x").flatten(2)
        alpha, sigma = run["alpha"].values, run["sigma"].values
        parts = [_posterior(x[k], alpha[k], sigma[k], points, labels) for k in range(len(x))]
        variables: dict = {}
        for i, name in enumerate(("point", "class")):
            if parts[0][i] is None:
                continue
            chosen = torch.stack([part[i][0] for part in parts])
            entropy = torch.stack([part[i][1] for part in parts])
            same = (chosen == chosen[-1]).flip(0).cumprod(0).flip(0).double()
            of = f"the {name} no longer changes"
            variables |= _shares(f"{name}_kept", same, f"share of samples of which {of}")
            about = f"what the state leaves open of the {name}"
            value, error = (v.cpu().numpy() for v in (entropy.mean(1), mean_error(entropy, 1)))
            variables |= estimate(f"{name}_entropy", "time", value, about, "nat", error)
        responses = self._responses(subject, x, points, on_step)
        coords = {key: ("time", run[key].values) for key in ("t", "rho")}
        coords["level"] = [float(run["rho"].values[k]) for k in self._nudged(subject)]
        return xr.Dataset(
            variables | responses,
            coords,
            {"nudge": self.nudge, "stochastic": int(subject.sampler.stochastic)},
        )

    def exact(self, subject: Subject) -> xr.Dataset | None:
        if not isinstance(subject.denoiser, Gaussian) or subject.sampler.stochastic:
            return None
        ends = affine_paths(subject)
        if ends is None:
            return None
        path, found = ends[:, 1] - ends[:, 0], []  # gain of each mode from the start, (time, d)
        for k in self._nudged(subject):
            # The run is linear mode by mode: what a unit becomes is the ratio of its gains.
            gain = path[-1] / path[k]
            found.append(self._scale(subject, k) * self.nudge * gain.square().mean().sqrt().item())
        return xr.Dataset({"response": ("level", found)})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        said, rho = [], dataset["rho"].values
        for name in ("class", "point"):
            key = f"{name}_kept"
            if key in dataset and (dataset[key].values >= 0.9).any():
                at = int((dataset[key].values >= 0.9).argmax())
                word = "class" if name == "class" else "nearest data point"
                said.append(
                    f"For 90 % of the samples the {word} no longer changes from "
                    f"ρ = {rho[at]:.3g} on."
                )
        value, level = dataset["response"].values, dataset["level"].values
        changed = dataset["changed"].values
        said.append(
            f"A nudge of {dataset.attrs['nudge']:g} (white, of the scaled state) changes a "
            f"coordinate by {value[0]:.3g} at ρ = {level[0]:.3g} and by {value[-1]:.3g} at "
            f"{level[-1]:.3g}; the nearest data point of {changed[0]:.0%} and {changed[-1]:.0%}."
        )
        if not np.isfinite(dataset["response_se"]).all():
            said.append(ALONE)
        return said

    def _nudged(self, subject: Subject) -> list[int]:
        """Recorded nodes at which the state is nudged, even along the run."""
        rho = subject.run["rho"].values
        there = np.flatnonzero(np.isfinite(rho) & (rho > 0))[:-1]
        if not len(there):
            raise NotImplementedError("no recorded node lies between pure noise and the data.")
        return there[spaced(len(there), self.levels)].tolist()

    def _scale(self, subject: Subject, k: int) -> float:
        return math.hypot(*(float(subject.run[key].values[k]) for key in ("alpha", "sigma")))

    def _ends(self, subject: Subject, x: Tensor, k: int) -> list[Tensor]:
        """Where the states (n, d) at a recorded node go, as they are and nudged, (n, *event)."""
        event, n, seeds = subject.diffusion.event_shape, len(x), subject.seeds
        noise = NoiseSource([seed + 2**40 for seed in seeds], event, torch.float64).start()
        rest = replace(subject.grid, nodes=subject.grid.nodes[int(subject.run["step"].values[k]) :])
        here = x.reshape(n, *event)
        starts = here, here + self.nudge * self._scale(subject, k) * noise.to(here)
        run = lambda x: sample(subject.diffusion, subject.sampler, rest, seeds, x=x)  # noqa: E731
        return [run(start).final for start in starts]

    def _responses(self, subject: Subject, x: Tensor, points: Tensor, on_step) -> dict:
        square, moved = [], []
        for k in stepped(self._nudged(subject), on_step):
            ends = [end.flatten(1) for end in self._ends(subject, x[k], k)]
            square.append((ends[1] - ends[0]).square().mean(1))
            nearest = [torch.cdist(end, points).argmin(1) for end in ends]
            moved.append((nearest[0] != nearest[1]).double())
        value, error = root_mean(torch.stack(square))
        about = "RMS change of a coordinate by the nudge"
        responses = estimate("response", "level", value, about, "x", error, scale="log")
        about = "share of samples whose nearest data point changes"
        return responses | _shares("changed", torch.stack(moved), about, "level")


def nudged(subject: Subject, lens: Commitment) -> xr.Dataset:
    """What becomes of samples that are nudged at each of the lens's levels.

    Args:
        subject: a run with x recorded.

    Returns:
        Dataset with ``end`` (sample, *event), the samples [x], and ``nudged`` (level, sample,
        *event), the same with a nudge at the noise level ``level``.
    """
    places, x = lens._nudged(subject), subject.field("x").flatten(2)
    ends = [lens._ends(subject, x[k], k) for k in places]
    event = [f"axis_{i}" for i in range(len(subject.diffusion.event_shape))]
    text = {"units": "x"}
    return xr.Dataset(
        {
            "end": (("sample", *event), ends[0][0].cpu().numpy(), text),
            "nudged": (("level", "sample", *event), torch.stack([b for _, b in ends]).cpu(), text),
        },
        {"level": [float(subject.run["rho"].values[k]) for k in places]},
        {"nudge": lens.nudge},
    )


def _posterior(
    x: Tensor, alpha: float, sigma: float, points: Tensor, labels: Tensor | None
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor] | None]:
    """The most probable data point and class of states (n, d), and the entropies [nats]."""
    square = torch.cdist(x, alpha * points).square()
    if sigma == 0:
        log = torch.where(square <= square.amin(1, keepdim=True), 0.0, -math.inf)
    else:
        log = -square / (2 * sigma**2)
    log = log.log_softmax(1)
    point = (square.argmin(1), torch.special.entr(log.exp()).sum(1))
    if labels is None:
        return point, None
    names, which = labels.unique(return_inverse=True)
    mass = log.exp() @ torch.nn.functional.one_hot(which, len(names)).to(log)
    return point, (mass.argmax(1), torch.special.entr(mass).sum(1))


def _shares(name: str, hits: Tensor, about: str, dim: str = "time") -> dict:
    """Shares of samples (dim, n), with their binomial standard errors."""
    value = hits.mean(1)
    error = (value * (1 - value) / (hits.shape[1] - 1 or math.nan)).sqrt()
    return estimate(name, dim, value.cpu().numpy(), about, error=error.cpu().numpy())


# ---- U-turns -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UTurn(Lens):
    """What does noising a data point and going back keep: its class, itself, its bands?

    ``kept`` is the covariance of a point and its return in each band, as a share of the data's
    energy there; ``denoised`` the energy of the denoised state, which it must equal for a denoiser
    that is right. ``class_kept`` and ``point_kept``: shares of the returns of the same class, and
    nearest to the same point; they fall at speciation and at collapse. ``clones_agree``: share of
    pairs of returns of one noised state, by independent noise, of the same class, of the first half
    of the points; for a denoiser that is right a point and its return are such a pair, so it is
    ``class_kept``. The way back is drawn from the exact posterior of Gaussians and of finite sets,
    and by the reverse SDE (``steps`` of DDIM with eta = 1) for all others.

    As attributes the noise levels at which theory has them: speciation by power (the largest
    variance), as published (half its logarithm as a time), by the variance between the classes; and
    collapse by the random-energy estimate.
    """

    levels: Annotated[int, Param("how many noise levels", ge=2, le=64)] = 8
    samples: Annotated[int, Param("data points that are turned round", ge=2, le=100_000)] = 512
    steps: Annotated[int, Param("steps of the reverse SDE back", ge=1, le=1000)] = 48
    seed: Annotated[int, Param("of the noise", ge=0)] = 0

    reads = ("data",)

    @property
    def looks_at(self) -> int | None:
        return None

    def memory(self, dim: int, kept: int) -> int:
        return 96 * self.samples * dim + super().memory(dim, kept)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        if not subject.process.single_level:
            raise NotImplementedError(f"{subject.process!r} has no one alpha and sigma.")
        data, event = subject.data, subject.diffusion.event_shape
        points = data.points.to(subject.diffusion.device, torch.float64)
        every = max(1, len(points) // self.samples)
        chosen = torch.arange(self.samples, device=points.device) * every % len(points)
        clean, mean = points[chosen], points.mean(0)
        noise = NoiseSource(range(self.seed, self.seed + self.samples), event, torch.float64)
        first, (bands, names, inside) = noise.start().to(clean), bands_by("octaves", event)
        total = bands.energy(points - mean).mean(0).numpy() @ inside
        if not total.sum() > NOTHING * float(points.square().mean()):
            raise NotImplementedError("all data points are one: a way back keeps all of it.")
        clones = 0 if data.labels is None else self.samples // 2
        rho = self._rho(subject)
        found = {name: [] for name in ("kept", "denoised", "class", "point", "clones")}
        for level in stepped(rho, on_step):
            noised = clean + level * first
            back, clone, denoised = self._return(subject, noised, level, clones)
            both = bands.covariance((back - mean).cpu(), (clean - mean).cpu()).numpy() @ inside
            energy = bands.energy((denoised - mean).cpu()).numpy() @ inside
            found["kept"].append(both / total)
            found["denoised"].append(energy / total)
            nearest, own, other = (
                torch.cdist(states.flatten(1), points.flatten(1)).argmin(1)
                for states in (back, clean, clone)
            )
            found["point"].append((nearest == own).double())
            if data.labels is not None:
                labels = data.labels.to(nearest.device)
                found["class"].append((labels[nearest] == labels[own]).double())
                same = labels[other] == labels[nearest[: len(other)]]
                found["clones"].append(same.double())
        variables: dict = {}
        for key, about in (
            ("kept", "what a U-turn keeps of a band"),
            ("denoised", "what has emerged of it"),
        ):
            value = np.stack(found[key])  # (level, sample, band)
            error, value = mean_error(value, 1), value.mean(1)
            variables |= estimate(key, ("level", "band"), value, about, error=error)
        for key, about in (("class", "class"), ("point", "nearest data point")):
            if found[key]:
                text = f"share of the returns that keep the {about}"
                variables |= _shares(f"{key}_kept", torch.stack(found[key]), text, "level")
        if clones > 1:
            text = "share of two returns of one state that have the same class"
            variables |= _shares("clones_agree", torch.stack(found["clones"]), text, "level")
        coords = {"rho": ("level", rho), "band": names}
        return xr.Dataset(variables, coords, self._theory(subject, points))

    def exact(self, subject: Subject) -> xr.Dataset | None:
        if not isinstance(subject.denoiser, Gaussian) or subject.data is None:
            return None
        bands, _, inside = bands_by("octaves", subject.diffusion.event_shape)
        # Of the points that were turned round, through the law that brings them back.
        variances, w = weights(subject.denoiser, bands)
        points = subject.data.points.to(torch.float64).cpu()
        cov = torch.cov(points.flatten(1).T, correction=0)
        if not torch.allclose(subject.denoiser.cov.cpu(), cov, atol=1e-9):
            return None
        level = torch.tensor(self._rho(subject))[:, None]
        power = ((variances.square() / (variances + level.square())) @ w.T).numpy() @ inside
        return xr.Dataset({"kept": (("level", "band"), power / ((w @ variances).numpy() @ inside))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        said, rho = [], dataset["rho"].values
        for key, what in (
            ("class_kept", "U-turns keep the class"),
            ("clones_agree", "pairs of clones have one class"),
            ("point_kept", "U-turns keep the point itself"),
        ):
            if key in dataset:
                value = dataset[key].values
                half = np.interp(0.5, value[np.argsort(value)], np.log(rho)[np.argsort(value)])
                if value.min() < 0.5 < value.max():
                    said.append(f"Half of the {what} at ρ = {math.exp(half):.3g}.")
        apart = abs(dataset["kept"] - dataset["denoised"])
        error = np.hypot(dataset["kept_se"], dataset["denoised_se"])
        worst = float((apart / error.where(error > 0)).max())
        said.append(
            "What they keep of each band is what has emerged of it, to the sampling error."
            if worst < 4
            else f"What they keep of a band is not what has emerged of it, by up to {worst:.2g} "
            "standard errors: the denoiser is not that of these data."
        )
        levels = [
            f"{about} {dataset.attrs[key]:.3g}"
            for key, about in THEORY.items()
            if np.isfinite(dataset.attrs.get(key, np.nan))
        ]
        said.append(f"Noise levels of theory: {', '.join(levels)}.")
        return said

    def _rho(self, subject: Subject) -> np.ndarray:
        law = gaussian_of(subject)
        top = math.sqrt(float(law.spectrum.max())) or 1.0
        return np.geomspace(4 * top, 0.1 * top, self.levels)

    def _theory(self, subject: Subject, points: Tensor) -> dict[str, float]:
        variances = gaussian_of(subject).spectrum.double().clamp_min(0)
        top = float(variances.max())
        found = {
            "power": critical.speciation(top).rho,
            "published": critical.speciation(top, by="published").rho,
            "collapse": critical.collapse(variances, len(points)).rho,
        }
        labels = subject.data.labels
        if labels is not None:
            names, which = labels.unique(return_inverse=True)
            means = torch.stack([points[which == k].flatten(1).mean(0) for k in range(len(names))])
            counts = torch.bincount(which).double() / len(which)
            off = (means - points.flatten(1).mean(0)) * counts.sqrt()[:, None]
            found["between"] = float(torch.linalg.matrix_norm(off, 2))
        return found

    def _return(
        self, subject: Subject, y: Tensor, rho: float, clones: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A draw of x0 given x0 + rho eps = y, another for the first ``clones``, and its mean."""
        denoiser, event = subject.denoiser, y.shape[1:]
        denoised = denoiser.denoise(y, 1.0, rho)
        seeds = []
        for k, count in enumerate((len(y), clones), 1):
            first = self.seed + k * 2**32
            seeds.append(range(first, first + count))
        noises = [
            NoiseSource(of, event, torch.float64).start().to(y) if len(of) else y[:0]
            for of in seeds
        ]
        if isinstance(denoiser, Gaussian):
            variances, turn = modes_of(denoiser)
            spread = (variances * rho**2 / (variances + rho**2)).sqrt()
            off = [((z.flatten(1) * spread) @ turn.T).reshape(z.shape) for z in noises]
            return denoised + off[0], denoised[:clones] + off[1], denoised
        if isinstance(denoiser, Empirical) and subject.data is not None:
            points = subject.data.points.to(y)
            log = -torch.cdist(y.flatten(1), points.flatten(1)).square() / (2 * rho**2)
            share = log.softmax(1)
            if torch.allclose((share @ points.flatten(1)).reshape(y.shape), denoised, atol=1e-6):
                below = share.cumsum(1)
                uniform = [torch.special.ndtr(z.flatten(1)[:, :1]) for z in noises]  # one decides
                picked = [(below[: len(u)] < u).sum(1).clamp(max=len(points) - 1) for u in uniform]
                return points[picked[0]], points[picked[1]], denoised
        process = subject.process
        t = float(process.time_of(torch.tensor(rho, dtype=torch.float64)))
        least = max(process(process.t_min).rho, 1e-3 * rho)
        levels = torch.logspace(math.log10(rho), math.log10(least), self.steps, dtype=torch.float64)
        grid = Grid.times(process, process.time_of(levels).tolist(), final="denoise")
        start = float(process(t).alpha) * y
        back, clone = (
            sample(subject.diffusion, DDIM(eta=1.0), grid, list(of), x=start[: len(of)]).final
            if len(of)
            else start[:0]
            for of in seeds
        )
        return back, clone, denoised


#: What the attributes of :class:`UTurn` are.
THEORY = {
    "power": "speciation (noise and data of equal power)",
    "published": "speciation (as published, of a variance-preserving process)",
    "between": "speciation (by the variance between the classes)",
    "collapse": "collapse (random-energy estimate)",
}
