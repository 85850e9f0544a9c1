"""The laws of a lens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import xarray as xr

from workbench.datasets import Data
from workbench.denoisers import Gaussian, Mixture
from workbench.diffusion import Diffusion
from workbench.lenses.base import BOUNDS, OF_DATA, Lens, Subject, complete, estimates
from workbench.processes import VP
from workbench.sampling import Grid, NoiseSource, Record
from workbench.sampling.methods import DDIM
from workbench.testing.report import ConformanceError, Report
from workbench.trajectory import sample

#: Runs that are compared, and the samples of each.
RUNS, SAMPLES = 16, 200

#: How far the variance of estimates over runs may be from that of their standard errors: a
#: chi-squared of 15 degrees of freedom stays within with all but a probability of 2e-3.
SPREAD = 4.0

#: Standard errors that an estimate may be from its exact value.
WITHIN = 5.0

MakeSubject = Callable[[range], Subject]


def check_lens(
    lens: Lens, subjects: dict[str, MakeSubject] | None = None, nothing: MakeSubject | None = None
) -> Report:
    """Hold a lens against its contract.

    Laws: every estimate has a ``long_name`` and ``units``; what stands beside it has its dims; the
    spread of estimates over runs of other seeds is what their standard errors say; exact values lie
    within the errors; null bands hold with the probability they claim; the order of the samples
    does not matter; the run is left as it was; findings are sentences.

    Args:
        subjects: by name, functions from a range of seeds to a subject; None: runs of DDIM under
            VP on a Gaussian and on a mixture in the plane.
        nothing: a function from a range of seeds to a subject in which there is nothing to see; for
            the law of null bands, which is skipped without.
    """
    report = Report(repr(lens))
    if not type(lens).__doc__:
        raise ConformanceError(Report(f"{lens!r} needs a docstring: the question it answers."))
    trials = subjects or {
        "a Gaussian": _run(lens, _gaussian()),
        "a mixture": _run(lens, _mixture()),
    }
    laws: dict[str, dict[str, float]] = {}

    def note(law: str, place: str, deviation: float) -> None:
        laws.setdefault(law, {})[place] = deviation

    for place, make in trials.items():
        subject = make(range(SAMPLES))
        before = None if subject.run is None else subject.run.copy(deep=True)
        try:
            dataset = complete(lens, subject)
        except NotImplementedError as error:
            report.skipped.append(f"{place}: {error}")
            continue
        report.measured[place] = dataset
        if before is not None:
            note("the run is left as it was", place, float(not before.identical(subject.run)))
        _labels(lens, dataset, place, note)
        if subject.run is None:
            continue
        _order(lens, subject, dataset, place, note)
        of_run = set(lens.reads) - set(OF_DATA)  # what is of the data alone is the same in all runs
        errors = [name for name in estimates(dataset) if of_run and f"{name}_se" in dataset]
        if errors:
            runs = [dataset]
            for k in range(1, RUNS):
                runs.append(lens.measure(make(range(k * SAMPLES, (k + 1) * SAMPLES))))
            for name in errors:
                _spread(name, runs, place, note)
    if nothing is not None:
        _null(lens, nothing, note)
    elif any("_null" in law for law in laws):
        report.skipped.append("null bands hold: give nothing=, where there is nothing to see.")
    if not laws:
        raise ConformanceError(Report(f"{lens!r} has no meaning for any subject it was tried on."))
    allowed = {"samples in another order": 1e-8, "spread over runs, of its standard errors": SPREAD}
    allowed |= {"exact value, in standard errors": WITHIN, "null band misses": 0.15}
    for law, deviations in laws.items():
        report.add(law, deviations, allowed.get(law, 0.0))
    return report.finish()


def _labels(lens: Lens, found: xr.Dataset, place: str, note) -> None:
    for name in estimates(found):
        lacking = [key for key in ("long_name", "units") if not found[name].attrs.get(key)]
        note("every estimate has a long_name and units", f"{name}, {place}", float(len(lacking)))
        for end in ("_se", "_exact"):
            if name + end in found:
                other = found[name + end].dims != found[name].dims
                note("what stands beside an estimate has its dims", name + end, float(other))
        if f"{name}_null" in found:
            band = found[f"{name}_null"]
            crossed = bool((band.sel(bound="low") > band.sel(bound="high")).any())
            note("low is below high", f"{name}_null, {place}", float(crossed))
    said = lens.findings(found)
    good = all(isinstance(one, str) and one.rstrip().endswith((".", "?")) for one in said)
    note("findings are sentences", place, float(not good))


def _order(lens: Lens, subject: Subject, found: xr.Dataset, place: str, note) -> None:
    """Of samples in the opposite order: the same numbers; along ``sample`` those in that order."""
    back = slice(None, None, -1)
    run = subject.run.isel(sample=back).copy(deep=True)  # torch takes no negative strides
    other = lens.measure(replace(subject, run=run, computed={}))
    for name in estimates(found):
        one, two = found[name], other[name]
        two = two.isel(sample=back) if "sample" in two.dims else two
        a, b = (np.asarray(v.values, dtype=float) for v in (one, two))
        size = np.nanmax(np.abs(a), initial=0.0) or 1.0
        apart = np.nanmax(np.abs(np.where(a == b, 0.0, a - b)), initial=0.0)
        note("samples in another order", f"{name}, {place}", float(apart / size))


def _spread(name: str, runs: list[xr.Dataset], place: str, note) -> None:
    values = np.stack([np.asarray(run[name].values, dtype=float).ravel() for run in runs])
    errors = np.stack([np.asarray(run[f"{name}_se"].values, dtype=float).ravel() for run in runs])
    scale = np.nanmax(np.abs(values), initial=0.0)
    finite = np.isfinite(values).all(0) & np.isfinite(errors).all(0)
    finite &= errors.mean(0) > 1e-12 * scale
    if finite.any():
        ratio = values[:, finite].var(0, ddof=1) / np.square(errors[:, finite]).mean(0)
        worst = float(np.exp(np.abs(np.log(np.median(ratio)))))
        note("spread over runs, of its standard errors", f"{name}, {place}", worst)
    if f"{name}_exact" in runs[0]:
        exact = np.asarray(runs[0][f"{name}_exact"].values, dtype=float).ravel()
        apart = np.abs(values - exact) - 1e-9 * scale
        if f"{name}_null" in runs[0]:  # inside it nothing can be told from the exact value
            low, high = (runs[0][f"{name}_null"].sel(bound=b).values.ravel() for b in BOUNDS)
            inside = [(v >= low) & (v <= high) for v in (values, exact)]
            apart = np.where(inside[0] & inside[1], 0.0, apart)
        with np.errstate(divide="ignore", invalid="ignore"):
            many = np.where(apart <= 0, 0.0, apart / errors)
        note("exact value, in standard errors", f"{name}, {place}", float(np.nanmax(many)))


def _null(lens: Lens, nothing: MakeSubject, note) -> None:
    """The share of runs outside the 95 % band; of 40 runs more than 15 % are a broken band."""
    missed: dict[str, list[float]] = {}
    for k in range(40):
        dataset = complete(lens, nothing(range(k * SAMPLES, (k + 1) * SAMPLES)))
        for name in estimates(dataset):
            if f"{name}_null" not in dataset:
                continue
            low, high = (dataset[f"{name}_null"].sel(bound=b).values for b in BOUNDS)
            value = dataset[name].values
            missed.setdefault(name, []).append(float(np.mean((value < low) | (value > high))))
    if not missed:
        raise ConformanceError(
            Report(f"{lens!r} gives no null band where there is nothing to see.")
        )
    for name, shares in missed.items():
        note("null band misses", name, float(np.mean(shares)))


def _run(lens: Lens, data: Data) -> MakeSubject:
    """Runs of DDIM under VP on ``data``, with what the lens reads recorded."""
    diffusion = Diffusion(VP(), data.law)
    grid = Grid.log_snr(diffusion.process, 12)
    fields = [name for name in lens.reads if name not in (*OF_DATA, "final")]

    def make(seeds: range) -> Subject:
        record = Record(fields) if fields else None
        run = sample(diffusion, DDIM(), grid, seeds, record)
        return Subject(diffusion, DDIM(), grid, run.dataset, data)

    return make


def _gaussian() -> Data:
    mean = torch.tensor([0.3, -0.2], dtype=torch.float64)
    law = Gaussian(mean, torch.tensor([[1.2, 0.3], [0.3, 0.2]], dtype=torch.float64))
    values, basis = torch.linalg.eigh(law.cov)
    z = NoiseSource(range(SAMPLES), law.event_shape).start()
    points = law.mean + (z * values.clamp_min(0).sqrt()) @ basis.T
    return Data("gaussian", points, torch.arange(SAMPLES) % 2, law)


def _mixture() -> Data:
    means = torch.tensor([[1.0, 0.0], [-0.6, 0.9], [-0.5, -0.8]], dtype=torch.float64)
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    law = Mixture(weights, means, torch.tensor([0.04, 0.09, 0.02], dtype=torch.float64))
    labels = torch.arange(SAMPLES) % len(means)
    z = NoiseSource(range(SAMPLES), law.event_shape).start()
    points = law.means[labels] + law.covs[labels, None].sqrt() * z
    return Data("mixture", points, labels, law)
