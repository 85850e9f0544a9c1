"""Numbers for pages whose panels show one result: what ``panels.js`` unpacks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["block", "plain"]


def block(header: Mapping[str, Any], dataset: xr.Dataset, names: Iterable[str]) -> bytes:
    """A header of JSON behind its length, and the variables of these names as float32."""
    parts, arrays, offset = [], {}, 0
    for name in names:
        if name in dataset:
            values = np.ascontiguousarray(dataset[name].values, dtype="<f4")
            arrays[name] = {"at": offset, "shape": list(values.shape)}
            parts.append(values.tobytes())
            offset += values.size
    text = json.dumps({**header, "arrays": arrays}).encode()
    text += b" " * (-(len(text) + 4) % 4)
    return len(text).to_bytes(4, "little") + text + b"".join(parts)


def plain(values) -> list:
    """Numbers for JSON: what is not finite is null."""
    return [float(v) if math.isfinite(v) else None for v in np.asarray(values, float).ravel()]
