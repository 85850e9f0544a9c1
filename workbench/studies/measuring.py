"""The lenses of a study: measured after its run, and kept with it.

The variables of a lens stand in the run's dataset under its name (``teleportation.rms``), along
``time`` of the run and along dims of its own (``teleportation.rho``); :func:`lens` gives them back
as the lens made them. A lens that has no meaning for a study is left out, with the reason in
``attrs["lenses"]``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from workbench.lenses.base import (
    BESIDE,
    BOUNDS,
    OF_DATA,
    LensError,
    OnStep,
    complete,
    resolved,
)
from workbench.sampling import Record
from workbench.studies.limits import claim

if TYPE_CHECKING:
    from workbench.studies.run import Setup
    from workbench.studies.spec import Study

#: Dims that a lens shares with the run, and with the other lenses.
SHARED = ("time", "bound")

#: What a lens counts for in the progress of a run: one part, the run having so many.
RUN_PARTS = 4


def measured(
    setup: Setup, run: xr.Dataset, on_lens: Callable[[int, int, int], None] | None = None
) -> xr.Dataset:
    """What the lenses of a study measure of its run, in float64.

    A lens without a meaning for the study is left out with the reason; so is one that raises.

    Args:
        run: the dataset of the run; may be a store's, of which only what is needed is read.
        on_lens: called as ``on_lens(index, done, total)`` along the way of each lens; what it
            raises ends the measuring.

    Returns:
        Dataset with the variables of all of them, and ``attrs["lenses"]``, JSON.
    """
    if not setup.lenses:
        return xr.Dataset()
    variables, said = {}, {}
    stopped: list[BaseException] = []  # what the caller raised along the way

    def on_step(done: int, total: int) -> None:
        try:
            on_lens(len(said), done, total)  # each lens before this one has said something
        except BaseException as error:
            stopped.append(error)
            raise

    for name, one in setup.lenses.items():
        fields = [field for field in one.reads if field not in OF_DATA]
        count = 0 if one.looks_at is None and not fields else one.looks_at
        needed = run[[*fields, "seed"]].isel(sample=slice(0, count)).load()
        try:
            dataset = complete(one, setup.subject(needed), on_step=on_lens and on_step)
        except (NotImplementedError, LensError) as error:
            said[name] = {"absent": str(error)}
            continue
        except Exception as error:
            if error in stopped:
                raise
            said[name] = {"absent": f"it failed with {type(error).__name__}: {error}"}
            continue
        sentences = one.findings(dataset)
        of_run = [k for k, one in dataset.coords.items() if k == "bound" or one.dims == ("time",)]
        dataset = dataset.drop_vars(of_run)
        variables |= {
            f"{name}.{key}": (
                [dim if dim in SHARED else f"{name}.{dim}" for dim in array.dims],
                np.asarray(array.values),
                array.attrs,
            )
            for key, array in dataset.variables.items()
        }
        said[name] = {
            "coords": sorted(map(str, dataset.coords)),
            "attrs": dataset.attrs,
            "findings": sentences,
        }
    return xr.Dataset(variables, attrs={"lenses": json.dumps(said)})


def look(
    study: Study, name: str, on_step: OnStep | None = None, **parameters
) -> tuple[xr.Dataset, list[str]]:
    """A study through one lens: its run, with what the lens reads recorded, measured.

    Args:
        name: of a registered lens; ``parameters`` are its own.
        on_step: called as ``on_step(done, total)`` along the way; raise in it to stop.

    Returns:
        What the lens measured, and its findings.

    Raises:
        StudyError: values that do not go together.
        NotImplementedError: the lens has no meaning for the study, with the reason.
    """
    from workbench.studies.run import build, plan, sampled

    one = resolved(name, parameters)
    device = {"device": "cpu"} if study.device == "mps" else {}  # float64 is not to be had there
    setup = build(study.changed(device))
    if one.looks_at is None and set(one.reads) <= set(OF_DATA):
        dataset = complete(one, setup.subject(), on_step=on_step)
        return dataset, one.findings(dataset)
    fields = [field for field in one.reads if field not in (*OF_DATA, "final")]
    seeds = setup.seeds if one.looks_at is None else setup.seeds[: one.looks_at]
    setup = replace(setup, seeds=seeds, record=Record(fields or ["x"], 1 if fields else 10_000))
    on_run, on_lens = parts_of(on_step, 1)
    planned = plan(replace(setup, lenses={name: one}))
    claim(planned.bytes_held, len(seeds), planned.bytes_fixed)
    run = sampled(setup, planned, on_run).dataset
    step = None if on_lens is None else lambda done, total: on_lens(0, done, total)
    dataset = complete(one, setup.subject(run), on_step=step)
    return dataset, one.findings(dataset)


def with_lenses(run: xr.Dataset, found: xr.Dataset) -> xr.Dataset:
    """A run with what was measured of it."""
    return run.assign(found.variables).assign_attrs(found.attrs) if found.attrs else run


def lens(run: xr.Dataset, name: str) -> xr.Dataset:
    """What a lens measured of a run, as the lens made it.

    Raises:
        KeyError: the study did not name it, or it has no meaning there; with the reason.
    """
    about = json.loads(run.attrs.get("lenses", "{}"))
    if name not in about:
        measured_names = ", ".join(about) or "none"
        raise KeyError(f"the study of this run has no lens {name!r}; its lenses: {measured_names}.")
    if reason := about[name].get("absent"):
        raise KeyError(f"{name} was not measured: {reason}")
    mine = {key: run[key] for key in run.variables if str(key).startswith(f"{name}.")}
    names = {key: str(key).removeprefix(f"{name}.") for key in mine}
    names |= {dim: str(dim).removeprefix(f"{name}.") for one in mine.values() for dim in one.dims}
    variables = {
        names[key]: ([names[dim] for dim in one.dims], one.values, one.attrs)
        for key, one in mine.items()
    }
    coords = {key: variables.pop(key) for key in about[name]["coords"]}
    if any("bound" in dims for dims, *_ in variables.values()):
        coords["bound"] = list(BOUNDS)
    if any("time" in dims for dims, *_ in variables.values()):
        coords |= {key: run[key] for key in ("t", "rho") if key in run.coords}
    return xr.Dataset(variables, coords, about[name]["attrs"])


def absent(run: xr.Dataset) -> dict[str, str]:
    """Lenses that the study named and that were not measured: by their name, the reason."""
    about = json.loads(run.attrs.get("lenses", "{}"))
    return {name: one["absent"] for name, one in about.items() if "absent" in one}


def findings(run: xr.Dataset) -> dict[str, list[str]]:
    """What each lens of a run found, in sentences."""
    about = json.loads(run.attrs.get("lenses", "{}"))
    return {name: one["findings"] for name, one in about.items() if one.get("findings")}


def scalars(run: xr.Dataset) -> dict[str, float]:
    """The lenses' single numbers."""
    names = [f"{name}." for name in json.loads(run.attrs.get("lenses", "{}"))]
    return {
        str(key): float(array)
        for key, array in run.data_vars.items()
        if array.ndim == 0 and str(key).startswith(tuple(names))
    }


