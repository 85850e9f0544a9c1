"""What a sweep leaves: a few numbers of each run, and one labelled dataset of all."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench.denoisers import Gaussian
from workbench.lenses.distances import to_flow
from workbench.lenses.output import Output, exact_errors
from workbench.studies.measuring import scalars
from workbench.studies.run import Setup
from workbench.studies.store import attributes, opened
from workbench.studies.sweep import MEASURES, RESERVED, SweepError, SweepSpec, _word

if TYPE_CHECKING:
    import xarray

#: Most numbers of the final states that are gathered (float32: 512 MB).
MOST_NUMBERS = 2**27


def measures(setup: Setup, dataset: xarray.Dataset) -> dict[str, float]:
    """What is cheaply said of a run, by the names of :data:`workbench.studies.sweep.MEASURES`.

    What has no closed form is left out: ``rms`` needs an exact flow and a recorded x, the exact W2
    Gaussian data and a linear sampler. It and the energy distance are those of the lens ``output``,
    whose parameters hold where the study names it. The single numbers of the study's lenses stand
    under their names (``output.kl``).
    """
    numbers = {"nfe": float(dataset.attrs["nfe"]), "seconds": float(dataset.attrs["seconds"])}
    with torch.no_grad():
        with contextlib.suppress(NotImplementedError, ValueError):
            ends = dataset.isel(time=[0, -1]) if "x" in dataset else dataset
            numbers["rms"] = float(to_flow(setup.whole, ends)["rms"][-1])
        output = setup.lenses.get("output", Output())
        subject = setup.subject(dataset)
        with contextlib.suppress(NotImplementedError, TypeError, ValueError):
            if isinstance(subject.denoiser, Gaussian):
                numbers["output.w2_exact"] = exact_errors(subject, output.target)["w2"]
        energy = output.energy(subject)
    numbers |= {f"output.{name}": value for name, value in energy.items()} | scalars(dataset)
    return {name: value for name, value in numbers.items() if math.isfinite(value)}


def place_of(folder: Path, key: str) -> Path:
    """Where the run of a study of a sweep is."""
    return folder / "runs" / f"{key}.zarr"


def coordinates(spec: SweepSpec) -> dict[str, tuple[str, np.ndarray]]:
    """The values along each axis; along a list, each entry that it changes."""
    coords, studies = {}, np.array(spec.studies, object).reshape(spec.shape)
    for number, axis in enumerate(spec.axes):
        along = np.moveaxis(studies, number, 0).reshape(len(axis), -1)[:, 0]
        flats = [study.to_flat() for study in along]
        if not axis.listed:
            # A parameter as the study read it ("5" is 5), a section as it was written.
            plain = not any(isinstance(one, Mapping) for c in axis.changes for one in c.values())
            values = [flat[axis.name] for flat in flats] if plain else axis.labels
            coords[axis.name] = (axis.name, _array(values))
            continue
        coords[axis.name] = (axis.name, np.arange(len(axis)))
        for key in sorted(axis.keys):
            if key not in RESERVED and all(key in flat for flat in flats):
                coords[key] = (axis.name, _array([flat[key] for flat in flats]))
    return coords


def _array(values: Sequence[Any]) -> np.ndarray:
    """Numbers as numbers, anything else as text."""
    alike = len({isinstance(value, bool) for value in values}) == 1
    if alike and all(isinstance(value, int | float) for value in values):
        return np.array(values)
    return np.array([_word(value) for value in values], dtype=object)


def collect(spec: SweepSpec, folder: Path) -> xarray.Dataset:
    """The labelled dataset of a sweep, from what its folder holds.

    Returns:
        Dataset over the axes: the :data:`MEASURES` and the single numbers of lenses (NaN where
        there is none), ``status`` ("done" or "failed"), ``reason`` of a failure, ``study`` (the
        hash: a run is ``runs/<hash>.zarr``), and ``final``, the last states of every run, where
        they have one shape and fit into memory.

    Raises:
        SweepError: a point that is neither stored nor recorded as failed.
    """
    points = {key: _read(folder, key) for key in spec.jobs}
    table = _table(spec, points)
    attrs, variables, coords = {}, {}, {}
    dims = tuple(axis.name for axis in spec.axes)
    runs = {key: one["final"] for key, one in points.items() if one["final"] is not None}
    layouts = {(run.metadata.dimension_names, run.shape) for run in runs.values()}
    size = math.prod(next(iter(runs.values())).shape) if runs else 0
    if len(layouts) > 1:
        attrs["final"] = "left out: the final states do not all have the same shape."
    elif len(spec) * size > MOST_NUMBERS:
        attrs["final"] = f"left out: together more than {MOST_NUMBERS} numbers; see the runs."
    elif layouts:
        ((own, shape),) = layouts
        dtype = np.result_type(*(run.dtype for run in runs.values()))
        values = np.full((len(spec), *shape), np.nan, dtype)
        places: dict[str, list[int]] = {}
        for place, key in enumerate(spec.hashes):
            places.setdefault(key, []).append(place)
        for key, run in runs.items():
            values[places[key]] = run[...]
        about = {"long_name": "final state"}
        variables["final"] = ((*dims, *own), values.reshape(*spec.shape, *shape), about)
        ranges = {(spec.jobs[key].seeds.first, spec.jobs[key].seeds.count) for key in runs}
        if len(ranges) == 1:
            ((first, count),) = ranges
            coords["seed"] = ("sample", np.arange(first, first + count))
    return table.assign(variables).assign_coords(coords).assign_attrs(attrs)


def so_far(spec: SweepSpec, folder: Path) -> xarray.Dataset:
    """What :func:`collect` gives, of a sweep that has not ended and without the final states.

    ``status`` of what is neither stored nor recorded as failed is "waiting".
    """
    points = {}
    for key in spec.jobs:
        try:
            points[key] = _read(folder, key, final=False)
        except SweepError:
            points[key] = {"measures": {}, "reason": "", "status": "waiting"}
    return _table(spec, points)


def _table(spec: SweepSpec, found: dict[str, dict[str, Any]]) -> xarray.Dataset:
    """Measures, status and reason of each point, by the axes of the sweep."""
    import xarray

    dims = tuple(axis.name for axis in spec.axes)

    def over(values: list, dtype) -> tuple:
        return dims, np.array(values, dtype=dtype).reshape(spec.shape)

    points = [found[key] for key in spec.hashes]
    lenses = sorted({name for point in points for name in point["measures"]} - set(MEASURES))
    about = MEASURES | {name: f"{name.replace('.', ': ')} of the lens" for name in lenses}
    variables = {
        name: (
            *over([point["measures"].get(name, math.nan) for point in points], float),
            {"long_name": text},
        )
        for name, text in about.items()
    }
    variables["status"] = over([point["status"] for point in points], object)
    variables["reason"] = over([point["reason"] for point in points], object)
    variables["study"] = (*over(list(spec.hashes), object), {"long_name": "hash of the study"})
    attrs = {
        "sweep": json.dumps(spec.to_dict()),
        "sweep_hash": spec.hash,
        "failed": sum(one["status"] == "failed" for one in found.values()),
    }
    return xarray.Dataset(variables, coordinates(spec), attrs)


def reopened(path: Path) -> xarray.Dataset:
    """A stored dataset of :func:`collect`, as it was: texts are Python's, everything in memory."""
    import xarray

    table = xarray.open_zarr(opened(path), consolidated=False, chunks=None).load()
    table.attrs.pop("digest", None)
    texts = {k: v.astype(object) for k, v in table.variables.items() if v.dtype.kind == "T"}
    return table.assign(texts)


def _read(folder: Path, key: str, final: bool = True) -> dict[str, Any]:
    """What is there of one study: final states and measures, or the reason of its failure."""
    import zarr

    place = place_of(folder, key)
    if place.is_dir():  # Zarr itself opens one array ten times as fast as xarray the whole
        numbers = json.loads(attributes(place)["measures"])
        states = zarr.open_array(opened(place), path="final", mode="r") if final else None
        return {"final": states, "measures": numbers, "reason": "", "status": "done"}
    try:
        reason = json.loads((folder / "failures" / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise SweepError(
            f"{place} is said to be stored, but it is not there: the folder must be one that the "
            "workers and this process share, under the same path."
        ) from None
    return {"final": None, "measures": {}, "reason": reason["reason"], "status": "failed"}
