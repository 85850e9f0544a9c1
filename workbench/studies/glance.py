"""A stored run at a glance: a small picture of its final states, and one number for its error."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.studies.measuring import measured
from workbench.studies.run import build
from workbench.studies.spec import Study
from workbench.studies.store import check_plain, read

if TYPE_CHECKING:
    import xarray

#: Points of a plane, and images, that a picture shows; samples that an error is measured of.
POINTS, IMAGES, SAMPLES = 120, 2, 256

#: Largest state whose error is measured on the way [numbers].
MOST_NUMBERS = 1024

#: What is taken for the error, the first that there is, of what the lens ``output`` measures.
ERRORS = ("w2_exact", "w2_gaussian", "w2")


@dataclass(frozen=True)
class Glance:
    """What :func:`glance` sees.

    Attributes:
        picture: ``kind`` ("plane" or "images"), ``shape`` and ``data`` (bytes, in base 64); empty
            where final states are neither points of a plane nor images.
        error: W2 of the output to its target [x], or None.
        told: what the error is, or why there is none.
    """

    picture: dict[str, Any] = field(default_factory=dict)
    error: float | None = None
    told: str = ""


def glance(place: Path) -> Glance:
    """Look at a stored run. Never raises: what cannot be seen is not there."""
    try:
        check_plain(place)
        with read(place, partial=True) as run:
            error, told = _error(run)
            return Glance(_picture(run), error, told)
    except Exception as error:  # whatever there is, it spoils one row and not the list
        return Glance(told=f"It cannot be read: {str(error)[:200]}")


def _picture(run: xarray.Dataset) -> dict[str, Any]:
    """Final states, quantised to bytes."""
    shape = run["final"].shape[1:] if "final" in run and run.sizes["sample"] else ()
    plane = shape == (2,)
    if not plane and (len(shape) != 2 or max(shape) > 32):
        return {}
    final = run["final"][: POINTS if plane else IMAGES].values.astype(np.float64)
    final = np.nan_to_num(final, nan=0.0, posinf=0.0, neginf=0.0)
    if plane:
        half = max(float(np.abs(final).max()), 1e-12) * 1.05
        unit = (final * [1.0, -1.0] / half + 1) / 2
    else:
        low, high = np.quantile(final, [0.01, 0.99])
        unit = (final - low) / max(high - low, 1e-12)
    return quantised("plane" if plane else "images", unit)


def quantised(kind: str, unit: np.ndarray) -> dict[str, Any]:
    """Values from 0 to 1 as bytes: ``kind``, ``shape`` and ``data``, in base 64."""
    data = np.clip(np.rint(np.nan_to_num(unit) * 255), 0, 255).astype(np.uint8)
    text = base64.b64encode(data.tobytes()).decode()
    return {"kind": kind, "shape": list(data.shape), "data": text}


def _error(run: xarray.Dataset) -> tuple[float | None, str]:
    """The error that the run was stored with, else one measured of its final states."""
    for name in ERRORS:
        if f"output.{name}" in run and run[f"output.{name}"].ndim == 0:
            return _told(run[f"output.{name}"])
    if "final" not in run or math.prod(run["final"].shape[1:]) > MOST_NUMBERS:
        return None, "Not measured: name the lens output in its study."
    study = Study(**json.loads(run.attrs["study"])).changed({"lenses": "output", "device": "cpu"})
    setup = build(study)
    lenses = {name: replace(lens, samples=SAMPLES) for name, lens in setup.lenses.items()}
    found = measured(replace(setup, lenses=lenses), run)
    for name in ERRORS:
        if f"output.{name}" in found:
            return _told(found[f"output.{name}"])
    return None, "It has no such error."


def _told(array: xarray.DataArray) -> tuple[float | None, str]:
    value = float(array)
    words = f"{array.attrs.get('long_name', array.name)} [x]"
    return (value, words) if math.isfinite(value) else (None, f"Not finite: {words}")
