"""What pages have computed: functions that run in a worker process, and what they leave for a page.

A task takes a study (or a study and a page's options) and ``report(stage, fraction)``. It and what
it returns are picklable: bytes, texts, datasets, and figures as Bokeh's own JSON. Nothing here
imports the toolkit of the pages.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.studies import Exploration, Study, explore
from workbench.ui.apps import import_apps
from workbench.ui.broker import Report
from workbench.ui.form import distance, facts, title_of, words
from workbench.views.scene import flow_part, scene

if TYPE_CHECKING:
    import numpy
    import xarray

    from workbench.studies.banded import Looking
    from workbench.studies.comparison import Comparing, Comparison


@dataclass(frozen=True)
class Seen:
    """A study that was explored, as a page shows it.

    Attributes:
        scene: the player's bytes.
        facts: of :func:`workbench.ui.form.facts`.
        run: the trajectory's dataset.
        coming: what :func:`flow_seen` makes the exact flow and the density of, where they are still
            to come.
    """

    scene: bytes
    facts: list[str]
    run: xarray.Dataset
    coming: tuple[Study, xarray.Dataset, tuple[str, ...]] | None = None


def scene_of(exploration: Exploration) -> bytes:
    """The player's bytes for an exploration."""
    return scene(
        exploration.run,
        exploration.flow,
        exploration.portrait,
        title=title_of(exploration),
        notes=exploration.notes,
        study=exploration.study,
        groups=groups_of(exploration),
    )


def groups_of(exploration: Exploration) -> dict[str, numpy.ndarray]:
    """What samples can be coloured by: the class of the data they end in, that they were asked for.

    A sample ends in the class of the data point that is nearest to it.
    """
    import numpy as np

    run, data, found = exploration.run, exploration.setup.data, {}
    final = run["x"].values[-1].astype(np.float64)
    if data.labels is not None and np.isfinite(final).all():
        from scipy.spatial import cKDTree

        alpha = float(run["alpha"].values[-1].min()) or 1.0
        points = data.points.flatten(1).cpu().numpy()
        _, nearest = cKDTree(points).query(final.reshape(len(final), -1) / alpha)
        found["mode"] = data.labels.cpu().numpy()[nearest]
    if "label" in run.coords:
        _, found["label"] = np.unique(run["label"].values, return_inverse=True)
    return found


def explored(study: Study, report: Report, within: bool = False) -> Seen:
    """The study's run beside the exact flow; with the states ``within`` its steps."""
    found = explore(study, report, within, soon=True)
    notes = tuple(note for note in found.notes if note != found.reason)
    coming = (study, found.run, notes) if found.pending else None
    return Seen(scene_of(found), facts(found), found.run, coming)


def flow_seen(
    study: Study, run: xarray.Dataset, notes: tuple[str, ...], report: Report
) -> tuple[bytes, list[str]]:
    """The exact flow and the density of what was explored without them, see :class:`Seen`: a part
    for the player, and facts."""
    from workbench.studies.explore import refined

    late = refined(study, run, report)
    part = flow_part(run, late.flow, (*notes, *late.notes(run)), late.density)
    return part, [] if late.flow is None else [distance(late.flow)]


def through_lens(
    study: Study | tuple[Study, Any], report: Report, name: str
) -> tuple[str, list[dict], list[str]]:
    """The study, that of a page with options too, through a registered lens: its name, its figures
    and its findings."""
    from workbench.studies.measuring import look
    from workbench.views.lens import figure

    study = study[0] if isinstance(study, tuple) else study

    dataset, said = look(study, name, lambda i, n: report(f"measuring {name}", 0.9 * i / n))
    report("drawing", 0.9)
    return name, figures(figure(dataset, name)), said


def banded(asked: tuple[Study, Looking], report: Report) -> tuple[bytes, list[str], xarray.Dataset]:
    """When each band of the study's pictures emerges, as the page draws it; facts; the lens."""
    from workbench.studies import banded as bands
    from workbench.views.frequency import packed

    found = bands.banded(*asked, report)
    report("packing", 0.95)
    count = found.study.seeds.count
    said = [f"{count} sample{'s' * (count > 1)}", *map(escape, found.said)]
    return packed(found), said, found.lens


def exact_parts(
    study: Study, report: Report, lenses: tuple[str, ...]
) -> tuple[dict[str, str], dict[str, list[dict]]]:
    """The study through several lenses: by name the sentence, what was found or why there is
    nothing, and the figures."""

    def part(name: str, report: Report) -> tuple[list[str], list[dict]]:
        _, drawn, said = through_lens(study, report, name)
        return said, drawn

    return _each(lenses, report, part)


def _each(
    lenses: tuple[str, ...], report: Report, part: Callable[..., tuple[list[str], list[dict]]]
) -> tuple[dict[str, str], dict[str, list[dict]]]:
    """What ``part(name, report)`` finds and draws of each lens, or why there is nothing."""
    sentences, drawn = {}, {}
    for i, name in enumerate(lenses):
        try:
            step = partial(_share, report, i / len(lenses), 1 / len(lenses))
            said, drawn[name] = part(name, step)
            sentences[name] = " ".join(said)
        except NotImplementedError as error:
            sentences[name], drawn[name] = str(error), []
    return sentences, drawn


