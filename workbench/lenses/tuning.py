r"""Do grids that are tuned on a Gaussian help on other data?

A grid tuned to a spectrum (:func:`workbench.exact.tuned_grid`) is the best one for the Gaussian of
that spectrum. Here standard and tuned grids are run on three laws made of the same points: their
Gaussian; the points blurred, each a component of a mixture; and the points themselves, whose ideal
denoiser memorises them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.datasets import Data
from workbench.denoisers import Empirical, Gaussian, Mixture
from workbench.diffusion import Diffusion
from workbench.exact import law as exact_law
from workbench.exact import tuned_grid, w2
from workbench.exact.tuned import LogSteps, steps_within
from workbench.processes import Process
from workbench.sampling import Grid, Sampler
from workbench.sampling.methods import UniPC
from workbench.trajectory import sample

__all__ = ["sampled_grid", "transfer_report"]

#: Steps of the run that stands for the exact flow where there is no closed form.
CONVERGED = 96
#: Factors on the spectrum for the grid that is tuned to a family: the small one keeps the grid from
#: a last step that is long for the data's scales and unstable for anything finer.
FAMILY = (0.1, 1.0)
#: Most points that make a law; of more, evenly chosen ones.
MOST = 2000


def transfer_report(
    process: Process,
    data: Data | Tensor,
    sampler: Sampler,
    nfe: int = 10,
    final: str = "stop",
    floor: float = 0.1,
    variance: float = 0.3,
    seeds: Sequence[int] = range(256),
    on_step: Callable[[int, int], None] | None = None,
) -> xr.Dataset:
    """Standard and tuned grids of equally many steps on three laws made of the same points.

    Grids: ``karras``; ``log_snr``; ``tuned`` to the spectrum of the points with the floor;
    ``tuned_free`` without it; ``tuned_family`` to the spectrum times 0.1 and 1;
    ``tuned_blurred`` to the spectrum of the blurred points; and, for deterministic samplers,
    ``sampled``: tuned to runs on the blurred points (:func:`sampled_grid`) of seeds of its own.

    Args:
        process: a scalar one.
        data: a data set or its points (n, *event); of more than 2000, evenly chosen ones.
        sampler: any linear one.
        nfe: evaluations of a run.
        final, floor: as in :func:`workbench.exact.tuned_grid`.
        variance: of each blurred point [x²].
        seeds: of the runs.
        on_step: called as ``on_step(done, total)`` after each part; what it raises ends the report.

    Returns:
        Dataset over (grid, law): ``rms`` to the exact flow of the same starting states, the root
        mean square over samples and coordinates [x] (nan for stochastic samplers); ``energy``, the
        energy distance :math:`2E|X-Y| - E|X-X'| - E|Y-Y'|` to the flow's samples [x], whose mean is
        ``energy_null`` for independent samples of one law; ``w2`` (grid), exact, of the Gaussian;
        ``rho`` (grid, node); ``uncertainty`` (law), RMS between the flow's run and one of half as
        many steps: differences below it mean nothing.
    """
    points = _points(data)
    mean, spectrum = points.mean(0), points.var(0, correction=1)  # diagonal after the rotation
    count = len(points)
    weights = torch.full((count,), 1.0 / count, dtype=torch.float64)
    blurs = torch.full((count,), float(variance), dtype=torch.float64)
    laws = {
        "gaussian": Diffusion(process, Gaussian(mean, spectrum)),
        "blurred": Diffusion(process, Mixture(weights, points, blurs)),
        "memorising": Diffusion(process, Empirical(points)),
    }
    seeds = list(seeds)
    steps = steps_within(process, sampler, nfe, final)
    tune = lambda s, f=floor: tuned_grid(process, s, sampler, nfe, final, f)  # noqa: E731
    makers = {
        "karras": lambda: Grid.karras(process, steps, final),
        "log_snr": lambda: Grid.log_snr(process, steps, final),
        "tuned": lambda: tune(spectrum),
        "tuned_free": lambda: tune(spectrum, 0.0),
        "tuned_family": lambda: tune([c * spectrum for c in FAMILY]),
        "tuned_blurred": lambda: tune(spectrum + variance),
    }
    if not sampler.stochastic:
        own = [max(seeds) + 1 + i for i in range(16)]
        makers["sampled"] = lambda: sampled_grid(
            laws["blurred"], sampler, nfe, own, final, floor, grids["tuned_blurred"]
        )
    total, done = len(makers) * (1 + len(laws)) + len(laws), 0

    def tell() -> None:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, total)

    grids: dict[str, Grid] = {}
    for name, make in makers.items():
        grids[name] = make()
        tell()
    shape = (len(grids), len(laws))
    rms, energy = np.full(shape, np.nan), np.full(shape, np.nan)
    null, uncertainty = np.zeros((2, len(laws)))
    for j, diffusion in enumerate(laws.values()):
        flow, uncertainty[j] = _flow(diffusion, final, seeds)
        # Of n samples each: the means over pairs count every sample's distance to itself.
        null[j] = 2 * torch.cdist(flow, flow).mean().item() / max(len(flow) - 1, 1)
        tell()
        for i, grid in enumerate(grids.values()):
            made = sample(diffusion, sampler, grid, seeds).final
            energy[i, j] = _energy(made, flow)
            if not sampler.stochastic:
                rms[i, j] = _rms(made, flow)
            tell()
    gaussian = laws["gaussian"]
    end = next(iter(grids.values())).nodes[-1]
    truth = gaussian.denoiser.noised(end.alpha, end.sigma)
    exact = [w2(exact_law(gaussian, sampler, grid), truth) for grid in grids.values()]
    both = ("grid", "law")
    return xr.Dataset(
        {
            "rms": (both, rms, {"long_name": "RMS distance to the exact flow", "units": "x"}),
            "energy": (both, energy, {"long_name": "energy distance to the exact flow's samples"}),
            "energy_null": ("law", null, {"long_name": "its mean between samples of one law"}),
            "uncertainty": ("law", uncertainty, {"long_name": "RMS uncertainty of the flow"}),
            "w2": ("grid", exact, {"long_name": "exact 2-Wasserstein distance", "units": "x"}),
            "rho": (
                ("grid", "node"),
                np.array([grid.rho for grid in grids.values()]),
                {"long_name": "noise level sigma/alpha"},
            ),
        },
        {"grid": list(grids), "law": list(laws), "node": np.arange(steps + 1)},
        {
            "process": repr(process),
            "sampler": repr(sampler),
            "nfe": sampler.nfe(grids["karras"]),
            "variance": float(variance),
            "floor": float(floor),
            "samples": len(seeds),
        },
    )


def sampled_grid(
    diffusion: Diffusion,
    sampler: Sampler,
    nfe: int,
    seeds: Sequence[int] = range(16),
    final: str = "stop",
    floor: float = 0.1,
    start: Grid | None = None,
) -> Grid:
    """The grid on which a deterministic sampler stays closest to the exact flow of its own seeds.

    Least squares of the distance of all coordinates of all samples, on any data; each grid that is
    tried costs a run.

    Args:
        diffusion: of any denoiser, under a scalar process.
        sampler: deterministic, linear or not, with as many evaluations on every grid.
        nfe, final, floor: as in :func:`workbench.exact.tuned_grid`.
        seeds: of the samples; few will do, as each gives as many numbers as it has coordinates.
        start: a grid of as many steps to start from as well, e.g. one tuned to the spectrum.

    Raises:
        ValueError: a stochastic sampler, whose samples do not follow the flow.
    """
    if sampler.stochastic:
        raise ValueError(
            f"{sampler!r} is stochastic, so its samples do not follow the flow; tune its law with "
            "wb.exact.tuned_grid."
        )
    process, seeds = diffusion.process, list(seeds)
    steps = steps_within(process, sampler, nfe, final)
    path = LogSteps(process, steps, final, floor)
    if path.free == 0:
        return path.standard[0]
    flow, _ = _flow(diffusion, final, seeds, check=0)
    scale = 1 / (math.sqrt(flow.numel()) * diffusion.denoiser.std)

    def objective(grids: Sequence[Grid]) -> np.ndarray:
        apart = [(sample(diffusion, sampler, g, seeds).final - flow).flatten() for g in grids]
        return (scale * torch.stack(apart)).double().nan_to_num(1e6).clamp(-1e6, 1e6).cpu().numpy()

    starts = [Grid.karras(process, steps, final), Grid.log_snr(process, steps, final)]
    starts += [start] if start is not None else []
    return path.search(objective, starts, (3, 1e-2), (10, 1e-3), keep=1)


def _points(data: Data | Tensor) -> Tensor:
    """The points (n, d), float64, turned into their principal axes."""
    points = data.points if isinstance(data, Data) else torch.as_tensor(data)
    points = points.detach().cpu().double().flatten(1) if points.ndim > 1 else points
    if points.ndim != 2 or len(points) < 2:
        raise ValueError(
            f"data has shape {tuple(points.shape)}; give at least two points, (n, *event)."
        )
    points = points[:: -(-len(points) // MOST)]
    _, axes = torch.linalg.eigh(torch.cov(points.T).reshape(points.shape[1], -1))
    return points @ axes.flip(1)


def _flow(diffusion: Diffusion, final: str, seeds: list[int], check: int = 64):
    """The flow of the seeds' starting states, and how well it is known (RMS of the first ones)."""

    def run(steps: int, seeds: list[int]) -> Tensor:
        return sample(
            diffusion, UniPC(3), Grid.log_snr(diffusion.process, steps, final), seeds
        ).final

    flow = run(CONVERGED, seeds)
    return flow, _rms(flow[:check], run(CONVERGED // 2, seeds[:check])) if check else math.nan


def _rms(x: Tensor, y: Tensor) -> float:
    return (x - y).square().mean().sqrt().item()


def _energy(x: Tensor, y: Tensor) -> float:
    cross, own, other = (torch.cdist(a, b).mean().item() for a, b in ((x, y), (x, x), (y, y)))
    return max(0.0, 2 * cross - own - other)
