"""The laws of a sampler."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.exact import law, w2
from workbench.processes import DCT, PROCESSES, SPECTRAL, Process
from workbench.sampling import Grid, NoiseSource, Record, Sampler
from workbench.sampling.plan import program_of
from workbench.testing.report import ConformanceError, Report
from workbench.trajectory import sample


def check_sampler(sampler: Sampler, processes: Collection[str] | None = None) -> Report:
    """Hold a sampler against what it says of itself, on every registered process that it takes.

    On those with one alpha and sigma for the whole state; where it refuses all of these, on the
    spectral ones that need no more than a basis.

    Laws: ``nfe(grid)`` is the number of evaluations its program holds, with both ends of a grid and
    down to one step; a sample alone as in a batch, and with or without recording; fresh noise only
    if it says ``stochastic``; and the order of convergence, at least the one it claims. That is
    measured on a Gaussian: with the exact law of the output (2-Wasserstein distance to the
    marginal) where the program is linear, sample by sample against the exact flow where it is not.
    A sampler that claims no order (0) has none measured.

    Args:
        processes: names of the registered ones with one alpha and sigma for the whole state that
            it is tried on; None: all.
    """
    report = Report(repr(sampler))
    if not (sampler.__doc__ and sampler.order >= 0 and sampler.stochastic in (True, False)):
        raise ConformanceError(Report(f"{sampler!r} needs a docstring, an order and stochastic."))
    # Small beside the largest noise of any process: the first steps of a multistep method, of
    # lower order, do not show in the last.
    mean = torch.tensor([0.22, -0.13, 0.06], dtype=torch.float64)
    data = Gaussian(mean, torch.tensor([0.15, 0.04, 0.005], dtype=torch.float64))
    diffusions = _taken(sampler, data, report, processes or PROCESSES)
    counts, fresh = {}, {}
    for name, diffusion in diffusions.items():
        process = diffusion.process
        for steps, final in ((1, "stop"), (1, "denoise"), (2, "denoise"), (9, "stop")):
            grid = _grid(process, steps, final)
            program = program_of(diffusion, sampler, grid)
            where = f"{name}, {steps} steps, {final}"
            apart = abs((program.nfe or 0) - (sampler.nfe(grid) or 0)) + 0.5
            # None, where only the run can tell, for both.
            counts[where] = 0.0 if program.nfe == sampler.nfe(grid) else apart
            fresh[where] = float(program.draws > 0 and not sampler.stochastic)
    report.add("nfe(grid) counts the program's evaluations", counts, 0.0)
    report.add("draws noise only if stochastic", fresh, 0.0)
    alone, kept = {}, {}
    for name, diffusion in diffusions.items():
        grid = _grid(diffusion.process, 12, "denoise")
        batch = _final(diffusion, sampler, grid, range(5))
        one = torch.cat([_final(diffusion, sampler, grid, [i]) for i in (0, 3)])
        again = _final(diffusion, sampler, grid, range(5), Record(["x", "denoised"]))
        alone[name] = (one - batch[[0, 3]]).abs().max().item()
        kept[name] = (again - batch).abs().max().item()
    report.add("a sample alone as in a batch", alone, 1e-10)
    report.add("recording changes nothing", kept, 1e-12)
    if not sampler.global_order:
        report.skipped.append("order: it claims none.")
    elif short := _shortfalls(sampler, diffusions, report):
        report.add(f"order {sampler.global_order} (shortfall)", short, SHORTFALL)
    return report.finish()


#: How far the measured order may fall short of the claimed one.
SHORTFALL = 0.2


def _taken(
    sampler: Sampler, data: Gaussian, report: Report, processes: Collection[str]
) -> dict[str, Diffusion]:
    """Diffusions of ``data`` by the name of their process, those whose process it refuses left out
    and said so."""
    row = Gaussian(data.mean[None], data.variances[None])
    basis, diffusions = DCT(tuple(row.event_shape)), {}
    plain = {name: Diffusion(PROCESSES[name](), data) for name in processes}
    by_mode = {n: Diffusion(SPECTRAL[n](basis=basis), row) for n in ("HeatDissipation", "Blurring")}
    for family in (plain, by_mode):
        for name, diffusion in family.items():
            grid = _grid(diffusion.process, 3, "stop")
            try:
                program_of(diffusion, sampler, grid)
            except ValueError as error:
                report.skipped.append(f"{name}: {error}")
            else:
                diffusions[name] = diffusion
        if diffusions:
            return diffusions
    raise ConformanceError(report)


def _grid(process: Process, steps: int, final: str) -> Grid:
    make = Grid.uniform if process.spectral else Grid.log_snr
    return make(process, steps, final)


def _final(diffusion: Diffusion, sampler: Sampler, grid: Grid, seeds, record=None) -> Tensor:
    """Final states, from the prior or, where there is none, from noised data."""
    x = None
    if not diffusion.process.has_prior:
        noise, law = NoiseSource(seeds, diffusion.event_shape), diffusion.denoiser
        points = law.mean + law.variances.sqrt() * noise.step(1 << 20)
        x = diffusion.diffuse(points, grid.t[0], noise.start())
    return sample(diffusion, sampler, grid, seeds, record, x).final


def _shortfalls(sampler: Sampler, diffusions: dict, report: Report) -> dict[str, float]:
    """By process: how much the measured order falls short of the claimed one.

    Started from the true marginal; where the process starts at pure noise, from where a grid's own
    spacing begins: the steps that lead there from infinite rho have a rule of their own. Where few
    steps do not show the order yet, more are taken.
    """
    short = {}
    for name, diffusion in diffusions.items():
        for steps in (64, 160):
            first = _error(sampler, diffusion, steps, report)
            if first is None:
                return {}
            errors = first, _error(sampler, diffusion, 2 * steps, report)
            exact = errors[1] < 1e-9 * diffusion.denoiser.std
            short[name] = 0.0 if exact else sampler.global_order - math.log2(errors[0] / errors[1])
            if short[name] <= SHORTFALL:
                break
    return short


def _error(sampler: Sampler, diffusion: Diffusion, steps: int, report: Report) -> float | None:
    """Distance of the output from the truth; None, with the reason, where there is no order."""
    grid = _grid(diffusion.process, steps, "stop")
    if grid.alpha[0] == 0:
        low, high = diffusion.process.t_min, diffusion.process.t_max
        begin = (1 + 1e-12) * max(high - low, 0.5 * (high + low))
        grid = Grid.times(diffusion.process, [t for t in grid.t if t <= begin])
    program = program_of(diffusion, sampler, grid)
    if program.linear:
        output = law(diffusion, sampler, grid, diffusion.marginal(grid.t[0]))
        return w2(output, diffusion.marginal(grid.t[-1]))
    if sampler.stochastic or program.nfe is None:
        why = "draws noise" if sampler.stochastic else "chooses its own steps"
        report.skipped.append(f"order: it is not linear and {why}.")
        return None
    return _from_flow(diffusion, sampler, grid)


def _from_flow(diffusion: Diffusion, sampler: Sampler, grid: Grid) -> float:
    """RMS distance of runs from the exact flow, started from the marginal."""
    seeds, start = range(64), diffusion.marginal(grid.t[0])
    z = NoiseSource(seeds, diffusion.event_shape).start()
    x = start.mean + start.variances.sqrt() * z
    final = sample(diffusion, sampler, grid, seeds, x=x).final
    return (final - diffusion.flow(x, grid.t[0], grid.t[-1])).square().mean().sqrt().item()
