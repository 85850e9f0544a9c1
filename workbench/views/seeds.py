"""What the page "Seeds" draws in the browser: one block of numbers, and what they are."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

    from workbench.studies.seeding import SeedsSeen

__all__ = ["packed"]


def packed(seen: SeedsSeen, query: str) -> bytes:
    """A header of JSON behind its length, and the arrays as float32; what ``seeds.js`` reads.

    Args:
        query: of the study, for links to the page that follows a seed.
    """
    dataset, blocks, arrays, offset = seen.dataset, [], {}, 0
    for name in ("states", "share", "quality"):
        if name in dataset:
            values = np.ascontiguousarray(dataset[name].values, dtype="<f4")
            arrays[name] = {"at": offset, "shape": list(values.shape)}
            blocks.append(values.tobytes())
            offset += values.size
    event = dataset["states"].shape[3:]
    header: dict[str, Any] = {
        "kind": "plane" if event == (2,) else "image" if len(event) > 1 else "curve",
        "eta": dataset.attrs["eta"],
        "query": query,
        "arrays": arrays,
        "rho": _plain(dataset["rho"].values),
        "t": _plain(dataset["t"].values),
        "classes": dataset["class"].values.tolist(),
        "seeds": dataset["seed"].values.tolist(),
        "all": dataset["all_seeds"].values.tolist(),
        "parts": _beside(seen.components, "variance", names="part"),
        "icc": _beside(seen.components, "icc"),
        "named": _beside(seen.identification, "accuracy", names="shared"),
        "chance": 1 / seen.identification.attrs["seeds"],
    }
    if seen.golden is not None:
        header["best"] = _beside(seen.golden, "best")
        header["p"] = float(seen.golden["p"])
    if seen.retention is not None:
        header["retention"] = _beside(seen.retention, "correlation")
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 4) % 4)
    return len(text).to_bytes(4, "little") + text + b"".join(blocks)


def _plain(values) -> list:
    return [float(v) if math.isfinite(v) else None for v in np.asarray(values, float).ravel()]


def _beside(dataset: xr.Dataset, name: str, names: str = "") -> dict[str, list]:
    """An estimate with what stands beside it, and the names along its dim."""
    found = {"value": _plain(dataset[name].values)}
    for end in ("se", "exact"):
        if f"{name}_{end}" in dataset:
            found[end] = _plain(dataset[f"{name}_{end}"].values)
    if f"{name}_null" in dataset:
        for end in ("low", "high"):
            found[end] = _plain(dataset[f"{name}_null"].sel(bound=end).values)
    if names:
        found["names"] = dataset[names].values.tolist()
    return found
