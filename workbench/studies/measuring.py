"""The lenses of a study: measured after its run, and kept with it.

The variables of a lens stand in the run's dataset under its name (``teleportation.rms``), along
``time`` of the run and along dims of its own (``teleportation.rho``); :func:`lens` gives them back
as the lens made them. A lens that has no meaning for a study is left out, with the reason in
``attrs["lenses"]``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import xarray as xr

from workbench.lenses import Subject

if TYPE_CHECKING:
    from workbench.studies.run import Setup

__all__ = ["absent", "lens", "measured", "parts_of", "scalars", "told", "with_lenses"]

OnStep = Callable[[int, int], None]

#: What a lens counts for in the progress of a run: one part, the run having so many.
RUN_PARTS = 4


def measured(
    setup: Setup, run: xr.Dataset, on_lens: Callable[[int, int, int], None] | None = None
) -> xr.Dataset:
    """What the lenses of a study measure of its run, in float64.

    Args:
        run: the dataset of the run; may be a store's, of which only what is needed is read.
        on_lens: called as ``on_lens(index, done, total)`` along the way of each lens.

    Returns:
        Dataset with the variables of all of them, and ``attrs["lenses"]``, JSON.
    """
    if not setup.lenses:
        return xr.Dataset()
    truth, variables, said = setup.truth, {}, {}
    for index, (name, one) in enumerate(setup.lenses.items()):
        needed = run[[*one.reads, "seed"]].isel(sample=slice(0, one.looks_at)).load()
        step = None if on_lens is None else _step(on_lens, index)
        try:
            with torch.no_grad():
                found = one.measure(Subject(truth, setup.sampler, setup.grid, needed), step)
        except NotImplementedError as error:
            said[name] = {"absent": str(error)}
            continue
        found = found.drop_vars([key for key in found.coords if found[key].dims == ("time",)])
        variables |= {
            f"{name}.{key}": (
                [dim if dim == "time" else f"{name}.{dim}" for dim in array.dims],
                np.asarray(array.values),
                array.attrs,
            )
            for key, array in found.variables.items()
        }
        said[name] = {"coords": sorted(map(str, found.coords)), "attrs": found.attrs}
    return xr.Dataset(variables, attrs={"lenses": json.dumps(said)})


def _step(on_lens: Callable[[int, int, int], None], index: int) -> OnStep:
    return lambda done, total: on_lens(index, done, total)


def with_lenses(run: xr.Dataset, found: xr.Dataset) -> xr.Dataset:
    """A run with what was measured of it."""
    return run.assign(found.variables).assign_attrs(found.attrs) if found.attrs else run


def lens(run: xr.Dataset, name: str) -> xr.Dataset:
    """What a lens measured of a run, as the lens made it.

    Raises:
        KeyError: the study did not name it, or it has no meaning there; with the reason.
    """
    told = json.loads(run.attrs.get("lenses", "{}"))
    if name not in told:
        known = ", ".join(told) or "none"
        raise KeyError(f"the study of this run has no lens {name!r}; its lenses: {known}.")
    if reason := told[name].get("absent"):
        raise KeyError(f"{name} was not measured: {reason}")
    mine = {key: run[key] for key in run.variables if str(key).startswith(f"{name}.")}
    names = {key: str(key).removeprefix(f"{name}.") for key in mine}
    names |= {dim: str(dim).removeprefix(f"{name}.") for one in mine.values() for dim in one.dims}
    variables = {
        names[key]: ([names[dim] for dim in one.dims], one.values, one.attrs)
        for key, one in mine.items()
    }
    coords = {key: variables.pop(key) for key in told[name]["coords"]}
    if any("time" in dims for dims, *_ in variables.values()):
        coords |= {key: run[key] for key in ("t", "rho") if key in run.coords}
    return xr.Dataset(variables, coords, told[name]["attrs"])


def absent(run: xr.Dataset) -> dict[str, str]:
    """Lenses that the study named and that were not measured: by their name, the reason."""
    told = json.loads(run.attrs.get("lenses", "{}"))
    return {name: one["absent"] for name, one in told.items() if "absent" in one}


def scalars(run: xr.Dataset) -> dict[str, float]:
    """The lenses' single numbers."""
    names = [f"{name}." for name in json.loads(run.attrs.get("lenses", "{}"))]
    return {
        str(key): float(array)
        for key, array in run.data_vars.items()
        if array.ndim == 0 and str(key).startswith(tuple(names))
    }


def told(run: xr.Dataset) -> list[str]:
    """The single numbers as short texts."""
    known = json.loads(run.attrs.get("lenses", "{}"))
    texts = []
    for name, value in sorted(scalars(run).items()):
        matched = known[name.partition(".")[0]]["attrs"].get("gaussian") is False
        texts.append(f"{name} {value:.4g}{' (of the matched Gaussian)' if matched else ''}")
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
