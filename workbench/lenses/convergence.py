r"""How far a sampler's exact output law is from the truth: over evaluations, modes and grids.

On Gaussian data a linear sampler takes every mode of variance :math:`\lambda` to a Gaussian whose
standard deviation :math:`s_k` is known without sampling (:func:`workbench.exact.transfer`). Beside
the marginal at the end of the grid, of standard deviation
:math:`\tau_k = \sqrt{\alpha^2\lambda_k + \sigma^2}`, the errors are numbers:

.. math:: W_2^2 = \sum_k (s_k - \tau_k)^2 + b_k^2, \qquad
    \mathrm{KL} = \sum_k \tfrac12\Big(\frac{s_k^2}{\tau_k^2} - 1 - \log\frac{s_k^2}{\tau_k^2}\Big)
    + \frac{b_k^2}{2\tau_k^2}

with :math:`b_k` what the means differ by. A run starts from the process's prior, as ``wb.sample``
does, or from the exact marginal: then all of the error is the sampler's. The processes are those
with one alpha and sigma for all modes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise, product
from typing import Annotated, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.exact.transfer import transfer
from workbench.lenses.base import Lens, OnStep, Subject, remembered
from workbench.lenses.teleport import matched_gaussian
from workbench.params import Param
from workbench.processes import Process
from workbench.sampling import GRIDS, Grid, Program, Record, Sampler
from workbench.sampling.methods import RK4
from workbench.trajectory import sample

__all__ = [
    "Convergence",
    "convergence",
    "flow_error",
    "grid_errors",
    "orders",
    "paths",
    "stability",
    "steps_within",
]

Start = Literal["prior", "exact"]
MakeGrid = Callable[[Process, int], Grid]

#: Most steps that a number of evaluations is turned into.
MOST_STEPS = 10_000

#: Roundings per step that an error must exceed to be told from zero.
ROUNDING = 64 * 2.0**-52


ABOUT = {
    "rms": ("RMS distance to the solution of the same starts", "x"),
    "w2_gaussian": ("exact W2 of the output on the Gaussian with the data's covariance", "x"),
    "kl_gaussian": ("exact KL of the output on the Gaussian with the data's covariance", "nats"),
    "order": ("measured order on the Gaussian with the data's covariance", "1"),
    "nfe": ("evaluations of the denoiser", "1"),
}


@dataclass(frozen=True)
class Convergence(Lens):
    """How does this sampler's error fall with its number of evaluations?

    The run's sampler on its kind of grid, with more and fewer steps. ``rms``: of deterministic
    samplers, the distance to a converged solution from the same starts, on grids that stop at
    t_min; exact on Gaussian data for linear samplers, and below the null band not told from the
    solution's own error. ``w2_gaussian``, ``kl_gaussian`` and ``order`` are exact for the Gaussian
    with the data's mean and covariance, of every linear sampler.
    """

    most: Annotated[int, Param("most evaluations of a run", ge=4, le=2000)] = 96
    points: Annotated[int, Param("how many numbers of evaluations", ge=2, le=64)] = 7
    solver_steps: Annotated[
        int, Param("steps of the solution (RK4); half as many tell its error", ge=4, le=10_000)
    ] = 256
    samples: Annotated[int, Param("how many samples it looks at", ge=2, le=100_000)] = 48

    reads = ("final",)

    def memory(self, dim: int, kept: int) -> int:
        return super().memory(dim, kept) + 512 * self.samples * dim

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        sampler, process = subject.sampler, subject.process
        if process.spectral or subject.diffusion.condition is not None:
            raise NotImplementedError(
                f"{process!r} has a condition or one rho per mode; convergence is measured under a "
                "process with one alpha and sigma for all modes."
            )
        if subject.grid.name not in GRIDS:
            raise NotImplementedError(
                f"the number of steps of {subject.grid!r} is fixed; take one of {', '.join(GRIDS)}."
            )
        if sampler.nfe(subject.grid) is None:
            raise NotImplementedError(f"only a run tells how many evaluations {sampler!r} takes.")
        budgets = self._budgets()
        variables, attrs = {}, {"sampler": repr(sampler), "claimed": sampler.global_order}
        if not sampler.stochastic:
            found = self._paths(subject, on_step)
            variables["rms"] = ("budget", found["rms"].values.ravel())
            variables["rms_se"] = ("budget", found["rms_se"].values.ravel())
            variables["nfe"] = ("budget", found["nfe"].values.ravel())
        if sampler.program(process, subject.grid).linear:
            twin = _twin(subject)
            make = _maker(subject, subject.grid.final)
            law = convergence(
                process, twin.variances, {"": sampler}, {"": make}, budgets, twin.mean
            ).isel(sampler=0, grid=0)
            measured = orders(process, twin.variances, {"": sampler}, _maker(subject, "stop"))
            variables["w2_gaussian"] = ("budget", law["w2"].values)
            variables["kl_gaussian"] = ("budget", law["kl"].values)
            variables["order"] = ((), measured["slope"].values[0, -1])
            variables.setdefault("nfe", ("budget", law["nfe"].values))
        if not variables:
            raise NotImplementedError(
                f"{sampler!r} draws fresh noise and is not linear, so nothing that it converges to "
                "is known sample by sample; look through the lens output."
            )
        made = {}
        for name, (dims, value) in variables.items():
            about, unit = ABOUT[name.removesuffix("_se")]
            attributes = {"units": unit}
            if not name.endswith("_se"):
                attributes |= {"long_name": about, "scale": "log"}
            made[name] = (dims, value, attributes)
        axis = ("budget", budgets, {"long_name": "most evaluations (NFE)", "scale": "log"})
        return xr.Dataset(made, {"budget": axis}, attrs).set_coords("nfe")

    def exact(self, subject: Subject) -> xr.Dataset | None:
        sampler = subject.sampler
        gaussian = isinstance(subject.denoiser, Gaussian) and not sampler.stochastic
        if not gaussian or not sampler.program(subject.process, subject.grid).linear:
            return None
        twin = Diffusion(subject.process, _twin(subject))
        make, steps = _maker(subject, "stop"), self._paths(subject)["steps"].values.ravel()
        values = [flow_error(twin, sampler, make(subject.process, int(n))) for n in steps]
        return xr.Dataset({"rms": ("budget", np.array(values))})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        if subject.sampler.stochastic:
            return None
        floor = float(self._paths(subject)["floor_rms"])
        return xr.Dataset({"rms": ("bound", np.array([0.0, floor]))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        said, nfe = [], int(dataset["nfe"][-1])
        if "rms" in dataset:
            told = f"With {nfe} evaluations samples end {float(dataset['rms'][-1]):.2g} from where "
            told += "the exact flow takes them"
            if "rms_exact" in dataset:
                told += f" (exactly {float(dataset['rms_exact'][-1]):.2g})"
            said.append(told + ", root mean square per coordinate.")
        if "order" in dataset:
            said.append(
                f"On Gaussian data the error falls with order {float(dataset['order']):.2f}; "
                f"{dataset.attrs['claimed']} is claimed."
            )
        return said

    @remembered
    def _paths(self, subject: Subject, on_step: OnStep | None) -> xr.Dataset:
        each = {"": subject.sampler}, {"": _maker(subject, "stop")}, self._budgets()
        half = 2 * (self.solver_steps // 2)
        return paths(subject.diffusion, *each, subject.seeds, half, on_step)

    def _budgets(self) -> list[int]:
        """Numbers of evaluations, even on a log axis."""
        return np.unique(np.geomspace(4, self.most, self.points).round().astype(int)).tolist()


def _maker(subject: Subject, final: str) -> MakeGrid:
    """Grids of the run's kind of any number of steps."""
    make = GRIDS[subject.grid.name]
    return lambda process, steps: make(process, steps=steps, final=final)


