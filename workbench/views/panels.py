"""Numbers for pages whose panels show one result: what ``panels.js`` unpacks."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def block(header: Mapping[str, Any], dataset: xr.Dataset, names: Iterable[str]) -> bytes:
    """A header of JSON behind its length, and the variables of these names.

    Whole numbers of eight bits, such as the pixels of pictures, stay so; all others are float32.
    Each begins at a multiple of four bytes, its place ``at`` told in those.
    """
    parts, arrays, offset = [], {}, 0
    for name in names:
        if name in dataset:
            values = dataset[name].values
            small = values.dtype == np.uint8
            content = np.ascontiguousarray(values, dtype=None if small else "<f4").tobytes()
            arrays[name] = {"at": offset, "shape": list(values.shape)}
            if small:
                arrays[name]["bytes"] = True
            parts.append(content + b"\0" * (-len(content) % 4))
            offset += len(parts[-1]) // 4
    text = json.dumps({**header, "arrays": arrays}).encode()
    text += b" " * (-(len(text) + 4) % 4)
    return len(text).to_bytes(4, "little") + text + b"".join(parts)


def header_of(content: bytes) -> dict[str, Any]:
    """The header of a :func:`block`."""
    return json.loads(content[4 : 4 + int.from_bytes(content[:4], "little")])


def beside(dataset: xr.Dataset, name: str, names: str = "") -> dict[str, list]:
    """An estimate with its error, its exact value and its null band, as far as they are there.

    Args:
        names: the coordinate that names its entries, handed on as ``names``.
    """
    variables = {"value": name, "se": f"{name}_se", "exact": f"{name}_exact"}
    numbers = {key: plain(dataset[one].values) for key, one in variables.items() if one in dataset}
    if f"{name}_null" in dataset:
        for bound in ("low", "high"):
            numbers[bound] = plain(dataset[f"{name}_null"].sel(bound=bound).values)
    if names:
        numbers["names"] = dataset[names].values.tolist()
    return numbers


def plain(values) -> list:
    """Numbers for JSON: what is not finite is null."""
    return [float(v) if math.isfinite(v) else None for v in np.asarray(values, float).ravel()]
