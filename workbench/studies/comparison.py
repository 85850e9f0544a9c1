"""Which sampler, which grid, how many evaluations, for a spectrum: the exact answer, no sampling.

A *spectrum* is a power law, that of the study's data, or eigenvalues from a file. Samplers are
named as :mod:`workbench.studies.variants` names them, ``DPMSolverPP:order=3``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from workbench.exact import tuned_grid
from workbench.lenses import convergence as lens
from workbench.params import Param, shown
from workbench.processes import SPECTRAL, Process
from workbench.sampling import GRIDS, Grid, Sampler
from workbench.studies.eigenvalues import keep, known
from workbench.studies.flat import query_of
from workbench.studies.limits import Report, claim, unheard
from workbench.studies.options import Options, joined, split
from workbench.studies.run import build, made, plan
from workbench.studies.spec import Study, StudyError
from workbench.studies.variants import problem_of, sampler_of, variants

if TYPE_CHECKING:
    import xarray

#: What is compared at first.
FIRST = (
    "DDIM,Heun,DPMSolverPP,DPMSolverPP:order=3,UniPC,UniPC:order=3,DEIS,EulerMaruyama,EDMStochastic"
)

#: Numbers of evaluations on the axis, and step counts and variances of the stability map.
BUDGETS, COUNTS, VARIANCES = 12, 18, 41

#: Samples and numbers of evaluations of the comparison seed by seed.
SAMPLES, SEEDED = 48, 6

#: Share of the largest variance below which one is rounding.
ROUNDING = 1e-12

#: Most numbers that a comparison may hold (float64: 256 MB).
MOST_NUMBERS = 32_000_000

#: Bytes that are taken for each mode, measured: by each run of a comparison, with what is drawn of
#: it; by each evaluation of the run that a grid is tuned for, whose gradient keeps its registers;
#: and by each sampler whose order is measured.
OF_RUN, OF_TUNING, OF_ORDER = 80, 240, 64


# ---- options -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparing(Options):
    """What the comparison is of, beside the study, whose process and grid it takes."""

    samplers: Annotated[
        str, Param("samplers compared; a parameter is written as in DPMSolverPP:order=3")
    ] = FIRST
    grids: Annotated[str, Param("grids compared beside the study's own", label="further grids")] = (
        ""
    )
    spectrum: Annotated[
        Literal["power", "data", "file"],
        Param("variances of the modes: a power law, those of the data's covariance, or a file's"),
    ] = "power"
    exponent: Annotated[
        float, Param("the k-th mode has the variance k to the minus this", ge=0, le=10)
    ] = 2.0
    modes: Annotated[int, Param("number of modes", ge=1, le=16_384, label="number of modes")] = 64
    file: Annotated[str, Param("the eigenvalues that were uploaded", label="eigenvalues")] = ""
    error: Annotated[
        Literal["w2", "kl"],
        Param("how far the output's law is from the exact one", label="distance"),
    ] = "w2"
    start: Annotated[
        Literal["prior", "exact"],
        Param(
            "law of the start: the process's prior, or the exact marginal, which leaves only the "
            "sampler's own error"
        ),
    ] = "prior"
    most: Annotated[int, Param("end of the axis", ge=8, le=2000, label="most evaluations")] = 128
    nfe: Annotated[
        int,
        Param("most evaluations of a run looked at closely", ge=1, le=2000, label="evaluations"),
    ] = 16
    focus: Annotated[
        str, Param("the sampler that a grid is tuned for; the first if empty", label="tuned for")
    ] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        names = split(self.samplers)
        problems = {}
        if not names:
            problems["samplers"] = "samplers was empty; choose at least one."
        for name in names:
            if sentence := problem_of(name):
                problems["samplers"] = f"samplers held {sentence}"
        for name in split(self.grids):
            if name not in GRIDS:
                problems["grids"] = (
                    f"grids held {shown(name)}; a grid is one of {', '.join(GRIDS)}."
                )
        if self.focus and (sentence := problem_of(self.focus)):
            problems["focus"] = f"focus was {sentence}"
        if problems:
            raise StudyError(problems)

    def lists(self) -> dict[str, tuple[str, ...]]:
        return {"samplers": variants(), "grids": tuple(GRIDS)}

    def choices(self) -> dict[str, tuple[str, ...]]:
        return {"focus": tuple(dict.fromkeys(("", *split(self.samplers), self.focus)))}

    def files(self) -> tuple[str, ...]:
        return ("file",)

    def uploaded(self, key: str, content: bytes, name: str) -> Comparing:
        return self.changed({key: keep(content, name), "spectrum": "file"})

    def wanted(self) -> tuple[str, ...]:
        own = {"power": {"exponent", "modes"}, "data": set(), "file": {"file"}}[self.spectrum]
        return tuple(k for k in self.keys() if k in own or k not in ("exponent", "modes", "file"))

    @property
    def methods(self) -> dict[str, Sampler]:
        """The samplers compared, by variant."""
        return {name: sampler_of(name) for name in split(self.samplers)}

    @property
    def focused(self) -> str:
        """The variant that a grid is tuned for."""
        return self.focus or split(self.samplers)[0]

    @property
    def budgets(self) -> list[int]:
        """Numbers of evaluations, even on a log axis; the one looked at closely is among them."""
        even = np.geomspace(4, self.most, BUDGETS).round().astype(int)
        return sorted({*even.tolist(), self.nfe})


# ---- spectra and grids ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Spectrum:
    """Variances and mean of the modes of Gaussian data, largest variance first, and their name."""

    variances: Tensor
    mean: Tensor
    name: str


def spectrum_of(study: Study, options: Comparing) -> Spectrum:
    """The spectrum that the options name.

    Under a process with one noise level per mode of a basis they are the variances of the data in
    the modes of that basis, which are taken to be independent.

    Raises:
        StudyError: a file that is not here; a spectrum without a basis under such a process.
    """
    spectral = study.process.name in SPECTRAL
    if spectral and options.spectrum != "data":
        raise StudyError(
            {
                "spectrum": f"spectrum was {options.spectrum}, and {study.process.name} has one "
                "noise level per mode of a basis of the data; take the spectrum of the data."
            }
        )
    if options.spectrum == "power":
        ranks = torch.arange(1, options.modes + 1, dtype=torch.float64)
        name = f"power law k^-{options.exponent:g}, {options.modes} modes"
        return Spectrum(ranks**-options.exponent, torch.zeros_like(ranks), name)
    if options.spectrum == "file":
        variances, name = known(options.file)
        return Spectrum(variances, torch.zeros_like(variances), name)
    device = {"device": "cpu"} if study.device == "mps" else {}
    setup = build(_gaussian(study).changed({"dtype": "float64", **device}))
    if spectral:
        law, matrix = setup.diffusion.denoiser, setup.diffusion.process.basis.matrix.double()
        variances = (matrix * (law.cov.double() @ matrix)).sum(0)
        name = f"{study.data.name} in {len(variances)} modes of {study.process.name}"
        return Spectrum(variances.cpu(), (law.mean.double().flatten() @ matrix).cpu(), name)
    twin, _ = setup.diffusion.denoiser.diagonalised()
    variances, order = twin.variances.cpu().flatten().sort(descending=True)
    mean = twin.mean.double().cpu().flatten()[order]
    variances = torch.where(variances > ROUNDING * variances[0], variances, 0.0)
    name = f"{study.data.name} as Gaussian, {len(variances)} modes"
    return Spectrum(variances, mean, name)


def _gaussian(study: Study) -> Study:
    """The study on the Gaussian with the covariance of its data."""
    return study if study.denoiser.name == "Gaussian" else study.changed({"denoiser": "Gaussian"})


def played(study: Study, options: Comparing) -> Study | None:
    """The study whose data are those that are compared; None where no data set has the spectrum."""
    if study.process.name in SPECTRAL:
        return None
    if options.spectrum == "data":
        return _gaussian(study)
    side = math.isqrt(options.modes)
    if options.spectrum == "file" or side**2 != options.modes or not 2 <= side <= 16:
        return None
    field = {"data": "field", "data.exponent": options.exponent, "data.side": side}
    return study.changed({**field, "denoiser": "Gaussian"})


def process_of(study: Study) -> Process:
    """The study's process.

    Raises:
        StudyError: values that do not go together.
    """
    try:
        return made(study.process, data=made(study.data))
    except (ValueError, NotImplementedError) as error:
        raise StudyError({"process": f"process: {error}"}) from None


def grids_of(study: Study, options: Comparing, **fixed) -> dict[str, lens.MakeGrid]:
    """The study's grid and the further ones, each for any number of steps."""
    if study.grid.name not in GRIDS:
        raise StudyError(
            {
                "grid": f"grid was {study.grid.name}, whose number of steps is fixed; the "
                f"comparison takes one of {', '.join(GRIDS)}."
            }
        )
    own = {key: value for key, value in study.grid.parameters.items() if key != "steps"}

    def maker(name: str) -> lens.MakeGrid:
        keys = own if name == study.grid.name else {"final": own["final"]}

        def make(process: Process, steps: int) -> Grid:
            try:
                return GRIDS[name](process, steps=steps, **{**keys, **fixed})
            except ValueError as error:
                raise StudyError({"grid": f"grid: {error}"}) from None

        return make

    return {name: maker(name) for name in dict.fromkeys((study.grid.name, *split(options.grids)))}