def told(run: xr.Dataset) -> list[str]:
    """The single estimates as short texts, with what is known of each."""
    texts, numbers = [], scalars(run)
    for name, value in sorted(numbers.items()):
        if name.endswith(BESIDE):
            continue
        text = f"{name} {value:.4g}"
        if numbers.get(f"{name}_se"):
            text += f" ± {numbers[f'{name}_se']:.2g}"
        beside = []
        if f"{name}_exact" in numbers:
            beside.append(f"exact {numbers[f'{name}_exact']:.4g}")
        if f"{name}_null" in run:
            low, high = run[f"{name}_null"].values
            beside.append(f"null {low:.3g} to {high:.3g}")
        texts.append(f"{text} ({', '.join(beside)})" if beside else text)
    return texts


def parts_of(
    on_step: OnStep | None, lenses: int
) -> tuple[OnStep | None, Callable[[int, int, int], None] | None]:
    """The progress of a run and of the lenses after it, as parts of one."""
    if on_step is None or not lenses:
        return on_step, None
    steps = 1

    def of_run(done: int, total: int) -> None:
        nonlocal steps
        steps = total
        on_step(RUN_PARTS * done, (RUN_PARTS + lenses) * total)

    def of_lens(index: int, done: int, total: int) -> None:
        part = RUN_PARTS + index + done / max(1, total)
        on_step(round(part * steps), (RUN_PARTS + lenses) * steps)

    return of_run, of_lens
