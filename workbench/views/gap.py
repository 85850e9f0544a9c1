"""The gap of ODE and SDE as the browser draws it: one block of numbers, and what they are."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from workbench.studies.gapping import Seen

__all__ = ["packed"]


def packed(seen: Seen) -> bytes:
    """A header of JSON behind its length, and the arrays as float32; what ``gap.js`` reads."""
    dataset, blocks, arrays, offset = seen.dataset, [], {}, 0
    for name in ("ode", "sde", "truth", "map", "pointwise", "spectrum"):
        if name in dataset:
            values = np.ascontiguousarray(dataset[name].values, dtype="<f4")
            arrays[name] = {"at": offset, "shape": list(values.shape)}
            blocks.append(values.tobytes())
            offset += values.size
    header: dict[str, Any] = {
        "kind": dataset.attrs["kind"],
        "error": dataset.attrs["error"],
        "size": dataset.attrs["size"],
        "eta": dataset.attrs["eta"],
        "arrays": arrays,
        "rho": _plain(dataset["rho"].values),
        "t": _plain(dataset["t"].values),
        "residual": _plain(dataset["residual"].values),
        "residual_se": _plain(dataset["residual_se"].values),
        "distances": _distances(seen.gap, seen.bound),
    }
    if "place" in dataset.coords:
        header["place"] = _plain(dataset["place"].values)
    if "consequence" in dataset:
        header["consequence"] = {
            "size": _plain(dataset["size"].values),
            "w2": [_plain(row) for row in dataset["consequence"].values.T],
        }
    if seen.attribution is not None:
        header["attribution"] = {
            name: _curve(seen.attribution, name)
            for name in ("level", "mode", "frequency")
            if name in seen.attribution
        }
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 4) % 4)
    return len(text).to_bytes(4, "little") + text + b"".join(blocks)


def _plain(values) -> list:
    return [float(v) if math.isfinite(v) else None for v in np.asarray(values, float).ravel()]


def _curve(dataset: xr.Dataset, name: str) -> dict[str, list]:
    dim = dataset[name].dims[0]
    found = {
        "at": _plain(dataset[dim].values),
        "value": _plain(dataset[name].values),
        "se": _plain(dataset[f"{name}_se"].values),
        "high": _plain(dataset[f"{name}_null"].sel(bound="high").values),
    }
    if f"{name}_exact" in dataset:
        found["exact"] = _plain(dataset[f"{name}_exact"].values)
    return found


def _distances(gap: xr.Dataset, bound: xr.Dataset | None) -> dict[str, Any]:
    names = [n for n in ("w2", "sliced", "transport", "energy") if n in gap]
    found: dict[str, Any] = {"pairs": gap["pair"].values.tolist(), "statistics": {}}
    for name in names:
        one = {
            "value": _plain(gap[name].values),
            "se": _plain(gap[f"{name}_se"].values),
            "low": _plain(gap[f"{name}_null"].sel(bound="low").values),
            "high": _plain(gap[f"{name}_null"].sel(bound="high").values),
            "p": _plain(gap["p"].sel(statistic=name).values),
        }
        if f"{name}_exact" in gap:
            one["exact"] = _plain(gap[f"{name}_exact"].values)
        found["statistics"][name] = one
    found["step_error"] = _plain(gap["step_error"].values)
    if bound is not None:
        found["limit"] = _plain([bound["limit"]])[0]
    return found