def _share(report: Report, begun: float, part: float, stage: str, share: float) -> None:
    """Report the ``share`` of a ``part`` of the whole, before which ``begun`` of it was done."""
    report(stage, begun + part * share)


#: What the section on shape draws of each lens.
DRAWN = {
    "commitment": ("class_kept", "point_kept", "response", "changed"),
    "uturn": ("kept", "class_kept", "clones_agree", "point_kept"),
}


def shapes(
    study: Study,
    report: Report,
    states: tuple[str, ...],
    planes: tuple[str, ...],
    lenses: tuple[str, ...],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The shape of the study's paths, when they have decided, and what a nudge and a way back
    change: what :func:`exact_parts` gives of the lens geometry, by state and plane, and of further
    lenses."""
    from workbench.lenses.base import complete
    from workbench.lenses.geometry import Geometry, paths_in_plane, said_of_plane
    from workbench.views.geometry import plane
    from workbench.views.lens import figure

    sentences, drawn = {}, {}
    keys = [f"{state} {kind}" for state in states for kind in planes]
    report("sampling", 0.0)
    try:
        subject = _few(study, report)
        for state in states:
            lens = Geometry(state=state)
            found = complete(lens, subject)
            curves = figures(figure(found[["off_chord", "off_chord_se", "turned", "turned_se"]]))
            for kind in planes:
                paths = paths_in_plane(subject, state, kind)
                said = [said_of_plane(paths), *lens.findings(found)]
                sentences[f"{state} {kind}"] = " ".join(said)
                drawn[f"{state} {kind}"] = figures(plane(paths)) + curves
    except NotImplementedError as error:
        sentences, drawn = dict.fromkeys(keys, str(error)), {key: [] for key in keys}
    said, beneath = _decided(study, report, lenses)
    return {"geometry": sentences, **said}, {"geometry": drawn, **beneath}


def _few(study: Study, report: Report, count: int = 128):
    """A run of the study's first samples, for lenses."""
    from dataclasses import replace

    from workbench.lenses.base import Subject
    from workbench.sampling import Record
    from workbench.studies.run import build, plan, sampled

    setup = build(study)
    if not setup.diffusion.process.single_level:
        raise NotImplementedError(
            f"{study.process.name} has no one alpha and sigma; its paths have no such shape."
        )
    few = replace(setup, seeds=setup.seeds[:count], record=Record(["x", "denoised"]))
    run = sampled(few, plan(few), lambda i, n: report("sampling", 0.4 * i / n)).dataset
    return Subject(setup.truth, setup.sampler, setup.grid, run, setup.data)


def _decided(study: Study, report: Report, lenses: tuple[str, ...]) -> tuple[dict, dict]:
    from workbench.lenses.geometry import Commitment, nudged
    from workbench.studies.measuring import look
    from workbench.views.geometry import nudges
    from workbench.views.lens import figure

    def part(name: str, measuring: Report) -> tuple[list[str], list[dict]]:
        found, said = look(study, name, lambda i, n: measuring("measuring", i / n))
        drawn = [key for key in found if key.split("_se")[0] in DRAWN[name]]
        shown = figures(figure(found[drawn]))
        if name == "commitment":
            shown = figures(nudges(nudged(_few(study, report, 24), Commitment()))) + shown
        return said, shown

    return _each(lenses, partial(_share, report, 0.4, 0.5), part)


def compared(asked: tuple[Study, Comparing], report: Report) -> tuple[Comparison, list[dict]]:
    """Samplers compared on a spectrum, and the figures of it."""
    from workbench.studies.comparison import compare
    from workbench.views import samplers as views

    found = compare(*asked, partial(_share, report, 0.0, 0.7))
    report("drawing", 0.7)
    first = figures(views.convergence(found.lens, found.options.error, Names()))
    report("drawing", 0.9)
    options = found.options
    second = views.contributions(found.lens, options.nfe, Names(), options.error)
    return found, first + figures(second)


def seeds_seen(asked: tuple[Study, Any], report: Report) -> tuple[bytes, list[str], xarray.Dataset]:
    """What the seeds of a study decide: bytes for the page's picture."""
    from workbench.studies.seeding import seeds_of
    from workbench.views.seeds import packed

    found = seeds_of(asked, report)
    return packed(found, asked[0].to_query()), [escape(one) for one in found.facts], found.dataset


def seeds_part(asked: tuple[Study, Any], wish: dict[str, Any], report: Report) -> bytes:
    """A part of the page of seeds that is computed while it is looked at: its bytes."""
    from workbench.studies.seeding import part_of
    from workbench.views.seeds import packed_part

    return packed_part(part_of(asked, wish, report), asked[1].mark(asked[0]))


def gap_seen(asked: tuple[Study, Any], report: Report) -> tuple[bytes, list[str], xarray.Dataset]:
    """ODE, SDE and truth of a study, and how far they are apart: bytes for the page's picture."""
    from workbench.studies.gapping import gap_of
    from workbench.views.gap import packed

    found = gap_of(asked, report)
    return packed(found), [escape(one) for one in found.facts], found.dataset


def gauge_seen(asked: tuple[Study, Any], report: Report) -> tuple[bytes, list[str], xarray.Dataset]:
    """Which part of a study's score moves density, and what the rest does: bytes for the page."""
    from workbench.studies.gauging import gauge_of
    from workbench.views.gauge import packed

    found = gauge_of(asked, report)
    facts = [escape(one) for one in found.facts]
    return packed(found, asked[1].mark(asked[0])), facts, found.dataset


def gauge_part(asked: tuple[Study, Any], wish: dict[str, Any], report: Report) -> bytes:
    """Curves of the page of the gauge, computed while it is looked at: their bytes."""
    from workbench.studies.gauging import curves_of
    from workbench.views.gauge import packed_part

    return packed_part(curves_of(asked, wish["part"], report), asked[1].mark(asked[0]))


def comparison_part(
    asked: tuple[Study, Comparing], report: Report, part: str
) -> tuple[xarray.Dataset, list[dict]]:
    """A section of the page of samplers: where each is stable (``stability``), its measured order
    (``orders``), the standard grids beside a tuned one (``grids``), or samplers seed by seed on
    data of any kind (``paths``)."""
    from workbench.studies import comparison
    from workbench.views import samplers as views

    compare, draw = {
        "stability": (comparison.compare_stability, views.stability),
        "orders": (comparison.compare_orders, views.orders),
        "grids": (comparison.compare_grids, partial(views.grids, value=asked[1].error)),
        "paths": (comparison.compare_paths, partial(views.convergence, value="rms")),
    }[part]
    found = compare(*asked, partial(_share, report, 0.0, 0.9))
    return found, figures(draw(found, names=Names()))


class Names(dict):
    """Words for the names of samplers and grids."""

    def get(self, name, default=None):
        return words(name)


def figures(drawn: Any) -> list[dict]:
    """The panels of a HoloViews view as Bokeh figures, each as JSON."""
    import holoviews as hv
    from bokeh.document import Document

    panels = list(drawn) if isinstance(drawn, hv.Layout) else [drawn]
    made = []
    for panel in panels:
        document = Document()
        document.add_root(hv.render(panel, backend="bokeh"))
        made.append(document.to_json(deferred=False))
    return made


def stored(dataset: xarray.Dataset, report: Report) -> bytes:
    """A dataset as a Zarr store in a zip file, written to files first."""
    from workbench.studies.store import write

    report("packing", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        write(dataset, Path(folder) / "run.zarr")
        packed = shutil.make_archive(f"{folder}/packed", "zip", folder, "run.zarr")
        return Path(packed).read_bytes()


def sweep_opened(
    folder: Path, name: str, measure: str, axis: str, report: Report
) -> dict[str, Any]:
    """A stored sweep: one measure drawn over one axis, its rows, and what failed, as HTML."""
    from workbench.studies.library import Library, yaml_of
    from workbench.studies.store import StoreError
    from workbench.ui.listing import html_table, measured, study_text, sweep_rows
    from workbench.views import sweeps

    report("reading", 0.0)
    library = Library(folder)
    made: dict[str, Any] = {"for": [name]}
    body = ""
    try:
        table = library.table(name)
    except StoreError as error:
        body = f"<p>{escape(str(error))}</p>"
    else:
        body = sweep_rows(table)
        usable = measured(table)
        axes = sorted(table["status"].dims, key=lambda n: table[n].dtype.kind not in "iuf")
        if usable and axes:
            first = next(
                (m for m in ("output.w2_exact", "rms", "output.energy") if m in usable), usable[0]
            )
            made["measures"], made["axes"] = usable, axes
            made["measure"] = measure if measure in usable else first
            made["axis"] = axis if axis in axes else axes[0]
            meaning = table[made["measure"]].attrs.get("long_name", "")
            left = table["status"].size // table.sizes[made["axis"]] - sweeps.MOST_CURVES
            few = f" ({left} curves are not drawn)" if left > 0 else ""
            body = f"<p>{made['measure']}: {escape(str(meaning))}{few}</p>{body}"
            made["drawn"] = figures(sweeps.sweep(table, made["measure"], made["axis"]))
    rows = [[one["hash"][:12], one["reason"]] for one in library.failures(name)]
    if rows:
        body += "<br>" + html_table(["study", "reason"], rows, "Studies that failed")
    return made | {"body": body + study_text(yaml_of(library.entry(name)))}


def warm() -> None:
    """Explore a small study once: what the first picture needs is imported on the way."""
    import torch

    import_apps()
    torch.set_num_threads(1)
    small = {"seeds": {"count": 4}, "grid": {"name": "log_snr", "steps": 2}, "device": "cpu"}
    with torch.no_grad():
        explored(Study(**small), lambda stage, fraction: None)


def drawing() -> None:
    """Draw a figure once: what figures need is imported on the way."""
    import holoviews as hv

    from workbench.views import lens, samplers

    assert lens and samplers
    figures(hv.Curve([0, 1]))