def _twin(subject: Subject) -> Gaussian:
    """The modes of the Gaussian with the data's mean and covariance."""
    twin = matched_gaussian(subject.denoiser).diagonalised()[0]
    return Gaussian(twin.mean.flatten().double().cpu(), twin.variances.double().cpu().flatten())


def flow_error(gaussian: Diffusion, sampler: Sampler, grid: Grid) -> float:
    r"""Expected RMS distance of a deterministic linear sampler's output to the exact flow [x].

    Of starts from the process's prior, per coordinate. With gain g and response r of the sampler
    and gain f of the flow, in each mode

    .. math:: \mathrm{E}\,d^2 = (g - f)^2 s_T^2 + (r - \alpha_0 + f\alpha_T)^2\mu^2 .
    """
    law, process, (first, end) = gaussian.denoiser, gaussian.process, grid.nodes[:: grid.steps]
    done = transfer(sampler.program(process, grid), law.variances)
    flow = _std(law.variances, end) / _std(law.variances, first)
    begin = _begin(process, law.variances, first, "prior")
    shift = done.response.numpy() - end.alpha + flow * first.alpha
    square = ((done.gain.numpy() - flow) * begin) ** 2 + (shift * law.mean.numpy()) ** 2
    return float(np.sqrt(square.mean()))


