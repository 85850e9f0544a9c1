r"""How far a sampler's exact output law is from the truth: over evaluations, modes and grids.

On Gaussian data a linear sampler takes every mode of variance :math:`\lambda` to a Gaussian whose
standard deviation :math:`s_k` is known without sampling (:func:`workbench.exact.transfer`). Beside
the marginal at the end of the grid, of standard deviation
:math:`\tau_k = \sqrt{\alpha^2\lambda_k + \sigma^2}`, the errors are numbers:

.. math:: W_2^2 = \sum_k (s_k - \tau_k)^2 + b_k^2, \qquad
    \mathrm{KL} = \sum_k \tfrac12\Big(\frac{s_k^2}{\tau_k^2} - 1 - \log\frac{s_k^2}{\tau_k^2}\Big)
    + \frac{b_k^2}{2\tau_k^2}

with :math:`b_k` what the means differ by. A run starts from the process's prior, as ``wb.sample``
does, or from the exact marginal: then all of the error is the sampler's. Under a spectral process
the modes are those of its basis, each with its own alpha and sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import pairwise, product
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.denoisers import Gaussian
from workbench.diffusion import Diffusion
from workbench.exact.transfer import transfer
from workbench.lenses.base import Lens, OnStep, Subject, described, remembered, stepped
from workbench.lenses.errors import root_mean
from workbench.lenses.teleport import matched_gaussian
from workbench.params import Param
from workbench.processes import Process
from workbench.sampling import Grid, NoiseSource, Program, Sampler
from workbench.sampling.methods import RK4, Euler
from workbench.sampling.plan import program_of
from workbench.trajectory import sample

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
    bytes_each = 512

    def measure(self, subject: Subject, on_step: OnStep | None = None) -> xr.Dataset:
        sampler, grid = subject.sampler, subject.grid
        grid.of_steps(subject.process, grid.steps)  # which says so where that number is fixed
        if sampler.nfe(grid) is None:
            raise NotImplementedError(f"only a run tells how many evaluations {sampler!r} takes.")
        budgets = self._budgets()
        curves, numbers = {}, {}
        if not sampler.stochastic:
            each = self._paths(subject, on_step)
            curves = {name: each[name].values.ravel() for name in ("rms", "rms_se", "nfe")}
        modes = _modes_of(subject.diffusion)
        if modes is not None and sampler.program(subject.process, grid).linear:
            law = _errors(modes, {"": sampler}, {"": grid.of_steps}, budgets, "prior", None)
            law = law.isel(sampler=0, grid=0)
            measured = _orders(modes, {"": sampler}, partial(grid.of_steps, final="stop"))
            if modes.process.has_prior:
                curves["w2_gaussian"], curves["kl_gaussian"] = law["w2"].values, law["kl"].values
            numbers["order"] = measured["slope"].values[0, -1]
            curves.setdefault("nfe", law["nfe"].values)
        if not curves:
            raise NotImplementedError(
                f"{sampler!r} draws fresh noise and is not linear, so nothing that it converges to "
                "is known sample by sample; look through the lens output."
            )
        variables = described(curves, ABOUT, "budget", scale="log")
        variables |= described(numbers, ABOUT, scale="log")
        axis = ("budget", budgets, {"long_name": "most evaluations (NFE)", "scale": "log"})
        attrs = {"sampler": repr(sampler), "claimed": sampler.global_order}
        return xr.Dataset(variables, {"budget": axis}, attrs).set_coords("nfe")

    def exact(self, subject: Subject) -> xr.Dataset | None:
        sampler, process, grid = subject.sampler, subject.process, subject.grid
        gaussian = isinstance(subject.denoiser, Gaussian) and not sampler.stochastic
        if not gaussian or not process.has_prior or not sampler.program(process, grid).linear:
            return None
        modes = _modes_of(subject.diffusion)
        if modes is None:
            return None
        steps = self._paths(subject)["steps"].values.ravel().tolist()
        grids = [grid.of_steps(process, n, "stop") for n in steps]
        errors = np.array([_flow_error(modes, sampler, one) for one in grids])
        return xr.Dataset({"rms": ("budget", errors)})

    def null(self, subject: Subject, level: float = 0.05) -> xr.Dataset | None:
        if subject.sampler.stochastic:
            return None
        floor = float(self._paths(subject)["floor_rms"])
        return xr.Dataset({"rms": ("bound", np.array([0.0, floor]))})

    def findings(self, dataset: xr.Dataset) -> list[str]:
        said, nfe = [], int(dataset["nfe"][-1])
        if "rms" in dataset:
            sentence = f"With {nfe} evaluations samples end {float(dataset['rms'][-1]):.2g} from "
            sentence += "where the exact flow takes them"
            if "rms_exact" in dataset:
                sentence += f" (exactly {float(dataset['rms_exact'][-1]):.2g})"
            said.append(sentence + ", root mean square per coordinate.")
        if "order" in dataset:
            said.append(
                f"On Gaussian data the error falls with order {float(dataset['order']):.2f}; "
                f"{dataset.attrs['claimed']} is claimed."
            )
        return said

    @remembered
    def _paths(self, subject: Subject, on_step: OnStep | None) -> xr.Dataset:
        make, half = partial(subject.grid.of_steps, final="stop"), 2 * (self.solver_steps // 2)
        each = {"": subject.sampler}, {"": make}, self._budgets(), subject.seeds
        return paths(subject.diffusion, *each, half, on_step, _starts(subject))

    def _budgets(self) -> list[int]:
        """Numbers of evaluations, even on a log axis."""
        return np.unique(np.geomspace(4, self.most, self.points).round().astype(int)).tolist()


def _starts(subject: Subject) -> Tensor | None:
    """States to start from under a process without a prior: noised data points, those of the
    study's run; None where the process has one."""
    diffusion, seeds = subject.diffusion, subject.seeds
    if diffusion.process.has_prior:
        return None
    if subject.data is None:
        raise NotImplementedError(
            f"{diffusion.process!r} has no prior to start from, and no data were given; give "
            "data=wb.Data(...)."
        )
    points = subject.data.points.to(diffusion.device, diffusion.dtype)
    noise = NoiseSource(seeds, diffusion.event_shape, diffusion.dtype, diffusion.device).start()
    return diffusion.diffuse(
        points[[seed % len(points) for seed in seeds]], subject.grid.t[0], noise
    )


