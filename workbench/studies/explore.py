"""A study with everything that is shown of it: the run, the exact flow, the phase portrait."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from workbench.denoisers import Gaussian
from workbench.lenses.distances import refined_flow, to_flow
from workbench.lenses.portrait import (
    half_width,
    knows_density,
    log_densities,
    portrait,
    spread_nodes,
)
from workbench.studies.limits import Report, claim, unheard
from workbench.studies.measuring import absent, measured, with_lenses
from workbench.studies.run import Setup, build, plan, provenance, sampled
from workbench.studies.spec import Study, StudyError
from workbench.studies.stages import staged

if TYPE_CHECKING:
    import numpy
    import xarray

#: Most numbers a run may record when it is made to be looked at (float32: 256 MB).
MOST_NUMBERS = 64_000_000

#: Samples of a refined flow, of images and of two-dimensional states; and how many times the
#: evaluations of the run it may cost.
REFINED, DEARER = (64, 512), 8

#: Nodes of a run from which on its picture does not wait for a refined flow.
MANY = 4000

#: Most nodes of a run that are portrayed; between them the picture is interpolated. And the cells
#: along a side of its density.
PORTRAYED, CELLS = 40, 56

#: What is said of an exact flow that is not there yet.
COMING = (
    "What has no closed form here, the exact flow and the density of a network, is being "
    "integrated: it is drawn when it has converged."
)


@dataclass(frozen=True)
class Exploration:
    """What :func:`explore` leaves.

    Attributes:
        setup: the objects the study names.
        run: the trajectory's dataset.
        flow: exact flow, in closed form or refined, and RMS distance to it, or None; ``reason``
            then says why in a sentence.
        portrait: density and flow on lattices, for two-dimensional data, or None; ``missing`` says
            in a sentence why there is no density.
        pending: whether the exact flow, and the density of a law that knows none, are left to
            :func:`refined`.
    """

    setup: Setup
    run: xarray.Dataset
    flow: xarray.Dataset | None
    reason: str
    portrait: xarray.Dataset | None
    missing: str = ""
    pending: bool = False

    @property
    def study(self) -> Study:
        return self.setup.study

    @property
    def title(self) -> str:
        """The study in a line."""
        study = self.study
        method = study.sampler.name
        eta = getattr(study.sampler, "eta", None)
        method += f" (eta {eta:g})" if eta is not None else ""
        return (
            f"{method}, {self.setup.grid.steps} steps on a {study.grid.name} grid, "
            f"{study.process.name}; {study.data.name} as {study.denoiser.name}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the picture has to know, in sentences."""
        said = tuple(filter(None, self.run.attrs.get("notes", "").split("\n")))
        said += tuple(f"{name} was not measured: {why}" for name, why in absent(self.run).items())
        return (*said, *said_of_flow(self.run, self.flow, self.reason, self.missing))


@dataclass(frozen=True)
class Refined:
    """What :func:`refined` leaves.

    Attributes:
        flow, reason: as of :class:`Exploration`.
        density: the portrait's log-density, where the portrait was made without it; ``missing``
            says in a sentence why there is none.
    """

    flow: xarray.Dataset | None
    reason: str
    density: numpy.ndarray | None
    missing: str = ""

    def notes(self, run: xarray.Dataset) -> tuple[str, ...]:
        """What a reader has to know of it, beside the ``run``, in sentences."""
        return said_of_flow(run, self.flow, self.reason, self.missing)


def said_of_flow(
    run: xarray.Dataset, flow: xarray.Dataset | None, reason: str, missing: str
) -> tuple[str, ...]:
    """What a reader has to know of what is exact beside a run, in sentences."""
    if flow is None:
        return (*filter(None, (missing,)), reason)
    said = tuple(filter(None, (missing, flow.attrs.get("note"))))
    if run.attrs["stochastic"]:
        said += (
            "The sampler draws fresh noise: its paths leave the exact flow by design, and the RMS "
            "distance says how far.",
        )
    return said