def convergence(
    process: Process,
    variances: Tensor,
    samplers: Mapping[str, Sampler],
    grids: Mapping[str, MakeGrid],
    budgets: Sequence[int],
    mean: Tensor | None = None,
    start: Start = "prior",
    on_step: OnStep | None = None,
) -> xr.Dataset:
    """Exact error of samplers against their number of denoiser evaluations.

    Args:
        process: with one alpha and sigma for all modes.
        variances: (d,) of the modes of the data [x²].
        samplers: linear ones, by the name to show.
        grids: ``(process, steps) -> Grid``, by name; all end at the same time.
        budgets: most evaluations of each run; it has as many steps as these allow, at least one.
        mean: (d,) of the data along the modes; None: 0.
        start: "prior", the law that ``wb.sample`` starts from; "exact", the marginal there.
        on_step: called as ``on_step(done, total)``, once for each run.

    Returns:
        Dataset with ``std`` [x] and ``bias`` [x] of the output (sampler, grid, budget, mode);
        ``w2`` [x], ``kl`` [nats], ``steps`` and ``nfe`` (sampler, grid, budget); ``target``, the
        exact standard deviation (mode); and ``floor_w2``, ``floor_kl``: what the prior alone costs
        along the exact flow, 0 from the exact marginal. Runs that a sampler refuses, or that leave
        what floats can hold, are nan.

    Raises:
        NotImplementedError: a spectral process.
        TypeError: a sampler that is not linear.
        ValueError: grids that end at different times, or variances that are no variances.
    """
    field = _field(process, variances, mean)
    grids = {name: _once(make) for name, make in grids.items()}
    shape = (len(samplers), len(grids), len(budgets))
    std, bias = (np.full((*shape, field.denoiser.dim), math.nan) for _ in range(2))
    steps, nfe = np.zeros(shape, int), np.zeros(shape, int)
    ends, total = {}, math.prod(shape)
    for done, (i, j, k) in enumerate(product(*map(range, shape))):
        sampler, make = list(samplers.values())[i], list(grids.values())[j]
        steps[i, j, k] = steps_within(sampler, process, make, budgets[k])
        grid = make(process, int(steps[i, j, k]))
        ends[grid.t[-1], grid.sigma[-1]] = grid.nodes[-1], grid.nodes[0]
        out = _output(field, sampler, grid, start)
        if out is not None:
            std[i, j, k], bias[i, j, k], nfe[i, j, k] = out
        if on_step is not None:
            on_step(done + 1, total)
    if len(ends) > 1:
        raise ValueError(
            f"the grids end at the times {sorted(t for t, _ in ends)}; give grids that end at one "
            "time, so that they have one target."
        )
    ((end, first),) = ends.values()
    variances = field.denoiser.variances
    target = _std(variances, end)
    floor, shift = target, np.zeros_like(target)
    if start == "prior":  # the exact flow carries its deviations, and what it lacks of the mean
        carried = target / _std(variances, first)
        floor = carried * _begin(process, variances, first, start)
        shift = carried * first.alpha * field.denoiser.mean.numpy()
    every = ("sampler", "grid", "budget")
    return xr.Dataset(
        {
            "std": ((*every, "mode"), std),
            "bias": ((*every, "mode"), bias),
            "w2": (every, _w2(std, target, bias)),
            "kl": (every, _kl(std, target, bias)),
            "steps": (every, steps),
            "nfe": (every, nfe),
            "target": ("mode", target),
            "floor_w2": ((), _w2(floor, target, shift)),
            "floor_kl": ((), _kl(floor, target, shift)),
        },
        {
            "sampler": list(samplers),
            "grid": list(grids),
            "budget": list(budgets),
            "mode": np.arange(1, len(target) + 1),
            "variance": ("mode", variances.numpy()),
            "order": ("sampler", [s.global_order for s in samplers.values()]),
            "stochastic": ("sampler", [bool(s.stochastic) for s in samplers.values()]),
        },
        {"start": start, "t_end": end.t, "dimension": len(target)},
    )


