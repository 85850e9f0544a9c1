r"""Do grids that are tuned on a Gaussian help on other data?

A grid tuned to a spectrum (:func:`workbench.exact.tuned_grid`) is the best one for the Gaussian of
that spectrum. Here standard and tuned grids are run on three laws made of the same points: their
Gaussian; the points blurred, each a component of a mixture; and the points themselves, whose ideal
denoiser memorises them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Empirical, Gaussian, Mixture, Neural
from workbench.denoisers.checkpoints import replace
from workbench.diffusion import Diffusion
from workbench.exact import law as exact_law
from workbench.exact import tuned_grid, w2
from workbench.exact.tuned import DIFFERENCE, LogSteps, steps_within
from workbench.lenses.base import Lens, OnStep, Subject, described, remembered
from workbench.lenses.convergence import flow_error
from workbench.lenses.errors import central, mean_error, root_mean
from workbench.lenses.output import energy_distance
from workbench.params import Param
from workbench.sampling import Grid, Sampler
from workbench.sampling.methods import UniPC
from workbench.trajectory import sample

if TYPE_CHECKING:
    from workbench.datasets import Data

#: Swaps of pairs for a null band.
SWAPPED = 200
#: Steps of the run that stands for the exact flow where there is no closed form.
CONVERGED = 96
#: Factors on the spectrum for the grid that is tuned to a family: the small one keeps the grid from
#: a last step that is long for the data's scales and unstable for anything finer.
FAMILY = (0.1, 1.0)
#: Iterations of a grid tuned to runs, and the relative gain at which they end.
DESCENT = (8, 1e-3)
#: Step of the differences in the logarithm of a share, of runs in float32.
ROUGH = 1e-3
#: Seeds that a network's grid is tuned on and judged on, far from those of a study.
TUNED_ON, JUDGED_ON = range(2**40, 2**40 + 12), range(2**41, 2**41 + 24)
#: Most points that make a law; of more, evenly chosen ones.
MOST = 2000


ABOUT = {
    "rms": ("RMS distance to the exact flow", "x"),
    "energy": ("energy distance to the exact flow's samples", "x"),
    "w2_gaussian": ("exact W2 of the output on the Gaussian with the data's covariance", "x"),
    "nodes": ("noise level sigma/alpha", "x"),
}


@dataclass(frozen=True)
class Tuning(Lens):
    """Does a grid that is tuned on the data's spectrum help on the data themselves?

    Standard and tuned grids of equally many steps for the run's sampler, on three laws made of the
    same points (more than 2000: evenly chosen ones): ``gaussian``, theirs; ``blurred``, each a
    component of a mixture; ``memorising``, the points alone; and on ``network``, the run's own,
    where it is one. Grids: ``karras``; ``log_snr``;
    ``tuned`` to the spectrum of the points; ``tuned_free`` without the floor; ``tuned_family`` to
    the spectrum times 0.1 and 1; ``tuned_blurred`` to that of the blurred points; and, for
    deterministic samplers, ``sampled``: tuned to runs on the blurred points, and ``own``: to the
    network's, and held against the standard ones (:func:`network_grid`).

    ``rms`` to the exact flow of the same starts (none for stochastic samplers), exact on Gaussian
    data, its null band what half as many steps of the flow's own run change; ``energy`` to the
    flow's samples, unbiased, its null band the two sets with their pairs swapped at random.
    """

    nfe: Annotated[int, Param("evaluations of a run", ge=2, le=200)] = 10
    floor: Annotated[float, Param("least step, as a share of the even one", ge=0, lt=1)] = 0.1
    blur: Annotated[float, Param("variance of a blurred point [x²]", gt=0, le=1e6)] = 0.3
    samples: Annotated[int, Param("how many samples it looks at", ge=4, le=4096)] = 128

    reads = ("data",)

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 64 * (self.samples + MOST) * (self.samples + dim)

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        runs = self._runs(subject, on_step)
        shape = (len(runs.grids), len(runs.laws))
        names = ("rms", "rms_se", "energy", "energy_se")
        values = {name: np.full(shape, np.nan) for name in names}
        for (i, j), final in runs.finals.items():
            square = (final - runs.flows[j]).square().flatten(1).mean(1)
            pair = energy_distance(final, runs.flows[j], drawn=True, paired=True)
            for name, value in zip(names, (*root_mean(square), *pair), strict=True):
                values[name][i, j] = value
        gaussian, grids = runs.laws["gaussian"], runs.grids.values()
        end = next(iter(grids)).nodes[-1]
        truth = gaussian.denoiser.noised(end.alpha, end.sigma)
        exact = [w2(exact_law(gaussian, subject.sampler, grid), truth) for grid in grids]
        if subject.sampler.stochastic:
            del values["rms"], values["rms_se"]
        variables = described(values, ABOUT, ("grid", "law"))
        variables |= described({"w2_gaussian": np.array(exact)}, ABOUT, "grid")
        rho = np.array([grid.rho for grid in grids])
        coords = {"grid": list(runs.grids), "law": list(runs.laws), "node": np.arange(len(rho[0]))}
        coords |= described({"nodes": rho}, ABOUT, ("grid", "node"))
        attrs = {"nfe": subject.sampler.nfe(next(iter(grids))), "samples": len(subject.seeds)}
        return xr.Dataset(variables, coords, attrs)

    def exact(self, subject: Subject) -> xr.Dataset | None:
        if subject.sampler.stochastic:
            return None
        runs = self._runs(subject, None)
        errors = np.full((len(runs.grids), len(runs.laws)), np.nan)
        for i, grid in enumerate(runs.grids.values()):
            errors[i, 0] = flow_error(runs.laws["gaussian"], subject.sampler, grid)
        return xr.Dataset({"rms": (("grid", "law"), errors)})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        runs = self._runs(subject, None)
        bands = np.empty((len(runs.grids), len(runs.laws), 2))
        for (i, j), final in runs.finals.items():
            bands[i, j] = central(_swapped(final, runs.flows[j]), level)
        variables = {"energy": (("grid", "law", "bound"), bands)}
        if not subject.sampler.stochastic:
            edge = np.array(runs.unsure)
            variables["rms"] = (("law", "bound"), np.stack([0 * edge, edge], 1))
        return xr.Dataset(variables)

    def findings(self, dataset: xr.Dataset) -> list[str]:
        name = "rms" if "rms" in dataset else "energy"
        said = []
        for law in dataset["law"].values.tolist():
            one = dataset[name].sel(law=law)
            best, plain = one.idxmin("grid").item(), one.sel(grid=["karras", "log_snr"]).min()
            said.append(
                f"On the {law} law the best grid is {best}: {ABOUT[name][0]} {float(one.min()):.2g}"
                f", the better standard grid {float(plain):.2g}."
            )
        return said

    @remembered
    def _runs(self, subject: Subject, on_step: OnStep | None) -> _Runs:
        """The laws and grids, and the final states of every run."""
        process, sampler = subject.process, subject.sampler
        if sampler is None:
            raise NotImplementedError("there is no sampler to tune for; give a run of wb.sample.")
        if process.spectral or subject.diffusion.condition is not None:
            raise NotImplementedError(
                f"grids are tuned under a process with one alpha and sigma and no condition; this "
                f"is {process!r}."
            )
        final, seeds, floor = subject.grid.final, subject.seeds, self.floor
        try:
            steps = steps_within(process, sampler, self.nfe, final)
        except (TypeError, ValueError) as error:
            raise NotImplementedError(str(error)) from None
        points = _points(subject.data)
        mean, spectrum = points.mean(0), points.var(0, correction=1)  # diagonal after the rotation
        count = len(points)
        weights, blurs = (points.new_tensor(v).expand(count) for v in (1 / count, self.blur))
        laws = {
            "gaussian": Diffusion(process, Gaussian(mean, spectrum)),
            "blurred": Diffusion(process, Mixture(weights, points, blurs)),
            "memorising": Diffusion(process, Empirical(points)),
        }

        if isinstance(subject.denoiser, Neural):
            # Its weights know no more digits, and a run in float64 takes six times as long.
            laws["network"] = subject.diffusion.to(torch.float32)

        def tuned(spectrum, floor: float = floor) -> Grid:
            return tuned_grid(process, spectrum, sampler, self.nfe, final, floor)

        makers = {
            "karras": lambda: Grid.karras(process, steps, final),
            "log_snr": lambda: Grid.log_snr(process, steps, final),
            "tuned": lambda: tuned(spectrum),
            "tuned_free": lambda: tuned(spectrum, 0.0),
            "tuned_family": lambda: tuned([c * spectrum for c in FAMILY]),
            "tuned_blurred": lambda: tuned(spectrum + self.blur),
        }
        if not sampler.stochastic:
            others = [max(seeds) + 1 + i for i in range(16)]
            makers["sampled"] = lambda: sampled_grid(
                laws["blurred"], sampler, self.nfe, others, final, floor, grids["tuned_blurred"]
            )
            if "network" in laws:
                own = laws["network"]
                makers["own"] = lambda: network_grid(own, sampler, self.nfe, final)
        total, done = len(makers) * (1 + len(laws)) + len(laws), itertools.count(1)

        def tell() -> None:
            if on_step is not None:
                on_step(next(done), total)

        grids: dict[str, Grid] = {}
        for name, make in makers.items():
            grids[name] = make()
            tell()
        flows, unsure, finals = [None] * len(laws), [0.0] * len(laws), {}
        for j, diffusion in enumerate(laws.values()):
            flows[j], unsure[j] = converged_flow(diffusion, final, seeds, check=64)
            tell()
            for i, grid in enumerate(grids.values()):
                finals[i, j] = sample(diffusion, sampler, grid, seeds).final
                tell()
        return _Runs(laws, grids, flows, unsure, finals)


class _Runs(NamedTuple):
    """What :class:`Tuning` runs: laws and grids by name; of each law the flow's final states and
    how well they are known; the final states by the places of grid and law."""

    laws: dict[str, Diffusion]
    grids: dict[str, Grid]
    flows: list[Tensor]
    unsure: list[float]
    finals: dict[tuple[int, int], Tensor]


def _swapped(x: Tensor, y: Tensor) -> np.ndarray:
    """Energy distances of paired samples (n, *event) with the members of each pair swapped or not,
    at random: what they are if both are of one law."""
    x, y = (one.flatten(1).double().cpu() for one in (x, y))
    n, generator = len(x), torch.Generator().manual_seed(0)
    across = torch.cdist(x, y).fill_diagonal_(0)
    within = torch.cdist(x, x) + torch.cdist(y, y)
    # Of a swap s (n,) of signs, a pair of pairs adds its part with the sign of s_i s_j.
    parts = across + across.T - within
    signs = 2.0 * torch.randint(2, (SWAPPED, n), generator=generator).double() - 1
    return ((signs @ parts * signs).sum(1) / (n * (n - 1))).numpy()


def sampled_grid(
    diffusion: Diffusion,
    sampler: Sampler,
    nfe: int,
    seeds: Sequence[int] = range(16),
    final: str = "stop",
    floor: float = 0.1,
    start: Grid | None = None,
    judged: Sequence[int] = (),
) -> Grid:
    """The grid on which a deterministic sampler stays closest to the exact flow of its own seeds.

    Least squares of the distance of all coordinates of all samples, on any data, from the standard
    grid that is closest; each grid that is tried costs a run.

    Args:
        diffusion: of any denoiser, under a scalar process.
        sampler: deterministic, linear or not, with as many evaluations on every grid.
        nfe, final, floor: as in :func:`workbench.exact.tuned_grid`.
        seeds: of the samples; few will do, as each gives as many numbers as it has coordinates.
        start: a grid of as many steps to start from as well, e.g. one tuned to the spectrum.
        judged: further seeds, on which it is held against the standard grids: where it is not
            closer than the best of them by more than a standard error, that one is given. Many
            steps leave little to gain, and what is gained on a few seeds may be lost on others.

    Raises:
        ValueError: a stochastic sampler, whose samples do not follow the flow.
    """
    if sampler.stochastic:
        raise ValueError(
            f"{sampler!r} is stochastic, so its samples do not follow the flow; tune its law with "
            "wb.exact.tuned_grid."
        )
    process, seeds, judged = diffusion.process, list(seeds), list(judged)
    steps = steps_within(process, sampler, nfe, final)
    path = LogSteps(process, steps, final, floor)
    if path.free == 0:
        return path.standard[0]
    both, _ = converged_flow(diffusion, final, [*seeds, *judged])
    flow, beyond = both[: len(seeds)], both[len(seeds) :]
    scale = 1 / (math.sqrt(flow.numel()) * diffusion.denoiser.std)

    def objective(grids: Sequence[Grid]) -> np.ndarray:
        apart = [(sample(diffusion, sampler, g, seeds).final - flow).flatten() for g in grids]
        return (scale * torch.stack(apart)).double().nan_to_num(1e6).clamp(-1e6, 1e6).cpu().numpy()

    starts = [*path.standard, *([] if start is None else [start])]
    nearest = starts[int(np.square(objective(starts)).sum(1).argmin())]
    rough = ROUGH if flow.dtype == torch.float32 else DIFFERENCE
    tuned = path.search(objective, [nearest], DESCENT, None, difference=rough)
    if not judged:
        return tuned

    def squares(grid: Grid) -> np.ndarray:
        apart = (sample(diffusion, sampler, grid, judged).final - beyond).flatten(1)
        return apart.square().mean(1).double().nan_to_num(1e12).cpu().numpy()

    others = [squares(grid) for grid in path.standard]
    best = int(np.argmin([one.mean() for one in others]))
    gained = others[best] - squares(tuned)
    sure = gained.mean() > mean_error(gained)
    return tuned if sure else path.standard[best]


def network_grid(
    diffusion: Diffusion, sampler: Sampler, nfe: int, final: str = "stop", keep: bool = False
) -> Grid:
    """The grid tuned to a network's own runs, :func:`sampled_grid`, kept beside its checkpoint.

    Of 12 seeds, judged on 24 others. The file ``<checkpoint>.grids.json`` holds grids by process,
    sampler and evaluations, for the very weights whose hash it names.

    Args:
        diffusion: of a network of a checkpoint, with no condition and no guidance.
        sampler: deterministic.
        nfe, final: as in :func:`workbench.exact.tuned_grid`.
        keep: write what is not there yet into the file.

    Raises:
        ValueError: as :func:`sampled_grid`.
    """
    process = diffusion.process
    path = vars(diffusion.denoiser).get("path")
    given = getattr(diffusion.denoiser, "condition", None) is not None
    file = None if path is None or given else path.with_suffix(".grids.json")
    key = json.dumps([repr(process), repr(sampler), int(nfe), final])
    known: dict = {"grids": {}}
    if file is not None:
        weights = hashlib.sha256(path.read_bytes()).hexdigest()
        if file.exists():
            known = json.loads(file.read_text())
        if known.get("weights") != weights:
            known = {"weights": weights, "grids": {}}
        if key in known["grids"]:
            times = known["grids"][key]
            return Grid.times(process, times[: len(times) - (final == "denoise")], final)
    grid = sampled_grid(
        diffusion.to(torch.float32), sampler, nfe, TUNED_ON, final, judged=JUDGED_ON
    )
    if keep and file is not None:
        known["grids"][key] = [float(f"{t:.6g}") for t in grid.t]
        known["grids"] = dict(sorted(known["grids"].items()))
        text = json.dumps({"weights": known["weights"], "grids": known["grids"]}, indent=1)
        replace(file, (text + "\n").encode())
    return grid


def _points(data: Data) -> Tensor:
    """The points (n, d), float64, turned into their principal axes."""
    points = data.points.detach().cpu().double().flatten(1)
    if len(points) < 2:
        raise NotImplementedError("the data are a single point, which has no spectrum.")
    points = points[:: -(-len(points) // MOST)]
    _, axes = torch.linalg.eigh(torch.cov(points.T).reshape(points.shape[1], -1))
    return points @ axes.flip(1)


def converged_flow(
    diffusion: Diffusion, final: str, seeds: list[int], check: int = 0, steps: int = CONVERGED
) -> tuple[Tensor, float]:
    """The flow of the seeds' starting states, and how well it is known.

    Args:
        final: as of a grid.
        check: samples, the first ones, of which the RMS change by half as many steps is given; 0:
            none, and nan is.
        steps: of the run that stands for the flow.
    """

    def run(steps: int, seeds: list[int]) -> Tensor:
        grid = Grid.log_snr(diffusion.process, steps, final)
        return sample(diffusion, UniPC(3), grid, seeds).final

    flow = run(steps, seeds)
    if not check:
        return flow, math.nan
    return flow, (flow[:check] - run(steps // 2, seeds[:check])).square().mean().sqrt().item()