def explore(
    study: Study,
    report: Report = unheard,
    within: bool = False,
    soon: bool = False,
) -> Exploration:
    """Run ``study`` with x and the denoised estimate recorded, and what is shown beside them.

    Args:
        within: also the states within each step, see :func:`workbench.studies.stages.staged`; where
            they cannot be had, the notes say why.
        soon: leave to :func:`refined` a flow that takes a network several times the evaluations of
            the run, or that has very many nodes, and a density that is integrated.

    Raises:
        StudyError: values that do not go together, or more numbers than can be looked at.
    """
    report("preparing", 0.0)
    fields = tuple(dict.fromkeys(("x", "denoised", *study.record.fields)))
    study = study.changed({"record.fields": fields})
    setup = build(study)
    kept = len(setup.record.indices(setup.grid))
    numbers = kept * study.seeds.count * setup.diffusion.denoiser.dim * len(fields)
    if numbers > MOST_NUMBERS:
        most = study.seeds.count * MOST_NUMBERS // numbers
        raise StudyError(
            {
                "seeds.count": f"seeds.count was {study.seeds.count}; with {kept} recorded times "
                f"it must be at most {most} here. Larger runs: workbench run study.yaml."
            }
        )
    made = plan(setup)
    claim(made.bytes_held + made.bytes_stored, study.seeds.count, made.bytes_fixed)  # and a scene
    planar = tuple(setup.diffusion.event_shape) == (2,)
    share = 0.5 if planar else 0.9
    run = sampled(setup, made, lambda i, n: report("sampling", share * i / n)).dataset
    run.attrs |= provenance(study)
    on_lens = lambda i, *_: report(f"measuring {study.lenses[i].name}", share)  # noqa: E731
    run = with_lenses(run, measured(setup, run, on_lens))
    within_said = ""
    if within:
        try:
            run = staged(setup, run)
        except ValueError as error:
            within_said = f"Nothing within the steps is shown: {error}"
    report("exact flow", share)
    law, long = setup.diffusion.denoiser, run.sizes["time"] >= MANY
    pending = soon and (not law.closed or (long and not isinstance(law, Gaussian)))
    flow, reason = None, COMING
    if not pending:
        flow, reason = _truth(setup, run, lambda i, n: report("exact flow", share))
    picture, missing = None, ""
    if planar:
        portrayed = partial(
            portrait,
            setup.diffusion,
            run.isel(time=spread_nodes(run, PORTRAYED)),
            half_width(run),
            on_step=lambda i, n: report("phase portrait", share + (1 - share) * i / n),
        )
        try:
            picture = portrayed(density=0 if pending and not knows_density(law) else CELLS)
        except NotImplementedError as error:
            picture, missing = portrayed(density=0), f"No density is drawn: {error}"
    missing = " ".join(filter(None, (missing, within_said)))
    return Exploration(setup, run, flow, reason, picture, missing, pending)


def refined(study: Study, run: xarray.Dataset, report: Report) -> Refined:
    """What an exploration left for later.

    Args:
        study, run: of the exploration.
    """
    setup, density, missing = build(study), None, ""
    diffusion, share = setup.diffusion, 0.0
    report("phase portrait", 0.0)
    if tuple(diffusion.event_shape) == (2,) and not knows_density(diffusion.denoiser):
        share = 0.4
        try:
            density = log_densities(
                diffusion,
                run.isel(time=spread_nodes(run, PORTRAYED)),
                half_width(run),
                CELLS,
                lambda i, n: report("phase portrait", share * i / n),
            )
        except NotImplementedError as error:
            missing = f"No density is drawn: {error}"
    flow, reason = _truth(
        setup, run, lambda i, n: report("exact flow", share + (1 - share) * i / n)
    )
    return Refined(flow, reason, density, missing)


def _truth(setup: Setup, run: xarray.Dataset, on_step) -> tuple:
    """The probability flow from the run's own starts, in closed form or refined; or why not."""
    try:
        return to_flow(setup.whole, run), ""
    except NotImplementedError:
        pass
    # In proportion to the run itself: with a network, each evaluation is dear.
    planar = tuple(setup.diffusion.event_shape) == (2,)
    samples = min(REFINED[planar], run.sizes["sample"])
    most = DEARER * run.attrs["nfe"] * run.sizes["sample"] // samples
    try:
        first = replace(setup, seeds=setup.seeds[:samples])
        return refined_flow(first.whole, run, samples, max(384, most), on_step), ""
    except (NotImplementedError, ValueError) as error:
        return None, f"There is no exact flow to compare with: {error}"