def stability(
    process: Process,
    samplers: Mapping[str, Sampler],
    make: MakeGrid,
    counts: Sequence[int],
    variances: Tensor,
    on_step: OnStep | None = None,
) -> xr.Dataset:
    """Relative error of the output's standard deviation over (steps, variance of a mode).

    Every run starts from the exact marginal.

    Args:
        make: ``(process, steps) -> Grid``.
        counts: numbers of steps.
        variances: of the modes [x²].

    Returns:
        Dataset with ``error`` (sampler, steps, variance), output over exact standard deviation
        minus 1, and ``nfe`` (sampler, steps).
    """
    field, make = _field(process, variances, None), _once(make)
    error = np.full((len(samplers), len(counts), field.denoiser.dim), math.nan)
    nfe = np.zeros(error.shape[:2], int)
    for done, (i, k) in enumerate(product(*map(range, nfe.shape))):
        grid = make(process, counts[k])
        out = _output(field, list(samplers.values())[i], grid, "exact")
        if out is not None:
            exact = _std(field.denoiser.variances, grid.nodes[-1])
            with np.errstate(all="ignore"):
                error[i, k], nfe[i, k] = out[0] / exact - 1, out[2]
        if on_step is not None:
            on_step(done + 1, nfe.size)
    return xr.Dataset(
        {"error": (("sampler", "steps", "variance"), error), "nfe": (("sampler", "steps"), nfe)},
        {
            "sampler": list(samplers),
            "steps": list(counts),
            "variance": field.denoiser.variances.numpy(),
        },
    )


def orders(
    process: Process,
    variances: Tensor,
    samplers: Mapping[str, Sampler],
    make: MakeGrid,
    counts: Sequence[int] = (80, 160, 320),
    on_step: OnStep | None = None,
) -> xr.Dataset:
    """Measured order of convergence beside the claimed one.

    The error is the exact W2 of a run that starts from the exact marginal; a stochastic sampler's
    order is thus the weak one.

    Args:
        make: ``(process, steps) -> Grid``; one that stops at t_min, or its last step to sigma = 0
            is all of the error.
        counts: increasing numbers of steps.

    Returns:
        Dataset with ``w2`` (sampler, steps); ``slope`` (sampler, pair) between each number of steps
        and the next, nan where an error is not told from rounding; ``claimed`` (sampler).
    """
    lens = {name: [] for name in samplers}
    field, make = _field(process, variances, None), _once(make)
    for done, (name, n) in enumerate(product(samplers, counts)):
        grid = make(process, n)
        target = _std(field.denoiser.variances, grid.nodes[-1])
        out = _output(field, samplers[name], grid, "exact")
        error = math.nan if out is None else float(_w2(out[0], target, out[1]))
        told = error > ROUNDING * n * np.linalg.norm(target)
        lens[name].append((error, error if told else math.nan))
        if on_step is not None:
            on_step(done + 1, len(samplers) * len(counts))
    values = np.array(list(lens.values())).reshape(len(samplers), len(counts), 2)
    with np.errstate(all="ignore"):
        slope = -np.diff(np.log(values[..., 1]), axis=1) / np.diff(np.log(counts))
    return xr.Dataset(
        {
            "w2": (("sampler", "steps"), values[..., 0]),
            "slope": (("sampler", "pair"), slope),
            "claimed": ("sampler", [s.global_order for s in samplers.values()]),
        },
        {
            "sampler": list(samplers),
            "steps": list(counts),
            "pair": [f"{a} to {b}" for a, b in pairwise(counts)],
        },
    )