def flow_error(diffusion: Diffusion, sampler: Sampler, grid: Grid, skipped: int = 0) -> float:
    r"""Expected RMS distance of a deterministic linear sampler's output to the exact flow [x].

    Of starts from the process's prior, per coordinate, on Gaussian data. With gain g, response r
    and pull c of the sampler, gain f of the flow, and a start of mean m and deviation s_T,

    .. math:: \mathrm{E}\,d^2 = (g - f)^2 s_T^2
              + \big((g - f)m + (r - \alpha_0 + f\alpha_T)\mu + c\,y\big)^2

    in each mode of mean :math:`\mu`, under a condition y.

    Args:
        skipped: steps of the grid, the first ones, that the exact flow takes instead; under a
            process with one alpha and sigma and no condition.
    """
    return _flow_error(_modes_of(diffusion), sampler, grid, skipped)


def _flow_error(modes: _Modes, sampler: Sampler, grid: Grid, skipped: int = 0) -> float:
    rest = Grid(grid.nodes[skipped:], grid.final, "times") if skipped else grid
    program = modes.program(sampler, rest)
    (a, s), (a_end, s_end) = _ends(program)
    gain, response, _, pull = (v.numpy() for v in transfer(program, modes.variances))
    flow = modes.std(a_end, s_end) / modes.std(a, s)
    lead, begin = modes.prior(grid.t[0])
    if skipped:
        first = grid.nodes[0]
        carried = modes.std(a, s) / modes.std(first.alpha, first.sigma)
        lead = a * modes.mean + carried * (lead - first.alpha * modes.mean)
        begin = carried * begin
    shift = (gain - flow) * lead + (response - a_end + flow * a) * modes.mean + pull * modes.pulled
    return float(np.sqrt((((gain - flow) * begin) ** 2 + shift**2).mean()))


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
        process: without a condition.
        variances: (d,) of the modes of the data [x²]; of a spectral process those of its basis.
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
        TypeError: a sampler that is not linear.
        ValueError: grids that end at different times, or variances that are no variances.
    """
    return _errors(_modes(process, variances, mean), samplers, grids, budgets, start, on_step)


def _errors(modes: _Modes, samplers, grids, budgets, start: Start, on_step) -> xr.Dataset:
    process, grids = modes.process, {name: cache(make) for name, make in grids.items()}
    shape = (len(samplers), len(grids), len(budgets))
    std, bias = (np.full((*shape, len(modes.variances)), math.nan) for _ in range(2))
    steps, nfe = np.zeros(shape, int), np.zeros(shape, int)
    ends: dict = {}
    for i, j, k in stepped([*product(*map(range, shape))], on_step):
        sampler, make = list(samplers.values())[i], list(grids.values())[j]
        steps[i, j, k] = steps_within(sampler, process, make, budgets[k])
        grid = make(process, int(steps[i, j, k]))
        ends[grid.t[-1], grid.sigma[-1]] = grid
        out = _output(modes, sampler, grid, start)
        if out is not None:
            std[i, j, k], bias[i, j, k], nfe[i, j, k] = out[:3]
    if len(ends) > 1:
        raise ValueError(
            f"the grids end at the times {sorted(t for t, _ in ends)}; give grids that end at one "
            "time, so that they have one target."
        )
    (grid,) = ends.values()
    (a, s), end = _ends(Euler().program(process, grid))
    target = modes.std(*end)
    floor, shift = target, np.zeros_like(target)
    if start == "prior" and process.has_prior:
        # The exact flow carries its deviations, and what it lacks of the mean.
        carried, (lead, begin) = target / modes.std(a, s), modes.prior(grid.t[0])
        floor, shift = carried * begin, carried * (lead - a * modes.mean)
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
            "variance": ("mode", modes.variances.numpy()),
            "order": ("sampler", [s.global_order for s in samplers.values()]),
            "stochastic": ("sampler", [bool(s.stochastic) for s in samplers.values()]),
        },
        {"start": start, "t_end": grid.t[-1], "dimension": len(target)},
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
    modes, make = _modes(process, variances), cache(make)
    error = np.full((len(samplers), len(counts), len(modes.variances)), math.nan)
    nfe = np.zeros(error.shape[:2], int)
    for i, k in stepped([*product(*map(range, nfe.shape))], on_step):
        grid = make(process, counts[k])
        out = _output(modes, list(samplers.values())[i], grid, "exact")
        if out is not None:
            with np.errstate(all="ignore"):
                error[i, k], nfe[i, k] = out.std / out.target - 1, out.nfe
    return xr.Dataset(
        {"error": (("sampler", "steps", "variance"), error), "nfe": (("sampler", "steps"), nfe)},
        {
            "sampler": list(samplers),
            "steps": list(counts),
            "variance": modes.variances.numpy(),
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
    return _orders(_modes(process, variances), samplers, make, counts, on_step)


def _orders(modes: _Modes, samplers, make, counts=(80, 160, 320), on_step=None) -> xr.Dataset:
    make, errors = cache(make), []
    for sampler, n in stepped([*product(samplers.values(), counts)], on_step):
        out = _output(modes, sampler, make(modes.process, n), "exact")
        error = math.nan if out is None else float(_w2(out.std, out.target, out.bias))
        seen = out is not None and error > ROUNDING * n * np.linalg.norm(out.target)
        errors.append((error, error if seen else math.nan))
    values = np.array(errors).reshape(len(samplers), len(counts), 2)
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
    modes = _modes(process, variances, mean)
    rho = np.full((len(grids), max(len(grid) for grid in grids.values())), math.nan)
    (w2, kl), nfe = np.full((2, len(grids)), math.nan), np.zeros(len(grids), int)
    for i, grid in enumerate(grids.values()):
        rho[i, : len(grid)] = grid.rho
        out = _output(modes, sampler, grid, start)
        if out is not None:
            law = out.std, out.target, out.bias
            w2[i], kl[i], nfe[i] = _w2(*law), _kl(*law), out.nfe
    variables = {"w2": ("grid", w2), "kl": ("grid", kl), "nfe": ("grid", nfe)}
    return xr.Dataset(variables | {"rho": (("grid", "node"), rho)}, {"grid": list(grids)})


def paths(
    diffusion: Diffusion,
    samplers: Mapping[str, Sampler],
    grids: Mapping[str, MakeGrid],
    budgets: Sequence[int],
    seeds: Sequence[int],
    solver_steps: int = 256,
    on_step: OnStep | None = None,
    starts: Tensor | None = None,
) -> xr.Dataset:
    """RMS distance of deterministic samplers to a converged solution, seed by seed.

    For data of any kind. The solution is that of RK4 from the same starts, on a log-SNR grid; under
    a spectral process on a uniform one.

    Args:
        samplers: deterministic ones, by name.
        grids: ``(process, steps) -> Grid``, by name; all stop at one time above sigma = 0.
        solver_steps: of the solution; an even number.
        starts: states to start from, (n, *event); None: the process's prior.

    Returns:
        Dataset with ``rms`` [x] per coordinate, ``rms_se``, ``steps`` and ``nfe`` (sampler, grid,
        budget); and ``floor_rms``: what halving the solver's steps changes, below which nothing is
        told.
    """
    process = diffusion.process
    diffusion = diffusion.to(torch.float64)
    shape = (len(samplers), len(grids), len(budgets))
    total, done = math.prod(shape) + 2, 0
    grids = {name: cache(make) for name, make in grids.items()}

    def run(sampler: Sampler, grid: Grid) -> Tensor:
        nonlocal done
        step = None if on_step is None else lambda i, n: on_step(done + i / n, total)
        final = sample(diffusion, sampler, grid, seeds, x=starts, on_step=step).final
        done += 1
        return final

    fine = Grid.uniform if process.spectral else Grid.log_snr
    solved = [run(RK4(), fine(process, n)) for n in (solver_steps // 2, solver_steps)]
    floor = (solved[0] - solved[1]).square().mean().sqrt().item()
    rms, error = np.full((2, *shape), math.nan)
    steps, nfe = np.zeros((2, *shape), int)
    for i, j, k in product(*map(range, shape)):
        sampler, make = list(samplers.values())[i], list(grids.values())[j]
        steps[i, j, k] = steps_within(sampler, process, make, budgets[k])
        grid = make(process, int(steps[i, j, k]))
        nfe[i, j, k] = sampler.nfe(grid)
        square = (run(sampler, grid) - solved[1]).square().flatten(1).mean(1)
        rms[i, j, k], error[i, j, k] = root_mean(square)
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


@dataclass(frozen=True)
class _Modes:
    """Independent Gaussian modes under a process.

    Attributes:
        variances: (d,) float64; mean: (d,).
        pulled: the condition in these modes, (d,) or 0.
        diffusion: of these modes, for samplers that need something of the model.
    """

    process: Process
    variances: Tensor
    mean: np.ndarray
    pulled: np.ndarray | float
    diffusion: Callable[[], Diffusion]

    def program(self, sampler: Sampler, grid: Grid) -> Program:
        if type(sampler).prepared is Sampler.prepared and not self.process.spectral:
            return _program(sampler, self.process, grid)
        return program_of(self.diffusion(), sampler, grid)

    def std(self, alpha, sigma) -> np.ndarray:
        """Exact standard deviation (d,) of each mode."""
        return np.sqrt(np.square(alpha) * self.variances.numpy() + np.square(sigma))

    def prior(self, t: float) -> tuple[np.ndarray | float, np.ndarray]:
        """Mean and standard deviation of each mode where ``wb.sample`` starts."""
        std = torch.as_tensor(self.process.prior_std(t), dtype=torch.float64).flatten().numpy()
        off = self.process.prior_mean(t) - self.process.shift(t)[0] if self.process.affine else 0.0
        return off * self.pulled, np.broadcast_to(std, len(self.variances))


def _modes(process: Process, variances: Tensor, mean: Tensor | None = None) -> _Modes:
    """Modes of these variances, of a spectral process those of its basis; without a condition."""
    variances = torch.as_tensor(variances, dtype=torch.float64).flatten().cpu()
    mean = torch.zeros_like(variances) if mean is None else mean.flatten().double().cpu()

    def diffusion() -> Diffusion:
        if not process.spectral:
            return Diffusion(process, Gaussian(mean, variances))
        shape = process.basis.event_shape
        law = Gaussian(mean.reshape(shape), variances.reshape(shape))
        return Diffusion(process, process.off_core(law))

    return _Modes(process, variances, mean.numpy(), 0.0, cache(diffusion))


def _modes_of(diffusion: Diffusion) -> _Modes | None:
    """The modes of the Gaussian with the mean and covariance of a diffusion's data; None where they
    are not independent in the basis of its process."""
    process, law = diffusion.process, matched_gaussian(diffusion.denoiser)
    pulled = diffusion.condition
    if process.spectral:
        given = Diffusion(process, law)
        core = given.core
        if core.basis is not None:
            return None
    else:
        core, _ = law.diagonalised()
        if pulled is not None:
            pulled = pulled.expand(law.event_shape).flatten().double()
            pulled = pulled if law.basis is None else pulled @ law.eigenbasis.double()
        row = [v.double().cpu().flatten() for v in (core.mean, core.variances)]
        given = Diffusion(process, Gaussian(*row), pulled)
    mean, variances = (v.double().cpu().flatten() for v in (core.mean, core.variances))
    pulled = 0.0 if pulled is None else pulled.cpu().numpy()
    return _Modes(process, variances, mean.numpy(), pulled, lambda: given)


@lru_cache(maxsize=512)
def _program(sampler: Sampler, process: Process, grid: Grid) -> Program:
    """A program says nothing of the data: other spectra read it again."""
    return sampler.program(process, grid)


def _ends(program: Program) -> list[tuple]:
    """alpha and sigma at the first and the last node, numbers or one per mode (d,)."""
    first, last = program.steps[0].start, program.steps[-1].end
    flat = lambda c: c.flatten().numpy() if isinstance(c, Tensor) else c  # noqa: E731
    return [(flat(node.alpha), flat(node.sigma)) for node in (first, last)]


class _Output(NamedTuple):
    """Standard deviation and bias of the output per mode, evaluations, and the exact deviation."""

    std: np.ndarray
    bias: np.ndarray
    nfe: int
    target: np.ndarray


def _output(modes: _Modes, sampler: Sampler, grid: Grid, start: Start) -> _Output | None:
    """The law of the output; None if the sampler refuses."""
    try:
        program = modes.program(sampler, grid)
    except ValueError:  # e.g. more memory than there are steps
        return None
    if not program.linear:
        raise TypeError(f"{sampler!r} is not linear, so it has no exact law; sample.")
    (a, s), (a_end, s_end) = _ends(program)
    with np.errstate(all="ignore"):
        gain, response, noise, pull = (v.numpy() for v in transfer(program, modes.variances))
        if start == "exact" or not modes.process.has_prior:
            lead, begin = a * modes.mean, modes.std(a, s)
        else:
            lead, begin = modes.prior(grid.t[0])
        std = np.sqrt((gain * begin) ** 2 + noise)
        bias = gain * lead + (response - a_end) * modes.mean + pull * modes.pulled
    finite = np.isfinite(std).all() and np.isfinite(bias).all()
    return _Output(std, bias, program.nfe, modes.std(a_end, s_end)) if finite else None


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
