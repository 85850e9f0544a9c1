"""A run as the bytes the player draws: quantised once, sent once, scrubbed in the browser.

Layout, little endian: the length of the header (uint32), the header (JSON, padded so that what
follows starts at a multiple of eight), then the arrays, each at a multiple of eight. A quantised
array holds ``low + q / (2**bits - 1) * (high - low)``.
"""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import xarray as xr

from workbench.lenses.portrait import display_scale, half_width

__all__ = ["PARTICLES", "TILES", "scene", "unpack"]

#: Most particles and most images drawn; numbers shown beside them use all samples.
PARTICLES, TILES = 4000, 144


def scene(
    run: xr.Dataset,
    flow: xr.Dataset | None = None,
    portrait: xr.Dataset | None = None,
    title: str = "",
    notes: tuple[str, ...] = (),
) -> bytes:
    """The player's bytes for a two-dimensional run or a run of images.

    Args:
        run: a trajectory's dataset with ``x`` (and ``denoised``) recorded.
        flow: of :func:`workbench.lenses.distances.to_flow`, to draw the exact flow over the run.
        portrait: of :func:`workbench.lenses.portrait.portrait`, for two-dimensional runs.
        title, notes: shown above and below the picture.

    Raises:
        ValueError: a run that is neither two-dimensional nor of images, or without ``x``.
    """
    if "x" not in run:
        raise ValueError("the run has no recorded x; record it with wb.Record(['x', ...]).")
    event = run["x"].shape[2:]
    if event == (2,):
        kind, most = "plane", PARTICLES
    elif len(event) == 2:
        kind, most = "image", TILES
    else:
        raise ValueError(
            f"the player draws states of shape (2,) or (rows, columns); these have shape {event}."
        )
    if run.sizes["sample"] > most:
        notes = (*notes, f"The first {most} of {run.sizes['sample']} samples are drawn.")
    header = {
        "version": 1,
        "kind": kind,
        "frames": run.sizes["time"],
        "samples": min(run.sizes["sample"], most),
        "title": title,
        "axis": {
            "rho": [r if math.isfinite(r) else None for r in run["rho"].values.tolist()],
            "t": run["t"].values.tolist(),
        },
        "readouts": [],
        "notes": list(notes),
    }
    pack = _Packer()
    draw = _plane if kind == "plane" else _images
    draw(header, pack, run.isel(sample=slice(most)), flow, portrait)
    if flow is not None:
        pack.add("rms", flow["rms"].values.astype("<f4"))
        header["readouts"].append(
            {"array": "rms", "label": flow["rms"].attrs["long_name"], "unit": "per coordinate"}
        )
    return pack.finish(header)


def _plane(header, pack, run, flow, portrait) -> None:
    width = portrait.attrs["half_width"] if portrait is not None else half_width(run)
    scale = display_scale(run)
    header["window"] = {"x": [-width, width], "y": [-width, width]}
    header["labels"] = {"x": "x₁ / √(α² + σ²/v)", "y": "x₂ / √(α² + σ²/v)"}
    # Positions may leave the window: room for them keeps the paths continuous at its edges.
    reach = 2.0 * width
    shown = {"x": run["x"].values / scale[:, None, None]}
    if "denoised" in run:
        # The estimate is in data units; it is drawn where that x0 would sit on the picture.
        shown["denoised"] = run["denoised"].values * (run["alpha"].values / scale)[:, None, None]
    if flow is not None:
        exact = flow["exact"].isel(sample=slice(run.sizes["sample"])).values
        shown["exact"] = exact / scale[:, None, None]
    for name, values in shown.items():
        pack.quantise(name, values, -reach, reach, "<u2")
    if portrait is not None:
        pack.add("density", np.maximum(portrait["log_density"].values, -30.0).astype("<f2"))
        pack.add("velocity", portrait["flow"].values.astype("<f2"))


def _images(header, pack, run, flow, portrait) -> None:
    scale = display_scale(run)[:, None, None, None]
    header["image"] = {"rows": run["x"].shape[2], "columns": run["x"].shape[3]}
    last = run["x"].values[-1] / scale[-1]
    last = last[np.isfinite(last)]  # a run may diverge
    low, high = (float(v) for v in np.quantile(last, [0.01, 0.99])) if last.size else (0.0, 0.0)
    low, high = (low, high) if high > low else (low - 1, high + 1)
    pack.quantise("x", run["x"].values / scale, low, high, "u1")
    if "denoised" in run:
        pack.quantise("denoised", run["denoised"].values, low, high, "u1")
    if flow is not None:
        exact = flow["exact"].isel(sample=slice(run.sizes["sample"])).values
        pack.quantise("exact", exact / scale, low, high, "u1")


class _Packer:
    """Arrays laid one after the other, each at a multiple of eight."""

    def __init__(self) -> None:
        self.arrays, self.parts, self.size = {}, [], 0

    def add(self, name: str, values: np.ndarray, low: float = 0.0, high: float = 1.0) -> None:
        raw = np.ascontiguousarray(values).tobytes()
        raw += b"\0" * (-len(raw) % 8)
        self.arrays[name] = {
            "offset": self.size,
            "dtype": values.dtype.name,
            "shape": list(values.shape),
            "low": low,
            "high": high,
        }
        self.parts.append(raw)
        self.size += len(raw)

    def quantise(self, name: str, values, low: float, high: float, dtype: str) -> None:
        top = np.iinfo(np.dtype(dtype)).max
        unit = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) * (
            top / (high - low)
        )
        self.add(name, np.clip(np.rint(unit), 0, top).astype(dtype), low, high)

    def finish(self, header: dict) -> bytes:
        text = json.dumps({**header, "arrays": self.arrays}, allow_nan=False).encode()
        text += b" " * (-(4 + len(text)) % 8)
        return b"".join([struct.pack("<I", len(text)), text, *self.parts])


def unpack(scene: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """The header and the arrays of a scene, quantised ones back in their units."""
    (length,) = struct.unpack_from("<I", scene)
    header = json.loads(scene[4 : 4 + length])
    arrays = {}
    for name, spec in header["arrays"].items():
        dtype = np.dtype(spec["dtype"]).newbyteorder("<")
        count = int(np.prod(spec["shape"]))
        flat = np.frombuffer(scene, dtype, count, 4 + length + spec["offset"])
        values = flat.reshape(spec["shape"])
        if dtype.kind == "u":
            values = spec["low"] + values / np.iinfo(dtype).max * (spec["high"] - spec["low"])
        arrays[name] = values
    return header, arrays