def grid_errors(
    process: Process,
    variances: Tensor,
    sampler: Sampler,
    grids: Mapping[str, Grid],
    mean: Tensor | None = None,
    start: Start = "prior",
) -> xr.Dataset:
    """Exact error of one sampler on several grids, and where their nodes lie.

    Returns:
        Dataset with ``w2`` [x], ``kl`` [nats] and ``nfe`` (grid); ``rho`` (grid, node), infinite at
        pure noise, 0 at the data, nan after the last node of a shorter grid.
    """
    field = _field(process, variances, mean)
    rho = np.full((len(grids), max(len(grid) for grid in grids.values())), math.nan)
    found = {"w2": [], "kl": [], "nfe": []}
    for i, grid in enumerate(grids.values()):
        rho[i, : len(grid)] = grid.rho
        std, bias, nfe = _output(field, sampler, grid, start) or (math.nan, math.nan, 0)
        target = _std(field.denoiser.variances, grid.nodes[-1])
        bias = np.broadcast_to(bias, target.shape)
        found["w2"].append(float(_w2(std, target, bias)))
        found["kl"].append(float(_kl(std, target, bias)))
        found["nfe"].append(nfe)
    made = {name: ("grid", values) for name, values in found.items()}
    return xr.Dataset(made | {"rho": (("grid", "node"), rho)}, {"grid": list(grids)})