# ---- what is computed ----------------------------------------------------------------------------


def _claim(options: Comparing, modes: int, each: int, key: str, count: int) -> None:
    """Ask for ``each`` bytes for each mode; refused, the modes are to be fewer where they are the
    reader's, else what ``key`` counts."""
    own = options.spectrum == "power"
    key, count = ("modes", modes) if own else (key, count)
    what = {"modes": "modes", "samplers": "samplers", "nfe": "evaluations"}[key]
    claim(each * modes, count, 0, key, what, "take a spectrum of fewer modes", "")


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` leaves.

    Attributes:
        lens: of :func:`workbench.lenses.convergence.convergence`, with ``play`` (sampler, grid,
            budget): the query of the study that is this very run on data of this spectrum; without
            it where no data set has the spectrum, see :func:`played`.
    """

    study: Study
    options: Comparing
    spectrum: Spectrum
    lens: xarray.Dataset


def compare(study: Study, options: Comparing, report: Report = unheard) -> Comparison:
    """Exact error of every sampler on every grid over the number of evaluations.

    Raises:
        StudyError: values that do not go together.
    """
    report("spectrum", 0.0)
    process, spectrum = process_of(study), spectrum_of(study, options)
    methods, grids, budgets = options.methods, grids_of(study, options), options.budgets
    numbers = 2 * len(methods) * len(grids) * len(budgets) * len(spectrum.variances)
    if numbers > MOST_NUMBERS:
        raise StudyError(
            {
                "samplers": f"{len(methods)} samplers on {len(grids)} grids at {len(budgets)} "
                f"numbers of evaluations of {len(spectrum.variances)} modes are too much for one "
                "picture; take fewer of them."
            }
        )
    runs = len(methods) * len(grids) * len(budgets)
    _claim(options, len(spectrum.variances), OF_RUN * runs, "samplers", len(methods))
    found = lens.convergence(
        process,
        spectrum.variances,
        methods,
        grids,
        budgets,
        spectrum.mean,
        options.start,
        lambda done, total: report("exact laws", done / total),
    )
    shown = played(study, options)
    if shown is not None:
        found["play"] = found["steps"].copy(data=_queries(shown, found))
    found.attrs |= {"spectrum": spectrum.name, "process": study.process.name, "nfe": options.nfe}
    found.attrs["study"] = study.to_json()
    return Comparison(study, options, spectrum, found)


def _queries(study: Study, found: xarray.Dataset) -> np.ndarray:
    """The query of each run's study."""
    queries = np.empty(found["steps"].shape, object)
    for i, variant in enumerate(found["sampler"].values.tolist()):
        for j, grid in enumerate(found["grid"].values.tolist()):
            mine = study.changed({"sampler": variant, "grid": grid}).to_flat()
            for k, steps in enumerate(found["steps"].values[i, j].tolist()):
                queries[i, j, k] = query_of(mine | {"grid.steps": steps})
    return queries


def compare_stability(study: Study, options: Comparing, report: Report = unheard) -> xarray.Dataset:
    """Where each sampler is accurate and stable: over steps of the study's grid, and variance."""
    if study.process.name in SPECTRAL:
        raise StudyError(
            {
                "process": f"process was {study.process.name}; the map is over variances of any "
                "size at one noise level, and it has one per mode of a basis."
            }
        )
    process, spectrum = process_of(study), spectrum_of(study, options)
    alive = spectrum.variances[spectrum.variances > 0]
    if not len(alive):
        raise StudyError({"spectrum": "no mode has any variance, so there is nothing to map."})
    # Beyond the spectrum on both sides: what one more decade would meet.
    low, high = (v.log10().item() for v in (alive.min() / 10, alive.max() * 10))
    return lens.stability(
        process,
        options.methods,
        grids_of(study, options)[study.grid.name],
        np.unique(np.geomspace(2, max(16, options.most), COUNTS).round().astype(int)).tolist(),
        torch.logspace(low, high, VARIANCES, dtype=torch.float64),
        lambda done, total: report("stability", done / total),
    )


def compare_orders(study: Study, options: Comparing, report: Report = unheard) -> xarray.Dataset:
    """Measured order of each sampler on the study's kind of grid, stopping at t_min."""
    methods, variances = options.methods, spectrum_of(study, options).variances
    _claim(options, len(variances), OF_ORDER * len(methods), "samplers", len(methods))
    return lens.orders(
        process_of(study),
        variances,
        methods,
        grids_of(study, options, final="stop")[study.grid.name],
        on_step=lambda done, total: report("orders", done / total),
    )


def compare_grids(study: Study, options: Comparing, report: Report = unheard) -> xarray.Dataset:
    """The standard grids and the one tuned for the spectrum, for the sampler in focus."""
    report("tuning", 0.0)
    process, spectrum = process_of(study), spectrum_of(study, options)
    sampler = sampler_of(options.focused)
    _claim(options, len(spectrum.variances), OF_TUNING * options.nfe, "nfe", options.nfe)
    spectral = study.process.name in SPECTRAL  # whose grids are not told by one rho
    names = options.grids if spectral else joined(GRIDS)
    every = grids_of(study, replace(options, grids=names), final="stop")
    grids = {
        name: make(process, lens.steps_within(sampler, process, make, options.nfe))
        for name, make in every.items()
    }
    if not spectral:
        grids["tuned"] = tuned_grid(process, spectrum.variances, sampler, options.nfe)
    found = lens.grid_errors(
        process, spectrum.variances, sampler, grids, spectrum.mean, options.start
    )
    return found.assign_attrs(sampler=options.focused, spectrum=spectrum.name)


def compare_paths(study: Study, options: Comparing, report: Report = unheard) -> xarray.Dataset:
    """Distance to a converged solution for the same seeds, on the study's own data, whatever they
    are.

    Raises:
        StudyError: nothing but stochastic samplers: their paths converge to no solution.
    """
    methods = {name: made for name, made in options.methods.items() if not made.stochastic}
    if not methods:
        raise StudyError(
            {
                "samplers": "all samplers draw fresh noise, so none of their paths converges to a "
                "solution; choose a deterministic one, e.g. Heun."
            }
        )
    device = {"device": "cpu"} if study.device == "mps" else {}
    few = {"seeds.count": min(SAMPLES, study.seeds.count), "record.fields": ("x",)}
    setup = build(study.changed({"dtype": "float64", **few, **device}))
    planned = plan(setup)
    claim(planned.bytes_held, setup.study.seeds.count, planned.bytes_fixed)
    budgets = np.unique(np.geomspace(6, min(options.most, 96), SEEDED).round().astype(int)).tolist()
    found = lens.paths(
        setup.diffusion,
        methods,
        grids_of(study, options, final="stop"),
        budgets,
        setup.seeds,
        on_step=lambda done, total: report("sampling", done / total),
        starts=setup.start(setup.seeds),
    )
    left = [name for name in options.methods if name not in methods]
    name = f"{study.data.name} as {study.denoiser.name}"
    return found.assign_attrs(data=name, left_out=joined(left), process=study.process.name)