def paths(
    diffusion: Diffusion,
    samplers: Mapping[str, Sampler],
    grids: Mapping[str, MakeGrid],
    budgets: Sequence[int],
    seeds: Sequence[int],
    solver_steps: int = 256,
    on_step: OnStep | None = None,
) -> xr.Dataset:
    """RMS distance of deterministic samplers to a converged solution, seed by seed.

    For data of any kind. The solution is the exact flow where it is known, otherwise RK4 on a
    log-SNR grid from the same starts.

    Args:
        samplers: deterministic ones, by name.
        grids: ``(process, steps) -> Grid``, by name; all stop at one time above sigma = 0.
        solver_steps: of the solution; an even number.

    Returns:
        Dataset with ``rms`` [x] per coordinate, ``rms_se``, ``steps`` and ``nfe`` (sampler, grid,
        budget); and ``floor_rms``: what halving the solver's steps changes, below which nothing is
        told.
    """
    process = diffusion.process
    diffusion = diffusion.to(torch.float64)
    shape = (len(samplers), len(grids), len(budgets))
    total, done = math.prod(shape) + 2, 0
    grids = {name: _once(make) for name, make in grids.items()}

    def run(sampler: Sampler, grid: Grid) -> Tensor:
        nonlocal done
        told = None if on_step is None else lambda i, n: on_step(done + i / n, total)
        final = sample(diffusion, sampler, grid, seeds, Record("x", every=10_000), on_step=told)
        done += 1
        return final.final

    solved = [run(RK4(), Grid.log_snr(process, n)) for n in (solver_steps // 2, solver_steps)]
    floor = (solved[0] - solved[1]).square().mean().sqrt().item()
    rms, error = np.full((2, *shape), math.nan)
    steps, nfe = np.zeros((2, *shape), int)
    for i, j, k in product(*map(range, shape)):
        sampler, make = list(samplers.values())[i], list(grids.values())[j]
        steps[i, j, k] = steps_within(sampler, process, make, budgets[k])
        grid = make(process, int(steps[i, j, k]))
        nfe[i, j, k] = sampler.nfe(grid)
        square = (run(sampler, grid) - solved[1]).square().flatten(1).mean(1)
        rms[i, j, k] = square.mean().sqrt().item()
        spread = square.std().item() / math.sqrt(len(square)) if len(square) > 1 else math.nan
        error[i, j, k] = spread / (2 * rms[i, j, k]) if rms[i, j, k] else 0.0
    every = ("sampler", "grid", "budget")
    return xr.Dataset(
        {
            "rms": (every, rms),
            "rms_se": (every, error),
            "steps": (every, steps),
            "nfe": (every, nfe),
            "floor_rms": ((), floor),
        },
        {"sampler": list(samplers), "grid": list(grids), "budget": list(budgets)},
        {"samples": len(seeds)},
    )


def steps_within(sampler: Sampler, process: Process, make: MakeGrid, budget: int) -> int:
    """The largest number of steps whose evaluations are at most ``budget``; at least 1."""
    cost = lambda n: sampler.nfe(make(process, n))  # noqa: E731
    each = cost(8) / 8
    n = max(1, min(MOST_STEPS, int(budget / each)))
    while n > 1 and cost(n) > budget:
        n -= 1
    while n < MOST_STEPS and cost(n + 1) <= budget:
        n += 1
    return n


# ---- one run -------------------------------------------------------------------------------------


def _once(make: MakeGrid) -> MakeGrid:
    """``make``, each of whose grids is made once: many samplers walk the same."""
    return cache(make)


@lru_cache(maxsize=512)
def _program(sampler: Sampler, process: Process, grid: Grid) -> Program:
    """A program says nothing of the data: other spectra read it again."""
    return sampler.program(process, grid)


def _field(process: Process, variances: Tensor, mean: Tensor | None) -> Diffusion:
    if process.spectral:
        raise NotImplementedError(
            f"{process!r} has one rho per mode; these measurements need a process with one alpha "
            "and sigma for all modes."
        )
    variances = torch.as_tensor(variances, dtype=torch.float64).flatten().cpu()
    mean = torch.zeros_like(variances) if mean is None else mean.flatten().double().cpu()
    return Diffusion(process, Gaussian(mean, variances))


def _output(field: Diffusion, sampler: Sampler, grid: Grid, start: Start):
    """Standard deviation and bias of the output per mode, and evaluations; None if refused."""
    try:
        ready = sampler.prepared(field, grid)
        known = ready is sampler  # then nothing of the model is in it
        program = (_program if known else type(ready).program)(ready, field.process, grid)
    except ValueError:  # e.g. more memory than there are steps
        return None
    if not program.linear:
        raise TypeError(f"{sampler!r} is not linear, so it has no exact law; sample.")
    law, first, end = field.denoiser, grid.nodes[0], grid.nodes[-1]
    with np.errstate(all="ignore"):
        gain, response, noise, _ = (v.numpy() for v in transfer(program, law.variances))
        begin = _begin(field.process, law.variances, first, start)
        std = np.sqrt((gain * begin) ** 2 + noise)
        lead = first.alpha * gain if start == "exact" else 0.0
        bias = (response + lead - end.alpha) * law.mean.numpy()
    fine = np.isfinite(std).all() and np.isfinite(bias).all()
    return (std, bias, program.nfe) if fine else None


def _begin(process: Process, variances: Tensor, first, start: Start) -> np.ndarray:
    """Standard deviation of each mode at the start."""
    if start == "exact":
        return _std(variances, first)
    return np.full(len(variances), float(process.prior_std(first.t)))


def _std(variances: Tensor, node) -> np.ndarray:
    """Exact standard deviation of each mode at a node."""
    return np.sqrt(node.alpha**2 * variances.numpy() + node.sigma**2)


def _w2(std, target, bias):
    return np.sqrt(((std - target) ** 2 + bias**2).sum(-1))


def _kl(std, target, bias):
    """KL(output || exact) [nats]; modes without variance on either side count nothing."""
    with np.errstate(all="ignore"):
        excess = np.square(std / target) - 1
        value = 0.5 * (excess - np.log1p(excess)) + 0.5 * np.square(bias / target)
    dead = (target == 0) & (std == 0) & (bias == 0)
    value = np.where(dead, 0.0, np.where(target == 0, math.inf, value))
    return value.sum(-1)
